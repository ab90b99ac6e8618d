"""Errors of volumes, each told in one line."""

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
    """What the disk refuses inside the block becomes a VolumeError about the file that is written."""
    try:
        yield
    except OSError as error:
        wrong = f"cannot be written ({error.strerror or error})"
        fail(target, wrong, "check the folder, its access rights and the free space", error)


def root_cause(error: BaseException) -> str:
    """One line for the first cause of an exception (MONAI wraps what a transform raises in its own).

    A VolumeError says all there is to say, so its own cause is not looked for.
    """
    while error.__cause__ is not None and not isinstance(error, VolumeError):
        error = error.__cause__
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}".removesuffix(": ")


class DatasetError(ValueError):
    """A folder or a table of volumes that cannot be used.

    The message is one line: "<folder or table>: <what is wrong>; <what to do>".
    """


def fail_dataset(where: PathLike, wrong: str, remedy: str) -> NoReturn:
    raise DatasetError(error_line(where, wrong, remedy))
