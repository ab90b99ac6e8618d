"""Errors that end a run with their one line."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from bundle.data import DatasetError, VolumeError
from bundle.inference.weights import WeightsError

T = TypeVar("T")


def one_line_exit(function: Callable[..., T]) -> Callable[..., T]:
    """Let a bad folder, volume or file of weights end a bundle run or a script with its one line, not a traceback."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> T:
        try:
            return function(*args, **kwargs)
        except (DatasetError, VolumeError, WeightsError) as error:
            raise SystemExit(str(error)) from error

    return wrapped
