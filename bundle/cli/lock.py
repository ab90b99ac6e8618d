"""Who may write into an output folder: one run, of one process or of several that share the work."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from bundle.cli.errors import RunError
from bundle.cli.partition import Share
from bundle.data.atomic import remove_partial_files

WAIT = 60.0
"""Seconds that one of several processes waits for another one that is at the door."""

_log = logging.getLogger("iconet")


_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@contextmanager
def hold(path: Path, timeout: float = -1) -> Iterator[bool]:
    """Hold a lock file, and tell whether it is locked: a file system without locks is warned of, and used.

    Args:
        timeout: seconds to wait for it; below 0 for ever.

    Raises:
        Timeout: another process holds it.
        OSError: it cannot be written.
    """
    with ExitStack() as held:
        locks = True
        try:
            held.enter_context(FileLock(path, timeout=timeout, fallback_to_soft=False))
        except OSError as error:  # also Timeout, which has no number
            if error.errno not in _WITHOUT_LOCKS:
                raise
            locks = False
            _warn(path.parent)
        yield locks


@cache
def _warn(folder: Path) -> None:
    _log.warning("%s: a file system without locks; see to it that no other run writes there", folder)


@contextmanager
def locked(lock: Path, share: Share) -> Iterator[ExitStack]:
    """Keep other runs out of the folder of the results, and clear away what a killed one left there.

    A process that is alone holds the lock of the folder throughout. One of several holds a lock of its own; that of
    the folder is the door, which it holds while it enters and leaves. Processes of one run and of the same run started
    once more are not told apart: of each number one is let in.

    Args:
        lock: lock file in the folder.
        share: of this process.

    Yields:
        What is held; a process that holds the door closes it to be at work no longer.

    Raises:
        RunError: another run is at work, or the folder cannot be written.
    """
    folder = lock.parent
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if share.alone:
                if held.enter_context(hold(lock, timeout=0)):
                    _enter(lock, share)
            else:
                with hold(lock, timeout=WAIT) as locks:
                    if locks:
                        _enter(lock, share)
                    held.enter_context(hold(share.own_lock(lock), timeout=0))
                held.callback(_remove, share.own_lock(lock))
        except Timeout as error:
            raise RunError(f"{folder}: another run writes there; wait for it or choose another folder") from error
        except OSError as error:
            raise RunError(f"{folder}: cannot be written ({error.strerror or error}); choose another folder") from error
        yield held


def at_work(lock: Path) -> list[Path]:
    """With the door held: locks of the processes in the folder; what killed ones left of theirs is removed."""
    found = []
    for path in lock.parent.glob(lock.with_suffix(".*-of-*.lock").name):
        try:
            with hold(path, timeout=0) as locks:
                if locks:
                    _remove(path)
        except Timeout:
            found.append(path)
    return found


def _enter(lock: Path, share: Share) -> None:
    """With the door held: raise Timeout if another run is at work; the first of a run clears up."""
    others = at_work(lock)
    if any(share.alone or f".{share.run}." not in path.name for path in others):
        raise Timeout(str(lock))
    if not others and (count := remove_partial_files(lock.parent)):
        _log.info("%s: %d unfinished files of an interrupted run removed", lock.parent, count)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
