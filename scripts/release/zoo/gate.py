"""Run all checks and report them, one line each."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from release.zoo import built, documents, files, metadata, requirements, runs
from release.zoo.folder import Check, Folder, Missing

READING = (*files.CHECKS, *metadata.CHECKS, *requirements.CHECKS, *documents.CHECKS)
"""Checks that only read files and take seconds."""
BUILDING = built.CHECKS
"""Checks that build networks in this process, with the imported package `bundle`."""
RUNNING = runs.CHECKS
"""Checks that start their own processes."""


@dataclass(frozen=True)
class Verdict:
    """Result of a check: PASS, FAIL or SKIP, with the reasons."""

    name: str
    status: str
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n      ".join([f"{self.status}  {self.name}", *self.reasons])


def judge(check: Check, folder: Folder) -> Verdict:
    """Run one check; any exception becomes a verdict."""
    try:
        problems = tuple(check.problems(folder))
    except Missing as missing:
        return Verdict(check.name, "SKIP", (str(missing),))
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        return Verdict(check.name, "FAIL", (f"{type(error).__name__}: {text[:500]}",))
    return Verdict(check.name, "FAIL" if problems else "PASS", problems)


def verdicts(
    folder: Folder,
    here: Sequence[Check] = (*READING, *BUILDING),
    elsewhere: Sequence[Check] = RUNNING,
    processes: int = 1,
) -> Iterator[Verdict]:
    """Verdicts in the order of the checks; those of `elsewhere` run concurrently, `processes` at a time."""
    folder.volumes  # noqa: B018 - written before threads would do it at the same time
    with ThreadPoolExecutor(processes) as pool:
        running = [pool.submit(judge, check, folder) for check in elsewhere]
        for check in here:
            with _quiet():
                verdict = judge(check, folder)
            yield verdict
        yield from (run.result() for run in running)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide everything except verdicts: MONAI's tools log and print their own success messages."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
