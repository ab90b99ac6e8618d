"""Known formats that are not supported, and what to do about each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

_FREESURFER = "convert it first: mri_convert NAME scan.nii.gz"
_OTHER = "convert it to NIfTI first"
_PICTURE = "a picture has no voxel size and no units; give the NIfTI or DICOM file it was made from"
_ARCHIVE = "unpack it first"
_ARRAY = "an array has no affine; use bundle.super_resolve(array, affine) in Python, or save it as NIfTI"

REMEDIES = {
    **dict.fromkeys((".mgz", ".mgh"), _FREESURFER),
    **dict.fromkeys((".nrrd", ".nhdr", ".mha", ".mhd", ".mnc", ".v", ".par", ".rec"), _OTHER),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pdf"), _PICTURE),
    **dict.fromkeys((".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar"), _ARCHIVE),
    **dict.fromkeys((".npy", ".npz", ".mat", ".h5"), _ARRAY),
}


def ending_of(path: Path) -> str | None:
    """The extension of a file in a known unsupported format; None for any other file."""
    name = path.name.lower()
    return next((ending for ending in sorted(REMEDIES, key=len, reverse=True) if name.endswith(ending)), None)


def unread(path: Path) -> str | None:
    """Why a file is not supported, and what to do; None if its name does not tell."""
    ending = ending_of(path)
    return None if ending is None else f"{path}: {ending} not supported; {REMEDIES[ending].replace('NAME', path.name)}"


def unread_among(paths: Iterable[Path]) -> str | None:
    """The same for the most frequent of these formats among files; None if there is none."""
    counts = Counter(ending for path in paths if (ending := ending_of(path)) is not None)
    if not counts:
        return None
    ending, count = counts.most_common(1)[0]
    files = "file" if count == 1 else "files"
    return f"{count} {ending} {files}, not supported; {REMEDIES[ending].replace('NAME', f'scan{ending}')}"
