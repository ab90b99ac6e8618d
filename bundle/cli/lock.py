"""Lock an output folder for one run, whether it is one process or several that share the work."""

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
"""Seconds that one of several processes waits while another holds the folder's lock."""

_log = logging.getLogger("iconet")


_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@contextmanager
def hold(path: Path, timeout: float = -1) -> Iterator[bool]:
    """Hold a lock file and yield whether it is locked; a file system without locks is used with a warning.

    Args:
        timeout: seconds to wait for it; forever if negative.

    Raises:
        Timeout: another process holds it.
        OSError: it cannot be written.
    """
    with ExitStack() as held:
        locks = True
        try:
            held.enter_context(FileLock(path, timeout=timeout, fallback_to_soft=False))
        except OSError as error:  # Timeout is an OSError too, without errno
            if error.errno not in _WITHOUT_LOCKS:
                raise
            locks = False
            _warn(path.parent)
        yield locks


@cache
def _warn(folder: Path) -> None:
    _log.warning("%s: the file system has no locks; make sure that no other run writes there", folder)


@contextmanager
def locked(lock: Path, share: Share) -> Iterator[ExitStack]:
    """Keep other runs out of the output folder, and clean up after killed ones.

    A single process holds the folder's lock throughout. One of several holds its own lock, and the folder's lock (the
    door) only while it enters and leaves. Processes of one run and of the same run started again are not told apart:
    one process per number is let in.

    Args:
        lock: lock file in the folder.
        share: of this process.

    Yields:
        The locks held; a process that holds the door closes them to leave.

    Raises:
        RunError: another run is active, or the folder cannot be written.
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
            raise RunError(f"{folder}: another run is writing there; wait for it or choose another folder") from error
        except OSError as error:
            raise RunError(f"{folder}: cannot be written ({error.strerror or error}); choose another folder") from error
        yield held


def at_work(lock: Path) -> list[Path]:
    """With the door held: lock files of active processes; those of killed ones are removed."""
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
    """With the door held: raise Timeout if another run is active; the first process of a run cleans up."""
    others = at_work(lock)
    if any(share.alone or f".{share.run}." not in path.name for path in others):
        raise Timeout(str(lock))
    if not others and (count := remove_partial_files(lock.parent)):
        _log.info("%s: removed %d unfinished files of an interrupted run", lock.parent, count)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
