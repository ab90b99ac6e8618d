"""A run by the clock, rehearsed on the CPU: packed data, proved kernels, a queue that goes on, small files back."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from gpu import kernels, trainings
from gpu.jobs import Job, python, run_jobs
from gpu.pack import PackError, Slices, decoded, encoded, pack, unpack
from gpu.parts import PartsError, cut, extract, gather, joined
from gpu.plan import Entry, Plan, PlanError, read_plan
from gpu.report import Report, read_report
from gpu.results import Room, described, pack_results, rebuild_checkpoints, write_tables
from gpu.trainings import Place, Training, evaluate_queue, train_queue

from bundle.networks import NETWORKS
from bundle.options import CONFIG_OPTIONS

ROOT = Path(__file__).resolve().parents[2]

# --------------------------------------------------------------------------------------------------------------- data


def oblique(spacing: tuple[float, float, float]) -> np.ndarray:
    """An affine with a rotation about z and an origin."""
    c, s = np.cos(0.3), np.sin(0.3)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * spacing
    affine[:3, 3] = [11.0, -7.5, 3.0]
    return affine


CASES = {
    "thick.nii.gz": ((24, 16, 40), (1.0, 1.0, 4.0), 2, 1.0),
    "thin.nii.gz": ((16, 24, 30), (0.7, 0.7, 1.0), 2, 1.0),
    "slices_first.nii.gz": ((12, 16, 24), (5.0, 1.0, 1.0), 0, 1.0),
    "units.nii.gz": ((16, 16, 5), (2.0, 2.0, 4.0), 2, 0.0173),
    "single_slice.nii.gz": ((16, 24, 1), (2.0, 2.0, 4.0), 2, 1.0),
}
"""Name -> shape, voxel size, slice axis, unit of the values."""


@pytest.fixture
def volumes(tmp_path, write_nifti):
    """Volumes of several kinds with a split file; the thick one has empty slices at its ends."""
    random, folder = np.random.default_rng(0), tmp_path / "volumes"
    rows = ["file,subject,modality,split"]
    for number, (name, (shape, spacing, _, unit)) in enumerate(CASES.items()):
        data = random.integers(0, 3000, shape).astype(np.float32) * unit
        if name.startswith("thick"):
            data[:, :, :5], data[:, :, -3:] = 0, 0
        write_nifti(folder / "a" / name, data.astype(np.float32), oblique(spacing))
        rows.append(f"a/{name},s{number},MR,{'val' if number == 1 else 'train'}")
    rows.append("a/not_there.nii.gz,s9,MR,test")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_an_unpacked_volume_has_the_values_of_the_same_places_within_half_a_step(volumes, tmp_path):
    pack(volumes, volumes / "manifest.csv", tmp_path / "data.pack", Slices(15, 5))
    table = unpack(tmp_path / "data.pack", tmp_path / "there")
    rows = {row["file"]: row for row in csv.DictReader(table.open())}
    assert list(rows) == [f"a/{name}" for name in CASES]  # the test split stays at home
    for name, (_, _, axis, _) in CASES.items():
        old, new = (nib.load(folder / "a" / name) for folder in (volumes, table.parent))
        assert new.get_data_dtype() == np.int16
        step = new.dataobj.slope
        assert step <= np.abs(old.get_fdata()).max() / 500
        corners = np.array([[0, 0, 0, 1], [*(n - 1 for n in new.shape), 1]]).T
        there = np.linalg.inv(old.affine) @ new.affine @ corners
        assert there == pytest.approx(np.rint(there), abs=1e-4), "voxels lie on voxels"
        first, last = np.rint(there[:3]).astype(int).T
        count = new.shape[axis]
        picked = [slice(f, z + 1) for f, z in zip(first, last, strict=True)]
        picked[axis] = slice(first[axis], last[axis] + 1, max((last[axis] - first[axis]) // max(count - 1, 1), 1))
        assert np.abs(old.get_fdata()[tuple(picked)] - new.get_fdata()).max() <= step * 0.501
        assert rows[f"a/{name}"]["slices"] == str(count)
        others = [n for i, n in enumerate(new.shape) if i != axis]
        assert others == [n for i, n in enumerate(old.shape) if i != axis]


def test_slices_are_foreground_evenly_spaced_and_every_second_one_of_thin_volumes(volumes, tmp_path):
    pack(volumes, volumes / "manifest.csv", tmp_path / "data.pack", Slices(15, 15))
    folder = unpack(tmp_path / "data.pack", tmp_path / "there").parent / "a"
    thick, thin = nib.load(folder / "thick.nii.gz"), nib.load(folder / "thin.nii.gz")
    assert thick.shape[2] == 16 and thick.header.get_zooms()[2] == pytest.approx(8)  # 32 of 40, every second one
    assert thin.shape[2] == 15 and thin.header.get_zooms()[2] == pytest.approx(2)
    assert (np.percentile(thick.get_fdata(), 99, axis=(0, 1)) > 0).all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3)])
def test_the_coding_gives_back_every_integer(shape):
    integers = np.random.default_rng(0).integers(-32768, 32768, shape).astype(np.int16)
    integers.flat[0] = -32768
    assert np.array_equal(decoded(encoded(integers), shape), integers)


def test_a_pack_above_its_limit_and_a_missing_volume_are_refused_and_nothing_is_written(volumes, tmp_path):
    with pytest.raises(PackError, match="MiB of 0 allowed"):
        pack(volumes, volumes / "manifest.csv", tmp_path / "data.pack", limit=100)
    (volumes / "a/thin.nii.gz").unlink()
    with pytest.raises(PackError, match=r"line 3: a/thin.nii.gz does not exist"):
        pack(volumes, volumes / "manifest.csv", tmp_path / "data.pack")
    assert not (tmp_path / "data.pack").exists()
    (tmp_path / "data.pack").write_bytes(b"no pack")
    with pytest.raises(PackError, match="cannot be unpacked"):
        unpack(tmp_path / "data.pack", tmp_path / "there")


# -------------------------------------------------------------------------------------------------------------- parts


def test_joined_parts_are_byte_equal_and_a_missing_one_is_named(tmp_path):
    data = np.random.default_rng(0).bytes(10_001)
    paths = cut(data, tmp_path, 1000)
    assert len(paths) == 11 and max(path.stat().st_size for path in paths) == 1000
    assert joined(tmp_path) == data
    paths[4].unlink()
    with pytest.raises(PartsError, match="missing"):
        joined(tmp_path)
    assert len(cut(data, tmp_path, 6000)) == 2 and joined(tmp_path) == data  # parts of an earlier run are gone


def test_an_archive_keeps_its_limit_and_takes_what_fits_in_order(tmp_path):
    random = np.random.default_rng(0)
    contents = {"a/ema.pt": random.bytes(5000), "b/state.pt": random.bytes(9000), "c/entry.json": b"{}"}
    data, left_out = gather([(name, lambda c=c: c) for name, c in contents.items()], 12_000)
    assert left_out == ["b/state.pt"] and len(data) <= 12_000
    cut(data, tmp_path / "parts", 700)
    assert extract(tmp_path / "parts", tmp_path / "out") == ["a/ema.pt", "c/entry.json"]
    assert (tmp_path / "out/a/ema.pt").read_bytes() == contents["a/ema.pt"]
    sorted((tmp_path / "parts").iterdir())[-1].unlink()
    with pytest.raises(PartsError, match="last one missing"):
        extract(tmp_path / "parts", tmp_path / "out")


# --------------------------------------------------------------------------------------------------------------- plan


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_plan_of_the_repository_has_the_queue_in_order_with_options_that_exist(device):
    plan = read_plan(ROOT / "configs/gpu/plan.yaml", ROOT, device)
    assert [entry.name for entry in plan.queue[:6]] == [
        *("residual_sr_x2", "residual_sr_x4", "iconet_paper_x2", "iconet_paper_x4"),
        *("iconet_small_x2", "iconet_small_x4"),
    ]
    assert sum(plan.shares.values()) == pytest.approx(1)
    assert plan.at_once == (1 if device == "cpu" else 3)
    trained = {(e.network_name, e.scale) for e in plan.queue if not e.configs}
    assert trained == {(name, scale) for name in NETWORKS for scale in (2, 4)}
    rows = [entry for entry in plan.queue if entry.configs]
    assert len(rows) == 16 and all(entry.network_name == "iconet_paper" for entry in rows)
    assert {entry.scale for entry in rows} == {2, 4}
    for entry in plan.queue:
        assert entry.network_name in NETWORKS
        assert not [key for key in entry.options if key not in CONFIG_OPTIONS and not key.startswith("network_def#")]
    baselines = [e for e in plan.queue if e.network_name in NETWORKS and NETWORKS[e.network_name].is_baseline]
    assert len({e.updates for e in baselines}) == 1 and not any(e.fit for e in baselines), "compared at equal updates"


def test_what_a_row_of_a_table_sets_is_left_to_it(tmp_path):
    plan = read_plan(ROOT / "configs/gpu/plan.yaml", ROOT, "cpu")
    row = next(entry for entry in plan.queue if "return_stages-False" in entry.name)
    assert row.scale == 4 and row.configs[-1].endswith("table8_1_single_stage.yaml")
    words = Training(row, Place(ROOT, tmp_path, "cpu")).job().command
    assert "--scale" not in words and "--network_name" in words
    swin = next(entry for entry in plan.queue if entry.configs and entry.configs[-1].endswith("table9_1_swin.yaml"))
    words = list(Training(swin, Place(ROOT, tmp_path, "cpu")).evaluation().command)
    assert words[words.index("--network_def#_target_") + 1] == "comparison.swin.swin_iconet"
    assert words[words.index("--data_consistency") + 1] == "0.0"


@pytest.mark.parametrize(
    ("queue", "said"),
    [
        ([{"network_name": "srcnn", "updates": 4}], "KeyError: 'scale'"),
        ([{"network_name": "srcnn", "scale": 2, "updates": 4}] * 2, "two entries are called srcnn_x2"),
        ([{"table": 3, "network_name": "srcnn", "updates": 4}], "tables 4 to 9"),
        (None, "TypeError"),
    ],
)
def test_a_plan_that_cannot_be_used_says_why(queue, said, tmp_path):
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({"queue": queue}))
    with pytest.raises(PlanError, match=said):
        read_plan(tmp_path / "plan.yaml", ROOT, "cpu")


# --------------------------------------------------------------------------------------------------------------- jobs


def shell(name: str, program: str, folder: Path, **limits: float) -> Job:
    return Job(name, [sys.executable, "-c", program], folder / f"{name}.log", **limits)


def test_a_job_that_fails_or_hangs_does_not_stop_the_others(tmp_path):
    waiting = deque(
        [
            shell("bad", "print('first'); raise SystemExit('it is broken')", tmp_path),
            shell("hangs", "import time; time.sleep(100)", tmp_path, seconds=0.5),
            shell("good", "print('fine')", tmp_path),
        ]
    )
    ended = {one.job.name: one for one in run_jobs(waiting, 2, time.monotonic() + 60, tmp_path)}
    assert {name: one.state for name, one in ended.items()} == {"bad": "failed", "hangs": "stopped", "good": "done"}
    assert ended["bad"].why == "it is broken" and ended["good"].why == ""


def test_the_deadline_stops_what_runs_and_starts_nothing_more(tmp_path):
    sleep = "import time; open('started', 'a').write('x'); time.sleep(100)"
    waiting = deque(shell(str(n), sleep, tmp_path) for n in range(3))
    ended = list(run_jobs(waiting, 1, time.monotonic() + 1.5, tmp_path))
    assert [one.state for one in ended] == ["stopped"] and len(waiting) == 2


def test_the_interpreter_of_triton_is_never_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    job = shell("a", "import os; print(os.environ.get('TRITON_INTERPRET'), os.environ['OMP_NUM_THREADS'])", tmp_path)
    list(run_jobs(deque([job]), 1, time.monotonic() + 60, tmp_path))
    assert job.log.read_text() == "None 1\n"


# ------------------------------------------------------------------------------------------------------------ kernels


def test_the_proof_holds_for_the_kernels_of_this_machine_and_times_them(tmp_path):
    report = Report(tmp_path / "kernels.json", "cpu")
    assert kernels.prove(report, kernels.TINY, "cpu")
    kernels.time_kernels(report, {"tiny": kernels.TINY[0]}, "cpu", repeats=1)
    content = read_report(tmp_path / "kernels.json")
    assert len(content["proof"]) == 2 * 2 * len(kernels.TINY) and content["proved"] is True
    assert {row["what"] for row in content["times"]} >= {"scan", "scan and gradient", "search"}
    assert all(isinstance(row["ms"], float) for row in content["times"])
    assert len(kernels.PROOF) == 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_gradient_and_a_wrong_match_are_found(dtype, monkeypatch):
    def wrong(x, proj, *rest):
        return right(x, proj, *rest) + (0.0 if x.dtype == torch.float64 else 0.1) * x

    right = kernels.selective_scan_2d
    assert kernels.prove_scan(kernels.TINY[1], dtype, "cpu")["ok"]
    monkeypatch.setattr(kernels, "selective_scan_2d", wrong)
    row = kernels.prove_scan(kernels.TINY[1], dtype, "cpu")
    assert not row["ok"] and row["errors"]["dx"] > kernels.TOLERANCE[dtype] > row["errors"]["dA"]

    def second(query, key, value):
        found = matches(query, key, value)
        return found._replace(indices=found.indices if query.dtype == torch.float64 else found.indices.roll(1, 1))

    matches = kernels.patch_match
    monkeypatch.setattr(kernels, "patch_match", second)
    assert not kernels.prove_search(kernels.TINY[1], dtype, "cpu")["ok"]


# ------------------------------------------------------------------------------------------------- queue, with a stub

STUB = """
import sys, time
from pathlib import Path
import torch
given = {w.removeprefix("--"): v for w, v in zip(sys.argv, sys.argv[1:]) if w.startswith("--")}
if given["network_name"] == "vdsr":
    sys.exit("no such network today")
