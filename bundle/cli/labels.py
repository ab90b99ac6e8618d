"""Which label map belongs to which image: the same folder (in BIDS, the same subject and session) and the same grid."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from itertools import takewhile
from pathlib import Path

import numpy as np

from bundle.data import VolumeError, read_header
from bundle.data.bids_sidecar import volume_stem
from bundle.data.errors import error_line
from bundle.data.find import volume_files
from bundle.data.meaning import is_label_map
from bundle.data.nifti.geometry import FORM_TOLERANCE, corner_distance, read_geometry


@dataclass(frozen=True, eq=False)
class LabelJob:
    """A label map that follows its image; attributes as of :class:`bundle.cli.plan.Job`."""

    name: str
    source: Path
    target: Path
    sidecar: Path

    @property
    def files(self) -> tuple[Path, ...]:
        return volume_files(self.source)


@dataclass(frozen=True, eq=False)
class Grid:
    """Matrix (three axes) and affine of a file."""

    shape: tuple[int, ...]
    affine: np.ndarray

    @staticmethod
    def of(path: Path) -> Grid:
        """Raises VolumeError if its header is unusable."""
        header = read_header(path)
        shape = (*(int(n) for n in header.get_data_shape()), 1)[:3]
        return Grid(shape, read_geometry(path, header, []).affine)

    def is_that_of(self, other: Grid) -> bool:
        """Whether no corner lies farther apart than a small part of a voxel."""
        if self.shape != other.shape:
            return False
        size = float(np.linalg.norm(other.affine[:3, :3], axis=0).min())
        return corner_distance(self.affine, other.affine, np.array(self.shape)) <= FORM_TOLERANCE * size


def label_maps(volumes: Iterable[Path], pattern: str | None, bids: bool) -> set[Path]:
    """Those of the volumes that are label maps: by a pattern of file names, else by their names in a BIDS dataset."""
    if pattern is not None:
        return {path for path in volumes if fnmatchcase(path.name, pattern)}
    return {path for path in volumes if is_label_map(path)} if bids else set()


def images_of(
    labels: Iterable[Path], images: Sequence[Path], bids_root: Path | None
) -> tuple[dict[Path, Path], list[str]]:
    """Label map -> its image, and a line for each label map that has none.

    Of several images with the same grid, the one whose name has the most in common with that of the label map is taken.
    """
    place: Callable[[Path], Hashable] = (lambda path: path.parent) if bids_root is None else _session(bids_root)
    near: dict[Hashable, list[Path]] = defaultdict(list)
    for image in images:
        near[place(image)].append(image)
    grid, found, lines = cache(_grid), dict[Path, Path](), list[str]()
    for path in labels:
        candidates = near[place(path)]
        mine = grid(path)
        if isinstance(mine, str):
            lines.append(mine)
            continue
        same = [image for image in candidates if isinstance(its := grid(image), Grid) and mine.is_that_of(its)]
        if same:
            found[path] = max(same, key=lambda image: (_likeness(path, image), image.name))
            continue
        where = "this folder" if bids_root is None else "its subject and session"
        wrong = f"a label map, but none of {len(candidates)} images of {where} has its matrix and affine"
        if not candidates:
            wrong = f"a label map, but {where} holds no image that it could follow (label maps follow no DICOM series)"
        lines.append(error_line(path, wrong, "left out"))
    return found, lines


def _grid(path: Path) -> Grid | str:
    try:
        return Grid.of(path)
    except VolumeError as error:
        return str(error)


def _session(root: Path) -> Callable[[Path], Hashable]:
    def place(path: Path) -> Hashable:
        folders = path.relative_to(root).parts[:-1]
        return tuple(part for part in folders[:2] if part.startswith(("sub-", "ses-")))

    return place


def _likeness(label: Path, image: Path) -> tuple[int, int, int]:
    """BIDS entities in common less those that contradict, the same folder, letters in common at the start."""
    first, second = (
        dict(part.split("-", 1) for part in volume_stem(path).split("_") if "-" in part) for path in (label, image)
    )
    shared = [first[key] == second[key] for key in first.keys() & second.keys()]
    alike = zip(volume_stem(label), volume_stem(image), strict=False)
    start = list(takewhile(lambda pair: pair[0] == pair[1], alike))
    return sum(shared) - 2 * (len(shared) - sum(shared)), int(label.parent == image.parent), len(start)
