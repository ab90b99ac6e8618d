"""Paths of volume files: .hdr/.img pairs, regular files and others, whether two paths are the same file, checksums."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeAlias

PathLike: TypeAlias = str | os.PathLike[str]


def special_kind(path: PathLike) -> str | None:
    """What a path is (links followed) if it is neither a regular file nor a folder; None if it is, or if nobody knows.

    Such a thing is never opened: opening a pipe waits for its writer, perhaps for ever, and a device has no end.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode))


def open_regular(path: PathLike) -> BufferedReader:
    """Open a file for reading.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    if kind := special_kind(path):
        raise OSError(None, f"{kind}, not a regular file", os.fspath(path))
    return open(path, "rb")


def read_json(path: PathLike) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: as for `open_regular`; ValueError, RecursionError: it is not JSON.
    """
    with open_regular(path) as stream:
        return json.load(stream)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's contents, in hexadecimal; the file is not loaded into memory as a whole."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pair_paths(path: Path) -> tuple[Path, Path]:
    """The header file and the image file; the same file unless the name ends with .hdr or .img."""
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".img"):
        return _sibling(path, "hdr"), path
    if name.endswith(".hdr"):
        return path, _sibling(path, "img")
    return path, path


def _sibling(path: Path, extension: str) -> Path:
    """`scan.hdr` for `scan.img` and vice versa; letter case and a .gz extension may differ between the two."""
    stem = path.name[: path.name.lower().rindex(".hdr" if extension == "img" else ".img")]
    wanted = [f"{stem}.{extension}".casefold(), f"{stem}.{extension}.gz".casefold()]
    with suppress(OSError):
        found = [entry for entry in sorted(path.parent.iterdir()) if entry.name.casefold() in wanted]
        if found:
            return min(found, key=lambda entry: (entry.name[: len(stem)] != stem, wanted.index(entry.name.casefold())))
    return path.with_name(f"{stem}.{extension}")


def same_file(first: Path, second: Path) -> bool:
    if os.path.realpath(first) == os.path.realpath(second):
        return True
    with suppress(OSError):
        return os.path.samefile(first, second)
    return False
