"""Who may write into an output folder: one run, of one process or of several that share the work."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from bundle.cli.options import RunError
from bundle.cli.share import Share
from bundle.data.atomic import remove_partial_files

WAIT = 60.0
"""Seconds that one of several processes waits for another one that is at the door."""

_log = logging.getLogger("iconet")


@contextmanager
def locked(lock: Path, share: Share) -> Iterator[None]:
    """Keep other runs out of the folder of the results, and clear away what a killed one left there.

    A process that is alone holds the lock of the folder throughout. One of several holds a lock of its own; that of
    the folder is the door, which it holds while it enters and leaves.

    Args:
        lock: lock file in the folder.
        share: of this process.

    Raises:
        RunError: another run is at work, or the folder cannot be written.
    """
    folder = lock.parent
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if share.alone:
                held.enter_context(FileLock(lock, timeout=0))
                _enter(lock, share)
            else:
                with FileLock(lock, timeout=WAIT):
                    _enter(lock, share)
                    held.enter_context(FileLock(_own(lock, share), timeout=0))
                held.callback(_leave, lock, share)
        except Timeout as error:
            raise RunError(f"{folder}: another run writes there; wait for it or choose another folder") from error
        except NotImplementedError:  # a file system without locks
            pass
        except OSError as error:
            raise RunError(f"{folder}: cannot be written ({error.strerror or error}); choose another folder") from error
        yield


def _own(lock: Path, share: Share) -> Path:
    return lock.with_suffix(f".{share.mark}.lock")


def _enter(lock: Path, share: Share) -> None:
    """With the door held: raise Timeout if another run is at work; the first of a run clears up."""
    at_work = []
    for path in lock.parent.glob(lock.with_suffix(".*-of-*.lock").name):
        try:
            with FileLock(path, timeout=0), suppress(OSError):
                path.unlink()  # of a process that was killed
        except Timeout:
            at_work.append(path)
    if any(share.alone or not path.name.endswith(f"-of-{share.count}.lock") for path in at_work):
        raise Timeout(str(lock))
    if not at_work and (count := remove_partial_files(lock.parent)):
        _log.info("%s: %d unfinished files of an interrupted run removed", lock.parent, count)


def _leave(lock: Path, share: Share) -> None:
    with suppress(Timeout, OSError), FileLock(lock, timeout=WAIT):
        _own(lock, share).unlink()
