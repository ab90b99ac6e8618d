"""The plan of a run: every volume of the input, and where its result goes."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bundle.cli.bids import Bids, like_bids
from bundle.cli.errors import RunError
from bundle.cli.labels import LabelJob, images_of, label_maps
from bundle.data import DatasetError, VolumeError, check_folders, output_paths
from bundle.data.dicom.find import find_series
from bundle.data.dicom.header import starts_as_dicom
from bundle.data.dicom.own import made_here
from bundle.data.dicom.series import DicomSeries
from bundle.data.find import LOOKED_FOR, files_below, is_volume_name, volume_files
from bundle.data.formats import ending_of, left_out, unread, unread_among
from bundle.data.outputs import check_target, result_suffix
from bundle.data.paths import special_kind
from bundle.data.sidecar import is_result, sidecar_path
from bundle.options import CommandOptions

_log = logging.getLogger("iconet")


@dataclass(frozen=True, eq=False)
class Job:
    """One volume.

    Attributes:
        name: path relative to the input; for a DICOM series, the path of its first file and a description.
        origin: how the record names the source: the path of a file, or the label of a series (its paths may name a
            patient).
        source: NIfTI file or DICOM series.
        target: NIfTI file or folder of a DICOM series.
        sidecar: record beside the target.
        labels: label maps that get the grid of its result.
    """

    name: str
    origin: str
    source: Path | DicomSeries
    target: Path
    sidecar: Path
    to: Literal["nifti", "dicom"]
    labels: tuple[LabelJob, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files whose bytes make the input."""
        if isinstance(self.source, DicomSeries):
            return self.source.paths
        return volume_files(self.source)


@dataclass(frozen=True, eq=False)
class Plan:
    """All jobs, sorted; the output folder, unless OUTPUT names one file; the BIDS dataset, if INPUT is one."""

    jobs: list[Job]
    folder: Path | None
    bids: Bids | None = None

    @property
    def names(self) -> list[str]:
        """Of all volumes, each followed by its label maps."""
        return [name for job in self.jobs for name in (job.name, *(label.name for label in job.labels))]


def find_jobs(options: CommandOptions) -> Plan:
    """Find the volumes and decide where their results go.

    Raises:
        RunError: there is nothing to do, or the output cannot be written or would overwrite an input.
    """
    try:
        _check_arguments(options)
        if is_volume_name(options.output) and not options.output.is_dir():
            return Plan([_single_file(options)], None)
        if options.output.exists() and not options.output.is_dir():
            raise RunError(f"{options.output}: exists and is not a folder; give a folder")
        check_folders(options.input, options.output)
        bids = Bids.at(options.input)
        volumes, series = _found(options, bids)
        if bids is None and options.output.resolve().is_relative_to(options.input.resolve()):
            _log.info("%s: lies below the input; nothing in it is taken as input", options.output)
        jobs = [*_nifti_jobs(options, volumes, bids), *_dicom_jobs(options, series)]
        if not jobs:
            raise RunError(f"{options.input}: holds label maps and no image; give a folder with their images")
        if options.labels is not None and not any(job.labels for job in jobs):
            _log.warning("--labels %s: no label map of an image below %s", options.labels, options.input)
        return Plan(jobs, options.output, bids)
    except (DatasetError, VolumeError) as error:
        raise RunError(str(error)) from error
    except OSError as error:
        raise RunError(f"{error.filename}: cannot be read ({error.strerror or error})") from error


def _is_named_volume(path: Path) -> bool:
    return is_volume_name(path) or path.name.lower().endswith((".img", ".img.gz"))


def _found(options: CommandOptions, bids: Bids | None = None) -> tuple[list[Path], list[DicomSeries]]:
    """NIfTI volumes and DICOM series of the input, without earlier results. What is not read is logged."""
    root = options.input
    if root.is_file() and _is_named_volume(root):
        if is_result(root):
            raise RunError(f"{root}: is a result of this program; give the original (4x: --scale 4)")
        return [root], []
    if bids is not None:
        files, series = bids.files(options.output), list[DicomSeries]()
        _log_left_out(root, files)
    else:
        files = [] if root.is_file() else files_below(root, options.output)
        series = _series_among(root, files, options.join)
    volumes = [path for path in files if is_volume_name(path)]
    if not volumes and not series:
        wrong = f"{root}: no {LOOKED_FOR} and no DICOM images"
        if bids is not None:
            wrong = f"{root}: a BIDS dataset without volumes below its sub-... folders"
        other = unread_among(files)
        raise RunError(wrong if other is None else f"{wrong}; {other}")
    originals = [path for path in volumes if not is_result(path)]
    own_series = [item for item in series if not (is_result(_folder_of(item)) or made_here(item.paths[0]))]
    if not originals and not own_series:
        raise RunError(f"{root}: holds only results of this program; give the folder of the originals")
    if results := len(volumes) + len(series) - len(originals) - len(own_series):
        _log.info("%s: %d results of earlier runs are not taken as input", root, results)
    return originals, own_series


