"""Patches are cut where something can be seen, as a plain loop over the slices would cut them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bundle.training.degradation import RandomAcquisition
from bundle.training.patches import BLOCK, PatchBatches, SlicePool, prepare_batch

SIDES = st.integers(1, 41)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def volume(*shape: int, seed: int = 0) -> Tensor:
    """(1, X, Y[, Z]), no value below 0.1."""
    return 0.1 + torch.rand((1, *shape), generator=generator(seed))


def padded(image: np.ndarray, side: int) -> np.ndarray:
    missing = [max(0, side - n) for n in image.shape]
    return np.pad(image, [(m // 2, m - m // 2) for m in missing])


def plain_patch(slices: list[np.ndarray], side: int, drawn: list[int]) -> np.ndarray:
    """One patch by slicing, flipping and transposing; `slices` in the order of the pool."""
    offset, rows, cols, row, col, flips, transposed = drawn
    start = 0
    for image in slices:
        image = padded(image, side)
        if start == offset:
            break
        start += image.size
    assert image.shape == (rows, cols)
    patch = image[row : row + side, col : col + side]
    patch = patch[::-1] if flips % 2 else patch
    patch = patch[:, ::-1] if flips // 2 else patch
    return patch.T if transposed else patch


@settings(max_examples=40, deadline=None)
@given(first=st.tuples(SIDES, SIDES, st.integers(1, 3)), second=st.tuples(SIDES, SIDES), side=st.sampled_from([8, 24]))
def test_a_patch_has_the_voxels_of_its_place_flipped_and_transposed(first, second, side):
    volumes = [volume(*first), volume(*second, seed=1)]
    slices = [volumes[0][0, ..., z].numpy() for z in range(first[2])] + [volumes[1][0].numpy()]
    pool = SlicePool(volumes, side)
    drawn = pool.draw(12, generator())
    patches = pool.cut(drawn)
    assert patches.shape == (12, 1, side, side) and patches.dtype == torch.float32
    for patch, place in zip(patches, drawn.tolist(), strict=True):
        np.testing.assert_array_equal(patch[0].numpy(), plain_patch(slices, side, place))


@settings(max_examples=40, deadline=None)
@given(shape=st.tuples(SIDES, SIDES, st.integers(1, 3)), side=st.sampled_from([2, 8, 16, 30]), seed=st.integers(0, 99))
def test_a_patch_lies_inside_its_slice(shape, side, seed):
    pool = SlicePool([volume(*shape), volume(40, 40, 1)], side)
    offset, rows, cols, row, col, flips, transposed = pool.draw(200, generator(seed)).unbind(-1)
    assert bool(((row >= 0) & (row + side <= rows) & (col >= 0) & (col + side <= cols)).all())
    assert bool((offset + rows * cols <= pool.voxels.numel()).all())
    assert bool(((flips >= 0) & (flips < 4) & ((transposed == 0) | (transposed == 1))).all())


def test_all_eight_orientations_are_drawn_equally_often():
    drawn = SlicePool([volume(32, 32)], 16).draw(8000, generator())
    counts = torch.bincount(drawn[:, 5] + 4 * drawn[:, 6], minlength=8)
    assert bool(((counts - 1000).abs() < 5 * 1000**0.5).all())


def test_volumes_are_drawn_in_proportion_to_the_root_of_their_voxels():
    pool = SlicePool([volume(32, 32, 2), 50 * volume(32, 32, 18, seed=1)], 16)  # brightness does not matter
    share = float((pool.draw(20000, generator())[:, 0] >= 2 * 32 * 32).double().mean())
    assert share == pytest.approx(3 / 4, abs=4 * (0.75 * 0.25 / 20000) ** 0.5)


def test_patches_are_drawn_where_there_is_signal_and_lie_around_it():
    image = torch.full((1, 96, 112), 1e-3)
    image[0, 32:48, 64:80] = 1.0
    row, col = SlicePool([image], 32).draw(2000, generator())[:, 3:5].unbind(-1)
    inside = (row + 16 >= 32) & (row + 16 < 48) & (col + 16 >= 64) & (col + 16 < 80)
    assert float(inside.double().mean()) > 0.9
    assert set((row + 16).tolist()) >= set(range(32, 48))  # anywhere in the block


def test_dark_blocks_are_drawn_now_and_then_but_empty_slices_never():
    image = torch.zeros(1, 64, 64, 3)
    image[0, :BLOCK, :BLOCK, 1] = 1.0
    pool = SlicePool([image], 16)
    assert pool.voxels.numel() == 64 * 64
    dark = (pool.draw(5000, generator())[:, 3:5] >= 2 * BLOCK).any(-1).double().mean()
    assert 0.001 < float(dark) < 0.05


@pytest.mark.parametrize(("shape", "margins"), [((5, 8), (1, 0)), ((3, 4), (2, 2))])
def test_slices_smaller_than_the_patch_have_zeros_around_them(shape, margins):
    image = volume(*shape)
    pool = SlicePool([image], 8)
    for patch, place in zip(*(lambda d: (pool.cut(d)[:, 0], d))(pool.draw(20, generator())), strict=True):
        assert place[3:5].tolist() == [0, 0]
        assert int((patch > 0).sum()) == image.numel() and float(patch.sum()) == pytest.approx(float(image.sum()))
    top, left = margins
    plain = pool.voxels.reshape(8, 8)
    assert torch.equal(plain[top : top + shape[0], left : left + shape[1]], image[0])


def test_values_below_the_window_are_zero_and_an_empty_volume_gives_zeros():
    assert float(SlicePool([volume(20, 20) - 0.5], 8).voxels.min()) == 0.0
    pool = SlicePool([torch.zeros(1, 20, 20, 2)], 8)
    assert bool((pool.cut(pool.draw(4, generator())) == 0).all())


def test_without_volumes_there_is_nothing_to_cut():
    with pytest.raises(ValueError, match="no volumes"):
        SlicePool([], 8)


# ---------------------------------------------------------------------------------------------------------- batches


def batches(seed: int = 0, epoch: int = 1, updates: int = 3) -> list[dict[str, Tensor]]:
    items = [{"image": volume(40, 36, 3)}, {"image": volume(30, 30, 2, seed=1)}]
    loader = PatchBatches(items, RandomAcquisition(2), 16, batch_size=4, updates=updates, seed=seed)
    loader.set_epoch(epoch)
    assert len(loader) == updates
    return list(loader)


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[key], two[key]) for key in ("image", "label", "measured"))


def test_a_batch_depends_on_seed_epoch_and_update_alone():
    first, more = batches(), batches(updates=5)
    assert all(same(one, two) for one, two in zip(first, more, strict=False))
    others = [*first[1:], *batches(epoch=2), *batches(seed=1)]
    assert not any(same(first[0], other) for other in others)


def test_a_batch_does_not_depend_on_the_global_random_numbers_nor_draws_any():
    torch.manual_seed(1)
    first = batches()
    torch.manual_seed(2)
    expected = torch.rand(3)
    torch.manual_seed(2)
    assert all(same(one, two) for one, two in zip(first, batches(), strict=True))
    assert torch.equal(torch.rand(3), expected)


def test_the_trainer_gets_inputs_targets_and_what_was_measured():
    (batch,) = batches(updates=1)
    inputs, targets, args, kwargs = prepare_batch(batch, "cpu")
    assert torch.equal(inputs, batch["image"]) and torch.equal(targets, batch["label"]) and args == ()
    assert kwargs.keys() == {"measured"} and torch.equal(kwargs["measured"], batch["measured"])
