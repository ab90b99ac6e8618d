"""What a NIfTI file and its BIDS sidecar state about the slice axis, on every route."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from cli_command import command
from monai.data import MetaTensor
from monai.transforms import EnsureChannelFirst, LoadImage, Orientation

from bundle import super_resolve
from bundle.data import NiftiVolumeReader, read_volume
from bundle.data.nifti.axes import stated_in_meta
from bundle.inference.inferers import VolumeInferer
from bundle.physics.slices import StatedAxes
from bundle.transforms import SlicesLast


def save(
    path: Path, spacing: tuple[float, ...] = (1.5, 3.0, 2.5), shape: tuple[int, ...] = (12, 10, 8), **info
) -> Path:
    voxels = np.random.default_rng(0).gamma(2, 50, shape).astype(np.float32)
    image = nib.Nifti1Image(voxels, np.diag([1.5, 3.0, 2.5, 1]))
    image.header.set_dim_info(**info)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


@pytest.mark.parametrize(
    ("info", "axis"),
    [
        ({"freq": 0, "phase": 1, "slice": 2}, 2),
        ({"slice": 0}, 0),
        ({"freq": 2, "phase": 0}, 1),
        ({"freq": 0}, None),
        ({"phase": 2}, None),
        ({}, None),
        ({"freq": 1, "phase": 1}, None),
        ({"freq": 1, "slice": 1}, None),
    ],
)
def test_dim_info_states_the_slice_axis(info: dict[str, int], axis: int | None, tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz")
    image = nib.load(path)
    image.header["dim_info"] = sum(
        (value + 1) << 2 * ("freq", "phase", "slice").index(key) for key, value in info.items()
    )
    nib.save(image, path)
    assert read_volume(path).stated == StatedAxes(axis, None)


@pytest.mark.parametrize(
    ("direction", "axis"),
    [("i", 0), ("j-", 1), ("k", 2), ("k-", 2), ("x", None), ("", None), (2, None), (None, None), (["k"], None)],
)
def test_the_sidecar_states_the_slice_axis(direction: object, axis: int | None, tmp_path: Path) -> None:
    path = save(tmp_path / "a.b.nii.gz")
    (tmp_path / "a.b.json").write_text(json.dumps({"SliceEncodingDirection": direction, "EchoTime": float("nan")}))
    assert read_volume(path).stated == StatedAxes(None, axis)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "\xff", "[" * 100_000])
def test_a_broken_sidecar_states_nothing(content: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz")
    (tmp_path / "a.json").write_text(content, encoding="latin-1")
    assert read_volume(path).stated == StatedAxes()


def test_sidecars_are_inherited_in_a_bids_dataset_and_nowhere_else(tmp_path: Path) -> None:
    path = save(tmp_path / "sub-01/func/sub-01_task-rest_bold.nii.gz")
    (tmp_path / "task-rest_bold.json").write_text('{"SliceEncodingDirection": "i"}')
    (tmp_path / "T1w.json").write_text('{"SliceEncodingDirection": "k"}')
    (tmp_path / "task-other_bold.json").write_text('{"SliceEncodingDirection": "k"}')
    assert read_volume(path).stated == StatedAxes()
    (tmp_path / "dataset_description.json").write_text("{}")
    assert read_volume(path).stated == StatedAxes(None, 0)
    path.with_name("sub-01_task-rest_bold.json").write_text('{"SliceEncodingDirection": "j"}')
    assert read_volume(path).stated == StatedAxes(None, 1)


@pytest.mark.parametrize("by", ["header", "sidecar", "spacing"])
def test_all_routes_refine_the_plane_that_the_file_states(by: str, tmp_path: Path) -> None:
    path = save(tmp_path / "in/a.nii.gz", **({"slice": 2} if by == "header" else {}))
    if by == "sidecar":
        (tmp_path / "in/a.json").write_text('{"SliceEncodingDirection": "k"}')
    expected = (24, 10, 16) if by == "spacing" else (24, 20, 8)
    assert command(path, tmp_path / "out").exit_code == 0
    written = nib.load(tmp_path / "out/a_SRx2.nii.gz")
    assert written.shape == expected
    record = json.loads((tmp_path / "out/a_SRx2.json").read_text())["SuperResolution"]
    said = [line for line in record["Warnings"] if "--slice-axis" in line]
    assert len(said) == (by != "spacing")
    if by == "header":
        assert written.header.get_dim_info() == (None, None, 2)
        assert super_resolve(nib.load(path)).shape == expected
    loaded = EnsureChannelFirst()(LoadImage(NiftiVolumeReader)(path))
    assert super_resolve(loaded).shape[1:] == expected

    class Twice(torch.nn.Module):
        scale = 2

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    assert VolumeInferer()(loaded[None], Twice()).shape[2:] == expected
    assert SlicesLast()(loaded).shape[-1] == (10 if by == "spacing" else 8)


def test_what_a_file_states_does_not_hold_after_its_axes_were_turned(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", slice=2)
    loaded = EnsureChannelFirst()(LoadImage(NiftiVolumeReader)(path))
    assert stated_in_meta(loaded.meta, loaded.affine.numpy()) == StatedAxes(2, None)
    turned = Orientation("SPL", labels=None)(loaded)
    assert isinstance(turned, MetaTensor)
    assert stated_in_meta(turned.meta, turned.affine.numpy()) == StatedAxes()


def test_metadata_of_monais_own_reader_are_understood(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", slice=2)
    loaded = EnsureChannelFirst()(LoadImage("NibabelReader")(path))
    assert stated_in_meta(loaded.meta, loaded.affine.numpy()) == StatedAxes(2, None)


@pytest.mark.parametrize("by_header", [0, 1, 2])
@pytest.mark.parametrize(
    ("directions", "axis"),
    [
        ([1, 0, 0, 0, 1, 0], 2),
        ([0, 1, 0, 0, 0, -1], 0),
        ([-0.999, 0, 0.045, 0.045, 0, 0.999], 1),
        ([0.7, 0.7, 0, -0.7, 0.7, 0], None),
        ([1, 0, 0, 1, 0, 0], None),
        ([0] * 6, None),
        ([1, 0, 0], None),
        ("x", None),
        ([1e300, 0, 0, 0, float("nan"), 0], None),
    ],
)
def test_directions_of_rows_and_columns_tell_the_axis_and_overrule_dim_info(
    directions: object, axis: int | None, by_header: int, tmp_path: Path
) -> None:
    path = save(tmp_path / "a.nii", slice=by_header)
    (tmp_path / "a.json").write_text(json.dumps({"ImageOrientationPatientDICOM": directions}))
    assert read_volume(path).stated == StatedAxes(by_header if axis in (None, by_header) else None, axis)
    (tmp_path / "a.json").write_text(
        json.dumps({"ImageOrientationPatientDICOM": directions, "SliceEncodingDirection": "k"})
    )
    assert read_volume(path).stated == StatedAxes(by_header if axis in (None, by_header) else None, 2)
