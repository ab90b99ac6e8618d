"""Threads of the native kernels: a pool that shares the tasks of a call, and a fresh thread for the self-tests."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

__all__ = ["ForkSafeLock", "in_fresh_thread", "run_workers"]

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


_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_pool_lock = ForkSafeLock()


def _after_fork() -> None:
    global _pool, _pool_size
    _pool, _pool_size = None, 0  # the threads of a pool do not survive a fork: the child starts its own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def in_fresh_thread(function: Callable[[], T]) -> T:
    """Call a function in a new thread and return its result or raise its exception.

    The state that PyTorch keeps for each thread has its defaults there: no inference mode, no autocast, no default
    device, no mode that records or fakes operations. What is decided once for the whole process must not depend on the
    state in which its first caller happens to be.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="iconet-check") as pool:
        return pool.submit(function).result()


def run_workers(work: Callable[[], int], tasks: int) -> None:
    """Call `work` on the current thread and on up to `torch.get_num_threads() - 1` helpers.

    The workers share the tasks through a counter in C and every task's result is independent of who runs it, so the
    number of threads never changes a bit of the output, and a helper that starts late or not at all changes nothing.

    Raises:
        MemoryError: a worker could not allocate its buffers.
    """
    futures = _submit(work, min(torch.get_num_threads(), tasks) - 1)
    try:
        failed = work()
    finally:  # even on Ctrl-C no buffer may be freed while a helper still writes to it
        running = [future for future in futures if not future.cancel()]
        wait(running)
    if failed or any(future.result() for future in running):
        raise MemoryError("the native kernel could not allocate its buffers")


def _helpers(count: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    with _pool_lock:
        if _pool is None or _pool_size < count:
            _pool, _pool_size = ThreadPoolExecutor(count, thread_name_prefix="iconet"), count
        return _pool


def _submit(work: Callable[[], int], helpers: int) -> list[Future[int]]:
    if helpers < 1:
        return []
    try:
        pool = _helpers(helpers)
        return [pool.submit(work) for _ in range(helpers)]
    except RuntimeError:  # the interpreter is shutting down: no new threads, the caller does all the work
        return []
