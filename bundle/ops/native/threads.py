"""A lock that survives a fork, and a fresh thread for what is decided once for the whole process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["ForkSafeLock", "in_fresh_thread"]

T = TypeVar("T")


class ForkSafeLock:
    """A lock for ``with`` blocks that a forked child finds open, even if a thread of its parent held it."""

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def in_fresh_thread(function: Callable[[], T]) -> T:
    """Call a function in a new thread and return its result or raise its exception.

    The state that PyTorch keeps for each thread has its defaults there: no inference mode, no autocast, no default
    device, no mode that records or fakes operations. What is decided once for the whole process must not depend on the
    state in which its first caller happens to be.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="iconet-check") as pool:
        return pool.submit(function).result()
