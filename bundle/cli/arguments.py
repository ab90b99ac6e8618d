"""Command-line options, generated from their declaration in :mod:`bundle.options`."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from bundle.options import Option, declared, former_names

Function = Callable[..., Any]


class DeclaredCommand(click.Command):
    """A command that knows the former names of its options."""

    def __init__(self, *args: Any, options_of: type, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._options = declared(options_of)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise self._explained(error) from error

    def _explained(self, error: click.NoSuchOption) -> click.UsageError:
        name = error.option_name.lstrip("-").replace("-", "_")
        now = former_names(self._options).get(name)
        if now is not None:
            return click.UsageError(f"--{dashed(name)} is now called --{dashed(now)}", error.ctx)
        near = difflib.get_close_matches(name, self._options, n=1)
        hint = f"; did you mean --{dashed(near[0])}?" if near else ""
        return click.UsageError(f"no such option: {error.option_name}{hint}", error.ctx)


def dashed(name: str) -> str:
    """`slice_axis` as written on the command line: `slice-axis`."""
    return name.replace("_", "-")


def options_of(cls: type, only: Sequence[str] | None = None) -> Callable[[Function], Function]:
    """Decorator that gives a command all or some options of a dataclass, in the order of their declaration."""

    def decorate(function: Function) -> Function:
        for name, (default, about) in reversed(declared(cls).items()):
            if only is None or name in only:
                function = _click_option(name, default, about)(function)
        return function

    return decorate


def _click_option(name: str, default: Any, about: Option) -> Callable[[Function], Function]:
    flag = f"--{dashed(name)}"
    if about.kind == "flag":
        return click.option(flag, is_flag=True, default=default, help=about.help)
    text = about.help if about.default_text is None else f"{about.help}  [default: {about.default_text}]"
    shown = about.default_text is None
    offered = None if about.offered is None else f"[{'|'.join(map(str, about.offered))}]"
    return click.option(flag, type=_type(about), default=default, show_default=shown, metavar=offered, help=text)


class _NumberOrWord(click.FloatRange):
    """A number from 0 to 1, or one of some words."""

    def __init__(self, words: tuple[str, ...]) -> None:
        super().__init__(0, 1)
        self.words = words
        self.name = " or ".join([*words, "0 to 1"])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in self.words:
            return value
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0.0 <= number <= 1.0:
            self.fail(f"{value!r} is not {' or '.join([*self.words, 'a number from 0 to 1'])}", param, ctx)
        return number


class _Checked(click.ParamType):
    """Text that an option permits."""

    def __init__(self, about: Option) -> None:
        self.about, self.name = about, about.kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not self.about.permits(value):
            self.fail(f"{value!r} is not {self.about.range_text}", param, ctx)
        return value


def _type(about: Option) -> Any:
    if about.choices:
        return click.Choice(about.choices)
    if about.kind == "path":
        return click.Path(dir_okay=False, path_type=Path)
    if about.kind == "whole":
        return click.IntRange(min=None if about.minimum is None else int(about.minimum))
    if about.kind == "share":
        return _NumberOrWord(about.words)
    if about.kind in ("matrix", "size"):
        return _Checked(about)
    return float if about.kind == "number" else str
