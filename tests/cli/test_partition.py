"""A folder shared by several processes: each volume once, one table, and another run makes up for what was lost."""

from __future__ import annotations

import csv
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from cli_command import command
from conftest import blob_volume
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from bundle.cli.partition import divide
from bundle.cli.run import LOCK
from bundle.inference.model import own_device
from bundle.inference.shipped import models_folder, weights_path

BLOB = blob_volume((12, 10, 3), (5.5, 4.0, 1.0), sigma=3.0)
NAMES = tuple("abcde")
IGNORED = {"seconds", "result"}  # the time, and the folder
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_CPUS_PER_TASK")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def folder(tmp_path: Path, write_nifti: Callable[..., Path]) -> Path:
    """A folder `in` with five volumes of different sizes and one that cannot be read."""
    for number, name in enumerate(NAMES, start=1):
        write_nifti(tmp_path / "in" / f"{name}.nii", BLOB[: 6 + number])
    return tmp_path


@contextmanager
def as_process(rank: int, count: int, **more: str) -> Iterator[None]:
    """Set the variables in this process that a launcher sets for one of several."""
    with pytest.MonkeyPatch.context() as patch:
        for name in LAUNCHER:
            patch.delenv(name, raising=False)
        for name, value in {"RANK": str(rank), "WORLD_SIZE": str(count), **more}.items():
            patch.setenv(name, value)
        yield


def rows(out: Path) -> list[dict[str, str]]:
    """The table of a run without columns that differ between equal runs."""
    with open(out / "results.csv", newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k not in IGNORED} for row in csv.DictReader(file)]


def run_of(out: Path) -> str:
    """The name of the run that has one saved part."""
    [part] = out.glob(".iconet-sr.*.json")
    return part.name.split(".")[2]


def hidden(out: Path) -> set[str]:
    return {path.name for path in out.iterdir() if path.name.startswith(".")} - {LOCK}


# ------------------------------------------------------------------------------------------------------ the division


@given(st.lists(st.integers(0, 1000), max_size=40), st.integers(1, 9))
def test_shares_differ_by_no_more_than_the_largest_piece(sizes: list[int], count: int) -> None:
    taken = divide(sizes, count)
    assert len(taken) == len(sizes) and set(taken) <= set(range(count))
    loads = [sum(max(size, 1) for size, share in zip(sizes, taken, strict=True) if share == n) for n in range(count)]
    assert max(loads) - min(loads) <= max(map(int, [1, *sizes]))


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("x", "2"), ("", "2"), ("0", "x"), ("0", "0")])
def test_variables_that_make_no_sense_are_wrong_use(rank: str, size: str, folder: Path) -> None:
    with as_process(0, 1, RANK=rank, WORLD_SIZE=size):
        done = command(folder / "in", folder / "out")
    assert done.exit_code == 2 and f"RANK='{rank}', WORLD_SIZE='{size}'" in done.stderr


def test_each_process_of_a_node_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert own_device(None) == "cuda:0"
    for local_rank, asked, index in (("3", None, 3), ("5", "cuda", 1)):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        assert own_device(asked) == f"cuda:{index}"
        assert [own_device(name) for name in ("cuda:2", "cpu")] == ["cuda:2", "cpu"]


# ---------------------------------------------------------------------------------------- one process after the other


def test_the_last_one_writes_the_table_that_one_process_writes_and_speaks_for_all(folder: Path) -> None:
    (folder / "in" / "bad.nii").write_bytes(b"")
    alone = command(folder / "in", folder / "alone")
    assert alone.exit_code == 1
    for rank, (status, says) in enumerate([(0, "2 of 3"), (0, "1 of 3"), (1, "5 done, 0 skipped, 1 failed")]):
        with as_process(rank, 3):
            done = command(folder / "in", folder / "out")
        assert done.exit_code == status and says in done.stderr
        assert (folder / "out" / "results.csv").exists() == (rank == 2)
        assert all(line.startswith(f"[{rank}-of-3] ") for line in done.stderr.splitlines())
    assert rows(folder / "out") == rows(folder / "alone")
    assert hidden(folder / "out") == set()
    for name in NAMES:
        result = f"{name}_SRx2.nii.gz"
        assert (folder / "out" / result).read_bytes() == (folder / "alone" / result).read_bytes()


