"""Lists of volumes: what is in a folder, which file belongs to which split, and where each result goes."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from .errors import error_line
from .nifti_read import read_header
from .paths import PathLike

SPLITS = ("train", "val", "test")

_ENDINGS = (".nii.gz", ".nii", ".hdr")
_LOOKED_FOR = "NIfTI volumes (.nii, .nii.gz, or .hdr with .img)"
_BIDS_SUBJECT = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)")

_log = logging.getLogger("iconet")


class DatasetError(ValueError):
    """A folder or a table of volumes that cannot be used.

    The message is one line: "<folder or table>: <what is wrong>; <what to do>".
    """


def find_volumes(dataset_dir: PathLike, exclude: PathLike | None = None) -> list[Path]:
    """Every NIfTI volume under a folder, sorted by path; a pair counts once, by its .hdr.

    Endings match in any letter case; hidden files and folders are skipped; links to folders are followed, each
    real folder once. Links to missing files are listed, so that reading them reports them.

    Args:
        dataset_dir: a folder, or a single volume, which makes a list of one.
        exclude: a folder that is not searched (the output folder, when it lies inside).

    Raises:
        DatasetError: no such folder, not a folder or volume, or no volume in it.
    """
    root = Path(dataset_dir)
    if root.is_file():
        if not root.name.lower().endswith((*_ENDINGS, ".img")):
            _fail(root, "not a NIfTI file by its name", f"give a folder or one of the {_LOOKED_FOR}")
        return [root]
    if not root.is_dir():
        wrong = "exists but is neither a folder nor a file" if root.exists() else "no such folder"
        _fail(root, wrong, f"give a folder with {_LOOKED_FOR}")
    found = volumes_below(root, exclude)
    if not found:
        _fail(root, f"no {_LOOKED_FOR} in this folder or below", "check the folder")
    return found


def volumes_below(root: PathLike, exclude: PathLike | None = None) -> list[Path]:
    """What `find_volumes` finds below a folder; an empty list where there is nothing."""
    skipped = None if exclude is None else os.path.realpath(exclude)
    return sorted(path for path in walk_files(Path(root), skipped) if is_volume_name(path))


def is_volume_name(path: PathLike) -> bool:
    """Whether a file is a NIfTI volume by its name; of a pair it is the .hdr that counts."""
    return os.fspath(path).lower().endswith(_ENDINGS)


def check_folders(dataset_dir: PathLike, output_dir: PathLike) -> None:
    """Make sure before a run that results can be written and do not lie where the input lies.

    Raises:
        DatasetError: one folder for both, or an output folder that cannot be made or written to.
    """
    source, target = Path(dataset_dir).resolve(), Path(output_dir).resolve()
    if source == target:
        _fail(output_dir, "input and output folder are the same", "give another output folder")
    there = next(folder for folder in (target, *target.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        _fail(output_dir, f"cannot be written ({there} is no writable folder)", "give another output folder")


def inference_datalist(dataset_dir: PathLike, exclude: PathLike | None = None) -> list[dict[str, str]]:
    """[{"image": path}, ...] of all the volumes that `find_volumes` gives; same arguments and errors."""
    return [{"image": str(path)} for path in find_volumes(dataset_dir, exclude)]


def training_datalist(
    dataset_dir: PathLike,
    split: str,
    split_file: PathLike | None = None,
    val_fraction: float = 0.2,
    seed: int = 0,
) -> list[dict[str, str]]:
    """[{"image": path}, ...] of one split; a subject is never in two splits.

    With `split_file`, a CSV with the columns file, subject and split (others are ignored), its rows decide. A
    relative file is looked for beside the CSV, then in `dataset_dir`; only the files of the asked split must exist.
    Without it, subjects are drawn for "val" in the order of a hash of seed and name, so the split depends on
    nothing else; the subject is the BIDS label "sub-..." of the path or else the file's name without its ending.

    Args:
        dataset_dir: the folder of the volumes.
        split: "train", "val" or "test" ("test" only with `split_file`).
        split_file: the CSV.
        val_fraction: share of the subjects for "val" without CSV, inside (0, 1); at least one subject on each side.
        seed: another seed gives another draw.

    Raises:
        DatasetError: a bad table, a missing file, a subject in two splits, an empty split, fewer than two subjects.
        ValueError: a bad `split` or `val_fraction`.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if split_file is not None:
        return _datalist_from_table(Path(dataset_dir), split, Path(split_file))
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must be inside (0, 1), got {val_fraction}")
    if split == "test":
        _fail(dataset_dir, "a test split needs a split file", "give a CSV with the columns file, subject, split")
    return _datalist_by_hash(Path(dataset_dir), split, val_fraction, seed)


