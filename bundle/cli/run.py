"""A run: process the volumes one by one, report those that fail, and continue."""

from __future__ import annotations

import logging
import math
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bundle.cli.errors import RunError
from bundle.cli.labels import LabelJob
from bundle.cli.lock import at_work, hold, locked
from bundle.cli.log import logging_to
from bundle.cli.partition import Parts, Share
from bundle.cli.plan import Job, Plan, find_jobs
from bundle.cli.progress import Progress
from bundle.cli.record import why_redo
from bundle.cli.report import Report
from bundle.cli.table import Row, write_results
from bundle.data import VolumeError, read_header
from bundle.data.atomic import remove_partial_files
from bundle.data.dicom.series import DicomSeries
from bundle.data.errors import root_cause
from bundle.data.meaning import check_nifti
from bundle.data.paths import sha256_of
from bundle.data.sidecar import content_digest, read_record
from bundle.inference.shipped import factor_for, shipped_scales, shipped_weights, tool_version
from bundle.options import CONFIG_OPTIONS, CommandOptions, pair_of

if TYPE_CHECKING:
    from bundle.inference.model import Model
    from bundle.inference.walker import SliceWalker

TABLE, LOCK = "results.csv", ".iconet-sr.lock"

_log = logging.getLogger("iconet")


def run(options: CommandOptions) -> int:
    """Run the command with these options and return the exit status: 0 if every volume was done, 1 if any failed.

    If several processes share the run (:class:`bundle.cli.partition.Share`), the last one to finish returns the status
    for all: a launcher would stop the others if one of them ended with a non-zero status while they work.

    Raises:
        RunError: a usage error; nothing was done.
    """
    share = Share.of_environment()
    if options.report and not share.alone:
        raise RunError("--report: run it in one process afterwards; finished volumes are skipped, and drawn")
    prefix = "" if share.alone else f"[{share.mark}] "
    with logging_to(options.log_json and share.own_file(options.log_json), prefix, options.quiet):
        plan = find_jobs(options)
        digests = {scale: _weights_digest(options, scale) for scale in _scales(options)}
        decides = options.settings(), options.to, options.labels, options.overwrite, *digests.values(), tool_version()
        share, own = share.of_run(plan.jobs, *decides)
        count = f"{len(own)}" if share.alone else f"{len(own)} of {len(plan.jobs)}"
        to = f"{options.scale}x" if options.voxel_size is None else f"to {options.voxel_size} mm"
        start = f"volumes: {count}, {to} with {options.network_name}"
        if labels := sum(len(job.labels) for job in own):
            start += f"; label maps: {labels}"
        _say("start", start, volumes=len(own), weights_sha256=", ".join(digests.values()))
        work = _Run(replace(plan, jobs=own), options, digests, share)
        if options.dry_run:
            return work.dry_run()
        work.prepare()
        if plan.folder is None:
            remove_partial_files(plan.jobs[0].target.parent, below=False)
            return work.do()
        with locked(plan.folder / LOCK, share) as held:
            return work.do() if share.alone else work.do_share(plan, held)


