"""Fading the borders of training patches."""

from __future__ import annotations

import pytest
import torch

from bundle.transforms import RandEdgeTaper, RandEdgeTaperd


def test_a_faded_patch_is_dark_at_its_border_and_untouched_inside() -> None:
    x = torch.ones(1, 20, 24)
    out = RandEdgeTaper(5, prob=1.0)(x)
    assert torch.equal(out[:, 5:-5, 5:-5], x[:, 5:-5, 5:-5])
    border = torch.cat([out[:, 0].flatten(), out[:, -1].flatten(), out[..., 0].flatten(), out[..., -1].flatten()])
    assert float(border.max()) < 0.03 and float(out.min()) >= 0.0


@pytest.mark.parametrize(("n", "width"), [(1, 1), (2, 1), (9, 4), (10, 4), (6, 100)])
def test_the_window_rises_from_both_ends_alike(n: int, width: int) -> None:
    window = RandEdgeTaper(width).window(n)
    half = window[: (n + 1) // 2]
    assert window.shape == (n,) and torch.allclose(window, window.flip(0))
    assert bool((half.diff() >= 0).all()) and bool((window > 0).all() and (window <= 1).all())


def test_all_channels_are_faded_alike_and_the_dtype_is_kept() -> None:
    x = torch.rand(3, 8, 8, dtype=torch.float64)
    out = RandEdgeTaper(3, prob=1.0)(x)
    assert out.dtype == torch.float64
    weights = out / x
    assert torch.allclose(weights, weights[:1].expand(3, -1, -1))


def test_probability_zero_never_fades_and_one_always() -> None:
    x = torch.ones(1, 8, 8)
    assert all(torch.equal(RandEdgeTaper(2, prob=0.0)(x), x) for _ in range(5))
    assert not any(torch.equal(RandEdgeTaper(2, prob=1.0)(x), x) for _ in range(5))


@pytest.mark.parametrize("dictionary", [False, True])
def test_the_same_seed_makes_the_same_decisions(dictionary: bool) -> None:
    x = torch.ones(1, 8, 8)

    def decisions(seed: int) -> list[bool]:
        if dictionary:
            transform = RandEdgeTaperd("image", 2, prob=0.5).set_random_state(seed=seed)
            return [torch.equal(transform({"image": x})["image"], x) for _ in range(30)]
        array = RandEdgeTaper(2, prob=0.5).set_random_state(seed=seed)
        return [torch.equal(array(x), x) for _ in range(30)]

    assert decisions(7) == decisions(7) != decisions(8)
    assert 5 < sum(decisions(7)) < 25


def test_an_array_can_be_faded_again_as_before() -> None:
    transform = RandEdgeTaper(2, prob=0.5).set_random_state(seed=1)
    x = torch.rand(1, 8, 8)
    assert torch.equal(transform(x), transform(x, randomize=False))


def test_the_keys_share_the_decision() -> None:
    transform = RandEdgeTaperd(["image", "label"], 2, prob=0.5).set_random_state(seed=0)
    x = torch.ones(1, 8, 8)
    for _ in range(20):
        out = transform({"image": x, "label": x})
        assert torch.equal(out["image"], out["label"])


def test_the_input_is_not_changed() -> None:
    x = torch.ones(1, 8, 8)
    RandEdgeTaper(2, prob=1.0)(x)
    assert torch.equal(x, torch.ones(1, 8, 8))


def test_a_width_below_one_is_an_error() -> None:
    with pytest.raises(ValueError, match="width"):
        RandEdgeTaper(0)
