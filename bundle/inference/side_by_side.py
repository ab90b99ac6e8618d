"""Independent pieces of work on several threads, which share PyTorch's threads among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

import torch

T = TypeVar("T")


def side_by_side(work: Callable[[int], T], count: int, workers: int) -> Iterator[T]:
    """``work(0)`` to ``work(count - 1)``, in this order, from so many threads at a time.

    A slice in a thread of its own needs no waiting for other threads within an operation, which costs most on a machine
    that others use too. PyTorch's threads are shared out: with 8 of them and 4 workers, each worker has 2. Workers see
    the context variables of the caller and its inference mode; they have no gradients.

    Raises:
        whatever ``work`` raises; what has not begun is then left.
    """
    if workers < 2:
        yield from map(work, range(count))
        return
    threads, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()

    def task(number: int) -> T:
        with torch.inference_mode(inference), torch.no_grad():
            return work(number)

    pool = ThreadPoolExecutor(workers, "iconet-slices", torch.set_num_threads, (max(threads // workers, 1),))
    try:
        futures = [pool.submit(copy_context().run, task, number) for number in range(count)]
        for future in futures:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # new threads of the process would start with those of a worker
