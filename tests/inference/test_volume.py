"""One volume through a network: axis, grid, values, and what happens when memory is short."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from nifti_files import fine_grid
from torch import nn

from bundle.data.values import Values, survey
from bundle.inference.matrix import MatrixPlan
from bundle.inference.volume import SuperResolved, doubts, super_resolve
from bundle.inference.walker import SliceWalker
from bundle.physics import consistency_residual, fft2c, fine_padding, fourier_upsample, ifft2c
from bundle.physics.place import grids
from bundle.physics.slices import resolve_slice_axis
from bundle.trust import load_training_range


class ZeroFill(nn.Module):
    """2x zero-filled Fourier interpolation, with a limit on how many slices it takes at a time."""

    scale = 2

    def __init__(self, most: int = 99, error: BaseException | None = None) -> None:
        super().__init__()
        self.most, self.error, self.batches = most, error, []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(image))
        if len(image) > self.most:
            raise self.error or torch.OutOfMemoryError("no room")
        return fourier_upsample(image, (2 * image.shape[-2], 2 * image.shape[-1]))


def resolved(volume: np.ndarray, network: nn.Module, axis: int | str = 2, **walk: object) -> SuperResolved:
    return super_resolve(volume, np.eye(4), network, axis, SliceWalker(**walk))


def voxels(shape: tuple[int, ...] = (12, 10, 6), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 100, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "spacing", "axis"),
    [
        ((64, 64, 20), (1, 1, 4), 2),
        ((20, 64, 64), (4, 1, 1), 0),
        ((64, 20, 64), (1, 4, 1), 1),
        ((64, 64, 64), (1, 1, 1), 2),
        ((64, 64, 64), (1.004, 1, 1), 2),
        ((64, 64, 40), (4, 4, 3), 2),
        ((64, 1, 64), (2, 1, 1), 1),
        ((64, 64, 1), (2, 1, 1), 2),
        ((64, 64), (1, 3, 1), 2),
        ((20, 64, 64, 7), (4, 1, 1), 0),
    ],
)
def test_the_slice_axis_is_the_one_of_the_largest_spacing(shape, spacing, axis):
    assert resolve_slice_axis("auto", shape, np.diag([-spacing[0], *spacing[1:], 1.0])) == axis


@pytest.mark.parametrize(
    ("shape", "axis", "expected", "factors"),
    [
        ((6, 5, 4), 2, (12, 10, 4), (2, 2, 1)),
        ((6, 5, 4), 0, (6, 10, 8), (1, 2, 2)),
        ((6, 5), 2, (12, 10), (2, 2, 1)),
        ((6, 5, 4, 3), 1, (12, 5, 8, 3), (2, 1, 2)),
    ],
)
def test_the_first_voxel_stays_and_in_plane_steps_are_divided(shape, axis, expected, factors):
    affine = np.array([[0, -2.0, 0.5, 10], [3, 0, 0, -20], [0, 0.25, 5, 7], [0, 0, 0, 1]])
    fine, result = fine_grid(shape, affine, 2, axis)
    assert fine == expected
    np.testing.assert_allclose(result[:, 3], affine[:, 3])
    np.testing.assert_allclose(result[:3, :3] * factors, affine[:3, :3])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_result_of_fourier_interpolation_is_fourier_interpolation_in_the_units_of_the_input(axis):
    volume = voxels()
    result = resolved(volume, ZeroFill(), axis, data_consistency=0)
    planes = torch.from_numpy(np.moveaxis(volume, axis, 0).copy())
    expected = fourier_upsample(planes, (2 * planes.shape[1], 2 * planes.shape[2])).clamp(min=0).numpy()
    np.testing.assert_allclose(np.moveaxis(result.voxels, axis, 0), expected, atol=1e-3)
    assert result.voxels.dtype == np.float32 and result.notes == ()


def test_the_residual_is_that_of_the_whole_volume():
    volume = voxels((8, 8, 3)) - 20
    volume[..., 1] *= 10
    result = resolved(volume, ZeroFill(), 2, data_consistency=0)
    seen = torch.from_numpy((volume - result.offset) / result.scale).movedim(2, 0)
    own = torch.from_numpy((result.voxels - result.offset) / result.scale).movedim(2, 0)
    assert result.residual == pytest.approx(consistency_residual(own, seen), rel=1e-3)


def test_an_image_of_two_axes_stays_one():
    assert resolved(voxels((7, 5)), ZeroFill()).voxels.shape == (14, 10)


@pytest.mark.parametrize("value", [0.0, 37.25, -5.5, 1e30])
def test_row_13_a_constant_comes_out_as_it_is(value):
    result = resolved(np.full((6, 5, 2), value, np.float32), ZeroFill())
    assert np.all(result.voxels == np.float32(value)) and result.residual == 0


def test_row_58_an_outlier_changes_its_own_slice_alone():
    plain = voxels((24, 20, 6))
    spoilt = plain.copy()
    spoilt[5, 6, 3] = 1e9
    first, second = (resolved(v, ZeroFill()).voxels for v in (plain, spoilt))
    others = [0, 1, 2, 4, 5]
    np.testing.assert_allclose(second[..., others], first[..., others], atol=1e-3 * plain.max())
    assert np.isfinite(second).all()


# ------------------------------------------------------------------------------------------------------- memory

CPU_ALLOCATOR = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("error", [None, MemoryError(), CPU_ALLOCATOR], ids=["CUDA", "Python", "CPU"])
def test_row_71_batches_shrink_until_they_fit_and_it_is_said(error):
    network, walker = ZeroFill(1, error), SliceWalker(slice_batch=4)
    result = super_resolve(voxels(), np.eye(4), network, 2, walker)
    np.testing.assert_allclose(result.voxels, resolved(voxels(), ZeroFill()).voxels)
    assert network.batches[:2] == [4, 2] and set(network.batches[2:]) == {1}
    assert result.notes[-1] == "memory was short: 1 slices at a time from now on"
    assert walker.slice_batch == 1 and super_resolve(voxels(), np.eye(4), network, 2, walker).notes == ()


def test_row_71_a_slice_that_does_not_fit_is_an_error_that_says_so():
    with pytest.raises(MemoryError, match="not even a single slice"):
        resolved(voxels(), ZeroFill(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_row_71_a_device_too_small_for_one_slice_leaves_the_volume_to_the_cpu():
    class TooSmall(ZeroFill):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            if image.is_cuda:
                torch.empty(2**50, dtype=torch.uint8, device=image.device)
            return super().forward(image)

    network = TooSmall()
    network.bias = nn.Parameter(torch.zeros(1, device="cuda"))
    result = resolved(voxels(), network)
    np.testing.assert_allclose(result.voxels, resolved(voxels(), ZeroFill()).voxels, atol=1e-3)
    assert "runs on the CPU" in result.notes[-1] and network.bias.is_cuda


def test_another_error_of_the_network_is_not_taken_for_one_of_memory():
    with pytest.raises(RuntimeError, match="shapes cannot"):
        resolved(voxels(), ZeroFill(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied")))


class Sharpens(ZeroFill):
    """Inverts a filter of k-space: :class:`ZeroFill` with the outer measured samples raised threefold."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        spectrum = fft2c(image)
        spectrum[..., :6, :] *= 3
        spectrum[..., -5:, :] *= 3
        return super().forward(ifft2c(spectrum).real)


