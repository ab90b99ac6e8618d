"""Training patches with other voxel sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.transforms import RandVoxelSize, RandVoxelSized


def _waves(n: int, cycles: float) -> torch.Tensor:
    """Columns of a wave with so many cycles across the image, between 0 and 2, (1, n, n)."""
    return (1 + torch.cos(2 * torch.pi * cycles * torch.arange(n) / n)).expand(1, n, n)


def test_without_shrinking_it_is_a_part_of_the_image_as_it_was() -> None:
    image = torch.arange(400.0).reshape(1, 20, 20)
    transform = RandVoxelSize(12, prob=0.0).set_random_state(seed=0)
    corners = set()
    for _ in range(60):
        patch = transform(image)
        top, left = divmod(int(patch[0, 0, 0]), 20)
        assert torch.equal(patch, image[:, top : top + 12, left : left + 12])
        corners.add((top, left))
    assert len(corners) > 20 and max(max(c) for c in corners) <= 8


def test_shrunk_waves_have_more_cycles_for_a_sample_and_rows_and_columns_shrink_apart() -> None:
    # 8 cycles on 80 columns are 6.4 on 64 of them, and between 6.4 and 8 on a patch of 64
    transform = RandVoxelSize(64, prob=1.0).set_random_state(seed=1)
    image = torch.cat([_waves(80, 8), _waves(80, 8).mT])
    cycles = []
    for _ in range(40):
        patch = transform(image)
        assert patch.shape == (2, 64, 64)
        inner = patch[:, 8:-8, 8:-8] - 1
        # mean square of the derivative over that of the wave: the squared angular frequency
        along = [inner[0].diff(dim=1).square().mean(), inner[1].diff(dim=0).square().mean()]
        energy = [inner[0].square().mean(), inner[1].square().mean()]
        step = [2 * torch.asin((a / e).sqrt().clamp(max=2) / 2) for a, e in zip(along, energy, strict=True)]
        cycles.append([float(s) * 64 / (2 * torch.pi) for s in step])
    rows, cols = (torch.tensor([c[i] for c in cycles]) for i in (1, 0))
    for found in (rows, cols):
        assert 6.2 < float(found.min()) < 6.8 and 7.6 < float(found.max()) < 8.2
    assert float((rows - cols).abs().max()) > 0.3


def test_shrinking_averages_instead_of_skipping() -> None:
    # alternating columns are far beyond what a patch of two thirds of them can hold: they must fade, not fold
    image = (torch.arange(96) % 2).float().expand(1, 96, 96)
    transform = RandVoxelSize(64, prob=1.0).set_random_state(seed=0)
    contrasts, folded = [], 0
    for _ in range(40):
        patch = transform(image)[:, 8:-8, 8:-8]
        assert float(patch.mean()) == pytest.approx(0.5, abs=0.02)
        contrasts.append(float(patch.std()))
        folded += transform._part[1] > 90
    assert folded and min(contrasts) < 0.12 < 0.5 + 1e-6 >= max(contrasts)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(2, 20), more=st.tuples(st.integers(0, 9), st.integers(0, 9)), seed=st.integers(0, 999))
def test_any_image_gives_a_patch_within_its_range(size: int, more: tuple[int, int], seed: int) -> None:
    image = torch.rand(1, size + more[0], size + more[1], generator=torch.Generator().manual_seed(seed))
    patch = RandVoxelSize(size, prob=0.7).set_random_state(seed=seed)(image)
    assert patch.shape == (1, size, size)
    assert float(patch.min()) >= 0 and float(patch.max()) < float(image.max()) + 0.25
    flat = RandVoxelSize(size, prob=1.0).set_random_state(seed=seed)(torch.full_like(image, 3.0))
    assert torch.allclose(flat, torch.full_like(flat, 3.0), atol=1e-5)


def test_the_same_seed_draws_the_same_and_keys_share_it() -> None:
    image = torch.rand(1, 30, 30, generator=torch.Generator().manual_seed(0))

    def patches(seed: int) -> list[torch.Tensor]:
        transform = RandVoxelSized(["image", "label"], 20, prob=0.5).set_random_state(seed=seed)
        results = [transform({"image": image, "label": image, "name": "n"}) for _ in range(10)]
        assert all(torch.equal(r["image"], r["label"]) and r["name"] == "n" for r in results)
        return [r["image"] for r in results]

    first, again, other = patches(3), patches(3), patches(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_an_image_of_the_size_of_the_patch_stays_and_a_smaller_one_is_an_error() -> None:
    image = torch.rand(1, 10, 10)
    assert torch.equal(RandVoxelSize(10, prob=1.0)(image), image)
    with pytest.raises(ValueError, match="smaller than the patch"):
        RandVoxelSize(11)(image)