def evaluation_datalist(dataset_dir: PathLike, split: str, split_file: PathLike | None = None) -> list[dict[str, str]]:
    """[{"image": path}, ...] to evaluate on: one split of a CSV, or without one every volume of the folder.

    Args and errors as for `training_datalist`.
    """
    if split_file is None:
        return inference_datalist(dataset_dir)
    return training_datalist(dataset_dir, split, split_file)


def voxel_counts(datalist: Iterable[Mapping[str, Any]]) -> list[int]:
    """Number of voxels of each item's image, from the headers alone; usable as sampling weights.

    Raises:
        VolumeError: a header is unusable.
    """
    return [int(np.prod(read_header(item["image"]).get_data_shape(), dtype=np.int64)) for item in datalist]


def output_paths(
    sources: Sequence[PathLike],
    dataset_dir: PathLike,
    output_dir: PathLike,
    suffix: str,
    rename: Callable[[str], str] | None = None,
) -> list[Path]:
    """Where the result of each source goes: the tree under `dataset_dir` mirrored under `output_dir`.

    `a/x.nii.gz`, `a/x.nii` and `a/x.hdr` become `a/x_<suffix>.nii.gz`. Where several sources ask for one name, the
    .nii.gz file keeps it and the others get their ending into it (`a/x-nii_<suffix>.nii.gz`), then a number; names
    that differ only in letter case count as one. The answer depends on the set of sources, not on their order.

    Args:
        sources: volumes under `dataset_dir`, or that very file.
        dataset_dir: the folder (or single volume) that was searched.
        output_dir: need not exist.
        suffix: letters, digits, ".", "_", "-".
        rename: another rule for the name without ending, instead of appending `_<suffix>` to it.

    Returns:
        One path per source, in the order of `sources`, all different, none of them a source.

    Raises:
        DatasetError: a source outside `dataset_dir`, a result outside `output_dir` (links are followed), a result
            that would overwrite a source, or an unsafe suffix.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]+", suffix):
        _fail(output_dir, f"unsafe suffix {suffix!r}", "use letters, digits, '.', '_' and '-'")
    files = [Path(source) for source in sources]
    inputs = {os.path.realpath(file) for file in files}
    taken: set[str] = set()
    chosen: dict[Path, Path] = {}
    for file in sorted(set(files), key=lambda file: (_ENDINGS.index(_split_name(file)[1]), str(file))):
        for name in _candidate_names(file, rename or (lambda stem: f"{stem}_{suffix}")):
            target = Path(output_dir) / _relative(file, Path(dataset_dir)).with_name(name)
            if str(target).casefold() not in taken:
                break
        taken.add(str(target).casefold())
        check_target(target, Path(output_dir), inputs)
        chosen[file] = target
    return [chosen[file] for file in files]


def _fail(where: PathLike, wrong: str, remedy: str) -> NoReturn:
    raise DatasetError(error_line(where, wrong, remedy))


def walk_files(root: Path, skipped: str | None) -> Iterator[Path]:
    """All files below `root` that are not hidden. Each real folder is visited once: links may form loops."""
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
    _log.warning("%s: folder cannot be listed (%s); its volumes are left out", error.filename, error.strerror)


def _split_name(file: Path) -> tuple[str, str]:
    """("scan", ".nii.gz") of scan.NII.GZ; an .img stands for its .hdr."""
    name = file.name[:-4] + ".hdr" if file.name.lower().endswith(".img") else file.name
    for ending in _ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)], ending
    _fail(file, "not a NIfTI file by its name", f"give one of the {_LOOKED_FOR}")


# ------------------------------------------------------------------------------------------------------- splits


def _datalist_by_hash(root: Path, split: str, val_fraction: float, seed: int) -> list[dict[str, str]]:
    subjects: dict[str, list[Path]] = defaultdict(list)
    base = root.parent if root.is_file() else root
    unlabelled = 0
    for path in find_volumes(root):
        label = bids_subject(path.relative_to(base).as_posix())
        unlabelled += label is None
        subjects[label or _split_name(path)[0]].append(path)
    if len(subjects) < 2:
        wrong = f"only the subject {next(iter(subjects))!r} by file name, a split needs two"
        _fail(root, wrong, "give more volumes or a split file (CSV with the columns file, subject, split)")
    if unlabelled:
        _log.warning(
            "%s: %d volumes without a BIDS subject label (sub-...); each file name counts as a subject. "
            "Give a split file if one subject has several files.",
            root,
            unlabelled,
        )
    order = sorted(subjects, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).hexdigest())
    count = min(max(round(len(order) * val_fraction), 1), len(order) - 1)
    names = order[:count] if split == "val" else order[count:]
    return [{"image": str(path)} for path in sorted(path for name in names for path in subjects[name])]


def bids_subject(name: str) -> str | None:
    """The BIDS label "sub-..." of a path with slashes, if it has one."""
    label = _BIDS_SUBJECT.search(name)
    return label[1] if label else None


def _datalist_from_table(root: Path, split: str, table: Path) -> list[dict[str, str]]:
    rows = read_table(table)
    _check_table(table, rows)
    wanted = [(line, row["file"]) for line, row in rows if row["split"] == split]
    if not wanted:
        _fail(table, f"no row has the split {split!r}", "add rows for it or use another split")
    paths = [locate(name, table, root) for _, name in wanted]
    missing = [f"{name} (line {line})" for (line, name), path in zip(wanted, paths, strict=True) if path is None]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        wrong = f"{len(missing)} files do not exist: {', '.join(missing[:3])}{more}"
        _fail(table, wrong, f"paths are relative to {table.parent} or {root}")
    return [{"image": str(path)} for path in paths]


def read_table(table: Path) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of each row of a split file: all its columns, names and values stripped of blanks.

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
                _fail(table, wrong, "the split file needs the columns file, subject, split, separated by commas")
            reader.fieldnames = columns
            return [(reader.line_num, {k: (v or "").strip() for k, v in row.items() if k}) for row in reader]
    except OSError as error:
        _fail(table, f"the split file cannot be read ({error.strerror or error})", "check the path")
    except (UnicodeDecodeError, csv.Error) as error:
        _fail(table, f"not a CSV text file ({error})", "save it as CSV in UTF-8")


def _check_table(table: Path, rows: list[tuple[int, dict[str, str]]]) -> None:
    """Each row complete, each file once, each subject in one split."""
    splits: dict[str, set[str]] = defaultdict(set)
    seen: dict[str, int] = {}
    for line, row in rows:
        if not row["file"] or not row["subject"]:
            _fail(table, f"line {line} lacks a file or a subject", "fill it in or delete the line")
        if row["split"] not in SPLITS:
            _fail(table, f"line {line} has the split {row['split']!r}", f"use one of {', '.join(SPLITS)}")
        if (name := os.path.normpath(row["file"])) in seen:
            _fail(table, f"{row['file']} is listed twice (lines {seen[name]} and {line})", "delete one of the lines")
        seen[name] = line
        splits[row["subject"]].add(row["split"])
    if mixed := sorted(subject for subject, names in splits.items() if len(names) > 1):
        more = f" and {len(mixed) - 3} more" if len(mixed) > 3 else ""
        wrong = f"subjects in more than one split: {', '.join(mixed[:3])}{more}"
        _fail(table, wrong, "give all files of a subject the same split")


def locate(name: str, table: Path, root: Path) -> Path | None:
    """The file that a row of a split file names: beside the table or else in the folder of the data."""
    return next((path for path in (table.parent / name, root / name) if path.is_file()), None)


# ------------------------------------------------------------------------------------------------------ outputs


def _candidate_names(file: Path, rename: Callable[[str], str]) -> Iterator[str]:
    stem, ending = _split_name(file)
    yield f"{rename(stem)}.nii.gz"
    tag = ending.strip(".").replace(".", "")
    yield f"{rename(f'{stem}-{tag}')}.nii.gz"
    number = 2
    while True:
        yield f"{rename(f'{stem}-{tag}{number}')}.nii.gz"
        number += 1


def _relative(file: Path, root: Path) -> Path:
    """`file` below `root`, by the names as given, so that linked files keep their place in the tree."""
    base = root.parent if root.is_file() else root
    relative = Path(os.path.relpath(os.path.abspath(file), os.path.abspath(base)))
    if relative.parts[0] == "..":
        _fail(file, f"lies outside the dataset folder {root}", "give volumes of that folder only")
    return relative


def check_target(target: Path, output_dir: Path, inputs: set[str]) -> None:
    """Make sure that a result stays in the output folder, links followed, and is none of the inputs (real paths).

    Raises:
        DatasetError: it does not.
    """
    real, real_dir = os.path.realpath(target), os.path.realpath(output_dir)
    if os.path.commonpath([real, real_dir]) != real_dir:
        _fail(target, f"a link leads outside the output folder, to {real}", "remove the link or choose another folder")
    if real in inputs:
        _fail(target, "the output would overwrite an input", "choose another output folder or suffix")
