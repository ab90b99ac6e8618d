"""Where each result goes: the output folder mirrors the input tree."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bundle.data.errors import fail_dataset
from bundle.data.find import ENDINGS, split_name
from bundle.data.paths import PathLike
from bundle.options import size_text


def check_folders(dataset_dir: PathLike, output_dir: PathLike) -> None:
    """Check before a run that results can be written, and not into the input folder.

    Raises:
        DatasetError: input and output folder are the same, or the output folder cannot be made or written to.
    """
    source, target = Path(dataset_dir).resolve(), Path(output_dir).resolve()
    if source == target:
        fail_dataset(output_dir, "input and output folder are the same", "give another output folder")
    there = next(folder for folder in (target, *target.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        fail_dataset(output_dir, f"cannot be written ({there} is not a writable folder)", "give another output folder")


def result_suffix(scale: int, voxel_size: str | float | None = None) -> str:
    """What is appended to the name of a result: ``SRx2``, or ``SR0.5x0.6mm`` for a given voxel size."""
    size = size_text(voxel_size)
    return f"SRx{scale}" if size is None else f"SR{size}mm"


def output_paths(
    sources: Sequence[PathLike],
    dataset_dir: PathLike,
    output_dir: PathLike,
    suffix: str,
    rename: Callable[[str, str], str] | None = None,
) -> list[Path]:
    """Where the result of each source goes: `output_dir` mirrors the tree below `dataset_dir`.

    `a/x.nii.gz`, `a/x.nii` and `a/x.hdr` become `a/x_<suffix>.nii.gz`. If several sources map to the same name, the
    .nii.gz file keeps it, the others add their extension (`a/x-nii_<suffix>.nii.gz`) and then a number; names that
    differ only in letter case count as the same. The result depends on the set of sources, not on their order.

    Args:
        sources: volumes below `dataset_dir`, or `dataset_dir` itself if it is a file.
        dataset_dir: the folder (or single volume) that was searched.
        output_dir: need not exist.
        suffix: letters, digits, ".", "_", "-".
        rename: maps a name without extension to the result's, instead of appending `_<suffix>`. Its second argument is
            empty, or letters and digits to be built in if the plain name is taken.

    Returns:
        One path per source, in the order of `sources`, all different, none of them a source.

    Raises:
        DatasetError: a source is outside `dataset_dir`, a result would be outside `output_dir` (links are followed) or
            would overwrite a source, or the suffix is unsafe.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]+", suffix):
        fail_dataset(output_dir, f"unsafe suffix {suffix!r}", "use letters, digits, '.', '_' and '-'")
    files = [Path(source) for source in sources]
    inputs = {os.path.realpath(file) for file in files}
    taken: set[str] = set()
    chosen: dict[Path, Path] = {}
    for file in sorted(set(files), key=lambda file: (ENDINGS.index(split_name(file)[1]), str(file))):
        for name in _candidate_names(file, rename or (lambda stem, mark: f"{stem}{'-' * bool(mark)}{mark}_{suffix}")):
            target = Path(output_dir) / _relative(file, Path(dataset_dir)).with_name(name)
            if str(target).casefold() not in taken:
                break
        taken.add(str(target).casefold())
        check_target(target, Path(output_dir), inputs)
        chosen[file] = target
    return [chosen[file] for file in files]


def _candidate_names(file: Path, rename: Callable[[str, str], str]) -> Iterator[str]:
    stem, ending = split_name(file)
    yield f"{rename(stem, '')}.nii.gz"
    tag = ending.replace(".", "")
    yield f"{rename(stem, tag)}.nii.gz"
    number = 2
    while True:
        yield f"{rename(stem, f'{tag}{number}')}.nii.gz"
        number += 1


def _relative(file: Path, root: Path) -> Path:
    """`file` relative to `root`, links not resolved, so that linked files keep their place in the tree."""
    base = root.parent if root.is_file() else root
    relative = Path(os.path.relpath(os.path.abspath(file), os.path.abspath(base)))
    if relative.parts[0] == "..":
        fail_dataset(file, f"lies outside the dataset folder {root}", "give only volumes of that folder")
    return relative


def check_target(target: Path, output_dir: Path, inputs: set[str]) -> None:
    """Check that a result stays in the output folder (links followed) and is not one of the inputs (real paths).

    Raises:
        DatasetError: otherwise.
    """
    real, real_dir = os.path.realpath(target), os.path.realpath(output_dir)
    if os.path.commonpath([real, real_dir]) != real_dir:
        fail_dataset(
            target, f"a link leads outside the output folder, to {real}", "remove the link or choose another folder"
        )
    if real in inputs:
        fail_dataset(target, "the output would overwrite an input", "choose another output folder or suffix")
