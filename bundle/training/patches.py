"""Patches for training, cut and degraded in batches on the device of the network.

All slices of the training volumes lie in one flat tensor on that device. A batch is a few tensor operations: one
gather cuts, flips and transposes all patches, and :class:`bundle.training.degradation.RandomAcquisition` degrades them.

The patches of an update depend only on the seed, the epoch and the update. One process with a batch of 8 and two
processes with 4 each therefore see the same patches in the same update.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from monai.utils import CommonKeys
from torch import Tensor

from bundle.training.degradation import RandomAcquisition

BLOCK = 16
"""Side of the blocks that are drawn; a patch lies with its centre in the drawn block, where the slice allows it."""


class SlicePool:
    """The slices of many volumes, and where in them there is something to see.

    A volume is drawn in proportion to the root of its number of voxels, so that a scan with many thin slices, which
    resemble each other, does not outweigh the others; within a volume, blocks are drawn in proportion to their mean
    intensity, plus a little.

    Args:
        volumes: (1, X, Y, Z) or (1, X, Y), normalised, slices last.
        patch_size: slices smaller than this are padded with zeros.
        device: for the voxels.

    Raises:
        ValueError: no volumes, or one of another shape.
    """

    def __init__(self, volumes: Iterable[Tensor], patch_size: int, device: torch.device | str = "cpu") -> None:
        self.patch_size = patch_size
        voxels: list[Tensor] = []
        blocks: list[Tensor] = []
        weights: list[Tensor] = []
        start = 0
        for volume in volumes:
            slices = _padded(_slices(volume), patch_size)
            mean = torch.nn.functional.avg_pool2d(slices[:, None], BLOCK, ceil_mode=True)[:, 0]
            count, rows, cols = slices.shape
            number, row, col = torch.meshgrid(*(torch.arange(n) for n in mean.shape), indexing="ij")
            place = [start + number * rows * cols, torch.full_like(row, rows), torch.full_like(row, cols)]
            blocks.append(torch.stack([*place, row * BLOCK, col * BLOCK], dim=-1).flatten(0, -2))
            weight = (mean + 0.02 * mean.mean()).double().flatten()
            weights.append(weight / weight.sum().clamp(min=1e-12) * slices.numel() ** 0.5)
            voxels.append(slices.flatten())
            start += count * rows * cols
        if not voxels:
            raise ValueError("no volumes to cut patches from")
        self.voxels = torch.cat(voxels).to(device)
        self.blocks = torch.cat(blocks)
        self.cumulative = torch.cat(weights).cumsum(0)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Choose patches: (count, 7) of slice offset, rows, columns, first row, first column, flips, transposition."""
        at = torch.rand(count, dtype=torch.double, generator=generator) * self.cumulative[-1]
        chosen = self.blocks[torch.searchsorted(self.cumulative, at).clamp(max=len(self.blocks) - 1)]
        offset, rows, cols, row, col = chosen.unbind(-1)
        inside = torch.randint(BLOCK, (2, count), generator=generator) - self.patch_size // 2
        turned = torch.randint(8, (count,), generator=generator)
        row = torch.minimum((row + inside[0]).clamp(min=0), rows - self.patch_size)
        col = torch.minimum((col + inside[1]).clamp(min=0), cols - self.patch_size)
        return torch.stack([offset, rows, cols, row, col, turned % 4, turned // 4], dim=-1)

    def cut(self, drawn: Tensor) -> Tensor:
        """The patches (count, 1, P, P) of :meth:`draw`, on the device of the voxels."""
        offset, _, cols, row, col, flips, transposed = drawn.to(self.voxels.device)[:, :, None, None].unbind(1)
        first, second = torch.meshgrid(*[torch.arange(self.patch_size, device=self.voxels.device)] * 2, indexing="ij")
        first, second = torch.where(transposed == 1, second, first), torch.where(transposed == 1, first, second)
        last = self.patch_size - 1
        first = torch.where(flips % 2 == 1, last - first, first)
        second = torch.where(flips // 2 == 1, last - second, second)
        return self.voxels[offset + (row + first) * cols + col + second][:, None]


class PatchBatches:
    """The batches of an epoch, one per update, for MONAI's trainer: a loader whose items are on the device already.

    Args:
        dataset: items with the key "image": channel-first volumes, normalised, slices last.
        acquisition: makes the inputs.
        patch_size: side of a patch in high-resolution voxels.
        batch_size: patches per update and process.
        updates: per epoch.
        seed: of the run.
        device: for the voxels and batches.
    """

    def __init__(
        self,
        dataset: Iterable[Mapping[str, Any]],
        acquisition: RandomAcquisition,
        patch_size: int,
        batch_size: int,
        updates: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.pool = SlicePool((item["image"] for item in dataset), patch_size, device)
        self.acquisition, self.batch_size, self.updates, self.seed = acquisition, batch_size, updates, seed
        self.epoch = 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.updates

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        share = slice(idist.get_rank(), None, idist.get_world_size())
        for update in range(self.updates):
            state = np.random.SeedSequence((self.seed, self.epoch, update)).generate_state(1)
            generator = torch.Generator().manual_seed(int(state[0]))
            drawn = self.pool.draw(self.batch_size * idist.get_world_size(), generator)
            inputs, targets, measured = self.acquisition(self.pool.cut(drawn), generator)
            yield {CommonKeys.IMAGE: inputs[share], CommonKeys.LABEL: targets[share], "measured": measured[share]}


def prepare_batch(
    batch: Mapping[str, Tensor], device: Any = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor, tuple[()], dict[str, Tensor]]:
    """Inputs, targets, and for :class:`bundle.training.inferers.StageInferer` which inputs are measured as they are."""
    image, label, measured = (
        batch[key].to(device, non_blocking=non_blocking) for key in (CommonKeys.IMAGE, CommonKeys.LABEL, "measured")
    )
    return image, label, (), {"measured": measured}


def _slices(volume: Tensor) -> Tensor:
    """(1, X, Y[, Z]) -> (Z, X, Y) float32 on the CPU, without empty slices; what lies below the window is set to 0."""
    if volume.shape[0] != 1 or volume.ndim not in (3, 4):
        raise ValueError(f"patches are cut from volumes (1, X, Y, Z), got shape {list(volume.shape)}")
    plain = volume.as_subclass(Tensor)[0].to("cpu", torch.float32).clamp(min=0.0)
    slices = plain[None] if plain.ndim == 2 else plain.permute(2, 0, 1)
    busy = slices.amax(dim=(1, 2)) > 0
    return slices[busy] if busy.any() else slices


def _padded(slices: Tensor, size: int) -> Tensor:
    """Zeros on all sides up to `size`, as SpatialPad does."""
    missing = [max(0, size - n) for n in slices.shape[-2:]]
    left, top = missing[1] // 2, missing[0] // 2
    return torch.nn.functional.pad(slices, (left, missing[1] - left, top, missing[0] - top)).contiguous()
