"""Known formats that are not read, and what to do about each; no file of a folder is passed over in silence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from bundle.data.find import SURFACES, is_volume_name
from bundle.data.foreign.names import ITK
from bundle.data.paths import pair_paths

_SIMPLEITK = "it is read if SimpleITK is installed: pip install SimpleITK; or convert it to NIfTI first"
_PICTURE = "a picture has no voxel size and no units; give the NIfTI or DICOM file it was made from"
_ARCHIVE = "unpack it first"
_ARRAY = "an array has no affine; use bundle.super_resolve(array, affine) in Python, or save it as NIfTI"
_HEADLESS = "its header, a .hdr file of the same name, is not there; give both"
_SURFACE = "CIFTI, which holds points of surfaces; give the volume, or extract it: wb_command -cifti-separate"
_UNPACK = {
    ".bz2": "bunzip2 NAME",
    ".xz": "unxz NAME",
    ".zst": "unzstd NAME",
    ".lz4": "unlz4 NAME",
    ".z": "uncompress NAME",
}

_VOLUMES = {
    **dict.fromkeys(ITK, _SIMPLEITK),
    **dict.fromkeys((".mnc", ".mnc.gz"), "convert it to NIfTI first: mnc2nii NAME scan.nii"),
    **dict.fromkeys((".par", ".rec"), "convert it to NIfTI first: dcm2niix, or parrec2nii of nibabel"),
    **dict.fromkeys(
        (".head", ".brik", ".brik.gz"), "convert it to NIfTI first: 3dAFNItoNIFTI -prefix scan.nii.gz NAME"
    ),
    **dict.fromkeys((".mif", ".mif.gz", ".mih"), "convert it to NIfTI first: mrconvert NAME scan.nii.gz"),
    **dict.fromkeys((".v", ".vti", ".vtk", ".nia", ".fdf", ".vmr", ".vista"), "convert it to NIfTI first"),
    **dict.fromkeys(SURFACES, _SURFACE),
    ".gii": "a surface, not a volume; give the volume it was made from",
    **{f".nii{ending}": f"unpack it first: {how}" for ending, how in _UNPACK.items()},
    **{f".dcm{ending}": f"unpack it first: {how}" for ending, how in {**_UNPACK, ".gz": "gunzip NAME"}.items()},
    **dict.fromkeys((".nii.zip", ".nii.7z", ".dcm.zip"), _ARCHIVE),
    **dict.fromkeys((".img", ".img.gz"), _HEADLESS),
}
"""Files that may hold an image which somebody expects to be processed."""

_OTHERS = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pdf"), _PICTURE),
    **dict.fromkeys((".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar"), _ARCHIVE),
    **dict.fromkeys((".npy", ".npz", ".mat", ".h5", ".hdf5"), _ARRAY),
}

REMEDIES = {**_VOLUMES, **_OTHERS}

_TEXTS = (
    *(".json", ".tsv", ".tsv.gz", ".csv", ".txt", ".md", ".rst", ".bval", ".bvec", ".html", ".log", ".jsonl", ".xml"),
    *(".yml", ".yaml", ".sh", ".py", ".m"),
)
_TEXT_NAMES = ("readme", "changes", "license", "dicomdir")


def ending_of(path: Path) -> str | None:
    """The extension of a file in a known format that is not read; None for any other file.

    The image of a header that is there, and the header itself, are read.
    """
    if is_volume_name(path):
        return None
    name = path.name.lower()
    ending = next((ending for ending in _LONGEST_FIRST if name.endswith(ending)), None)
    return None if ending in (".img", ".img.gz") and pair_paths(path)[0].exists() else ending


_LONGEST_FIRST = sorted(REMEDIES, key=len, reverse=True)


def unread(path: Path) -> str | None:
    """Why a file is not read, and what to do; None if its name does not tell."""
    ending = ending_of(path)
    return None if ending is None else f"{path}: {ending} not supported; {REMEDIES[ending].replace('NAME', path.name)}"


def unread_among(paths: Iterable[Path]) -> str | None:
    """The same for the most frequent of these formats among files; None if there is none."""
    found = _by_ending(paths)
    if not found:
        return None
    ending, files = max(found.items(), key=lambda item: len(item[1]))
    count = f"{len(files)} {ending} file{'s' * (len(files) != 1)}"
    return f"{count}, not supported; {REMEDIES[ending].replace('NAME', files[0].name)}"


def left_out(root: Path, paths: Iterable[Path]) -> Iterator[tuple[bool, str]]:
    """Lines about the files of a folder that are not read: how many of each format, the first, and what to do.

    Args:
        root: the folder.
        paths: files below it. Volumes, and texts that accompany them, are passed over.

    Yields:
        (whether it may be an image that somebody expects to be processed, the line).
    """
    rest = [path for path in paths if not is_volume_name(path)]
    found = _by_ending(rest)
    for ending, files in sorted(found.items()):
        yield ending in _VOLUMES, f"{_counted(root, files, ending)}; {REMEDIES[ending].replace('NAME', files[0].name)}"
    known = {path for files in found.values() for path in files}
    if others := [path for path in rest if path not in known and not _accompanies(path)]:
        yield False, f"{_counted(root, others, 'other')}; no volume and no DICOM"


def _counted(root: Path, files: list[Path], kind: str) -> str:
    first = files[0].relative_to(root).as_posix()
    return f"{root}: {len(files)} {kind} file{'s' * (len(files) != 1)} not read, the first is {first}"


def _by_ending(paths: Iterable[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        if (ending := ending_of(path)) is not None:
            found[ending].append(path)
    return found


def _accompanies(path: Path) -> bool:
    name = path.name.lower()
    return name.endswith((*_TEXTS, ".img", ".img.gz")) or name in _TEXT_NAMES
