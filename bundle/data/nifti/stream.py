"""Opening volume files: kind of file, gzip by content, and size limits.

Gzip streams are read to the end so that their checksum is verified.
"""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bundle.data.errors import fail
from bundle.data.paths import open_regular

MAX_BYTES = 16 * 2**30
"""Default limit on the size of the stored voxels (16 GiB); `read_volume(max_bytes=...)` changes it."""

MAX_EXTRA_BYTES = 64 * 2**20
"""Limit on the size of header extensions, and of data after the voxels in a gzip stream (64 MiB)."""

DEFLATE_RATIO = 1032
"""Largest expansion by deflate: a small gzip file that declares a huge volume is refused unread."""

CHUNK = 4 * 2**20
"""How much is read, converted or written at a time (bytes or voxels)."""


GZIP = b"\x1f\x8b"


@dataclass(eq=False)
class Source:
    """An open file: `stream` gives its (decompressed) bytes in order, `room` bounds how many there can be.

    `warnings` are doubts about a file of another format, which this one was made of.
    """

    path: Path
    stream: IO[bytes]
    size: int
    packed: bool
    warnings: tuple[str, ...] = ()

    @property
    def room(self) -> int:
        return self.size * DEFLATE_RATIO if self.packed else self.size

    def read(self, count: int) -> bytes:
        return self.stream.read(count)


def is_packed(path: Path) -> bool:
    """Whether a file begins as gzip does."""
    with open_regular(path) as raw:
        return raw.read(2) == GZIP


@contextmanager
def open_stream(path: Path) -> Iterator[Source]:
    """Open a regular file, gzip or plain by its first bytes; errors while reading become VolumeError."""
    try:
        size = _regular_file_size(path)
        with open(path, "rb") as raw:
            packed = raw.read(2) == GZIP
            raw.seek(0)
            if packed:
                with gzip.GzipFile(fileobj=raw, mode="rb") as stream:
                    yield Source(path, stream, size, True)  # type: ignore[arg-type]
            else:
                yield Source(path, raw, size, False)
    except EOFError as error:
        fail(path, "truncated gzip file (no end-of-stream marker)", "copy or download it again", error)
    except (gzip.BadGzipFile, zlib.error) as error:
        fail(path, f"damaged gzip file ({error})", "copy or download it again", error)
    except PermissionError as error:
        fail(path, "permission denied", "check the access rights", error)
    except OSError as error:
        fail(path, f"cannot be read ({error.strerror or error})", "check the file and the disk", error)


def _regular_file_size(path: Path) -> int:
    try:
        info = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            fail(path, f"dangling link to {os.readlink(path)}", "fetch the file that it points to")
        fail(path, "no such file", "check the name")
    if stat.S_ISDIR(info.st_mode):
        fail(path, "is a directory, not a file", "give the volume inside it")
    if not stat.S_ISREG(info.st_mode):
        fail(path, "is not a regular file", "give a NIfTI file")
    if info.st_size == 0:
        fail(path, "empty file (0 bytes)", "copy or download it again")
    return info.st_size


def drain(source: Source, warnings: list[str]) -> int:
    """Read a gzip stream to its end, where the checksum is verified; return the number of bytes found."""
    extra = 0
    while True:
        try:
            block = source.read(CHUNK)
        except gzip.BadGzipFile as error:
            if "Not a gzipped file" not in str(error):
                raise
            # The stream itself is intact (its checksum was verified before this); other bytes follow it.
            warnings.append("bytes after the gzip stream are ignored")
            return extra
        if not block:
            return extra
        extra += len(block)
        if extra > MAX_EXTRA_BYTES:
            fail(source.path, f"more than {MAX_EXTRA_BYTES} bytes follow the image data", "get an intact copy")
