"""Progress of a run: two bars on a terminal, an occasional line if stderr is a file or a pipe."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from torch import nn

_log = logging.getLogger("iconet")

EVERY = 20.0
"""Seconds between the lines of a run without a terminal."""

_ALL = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"
_ONE = "{desc}{n:.0f} of {total:.0f} slices|{bar}| {remaining} left"


class Progress:
    """Progress of a run.

    Args:
        sizes: work per volume, in any unit.
        shown: as bars on stderr, which should be a terminal.
        told: as log lines instead, for volumes that take longer than `EVERY`.
    """

    def __init__(self, sizes: Sequence[int], shown: bool, told: bool = False) -> None:
        self._sizes, self._number, self._done = sizes, 0, 0
        self._off, self._told = not shown, told
        self._all = tqdm(total=sum(sizes) or 1, bar_format=_ALL, disable=self._off, file=sys.stderr, position=0)
        self._describe()

    def close(self) -> None:
        self._all.close()

    def next_volume(self, made: bool) -> None:
        """Count one volume as done; one that was not made is taken off the total, to keep the time estimate right."""
        size = self._sizes[self._number]
        self._number += 1
        if made:
            self._done += size
        else:
            self._all.total -= size
        self._all.update(self._done - self._all.n)
        self._describe()

    @contextmanager
    def slices(self, total: int, name: str, network: nn.Module) -> Iterator[None]:
        """Count the slices of a volume that pass through the network inside the block."""
        share = self._sizes[self._number] / total
        started = last = time.monotonic()
        done, lock = 0, Lock()
        with tqdm(total=total, bar_format=_ONE, disable=self._off, file=sys.stderr, position=1, leave=False) as bar:

            def count(module: nn.Module, inputs: tuple, output: object) -> None:
                nonlocal done, last
                with lock:  # slices may run side by side
                    done += len(inputs[0])
                    if self._told and (now := time.monotonic()) - last >= EVERY:
                        last = now
                        left = (now - started) / done * max(total - done, 0)
                        _log.info("%s: %d of %d slices, about %.0f s left", name, done, total, left)
                    bar.update(len(inputs[0]))
                    self._all.update(len(inputs[0]) * share)

            handle = network.register_forward_hook(count)
            try:
                yield
            finally:
                handle.remove()

    def _describe(self) -> None:
        self._all.set_description_str(f"volume {min(self._number + 1, len(self._sizes))} of {len(self._sizes)}")
