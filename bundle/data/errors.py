"""Errors of volumes, each told in one line."""

from __future__ import annotations

import os
from typing import NoReturn

from .paths import PathLike


class VolumeError(ValueError):
    """A volume that cannot be read or written.

    The message is one line: "<path>: <what is wrong>; <what to do>".
    """


def fail(path: PathLike, wrong: str, remedy: str, cause: BaseException | None = None) -> NoReturn:
    raise VolumeError(error_line(path, wrong, remedy)) from cause


def error_line(path: PathLike, wrong: str, remedy: str) -> str:
    """The path, what is wrong and what to do, without line breaks."""
    return f"{os.fspath(path)}: {wrong}; {remedy}".replace("\n", "\\n").replace("\r", "\\r")
