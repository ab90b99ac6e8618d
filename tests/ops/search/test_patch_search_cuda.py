"""The two CUDA searches against plain loops in float64.

The tiled form runs on the GPU where there is one and on the CPU elsewhere. The fused kernel runs on the GPU or, in a
process of its own that asks for it before Triton is imported, in the interpreter; and it is compiled without a GPU.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bundle.ops.precision import float32_proper
from bundle.ops.search import cuda as patch_search_cuda
from bundle.ops.search.cuda import patch_search_tiled, patch_search_triton

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CUDA = torch.cuda.is_available() and not INTERPRETED
DEVICE = "cuda" if CUDA else "cpu"

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="TRITON PATCH SEARCH NOT TESTED: triton is not installed"
)
runs_kernels = pytest.mark.skipif(
    not (CUDA or INTERPRETED), reason="no GPU: runs in the process that test_the_kernel_in_the_interpreter starts"
)
runs_once = pytest.mark.skipif(INTERPRETED, reason="has run in the process that started this one")


@needs_triton
@pytest.mark.skipif(CUDA or INTERPRETED, reason="the kernel runs in this process")
def test_the_kernel_in_the_interpreter():
    root = Path(__file__).resolve().parents[3]
    options = ["-o", "addopts=", "-q", "-p", "no:cacheprovider", "--noconftest"]
    child = subprocess.run(
        [sys.executable, "-m", "pytest", *options, __file__],
        cwd=root, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=3600,
    )  # fmt: skip
    assert child.returncode == 0, child.stdout[-6000:] + child.stderr[-2000:]
    assert " passed" in child.stdout, child.stdout


def patch(image: Tensor, y: int, x: int) -> Tensor:
    """3x3 patch of one (H, W, C) image around a pixel, zeros outside: (9 C)."""
    height, width, channels = image.shape
    zero = image.new_zeros(channels)
    inside = [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return torch.cat([image[i, j] if 0 <= i < height and 0 <= j < width else zero for i, j in inside])


def scores(query: Tensor, key: Tensor) -> Tensor:
    """``<q_p, k_r> / |k_r|`` in float64: (B, HW, HW)."""
    _, height, width, _ = query.shape
    pixels = [(y, x) for y in range(height) for x in range(width)]
    out = []
    for q, k in zip(query.double().cpu(), key.double().cpu(), strict=True):
        q_all, k_all = (torch.stack([patch(image, y, x) for y, x in pixels]) for image in (q, k))
        out.append(q_all @ (k_all / k_all.norm(dim=1, keepdim=True).clamp_min(1e-12)).T)
    return torch.stack(out)


def far_apart(height: int, width: int, window: int) -> Tensor:
    """Which keys lie outside the window of which queries: (HW, HW)."""
    y, x = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    return ((y[:, None] - y).abs() > window) | ((x[:, None] - x).abs() > window)


def check_maximum(index: Tensor, query: Tensor, key: Tensor, window: int | None = None) -> None:
    """The score at the index is the maximum up to float32 rounding of the patch product."""
    assert index.dtype == torch.int64 and index.shape == (len(query), query.shape[1] * query.shape[2])
    score = scores(query, key)
    if window is not None:
        score = score.masked_fill(far_apart(*query.shape[1:3], window), -float("inf"))
    reached = score.gather(2, index.cpu().unsqueeze(2)).squeeze(2)
    size = query.double().abs().amax() * (9 * query.shape[3]) ** 0.5
    assert (score.amax(2) - reached).max() <= 1e-6 * size.cpu() + 1e-12


def repeated_integers(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """Maps whose products are exact and whose key patches repeat: the right half empty, the rows of the left equal."""
    random = torch.Generator().manual_seed(seed)
    query, key = (torch.randint(-3, 4, shape, generator=random).float() for _ in range(2))
    key = key[:, :1].repeat(1, shape[1], 1, 1)
    key[:, :, shape[2] // 2 + 1 :] = 0
    return query, key


def first_of_equals(query: Tensor, key: Tensor) -> Tensor:
    """Smallest r of the largest score, the scores compared as the exact fractions ``sign(d) d^2 / n``."""
    _, height, width, _ = query.shape
    pixels = [(y, x) for y in range(height) for x in range(width)]
    out = []
    for q, k in zip(query.long(), key.long(), strict=True):
        q_all, k_all = (torch.stack([patch(image, y, x) for y, x in pixels]) for image in (q, k))
        dot, energy = (q_all @ k_all.T).tolist(), [max(e, 1) for e in k_all.square().sum(1).tolist()]
        for row in dot:
            best = 0
            for r in range(1, len(row)):
                left = row[r] * abs(row[r]) * energy[best]
                if left > row[best] * abs(row[best]) * energy[r]:
                    best = r
            out.append(best)
    return torch.tensor(out).view(len(query), -1)


shapes = st.tuples(*(st.integers(1, n) for n in (2, 5, 5, 20)))


@runs_once
@settings(max_examples=30, deadline=None, derandomize=True)
@given(shape=shapes, seed=st.integers(0, 1000), memory_limit=st.sampled_from([1, 3000, 20000, 1 << 28]))
def test_the_tiled_search_finds_the_maximum_under_any_limit(shape, seed, memory_limit):
    random = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(shape, generator=random).to(DEVICE) for _ in range(2))
    check_maximum(patch_search_tiled(query, key, memory_limit=memory_limit), query, key)


@runs_once
@settings(max_examples=30, deadline=None, derandomize=True)
@given(shape=shapes, seed=st.integers(0, 1000), window=st.integers(0, 5), memory_limit=st.sampled_from([1, 1 << 28]))
def test_the_tiled_search_keeps_to_its_window(shape, seed, window, memory_limit):
    random = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(shape, generator=random).to(DEVICE) for _ in range(2))
    index = patch_search_tiled(query, key, window, memory_limit)
    check_maximum(index, query, key, window)
    if window >= max(shape[1:3]) - 1:
        assert torch.equal(index, patch_search_tiled(query, key, memory_limit=memory_limit))


@runs_once
@pytest.mark.parametrize("memory_limit", [1, 3000, 1 << 28])
def test_the_tiled_search_takes_the_first_of_equal_keys(memory_limit):
    query, key = repeated_integers((2, 6, 5, 3), seed=1)
    index = patch_search_tiled(query.to(DEVICE), key.to(DEVICE), memory_limit=memory_limit).cpu()
    assert torch.equal(index, first_of_equals(query, key))


@runs_once
def test_tiles_are_as_large_as_the_limit_allows_and_no_larger():
    rows = patch_search_cuda._rows_per_tile
    assert rows(128, 128, 96, 4, 1) == 1
    assert rows(128, 128, 96, 4, 1 << 40) == 128
    for limit in (1 << 24, 1 << 26, 1 << 28):
        n = 128 * rows(1024, 128, 96, 4, limit)
        assert 2 * 4 * (n * n + 2 * 9 * 96 * n) <= limit < 2 * 4 * ((n + 128) ** 2 + 2 * 9 * 96 * (n + 128))


@runs_once
def test_float64_is_kept_and_half_types_are_computed_in_float32():
    query, key = (torch.randn(1, 4, 5, 7, generator=torch.Generator().manual_seed(s)).to(DEVICE) for s in (1, 2))
    check_maximum(patch_search_tiled(query.double(), key.double()), query, key)
    half = [t.bfloat16() for t in (query, key)]
    with torch.autocast(DEVICE, torch.bfloat16):
        check_maximum(patch_search_tiled(*half), *half)


@runs_once
@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_products_are_float32_proper_and_the_callers_setting_is_put_back(setting):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(setting)
        with float32_proper():
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.get_float32_matmul_precision() == setting
        assert torch.backends.cuda.matmul.allow_tf32 == (setting != "highest")
    finally:
        torch.set_float32_matmul_precision(before)


@runs_once
@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="this PyTorch has one setting only"
)
def test_a_setting_of_the_newer_kind_is_put_back_too():
    program = (
        "import torch; from bundle.ops.precision import float32_proper;"
        "m = torch.backends.cuda.matmul; m.fp32_precision = 'tf32';"
        "context = float32_proper(); context.__enter__(); assert m.fp32_precision == 'ieee';"
        "context.__exit__(None, None, None); assert m.fp32_precision == 'tf32'"
    )
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).resolve().parents[3], check=True, timeout=300)


@runs_once
def test_bad_arguments_are_refused():
    image = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="one shape"):
        patch_search_tiled(image, image[:, :1])
    with pytest.raises(TypeError, match="key"):
        patch_search_tiled(image, image.long())
    with pytest.raises(ValueError, match="memory_limit"):
        patch_search_tiled(image, image, memory_limit=0)


@runs_once
def test_pytorch_accepts_the_tiled_operator():
    image = torch.randn(1, 2, 3, 4, device=DEVICE)
    tests = ["test_schema", "test_faketensor"]
    for window in (None, 1):
        arguments = (image, image, window, 1 << 20)
        torch.library.opcheck(torch.ops.iconet.patch_search_tiled.default, arguments, test_utils=tests)


# B, H, W, C: one pixel, a line, more pixels than a block, more channels than a block
SHAPES = [(1, 1, 1, 1), (2, 1, 6, 2), (1, 5, 7, 3), (2, 4, 3, 20)] + (
    [(2, 33, 31, 96), (1, 64, 64, 40)] if CUDA else []
)


@needs_triton
@runs_kernels
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_fused_search_finds_the_maximum(shape):
    query, key = (torch.randn(shape, generator=torch.Generator().manual_seed(s)).to(DEVICE) for s in (1, 2))
    check_maximum(patch_search_triton(query, key), query, key)


@needs_triton
@runs_kernels
@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_fused_search_keeps_to_its_window(shape, window):
    query, key = (torch.randn(shape, generator=torch.Generator().manual_seed(s)).to(DEVICE) for s in (1, 2))
    index = patch_search_triton(query, key, window)
    check_maximum(index, query, key, window)
    if window >= max(shape[1:3]) - 1:
        assert torch.equal(index, patch_search_triton(query, key))


@needs_triton
@runs_kernels
def test_the_fused_search_in_a_window_takes_the_first_of_equal_keys():
    image = torch.ones(1, 6, 20, 2, device=DEVICE)
    index = patch_search_triton(image, image, 2).view(6, 20).cpu()
    # inner keys are all alike: the first in the window of an inner query, one row and column inside the image
    inner = [[max(y - 2, 1) * 20 + max(x - 2, 1) for x in range(1, 19)] for y in range(1, 5)]
    assert index[1:-1, 1:-1].tolist() == inner


@needs_triton
@runs_kernels
@settings(max_examples=30 if CUDA else 5, deadline=None, derandomize=True)
@given(shape=shapes, seed=st.integers(0, 1000))
def test_the_fused_search_takes_the_first_of_equal_keys(shape, seed):
    query, key = repeated_integers(shape, seed)
    assert torch.equal(patch_search_triton(query.to(DEVICE), key.to(DEVICE)).cpu(), first_of_equals(query, key))


@needs_triton
@runs_kernels
def test_the_fused_search_refuses_float64():
    image = torch.zeros(1, 2, 2, 1, dtype=torch.float64, device=DEVICE)
    with pytest.raises(TypeError, match="float64"):
        patch_search_triton(image, image)


@pytest.mark.skipif(torch.cuda.is_available() or INTERPRETED, reason="the kernel can run here")
def test_without_a_gpu_the_fused_search_says_why_it_cannot_run():
    with pytest.raises(RuntimeError, match="Triton"):
        patch_search_triton(torch.zeros(1, 2, 2, 1), torch.zeros(1, 2, 2, 1))


@needs_triton
@runs_once
@pytest.mark.parametrize("name", ["_search_kernel", "_window_kernel"])
def test_the_gpu_compiler_takes_the_kernels_and_keeps_their_products_in_float32(name):
    import triton
    from triton.backends.compiler import GPUTarget

    kernel = getattr(patch_search_cuda, name)
    constants = {"BLOCK_Q": 64, "BLOCK_K": 64, "BLOCK_C": 32}
    numbers = ("height", "width", "channels", "keys_per_part", "window")
    types = {
        name: "constexpr" if name in constants else "i32" if name in numbers else "*fp32" for name in kernel.arg_names
    }
    types["index"] = "*i32"
    source = triton.compiler.ASTSource(fn=kernel, signature=types, constexprs=constants)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4}).asm["ptx"]
    assert "tf32" not in ptx and "fma.rn.f32" in ptx
