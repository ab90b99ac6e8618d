"""Names as they were typed.

MONAI's command line (python-fire) reads every value as Python where it can: `100307` becomes a number, `a,b` a tuple,
and `out#1` the word `out`, since `#` begins a comment. Where a name is wanted, what was typed is what is meant.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any


def typed_text(name: str, arguments: Sequence[str]) -> str | None:
    """The text given for `--name` on a command line, the last one if there are several; None if there is none."""
    found = None
    for at, argument in enumerate(arguments):
        if not _is_flag(argument):
            continue
        flag, equals, value = argument.lstrip("-").partition("=")
        if flag.replace("-", "_") == name:
            following = arguments[at + 1] if at + 1 < len(arguments) else None
            found = value if equals else None if following is None or _is_flag(following) else following
    return found


def as_typed(value: Any, text: str | None) -> Any:
    """What is meant by a value of the command line that should be a name.

    Args:
        value: as it was understood.
        text: as it was typed.

    Returns:
        The text, if the value was made from it. Text in quotes of its own (`'"out#1"'` in a shell) means what the
        quotes hold.
    """
    if text is None:
        return value
    understood = _understood(text)
    if understood is None:  # MONAI drops it and keeps the value of the config
        return text
    if type(understood) is not type(value) or _by_monai(understood) != value:
        return value
    return understood if isinstance(understood, str) and _is_quoted(text) else text


def _by_monai(value: Any) -> Any:
    """A value in a parsed config, where MONAI has written :: for every #."""
    return value.replace("#", "::") if isinstance(value, str) else value


def _understood(text: str) -> Any:
    try:
        from fire.parser import DefaultParseValue
    except ImportError:  # then nobody has retyped anything
        return text
    return DefaultParseValue(text)


def _is_quoted(text: str) -> bool:
    """Whether a text is one literal of Python from its first to its last character."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    literal = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return literal and (node.end_lineno, node.end_col_offset) == (1, len(text.strip().encode()))


def _is_flag(argument: str) -> bool:
    return re.match("--|-[A-Za-z]", argument) is not None
