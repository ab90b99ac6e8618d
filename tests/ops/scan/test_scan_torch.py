"""The selective scan in plain PyTorch against the recurrence it computes, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import softplus

from bundle.ops import selective_scan_2d, use_backend
from bundle.ops.scan import plain as scan_torch
from bundle.ops.scan.plain import CHUNK, selective_scan_2d_script, selective_scan_2d_torch
from bundle.ops.scan.reference import scan_orders, selective_scan_2d_reference

few = settings(max_examples=15, deadline=None)
Arguments = tuple[Tensor, ...]
SMALL = (1, 2, 3, 2, 1, 2)  # B, H, W, Di, R, N
# numbers of pixels below, at and above one and two chunks of 32
AROUND_A_CHUNK = [(1, 1, 31), (1, 1, 32), (1, 33, 1), (2, 4, 8), (1, 5, 13), (1, 8, 8), (1, 7, 9), (1, 3, 11)]


def arguments(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> Arguments:
    """Random x, proj, dt_weight, dt_bias, A, D for ``shape`` = (B, H, W, Di, R, N)."""
    batch, height, width, channels, rank, state = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=dtype)

    return (
        normal(batch, height, width, channels),
        normal(batch, height, width, 4, rank + 2 * state),
        normal(4, channels, rank),
        normal(4, channels),
        -normal(4, channels, state).exp(),
        normal(4, channels),
    )


def gradients(function, args: Arguments) -> Arguments:
    leaves = [t.clone().requires_grad_() for t in args]
    out = function(*leaves)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
    return torch.autograd.grad((out * weight).sum(), leaves)


def assert_close(actual: Arguments, expected: Arguments, tolerance: float = 1e-10) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape and a.dtype == e.dtype
        assert torch.allclose(a, e, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def scripted():
    return torch.jit.script(selective_scan_2d_script)


shapes = st.tuples(
    st.integers(1, 2), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)
)


# ----------------------------------------------------------------------------------------------- what is computed


def test_without_decay_the_directions_are_running_sums() -> None:
    x, _, dt_weight, dt_bias, A, D = arguments((2, 5, 9, 3, 1, 1))
    proj = torch.zeros(2, 5, 9, 4, 3, dtype=torch.float64)
    proj[..., 1:] = 1.0  # B and C
    dt_bias = dt_bias[:1].expand(4, 3)
    out = selective_scan_2d_torch(x, proj, dt_weight, dt_bias, torch.zeros_like(A), torch.zeros_like(D))
    # a running sum and its reverse count each pixel once and the pixel itself twice; rows and columns do so each
    expected = 2 * softplus(dt_bias[0]) * (x.sum(dim=(1, 2), keepdim=True) + x)
    assert torch.allclose(out, expected)


def test_one_pixel_is_its_own_sequence_in_all_directions() -> None:
    x, proj, dt_weight, dt_bias, A, D = arguments((1, 1, 1, 2, 2, 3))
    expected = torch.zeros(2, dtype=torch.float64)
    for k in range(4):
        dt_in, b, c = proj[0, 0, 0, k].split([2, 3, 3])
        dt = softplus(dt_weight[k] @ dt_in + dt_bias[k])
        expected += dt * x[0, 0, 0] * (b @ c) + D[k] * x[0, 0, 0]
    assert torch.allclose(selective_scan_2d_torch(x, proj, dt_weight, dt_bias, A, D)[0, 0, 0], expected)


def test_the_four_orders_are_rows_columns_and_their_reverses() -> None:
    rows, columns, rows_back, columns_back = scan_orders(2, 3).tolist()
    assert rows == [0, 1, 2, 3, 4, 5] and rows_back == rows[::-1]
    assert columns == [0, 3, 1, 4, 2, 5] and columns_back == columns[::-1]


@few
@given(shape=shapes, seed=st.integers(0, 2**31))
def test_the_chunked_form_equals_the_recurrence(shape: tuple[int, ...], seed: int) -> None:
    args = arguments(shape, seed)
    assert_close((selective_scan_2d_torch(*args),), (selective_scan_2d_reference(*args),))


@pytest.mark.parametrize("size", AROUND_A_CHUNK)
def test_chunk_borders_change_nothing(size: tuple[int, int, int]) -> None:
    args = arguments((*size, 2, 1, 2))
    expected = selective_scan_2d_reference(*args)
    for function in (selective_scan_2d_torch, selective_scan_2d_script):
        assert_close((function(*args),), (expected,))


@pytest.mark.parametrize("direction", range(4))
@pytest.mark.parametrize("pixel", [(0, 0), (3, 4), (5, 6)])
def test_an_impulse_reaches_itself_and_the_later_pixels_of_a_direction(direction: int, pixel: tuple[int, int]) -> None:
    height, width, state = 6, 7, 2
    x, proj, dt_weight, dt_bias, A, D = arguments((1, height, width, 1, 1, state), seed=3)
    D = torch.zeros_like(D)
    read = torch.zeros(4, 1, dtype=torch.float64)
    read[direction] = 1.0
    proj = torch.cat([proj[..., : 1 + state], (proj[..., 1 + state :].abs() + 0.1) * read], dim=-1)
    proj[..., 1 : 1 + state] = proj[..., 1 : 1 + state].abs() + 0.1
    A = A * 0.01  # slow decay: what is reached stays visible
    moved = x.clone()
    moved[0, pixel[0], pixel[1]] += 1.0
    change = selective_scan_2d_torch(moved, proj, dt_weight, dt_bias, A, D) - selective_scan_2d_torch(
        x, proj, dt_weight, dt_bias, A, D
    )
    order = scan_orders(height, width)[direction].tolist()
    start = order.index(pixel[0] * width + pixel[1])
    reached = change.flatten().abs() > 1e-9
    assert set(reached.nonzero().flatten().tolist()) == set(order[start:])


@few
@given(seed=st.integers(0, 2**31))
def test_transposing_the_image_swaps_rows_and_columns(seed: int) -> None:
    x, proj, *weights = arguments((1, 4, 6, 2, 1, 2), seed)
    swap = [1, 0, 3, 2]
    turned = selective_scan_2d_torch(
        x.transpose(1, 2), proj.transpose(1, 2)[:, :, :, swap], *(w[swap] for w in weights)
    )
    assert_close((turned.transpose(1, 2),), (selective_scan_2d_torch(x, proj, *weights),))


def test_a_batch_equals_its_images_one_by_one() -> None:
    x, proj, *weights = arguments((3, 5, 8, 3, 2, 2))
    alone = [selective_scan_2d_torch(x[i : i + 1], proj[i : i + 1], *weights) for i in range(3)]
    assert_close((selective_scan_2d_torch(x, proj, *weights),), (torch.cat(alone),))


def test_very_fast_and_very_slow_decay_stay_finite() -> None:
    x, proj, dt_weight, dt_bias, A, D = arguments((1, 8, 9, 2, 1, 2), dtype=torch.float32)
    for rate in (1e-20, 1e4, 1e20):
        args = (x, proj, dt_weight * 10, dt_bias * 10, torch.full_like(A, -rate), D)
        assert bool(selective_scan_2d_torch(*args).isfinite().all())
        assert all(bool(g.isfinite().all()) for g in gradients(selective_scan_2d_torch, args))


def test_single_precision_agrees_with_double() -> None:
    args = arguments((1, 7, 11, 4, 2, 3))
    single = selective_scan_2d_torch(*(t.float() for t in args))
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), selective_scan_2d_torch(*args), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_single_precision_and_returned_as_they_came(dtype: torch.dtype) -> None:
    args = [t.to(dtype) for t in arguments((1, 5, 7, 4, 2, 2))]
    with use_backend("torch"):
        out = selective_scan_2d(*args)
        expected = selective_scan_2d(*(t.float() for t in args))
        with torch.autocast("cpu", torch.bfloat16):
            under_autocast = selective_scan_2d(*args)
    assert out.dtype == dtype
    assert torch.equal(out, expected.to(dtype))
    assert torch.equal(out, under_autocast)


# --------------------------------------------------------------------------------------------------- gradients


@few
@given(shape=shapes, seed=st.integers(0, 2**31))
def test_gradients_equal_those_of_the_recurrence(shape: tuple[int, ...], seed: int) -> None:
    args = arguments(shape, seed)
    assert_close(gradients(selective_scan_2d_torch, args), gradients(selective_scan_2d_reference, args), 1e-9)


@pytest.mark.parametrize("size", [(1, 1, 33), (2, 4, 8), (1, 5, 13)])
def test_gradients_cross_chunk_borders(size: tuple[int, int, int]) -> None:
    args = arguments((*size, 2, 1, 2))
    expected = gradients(selective_scan_2d_reference, args)
    for function in (selective_scan_2d_torch, selective_scan_2d_script):
        assert_close(gradients(function, args), expected, 1e-9)


def test_gradients_agree_with_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_torch, "CHUNK", 4)  # six pixels: one whole chunk and one in part
    args = [t.requires_grad_() for t in arguments(SMALL)]
    assert torch.autograd.gradcheck(selective_scan_2d_torch, args)
    assert torch.autograd.gradcheck(lambda *a: selective_scan_2d_script(*a, steps=4), args)


def test_gradients_of_some_inputs_alone_are_the_same() -> None:
    args = arguments(SMALL)
    expected = gradients(selective_scan_2d_torch, args)
    for i in range(6):
        leaves = [t.clone().requires_grad_(i == j) for j, t in enumerate(args)]
        out = selective_scan_2d_torch(*leaves)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
        (out * weight).sum().backward()
        assert [t.grad is None for t in leaves] == [i != j for j in range(6)]
        assert torch.allclose(leaves[i].grad, expected[i])


def test_inputs_are_not_changed() -> None:
    args = arguments(SMALL)
    before = [t.clone() for t in args]
    gradients(selective_scan_2d_torch, args)
    assert all(torch.equal(a, b) for a, b in zip(args, before, strict=True))


# ------------------------------------------------------------------------------------------------ exported forms


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 4), (1, 5, 13)])
def test_the_scripted_form_is_equal_and_differentiable(scripted, size: tuple[int, int, int]) -> None:
    args = arguments((*size, 2, 1, 2))
    assert_close((scripted(*args),), (selective_scan_2d_reference(*args),))
    assert_close(gradients(scripted, args), gradients(selective_scan_2d_reference, args), 1e-9)


@few
@given(steps=st.integers(1, 2 * CHUNK))
def test_the_length_of_a_chunk_changes_nothing(steps: int) -> None:
    args = arguments((1, 5, 7, 2, 1, 2))
    assert_close((selective_scan_2d_script(*args, steps=steps),), (selective_scan_2d_reference(*args),))


@pytest.mark.parametrize("export", ["script", "trace"])
def test_the_public_function_is_exported_for_every_size(export: str) -> None:
    example = arguments(SMALL)
    with torch.no_grad():
        exported = (
            torch.jit.script(selective_scan_2d)
            if export == "script"
            else torch.jit.trace(selective_scan_2d, example, check_trace=False)
        )
        for size in [(1, 2, 3), (2, 5, 9), (1, 1, 40)]:
            args = arguments((*size, *SMALL[3:]), seed=5)
            assert_close((exported(*args),), (selective_scan_2d_reference(*args),))
