"""Data lists for bundle runs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

from bundle.data import (
    VolumeError,
    check_folders,
    evaluation_datalist,
    inference_datalist,
    read_header,
    training_datalist,
)
from bundle.data.bids_sidecar import DESCRIPTION
from bundle.data.errors import fail_dataset
from bundle.data.find import files_below
from bundle.data.formats import left_out
from bundle.data.meaning import is_label_map
from bundle.data.sidecar import is_result
from bundle.workflow.errors import one_line_exit

logger = logging.getLogger("iconet")


@one_line_exit
def inference_data(dataset_dir: str, output_dir: str) -> list[dict[str, str]]:
    """:func:`bundle.data.inference_datalist`, after checking that results can be written, and to another folder."""
    check_folders(dataset_dir, output_dir)
    found = inference_datalist(dataset_dir, exclude=output_dir)
    originals = [item for item in found if not is_result(Path(item["image"]))]
    if not originals:
        fail_dataset(dataset_dir, "holds only results of this program", "give the folder of the originals")
    root, every = Path(dataset_dir), len(originals)
    if (root / DESCRIPTION).is_file():
        originals = [item for item in originals if not is_label_map(Path(item["image"]))]
        if not originals:
            fail_dataset(dataset_dir, "holds label maps and no image", "give a folder with their images")
    if labels := every - len(originals):
        logger.warning(
            "%s: label maps left out: %d; python -m bundle carries them to the grid of the results", dataset_dir, labels
        )
    for expected, line in left_out(root, files_below(root, output_dir)) if root.is_dir() else ():
        logger.log(logging.WARNING if expected else logging.INFO, "%s", line)
    if every < len(found):
        logger.info("%s: %d results of earlier runs are not taken as input", dataset_dir, len(found) - every)
    return originals


@one_line_exit
def training_data(
    dataset_dir: str,
    split: str,
    split_file: str | None,
    seed: int,
    slice_axis: int | Literal["auto"] | None = None,
) -> list[dict[str, Any]]:
    """:func:`bundle.data.training_datalist`, with the number of dimensions of every volume checked in its header."""
    return _three_dimensional(training_datalist(dataset_dir, split, split_file, seed=seed, slice_axis=slice_axis))


@one_line_exit
def evaluation_data(dataset_dir: str, split: str, split_file: str | None) -> list[dict[str, Any]]:
    """:func:`bundle.data.evaluation_datalist`, with the number of dimensions of every volume checked in its header."""
    return _three_dimensional(evaluation_datalist(dataset_dir, split, split_file))


def _three_dimensional(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for item in items:
        shape = read_header(item["image"]).get_data_shape()
        if len(shape) != 3:
            wrong = f"{len(shape)} dimensions; training and evaluation take 3-D volumes (X, Y, slices)"
            raise VolumeError(f"{item['image']}: {wrong}")
    return items
