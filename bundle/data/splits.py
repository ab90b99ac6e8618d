"""Assign volumes to splits; no subject is in two splits, unless there is only one subject."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from bundle.data.bids_sidecar import DESCRIPTION
from bundle.data.errors import fail_dataset
from bundle.data.find import find_volumes, split_name
from bundle.data.meaning import is_label_map
from bundle.data.nifti.read import read_header
from bundle.data.paths import PathLike

_log = logging.getLogger("iconet")

SPLITS = ("train", "val", "test")


_BIDS_SUBJECT = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)")


def training_datalist(
    dataset_dir: PathLike,
    split: str,
    split_file: PathLike | None = None,
    val_fraction: float = 0.2,
    seed: int = 0,
    slice_axis: int | Literal["auto"] | None = None,
) -> list[dict[str, Any]]:
    """[{"image": path}, ...] of one split; no subject is in two splits, unless there is only one subject.

    With `split_file`, a CSV with the columns file, subject and split (others are ignored), its rows decide. A relative
    path is looked up next to the CSV, then in `dataset_dir`; only the files of the requested split must exist. Without
    it, subjects go to "val" in the order of a hash of seed and name, so the split depends on nothing else; the subject
    is the BIDS label "sub-..." in the path, or else the file name without extension.

    A folder with a single subject can be divided by slices instead, so that a first trial runs: the last slices of each
    volume go to "val", the others to "train", and one in between to neither. Its items also have "slices": [axis,
    first, stop], which :class:`bundle.transforms.TakeSlicesd` applies, and a warning says what the figures are worth.

    Args:
        dataset_dir: the folder of the volumes. The label maps of a BIDS dataset (`_dseg`, `_mask`) are left out.
        split: "train", "val" or "test" ("test" only with `split_file`).
        split_file: the CSV.
        val_fraction: fraction of the subjects in "val" without a CSV, inside (0, 1); at least one subject on each side.
        seed: another seed gives another split.
        slice_axis: divide the volumes of a single subject along this array axis ("auto": by their voxel size); None
            refuses a single subject.

    Raises:
        DatasetError: the table is invalid, a file is missing, a subject is in two splits, a split is empty, or there is
            a single subject that may not be divided or has a volume of one slice.
        VolumeError: the header of a volume to be divided is unusable.
        ValueError: invalid `split` or `val_fraction`.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if split_file is not None:
        return _datalist_from_table(Path(dataset_dir), split, Path(split_file))
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must be inside (0, 1), got {val_fraction}")
    if split == "test":
        fail_dataset(dataset_dir, "a test split needs a split file", "give a CSV with the columns file, subject, split")
    subjects = _subjects(Path(dataset_dir))
    if len(subjects) == 1 and slice_axis is not None:
        return _datalist_by_slices(Path(dataset_dir), subjects, split, val_fraction, slice_axis)
    return _datalist_by_hash(Path(dataset_dir), subjects, split, val_fraction, seed)


def evaluation_datalist(dataset_dir: PathLike, split: str, split_file: PathLike | None = None) -> list[dict[str, Any]]:
    """[{"image": path}, ...] to evaluate on: one split of a CSV, or every volume of the folder if there is no CSV.

    Args and errors as for `training_datalist`.
    """
    if split_file is None:
        return [{"image": str(path)} for path in _images(Path(dataset_dir))]
    return training_datalist(dataset_dir, split, split_file)


def _images(root: Path) -> list[Path]:
    """The volumes of a folder; of a BIDS dataset without its label maps, which are no images to learn from."""
    found = find_volumes(root)
    if not (root / DESCRIPTION).is_file():
        return found
    images = [path for path in found if not is_label_map(path)]
    if not images:
        fail_dataset(root, "holds label maps and no image", "give a folder with their images")
    return images


def _subjects(root: Path) -> dict[str, list[Path]]:
    """The volumes of each subject of a folder, by BIDS label or file name."""
    subjects: dict[str, list[Path]] = defaultdict(list)
    base = root.parent if root.is_file() else root
    unlabelled = 0
    for path in _images(root):
        label = bids_subject(path.relative_to(base).as_posix())
        unlabelled += label is None
        subjects[label or split_name(path)[0]].append(path)
    if unlabelled and len(subjects) > 1:
        _log.warning(
            "%s: %d volumes without a BIDS subject label (sub-...); each file counts as its own subject. "
            "Give a split file if a subject has several files.",
            root,
            unlabelled,
        )
    return subjects


def _datalist_by_hash(
    root: Path, subjects: Mapping[str, list[Path]], split: str, val_fraction: float, seed: int
) -> list[dict[str, Any]]:
    if len(subjects) < 2:
        wrong = f"only one subject ({next(iter(subjects))!r}, by file name), but a split needs two"
        fail_dataset(root, wrong, "give more volumes or a split file (CSV with the columns file, subject, split)")
    order = sorted(subjects, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).hexdigest())
    count = min(max(round(len(order) * val_fraction), 1), len(order) - 1)
    names = order[:count] if split == "val" else order[count:]
    return [{"image": str(path)} for path in sorted(path for name in names for path in subjects[name])]


