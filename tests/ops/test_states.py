"""The kernels work in whatever state of PyTorch the first call of a process finds itself, and leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from bundle.ops import native, patch_match, selective_scan_2d, use_backend
from bundle.ops.backend import TABLE, Backend
from bundle.ops.native.threads import ForkSafeLock, in_fresh_thread

needs_native = pytest.mark.skipif(native.load() is None, reason=f"NATIVE KERNELS NOT TESTED: {native.reason()}")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
ON_CPU = [row for row in TABLE if row.takes("cpu", torch.float32) and row.unavailable() is None]

BEFORE = """
import os, sys, threading
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from bundle.networks import iconet
from bundle.ops import native
torch.manual_seed(0)
torch.set_num_threads(2)
network = iconet("small", 2, features=8, num_blocks=1, d_state=2, match_features=4).eval()
image = torch.rand(2, 1, 9, 8)
"""
AFTER = """
assert native.load() is not None, native.reason()
usual = network(image)
usual.square().mean().backward()
assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in network.parameters() if p.dim() > 1)
if first is not None:
    assert first.shape == usual.shape and (first.float() - usual).abs().max() <= tolerance, (first - usual).abs().max()
"""


def in_a_process_of_its_own(code: str, tolerance: float = 1e-6) -> None:
    environment = {**os.environ, "ICONET_BACKEND": ""}
    program = f"{BEFORE}\ntolerance, first = {tolerance}, None\n{code}\n{AFTER}"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


@needs_native
@pytest.mark.parametrize("mode", ["torch.inference_mode()", "torch.no_grad()"])
def test_a_first_call_without_gradients_runs_the_native_kernels_and_training_works_afterwards(mode: str) -> None:
    in_a_process_of_its_own(f"with {mode}:\n    first = network(image)\n    assert native._loaded[0], native.reason()")


@needs_native
def test_a_first_call_under_autocast_runs_the_native_kernels() -> None:
    code = "with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):\n    first = network(image)"
    in_a_process_of_its_own(code, tolerance=0.05)


@needs_native
@pytest.mark.parametrize("mode", ["torch.no_grad()", "torch.inference_mode()"])
def test_a_first_call_inside_torch_compile_runs_the_native_kernels(mode: str) -> None:
    code = f"with {mode}:\n    first = torch.compile(network, backend='aot_eager', fullgraph=True)(image)"
    in_a_process_of_its_own(code, tolerance=1e-5)


@needs_native
@pytest.mark.parametrize("mode", ["torch.device('meta')", "FakeTensorMode()"])
def test_a_mode_of_the_first_caller_does_not_reach_the_self_test(mode: str) -> None:
    in_a_process_of_its_own(f"with {mode}:\n    assert native.load() is not None, native.reason()")


@needs_native
def test_a_default_type_of_double_precision_does_not_reach_the_native_kernels() -> None:
    in_a_process_of_its_own("torch.set_default_dtype(torch.float64)\nfirst = network(image)")


@needs_native
def test_threads_that_make_the_first_call_together_all_get_the_result() -> None:
    in_a_process_of_its_own("""
results, start = [], threading.Barrier(6)
def work(mode):
    start.wait()
    with mode():
        results.append(network(image).detach().clone())
threads = [threading.Thread(target=work, args=(m,)) for m in (torch.no_grad, torch.inference_mode) * 3]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(results) == 6 and all(torch.equal(r, results[0]) for r in results)
first = results[0]
""")


@needs_native
@needs_fork
@pytest.mark.parametrize("parent", ["pass", "with torch.inference_mode(): network(image)"])
def test_a_forked_child_runs_the_native_kernels(parent: str) -> None:
    in_a_process_of_its_own(f"""
{parent}
child = os.fork()
if child == 0:
    code = 1
    torch.set_num_threads(1)  # the threads of PyTorch's own OpenMP do not survive a fork
    try:
        with torch.inference_mode(): network(image)
        assert native._loaded[0] is not None, native.reason()
        code = 0
    finally:
        os._exit(code)
assert os.waitpid(child, 0)[1] == 0
""")


@needs_fork
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # that is what is tested
def test_a_forked_child_finds_open_what_a_thread_of_its_parent_has_locked() -> None:
    lock, locked, leave = ForkSafeLock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            locked.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert locked.wait(60)
    child = os.fork()
    if child == 0:
        with lock:
            os._exit(0)
    try:
        for _ in range(600):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            threading.Event().wait(0.1)
        assert done and status == 0
    finally:
        if not done:
            os.kill(child, 9)
        leave.set()
        thread.join()


def test_a_fresh_thread_has_no_state_of_the_caller_and_hands_back_its_error() -> None:
    with torch.inference_mode(), torch.autocast("cpu"), torch.device("meta"):
        assert in_fresh_thread(torch.is_grad_enabled) and not in_fresh_thread(torch.is_inference_mode_enabled)
        assert not in_fresh_thread(lambda: torch.is_autocast_enabled("cpu"))
        assert in_fresh_thread(lambda: torch.zeros(1).device.type) == "cpu"
    with pytest.raises(ZeroDivisionError):
        in_fresh_thread(lambda: 1 // 0)


@pytest.mark.parametrize("row", ON_CPU, ids=lambda row: row.name)
def test_the_tensors_of_monai_give_the_result_of_plain_ones(row: Backend) -> None:
    with use_backend(row.name):
        scan, match = selective_scan_2d(*arguments()), patch_match(*arguments()[:1] * 3)
        x, *parameters = (MetaTensor(t) for t in arguments())
        assert torch.equal(torch.as_tensor(selective_scan_2d(x, *parameters)), scan)
        assert torch.equal(torch.as_tensor(patch_match(x, x, x).indices), match.indices)


def arguments() -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = [(1, 3, 5, 4), (1, 3, 5, 4, 2 + 2 * 3), (4, 4, 2), (4, 4), (4, 4, 3), (4, 4)]
    tensors = [torch.randn(shape, generator=random) for shape in shapes]
    return [-t.exp() if i == 4 else t for i, t in enumerate(tensors)]


@pytest.mark.parametrize("row", ON_CPU, ids=lambda row: row.name)
def test_inference_tensors_are_taken_inside_and_outside_of_inference_mode(row: Backend) -> None:
    with use_backend(row.name):
        scan, match = selective_scan_2d(*arguments()), patch_match(*arguments()[:1] * 3)
        with torch.inference_mode():
            tensors = arguments()
            assert all(t.is_inference() for t in tensors)
            assert torch.equal(selective_scan_2d(*tensors), scan)
            assert torch.equal(patch_match(*tensors[:1] * 3).features, match.features)
        with torch.no_grad():
            assert torch.equal(selective_scan_2d(*tensors), scan)
            assert torch.equal(patch_match(*tensors[:1] * 3).features, match.features)
        leaves = [t.clone().requires_grad_() for t in tensors]
        grads = torch.autograd.grad(selective_scan_2d(*leaves).sum(), leaves)
        assert all(bool(g.isfinite().all()) for g in grads)
