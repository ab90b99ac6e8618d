"""Warnings about inputs unlike anything the weights were trained on."""

from __future__ import annotations

import numpy as np
import pytest

from bundle.trust import ModalityRange, TrainingRange, check_volume

MR = ModalityRange(
    volumes=20,
    pixel_mm=(0.8, 3.5),
    slice_mm=(1.0, 6.5),
    background=(0.1, 0.6),
    negative=(0.0, 0.0),
    typical=(0.1, 0.6),
    peak=(1.0, 2.0),
)
TRAINED = TrainingRange(2, {"MR": MR})
SPACING = (1.0, 1.0, 4.0)


def head(size: int = 64, slices: int = 3) -> np.ndarray:
    """A disc of noisy tissue in air, (size, size, slices): within the range above."""
    rng = np.random.default_rng(0)
    x = np.linspace(-1, 1, size)
    inside = (np.hypot(x[:, None], x[None]) < 0.85)[..., None]
    tissue = 300 + 100 * rng.random((size, size, slices)) + 500 * (rng.random((size, size, slices)) > 0.98)
    return np.rint(inside * tissue + 10 * rng.random((size, size, slices))).astype(np.float32)


def only(warnings: list[str]) -> str:
    assert len(warnings) == 1, warnings
    return warnings[0]


def test_an_input_like_the_training_images_gives_no_warning():
    assert check_volume(head(), SPACING, 2, "MR", TRAINED) == []
    assert check_volume(head(), SPACING, 2, None, TRAINED) == []


def test_weights_without_a_range_give_one_line_that_says_so():
    assert "no training range" in only(check_volume(head(), SPACING, 2, "MR"))


@pytest.mark.parametrize(("modality", "shown"), [("PT", "PET"), ("CT", "CT"), (" ct ", "CT")])
def test_another_modality_is_named(modality, shown):
    assert only(check_volume(head(), SPACING, 2, modality, TRAINED)).startswith(f"modality {shown}: ")


def test_dicom_pt_is_pet():
    assert check_volume(head(), SPACING, 2, "PT", TrainingRange(2, {"PET": MR})) == []


def test_a_modality_is_compared_with_its_own_range_and_an_unknown_one_with_all():
    large = TrainingRange(2, {"MR": MR, "PET": ModalityRange(**{**vars(MR), "pixel_mm": (4.0, 8.0)})})
    assert "pixels of 6 mm" in only(check_volume(head(), (6.0, 6.0, 4.0), 2, "MR", large))
    assert check_volume(head(), (6.0, 6.0, 4.0), 2, None, large) == []


@pytest.mark.parametrize(
    ("spacing", "start"),
    [((0.2, 0.2, 4), "pixels of 0.2 mm"), ((1, 9, 4), "pixels of 1 x 9 mm"), ((1, 1, 12), "a slice")],
)
def test_voxel_sizes_outside_the_range_are_named(spacing, start):
    assert only(check_volume(head(), spacing, 2, "MR", TRAINED)).startswith(start)


def test_the_slice_axis_decides_which_size_is_which():
    turned = np.moveaxis(head(), 2, 0)
    assert check_volume(turned, (4.0, 1.0, 1.0), 0, "MR", TRAINED) == []


def test_hounsfield_units_are_recognised_by_their_negative_voxels():
    warnings = check_volume(head() * 2 - 1024, SPACING, 2, "CT", TRAINED)
    assert any("negative" in line and "Hounsfield" in line for line in warnings)


def test_a_broken_voxel_is_noticed():
    voxels = head()
    voxels[5, 5, 1] = 1e9
    assert "brightest voxel" in only(check_volume(voxels, SPACING, 2, "MR", TRAINED))


def test_an_image_of_air_is_noticed():
    voxels = np.zeros((64, 64, 3), np.float32)
    voxels[:8, :8] = np.random.default_rng(0).random((8, 8, 3))
    assert any("background" in line for line in check_volume(voxels, SPACING, 2, "MR", TRAINED))


@pytest.mark.parametrize("labels", [1, 40])
def test_a_label_map_is_no_image(labels):
    blocks = np.random.default_rng(0).integers(0, labels + 1, (8, 8, 2)).repeat(8, 0).repeat(8, 1)
    assert "label map" in only(check_volume(blocks, SPACING, 2, "MR", TRAINED))


def test_a_constant_volume_has_nothing_to_super_resolve():
    assert "is constant" in only(check_volume(np.full((64, 64, 2), 7.0), SPACING, 2, "MR", TRAINED))


def test_an_image_of_two_axes_is_one_slice():
    assert check_volume(head()[..., 0], SPACING, 2, "MR", TRAINED) == []


@pytest.mark.parametrize(
    "voxels", [np.zeros(5), np.zeros((2, 2, 2, 2)), np.zeros((0, 2, 2)), np.zeros((2, 2, 2), complex)]
)
def test_what_is_no_volume_is_refused(voxels):
    with pytest.raises(ValueError, match="expected real voxels"):
        check_volume(voxels, SPACING, 2)
