"""K-space truncation and line masks as MONAI transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose
from torch import Tensor

from bundle.physics import truncate
from bundle.transforms import CartesianLineMask, CartesianLineMaskd, KSpaceTruncation, KSpaceTruncationd

few = settings(max_examples=25, deadline=None)
axes = pytest.mark.parametrize("slice_axis", [0, 1, 2])


def oblique(seed: int = 0) -> Tensor:
    """A sheared, possibly left-handed affine with an origin."""
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3] = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return affine


def volume(*shape: int, seed: int = 0) -> MetaTensor:
    data = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return MetaTensor(data, affine=oblique(seed), meta={"filename_or_obj": "a.nii.gz"})


def in_plane(slice_axis: int, scale: int) -> list[int]:
    return [1 if axis == slice_axis else scale for axis in range(3)]


# ------------------------------------------------------------------------------------------------------ truncation


@axes
@pytest.mark.parametrize("scale", [2, 4])
def test_every_slice_of_every_channel_is_truncated(scale: int, slice_axis: int) -> None:
    factors = in_plane(slice_axis, scale)
    x = volume(2, *(5 if f == 1 else 8 + 4 * axis for axis, f in enumerate(factors)))
    out = KSpaceTruncation(scale, slice_axis)(x)
    assert tuple(out.shape[1:]) == tuple(n // f for n, f in zip(x.shape[1:], factors, strict=True))
    for c in range(2):
        for s in range(5):
            plane = x.as_tensor()[c].select(slice_axis, s)
            expected = truncate(plane, (plane.shape[0] // scale, plane.shape[1] // scale))
            assert torch.allclose(out.as_tensor()[c].select(slice_axis, s), expected)


@few
@given(seed=st.integers(0, 2**31), slice_axis=st.sampled_from([0, 1, 2]), scale=st.sampled_from([2, 4]))
def test_voxel_j_lies_in_the_world_where_voxel_scale_j_was(seed: int, slice_axis: int, scale: int) -> None:
    x = volume(1, 8, 8, 8, seed=seed)
    out = KSpaceTruncation(scale, slice_axis)(x)
    j = torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    there = j * torch.tensor([*in_plane(slice_axis, scale), 1], dtype=torch.float64)
    assert torch.allclose(out.affine @ j, x.affine @ there)
    assert torch.equal(out.affine[:, 3], x.affine[:, 3])


@axes
def test_an_image_of_two_axes_has_no_slice_axis(slice_axis: int) -> None:
    x = volume(1, 8, 12)
    out = KSpaceTruncation(2, slice_axis)(x)
    assert out.shape == (1, 4, 6)
    assert torch.allclose(out.affine, x.affine * torch.tensor([2, 2, 1, 1]))


def test_a_bright_voxel_at_scale_j_lands_on_voxel_j() -> None:
    x = torch.zeros(1, 8, 12, 3)
    x[0, 4, 8, 1] = 16.0
    expected = torch.zeros(1, 2, 3, 3)
    expected[0, 1, 2, 1] = 1.0
    assert torch.allclose(KSpaceTruncation(4)(x), expected, atol=1e-6)


def test_factor_one_is_the_identity() -> None:
    x = volume(1, 5, 7, 2)
    out = KSpaceTruncation(1)(x)
    assert torch.allclose(out.as_tensor(), x.as_tensor()) and torch.equal(out.affine, x.affine)


def test_the_mean_of_a_constant_is_kept() -> None:
    out = KSpaceTruncation(2)(torch.full((1, 8, 8, 2), 700.0))
    assert torch.allclose(out, torch.full((1, 4, 4, 2), 700.0))


def test_the_magnitude_of_negative_values_is_taken() -> None:
    x = torch.full((1, 8, 8), -3.0)
    assert torch.allclose(KSpaceTruncation(2)(x), torch.full((1, 4, 4), 3.0))


def test_a_nan_spoils_its_own_slice_and_no_other() -> None:
    x = torch.rand(1, 8, 8, 3)
    x[0, 2, 3, 1] = torch.nan
    out = KSpaceTruncation(2)(x)
    assert bool(out[..., 1].isnan().all()) and bool(out[..., [0, 2]].isfinite().all())


@pytest.mark.parametrize("meta", [True, False])
@pytest.mark.parametrize("kind", [torch.int16, torch.uint8, torch.float16])
def test_images_of_files_are_raised_to_float(kind: torch.dtype, meta: bool) -> None:
    x = (torch.rand(1, 8, 8, 2) * 100).to(kind)
    out = KSpaceTruncation(2)(MetaTensor(x) if meta else x)
    assert out.dtype == torch.float32 and isinstance(out, MetaTensor) == meta


def test_arrays_are_accepted() -> None:
    x = np.random.default_rng(0).random((1, 8, 8, 2), dtype=np.float32)
    assert torch.equal(KSpaceTruncation(2)(x), KSpaceTruncation(2)(torch.from_numpy(x)))


def test_the_input_keeps_its_values_affine_and_history() -> None:
    x = volume(1, 8, 8, 2)
    values, affine = x.as_tensor().clone(), x.affine.clone()
    KSpaceTruncation(2)(x)
    assert torch.equal(x.as_tensor(), values) and torch.equal(x.affine, affine) and x.applied_operations == []


@axes
def test_the_inverse_restores_matrix_and_affine(slice_axis: int) -> None:
    x = volume(2, 8, 12, 16)
    transform = KSpaceTruncation(2, slice_axis)
    low = transform(x)
    back = transform.inverse(low)
    assert back.shape == x.shape and torch.allclose(back.affine, x.affine) and back.applied_operations == []
    every_other = [slice(None)] + [slice(None, None, f) for f in in_plane(slice_axis, 2)]
    assert torch.allclose(back.as_tensor()[tuple(every_other)], low.as_tensor())


def test_the_dictionary_form_is_the_array_form() -> None:
    data = {"image": volume(1, 8, 8, 8), "label": volume(1, 8, 4, 8, seed=1), "other": 3}
    transform = KSpaceTruncationd(["image", "label"], 2, slice_axis=1)
    out = transform(data)
    for key in ("image", "label"):
        expected = KSpaceTruncation(2, 1)(data[key])
        assert torch.equal(out[key], expected) and torch.equal(out[key].affine, expected.affine)
    assert out["other"] == 3 and data["image"].shape == (1, 8, 8, 8)
    back = transform.inverse(out)
    assert back["image"].shape == (1, 8, 8, 8) and torch.allclose(back["label"].affine, data["label"].affine)


def test_a_chain_of_transforms_is_inverted() -> None:
    x = volume(1, 8, 8, 2)
    chain = Compose([KSpaceTruncationd("image", 2), KSpaceTruncationd("image", 2)])
    out = chain({"image": x})
    assert out["image"].shape == (1, 2, 2, 2)
    back = chain.inverse(out)["image"]
    assert back.shape == x.shape and torch.allclose(back.affine, x.affine)


def test_a_missing_key_is_an_error_unless_allowed() -> None:
    with pytest.raises(KeyError):
        KSpaceTruncationd("image", 2)({})
    assert KSpaceTruncationd("image", 2, allow_missing_keys=True)({}) == {}


@pytest.mark.parametrize("shape", [(1, 9, 8, 3), (1, 8, 6, 3), (1, 7, 8)])
def test_a_matrix_that_the_scale_does_not_divide_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="not divisible by 4"):
        KSpaceTruncation(4)(torch.zeros(shape))


@pytest.mark.parametrize("scale", [0, -2, 1.5])
def test_a_scale_that_is_no_positive_integer_is_an_error(scale: float) -> None:
    with pytest.raises(ValueError, match="positive integer"):
        KSpaceTruncation(scale)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make", [lambda axis: KSpaceTruncation(2, axis), lambda axis: CartesianLineMask(4, slice_axis=axis)]
)
@pytest.mark.parametrize("slice_axis", [3, -1])
def test_a_wrong_slice_axis_is_an_error(make, slice_axis: int) -> None:
    with pytest.raises(ValueError, match="slice_axis must be 0, 1 or 2"):
        make(slice_axis)


# ------------------------------------------------------------------------------------------------------- line mask


@few
@given(
    count=st.integers(1, 200),
    acceleration=st.floats(1, 12),
    center_fraction=st.floats(0.01, 1.0),
    seed=st.integers(0, 99),
)
def test_the_mask_keeps_the_stated_number_of_lines(
    count: int, acceleration: float, center_fraction: float, seed: int
) -> None:
    kept = CartesianLineMask(acceleration, center_fraction, seed).lines(count)
    central = max(1, round(count * center_fraction))
    assert kept.shape == (count,) and kept.dtype == torch.bool
    assert int(kept.sum()) == max(central, round(count / acceleration))
    start = count // 2 - central // 2
    assert bool(kept[start : start + central].all()) and bool(kept[count // 2])


def test_the_lines_depend_on_the_seed_and_on_nothing_else() -> None:
    first = CartesianLineMask(4, seed=3).lines(128)
    torch.manual_seed(5)
    np.random.seed(5)
    assert torch.equal(CartesianLineMask(4, seed=3).lines(128), first)
    assert not torch.equal(CartesianLineMask(4, seed=4).lines(128), first)


@axes
def test_dropped_lines_are_missing_from_the_k_space_of_every_slice(slice_axis: int) -> None:
    x, mask = volume(1, 8, 10, 12), CartesianLineMask(2, slice_axis=slice_axis)
    out = mask(x)
    assert out.shape == x.shape and torch.equal(out.affine, x.affine) and bool((out >= 0).all())
    plane = x.as_tensor()[0].select(slice_axis, 3)
    spectrum = torch.fft.fftshift(torch.fft.fft2(plane)) * mask.lines(plane.shape[1])
    expected = torch.fft.ifft2(torch.fft.ifftshift(spectrum)).abs()
    assert torch.allclose(out.as_tensor()[0].select(slice_axis, 3), expected)


def test_without_acceleration_nothing_is_lost() -> None:
    x = volume(1, 8, 9, 2)
    assert torch.allclose(CartesianLineMask(1)(x).as_tensor(), x.as_tensor())


def test_the_dictionary_form_of_the_mask_is_the_array_form() -> None:
    x = volume(1, 8, 8, 2)
    out = CartesianLineMaskd("image", 4, seed=2)({"image": x, "label": x})
    assert torch.equal(out["image"], CartesianLineMask(4, seed=2)(x)) and out["label"] is x


@pytest.mark.parametrize(("acceleration", "center_fraction"), [(0.5, 0.1), (4, 0.0), (4, 1.1)])
def test_a_mask_outside_its_range_is_an_error(acceleration: float, center_fraction: float) -> None:
    with pytest.raises(ValueError, match="need acceleration"):
        CartesianLineMask(acceleration, center_fraction)