def test_what_a_process_that_died_left_undone_is_done_by_any_number_of_processes(folder: Path) -> None:
    for rank in (0, 2):  # number 1 never started
        with as_process(rank, 3):
            assert command(folder / "in", folder / "out").exit_code == 0
    left = len(NAMES) - len(list((folder / "out").glob("*.nii.gz")))
    assert left > 0 and not (folder / "out" / "results.csv").exists()
    done = command(folder / "in", folder / "out")
    assert done.exit_code == 0 and f"{left} done, {len(NAMES) - left} skipped, 0 failed" in done.stderr
    assert hidden(folder / "out") == set()


def test_processes_that_the_launcher_started_as_jobs_of_their_own_make_one_table(folder: Path) -> None:
    for rank in range(2):
        names = dict.fromkeys(("TORCHELASTIC_RUN_ID", "MASTER_PORT", "SLURM_JOB_ID", "SLURM_STEP_ID"), str(rank))
        with as_process(rank, 2, **names):
            assert command(folder / "in", folder / "out").exit_code == 0
    assert len(rows(folder / "out")) == len(NAMES)
    assert hidden(folder / "out") == set()


@pytest.mark.parametrize("changed", ["settings", "weights", "overwrite", "a new volume", "another size"])
def test_parts_of_a_run_with_another_plan_are_not_taken_for_those_of_this_one(changed, folder, write_nifti) -> None:
    with as_process(0, 2):
        assert command(folder / "in", folder / "out").exit_code == 0
    options = {"settings": ["--data-consistency", "0.5"], "overwrite": ["--overwrite"]}.get(changed, [])
    if changed == "weights":
        state = torch.load(weights_path(models_folder(), scale=2), weights_only=True)
        torch.save({name: value * 1.01 for name, value in state.items()}, folder / "other.pt")
        options = ["--weights", folder / "other.pt"]
    elif changed in ("a new volume", "another size"):
        write_nifti(folder / "in" / ("f.nii" if changed == "a new volume" else "a.nii"), BLOB)
    with as_process(1, 2):
        done = command(folder / "in", folder / "out", *options)
    assert done.exit_code == 0 and "still running: 1 of 2 processes" in done.stderr
    assert not (folder / "out" / "results.csv").exists()
    with as_process(0, 2):
        assert command(folder / "in", folder / "out", *options).exit_code == 0
    assert len(rows(folder / "out")) == len(NAMES) + (changed == "a new volume")
    assert hidden(folder / "out") == set()


def test_the_same_run_again_makes_its_table_again(folder: Path) -> None:
    for status in ("done", "skipped"):
        for rank in range(2):
            with as_process(rank, 2):
                assert command(folder / "in", folder / "out").exit_code == 0
        assert [row["status"] for row in rows(folder / "out")] == [status] * len(NAMES)
        assert hidden(folder / "out") == set()


def test_more_processes_than_volumes(folder: Path) -> None:
    for rank in range(7):
        with as_process(rank, 7):
            assert command(folder / "in", folder / "out").exit_code == 0
    assert [row["volume"] for row in rows(folder / "out")] == [f"{name}.nii" for name in NAMES]


def test_one_volume_with_a_name_is_done_by_one_of_them(folder: Path) -> None:
    for rank in range(2):
        with as_process(rank, 2):
            assert command(folder / "in" / "a.nii", folder / "fine.nii.gz").exit_code == 0
    assert (folder / "fine.nii.gz").exists()


def test_a_dry_run_tells_who_would_do_what(folder: Path) -> None:
    said = []
    for rank in range(2):
        with as_process(rank, 2):
            said += command(folder / "in", folder / "out", "--dry-run").stderr.splitlines()
    assert sorted(line.split(" ")[1] for line in said if "->" in line) == [f"{name}.nii" for name in NAMES]
    assert {line.split(" ")[0] for line in said if "->" in line} == {"[0-of-2]", "[1-of-2]"}


