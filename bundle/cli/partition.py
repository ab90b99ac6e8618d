"""Several processes on one folder: which volumes each takes, and one table of all in the end.

Torchrun, or a script around any other launcher, tells a process its number and how many there are (`RANK` and
`WORLD_SIZE`). Processes need not see each other: they share the folders alone.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bundle.cli.errors import RunError
from bundle.cli.plan import Job
from bundle.cli.record import write_json
from bundle.cli.table import Row


@dataclass(frozen=True)
class Share:
    """The part of a run that this process does.

    Attributes:
        rank, count: its number, from 0, and the number of processes.
        run: digest of what the run is to do, the same in all its processes; empty before they divide the work.
    """

    rank: int = 0
    count: int = 1
    run: str = ""

    @staticmethod
    def of_environment() -> Share:
        """Raises RunError if the variables make no sense."""
        given = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")}
        if given["WORLD_SIZE"] in ("", "1"):
            return Share()
        try:
            rank, count = int(given["RANK"]), int(given["WORLD_SIZE"])
        except ValueError:
            rank, count = -1, 0
        if not 0 <= rank < count:
            shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
            raise RunError(f"{shown}: RANK must be a number from 0 to WORLD_SIZE - 1; unset both for one process")
        return Share(rank, count)

    @property
    def alone(self) -> bool:
        return self.count == 1

    @property
    def mark(self) -> str:
        """What tells files of this process from those of the others."""
        return f"{self.rank}-of-{self.count}"

    def own_file(self, path: Path) -> Path:
        """`log.jsonl` as `log.0-of-2.jsonl`; of a process that is alone the path itself."""
        return path if self.alone else path.with_name(f"{path.stem}.{self.mark}{path.suffix}")

    def own_lock(self, lock: Path) -> Path:
        """The lock file of this process, beside that of the folder."""
        return lock.with_suffix(f".{self.run}.{self.mark}.lock")

    def of_run(self, jobs: Sequence[Job], *decides: object) -> tuple[Share, list[Job]]:
        """This share with the name of its run, and its jobs: the same division in every process, balanced by bytes.

        Their bytes and not their voxels: no header has to be read, and the empty part of an image, which costs little,
        is small when compressed. What a launcher calls the run does not count: its processes may be jobs of their own.

        Args:
            jobs: of all processes.
            decides: what else decides about the results; their `repr` goes into the name.
        """
        if self.alone:
            return self, list(jobs)
        sizes = [_size(job) for job in jobs]
        pieces = [(job.name, size) for job, size in zip(jobs, sizes, strict=True)]
        name = hashlib.sha256(repr((self.count, pieces, decides)).encode()).hexdigest()[:16]
        taken = divide(sizes, self.count)
        return replace(self, run=name), [job for job, rank in zip(jobs, taken, strict=True) if rank == self.rank]


def divide(sizes: Sequence[int], count: int) -> list[int]:
    """Which of `count` shares takes each piece: from the largest piece down, always the lightest share."""
    loads = [(0, share) for share in range(count)]
    taken = [0] * len(sizes)
    for piece in sorted(range(len(sizes)), key=lambda number: (-sizes[number], number)):
        load, share = loads[0]
        taken[piece] = share
        heapq.heapreplace(loads, (load + max(sizes[piece], 1), share))
    return taken


def _size(job: Job) -> int:
    total = 0
    for path in job.files:
        with suppress(OSError):  # it will fail when it is read, and say so
            total += path.stat().st_size
    return total


class Parts:
    """What each process did, in a hidden file of the output folder for each, until the last one makes the table.

    Every process has a file of its own, which appears whole or not at all, so that a network file system will do. It
    bears the name of the run: what another run left there is not taken for its own. All methods are called while the
    lock of the folder is held.

    Args:
        lock: of the folder; the files are named after it.
        share: of this process.
    """

    def __init__(self, lock: Path, share: Share) -> None:
        self._lock, self._share = lock, share

    def _path(self, rank: int) -> Path:
        return replace(self._share, rank=rank).own_lock(self._lock).with_suffix(".json")

    def add(self, rows: Sequence[Row]) -> None:
        """Write down what this process did. Raises OSError if the disk refuses."""
        write_json(self._path(self._share.rank), {"rows": [asdict(row) for row in rows]})

    def missing(self) -> int:
        """How many processes have not written down what they did."""
        # A listing: network file systems remember for a while that a single file was not there.
        there = set(os.listdir(self._lock.parent))
        return sum(self._path(rank).name not in there for rank in range(self._share.count))

    def merge(self, names: Sequence[str]) -> list[Row]:
        """A row for every name, in their order, once no process is missing."""
        contents = [json.loads(self._path(rank).read_bytes()) for rank in range(self._share.count)]
        done = {row["volume"]: Row(**row) for content in contents for row in content["rows"]}
        return [done[name] for name in names]

    def remove(self) -> None:
        """Remove the files of all processes, of earlier runs too: the table is there."""
        for path in self._lock.parent.glob(self._lock.with_suffix(".*-of-*.json").name):
            path.unlink(missing_ok=True)
