"""Several processes on one folder: which volumes each takes, and one table of all in the end.

Torchrun, or a script around any other launcher, tells a process its number and how many there are (`RANK` and
`WORLD_SIZE`). Processes need not see each other: they share the folders alone.
"""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bundle.cli.jobs import Job
from bundle.cli.options import RunError
from bundle.cli.results import Row
from bundle.cli.sidecar import write_json

_RUN = (
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT"),
    *("SLURM_ARRAY_JOB_ID", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"),
)
_RUN_OF_ARRAY = ("SLURM_ARRAY_JOB_ID",)


@dataclass(frozen=True)
class Share:
    """The part of a run that this process does.

    Attributes:
        rank, count: its number, from 0, and the number of processes.
        run: what the launcher calls the run, the same in all its processes; empty if it gives it no name.
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
        names = _RUN_OF_ARRAY if "SLURM_ARRAY_JOB_ID" in os.environ else _RUN
        return Share(rank, count, ":".join(os.environ.get(name, "") for name in names).strip(":"))

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

    def of(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs of this process: the same division in every process, balanced by the bytes of the inputs.

        Their bytes and not their voxels: no header has to be read, and the empty part of an image, which costs little,
        is small when compressed.
        """
        if self.alone:
            return list(jobs)
        taken = divide([_size(job) for job in jobs], self.count)
        return [job for job, rank in zip(jobs, taken, strict=True) if rank == self.rank]


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

    Every process has a file of its own, which appears whole or not at all, so that a network file system will do. All
    methods are called while the lock of the folder is held.

    Args:
        lock: of the folder; the files are named after it.
        share: of this process.
    """

    def __init__(self, lock: Path, share: Share) -> None:
        self._lock, self._share = lock, share

    def _path(self, rank: int) -> Path:
        return self._lock.with_suffix(f".{rank}-of-{self._share.count}.json")

    def forget(self) -> None:
        """Remove what this process left there in an earlier run."""
        self._path(self._share.rank).unlink(missing_ok=True)

    def add(self, rows: Sequence[Row]) -> None:
        """Write down what this process did. Raises OSError if the disk refuses."""
        content = {"run": self._share.run, "rows": [asdict(row) for row in rows]}
        write_json(self._path(self._share.rank), content)

    def missing(self) -> list[int]:
        """The processes that are not done."""
        return [rank for rank, rows in enumerate(self._rows()) if rows is None]

    def merge(self, names: Sequence[str]) -> list[Row]:
        """A row for every name, in their order, once no process is missing."""
        done = {row.volume: row for rows in self._rows() for row in rows or ()}
        lost = "no process took it: the input changed when the run began; run the same command again"
        return [done.get(name) or Row(name, "failed", error=f"{name}: {lost}") for name in names]

    def remove(self) -> None:
        """Remove the files of all processes, of earlier runs too: the table is there."""
        for path in self._lock.parent.glob(self._lock.with_suffix(".*-of-*.json").name):
            path.unlink(missing_ok=True)

    def _rows(self) -> list[list[Row] | None]:
        """Of every process, None if it has written nothing in this run."""
        # A listing: network file systems remember for a while that a single file was not there.
        there = set(os.listdir(self._lock.parent))
        found: list[list[Row] | None] = []
        for rank in range(self._share.count):
            path = self._path(rank)
            content: dict[str, Any] = json.loads(path.read_bytes()) if path.name in there else {}
            found.append([Row(**row) for row in content["rows"]] if content.get("run") == self._share.run else None)
        return found
