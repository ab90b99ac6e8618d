"""Finding DICOM series: every file below a folder, grouped into volumes by its header.

pydicom is needed only when a DICOM file is found, not to import this module.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from bundle.data.dicom.frame import Broken, Frame, Skipped
from bundle.data.dicom.header import read_frames, starts_as_dicom
from bundle.data.dicom.join import torn_apart
from bundle.data.dicom.library import require_pydicom
from bundle.data.dicom.series import DicomSeries, split_volumes
from bundle.data.errors import VolumeError, error_line, fail
from bundle.data.find import files_below, is_volume_name
from bundle.data.paths import PathLike

_NOT_DICOM = "not DICOM"
_UNKNOWN = ("", "", "")


class SeriesFound(NamedTuple):
    """The result of `find_series`.

    Attributes:
        series: sorted by the path of their first file, the volumes of a series in their order; empty if there is no
            DICOM image of MR, CT or PET.
        left_out: one line for each kind of other file: how many there are, and the name of the first.
    """

    series: list[DicomSeries]
    left_out: tuple[str, ...]


def find_series(root: PathLike, files: Iterable[Path] | None = None, *, join: bool = False) -> SeriesFound:
    """Every MR, CT and PET volume in a DICOM file or below a folder.

    Only headers are read, not pixels. A series that holds several volumes (echoes, time points, b-values, the planes
    of a localizer) is split into them. Files that are not images of these modalities (reports, presentation states,
    secondary captures, DICOMDIR, anything else) are left out. A DICOM file too damaged to identify its series becomes
    a series of its own that fails when it is read, so that it does not go unnoticed.

    Args:
        root: a folder, or a single file.
        files: the files to examine, if those below the folder are already listed or some are to be left out.
        join: join single slices that have a study, series, patient or frame of reference of their own.

    Raises:
        VolumeError: no such file or folder, a file that is not a DICOM image, or pydicom is missing.
    """
    start = Path(root)
    if not start.exists():
        fail(start, "no such file or folder", "check the path")
    if start.is_file():
        files = [start]
    groups: dict[Hashable, list[Frame | Broken]] = defaultdict(list)
    left_out: dict[str, list[Path]] = defaultdict(list)
    for path in files_below(start) if files is None else files:
        _sort_in(path, groups, left_out)
    if start.is_file() and not groups:
        fail(start, f"no DICOM image of MR, CT or PET ({next(iter(left_out))})", "give another file or a folder")
    volumes = [split_volumes(members, warnings, join) for members, warnings in _joined(groups, join)]
    lines = (
        f"{start}: {len(paths)} files left out ({reason}), the first is {paths[0].name}"
        for reason, paths in sorted(left_out.items())
    )
    return SeriesFound(list(chain.from_iterable(sorted(volumes, key=_first))), tuple(lines))


def _joined(
    groups: dict[Hashable, list[Frame | Broken]], join: bool
) -> Iterator[tuple[list[Frame | Broken], tuple[str, ...]]]:
    """The series, with slices that were torn apart joined or a warning, and the warnings."""
    left = dict(groups)
    for keys in torn_apart(groups):
        members = [frame for key in keys for frame in left.pop(key)]
        count = f"{len(keys)} single slices with a series, study or patient of their own"
        if join:
            yield members, (f"{count} were joined (--join)",)
        else:
            warning = f"one of {count} that share number, matrix, orientation and even steps: --join makes them one"
            yield from (([frame], (warning,)) for frame in members)
    yield from ((members, ()) for members in left.values())


def _first(volumes: Iterable[DicomSeries]) -> tuple[Path, str]:
    return min((volume.paths[0], volume.label) for volume in volumes)


def _sort_in(path: Path, groups: dict[Hashable, list[Frame | Broken]], left_out: dict[str, list[Path]]) -> None:
    """Add the slices of a file to their series, or the file to those left out."""
    content: list[Frame] | Skipped | Broken | None
    try:
        if starts_as_dicom(path) is False:
            left_out[_NOT_DICOM].append(path)
            return
    except OSError as error:
        if is_volume_name(path):
            return  # a NIfTI volume by its name: its own reader reports it
        wrong = f"cannot be read ({error.strerror or error})"
        groups[path].append(Broken(path, _UNKNOWN, error_line(path, wrong, "check the file and its access rights")))
        return
    require_pydicom(path)
    try:
        content = read_frames(path)
    except VolumeError as error:
        content = Broken(path, _UNKNOWN, str(error))
    if content is None:
        left_out[_NOT_DICOM].append(path)
    elif isinstance(content, Skipped):
        left_out[content.reason].append(path)
    elif isinstance(content, Broken):
        groups[content.series if content.series[1] else path].append(content)
    else:
        image = content[0].image
        identity = (image.study, image.series, image.patient)
        # If an anonymiser blanked the series UID, its number and folder identify it.
        groups[identity if image.series else (*identity, image.series_number, path.parent)].extend(content)