def _datalist_by_slices(
    root: Path,
    subjects: Mapping[str, list[Path]],
    split: str,
    val_fraction: float,
    slice_axis: int | Literal["auto"],
) -> list[dict[str, Any]]:
    ((name, paths),) = subjects.items()
    if split == "val":  # both splits are requested, one warning is enough
        _log.warning(
            "%s: only one subject (%s), so the network is validated on the last slices of each volume and trained on "
            "the rest; the figures say nothing about other subjects. Give volumes of several subjects for figures "
            "that do.",
            root,
            name,
        )
    return [{"image": str(path), "slices": _part(path, split, val_fraction, slice_axis)} for path in sorted(paths)]


def _part(path: Path, split: str, val_fraction: float, slice_axis: int | Literal["auto"]) -> list[int]:
    """[axis, first, stop] of the slices of a volume that belong to a split."""
    header = read_header(path)
    shape = header.get_data_shape()
    more = "give a volume with more slices, volumes of more subjects, or a split file"
    if len(shape) != 3:
        what = "a single 2-D image" if len(shape) == 2 else f"a series of {len(shape)} dimensions"
        fail_dataset(path, f"{what}, which cannot be divided into training and validation slices", more)
    from bundle.data.nifti.axes import stated_axes
    from bundle.physics.slices import resolve_slice_axis  # imports PyTorch, which lists of files do not need

    axis = resolve_slice_axis(slice_axis, shape, header.get_best_affine(), stated_axes(path, header))
    if (count := shape[axis]) < 2:
        fail_dataset(path, f"a single slice along axis {axis}; validation needs another one", more)
    kept = min(max(round(count * val_fraction), 1), count - 1)
    gap = 1 if count - kept > 1 else 0  # neighbouring slices look alike
    return [axis, count - kept, count] if split == "val" else [axis, 0, count - kept - gap]


def bids_subject(name: str) -> str | None:
    """The BIDS label "sub-..." in a path with forward slashes, if there is one."""
    label = _BIDS_SUBJECT.search(name)
    return label[1] if label else None


def _datalist_from_table(root: Path, split: str, table: Path) -> list[dict[str, Any]]:
    rows = read_table(table)
    _check_table(table, rows)
    wanted = [(line, row["file"]) for line, row in rows if row["split"] == split]
    if not wanted:
        fail_dataset(table, f"no row has the split {split!r}", "add rows for it or use another split")
    paths = [locate(name, table, root) for _, name in wanted]
    missing = [f"{name} (line {line})" for (line, name), path in zip(wanted, paths, strict=True) if path is None]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        wrong = f"{len(missing)} files do not exist: {', '.join(missing[:3])}{more}"
        fail_dataset(table, wrong, f"paths are relative to {table.parent} or {root}")
    return [{"image": str(path)} for path in paths]


def read_table(table: Path) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) for each row of a split file: all columns, with blanks stripped from names and values.

    Raises:
        DatasetError: it cannot be read, or lacks one of the columns file, subject and split.
    """
    needed = ("file", "subject", "split")
    try:
        with open(table, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            columns = [(name or "").strip() for name in reader.fieldnames or ()]
            if lacking := [name for name in needed if name not in columns]:
                wrong = f"no column {', '.join(lacking)} (columns found: {', '.join(columns) or 'none'})"
                fail_dataset(table, wrong, "the split file needs the columns file, subject, split, separated by commas")
            reader.fieldnames = columns
            return [(reader.line_num, {k: (v or "").strip() for k, v in row.items() if k}) for row in reader]
    except OSError as error:
        fail_dataset(table, f"the split file cannot be read ({error.strerror or error})", "check the path")
    except (UnicodeDecodeError, csv.Error) as error:
        fail_dataset(table, f"not a CSV text file ({error})", "save it as CSV in UTF-8")


def _check_table(table: Path, rows: list[tuple[int, dict[str, str]]]) -> None:
    """Check that each row is complete, each file listed once and each subject in one split."""
    splits: dict[str, set[str]] = defaultdict(set)
    seen: dict[str, int] = {}
    for line, row in rows:
        if not row["file"] or not row["subject"]:
            fail_dataset(table, f"line {line} has no file or no subject", "fill it in or delete the line")
        if row["split"] not in SPLITS:
            fail_dataset(table, f"line {line} has the split {row['split']!r}", f"use one of {', '.join(SPLITS)}")
        if (name := os.path.normpath(row["file"])) in seen:
            fail_dataset(
                table, f"{row['file']} is listed twice (lines {seen[name]} and {line})", "delete one of the lines"
            )
        seen[name] = line
        splits[row["subject"]].add(row["split"])
    if mixed := sorted(subject for subject, names in splits.items() if len(names) > 1):
        more = f" and {len(mixed) - 3} more" if len(mixed) > 3 else ""
        wrong = f"subjects in more than one split: {', '.join(mixed[:3])}{more}"
        fail_dataset(table, wrong, "put all files of a subject in the same split")


def locate(name: str, table: Path, root: Path) -> Path | None:
    """The file that a row of a split file names: next to the table, or else in the data folder."""
    return next((path for path in (table.parent / name, root / name) if path.is_file()), None)
