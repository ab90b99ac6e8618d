"""Errors about volumes, each a single line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from bundle.data.paths import PathLike


class VolumeError(ValueError):
    """A volume that cannot be read or written.

    The message is one line: "<path>: <what is wrong>; <what to do>".
    """


def fail(path: PathLike, wrong: str, remedy: str, cause: BaseException | None = None) -> NoReturn:
    raise VolumeError(error_line(path, wrong, remedy)) from cause


def error_line(path: PathLike, wrong: str, remedy: str) -> str:
    """The path, what is wrong and what to do, without line breaks."""
    return f"{os.fspath(path)}: {wrong}; {remedy}".replace("\n", "\\n").replace("\r", "\\r")


@contextmanager
def disk_errors(target: PathLike) -> Iterator[None]:
    """Turn an OSError inside the block into a VolumeError about the file being written."""
    try:
        yield
    except OSError as error:
        wrong = f"cannot be written ({error.strerror or error})"
        fail(target, wrong, "check the folder, its access rights and the free space", error)


def root_cause(error: BaseException) -> str:
    """One line for the root cause of an exception (MONAI wraps exceptions of transforms in its own).

    A VolumeError is already complete, so its own cause is ignored.
    """
    while error.__cause__ is not None and not isinstance(error, VolumeError):
        error = error.__cause__
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}".removesuffix(": ")


class DatasetError(ValueError):
    """A folder or table of volumes that cannot be used.

    The message is one line: "<folder or table>: <what is wrong>; <what to do>".
    """


def fail_dataset(where: PathLike, wrong: str, remedy: str) -> NoReturn:
    raise DatasetError(error_line(where, wrong, remedy))