def test_data_consistency_keeps_its_hands_off_slices_that_the_network_takes_for_filtered():
    volume = voxels((24, 20, 3)) + 100
    sharp, forced, alone = (resolved(volume, Sharpens(), data_consistency=w) for w in ("auto", 1.0, 0.0))
    np.testing.assert_array_equal(sharp.voxels, alone.voxels)
    assert sharp.consistency == 0.0 and forced.consistency == 1.0 and forced.residual < 1e-3 < sharp.residual
    (note,) = sharp.notes
    assert "3 of 3 slices" in note and "--data_consistency 1" in note
    assert not forced.notes and not alone.notes


def test_data_consistency_is_complete_where_the_network_agrees_with_the_measurement():
    volume = voxels((24, 20, 3))
    auto, full = (resolved(volume, ZeroFill(), data_consistency=w) for w in ("auto", 1.0))
    np.testing.assert_array_equal(auto.voxels, full.voxels)
    assert auto.consistency == 1.0 and auto.notes == ()


def test_weights_of_an_attempt_that_ran_out_of_memory_are_not_counted():
    walked = SliceWalker(slice_batch=4)(torch.rand(8, 8, 5), ZeroFill(most=1), 2, False)
    assert walked.weights == (1.0,) * 5


@pytest.mark.parametrize("weight", [-0.1, 1.1, "half"])
def test_a_weight_that_means_nothing_is_refused(weight):
    with pytest.raises(ValueError, match="auto or a weight from 0 to 1"):
        SliceWalker(data_consistency=weight)


