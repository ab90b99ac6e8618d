"""Several processes on one folder: which volumes each processes, and one table of all results at the end.

Torchrun, or a wrapper script for any other launcher, gives each process its number and their count (`RANK` and
`WORLD_SIZE`). Processes need not communicate: they only share the folders.
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
from bundle.cli.table import Row
from bundle.data.sidecar import write_json


@dataclass(frozen=True)
class Share:
    """The part of a run that this process does.

    Attributes:
        rank, count: its number, from 0, and the number of processes.
        run: digest of the work of the run, the same in all its processes; empty before the work is divided.
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
        """Suffix that distinguishes this process's files from those of the others."""
        return f"{self.rank}-of-{self.count}"

    def own_file(self, path: Path) -> Path:
        """`log.jsonl` becomes `log.0-of-2.jsonl`; a single process keeps the path."""
        return path if self.alone else path.with_name(f"{path.stem}.{self.mark}{path.suffix}")

    def own_lock(self, lock: Path) -> Path:
        """The lock file of this process, next to the folder's."""
        return lock.with_suffix(f".{self.run}.{self.mark}.lock")

    def of_run(self, jobs: Sequence[Job], *decides: object) -> tuple[Share, list[Job]]:
        """This share with the name of its run, and its jobs: the same division in every process, balanced by bytes.

        Bytes rather than voxels: no header has to be read, and empty background, which costs little time, compresses
        well. The launcher's name for the run is not used: the processes may be separate jobs.

        Args:
            jobs: of all processes.
            decides: everything else that affects the results; their `repr` goes into the name.
        """
        if self.alone:
            return self, list(jobs)
        sizes = [_size(job) for job in jobs]
        pieces = [(job.name, size) for job, size in zip(jobs, sizes, strict=True)]
        name = hashlib.sha256(repr((self.count, pieces, decides)).encode()).hexdigest()[:16]
        taken = divide(sizes, self.count)
        return replace(self, run=name), [job for job, rank in zip(jobs, taken, strict=True) if rank == self.rank]


def divide(sizes: Sequence[int], count: int) -> list[int]:
    """The share (of `count`) for each piece: in order of decreasing size, each goes to the lightest share."""
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
        with suppress(OSError):  # reading it will fail and report the error
            total += path.stat().st_size
    return total


class Parts:
    """What each process did, in one hidden file per process in the output folder, until the last one makes the table.

    Every process has its own file, written atomically, so this works on network file systems. The file carries the name
    of the run, so that leftovers of another run are not mistaken for its own. All methods are called while the folder's
    lock is held.

    Args:
        lock: of the folder; the files are named after it.
        share: of this process.
    """

    def __init__(self, lock: Path, share: Share) -> None:
        self._lock, self._share = lock, share

    def _path(self, rank: int) -> Path:
        return replace(self._share, rank=rank).own_lock(self._lock).with_suffix(".json")

    def add(self, rows: Sequence[Row]) -> None:
        """Save what this process did. Raises OSError if the file cannot be written."""
        write_json(self._path(self._share.rank), {"rows": [asdict(row) for row in rows]})

    def missing(self) -> int:
        """How many processes have not saved their part yet."""
        # List the folder: network file systems cache for a while that a single file did not exist.
        there = set(os.listdir(self._lock.parent))
        return sum(self._path(rank).name not in there for rank in range(self._share.count))

    def merge(self, names: Sequence[str]) -> list[Row]:
        """A row for every name, in order, once no process is missing."""
        contents = [json.loads(self._path(rank).read_bytes()) for rank in range(self._share.count)]
        done = {row["volume"]: Row(**row) for content in contents for row in content["rows"]}
        return [done[name] for name in names]

    def remove(self) -> None:
        """Remove the files of all processes, including earlier runs, once the table is written."""
        for path in self._lock.parent.glob(self._lock.with_suffix(".*-of-*.json").name):
            path.unlink(missing_ok=True)