def test_each_has_a_log_of_its_own_and_a_report_is_for_one(folder: Path) -> None:
    with as_process(1, 2):
        command(folder / "in", folder / "out", "--log-json", folder / "log.jsonl")
        assert command(folder / "in", folder / "out", "--report").exit_code == 2
    assert [path.name for path in folder.glob("log*")] == ["log.1-of-2.jsonl"]


@pytest.mark.parametrize(
    ("at_work", "comes"),
    [((1, 3), (0, 1)), ((1, 3), (0, 2)), ((1, 3), (0, 3)), ((0, 1), (1, 3))],
    ids=["alone", "of another number", "of another plan", "many after one"],
)
def test_other_runs_are_kept_out(at_work, comes, folder: Path, monkeypatch) -> None:
    monkeypatch.setattr("bundle.cli.lock.WAIT", 0.1)
    (folder / "out").mkdir()
    rank, count = at_work
    with FileLock(folder / "out" / (LOCK if count == 1 else f".iconet-sr.{'0' * 16}.{rank}-of-{count}.lock")):
        with as_process(*comes):
            done = command(folder / "in", folder / "out")
        assert done.exit_code == 2 and "another run is writing there" in done.stderr
    with as_process(*comes):
        assert command(folder / "in", folder / "out").exit_code == 0


def test_of_the_same_run_started_twice_each_number_is_let_in_once(folder: Path) -> None:
    out = folder / "out"
    with as_process(0, 2):
        assert command(folder / "in", out).exit_code == 0
        with FileLock(out / f".iconet-sr.{run_of(out)}.0-of-2.lock"):
            assert command(folder / "in", out).exit_code == 2
            with as_process(1, 2):
                done = command(folder / "in", out)
            assert done.exit_code == 0 and "still running: 1 of 2 processes" in done.stderr
            assert len(rows(out)) == len(NAMES)
        assert command(folder / "in", out).exit_code == 0
    assert [row["status"] for row in rows(out)].count("skipped") == 3  # those of number 0
    assert hidden(out) == set()


def test_the_same_run_started_twice_and_killed_costs_the_first_one_no_table(folder: Path, monkeypatch) -> None:
    with as_process(0, 2):
        assert command(folder / "in", folder / "out").exit_code == 0
        with monkeypatch.context() as patch:
            patch.setattr("bundle.cli.run._Run._volumes", lambda self: sys.exit(9))
            assert command(folder / "in", folder / "out").exit_code == 9
    with as_process(1, 2):
        assert command(folder / "in", folder / "out").exit_code == 0
    assert [row["status"] for row in rows(folder / "out")] == ["done"] * len(NAMES)