def _series_among(root: Path, files: list[Path], join: bool) -> list[DicomSeries]:
    """The DICOM series of a folder or file; what else is there is logged."""
    series, lines = find_series(root, [path for path in files if not _known_other(path)], join=join)
    if root.is_file():
        return series
    taken = {path for item in series for path in item.paths}
    foreign = [path for path in files if path not in taken]
    if series or any("(not DICOM)" not in line for line in lines):
        for line in lines:
            _log.info("%s", line)
        foreign = [path for path in foreign if _known_other(path)]
    if series or any(is_volume_name(path) for path in files):  # otherwise an error says it
        _log_left_out(root, foreign)
        if plain := like_bids(root):
            _log.warning("%s", plain)
    return series


def _known_other(path: Path) -> bool:
    """Whether a file is in a known format by its name, and its first bytes are not those of DICOM."""
    try:
        return (is_volume_name(path) or ending_of(path) is not None) and starts_as_dicom(path) is False
    except OSError:
        return True


def _log_left_out(root: Path, files: list[Path]) -> None:
    for expected, line in left_out(root, files):
        _log.log(logging.WARNING if expected else logging.INFO, "%s", line)


def _folder_of(series: DicomSeries) -> Path:
    return Path(os.path.commonpath([path.parent for path in series.paths]))


def _check_arguments(options: CommandOptions) -> None:
    """Mistakes that are visible in the names of the arguments."""
    if not options.input.exists():
        swapped = "; are INPUT and OUTPUT swapped?" if options.output.exists() else "; check the path"
        raise RunError(f"{options.input}: no such file or folder{swapped}")
    for path in (options.input, options.output):
        if kind := special_kind(path):
            raise RunError(f"{path}: {kind}, neither a file nor a folder; give a file or a folder")
    if options.input.is_file() and (line := unread(options.input)) is not None:
        raise RunError(line)
    if not options.output.is_dir() and (ending := ending_of(options.output)) is not None:
        raise RunError(f"{options.output}: {ending} is not written; give a folder, or a name with .nii or .nii.gz")


def _single_file(options: CommandOptions) -> Job:
    """The only job if OUTPUT names a file: the input must hold one volume."""
    target = options.output
    if not target.name.lower().endswith((".nii", ".nii.gz")):
        raise RunError(f"{target}: results are written as .nii or .nii.gz; choose such a name or a folder")
    if options.labels is not None:
        raise RunError(f"{target}: names one file, but --labels asks for more; give a folder")
    if options.to == "dicom":
        raise RunError(f"{target}: a NIfTI file by its name, but --to dicom; give a folder")
    volumes, series = _found(options)
    sources: list[Path | DicomSeries] = [*volumes, *series]
    if len(sources) != 1:
        raise RunError(f"{options.input}: {len(sources)} volumes for the one file {target}; give a folder")
    source = sources[0]
    origin = source.label if isinstance(source, DicomSeries) else source.name
    job = Job(origin, origin, source, target, sidecar_path(target), "nifti")
    check_target(target, target.parent, {os.path.realpath(path) for path in job.files})
    check_folders(options.input, target.parent)
    return job


def _nifti_jobs(options: CommandOptions, volumes: list[Path], bids: Bids | None) -> Iterable[Job]:
    labels = label_maps(volumes, options.labels, bids is not None)
    images = [path for path in volumes if path not in labels]
    image_of, lines = images_of(sorted(labels), images, None if bids is None else bids.root)
    for line in lines:
        _log.warning("%s", line)
    suffix = result_suffix(options.scale, options.voxel_size)
    rename = None if bids is None else lambda stem, mark: bids.rename(stem, suffix, mark)
    targets = output_paths(volumes, options.input, options.output, suffix, rename)
    base = options.input.parent if options.input.is_file() else options.input

    def name_of(path: Path) -> str:
        return Path(os.path.relpath(path, base)).as_posix()

    followers: dict[Path, list[LabelJob]] = defaultdict(list)
    for path, target in zip(volumes, targets, strict=True):
        if path in image_of:
            followers[image_of[path]].append(LabelJob(name_of(path), path, target, sidecar_path(target)))
    for path, target in zip(volumes, targets, strict=True):
        if path in labels:
            continue
        mine = tuple(followers.get(path, ()))
        yield Job(name_of(path), name_of(path), path, target, sidecar_path(target), options.to or "nifti", mine)


def _dicom_jobs(options: CommandOptions, series: list[DicomSeries]) -> Iterable[Job]:
    """The result of a series goes where the common folder of its files lies, named by its label."""
    base = options.input.parent if options.input.is_file() else options.input
    inputs = {os.path.realpath(path) for item in series for path in item.paths}
    to = options.to or "dicom"
    for item in series:
        place = Path(os.path.relpath(_folder_of(item), base))
        name = f"{item.label}_{result_suffix(options.scale, options.voxel_size)}"
        target = options.output / place / f"{name}{'.nii.gz' if to == 'nifti' else ''}"
        check_target(target, options.output, inputs)
        name = f"{(place / item.paths[0].name).as_posix()} ({item.description_for_log})"
        yield Job(name, item.label, item, target, sidecar_path(target), to)
