"""Random acquisitions: truncation alone where nothing else is drawn, and each degradation as often as it should be."""

from __future__ import annotations

import re
from dataclasses import astuple, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bundle.physics import truncate
from bundle.training import degradation
from bundle.training.degradation import NOISE, PLAIN, RandomAcquisition, Shares
from bundle.transforms import CartesianLineMask

NOTHING = replace(PLAIN, faded=0.0)
DRAWS = 2000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def patches(count: int = 6, side: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, side, side, generator=generator(seed))


def acquired(shares: Shares, sharp: Tensor, scale: int = 2, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    return RandomAcquisition(scale, shares)(sharp, generator(seed))


def low(targets: Tensor, scale: int = 2) -> Tensor:
    side = targets.shape[-1] // scale
    return truncate(targets, (side, side))


def differs(one: Tensor, two: Tensor) -> Tensor:
    """Bool (B,): by more than rounding."""
    return (one - two).abs().amax(dim=(1, 2, 3)) > 1e-4


@settings(max_examples=20, deadline=None)
@given(scale=st.sampled_from([2, 4, 8]), n=st.integers(1, 9), seed=st.integers(0, 99))
def test_where_nothing_is_drawn_the_input_is_the_truncated_patch(scale, n, seed):
    sharp = patches(2, scale * n, seed)
    inputs, targets, measured = acquired(NOTHING, sharp, scale, seed)
    assert torch.equal(targets, sharp) and bool(measured.all())
    torch.testing.assert_close(inputs, low(sharp, scale))


@pytest.mark.parametrize("scale", [2, 4])
def test_plain_is_the_truncation_of_a_target_whose_borders_may_fade(scale):
    sharp = patches(20)
    inputs, targets, measured = RandomAcquisition(scale, "plain")(sharp, generator())
    torch.testing.assert_close(inputs, low(targets, scale))
    assert bool(measured.all())
    faded = differs(targets, sharp)
    assert 0 < int(faded.sum()) < 20
    assert torch.equal(targets[..., 4:-4, 4:-4], sharp[..., 4:-4, 4:-4])  # an eighth of the side
    assert float(targets[faded][..., 0, :].max()) < 0.05 and torch.equal(targets[~faded], sharp[~faded])


def test_a_filtered_input_is_not_measured_and_has_less_energy_than_the_truncation_of_its_target():
    sharp = patches()
    inputs, targets, measured = acquired(replace(NOTHING, filtered=1.0), sharp)
    assert torch.equal(targets, sharp) and not bool(measured.any())
    assert bool(differs(inputs, low(sharp)).all())
    assert bool((inputs.square().sum((1, 2, 3)) < low(sharp).square().sum((1, 2, 3))).all())


def test_a_partial_input_is_not_measured_and_its_target_is_whole():
    sharp = patches(40, 96)
    inputs, targets, measured = acquired(replace(NOTHING, partial=1.0), sharp)
    assert torch.equal(targets, sharp) and not bool(measured.any())
    kept = inputs.square().sum((1, 2, 3)) / low(sharp).square().sum((1, 2, 3))
    assert float(kept.max()) < 1 + 1e-5 and float(kept.min()) > 0.9  # at most an eighth of k-space, far from the centre
    assert int(differs(inputs, low(sharp)).sum()) > 30


def test_a_blurred_target_lacks_fine_detail_and_its_input_is_its_truncation():
    sharp = patches()
    inputs, targets, measured = acquired(replace(NOTHING, blurred=1.0), sharp)
    assert bool(measured.all())
    torch.testing.assert_close(inputs, low(targets))
    torch.testing.assert_close(targets.mean((1, 2, 3)), sharp.mean((1, 2, 3)))
    rough = [t.diff(dim=-1).square().mean((1, 2, 3)) for t in (targets, sharp)]
    assert bool((rough[0] < rough[1]).all()) and float(targets.min()) >= 0


def test_a_phase_changes_the_input_and_keeps_the_target():
    sharp = patches()
    inputs, targets, measured = acquired(replace(NOTHING, phase=1.0), sharp)
    assert torch.equal(targets, sharp) and bool(measured.all())
    assert bool(differs(inputs, low(sharp)).all()) and float(inputs.min()) >= 0


@pytest.mark.parametrize("sigma", [0.004, 0.05])
def test_noise_has_the_sigma_that_was_drawn_where_the_image_is_empty(sigma, monkeypatch):
    monkeypatch.setattr(degradation, "NOISE", (sigma, sigma))
    coils = []
    for seed in range(12):
        inputs, targets, measured = acquired(replace(NOTHING, noisy=1.0), torch.zeros(4, 1, 64, 64), seed=seed)
        assert bool((targets == 0).all()) and bool(measured.all())
        coils.append(float(inputs.double().square().mean()) / (2 * sigma**2))  # Rician: E[y^2] = 2 sigma^2
    assert all(min(abs(c - 1), abs(c - 4) / 4) < 0.08 for c in coils)  # 4,096 exponential variates: sd 1.6 %
    assert 0 < sum(c > 2 for c in coils) < 8


def test_the_sigma_of_the_noise_has_a_uniform_logarithm():
    inputs, _, _ = acquired(replace(NOTHING, noisy=1.0), torch.zeros(DRAWS, 1, 32, 32), seed=3)
    sigma = (inputs.double().square().mean((1, 2, 3)) / 2).sqrt()
    assert float(sigma.min()) == pytest.approx(NOISE[0], rel=0.15)
    assert float(sigma.max()) == pytest.approx(NOISE[1], rel=0.15)
    assert float(sigma.median()) == pytest.approx((NOISE[0] * NOISE[1]) ** 0.5, rel=0.15)


@pytest.mark.parametrize("share", [0.1, 0.6])
@pytest.mark.parametrize("name", ["blurred", "faded", "phase", "filtered", "noisy"])
def test_a_degradation_is_drawn_as_often_as_its_share_says(name, share):
    sharp = 0.5 + patches(DRAWS, 16)
    inputs, targets, measured = acquired(replace(NOTHING, **{name: share}), sharp)
    drawn = {
        "blurred": differs(targets, sharp),
        "faded": differs(targets, sharp),
        "filtered": ~measured,
    }.get(name, differs(inputs, low(targets)))
    assert float(drawn.double().mean()) == pytest.approx(share, abs=4 * (share * (1 - share) / DRAWS) ** 0.5)


def test_inputs_are_measured_unless_filtered_or_partial():
    shares = Shares()
    expected = (1 - shares.filtered) * (1 - shares.partial)
    _, _, measured = RandomAcquisition(2)(patches(DRAWS, 16), generator())
    spread = (expected * (1 - expected) / DRAWS) ** 0.5
    assert float(measured.double().mean()) == pytest.approx(expected, abs=4 * spread)


@settings(max_examples=20, deadline=None)
@given(scale=st.sampled_from([2, 4]), n=st.integers(2, 12), seed=st.integers(0, 999))
def test_all_degradations_together_give_finite_images_that_are_not_negative(scale, n, seed):
    inputs, targets, measured = RandomAcquisition(scale)(patches(5, scale * n, seed), generator(seed))
    assert inputs.shape == (5, 1, n, n) and targets.shape == (5, 1, scale * n, scale * n) and measured.shape == (5,)
    for image in (inputs, targets):
        assert image.dtype == torch.float32 and bool(image.isfinite().all()) and float(image.min()) >= 0


def test_the_same_generator_gives_the_same_acquisitions():
    one, two, other = (RandomAcquisition(2)(patches(), generator(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True)) and not torch.equal(one[0], other[0])


def test_lines_are_dropped_from_the_input_as_the_transform_drops_them():
    sharp = patches()
    inputs, targets, _ = RandomAcquisition(2, NOTHING, line_acceleration=2)(sharp, generator())
    assert torch.equal(targets, sharp)
    for image, truth in zip(inputs, low(sharp), strict=True):
        torch.testing.assert_close(image, CartesianLineMask(2)(truth))


def test_the_page_on_training_gives_the_shares(bundle_root):
    page = (bundle_root / "docs/training.md").read_text()
    rows = re.findall(r"^\| (\d+) % \| ", page, re.MULTILINE)
    assert sorted(map(int, rows)) == sorted(round(100 * share) for share in astuple(Shares()))


def test_an_unknown_name_of_shares_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"\('wide', 'plain'\), got 'some'"):
        RandomAcquisition(2, "some")