def test_what_another_process_is_writing_is_left_alone(folder: Path) -> None:
    out = folder / "out"
    with as_process(0, 2):
        command(folder / "in", out)
        unfinished = out / f".{'0' * 16}.part"
        unfinished.touch()
        with FileLock(out / f".iconet-sr.{run_of(out)}.1-of-2.lock"):
            assert command(folder / "in", out).exit_code == 0
        assert unfinished.exists()
        assert command(folder / "in", out).exit_code == 0
        assert not unfinished.exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS], ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_warned_of_once_and_used(number: int, folder: Path, monkeypatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    for count in (1, 2):
        out = folder / f"out{count}"
        unfinished = out / f".{'0' * 16}.part"
        out.mkdir()
        unfinished.touch()
        said = ""
        for rank in range(count):
            with as_process(rank, count):
                done = command(folder / "in", out)
            assert done.exit_code == 0, done.stderr
            said += done.stderr
        assert said.count("the file system has no locks") == 1
        assert len(rows(out)) == len(NAMES)
        assert hidden(out) == {unfinished.name}  # its owner is unknown


# ------------------------------------------------------------------------------------------------------ at one time


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_one_of_three_processes_is_killed_and_the_others_finish(folder: Path, write_nifti, bundle_root: Path) -> None:
    for number, name in enumerate(NAMES):
        write_nifti(folder / "in" / f"{name}.nii", blob_volume((32, 32, 3 + number), (15.0, 16.0, 1.0), sigma=6.0))
    out = folder / "out"
    line = [sys.executable, "-m", "bundle", str(folder / "in"), str(out)]
    environment = {k: v for k, v in os.environ.items() if k not in LAUNCHER} | {"OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    line,
                    cwd=bundle_root,
                    env=environment | {"RANK": str(rank), "WORLD_SIZE": "3"},
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for rank in range(3)
        ]
        deadline = time.monotonic() + 300
        while not list(out.glob(".iconet-sr.*.1-of-3.lock")) and time.monotonic() < deadline:
            time.sleep(0.005)
        processes[1].kill()
        said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, -signal.SIGKILL, 0], said
    left = [name for name in NAMES if not (out / f"{name}_SRx2.nii.gz").exists()]
    assert left and not (out / "results.csv").exists()
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *line[1:]]
    done = subprocess.run(launched, cwd=bundle_root, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert {row["volume"][0] for row in rows(out) if row["status"] == "done"} == set(left)
    assert [row["volume"] for row in rows(out)] == [f"{name}.nii" for name in NAMES]
    assert hidden(out) == set()


@pytest.mark.slow
def test_torchrun_reports_a_bad_volume_and_stops_no_other(folder: Path, bundle_root: Path) -> None:
    (folder / "in" / "bad.nii").write_bytes(b"")
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "bundle"]
    environment = {k: v for k, v in os.environ.items() if k not in LAUNCHER} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launched, str(folder / "in"), str(folder / "out")],
        cwd=bundle_root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 1 and "5 done, 0 skipped, 1 failed" in done.stderr
    assert command(folder / "in", folder / "alone").exit_code == 1
    assert rows(folder / "out") == rows(folder / "alone")


# ------------------------------------------------------------------------------------------------------------ Slurm

SRUN = """#!/usr/bin/env bash
[ "$SRUN_CPUS_PER_TASK" = 3 ] || exit 3
shift  # its one option
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 "$@" &
    tasks+=("$!")
done
status=0
for task in "${tasks[@]}"; do wait "$task" || status=$?; done
exit "$status"
"""


def test_the_job_scripts_are_sound_for_the_shell(bundle_root: Path) -> None:
    scripts = sorted((bundle_root / "docs" / "examples").glob("slurm_*.sh"))
    assert len(scripts) == 2
    for script in scripts:
        assert subprocess.run(["bash", "-n", script]).returncode == 0


@pytest.mark.parametrize("script", ["slurm_train.sh", "slurm_inference.sh"])
def test_the_job_scripts_hand_the_cores_of_a_task_to_srun(script: str, tmp_path: Path, bundle_root: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    for name, line in {"srun": 'echo "cores: $SRUN_CPUS_PER_TASK"', "scontrol": "echo node1"}.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    given = {"SLURM_CPUS_PER_TASK": "3", "SLURM_JOB_NODELIST": "node1", "SLURM_NNODES": "1", "SLURM_JOB_ID": "7"}
    environment = {**os.environ, **given, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    line = ["bash", str(bundle_root / "docs" / "examples" / script)]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "cores: 3\n", done.stderr


@pytest.mark.slow
def test_the_job_script_for_folders_does_them_with_a_stand_in_for_slurm(folder: Path, bundle_root: Path) -> None:
    (folder / "in" / "bad.nii").write_bytes(b"")
    activate = folder / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f'export PATH="{Path(sys.executable).parent}:$PATH"\n')
    srun = folder / "srun"
    srun.write_text(SRUN)
    srun.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(bundle_root)}
    environment["SLURM_CPUS_PER_TASK"] = "3"
    line = ["bash", str(bundle_root / "docs" / "examples" / "slurm_inference.sh"), "in", "out", "--scale", "2"]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and "5 done, 0 skipped, 1 failed" in done.stderr, done.stderr
    assert len(rows(folder / "out")) == 6
