"""What this process may use is known from whoever limits it, and what cannot fit is refused before it is tried."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_command import command, results
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bundle.inference import memory
from bundle.inference.memory import (
    BYTES_PER_PIXEL,
    PIXELS_AT_ONCE,
    WITHOUT_KERNELS,
    Room,
    batch_that_fits,
    batch_worth_taking,
    bytes_needed,
    room,
)
from bundle.inference.volume import super_resolve
from bundle.inference.walker import SliceWalker
from bundle.networks import build_network
from bundle.ops import use_backend

GIB = 2**30


def put(root: Path, name: str, text: object) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(f"{text}\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine of 64 GiB on which this process uses 1 GiB."""
    put(tmp_path, "proc/meminfo", f"MemTotal:       {64 * 2**20} kB\nMemFree:        100 kB")
    put(tmp_path, "proc/self/statm", f"{4 * GIB // 4096} {GIB // 4096} 5 1 0 9 0")
    return tmp_path


@pytest.fixture(autouse=True)
def pages_of_4096_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.os, "sysconf", lambda name: 4096)


def found(root: Path, **environment: str) -> tuple[float, str]:
    limit = room(root, environment)
    assert limit is not None
    return limit.bytes / GIB, limit.owner


def test_without_other_limits_the_machine_counts(root: Path) -> None:
    assert found(root) == (63, "this machine")


@pytest.mark.parametrize(
    ("path", "limits", "expected"),
    [
        ("/", {"": "max"}, 63),
        ("/a/b", {"a/b": 8 * GIB}, 7),
        ("/a/b", {"a/b": "max", "a": 6 * GIB}, 5),
        ("/a/b", {"a/b": 8 * GIB, "a": 6 * GIB, "": 4 * GIB}, 3),
        ("/of/the/host", {"": 2 * GIB}, 1),  # a container that sees its own group as the top
        ("/../../x", {"": 2 * GIB}, 1),
        ("/a", {"a": "nonsense"}, 63),
        ("/a", {"b": 2 * GIB}, 63),  # of somebody else
    ],
)
@pytest.mark.parametrize("version", [1, 2, "both"])
def test_the_tightest_of_the_control_group_and_those_above_counts(
    path: str, limits: dict, expected: float, version: object, root: Path
) -> None:
    lines = {1: f"5:cpu,memory:{path}\n1:cpu:/x", 2: f"0::{path}", "both": f"4:memory:/\n0::{path}"}[version]
    put(root, "proc/self/cgroup", lines)
    top = {1: "memory", 2: "", "both": "unified"}[version]
    for place, limit in limits.items():
        text = "9223372036854771712" if version == 1 and limit == "max" else limit
        put(root, f"sys/fs/cgroup/{top}/{place}/{'memory.limit_in_bytes' if version == 1 else 'memory.max'}", text)
    assert found(root) == (expected, "this machine" if expected == 63 else "control group")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_MEM_PER_NODE": "4096"}, 3),
        ({"SLURM_MEM_PER_NODE": "0"}, 63),
        ({"SLURM_MEM_PER_CPU": "1024", "SLURM_CPUS_ON_NODE": "4"}, 3),
        ({"SLURM_MEM_PER_CPU": "1024"}, 63),
        ({"SLURM_MEM_PER_GPU": "2048", "SLURM_GPUS_ON_NODE": "2"}, 3),
        ({"SLURM_MEM_PER_NODE": "much"}, 63),
        ({"SLURM_MEM_PER_NODE": ""}, 63),
    ],
)
def test_a_batch_job_counts(environment: dict, expected: float, root: Path) -> None:
    assert found(root, **environment)[0] == expected


@given(st.lists(st.integers(1, 2**45), min_size=1, max_size=5), st.integers(1, 2**45))
def test_it_is_always_the_smallest_limit_of_all(tmp_path_factory, groups: list[int], machine: int) -> None:
    root = tmp_path_factory.mktemp("root")
    put(root, "proc/meminfo", f"MemTotal: {machine} kB")
    path = "/".join(f"g{n}" for n in range(len(groups)))
    put(root, "proc/self/cgroup", f"0::/{path}")
    for depth, limit in enumerate(groups, start=1):
        put(root, f"sys/fs/cgroup/{'/'.join(path.split('/')[:depth])}/memory.max", limit)
    limit = room(root, {})
    assert limit is not None and limit.bytes == min(*groups, machine * 1024)


class Known(nn.Module):
    """Repeats voxels; its need is that of ICONet."""

    scale = 2

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(image))
        return image.repeat_interleave(2, -1).repeat_interleave(2, -2)


