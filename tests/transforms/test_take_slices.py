"""Taking some of the slices of a volume."""

from __future__ import annotations

import torch
from monai.data import MetaTensor

from bundle.transforms import TakeSlicesd


def test_the_named_slices_are_kept_and_stay_where_they_are_in_the_world() -> None:
    affine = torch.diag(torch.tensor([1.0, 2.0, 5.0, 1.0], dtype=torch.float64))
    volume = MetaTensor(torch.rand(1, 4, 5, 6), affine=affine)
    out = TakeSlicesd("image")({"image": volume, "slices": [2, 3, 5]})
    assert list(out) == ["image"]
    assert torch.equal(out["image"].as_tensor(), volume.as_tensor()[..., 3:5])
    assert out["image"].affine[:3, 3].tolist() == [0.0, 0.0, 15.0]


def test_an_item_that_names_none_keeps_all_slices() -> None:
    item = {"image": torch.rand(1, 4, 5, 6)}
    assert TakeSlicesd("image")(item)["image"] is item["image"]
