"""Process one volume: read, super-resolve, write, record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bundle.cli.bids import Bids
from bundle.cli.plan import Job
from bundle.cli.progress import Progress
from bundle.cli.read import Source, open_source
from bundle.cli.record import result_files
from bundle.cli.write import write_dicom, write_nifti
from bundle.data.errors import disk_errors
from bundle.data.sidecar import content_digest, write_json
from bundle.inference.matrix import MatrixPlan, Wanted, plan_matrix
from bundle.inference.model import Model
from bundle.inference.record import describe, sidecar_content
from bundle.inference.volume import SuperResolved, doubts, super_resolve
from bundle.inference.walker import SliceWalker
from bundle.options import CommandOptions
from bundle.physics.slices import decide_slice_axis


@dataclass(frozen=True, eq=False)
class Task:
    """A job with everything needed to process it. `provenance`: what its record must say about input and settings."""

    job: Job
    options: CommandOptions
    model: Model
    walker: SliceWalker
    bids: Bids | None
    provenance: dict[str, Any]


def process(task: Task, bar: Progress) -> dict[str, Any]:
    """Super-resolve a volume, write it with its record, and return the record.

    The record of a NIfTI result is put in place just before the result, with the digest of the complete temporary file.
    A DICOM series can only be digested in place: its record is written first without a digest, then with it. Every
    result therefore has a record, even after a kill, and the digest shows whether the result is complete.

    Raises:
        VolumeError: the volume cannot be read, or the result or its record cannot be written.
    """
    job, options = task.job, task.options
    source = open_source(job, options)
    axis, doubtful = decide_slice_axis(options.slice_axis, source.shape, source.affine, source.stated)
    frames = source.frames()
    first = next(frames)
    decisive, values = source.strongest(first)
    plan = plan_matrix(decisive, source.affine, axis, task.model.scale, values, _wanted(options, source), job.name)
    del decisive
    shape, affine = plan.grids.shape(source.shape, axis), plan.grids.affine(source.affine, len(source.shape), axis)
    outcome = _Outcome(task, source, axis, plan, shape, affine)
    outcome.warn(() if source.dicom is not None else doubtful)
    outcome.warn(doubts(first, source.affine, axis, source.values, plan, source.modality, task.model.trained_on))
    frames = _results(_from_the_first([first], frames), outcome, bar)
    del first
    try:
        if source.dicom is not None and job.to == "dicom":
            (voxels,) = frames
            outcome.record(None)
            provenance = {
                "version": task.provenance["Version"],
                "weights_sha256": task.model.digest,
                "settings": task.provenance["Settings"],
            }
            outcome.warn(write_dicom(job, source.dicom, voxels, affine, task.model.scale, axis, provenance))
            outcome.record(content_digest(result_files(job.target)))
        else:
            if task.bids is not None:
                task.bids.copy_gradients(job.files[0], job.target)
            write_nifti(job, source, frames, shape, affine, options.dtype, outcome.warn, outcome.record_file)
    except BaseException:
        outcome.retract()
        raise
    return outcome.content


def _from_the_first(first: list[np.ndarray], others: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """All frames again; the first is let go once it was taken (the list is emptied)."""
    yield first.pop()
    yield from others


def _wanted(options: CommandOptions, source: Source) -> Wanted:
    """Array axis 0 of a DICOM volume runs along its columns."""
    return Wanted(
        options.matrix, options.voxel_size, source.modality, source.stated_matrix, swapped=source.dicom is not None
    )


def _results(frames: Iterator[np.ndarray], outcome: _Outcome, bar: Progress) -> Iterator[np.ndarray]:
    """The super-resolved frames one by one; notes and results are collected in the outcome."""
    task, source = outcome.task, outcome.source
    axis, walker = outcome.slice_axis, task.walker
    slices = source.shape[axis] if len(source.shape) > 2 else 1
    with bar.slices(slices * int(np.prod(source.shape[3:])), task.job.name, task.model.network):
        for frame in frames:
            result = super_resolve(
                frame, source.affine, task.model.network, axis, walker, source.values, outcome.plan.grids
            )
            outcome.results.append(replace(result, voxels=np.empty(0)))
            outcome.warn(result.notes)
            yield result.voxels


@dataclass(eq=False)
class _Outcome:
    """What is known about a result while it is made, and its record on disk."""

    task: Task
    source: Source
    slice_axis: int
    plan: MatrixPlan
    shape: tuple[int, ...]
    affine: np.ndarray
    warnings: list[str] = field(default_factory=list)
    results: list[SuperResolved] = field(default_factory=list)
    content: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.warn(self.source.warnings)
        if self.task.bids is not None:
            slices = self.shape[self.slice_axis] if len(self.shape) > 2 else 1
            self.metadata, doubts = self.task.bids.metadata(self.task.job.files[0], self.slice_axis, slices)
            self.warn(doubts)

    def warn(self, texts: Iterable[str]) -> None:
        self.warnings += [text for text in texts if text not in self.warnings]

    def record_file(self, partial: Path) -> None:
        """Write the record for a complete temporary file that is about to be renamed."""
        self.record(content_digest([partial]))

    def record(self, digest: str | None) -> None:
        self.content = self._content(digest)
        with disk_errors(self.task.job.sidecar):
            write_json(self.task.job.sidecar, self.content)

    def retract(self) -> None:
        """Remove the record of a result that was not put in place after all.

        An older result that is still there keeps the new record: its digest does not match, so it will be redone.
        """
        if self.content and not self.task.job.target.exists():
            with suppress(OSError):
                self.task.job.sidecar.unlink()

    def _content(self, digest: str | None) -> dict[str, Any]:
        task, job = self.task, self.task.job
        source, results = self.source, self.results
        facts = describe(self.plan, source.affine, source.shape, self.shape, results, source.values, self.warnings)
        return sidecar_content(
            task.options.network_name,
            facts,
            [job.origin if task.bids is None else task.bids.source(job.files[0])],
            {**task.provenance, "OutputSha256": digest},
            self.metadata,
        )