Known.__name__ = "ICONet"
VOLUME = np.random.default_rng(0).random((20, 30, 8), np.float32)


def resolved(space: int, monkeypatch: pytest.MonkeyPatch, walker: SliceWalker) -> tuple[Known, tuple[str, ...]]:
    monkeypatch.setattr(memory, "room", lambda: Room(space, 2 * space, "control group"))
    network = Known()
    return network, super_resolve(VOLUME, np.eye(4), network, 2, walker).notes


@pytest.mark.parametrize(("fitting", "batch"), [(8, 8), (4, 4), (3, 2), (1, 1)])
def test_row_71_the_batch_is_reduced_beforehand_for_this_volume_alone(fitting, batch, monkeypatch) -> None:
    walker = SliceWalker(8, data_consistency=0)
    space = bytes_needed(4 * VOLUME.size, 600, fitting, Known())
    network, notes = resolved(space, monkeypatch, walker)
    assert set(network.batches) == {batch} and walker.slice_batch == 8
    assert notes == (() if batch == 8 else (f"memory is short for this volume: {batch} slices at a time",))


def test_row_71_what_cannot_fit_is_refused_in_one_line_before_the_network_runs(monkeypatch) -> None:
    space = bytes_needed(4 * VOLUME.size, 600, 1, Known()) - 1
    with pytest.raises(MemoryError, match=r"are the limit .control group., .* of them are left; crop or split") as told:
        resolved(space, monkeypatch, SliceWalker())
    assert "\n" not in str(told.value)


def test_a_batch_larger_than_the_volume_has_slices_is_not_counted(monkeypatch) -> None:
    assert batch_that_fits(0, 600, 2, 64, Known(), Room(600 * 2 * BYTES_PER_PIXEL["ICONet", 2], 1, "x")) == 64


def test_the_networks_with_shipped_weights_are_known_and_others_count_nothing() -> None:
    for name in ("residual_sr", "iconet_small"):
        for scale in (2, 4):
            network = build_network(name, scale)
            assert bytes_needed(0, 1, 1, network) == BYTES_PER_PIXEL[type(network).__name__, scale]
            assert bytes_needed(0, 1, 1, nn.DataParallel(network)) == bytes_needed(0, 1, 1, network.forward)
    assert bytes_needed(0, 1, 1, nn.Identity()) == 0 == bytes_needed(0, 1, 1, None)


def test_row_71_the_command_refuses_a_volume_from_its_header_and_goes_on(
    tmp_path: Path, write_nifti, monkeypatch
) -> None:
    write_nifti(tmp_path / "in" / "large.nii.gz", np.zeros((4000, 4000, 1), np.uint8))
    write_nifti(tmp_path / "in" / "small.nii.gz", VOLUME)
    monkeypatch.setattr(memory, "room", lambda: Room(GIB // 2, GIB, "batch job"))
    done = command(tmp_path / "in", tmp_path / "out")
    rows = results(tmp_path / "out")
    assert done.exit_code == 1 and rows["small.nii.gz"]["status"] == "done"
    assert "1 GiB are the limit (batch job)" in rows["large.nii.gz"]["error"]


PROGRAM = """
import resource, numpy as np, torch
from bundle.inference.volume import super_resolve
from bundle.networks import build_network
network = build_network("residual_sr", 2)
mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**28, resource.RLIM_INFINITY))
def never(image):
    raise AssertionError("the network was run")
network.forward = never
try:
    super_resolve(np.ones((900, 900, 1), np.float32), np.eye(4), network, 2)
except MemoryError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_row_71_a_limit_of_the_shell_is_respected(bundle_root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=bundle_root, capture_output=True, text=True, timeout=120, check=True
    )
    assert "are the limit (ulimit -v)" in done.stdout and done.stdout.count("\n") == 1


def test_plain_pytorch_counts_for_more_than_the_native_kernels() -> None:
    network = build_network("iconet_small", 2)
    with use_backend("torch"):
        assert bytes_needed(0, 1, 1, network) == WITHOUT_KERNELS["ICONet", 2] > BYTES_PER_PIXEL["ICONet", 2]


def test_large_slices_go_through_the_network_one_by_one_without_a_word_about_memory(monkeypatch) -> None:
    assert [batch_worth_taking(side**2, 4) for side in (512, 1024, 2048, 4096)] == [4, 4, 1, 1]
    assert PIXELS_AT_ONCE == 4 * 1024**2
    monkeypatch.setattr("bundle.inference.memory.PIXELS_AT_ONCE", 1)
    walker = SliceWalker(slice_batch=4)
    network, notes = resolved(2**40, monkeypatch, walker)
    assert set(network.batches) == {1} and notes == () and walker.slice_batch == 4
