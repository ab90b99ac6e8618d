"""Metadata by BIDS inheritance: which files apply, which of them wins, and what is never opened."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bundle import super_resolve
from bundle.data.bids_sidecar import applicable, sidecar_metadata


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A name in a dataset; the volume itself is not needed."""
    (tmp_path / "dataset_description.json").write_text("{}")
    folder = tmp_path / "sub-1/func"
    folder.mkdir(parents=True)
    return folder / "sub-1_task-a_acq-x_bold.nii.gz"


def put(path: Path, **content: object) -> None:
    path.write_text(json.dumps(content))


def test_the_own_sidecar_wins_whatever_the_order_of_the_names(volume: Path) -> None:
    put(volume.with_name("sub-1_task-a_acq-x_bold.json"), EchoTime=1)
    put(volume.with_name("sub-1_task-a_bold.json"), EchoTime=2, FlipAngle=2)
    put(volume.with_name("task-a_bold.json"), EchoTime=3, FlipAngle=3, Units="x")
    put(volume.with_name("sub-1_task-b_bold.json"), EchoTime=4)
    assert sidecar_metadata(volume) == {"EchoTime": 1, "FlipAngle": 2, "Units": "x"}


def test_nearer_folders_win_and_other_endings_follow_the_same_rule(volume: Path, tmp_path: Path) -> None:
    near, far = volume.with_name("sub-1_task-a_acq-x_bold.bval"), tmp_path / "bold.bval"
    near.touch()
    far.touch()
    assert list(applicable(tmp_path, volume, "bval")) == [far, near]
    assert list(applicable(None, volume, "bval")) == [near]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_among_inherited_sidecars_is_not_opened(volume: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "bold.json")
    put(volume.with_name("sub-1_task-a_acq-x_bold.json"), EchoTime=1)
    assert sidecar_metadata(volume) == {"EchoTime": 1}


def test_the_python_call_takes_the_slice_axis_from_the_sidecar_of_a_loaded_file(volume: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((6, 8, 10), np.float32), np.eye(4)), volume)
    put(volume.parents[2] / "task-a_bold.json", SliceEncodingDirection="i-")
    image = nib.load(volume)
    assert super_resolve(image).shape == (6, 16, 20)
    changed = nib.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine, image.header)
    assert super_resolve(changed).shape == (12, 16, 10)
