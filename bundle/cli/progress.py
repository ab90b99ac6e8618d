"""Two bars on a terminal: all volumes, with the time left, and the slices of the one in hand."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from tqdm import tqdm

_ALL = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"
_ONE = "{desc}{n:.0f} of {total:.0f} slices|{bar}| {remaining} left"


class Progress:
    """Progress of a run.

    Args:
        sizes: work of each volume, in any unit.
        network: its calls are counted in slices.
        shown: on stderr, which should be a terminal.
    """

    def __init__(self, sizes: Sequence[int], network: nn.Module, shown: bool) -> None:
        self._sizes, self._network, self._number, self._done = sizes, network, 0, 0
        self._off = not shown
        self._all = tqdm(total=sum(sizes) or 1, bar_format=_ALL, disable=self._off, file=sys.stderr, position=0)
        self._describe()

    def close(self) -> None:
        self._all.close()

    def next_volume(self, made: bool) -> None:
        """One volume less to do; one that was not made is taken off the total, so that the time left stays true."""
        size = self._sizes[self._number]
        self._number += 1
        if made:
            self._done += size
        else:
            self._all.total -= size
        self._all.update(self._done - self._all.n)
        self._describe()

    @contextmanager
    def slices(self, total: int) -> Iterator[None]:
        """Count the slices that go through the network inside the block."""
        share = self._sizes[self._number] / total
        with tqdm(total=total, bar_format=_ONE, disable=self._off, file=sys.stderr, position=1, leave=False) as bar:

            def count(module: nn.Module, inputs: tuple, output: object) -> None:
                bar.update(len(inputs[0]))
                self._all.update(len(inputs[0]) * share)

            handle = self._network.register_forward_hook(count)
            try:
                yield
            finally:
                handle.remove()

    def _describe(self) -> None:
        self._all.set_description_str(f"volume {min(self._number + 1, len(self._sizes))} of {len(self._sizes)}")
