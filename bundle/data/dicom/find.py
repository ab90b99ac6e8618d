"""Finding DICOM series: every file below a folder, grouped into volumes by what its header says.

pydicom is needed as soon as a DICOM file is met, not to import this module.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Hashable
from contextlib import suppress
from itertools import chain
from pathlib import Path

from bundle.data.dicom.frame import Broken, Frame, Skipped
from bundle.data.dicom.header import read_frames, starts_as_dicom
from bundle.data.dicom.library import require_pydicom
from bundle.data.dicom.series import DicomSeries, split_volumes
from bundle.data.errors import VolumeError, error_line, fail
from bundle.data.find import is_volume_name, walk_files
from bundle.data.paths import PathLike

__all__ = ["DicomSeries", "find_series", "is_dicom"]

_log = logging.getLogger("iconet")

_NOT_DICOM = "not DICOM"
_UNKNOWN = ("", "", "")


def is_dicom(path: PathLike) -> bool:
    """Whether a file is DICOM by its content: the DICM mark, or a bare data set of an image class that is read."""
    file = Path(path)
    with suppress(OSError, VolumeError, ImportError):
        if file.is_file():
            marked = starts_as_dicom(file)
            return read_frames(file) is not None if marked is None else marked
    return False


def find_series(root: PathLike, exclude: PathLike | None = None) -> list[DicomSeries]:
    """Every MR, CT and PET volume in a DICOM file or below a folder, sorted by the path of its first file.

    Headers are read, pixels are not. A series that holds several volumes (echoes, time points, b-values, the planes
    of a localizer) gives one result for each. Files that are no images of these modalities (reports, presentation
    states, secondary captures, DICOMDIR, anything else) are left out with one line in the log per kind. A DICOM file
    too damaged to tell its series comes back as a series of its own that fails when it is read, so that it is not
    lost from sight. An empty list means that the folder holds none of all this.

    Args:
        root: a folder, or one file (then that file alone is looked at).
        exclude: a folder that is not searched (the output folder, when it lies inside).

    Raises:
        VolumeError: no such file or folder, a file that is no DICOM image, or pydicom is missing.
    """
    start = Path(root)
    if not start.exists():
        fail(start, "no such file or folder", "check the path")
    skipped = None if exclude is None else os.path.realpath(exclude)
    groups: dict[Hashable, list[Frame | Broken]] = defaultdict(list)
    left_out: dict[str, list[Path]] = defaultdict(list)
    for path in [start] if start.is_file() else sorted(walk_files(start, skipped)):
        _sort_in(path, groups, left_out)
    for reason, paths in sorted(left_out.items()):
        _log.info("%s: %d files left out (%s), the first is %s", start, len(paths), reason, paths[0].name)
    if start.is_file() and not groups:
        fail(start, f"no DICOM image of MR, CT or PET ({next(iter(left_out))})", "give another file or a folder")
    found = chain.from_iterable(split_volumes(members) for members in groups.values())
    return sorted(found, key=lambda series: (series.paths[0], series.label))


def _sort_in(path: Path, groups: dict[Hashable, list[Frame | Broken]], left_out: dict[str, list[Path]]) -> None:
    """Put the slices of a file to those of the same series, or the file to what is left out."""
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
        # Where an anonymiser blanked the series, its number and its folder stand in for it.
        groups[identity if image.series else (*identity, image.series_number, path.parent)].extend(content)
