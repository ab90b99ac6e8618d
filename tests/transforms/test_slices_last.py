"""Volumes whose slices are moved to the last axis."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundle.physics import resolve_slice_axis
from bundle.transforms import SlicesLast, SlicesLastd

AFFINE = torch.tensor([[0, -2.0, 0.5, 10], [3, 0, 0, -20], [0, 0.25, 5, 7], [0, 0, 0, 1]], dtype=torch.float64)


def volume(spacing: tuple[float, float, float] = (1, 1, 1)) -> MetaTensor:
    affine = AFFINE @ torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    return MetaTensor(torch.arange(120.0).reshape(1, 4, 5, 6), affine=affine, meta={"filename_or_obj": "a.nii.gz"})


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_every_voxel_keeps_its_value_and_its_place_in_the_world(slice_axis: int) -> None:
    x = volume()
    out = SlicesLast(slice_axis)(x)
    order = [*(axis for axis in range(3) if axis != slice_axis), slice_axis]
    for index in np.ndindex(4, 5, 6):
        moved = tuple(index[axis] for axis in order)
        assert out[(0, *moved)] == x[(0, *index)]
        place = x.affine @ torch.tensor([*index, 1.0], dtype=torch.float64)
        assert torch.allclose(out.affine @ torch.tensor([*moved, 1.0], dtype=torch.float64), place)
    assert out.meta["filename_or_obj"] == "a.nii.gz"


@pytest.mark.parametrize(("spacing", "axis"), [((3, 1, 1), 0), ((1, 9, 1), 1), ((1, 1, 3), 2)])
def test_auto_takes_the_axis_of_the_largest_spacing(spacing: tuple[float, float, float], axis: int) -> None:
    x = volume(spacing)
    assert resolve_slice_axis("auto", x.shape[1:], x.affine.numpy()) == axis
    out = SlicesLastd("image")({"image": x})["image"]
    assert torch.equal(out, SlicesLast(axis)(x))
    assert resolve_slice_axis("auto", out.shape[1:], out.affine.numpy()) == 2


def test_images_and_plain_tensors_stay_as_they_are() -> None:
    image, plain = volume()[..., 0], volume().as_tensor()
    assert SlicesLast()(image) is image
    assert torch.equal(SlicesLast()(plain), plain)


def test_a_wrong_axis_is_an_error() -> None:
    with pytest.raises(ValueError, match="slice_axis must be 0, 1 or 2"):
        SlicesLast(3)
