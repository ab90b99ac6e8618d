"""What there is to do: every volume of the input, and where its result goes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bundle.cli.bids import Bids
from bundle.cli.errors import RunError
from bundle.data import DatasetError, VolumeError, check_folders, output_paths
from bundle.data.dicom.find import find_series
from bundle.data.dicom.series import DicomSeries
from bundle.data.find import files_below, is_volume_name
from bundle.data.outputs import check_target
from bundle.data.paths import pair_paths
from bundle.options import CommandOptions

_log = logging.getLogger("iconet")


@dataclass(frozen=True, eq=False)
class Job:
    """One volume.

    Attributes:
        name: path below the input; of a DICOM series the path of its first file and what the series is.
        origin: what the record says of the source: the path of a file, the label of a series, whose paths may name
            a patient.
        source: NIfTI file, or DICOM series.
        target: NIfTI file, or folder of a DICOM series.
        sidecar: record beside the target.
    """

    name: str
    origin: str
    source: Path | DicomSeries
    target: Path
    sidecar: Path
    to: Literal["nifti", "dicom"]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files whose bytes make the input."""
        if isinstance(self.source, DicomSeries):
            return self.source.paths
        return tuple(dict.fromkeys(pair_paths(self.source)))


@dataclass(frozen=True, eq=False)
class Plan:
    """All jobs, sorted; the folder of the results, unless OUTPUT names one file; the BIDS dataset that INPUT is."""

    jobs: list[Job]
    folder: Path | None
    bids: Bids | None = None


def find_jobs(options: CommandOptions) -> Plan:
    """Look for volumes and decide where their results go.

    Raises:
        RunError: nothing to do, or an output that cannot be written or would harm an input.
    """
    try:
        if is_volume_name(options.output) and not options.output.is_dir():
            return Plan([_single_file(options)], None)
        if options.output.exists() and not options.output.is_dir():
            raise RunError(f"{options.output}: exists and is no folder; give a folder")
        check_folders(options.input, options.output)
        bids = Bids.at(options.input)
        volumes, series = (bids.volumes(options.output), []) if bids else _found(options)
        if not volumes and not series:
            raise RunError(f"{options.input}: no NIfTI volumes (.nii, .nii.gz, or .hdr with .img) and no DICOM images")
        jobs = [*_nifti_jobs(options, volumes, bids), *_dicom_jobs(options, series)]
        return Plan(jobs, options.output, bids)
    except (DatasetError, VolumeError) as error:
        raise RunError(str(error)) from error
    except OSError as error:
        raise RunError(f"{error.filename}: cannot be read ({error.strerror or error})") from error


def _is_named_volume(path: Path) -> bool:
    return is_volume_name(path) or path.name.lower().endswith((".img", ".hdr.gz", ".img.gz"))


def _found(options: CommandOptions) -> tuple[list[Path], list[DicomSeries]]:
    """NIfTI volumes and DICOM series of the input. Files that are neither are worth a line only beside a series."""
    if options.input.is_file() and _is_named_volume(options.input):
        return [options.input], []
    files = [] if options.input.is_file() else files_below(options.input, options.output)
    series, left_out = find_series(options.input, files)
    if series:
        for line in left_out:
            _log.info("%s", line)
    return [path for path in files if is_volume_name(path)], series


def _single_file(options: CommandOptions) -> Job:
    """OUTPUT names a file: the one volume of the input goes there."""
    target = options.output
    if not target.name.lower().endswith((".nii", ".nii.gz")):
        raise RunError(f"{target}: results are written as .nii or .nii.gz; choose such a name or a folder")
    if options.to == "dicom":
        raise RunError(f"{target}: a NIfTI file by its name, but --to dicom; give a folder")
    volumes, series = _found(options)
    sources: list[Path | DicomSeries] = [*volumes, *series]
    if len(sources) != 1:
        raise RunError(f"{options.input}: {len(sources)} volumes for the one file {target}; give a folder")
    source = sources[0]
    origin = source.label if isinstance(source, DicomSeries) else source.name
    job = Job(origin, origin, source, target, _sidecar(target), "nifti")
    check_target(target, target.parent, {os.path.realpath(path) for path in job.files})
    check_folders(options.input, target.parent)
    return job


def _nifti_jobs(options: CommandOptions, volumes: list[Path], bids: Bids | None) -> Iterable[Job]:
    suffix = f"SRx{options.scale}"
    rename = None if bids is None else lambda stem: bids.rename(stem, options.scale)
    targets = output_paths(volumes, options.input, options.output, suffix, rename)
    base = options.input.parent if options.input.is_file() else options.input
    for path, target in zip(volumes, targets, strict=True):
        name = Path(os.path.relpath(path, base)).as_posix()
        yield Job(name, name, path, target, _sidecar(target), options.to or "nifti")


def _dicom_jobs(options: CommandOptions, series: list[DicomSeries]) -> Iterable[Job]:
    """A series goes to the place of the folder that its files share, under its label."""
    base = options.input.parent if options.input.is_file() else options.input
    inputs = {os.path.realpath(path) for item in series for path in item.paths}
    to = options.to or "dicom"
    for item in series:
        folder = Path(os.path.commonpath([path.parent for path in item.paths]))
        place = Path(os.path.relpath(folder, base))
        target = options.output / place / f"{item.label}_SRx{options.scale}{'.nii.gz' if to == 'nifti' else ''}"
        check_target(target, options.output, inputs)
        name = f"{(place / item.paths[0].name).as_posix()} ({item.description_for_log})"
        yield Job(name, item.label, item, target, _sidecar(target), to)


def _sidecar(target: Path) -> Path:
    name = target.name
    for ending in (".nii.gz", ".nii"):
        if name.lower().endswith(ending):
            name = name[: -len(ending)]
            break
    return target.with_name(f"{name}.json")
