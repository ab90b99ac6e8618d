"""Atomic writes: a file or folder is made under a temporary name and renamed when it is complete.

Whoever writes holds a lock on the temporary file or folder itself (flock, which ends with the process, however it
ends). A later run removes what nobody holds, and leaves alone what another process is writing at that moment, whichever
folder that process was told to write to.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows, which does not delete a file that is open
    fcntl = None  # type: ignore[assignment]

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
    with ExitStack() as held:
        partial, raw = _new_file(target, held)
        try:
            with raw:
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


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that replaces it when the block succeeds and is removed otherwise.

    Two renames replace an earlier folder; between them it exists only under a hidden name.

    Raises:
        OSError: the folder cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        partial = _new_folder(target, held)
        old = partial.with_suffix(".old")
        try:
            yield partial
            _sync(partial)
            if target.exists():
                held.enter_context(_held(target))
                os.replace(target, old)
            os.replace(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            if old.exists() and not target.exists():
                os.replace(old, target)
            raise
        _sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)


def remove_partial_files(folder: Path, below: bool = True) -> int:
    """Delete the temporary files and folders that killed runs left in `folder`, and count them.

    What a living process holds stays, and so does everything on a file system without locks, which cannot tell.

    Args:
        folder: where to look; it need not exist.
        below: look in its subfolders too.
    """
    count = 0
    for where, subfolders, names in os.walk(folder):
        for name in filter(_LEFT_BEHIND.fullmatch, (*names, *subfolders)):
            count += _remove_abandoned(Path(where, name))
        subfolders[:] = [name for name in subfolders if below and not _LEFT_BEHIND.fullmatch(name)]
    return count


def _new_file(target: Path, held: ExitStack) -> tuple[Path, IO[bytes]]:
    """An open temporary file beside `target`, held by this process until `held` is closed."""
    while True:
        # Hidden and short: never picked up as a volume, and the name is never too long. Opened with open() so that it
        # gets the permissions of an ordinary new file, unlike files from the tempfile module.
        partial = target.with_name(f".{secrets.token_hex(8)}.part")
        raw = open(partial, "xb")  # noqa: SIM115 (the caller closes it)
        if held.enter_context(_held(partial)):
            return partial, raw
        raw.close()


def _new_folder(target: Path, held: ExitStack) -> Path:
    while True:
        partial = target.with_name(f".{secrets.token_hex(8)}.part")
        partial.mkdir()
        if held.enter_context(_held(partial)):
            return partial


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Hold a file or folder; False if another run removed it in the moment between its making and now."""
    if fcntl is None:
        yield True
        return
    try:
        descriptor = _open(path)
    except FileNotFoundError:
        yield False
        return
    try:
        with suppress(OSError):  # no locks on this file system: nobody can take it for abandoned either
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # another run that looks at it holds it for a moment only
        yield _still_there(path, descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(path: Path) -> bool:
    """Remove a temporary file or folder unless a process holds it; whether it was removed."""
    with suppress(OSError), ExitStack() as opened:
        if not stat.S_ISREG(mode := path.lstat().st_mode) and not stat.S_ISDIR(mode):
            return False
        if fcntl is not None:
            descriptor = _open(path)
            opened.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if stat.S_ISDIR(mode):
            shutil.rmtree(path)
        else:
            path.unlink()
        return True
    return False


def _open(path: Path) -> int:
    """A descriptor to lock: open for writing where that is possible, which network file systems want."""
    with suppress(PermissionError, IsADirectoryError):
        return os.open(path, os.O_RDWR)
    return os.open(path, os.O_RDONLY)


def _still_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sync(folder: Path) -> None:
    with suppress(OSError):  # some file systems cannot sync a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