class _Run:
    """The jobs of a plan that belong to this process."""

    def __init__(self, plan: Plan, options: CommandOptions, digests: dict[int, str], share: Share) -> None:
        self.plan, self.options, self.digests, self.share = plan, options, digests, share
        self.models: dict[int, Model] = {}
        self.scales: dict[Job, int] = {}
        self.rows: list[Row] = []
        self.undrawn = 0
        self.report: Report | None = None

    def model(self, scale: int) -> Model:
        """The network, loaded when the first volume needs it: PyTorch takes a second.

        Raises:
            RunError: unknown network, no or bad weights, no such device.
        """
        if scale not in self.models:
            import torch

            model = _load(self.options, scale)
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
            if not self.models:
                _say("device", f"running on {next(model.network.parameters()).device}")
            self.models[scale] = model
        return self.models[scale]

    def scale(self, job: Job) -> int:
        """The factor for a volume: the only one, or by its header the next higher one for the voxel size asked for.

        Raises:
            VolumeError: the header is unusable.
        """
        size = None if self.options.voxel_size is None else pair_of(self.options.voxel_size)
        if size is None or len(self.digests) == 1:
            return next(iter(self.digests))
        if job not in self.scales:
            from bundle.cli.read import in_plane

            _, spacing = in_plane(job, self.options)
            wanted = size[::-1] if isinstance(job.source, DicomSeries) else size
            self.scales[job] = factor_for(wanted, spacing, list(self.digests))
        return self.scales[job]

    @cached_property
    def walker(self) -> SliceWalker:
        from bundle.inference.walker import SliceWalker

        return SliceWalker(self.options.slice_batch, self.options.data_consistency, quality=self.options.quality)

    def prepare(self) -> None:
        """Load the network before anything is written, if it will be needed.

        Raises:
            RunError: see :attr:`model`.
        """
        if self.options.report:
            self.report = Report(self.plan, self.options, self.model(min(self.digests)))
        if self.options.overwrite or any(not (job.target.exists() and job.sidecar.exists()) for job in self.plan.jobs):
            _ = self.model(min(self.digests))

    def dry_run(self) -> int:
        """Report what would be done, from headers and digests alone."""
        failures = 0
        for job in self.plan.jobs:
            try:
                reason = self._why(job, self._provenance(job))
                shape = "x".join(map(str, self._checked_shape(job)))
                _say("plan", f"{job.name} ({shape}) -> {job.target}: {reason or 'finished, would be skipped'}")
                for label in job.labels:
                    _say("plan", f"{label.name} (labels) -> {label.target}: after {job.name}")
            except Exception as error:
                failures += 1
                _failed(job, error, 0.0)
        _say("end", f"{failures} of {len(self.plan.jobs)} volumes would fail; nothing was written")
        return int(failures > 0)

    def _checked_shape(self, job: Job) -> tuple[int, ...]:
        """As `_shape`, of a volume whose header passes the checks of a run; its warnings are logged."""
        shape: tuple[int, ...]
        if isinstance(job.source, DicomSeries):
            from bundle.cli.read import check_series

            stack = check_series(job, job.source, self.options)
            image, warnings = stack.frames[0].image, list(stack.warnings)
            shape = image.columns, image.rows, len(stack.frames)
        else:
            header = read_header(job.source)
            shape = tuple(int(n) for n in header.get_data_shape())
            warnings = check_nifti(job.source, header, self.options.force)
        for warning in warnings:
            _say("warning", f"{job.name}: {warning}", logging.WARNING, volume=job.name)
        if self.options.matrix not in CONFIG_OPTIONS["matrix"][1].words:
            from bundle.cli.read import in_plane
            from bundle.inference.matrix import Wanted, given_matrix

            wanted = Wanted(self.options.matrix, swapped=isinstance(job.source, DicomSeries))
            given_matrix(wanted, in_plane(job, self.options)[0], job.name)
        return shape

    def do(self) -> int:
        """Process the volumes; the table is rewritten after each one, so that a killed run leaves a complete table."""
        try:
            for row in self._volumes():
                if row.status != "skipped":
                    self._write_table()
            self._write_table()
            if self.plan.folder is not None:
                Parts(self.plan.folder / LOCK, self.share).remove()
            if self.report is not None:
                _say("report", f"report: {self.report.write(self.rows)}")
        except OSError as error:
            return _stopped(error)
        return self._summary()

    def do_share(self, whole: Plan, held: ExitStack) -> int:
        """Process this share of the plan `whole`; the last process to finish writes the table for all.

        `held` are the locks of this process. The table is written as soon as every process has reported its part, even
        if one of them is running again: it may be stopped.
        """
        assert whole.folder is not None
        lock = whole.folder / LOCK
        parts = Parts(lock, self.share)
        try:
            for _ in self._volumes():
                pass
            with hold(lock):
                held.close()
                parts.add(self.rows)
                missing, others = parts.missing(), len(at_work(lock))
                counts = ", ".join(f"{count} {status}" for status, count in self._counts().items())
                if not missing:
                    self.rows = parts.merge(whole.names)
                    self._write_table()
                if missing or others:
                    _say("part", f"{counts}; still running: {max(missing, others)} of {self.share.count} processes")
                    return 0
                parts.remove()
        except OSError as error:
            return _stopped(error)
        return self._summary()

    def _volumes(self) -> Iterator[Row]:
        """Process the volumes one by one; raises OSError if a file that belongs to no volume cannot be written."""
        jobs = self.plan.jobs
        terminal = sys.stderr.isatty()
        shown = terminal and self.share.rank == 0 and not self.options.quiet
        # Only the bars need sizes: without them the headers need not be read twice.
        sizes = [_size(job) for job in jobs] if shown else [0] * len(jobs)
        bar = Progress(sizes, shown, told=not terminal)
        try:
            if self.plan.bids and self.plan.folder:
                self.plan.bids.describe(self.plan.folder)
            for job in jobs:
                self.rows.append(self._one(job, bar))
                bar.next_volume(made=self.rows[-1].status == "done")
                yield (image := self.rows[-1])
                for label in job.labels:
                    self.rows.append(self._label(label, job, image.status))
                    yield self.rows[-1]
        finally:
            bar.close()

    def _one(self, job: Job, bar: Progress) -> Row:
        started = time.monotonic()
        try:
            provenance = self._provenance(job)
            reason = self._why(job, provenance)
            if reason is None:
                record = read_record(job.sidecar)
                assert record is not None  # why_redo has read it
                row = Row.of(job, "skipped", 0.0, record)
                _say("skipped", f"{job.name}: finished before, skipped", volume=job.name)
            else:
                _say("volume", f"{job.name}: {reason}", volume=job.name)
                record = self._process(job, provenance, bar)
                row = Row.of(job, "done", time.monotonic() - started, record)
                for warning in record["SuperResolution"]["Warnings"]:
                    _say("warning", f"{job.name}: {warning}", logging.WARNING, volume=job.name)
                facts = record["SuperResolution"]
                from_ = f" (acquired {row.acquired_matrix})" if facts["NetworkMatrix"] != facts["StoredMatrix"] else ""
                text = f"{job.name}: {row.shape}{from_} -> {row.result_shape} in {row.seconds} s, {job.target}"
                _say("done", text, volume=job.name)
        except RunError:  # there is no network to run: not an error of this volume
            raise
        except Exception as error:
            return _failed(job, error, time.monotonic() - started)
        if self.report is not None:
            self._draw(self.report, job, row, record)
        return row

    def _label(self, label: LabelJob, image: Job, status: str) -> Row:
        """Carry a label map to the grid of the result of its image, which has this status."""
        from bundle.cli import carry

        started = time.monotonic()
        try:
            if status == "failed":
                raise VolumeError(f"{label.name}: a label map whose image failed ({image.name})")
            made_from = carry.provenance(label, image.target)
            if (reason := self._why(label, made_from)) is None:
                _say("skipped", f"{label.name}: finished before, skipped", volume=label.name)
                record = read_record(label.sidecar)
                assert record is not None  # why_redo has read it
                return Row.of(label, "skipped", 0.0, record)
            source = label.name if self.plan.bids is None else self.plan.bids.source(label.source)
            row = carry.carry(label, image.target, made_from, source, self.options.nonfinite)
        except Exception as error:
            return _failed(label, error, time.monotonic() - started)
        row = replace(row, seconds=f"{time.monotonic() - started:.2f}")
        for warning in filter(None, row.warnings.split("; ")):
            _say("warning", f"{label.name}: {warning}", logging.WARNING, volume=label.name)
        text = f"{label.name}: {reason}; labels {row.shape} -> {row.result_shape}, {label.target}"
        _say("done", text, volume=label.name)
        return row

    def _draw(self, report: Report, job: Job, row: Row, record: dict[str, Any]) -> None:
        try:
            report.add(job, row, record)
        except Exception as error:  # the result exists all the same
            self.undrawn += 1
            _say("report", f"{job.name}: not in the report: {root_cause(error)}", logging.ERROR, volume=job.name)

    def _process(self, job: Job, provenance: dict[str, Any], bar: Progress) -> dict[str, Any]:
        from bundle.cli.one_volume import Task, process
        from bundle.inference.memory import batch_that_fits

        # Before the voxels are read: the result is larger than they are.
        scale = self.scale(job)
        batch_that_fits(math.prod(_shape(job)[:3]) * scale**2)

        return process(Task(job, self.options, self.model(scale), self.walker, self.plan.bids, provenance), bar)

    def _provenance(self, job: Job) -> dict[str, Any]:
        return {
            "InputSha256": content_digest(job.files),
            "WeightsSha256": self.digests[self.scale(job)],
            "Settings": {**self.options.settings(), "Format": job.to},
            "Version": tool_version(),
        }

    def _why(self, job: Job | LabelJob, provenance: dict[str, Any]) -> str | None:
        if self.options.overwrite:
            return "overwrite"
        return why_redo(job.target, job.sidecar, provenance)

    def _write_table(self) -> None:
        if self.plan.folder is not None:
            write_results(self.plan.folder / TABLE, self.rows)

    def _counts(self) -> dict[str, int]:
        return {status: sum(row.status == status for row in self.rows) for status in ("done", "skipped", "failed")}

    def _summary(self) -> int:
        counts = self._counts()
        text = ", ".join(f"{count} {status}" for status, count in counts.items())
        where = f"; see {self.plan.folder / TABLE}" if self.plan.folder else ""
        _say("end", f"{text}{where}", **counts)
        return int(counts["failed"] + self.undrawn > 0)


