"""Which volumes and patches a process draws: by position in the epoch, not by process.

The patches of an update depend only on the seed, the epoch and their position in it. One process with a batch of 8 and
two processes with 4 each therefore see the same patches in the same update, with any number of loader workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from monai.data import Dataset
from torch.utils.data import Sampler


class PatchSampler(Sampler[tuple[int, int]]):
    """Draw volumes with replacement, each with the seed for its patches: `(index, seed)`.

    All processes draw the same list for an epoch; the process of rank r takes entries r, r + n, r + 2n... of it.

    Args:
        weights: of the volumes, in any positive scale.
        num_samples: volumes per epoch and process.
        seed: of the run.
    """

    def __init__(self, weights: Sequence[float], num_samples: int, seed: int = 0) -> None:
        if num_samples < 1:
            raise ValueError(f"an epoch needs at least one volume, got num_samples = {num_samples}")
        self.weights = torch.as_tensor(weights, dtype=torch.double)
        self.num_samples, self.seed, self.epoch = num_samples, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; by default it is the one after the last."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[tuple[int, int]]:
        total = self.num_samples * idist.get_world_size()
        epoch, self.epoch = self.epoch, self.epoch + 1
        generator = torch.Generator().manual_seed(_seed(self.seed, epoch))
        volumes = torch.multinomial(self.weights, total, replacement=True, generator=generator).tolist()
        for place in range(idist.get_rank(), total, idist.get_world_size()):
            yield volumes[place], _seed(self.seed, epoch, place)


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class SeededDataset(Dataset):
    """A dataset whose random transforms are seeded per item by the sampler.

    Args:
        dataset: MONAI dataset with its transform; for a cached dataset, the random part runs after seeding.
    """

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset.data, dataset.transform)
        self.dataset = dataset

    def __getitem__(self, index: Any) -> Any:
        """Item for `(index, seed)` from :class:`PatchSampler`."""
        number, seed = index
        self.transform.set_random_state(seed)
        return self.dataset[number]


def own_share(dataset: Sized, fewer: str = "error") -> range:
    """The items that this process evaluates: contiguous blocks, so that gathered results keep their order.

    Args:
        dataset: anything with a length.
        fewer: what to do if there are fewer items than processes, so that some would have none and the others would
            wait forever: raise an "error", or give "all" items to every process, which leaves means unchanged.

    Raises:
        SystemExit: fewer items than processes.
    """
    count, processes = len(dataset), idist.get_world_size()
    if count < processes:
        if fewer == "all":
            return range(count)
        raise SystemExit(f"{count} volumes for {processes} processes: start at most {count}")
    first, last = (count * (idist.get_rank() + more) // processes for more in (0, 1))
    return range(first, last)
