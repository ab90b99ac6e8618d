"""End a run with a one-line error."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from bundle.data import DatasetError, VolumeError
from bundle.inference.weights import WeightsError

T = TypeVar("T")


def one_line_exit(function: Callable[..., T]) -> Callable[..., T]:
    """Let a bad folder, volume or weights file end a bundle run or a script with one line instead of a traceback."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> T:
        try:
            return function(*args, **kwargs)
        except (DatasetError, VolumeError, WeightsError) as error:
            raise SystemExit(str(error)) from error

    return wrapped
