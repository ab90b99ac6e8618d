"""Commands in processes of their own, several at once, each until it ends or its time is over."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

GRACE = 10.0
"""Seconds that a command has to end when asked to, before it is killed."""
POLL = 0.2


@dataclass(frozen=True)
class Job:
    """A command with its limits.

    Attributes:
        name: of its own.
        command: the words.
        log: file that its output is added to.
        seconds: the most that it may take.
        fraction: the most of what is left of all jobs' time when it starts.
    """

    name: str
    command: Sequence[str]
    log: Path
    seconds: float = float("inf")
    fraction: float = 1.0


@dataclass(frozen=True)
class Ended:
    """A job that is over: ``done``, ``failed`` or ``stopped`` by the clock, after so many seconds."""

    job: Job
    state: str
    seconds: float

    @property
    def why(self) -> str:
        """The last line that it wrote, if it failed."""
        if self.state != "failed":
            return ""
        lines = [line.strip() for line in self.job.log.read_text(errors="replace").splitlines() if line.strip()]
        return (lines[-1] if lines else "no output")[:300]


@dataclass(frozen=True)
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    since: float
    until: float

    def ended(self) -> Ended | None:
        """How it ended, once it has or its time is over."""
        status, now = self.process.poll(), time.monotonic()
        if status is None and now < self.until:
            return None
        seconds = now - self.since
        self.stop()
        state = "stopped" if status is None else "failed" if status else "done"
        return Ended(self.job, state, seconds)

    def stop(self) -> None:
        """End the process if it still runs."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()


def run_jobs(waiting: deque[Job], at_once: int, deadline: float, root: Path) -> Iterator[Ended]:
    """Run commands in order, a number of them at once, and yield each when it is over.

    A job that the deadline leaves no time to start is not yielded. A caller that goes away, and any exception, ends
    the processes.

    Args:
        waiting: in order; taken from it when they start, and the caller may add to it meanwhile.
        at_once: how many run at the same time.
        deadline: of all, on the clock of `time.monotonic`.
        root: of the bundle, the folder in which they run.
    """
    running: list[_Running] = []
    try:
        while time.monotonic() < deadline and (waiting or running):
            while waiting and len(running) < at_once:
                running.append(_start(waiting.popleft(), deadline, root))
            time.sleep(POLL)
            for one in list(running):
                if (ended := one.ended()) is not None:
                    running.remove(one)
                    yield ended
        for one in list(running):
            if (ended := one.ended()) is not None:
                running.remove(one)
                yield ended
    finally:
        for one in running:
            one.stop()


def _start(job: Job, deadline: float, root: Path) -> _Running:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    log = open(job.log, "ab")  # noqa: SIM115 (closed with the process)
    paths = [str(root), str(root / "scripts"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment.pop("TRITON_INTERPRET", None)  # its interpreter on a GPU's machine would only be slow
    process = subprocess.Popen(job.command, cwd=root, env=environment, stdout=log, stderr=subprocess.STDOUT)
    now = time.monotonic()
    return _Running(job, process, log, now, now + min(job.seconds, job.fraction * (deadline - now)))


def python(*words: object) -> list[str]:
    """A command of this Python."""
    return [sys.executable, "-W", "ignore", *map(str, words)]