folder, last = Path(given["output_dir"]), Path(given["output_dir"]) / "last.pt"
epochs, each = int(given["epochs"]), int(given["updates_per_epoch"])
state = torch.load(last) if last.is_file() else {"trainer": {"iteration": 0}, "ema": {"w": torch.zeros(3)}}
print("begins at", state["trainer"]["iteration"], "of", epochs, flush=True)
for epoch in range(state["trainer"]["iteration"] // each, epochs):
    time.sleep(float(given["learning_rate"]))
    state["trainer"]["iteration"] += each
    state["ema"]["w"] += 1
    state["optimizer"] = {"m": torch.ones(1000)}
    torch.save(state, folder / "new.pt")
    (folder / "new.pt").replace(last)
    tail = ", validation PSNR 33.21 dB, +0.75 dB over zero-filled Fourier" if epoch + 1 == epochs else ""
    print(f"epoch {epoch + 1} of {epochs}: loss 0.1{tail}", flush=True)
"""


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """In place of a training of half a minute one that counts, and sleeps `learning_rate` seconds an epoch."""
    (tmp_path / "stub.py").write_text(STUB)

    def command(run_id, config, given):
        return python(tmp_path / "stub.py", *(word for k, v in given.items() for word in (f"--{k}", v)))

    monkeypatch.setattr(trainings, "_bundle", command)


def entry(name: str = "srcnn", updates: int = 8, seconds: float = 0.0, fit: bool = False, **options: object) -> Entry:
    common = {"updates_per_epoch": 2, "learning_rate": seconds, **options}
    return Entry(f"{name}_x2", name, 2, updates, 1.0, fit, (), common)


def queue(folder: Path, *entries: Entry) -> list[Training]:
    return [Training(one, Place(ROOT, folder, "cpu")) for one in entries]


def train(folder: Path, *entries: Entry, seconds: float = 60, at_once: int = 1) -> list[Training]:
    plan = Plan(entries, at_once, {})
    found = queue(folder, *entries)
    train_queue(found, plan, time.monotonic() + seconds)
    return found


def begun(folder: Path, *entries: Entry) -> list[Training]:
    """Runs of a few seconds until the clock stopped the first training after at least one epoch."""
    while not (found := train(folder, *entries, seconds=5))[0].record["updates"]:
        pass
    return found


@pytest.mark.usefixtures("stub")
def test_a_failing_training_does_not_stop_the_others_and_finished_ones_are_skipped(tmp_path):
    entries = entry("vdsr"), entry("srcnn"), entry("fmisr")
    bad, *good = train(tmp_path / "runs", *entries, at_once=2)
    assert bad.record["state"] == "failed" and bad.record["why"] == "no such network today"
    assert [one.record["state"] for one in good] == ["finished"] * 2
    assert good[0].record["validation"] == {"updates": 8, "psnr": 33.21, "gain": 0.75}
    assert torch.load(good[0].folder / "ema.pt")["w"].tolist() == [4, 4, 4]
    again = train(tmp_path / "runs", *entries)
    assert all((one.folder / "training.log").read_text().count("begins") == 1 for one in again[1:])


@pytest.mark.usefixtures("stub")
def test_a_queue_that_the_clock_stopped_goes_on_to_its_end(tmp_path):
    slow, second = entry("srcnn", updates=400, seconds=0.1), entry("fmisr")
    first = begun(tmp_path / "runs", slow, second)
    assert [one.record["state"] for one in first] == ["stopped", "waiting"]
    done = first[0].record["updates"]
    assert 0 < done < 400
    last = train(tmp_path / "runs", entry("srcnn", updates=done + 8, seconds=0.1), second)  # shorter, to be quick
    assert [one.record["state"] for one in last] == ["finished"] * 2
    assert f"begins at {done} of" in (last[0].folder / "training.log").read_text()
    assert torch.load(last[0].folder / "ema.pt")["w"][0] == done / 2 + 4


@pytest.mark.usefixtures("stub")
def test_a_run_that_was_killed_is_taken_up_from_its_checkpoint(tmp_path):
    (one,) = train(tmp_path / "runs", entry())
    one.note(state="waiting", updates=0)
    (one,) = train(tmp_path / "runs", entry())
    assert one.finished and (one.folder / "training.log").read_text().count("begins") == 1


@pytest.mark.usefixtures("stub")
def test_a_training_that_is_to_fit_is_made_shorter_and_ends_in_time(tmp_path):
    (one,) = train(tmp_path / "runs", entry(updates=4000, seconds=0.1, fit=True), seconds=15)
    assert one.record["state"] == "shortened" and not one.finished
    assert 0 < one.record["updates"] == one.length < 4000
    log = (one.folder / "training.log").read_text()
    assert "begins at 0 of 2000" in log and log.count("begins") == 2
    assert one.record["validation"]["updates"] == one.length  # its schedule came to its end


@pytest.mark.usefixtures("stub")
def test_a_folder_of_another_training_is_left_alone(tmp_path):
    train(tmp_path / "runs", entry(batch_size=4))
    before = (tmp_path / "runs/srcnn_x2/entry.json").read_bytes()
    (one,) = train(tmp_path / "runs", entry(batch_size=8))
    assert one.record["state"] == "failed" and "other options" in one.record["why"]
    assert (tmp_path / "runs/srcnn_x2/entry.json").read_bytes() == before
    (one,) = train(tmp_path / "runs", entry(batch_size=4, val_interval=7))
    assert one.finished  # how often it is validated does not matter


@pytest.mark.usefixtures("stub")
def test_what_returns_is_enough_to_go_on_and_to_evaluate(tmp_path):
    entries = entry("srcnn", updates=400, seconds=0.1), entry("fmisr")
    train(tmp_path / "runs", entries[1])
    found = begun(tmp_path / "runs", *entries)
    assert pack_results(found, [], tmp_path / "back", Room(8, 0.06, 1)) == []
    assert max(path.stat().st_size for path in (tmp_path / "back").iterdir()) <= 0.06 * 2**20
    extract(tmp_path / "back", tmp_path / "there")
    assert rebuild_checkpoints(tmp_path / "there") == ["srcnn_x2"]
    for name in ("entry.json", "ema.pt"):
        assert (tmp_path / "there/fmisr_x2" / name).read_bytes() == (tmp_path / "runs/fmisr_x2" / name).read_bytes()
    old, new = (torch.load(tmp_path / f"{place}/srcnn_x2/last.pt") for place in ("runs", "there"))
    assert old["trainer"] == new["trainer"] and torch.equal(old["ema"]["w"], new["ema"]["w"])
    assert torch.equal(old["optimizer"]["m"], new["optimizer"]["m"])
    again = queue(tmp_path / "there", *entries)
    assert again[1].finished and again[0].to_evaluate and not again[1].to_evaluate


@pytest.mark.usefixtures("stub")
def test_an_optimiser_that_has_no_room_is_named_and_the_weights_come(tmp_path):
    found = begun(tmp_path / "runs", entry("srcnn", updates=400, seconds=0.1))
    torch.save({**torch.load(found[0].folder / "last.pt"), "noise": torch.rand(200_000)}, found[0].folder / "last.pt")
    assert pack_results(found, [], tmp_path / "back", Room(8, 1, 0.6)) == ["srcnn_x2/state.pt"]
    assert "srcnn_x2/ema.pt" in extract(tmp_path / "back", tmp_path / "there")


def test_the_table_shows_every_part_and_also_what_is_missing(tmp_path):
    bad, good = queue(tmp_path, entry("vdsr"), entry("srcnn"))
    bad.record |= {"state": "failed", "why": "a | b", "updates": 2}
    validation = {"psnr": 31.5, "gain": -0.25, "updates": 8}
    good.record |= {"state": "finished", "updates": 8, "seconds": 4.0, "timed": 8, "validation": validation}
    proof = {"kernel": "scan", "shape": [1, 2], "dtype": "float32", "errors": {"y": 1.5e-7}, "ok": False}
    content = {
        **{"plan": "plan.yaml", "device": "cpu", "minutes": 8.0, "notes": ["something failed"]},
        "kernels": {"proved": False, "backend": "native", "proof": [proof]},
        "speed": {"speed": [{"network": "srcnn", "scale": 2, "failed": "out of memory"}]},
        "trainings": [described(bad), described(good)],
    }
    write_tables(tmp_path, content)
    text = (tmp_path / "table.md").read_text()
    assert "| vdsr_x2 | failed: a / b | 2 | 8 |" in text and "* something failed" in text
    assert "| srcnn_x2 | finished | 8 | 8 | 2.00 | 31.50 | -0.25 | 8 |" in text
    assert "**Not all hold.**" in text and "| srcnn 2x | out of memory |" in text
    assert json.loads((tmp_path / "table.json").read_text()) == content
    write_tables(tmp_path, {**content, "kernels": {}, "speed": {}})


def test_networks_with_a_scan_are_known(tmp_path):
    found = {e: queue(tmp_path, entry(e))[0].needs_kernels for e in ("iconet_small", "mambair_light", "vdsr", "none")}
    assert found == {"iconet_small": True, "mambair_light": True, "vdsr": False, "none": False}


# ------------------------------------------------------------------------------------------------------ the real thing


def start(*options: object) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "scripts")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "scripts/gpu_run.py", *map(str, options)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_a_run_on_the_cpu_is_stopped_goes_on_and_gives_the_weights_of_an_undisturbed_one(
    tmp_path, training_folder, run_bundle
):
    names = sorted(path.name for path in training_folder.iterdir())
    rows = [f"{name},{name[:6]},{'val' if name == names[0] else 'train'}" for name in names]
    (training_folder / "manifest.csv").write_text("\n".join(["file,subject,split", *rows]) + "\n")
    packed, output, plan = tmp_path / "data.pack", tmp_path / "runs", tmp_path / "plan.yaml"
    start("--pack", training_folder, "--output", packed).communicate()
    options = {"updates_per_epoch": 2, "batch_size": 2, "patch_size": 32, "warmup_updates": 1, "val_interval": 100}
    entries = [
        {"network_name": "iconet_small", "scale": 2, "updates": 12},
        {"network_name": "nonsense", "scale": 2, "updates": 12},
        {"network_name": "srcnn", "scale": 2, "updates": 2, "network_def#image_skip": "fourier"},
    ]
    plan.write_text(yaml.safe_dump({"options": options, "queue": entries}))
    run = (plan, "--minutes", 10, "--data", packed, "--output", output, "--device", "cpu", "--parts")
    first = start(*run, "trainings")
    while not (output / "iconet_small_x2/last.pt").exists() and first.poll() is None:
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=60)[0]
    assert "run the same command again" in said
    done = start(*run, "kernels", "trainings", "evaluation")
    said = done.communicate(timeout=600)[0]
    assert done.returncode == 0, said
    assert "no GPU here" in said and "| nonsense_x2 | failed: " in said and "| srcnn_x2 | finished | 2 | 2 |" in said
    data = output / "data"
    run_bundle(
        "training", "train.json", dataset_dir=data, split_file=data / "manifest.csv", network_name="iconet_small",
        epochs=6, output_dir=tmp_path / "whole", device="cpu", scale=2, **options,
    )  # fmt: skip
    whole = torch.load(tmp_path / "whole/last.pt", weights_only=True)["ema"]
    weights = torch.load(output / "iconet_small_x2/ema.pt", weights_only=True)
    assert weights.keys() == whole.keys() and all(torch.equal(weights[key], whole[key]) for key in whole)

    own = {k: v for k, v in {**options, **entries[2]}.items() if k not in ("network_name", "scale", "updates")}
    place = Place(ROOT, output, "cpu", data, data / "manifest.csv")
    one = Training(Entry("srcnn_x2", "srcnn", 2, 2, options=own), place)
    validated = one.record["validation"]
    one.record["validation"] = None
    evaluate_queue([one], Plan((), 1, {}), time.monotonic() + 300)
    assert one.record["validation"]["psnr"] == pytest.approx(validated["psnr"], abs=0.01)
    assert one.record["validation"]["gain"] == pytest.approx(validated["gain"], abs=0.01)


@pytest.mark.slow
def test_a_check_runs_every_part(tmp_path):
    first, second = ({"network_name": name, "scale": 2, "updates": 100} for name in ("srcnn", "vdsr"))
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({"queue": [first, second, {**first, "name": "third"}]}))
    done = start(tmp_path / "plan.yaml", "--check", "--minutes", 5, "--output", tmp_path / "check", "--device", "cpu")
    said = done.communicate(timeout=600)[0]
    assert done.returncode == 0 and "All hold." in said and said.count("finished | 2 | 2") == 2, said
    assert "srcnn 2x" in said and (tmp_path / "check/returned/results.zip.00").is_file()
