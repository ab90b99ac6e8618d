"""The pool of threads that the native kernels share: any number of callers, late helpers, forks."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch

from bundle.ops import native
from bundle.ops.native.patch_search import patch_search

pytestmark = pytest.mark.skipif(native.load() is None, reason=f"the kernels are not available: {native.reason()}")


def _features(side: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, side, side, 8, generator=random) for _ in range(2))
    return query, key


@pytest.mark.parametrize("threads", [2, 5])
def test_many_callers_at_once_get_the_same_result(threads: int) -> None:
    library, (query, key) = native.load(), _features()
    usual = torch.get_num_threads()
    expected, wrong = patch_search(library, query, key)[0], []

    def call() -> None:
        torch.set_num_threads(threads)
        wrong.extend(not torch.equal(patch_search(library, query, key)[0], expected) for _ in range(20))

    callers = [threading.Thread(target=call) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=120)
    torch.set_num_threads(usual)
    assert not any(caller.is_alive() for caller in callers)
    assert len(wrong) == 120 and not any(wrong)


@pytest.mark.skipif(sys.platform == "win32", reason="this system has no fork")
def test_a_forked_child_of_a_process_with_helpers_starts_its_own() -> None:
    code = """
import os, torch
from bundle.ops import native
from bundle.ops.native.patch_search import patch_search
torch.set_num_threads(3)
query = torch.randn(2, 24, 24, 8)
expected = patch_search(native.load(), query, query)[0]
child = os.fork()
if child == 0:
    same = [patch_search(native.load(), query, query)[0].eq(expected).all().item() for _ in range(10)]
    os._exit(0 if all(same) else 1)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(patch_search(native.load(), query, query)[0], expected)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
