"""Atomic writes: a file is written under a temporary name and renamed when it is complete."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_LEFT_BEHIND = re.compile(r"\.[0-9a-f]{16}\.(part|old)")


@contextmanager
def replacing(target: Path, before: Callable[[Path], None] | None = None) -> Iterator[IO[bytes]]:
    """A temporary file beside `target`, renamed to it when the block succeeds and removed otherwise.

    Args:
        target: the final name; missing folders are made.
        before: called with the finished temporary file just before it is renamed.

    Raises:
        OSError: the file cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # Hidden and short: never picked up as a volume, and the name is never too long. Opened with open() so that it gets
    # the permissions of an ordinary new file, unlike files from the tempfile module.
    partial = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with open(partial, "xb") as raw:
            yield raw
            raw.flush()
            os.fsync(raw.fileno())
        if before is not None:
            before(partial)
        os.replace(partial, target)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def remove_partial_files(folder: Path) -> int:
    """Delete the temporary files of killed runs below `folder` and count them; no other run may be writing there."""
    count = 0
    for where, subfolders, names in os.walk(folder):
        for name in filter(_LEFT_BEHIND.fullmatch, names):
            with suppress(OSError):
                os.unlink(os.path.join(where, name))
                count += 1
        for name in filter(_LEFT_BEHIND.fullmatch, list(subfolders)):  # of a DICOM series
            subfolders.remove(name)
            shutil.rmtree(os.path.join(where, name), ignore_errors=True)
            count += 1
    return count
