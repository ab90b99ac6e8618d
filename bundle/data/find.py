"""Find the volumes in a folder."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from bundle.data.errors import fail_dataset
from bundle.data.foreign.names import ITK, MGH, detached, is_read, without_parts
from bundle.data.paths import PathLike, pair_paths, special_kind

NIFTI = (".nii.gz", ".nii", ".hdr", ".hdr.gz")
ENDINGS = (*NIFTI, *MGH, *ITK)
"""Endings of volumes; those of one name are preferred in this order."""

SURFACES = tuple(
    f".{kind}.nii"
    for kind in (
        *("dconn", "dtseries", "dscalar", "dlabel", "dpconn", "dfan", "dfansamp", "dfibersamp"),
        *("pconn", "ptseries", "pscalar", "plabel", "pdconn", "pconnseries", "pconnscalar"),
    )
)
"""Endings of CIFTI files, whose values belong to points of surfaces; they are NIfTI by their form alone."""
LOOKED_FOR = "NIfTI volumes (.nii, .nii.gz, or .hdr with .img; also .mgz, .nrrd and .mha)"
_log = logging.getLogger("iconet")


def find_volumes(dataset_dir: PathLike, exclude: PathLike | None = None) -> list[Path]:
    """Every volume below a folder, sorted by path; an .hdr/.img pair is listed once, as its .hdr.

    Extensions match in any letter case; hidden files and folders are skipped; links to folders are followed, each
    real folder once. Links to missing files are listed, so that reading them reports the error.

    Args:
        dataset_dir: a folder, or a single volume, which gives a list of one.
        exclude: a folder that is not searched (the output folder, if it is inside).

    Raises:
        DatasetError: the folder does not exist, is neither a folder nor a volume, or holds no volume.
    """
    root = Path(dataset_dir)
    if root.is_file():
        if not is_volume_name(root) and not root.name.lower().endswith((".img", ".img.gz")):
            fail_dataset(root, "not a volume by its name", f"give a folder or one of the {LOOKED_FOR}")
        return [root]
    if not root.is_dir():
        wrong = "exists but is neither a folder nor a file" if root.exists() else "no such folder"
        fail_dataset(root, wrong, f"give a folder with {LOOKED_FOR}")
    found = volumes_below(root, exclude)
    if not found:
        fail_dataset(root, f"no {LOOKED_FOR} in this folder or below", "check the folder")
    return found


def volumes_below(root: PathLike, exclude: PathLike | None = None) -> list[Path]:
    """The volumes that `find_volumes` would find below a folder; an empty list if there are none."""
    return [path for path in files_below(root, exclude) if is_volume_name(path)]


def files_below(root: PathLike, exclude: PathLike | None = None) -> list[Path]:
    """All files below a folder, sorted, walked as by `find_volumes`, without the data files of NRRD and MetaImage.

    A folder that cannot be listed is logged; so are pipes, sockets and devices, which are left out.
    """
    skipped = None if exclude is None else os.path.realpath(exclude)
    found = without_parts(sorted(_walk_files(Path(root), skipped)))
    special = {path: kind for path in found if (kind := special_kind(path)) is not None}
    if special:
        first, kind = next(iter(special.items()))
        _log.warning(
            "%s: special files not opened: %d, the first is %s (%s, not a regular file)",
            root,
            len(special),
            first,
            kind,
        )
    return [path for path in found if path not in special]


def is_volume_name(path: PathLike) -> bool:
    """Whether a file name is that of a volume that can be read; of an .hdr/.img pair, only the .hdr counts.

    CIFTI is none; NRRD and MetaImage are if SimpleITK is installed.
    """
    name = os.fspath(path).lower()
    return (name.endswith(NIFTI) and not name.endswith(SURFACES)) or is_read(name)


def volume_files(path: Path) -> tuple[Path, ...]:
    """The files that hold a volume: one, a header and its image, or a header and the data files that it names."""
    return tuple(dict.fromkeys((*pair_paths(path), *detached(path))))


def inference_datalist(dataset_dir: PathLike, exclude: PathLike | None = None) -> list[dict[str, str]]:
    """[{"image": path}, ...] for every volume of `find_volumes`; same arguments and errors."""
    return [{"image": str(path)} for path in find_volumes(dataset_dir, exclude)]


def _walk_files(root: Path, skipped: str | None) -> Iterator[Path]:
    """All files below `root` that are not hidden. Each real folder is visited once, since links may form loops."""
    visited: set[str] = set()
    for folder, subfolders, names in os.walk(root, onerror=_log_unreadable, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited or (real == skipped and Path(folder) != root):
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _log_unreadable(error: OSError) -> None:
    _log.warning("%s: folder cannot be listed (%s); its volumes are skipped", error.filename, error.strerror)


def split_name(file: Path) -> tuple[str, str]:
    """("scan", ".nii.gz") of scan.NII.GZ; an .img stands for its .hdr."""
    name = re.sub(r"\.img(\.gz)?$", r".hdr\1", file.name, flags=re.IGNORECASE)
    for ending in ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)], ending
    fail_dataset(file, "not a volume by its name", f"give one of the {LOOKED_FOR}")
