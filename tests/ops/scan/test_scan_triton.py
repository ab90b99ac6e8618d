"""The Triton scan against the plain recurrence in float64.

The kernels run on the GPU where there is one. Elsewhere they run in Triton's interpreter, which must be asked for
before Triton is imported: one test starts this file again in a process of its own with ``TRITON_INTERPRET=1``. What
the interpreter cannot tell, whether the GPU compiler takes the kernels, is tested without a GPU by compiling them.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_scan import plain_recurrence
from torch import Tensor

from bundle.ops.scan import triton as scan_triton
from bundle.ops.scan.triton import selective_scan_2d_triton

NAMES = ("x", "proj", "dt_weight", "dt_bias", "A", "D")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CUDA = torch.cuda.is_available() and not INTERPRETED
DEVICE = "cuda" if CUDA else "cpu"

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="TRITON SCAN NOT TESTED: triton is not installed"
)
runs_kernels = pytest.mark.skipif(
    not (CUDA or INTERPRETED), reason="no GPU: runs in the process that test_the_kernels_in_the_interpreter starts"
)


@needs_triton
@pytest.mark.skipif(CUDA or INTERPRETED, reason="the kernels run in this process")
def test_the_kernels_in_the_interpreter():
    root = Path(__file__).resolve().parents[3]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-o",
        "addopts=",
        "-q",
        "-p",
        "no:cacheprovider",
        "--noconftest",
        __file__,
    ]
    child = subprocess.run(
        command, cwd=root, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=3600
    )
    assert child.returncode == 0, child.stdout[-6000:] + child.stderr[-2000:]
    assert " passed" in child.stdout, child.stdout


def make_inputs(batch, height, width, channels, state, rank, seed=0, dt_shift=-1.0) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    inputs = [normal(batch, height, width, channels), normal(batch, height, width, 4, rank + 2 * state)]
    inputs += [0.5 * normal(4, channels, rank), normal(4, channels) + dt_shift]
    inputs += [-torch.exp(normal(4, channels, state)), normal(4, channels)]
    return [t.float() for t in inputs]


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got.double().cpu() - want).norm() / want.norm().clamp_min(1e-30))


def run(function, inputs, dy):
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y))]


def compare(inputs: list[Tensor], seed: int = 1) -> None:
    dy = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(seed))
    want = run(plain_recurrence, [t.double() for t in inputs], dy)
    got = run(selective_scan_2d_triton, [t.to(DEVICE) for t in inputs], dy.to(DEVICE))
    for name, g, w in zip(("y", *NAMES), got, want, strict=True):
        assert g.shape == w.shape
        assert torch.isfinite(g).all(), name
        assert relative_error(g, w) < (1e-5 if name == "y" else 1e-4), name


def cut_into(monkeypatch: pytest.MonkeyPatch, segments: int) -> None:
    monkeypatch.setattr(scan_triton, "_segments", lambda programs, tiles, device: min(segments, tiles))


# B, H, W, Di, N, R, segments: odd numbers, a single pixel, a line, tiles partly filled, last segment shorter
SHAPES = [(1, 1, 1, 1, 1, 1, 1), (2, 3, 3, 3, 2, 1, 1), (1, 1, 7, 5, 1, 3, 1), (1, 5, 3, 2, 1, 2, 2)]
SHAPES += [(1, 3, 4, 1, 3, 1, 3)]
if CUDA:  # too slow for the interpreter: several blocks of channels, more than a tile, states that are no power of two
    SHAPES += [(2, 7, 9, 70, 5, 3, 1), (1, 12, 11, 33, 16, 6, 3), (3, 5, 17, 96, 16, 6, 2), (1, 9, 8, 64, 33, 17, 4)]


@needs_triton
@runs_kernels
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_all_six_gradients_are_those_of_the_recurrence(shape, monkeypatch):
    cut_into(monkeypatch, shape[-1])
    compare(make_inputs(*shape[:-1]))


@needs_triton
@runs_kernels
@settings(max_examples=40 if CUDA else 4, deadline=None, derandomize=True)
@given(
    shape=st.tuples(*(st.integers(1, n) for n in ((3, 9, 9, 40, 9, 7) if CUDA else (2, 3, 3, 3, 2, 2)))),
    segments=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_any_number_of_segments(shape, segments, seed):
    with pytest.MonkeyPatch.context() as monkeypatch:
        cut_into(monkeypatch, segments)
        compare(make_inputs(*shape, seed=seed))


@needs_triton
@runs_kernels
@pytest.mark.parametrize("dt_shift", [-14.0, 6.0])
def test_tiny_and_huge_time_steps_keep_their_relative_precision(dt_shift, monkeypatch):
    cut_into(monkeypatch, 2)
    compare(make_inputs(1, 2, 3, 2, 1, 1, dt_shift=dt_shift))


@needs_triton
@runs_kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_computed_in_float32(dtype):
    inputs = make_inputs(1, 2, 3, 2, 1, 1)
    inputs[:2] = [t.to(dtype) for t in inputs[:2]]
    dy = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    want = run(plain_recurrence, [t.double() for t in inputs], dy)
    got = run(selective_scan_2d_triton, [t.to(DEVICE) for t in inputs], dy.to(DEVICE))
    assert [g.dtype for g in got[:4]] == [dtype, dtype, dtype, torch.float32]
    rounding = torch.finfo(dtype).eps
    assert all(relative_error(g, w) < rounding for g, w in zip(got[:3], want[:3], strict=True))
    assert all(relative_error(g, w) < 1e-4 for g, w in zip(got[3:], want[3:], strict=True))


@pytest.mark.skipif(not CUDA, reason="no GPU: the interpreter runs one program after the other")
def test_the_same_input_gives_the_same_bytes_forward_and_backward(monkeypatch):
    cut_into(monkeypatch, 2)
    inputs = [t.to(DEVICE) for t in make_inputs(2, 40, 40, 96, 16, 6)]
    first, second = (run(selective_scan_2d_triton, inputs, torch.ones_like(inputs[0])) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_triton
@runs_kernels
def test_inputs_that_are_not_contiguous_are_read_right():
    inputs = make_inputs(1, 2, 3, 2, 1, 2)
    odd = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in inputs[:3]] + inputs[3:]
    got = selective_scan_2d_triton(*(t.to(DEVICE) for t in odd))
    assert relative_error(got, plain_recurrence(*(t.double() for t in inputs))) < 1e-5


@needs_triton
@runs_kernels
def test_pytorch_accepts_the_operator():
    inputs = [t.to(DEVICE).requires_grad_() for t in make_inputs(1, 1, 2, 1, 1, 1)]
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if CUDA:  # many calls: too slow for the interpreter
        tests.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.iconet.ss2d_triton.default, tuple(inputs), test_utils=tests)


@needs_triton
@runs_kernels
@pytest.mark.parametrize(
    ("position", "change", "error"), [(4, lambda t: t[:3], ValueError), (0, Tensor.double, TypeError)]
)
def test_a_wrong_tensor_is_named(position, change, error):
    inputs = [t.to(DEVICE) for t in make_inputs(1, 2, 2, 2, 1, 1)]
    inputs[position] = change(inputs[position])
    with pytest.raises(error, match=NAMES[position]):
        selective_scan_2d_triton(*inputs)


@pytest.mark.skipif(INTERPRETED, reason="has run in the process that started this one")
def test_without_triton_the_module_imports_and_says_why_it_cannot_run():
    program = (
        "import sys; sys.modules['triton'] = None; from bundle.ops.scan import triton as scan_triton;"
        "from bundle.ops.search import cuda;"
        "assert not scan_triton.is_available(); assert 'triton' in scan_triton.reason().lower()"
    )
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).resolve().parents[3], check=True, timeout=300)


@pytest.mark.skipif(torch.cuda.is_available() or INTERPRETED, reason="the kernels can run here")
def test_without_a_gpu_a_call_says_why_it_cannot_run():
    assert not scan_triton.is_available()
    with pytest.raises(RuntimeError, match="Triton"):
        selective_scan_2d_triton(*make_inputs(1, 2, 2, 2, 1, 1))


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="interpreted functions cannot be compiled")
@pytest.mark.parametrize("capability", [80, 90])
def test_the_gpu_compiler_takes_the_kernels_and_keeps_their_scans_inside_the_lanes(capability):
    for kernel, flags in kernels():
        ptx = compiled(kernel, flags, capability).asm["ptx"]
        assert "shfl" not in ptx or kernel is scan_triton._backward_kernel  # its sums over channels do cross the lanes
        assert not re.search(r"^\s*(@\S+\s+)?(atom|red)\.", ptx, re.MULTILINE)


def kernels():
    forward = ("HAS_START", "WRITE_Y", "WRITE_STATES")
    for flags in ((False, True, False), (True, True, False), (False, False, False), (True, False, True)):
        yield scan_triton._forward_kernel, dict(zip(forward, flags, strict=True))
    yield scan_triton._carry_kernel, {}
    yield scan_triton._backward_kernel, {}
    yield scan_triton._chain_kernel, {"REVERSE": True}


def compiled(kernel, flags, capability):
    """Compile for a GPU that need not be there, with pointers known to be aligned, as PyTorch's are."""
    import triton
    from triton.backends.compiler import GPUTarget

    sizes = {"RANK": 6, "STATE": 16, "TILE": scan_triton._TILE, "BLOCK_D": scan_triton._BLOCK_D}
    constants = {name: value for name, value in {**sizes, **flags}.items() if name in kernel.arg_names}
    numbers = ("channels", "height", "width", "tiles", "segments", "segment_tiles")
    types = {
        name: "constexpr" if name in constants else "i32" if name in numbers else "*fp32" for name in kernel.arg_names
    }
    aligned = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(types.values()) if t.startswith("*")}
    source = triton.compiler.ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 1})


@pytest.mark.parametrize("programs", [24, 96, 768, 5000])
def test_segments_cover_the_sequence_and_none_is_empty(programs, monkeypatch):
    class Device:
        multi_processor_count = 132

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Device)
    counts = [scan_triton._segments(programs, tiles, torch.device("cuda")) for tiles in (1, 7, 64, 1024)]
    assert all(small <= large for small, large in pairwise(counts))
    for tiles, segments in zip((1, 7, 64, 1024), counts, strict=True):
        assert segments == 1 or (segments >= 3 and tiles // segments >= 8)