# ------------------------------------------------------------------------------------------- padding, negative values


def disc(size: int = 48, slices: int = 3) -> np.ndarray:
    x, y = np.meshgrid(*[np.linspace(-1, 1, size)] * 2, indexing="ij")
    return np.repeat((x**2 + y**2 > 1)[..., None], slices, 2)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("air", [0.0, -1000.0])
def test_padding_does_not_ring_and_comes_back(axis: int, air: float) -> None:
    outside = np.moveaxis(disc(), 2, axis)
    truth = np.full(outside.shape, air, np.float32) + voxels(outside.shape)
    truth[np.moveaxis(disc(), 2, axis)] = air  # nothing but air near the edge outside
    padded = np.where(outside, np.float32(-3024 if air else -32768), truth)
    result, right = (resolved(image, ZeroFill(), axis).voxels for image in (padded, truth))
    made = grids(tuple(n for a, n in enumerate(outside.shape) if a != axis), 2)
    fine = fine_padding(torch.from_numpy(outside), made.steps(3, axis), made.shape(outside.shape, axis)).numpy()
    np.testing.assert_array_equal(result == padded.min(), fine)
    inside = ~fine
    assert np.sqrt(np.mean((result - right)[inside] ** 2)) < 12
    ringing = np.sqrt(
        np.mean(
            (super_resolve(padded, np.eye(4), ZeroFill(), axis, None, Values(signed=True)).voxels - right)[inside] ** 2
        )
    )
    assert ringing > 200


def test_neither_scale_nor_residual_know_of_padding() -> None:
    image = voxels((32, 30, 4)) + 10
    mask = np.zeros(image.shape, bool)
    mask[:4] = True
    low, high = (resolved(np.where(mask, np.float32(value), image), ZeroFill()) for value in (-32768, -1e20))
    assert (low.offset, low.scale, low.residual) == (high.offset, high.scale, high.residual)
    assert low.offset == 0 and low.scale < 120 and low.residual < 0.05
    np.testing.assert_array_equal(low.voxels[8:], high.voxels[8:])


def test_a_slice_of_nothing_but_padding_stays_padding() -> None:
    image = voxels((20, 20, 4))
    image[..., 1] = -32768
    image[:2] = -32768
    result = resolved(image, ZeroFill()).voxels
    assert (result[..., 1] == -32768).all() and (result[4:, :, [0, 2, 3]] >= 0).all()


def test_a_volume_of_nothing_but_padding_stays_padding_in_a_series_with_stray_negative_values() -> None:
    empty = np.full((6, 5, 3), -32768, np.float32)
    result = super_resolve(empty, np.eye(4), ZeroFill(), 2, None, Values(-32768.0, 0.4, negatives=3))
    assert (result.voxels == -32768).all()


def test_a_stray_negative_voxel_changes_its_neighbourhood_alone() -> None:
    image = voxels((40, 40, 4))
    stray = image.copy()
    stray[0, 0, 0] = -3
    plain = image.copy()
    plain[0, 0, 0] = 0
    result, right = resolved(stray, ZeroFill()), resolved(plain, ZeroFill())
    np.testing.assert_array_equal(result.voxels, right.voxels)
    assert result.set_to_zero is not None


def test_the_series_decides_about_each_of_its_volumes() -> None:
    image = voxels((12, 10, 3))
    assert super_resolve(image - 1, np.eye(4), ZeroFill(), 2, None, Values(signed=True)).set_to_zero is None
    assert super_resolve(image - 1, np.eye(4), ZeroFill(), 2, None, Values(negatives=3)).voxels.min() >= 0


def test_warnings_about_an_input_know_nothing_of_its_padding() -> None:
    image = np.where(disc(64), np.float32(-32768), voxels((64, 64, 3)))
    trained_on = load_training_range(Path(__file__).parents[2] / "models/model.pt")
    plan = MatrixPlan(grids((64, 64), 2))
    filled, raw = (
        doubts(image, np.eye(4), 2, v, plan, "MR", trained_on) for v in (survey([image]), Values(signed=True))
    )
    assert any("negative" in line for line in raw) and not any("negative" in line for line in filled)