def _scales(options: CommandOptions) -> list[int]:
    """The factors that the volumes of a run may need: a given voxel size chooses among those with shipped weights."""
    several = options.voxel_size is not None and options.weights is None
    return (shipped_scales(options.network_name) if several else []) or [options.scale]


def _weights_digest(options: CommandOptions, scale: int) -> str:
    """SHA-256 of the weights.

    Raises:
        RunError: there are none.
    """
    path = options.weights or shipped_weights(options.network_name, scale)
    return sha256_of(path) if path.is_file() else _load(options, scale).digest  # its error says why there are none


def _load(options: CommandOptions, scale: int) -> Model:
    from bundle.inference.model import ModelError, load_model

    try:
        return load_model(options.network_name, scale, options.weights, options.device)
    except ModelError as error:
        raise RunError(str(error)) from error


def _say(event: str, text: str, level: int = logging.INFO, **fields: object) -> None:
    _log.log(level, "%s", text, extra={"fields": {"event": event, **fields}})


def _stopped(error: OSError) -> int:
    """Report an error in a file that belongs to no volume: the table, the report, the dataset description."""
    _say("failed", f"{error.filename}: {error.strerror or error}; the run stops", logging.ERROR)
    return 1


def _failed(job: Job | LabelJob, error: Exception, seconds: float) -> Row:
    reason = root_cause(error)
    line = reason if job.name in reason or str(job.files[0]) in reason else f"{job.name}: {reason}"
    details = {} if isinstance(error, VolumeError) else {"traceback": traceback.format_exc()}
    _say("failed", line, logging.ERROR, volume=job.name, **details)
    return Row(job.name, "failed", seconds=f"{seconds:.2f}", error=line)


def _shape(job: Job) -> tuple[int, ...]:
    """Matrix of a volume, from its header alone.

    Raises:
        VolumeError: the header is unusable.
    """
    if isinstance(job.source, DicomSeries):
        if job.source.problem:
            raise VolumeError(job.source.problem)
        image = job.source.frames[0].image
        return image.columns, image.rows, len(job.source.frames)
    return tuple(int(n) for n in read_header(job.source).get_data_shape())


def _size(job: Job) -> int:
    try:
        return math.prod(_shape(job))
    except VolumeError:
        return 0
