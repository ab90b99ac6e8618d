"""Temporary files: those of a living process stay, those of a killed one go, whoever looks at them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_command import command, results
from conftest import blob_volume

from bundle.data.atomic import remove_partial_files, replacing, replacing_folder

pytest.importorskip("fcntl")

WRITER = """
import sys, time
from pathlib import Path
from bundle.data.atomic import replacing, replacing_folder
kind, target = sys.argv[1], Path(sys.argv[2])
with (replacing if kind == "file" else replacing_folder)(target) as place:
    if kind == "file":
        place.write(b"half")
    else:
        (place / "SR00001.dcm").write_bytes(b"half")
    print("writing", flush=True)
    sys.stdin.readline()
"""

BUSY = """
import sys
from pathlib import Path
from bundle.data.atomic import replacing, replacing_folder
for number in range(150):
    target = Path(sys.argv[1], f"{sys.argv[2]}-{number}")
    if number % 2:
        with replacing(target) as stream:
            stream.write(b"whole")
    else:
        with replacing_folder(target) as folder:
            (folder / "SR00001.dcm").write_bytes(b"whole")
"""


@contextmanager
def writer(kind: str, target: Path, root: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is in the middle of writing `target` until it gets a line."""
    line = [sys.executable, "-c", WRITER, kind, str(target)]
    with subprocess.Popen(line, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("earlier", [False, True])
def test_what_a_living_process_writes_stays_and_what_a_killed_one_left_goes(
    kind: str, earlier: bool, tmp_path: Path, bundle_root: Path
) -> None:
    target = tmp_path / "sub" / "x"
    if earlier:
        with (replacing if kind == "file" else replacing_folder)(target):
            pass
    with writer(kind, target, bundle_root) as process:
        assert remove_partial_files(tmp_path) == 0
        process.communicate("go on\n")
        assert process.returncode == 0 and target.exists()
    assert [path.name for path in target.parent.iterdir()] == ["x"]
    with writer(kind, target, bundle_root) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(list(target.parent.iterdir())) == 2
        assert remove_partial_files(tmp_path) == 1
    assert [path.name for path in target.parent.iterdir()] == ["x"]


def test_writers_never_lose_a_file_to_one_who_cleans_up_all_the_time(tmp_path: Path, bundle_root: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", BUSY, str(tmp_path), name], cwd=bundle_root, stderr=subprocess.PIPE)
        for name in "ab"
    ]
    deadline = time.monotonic() + 120
    while any(process.poll() is None for process in writers) and time.monotonic() < deadline:
        remove_partial_files(tmp_path)
    assert [process.communicate()[1] for process in writers] == [b"", b""]
    found = {path.name: path for path in tmp_path.iterdir()}
    assert set(found) == {f"{name}-{number}" for name in "ab" for number in range(150)}
    files = [path / "SR00001.dcm" if path.is_dir() else path for path in found.values()]
    assert {path.read_bytes() for path in files} == {b"whole"}


def test_the_old_folder_stays_while_its_successor_takes_its_place(tmp_path: Path, monkeypatch) -> None:
    import os

    target, seen = tmp_path / "x", []
    with replacing_folder(target) as folder:
        (folder / "a").write_bytes(b"old")
    real = os.replace

    def looking(source: Path, place: Path) -> None:
        real(source, place)
        seen.append(remove_partial_files(tmp_path))

    monkeypatch.setattr(os, "replace", looking)
    with replacing_folder(target) as folder:
        (folder / "a").write_bytes(b"new")
    assert seen == [0, 0] and (target / "a").read_bytes() == b"new" and list(tmp_path.iterdir()) == [target]


@pytest.fixture
def scan(tmp_path: Path, write_nifti: Callable[..., Path]) -> Path:
    return write_nifti(tmp_path / "in" / "a.nii.gz", blob_volume((12, 10, 3), (5.5, 4.0, 1.0), sigma=3.0))


def test_a_folder_run_beside_a_one_file_run_leaves_its_file_alone(scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with replacing(out / "long_sr.nii.gz") as stream, replacing_folder(out / "below" / "MR-0001") as series:
        done = command(scan.parent, out)
        assert done.exit_code == 0 and "unfinished" not in done.stderr
        stream.write(b"the rest")
        (series / "SR00001.dcm").write_bytes(b"the rest")
    assert (out / "long_sr.nii.gz").read_bytes() == b"the rest" and (out / "below/MR-0001/SR00001.dcm").is_file()
    assert list(results(out)) == ["a.nii.gz"]


def test_a_one_file_run_removes_what_a_killed_one_left_beside_its_result_and_not_below(
    scan: Path, tmp_path: Path
) -> None:
    left, below = (tmp_path / place / f".{'0' * 16}.part" for place in ("out", "out/below"))
    for path in (left, below):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with replacing(tmp_path / "out" / "other") as stream:
        assert command(scan, tmp_path / "out" / "b.nii.gz").exit_code == 0
        stream.write(b"x")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"b.nii.gz", "b.json", "other", "below"} and below.exists()
