"""Pipes, sockets and devices are never opened: opening one may wait for ever."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_command import command, results
from conftest import blob_volume

from bundle.data import DatasetError, VolumeError, find_volumes, read_volume

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")


@pytest.fixture(autouse=True)
def never_waits() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise AssertionError("waits for a pipe")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    before = os.getcwd()
    os.chdir(path.parent)  # the path of a socket must be short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(before)


def link_to_pipe(path: Path) -> None:
    os.mkfifo(path.parent / ".hidden-pipe")
    path.symlink_to(path.parent / ".hidden-pipe")


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


KINDS = [(pipe, "a pipe"), (listening, "a socket"), (link_to_pipe, "a pipe"), (link_to_device, "a device")]


@pytest.fixture
def scan(tmp_path: Path, write_nifti: Callable[..., Path]) -> Path:
    return write_nifti(tmp_path / "in" / "a.nii.gz", blob_volume((12, 10, 3), (5.5, 4.0, 1.0), sigma=3.0))


@pytest.mark.parametrize(("make", "kind"), KINDS)
@pytest.mark.parametrize("name", ["progress", "b.nii.gz", "b.hdr", "b.dcm", "IM0001", "b.mgz"])
def test_one_in_the_folder_is_skipped_with_a_line(
    make: Callable[[Path], None], kind: str, name: str, scan: Path, tmp_path: Path
) -> None:
    make(scan.parent / name)
    done = command(scan.parent, tmp_path / "out", "--dry-run")
    assert done.exit_code == 0 and f"{name} ({kind}, not a regular file)" in done.stderr
    assert find_volumes(scan.parent) == [scan]


def test_every_one_is_counted(scan: Path, tmp_path: Path) -> None:
    for number in range(3):
        pipe(scan.parent / f"x{number}.nii")
    done = command(scan.parent, tmp_path / "out")
    assert done.exit_code == 0 and done.stderr.count("special files not opened: 3, the first is") == 1
    assert list(results(tmp_path / "out")) == ["a.nii.gz"]


@pytest.mark.parametrize(("make", "kind"), KINDS)
@pytest.mark.parametrize("name", ["x", "x.nii.gz", "x.img"])
def test_one_as_input_or_output_is_refused_in_one_line(
    make: Callable[[Path], None], kind: str, name: str, scan: Path, tmp_path: Path
) -> None:
    make(tmp_path / name)
    for arguments in ((tmp_path / name, tmp_path / "out"), (scan, tmp_path / name, "--overwrite")):
        done = command(*arguments)
        assert done.exit_code == 2 and done.stderr.count("\n") == 1 and kind in done.stderr
    with pytest.raises((DatasetError, VolumeError)):
        find_volumes(tmp_path / name)
        read_volume(tmp_path / name)


def test_one_in_the_place_of_what_a_run_reads_besides_volumes_is_a_line(scan: Path, tmp_path: Path) -> None:
    """Records of earlier runs, the image of a pair, metadata and gradients of a BIDS dataset."""
    pair = scan.parent / "pair.hdr"
    pair.write_bytes(bytes(348))
    pipe(scan.parent / "pair.img")
    (tmp_path / "out").mkdir()
    pipe(tmp_path / "out" / "a_SRx2.json")
    done = command(scan.parent, tmp_path / "out")
    found = results(tmp_path / "out")
    assert done.exit_code == 1 and "exists and was not made by this program" in found["a.nii.gz"]["error"]
    assert "pair.img: cannot be read (a pipe, not a regular file)" in found["pair.hdr"]["error"]

    root, folder = tmp_path / "bids", tmp_path / "bids/sub-1/dwi"
    folder.mkdir(parents=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.10.0"}))
    scan.rename(folder / "sub-1_dwi.nii.gz")
    pipe(folder / "sub-1_dwi.json")
    done = command(root, tmp_path / "out2")
    assert done.exit_code == 0 and "sub-1_dwi.json is not readable as JSON (a pipe" in done.stderr
    pipe(folder / "sub-1_dwi.bval")
    done = command(root, tmp_path / "out3")
    assert done.exit_code == 1 and "sub-1_dwi.bval" in results(tmp_path / "out3").popitem()[1]["error"]
