"""Matrix and affine around truncation and super-resolution."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from bundle.transforms import CropToMultiple, CropToMultipled

axes = pytest.mark.parametrize("slice_axis", [0, 1, 2])


def volume(*shape: int, seed: int = 0) -> MetaTensor:
    generator = torch.Generator().manual_seed(seed)
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3] = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    return MetaTensor(torch.rand(shape, generator=generator), affine=affine, meta={"filename_or_obj": "a.nii.gz"})


# ------------------------------------------------------------------------------------------------------------ crop


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(*[st.integers(4, 15)] * 3),
    scale=st.sampled_from([1, 2, 3, 4]),
    slice_axis=st.sampled_from([0, 1, 2]),
)
def test_the_ends_of_the_in_plane_axes_are_cut(size: tuple[int, ...], scale: int, slice_axis: int) -> None:
    x = volume(2, *size)
    out = CropToMultiple(scale, slice_axis)(x)
    expected = [n if axis == slice_axis else n - n % scale for axis, n in enumerate(size)]
    assert list(out.shape[1:]) == expected
    assert torch.equal(out.as_tensor(), x.as_tensor()[:, : expected[0], : expected[1], : expected[2]])
    assert torch.allclose(out.affine, x.affine)


def test_an_image_of_two_axes_is_cropped_on_both() -> None:
    x = torch.rand(1, 9, 11)
    assert torch.equal(torch.as_tensor(CropToMultiple(4)(x)), x[:, :8, :8])


def test_the_dictionary_form_of_the_crop_is_the_array_form() -> None:
    x = volume(1, 9, 9, 3)
    out = CropToMultipled(["a", "b"], 2)({"a": x, "b": x, "c": x})
    assert torch.equal(out["a"], CropToMultiple(2)(x)) and out["b"].shape == (1, 8, 8, 3) and out["c"] is x


def test_a_slice_smaller_than_the_scale_is_an_error() -> None:
    with pytest.raises(ValueError, match="too small"):
        CropToMultiple(4)(torch.zeros(1, 8, 3, 5))
    assert CropToMultiple(4)(torch.zeros(1, 8, 8, 1)).shape == (1, 8, 8, 1)


def test_a_series_of_volumes_is_an_error() -> None:
    with pytest.raises(ValueError, match="spatial axes"):
        CropToMultiple(2)(torch.zeros(1, 8, 8, 8, 3))


def test_a_wrong_slice_axis_is_an_error() -> None:
    with pytest.raises(ValueError, match="slice_axis must be 0, 1 or 2"):
        CropToMultiple(2, 3)
