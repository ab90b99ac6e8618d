"""Normalisation of a volume and the way back to its own units."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.data import MetaTensor
from torch import Tensor

from bundle.data.intensity import intensity_window
from bundle.data.values import survey
from bundle.transforms import NormalizeVolume, NormalizeVolumed

EPSILON = torch.finfo(torch.float32).eps


def round_trip(x: Tensor) -> tuple[Tensor, Tensor]:
    """The normalised image, and the same with its units restored."""
    offset, scale = intensity_window(x if x.is_floating_point() else x.float())
    normalised = NormalizeVolume()(x)
    return normalised, normalised * scale + offset


def assert_restored(x: Tensor, restored: Tensor) -> None:
    """Equal up to the rounding of four operations on numbers as large as the value and the offset."""
    offset = abs(min(0.0, float(x.min())))
    assert bool(((restored.double() - x.double()).abs() <= 8 * EPSILON * (x.double().abs() + offset) + 1e-37).all())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


finite = st.one_of(
    st.just(0.0),
    st.floats(2.0**-20, 2.0**30, width=32),
    st.floats(-(2.0**30), -(2.0**-20), width=32),
)


@settings(max_examples=60, deadline=None)
@given(values=hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=6), elements=finite))
def test_any_image_comes_back_in_its_own_units(values: np.ndarray) -> None:
    x = torch.from_numpy(values)[None]
    found = survey([values])
    normalised, restored = round_trip(x)
    assert bool(normalised.isfinite().all())
    if found.padding is None and (found.signed or not found.negatives):  # otherwise some values are meant to change
        assert_restored(x, restored)


CASES = {
    "ordinary": 800 * noise(1, 8, 8, 4),
    "hounsfield": 4095 * noise(1, 8, 8, 4) - 1024,
    "all negative": -5 - noise(1, 8, 8, 4),
    "all zero": torch.zeros(1, 8, 8, 4),
    "constant": torch.full((1, 8, 8, 4), 7.0),
    "constant negative": torch.full((1, 8, 8, 4), -1024.0),
    "tiny": 1e-30 * noise(1, 8, 8, 4),
    "huge": 1e30 * (noise(1, 8, 8, 4) - 0.5),
    "one voxel": torch.full((1, 1, 1, 1), 3.0),
    "a bright row": torch.cat([noise(1, 8, 8, 32), torch.full((1, 8, 8, 1), 1e9)], -1),
}


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_image_is_normalised_and_restored(name: str) -> None:
    x = CASES[name]
    normalised, restored = round_trip(x)
    assert bool(normalised.isfinite().all())
    assert_restored(x, restored)


@pytest.mark.parametrize("name", ["ordinary", "hounsfield", "all negative", "tiny", "huge"])
def test_a_normalised_image_is_of_order_one(name: str) -> None:
    normalised, _ = round_trip(CASES[name])
    assert float(normalised.min()) >= 0.0
    assert 0.99 < float(normalised.max()) < 1.5


@pytest.mark.parametrize(("name", "value"), [("all zero", 0.0), ("constant", 1.0), ("constant negative", 0.0)])
def test_an_image_without_contrast_becomes_zero_or_one(name: str, value: float) -> None:
    normalised, restored = round_trip(CASES[name])
    assert torch.equal(normalised, torch.full_like(normalised, value))
    assert torch.equal(restored, CASES[name])


def test_one_bright_voxel_in_a_thousand_does_not_darken_the_rest() -> None:
    x = noise(1, 16, 16, 16)
    x[0, 3, 4, 5] = 1e9
    normalised, restored = round_trip(x)
    assert float(normalised.median()) == pytest.approx(0.5, abs=0.05)
    assert float(normalised[0, 3, 4, 5]) > 1e8  # nothing is clipped
    assert_restored(x, restored)


def test_an_empty_background_stays_zero_and_does_not_count() -> None:
    x = torch.zeros(1, 16, 16, 16)
    x[0, :4, :4, :4] = 100 * noise(4, 4, 4)
    normalised, _ = round_trip(x)
    assert torch.equal(normalised == 0, x == 0)
    assert float(normalised.max()) >= 1.0


def test_the_window_is_that_of_the_percentile() -> None:
    assert intensity_window(torch.arange(1, 1001).float()) == (0.0, 999.0)
    assert intensity_window(torch.arange(1, 1001).float(), percentile=50) == (0.0, 500.0)
    assert intensity_window(torch.arange(-10, 991).float()) == (-10.0, 999.0)


@settings(max_examples=20, deadline=None)
@given(gain=st.sampled_from([2.0**-30, 0.25, 8.0, 2.0**40]))
def test_the_unit_of_the_image_does_not_matter(gain: float) -> None:
    x = noise(1, 6, 6, 6) - 0.25
    assert torch.equal(round_trip(gain * x)[0], round_trip(x)[0])


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.uint16, torch.int32])
def test_integer_images_become_float(dtype: torch.dtype) -> None:
    x = (200 * noise(1, 6, 6, 2)).to(dtype)
    normalised, restored = round_trip(x)
    assert normalised.dtype == torch.float32
    assert torch.equal(restored.round().to(dtype), x)


def test_the_affine_and_the_name_stay_and_the_input_is_not_changed() -> None:
    x = MetaTensor(noise(1, 4, 4, 2), affine=torch.diag(torch.tensor([2.0, 3, 4, 1])), meta={"filename_or_obj": "a"})
    before, keys = x.as_tensor().clone(), set(x.meta)
    out = NormalizeVolume()(x)
    assert torch.equal(out.affine, x.affine) and out.meta["filename_or_obj"] == "a"
    assert torch.equal(x.as_tensor(), before) and set(x.meta) == keys


def test_the_dictionary_form_is_the_array_form() -> None:
    x = MetaTensor(CASES["hounsfield"])
    out = NormalizeVolumed(["a", "b"])({"a": x, "b": 2 * x})
    assert torch.equal(out["a"], NormalizeVolume()(x))
    assert torch.allclose(out["b"], out["a"])


def test_training_sees_padded_volumes_as_inference_does() -> None:
    image = torch.rand(1, 32, 30, 4, generator=torch.Generator().manual_seed(0)) * 400 + 1
    mask = torch.zeros(1, 32, 30, 4, dtype=torch.bool)
    mask[:, :9] = True
    padded = MetaTensor(image.masked_fill(mask, -32768.0), meta={"a": 1})
    result = NormalizeVolume()(padded)
    right, scale = image[~mask], intensity_window(image[~mask])[1]
    assert isinstance(result, MetaTensor) and result.meta["a"] == 1
    torch.testing.assert_close(torch.as_tensor(result)[~mask], right / scale)
    assert result.min() >= 0 and result.max() < 1.1
    assert padded.min() == -32768


def test_training_sees_stray_negative_values_as_zero() -> None:
    image = torch.rand(1, 16, 15, 4, generator=torch.Generator().manual_seed(0)) * 400
    stray = image.clone()
    image[0, 0, 0, 0], stray[0, 0, 0, 0] = 0, -3
    torch.testing.assert_close(NormalizeVolume()(stray), NormalizeVolume()(image))
