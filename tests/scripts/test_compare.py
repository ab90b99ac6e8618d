"""The comparison: its protocol against inference, its costs, files and tables."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from comparison.cost import multiply_adds, parameters, seconds_per_slice
from comparison.figures import _in_order, draw_methods, draw_stages, worst_box
from comparison.pages import comparison_file, page, readme_block, summary, write_pages
from comparison.protocol import BICUBIC, ZERO_FILLED, KnownVolume, Protocol, known_volumes
from comparison.records import joined, label, read_rows, write_rows, write_slices
from comparison.statistics import Difference
from comparison.tables import (
    TABLE_ORDER,
    Results,
    difference_cell,
    difference_table,
    groups_of,
    mean_cell,
    same_consistency,
)
from PIL import Image
from torch import nn

from bundle.data import DatasetError, VolumeError, evaluation_datalist
from bundle.inference.inferers import VolumeInferer
from bundle.networks import NETWORKS, ICONetOutput, iconet
from bundle.networks.upsample import fourier_image_upsample
from bundle.training.metrics import hfen, nmse, psnr, ssim

TABLE = """file,subject,modality,contrast,split
sub-00_T1.nii.gz,s0,MR,T1c,test
sub-01_T1.nii.gz,s0,MR,T2,test
sub-02_T1.nii.gz,s1,MR,PD,test
sub-03_T1.nii.gz,s2,PET,FDG,test
sub-04_T1.nii.gz,s3,MR,T1,train
"""


@pytest.fixture
def volumes(training_folder):
    table = training_folder / "split.csv"
    table.write_text(TABLE)
    return known_volumes(training_folder, evaluation_datalist(training_folder, "test", table), table)


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return iconet("small", 2, features=16, num_blocks=1).eval()


# ----------------------------------------------------------------------------------------------------- protocol


def test_the_split_file_says_whose_volume_it_is(volumes, training_folder):
    assert [(v.name, v.subject, v.modality, v.contrast) for v in volumes][1] == ("sub-01_T1.nii.gz", "s0", "MR", "T2")
    assert len(volumes) == 4
    alone = known_volumes(training_folder, evaluation_datalist(training_folder, "test"), None)
    assert [(v.name, v.subject) for v in alone][1] == ("sub-01_T1.nii.gz", "sub-01")
    assert {v.modality for v in alone} == {"all"} and len(alone) == 5


def test_blanks_around_the_columns_of_a_split_file_mean_nothing(training_folder):
    table = training_folder / "split.csv"
    table.write_text('file, subject ,"modality" ,split,contrast \nsub-00_T1.nii.gz,s0 , MR,test, "T1, c"\n')
    (volume,) = known_volumes(training_folder, evaluation_datalist(training_folder, "test", table), table)
    assert (volume.subject, volume.modality, volume.contrast) == ("s0", "MR", "T1, c")


def test_no_two_volumes_have_one_name(training_folder, tmp_path, write_nifti):
    elsewhere, data = tmp_path / "lists", tmp_path / "data"
    data.mkdir()
    places = [elsewhere / "a/T2.nii.gz", elsewhere / "b/T2.nii.gz", tmp_path / "far/T2.nii.gz"]
    for place in places:
        write_nifti(place, np.ones((8, 8, 2), np.float32))
    table = elsewhere / "split.csv"

    def listed(*files):
        table.write_text("file,subject,split\n" + "".join(f"{file},s,test\n" for file in files))
        return known_volumes(data, evaluation_datalist(data, "test", table), table)

    assert [v.name for v in listed("a/T2.nii.gz", "b/T2.nii.gz", places[2])] == [
        "a/T2.nii.gz",
        "b/T2.nii.gz",
        places[2].as_posix(),
    ]
    with pytest.raises(DatasetError, match="would both be a/T2.nii.gz"):
        listed("a/T2.nii.gz", places[0])


def test_a_linked_volume_is_named_by_its_place(tmp_path, write_nifti):
    stored = write_nifti(tmp_path / "store/x1.nii.gz", np.ones((8, 8, 2), np.float32))
    (tmp_path / "data/sub-7").mkdir(parents=True)
    (tmp_path / "data/sub-7/T1.nii.gz").symlink_to(stored)
    (volume,) = known_volumes(tmp_path / "data", evaluation_datalist(tmp_path / "data", "test"), None)
    assert (volume.name, volume.subject) == ("sub-7/T1.nii.gz", "sub-7")


def test_a_network_is_given_what_inference_gives_it(volumes, tiny):
    protocol = Protocol(2)
    low = protocol.degrade(protocol.load(volumes[0].path).as_tensor())
    found = dict(protocol.predictions(low, {"net": tiny}, [0.0, 0.3, 1.0]))
    for weight in (0.0, 0.3, 1.0):
        assert torch.equal(found["net", weight], VolumeInferer(2, data_consistency=weight)(low[None], tiny)[0])
    assert not torch.allclose(found["net", 0.0], found["net", 1.0], atol=1e-2 * float(low.max()))


def test_a_network_is_run_once_whatever_weights_are_asked_for(volumes, tiny):
    protocol, calls = Protocol(2), []
    low = protocol.degrade(protocol.load(volumes[0].path).as_tensor())
    handle = tiny.register_forward_hook(lambda *_: calls.append(1))
    dict(protocol.predictions(low, {"net": tiny}, [0.0]))
    once = len(calls)
    dict(protocol.predictions(low, {"net": tiny}, [0.0, 0.3, 1.0]))
    handle.remove()
    assert 0 < once == len(calls) - once


def test_figures_are_those_of_the_metrics(volumes, tiny):
    protocol = Protocol(2)
    rows, slices = protocol.evaluate(volumes[:1], {"net": tiny}, [1.0])
    truth = protocol.load(volumes[0].path).as_tensor()
    low = protocol.degrade(truth)
    assert [label(row) for row in rows] == [ZERO_FILLED, BICUBIC, "net + DC"]
    zero_filled = fourier_image_upsample(low.movedim(3, 0), 2).movedim(0, 3)
    for name, metric in (("psnr", psnr), ("ssim", ssim), ("nmse", nmse), ("hfen", hfen)):
        assert rows[0][name] == pytest.approx(float(metric(zero_filled[0], truth[0])))
    mine = [row for row in slices if row["method"] == ZERO_FILLED]
    assert [row["slice"] for row in mine] == list(range(truth.shape[3]))
    assert np.mean([row["ssim"] for row in mine]) == pytest.approx(rows[0]["ssim"])
    peak, error = float(truth.max()), (zero_filled - truth)[..., 2].square().mean().sqrt()
    assert mine[2]["psnr"] == pytest.approx(20 * math.log10(peak / float(error)), abs=1e-4)


def test_the_residual_is_that_of_the_degradation(volumes):
    protocol = Protocol(2)
    truth = protocol.load(volumes[0].path).as_tensor()
    low = protocol.degrade(truth)
    assert protocol.measure(truth, truth, low)[0]["residual"] == pytest.approx(0.0, abs=1e-6)
    assert protocol.measure(1.1 * truth, truth, low)[0]["residual"] == pytest.approx(0.1, rel=1e-4)


def test_any_axis_may_run_over_the_slices(volumes, tiny, tmp_path, write_nifti):
    image = Protocol(2).load(volumes[0].path).numpy()[0]
    turned = write_nifti(tmp_path / "turned.nii.gz", np.moveaxis(image, 2, 0))
    other = type(volumes[0])(turned, "turned", "s", "MR", "T1")
    straight, _ = Protocol(2).evaluate(volumes[:1], {"net": tiny})
    across, _ = Protocol(2, slice_axis=0).evaluate([other], {"net": tiny})
    for one, two in zip(straight, across, strict=True):
        assert [two[m] for m in ("psnr", "ssim", "hfen")] == pytest.approx([one[m] for m in ("psnr", "ssim", "hfen")])


def test_the_description_names_the_axis_of_the_slices_unless_it_is_the_last():
    assert Protocol(2, 2, "lines", 4, every=3).description == "truncation and 1 of 4 lines, 1 of 3 slices"
    assert Protocol(2, 2).description == "truncation"
    assert Protocol(2, 0, every=3).description == "truncation, slices along axis 0, 1 of 3 slices"


def test_dropped_lines_make_it_harder_and_allow_no_data_consistency(volumes, tiny):
    plain, _ = Protocol(2).evaluate(volumes[:1], {"net": tiny}, [0.0, 1.0])
    masked, _ = Protocol(2, degradation="lines", acceleration=3).evaluate(volumes[:1], {"net": tiny}, [0.0, 1.0])
    assert masked[0]["psnr"] < plain[0]["psnr"] - 1
    assert [label(row) for row in masked] == [ZERO_FILLED, BICUBIC, "net"]
    assert {row["degradation"] for row in masked} == {"truncation and 1 of 3 lines"}


def test_an_unknown_degradation_is_an_error():
    with pytest.raises(ValueError, match="truncation"):
        Protocol(2, degradation="blur")


# -------------------------------------------------------------------------------------------------------- costs


def test_products_and_convolutions_are_counted_as_written_down():
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 1))
    counts = multiply_adds(network, (2, 1, 10, 12))
    assert counts == {"products_and_convolutions": 2 * 120 * (9 * 8 + 8), "scan": 0, "patch_search": 0}
    assert parameters(network) == 9 * 8 + 8 + 8 + 1


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_scan_and_search_are_counted_by_their_formulas_on_every_back_end(backend, monkeypatch):
    monkeypatch.setenv("ICONET_BACKEND", backend)
    blocks, features, states, inner, rank = 2, 16, 4, 24, 1
    network = iconet("small", 2, num_blocks=blocks, features=features, d_state=states, expand=1.5, match_stride=1)
    counts = multiply_adds(network, (1, 1, 6, 8))
    assert counts["scan"] == 2 * blocks * 48 * 4 * inner * (4 * states + rank + 2)  # two branches
    assert counts["patch_search"] == 2 * 48**2 * 9 * 8  # both ways, eight channels of queries
    alone = multiply_adds(iconet("small", 2, num_blocks=blocks, features=features, fusion=False), (1, 1, 6, 8))
    maps = 48 * (2 * features * (8 + 8 + features) + (2 * features) ** 2)
    assert counts["products_and_convolutions"] - alone["products_and_convolutions"] == maps


def test_counting_leaves_the_kernels_as_they_were(tiny):
    image = torch.rand(1, 1, 8, 8)
    with torch.no_grad():
        before = tiny(image)
        multiply_adds(tiny, image.shape)
        assert torch.equal(tiny(image), before)
    with pytest.raises(ValueError):
        multiply_adds(tiny, (1, 3, 8, 8))
    with torch.no_grad():
        assert torch.equal(tiny(image), before)


class Clockwork(nn.Module):
    """A network whose calls take the given number of seconds on a fake clock."""

    def __init__(self, *seconds):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seconds, self.now, self.shapes = list(seconds), 0.0, []

    def perf_counter(self):
        return self.now

    def forward(self, image):
        self.shapes.append(tuple(image.shape))
        self.now += self.seconds[len(self.shapes) - 1]
        return image


@pytest.mark.parametrize(("budget", "calls", "median"), [(100.0, 4, 3.0), (11.5, 3, 7.0), (1.0, 2, 11.0)])
def test_seconds_are_the_median_after_a_call_that_does_not_count(budget, calls, median, monkeypatch):
    network = Clockwork(500.0, 11.0, 3.0, 2.0)
    monkeypatch.setattr("comparison.cost.time", network)
    assert seconds_per_slice(network, side=8, budget=budget, repeats=3) == median
    assert network.shapes == [(1, 1, 8, 8)] * calls


# -------------------------------------------------------------------------------------------- files and tables


def row(method, subject, psnr, file="", weight="", modality="MR", contrast="T1", ssim=0.9):
    figures = {"psnr": psnr, "ssim": ssim, "nmse": 0.01, "hfen": 0.5, "residual": 0.0}
    about = {"subject": subject, "modality": modality, "contrast": contrast, "degradation": "truncation"}
    return {"file": file or subject, "method": method, "consistency": weight, **about, **figures}


def two_methods(extra=()):
    rows = [row(ZERO_FILLED, "a", 30.0, "a1"), row(ZERO_FILLED, "a", 32.0, "a2"), row(ZERO_FILLED, "b", 35.0)]
    rows += [row("ICONet small", "a", 31.0, "a1", 0.0), row("ICONet small", "a", 34.0, "a2", 0.0)]
    return [*rows, row("ICONet small", "b", 35.5, weight=0.0), *extra]


def test_rows_come_back_from_their_file(tmp_path):
    rows = two_methods([row("ICONet small", "b", 35.25, weight=0.5)])
    write_rows(tmp_path / "rows.csv", rows)
    assert read_rows(tmp_path / "rows.csv") == rows
    assert [p.name for p in tmp_path.iterdir()] == ["rows.csv"]


def test_methods_that_are_run_again_replace_their_rows_alone():
    again = [row("ICONet small", "a", 40.0, "a1", 1.0), row("ICONet small", "a", 41.0, "a2", 1.0)]
    again.append(row("ICONet small", "b", 42.0, weight=1.0))
    both = joined(two_methods(), again)
    assert [r["psnr"] for r in both] == [30.0, 32.0, 35.0, 40.0, 41.0, 42.0]
    with pytest.raises(ValueError, match="other volumes"):
        joined(two_methods(), again[:2])


@pytest.mark.parametrize("column", ["file", "subject", "modality", "contrast", "degradation"])
def test_rows_that_say_other_things_of_a_volume_are_not_joined(column):
    again = [row(BICUBIC, "a", 40.0, "a1"), row(BICUBIC, "a", 41.0, "a2"), row(BICUBIC, "b", 42.0)]
    assert len(joined(two_methods(), again)) == 9
    again[1][column] = "other"
    with pytest.raises(ValueError, match="another degradation"):
        joined(two_methods(), again)


def test_the_slices_of_a_method_are_one_column_and_those_of_weights_before_are_gone(tmp_path):
    def slices(method, weight, *figures):
        pairs = enumerate(figures)
        return [
            {"file": "a", "method": method, "consistency": weight, "slice": i, "psnr": p, "ssim": 0.5} for i, p in pairs
        ]

    path = tmp_path / "slices.csv"
    write_slices(
        path, slices(ZERO_FILLED, "", 30.0, 31.0) + slices("net", 1.0, 32.0, 33.0) + slices("net 2", 0.0, 8, 9)
    )
    write_slices(path, slices("net", 0.0, 34.0, 35.0), keep=True)
    with open(path, newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["file", "slice", "metric", ZERO_FILLED, "net 2", "net"]
    assert [line["net"] for line in lines if line["metric"] == "psnr"] == ["34.000", "35.000"]
    assert [line[ZERO_FILLED] for line in lines if line["metric"] == "psnr"] == ["30.000", "31.000"]

    everything = slices(ZERO_FILLED, "", 30.0) + slices("net", 1.0, 32.0) + slices("net 2", 0.0, 8)
    write_slices(path, everything, keep=True)  # nothing is left of the second slice
    with open(path, newline="") as file:
        assert [(line["slice"], line["metric"]) for line in csv.DictReader(file)] == [("0", "psnr"), ("0", "ssim")]


@pytest.mark.parametrize(
    ("modality", "contrast", "groups"),
    [
        ("MR", "T1c", ["T1", "MR"]),
        ("MR", "T2FS", ["T2", "MR"]),
        ("MR", "FLAIR", ["PD/FLAIR", "MR"]),
        ("MR", "T2-FLAIR", ["PD/FLAIR", "MR"]),
        ("MR", "PD", ["PD/FLAIR", "MR"]),
        ("MR", "", ["MR"]),
        ("PET", "FDG", ["PET"]),
        ("all", "", ["all"]),
    ],
)
def test_a_volume_counts_for_its_contrast_and_modality(modality, contrast, groups):
    assert groups_of(row("x", "a", 1.0, modality=modality, contrast=contrast)) == groups


def test_tables_take_means_over_subjects_and_pairs_of_them():
    results = Results(two_methods())
    assert results.values("ICONet small", "MR", "psnr") == {"a": 32.5, "b": 35.5}
    assert results.difference("ICONet small", ZERO_FILLED, "MR", "psnr") == (1.0, 0.5, 1.5)
    assert results.worst("ICONet small", "MR") == 0.5
    assert results.subjects("T1") == {"a": 2, "b": 1}


def test_interpolation_comes_first_and_iconet_last():
    rows = [row("ICONet paper", "a", 1.0, weight=w) for w in (1.0, 0.0)]
    rows += [row("SRCNN", "a", 1.0, weight=0.0), row(BICUBIC, "a", 1.0), row(ZERO_FILLED, "a", 1.0)]
    expected = [ZERO_FILLED, BICUBIC, "SRCNN", "ICONet paper", "ICONet paper + DC"]
    assert Results(rows).methods == expected


def test_a_network_is_compared_with_iconet_at_its_own_data_consistency():
    reference = same_consistency("ICONet small")
    assert [reference(m) for m in (ZERO_FILLED, "T2Net", "T2Net + DC", "T2Net + DC 0.5")] == [
        "ICONet small",
        "ICONet small",
        "ICONet small + DC",
        "ICONet small + DC 0.5",
    ]
    table = difference_table(Results(two_methods()), "psnr", reference)
    assert table.splitlines()[2:] == [f"| {ZERO_FILLED} | -1.00 [-1.50, -0.50] | -1.00 [-1.50, -0.50] |", ""]


def test_one_subject_shows_neither_deviation_nor_limits():
    assert mean_cell([31.234], 2) == "31.23"
    assert mean_cell([31.0, 33.0], 2) == "32.00 ± 1.41"
    assert difference_cell(Difference(0.5, math.nan, math.nan), 2) == "+0.50"
    assert difference_cell(Difference(0.5, 0.25, 1.0), 2) == "+0.50 [+0.25, +1.00]"


def test_the_pages_are_made_of_the_files_and_put_into_the_readme(tmp_path):
    folder = tmp_path / "results"
    for scale in (2, 4):
        shipped = [{**r, "method": r["method"].replace("ICONet small", "Residual SR")} for r in two_methods()]
        write_rows(comparison_file(folder, "truncation", scale), shipped)
    write_rows(comparison_file(folder, "lines", 2), [{**r, "degradation": "lines"} for r in two_methods()])
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- results -->\nold\n<!-- /results -->\nb\n")
    write_pages(folder, tmp_path / "results.md", readme)
    assert readme.read_text() == f"a\n<!-- results -->\n{readme_block(folder)}<!-- /results -->\nb\n"
    gain = "+1.00 [+0.50, +1.50] | 0.900 → 0.900 | +0.50 |"
    assert [line for line in readme_block(folder).splitlines() if gain in line and "MR" in line] == [
        f"| MR {scale}x | 3 (2) | {gain}" for scale in (2, 4)
    ]
    assert f"| {ZERO_FILLED} | 33.00 ± 2.83 | 0.9000 ± 0.0000 |  |  |" in summary(folder)
    assert "| Residual SR | 34.00 ± 2.12 | 0.9000 ± 0.0000 | +1.00 [+0.50, +1.50] | +0.50 |" in summary(folder)
    text = (tmp_path / "results.md").read_text()
    assert text == page(folder, "results")
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## 2x, truncation",
        "## 4x, truncation",
        "## 2x, lines",
    ]
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="no block"):
        write_pages(folder, tmp_path / "results.md", readme)


# ------------------------------------------------------------------------------------------------------ figures


def test_the_magnified_part_is_where_the_error_is():
    error = torch.zeros(20, 30)
    error[12:15, 21:24] = 1.0
    row, column = worst_box(error, 5)
    assert row <= 12 and row + 5 >= 15 and column <= 21 and column + 5 >= 24


def test_a_stage_is_labelled_by_its_factor_whatever_the_steps_before_it():
    image = torch.zeros(1, 1, 12, 16)
    one_step = ICONetOutput([image[:, :, ::4, ::4]], [image])
    assert [name for name, _ in _in_order(one_step, image[0, 0, ::4, ::4])] == ["Rec 1", "SR x4"]
    two_steps = ICONetOutput([image[:, :, ::4, ::4], image[:, :, ::2, ::2]], [image[:, :, ::2, ::2], image])
    names = [name for name, _ in _in_order(two_steps, image[0, 0, ::4, ::4])]
    assert names == ["Rec 1", "SR x2", "Rec 2", "SR x4"]


@pytest.mark.parametrize("shape", [(64, 8), (8, 64), (3, 5)])
def test_slices_of_any_shape_can_be_drawn(shape, tmp_path):
    truth = torch.rand(*shape, generator=torch.Generator().manual_seed(0))
    draw_methods({"flat": torch.zeros(*shape)}, truth, tmp_path / "m.png", "title")
    assert Image.open(tmp_path / "m.png").size[0] > 200


def test_figures_are_pictures_of_the_images(tmp_path):
    truth = torch.zeros(40, 48)
    truth[10:30, 12:36] = 100.0
    draw_methods({"flat": torch.zeros(40, 48), "exact": truth.clone()}, truth, tmp_path / "m.png", "title")
    output = ICONetOutput([truth[None, None, ::2, ::2]], [truth[None, None]])
    draw_stages(truth[::2, ::2], output, output, tmp_path / "s.png", "title")
    for name in ("m.png", "s.png"):
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        assert min(pixels.shape[:2]) > 200 and pixels.std() > 20


# ------------------------------------------------------------------------------------------------------ command


@pytest.mark.slow
def test_the_command_writes_files_that_a_second_run_adds_to(training_folder, tmp_path, bundle_root):
    table = training_folder / "split.csv"
    table.write_text(TABLE)
    models, out = tmp_path / "models", tmp_path / "out"
    models.mkdir()
    torch.save(iconet("small", 2).state_dict(), models / "model_iconet_small_x2.pt")

    def compare(*options):
        command = [sys.executable, "-W", "ignore", str(bundle_root / "scripts/compare.py"), str(training_folder)]
        command += ["--split_file", str(table), "--scales", "2", "--models_dir", str(models), "--output_dir", str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(bundle_root)}
        return subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=600)

    done = compare("--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "| ICONet small + DC |" in done.stdout
    names = {"compare.md", "compare_x2.csv", "compare_x2_slices.csv", "cost.csv", "results.md"}
    assert {path.name for path in out.iterdir()} == names
    before = {(r["file"], label(r)): r["psnr"] for r in read_rows(out / "compare_x2.csv")}

    wider = tmp_path / "wider.pt"
    torch.save(iconet("paper", 2, num_blocks=1).state_dict(), wider)
    wrong = compare("--only", "iconet_paper", "--network", f"iconet_paper={wider}")
    assert wrong.returncode != 0 and "not the weights of this network" in wrong.stderr
    assert compare("--only", "vdsr").returncode != 0
    done = compare("--only", "--data_consistency", "1")
    assert done.returncode == 0, done.stderr
    assert {(r["file"], label(r)): r["psnr"] for r in read_rows(out / "compare_x2.csv")} == before


@pytest.mark.slow
def test_the_figures_of_the_sample_can_be_drawn_again(tmp_path, bundle_root):
    command = [sys.executable, "-W", "ignore", str(bundle_root / "scripts/figures.py"), "--scales", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(bundle_root)}

    def draw(*options):
        given = [*command, "--output_dir", str(tmp_path), "--networks", "iconet_small", *options]
        return subprocess.run(given, env=environment, capture_output=True, text=True, timeout=600)

    assert draw("--slice", "99").returncode != 0
    assert "must be from 0 to 1" in draw("--data_consistency", "2").stderr
    done = draw()
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"methods_x2.png", "stages_x2.png"}


def test_tables_have_the_baselines_first_and_iconet_last():
    assert sorted(TABLE_ORDER) == sorted(NETWORKS)
    assert TABLE_ORDER[0] == "srcnn" and TABLE_ORDER[-2:] == ["iconet_small", "iconet_paper"]


def test_a_signed_volume_is_shifted_as_in_training_and_an_empty_one_is_an_error(write_nifti, tmp_path):
    rng = np.random.default_rng(0)
    image = (100 * rng.random((24, 24, 3)) + 50).astype(np.float32)
    image[:6] = 0
    shifted = image - 1000
    protocol = Protocol(2)
    positive = protocol.load(write_nifti(tmp_path / "a.nii.gz", image)).as_tensor()
    signed = protocol.load(write_nifti(tmp_path / "b.nii.gz", shifted)).as_tensor()
    torch.testing.assert_close(signed, positive, atol=1e-3, rtol=0)
    assert float(positive.min()) == 0 and float(positive.max()) > 100
    with pytest.raises(VolumeError, match="no voxel is above 0"):
        protocol.load(write_nifti(tmp_path / "c.nii.gz", 0 * image))


def test_a_volume_that_cannot_be_compared_is_an_error_that_names_it(write_nifti, tmp_path):
    image = np.ones((24, 24, 3), np.float32)
    whole = write_nifti(tmp_path / "whole.nii.gz", image)
    (tmp_path / "cut.nii.gz").write_bytes(whole.read_bytes()[:60])
    image[2, 3, 1] = np.nan
    write_nifti(tmp_path / "nan.nii.gz", image)
    write_nifti(tmp_path / "thin.nii.gz", image[4:5])
    write_nifti(tmp_path / "small.nii.gz", image[4:10])
    faults = {
        "small": "slices of 6x24 voxels, SSIM needs 7x7",
        "cut": "truncated gzip",
        "nan": "1 NaN",
        "thin": "too small for a factor of 2",
        "none": "no such file",
    }
    for name, fault in faults.items():
        with pytest.raises(VolumeError, match=fault) as error:
            path = tmp_path / f"{name}.nii.gz"
            Protocol(2, slice_axis=2).evaluate([KnownVolume(path, name, "s", "MR", "T1")], {})
        assert str(error.value).startswith(f"{tmp_path / name}.nii.gz: ") and "\n" not in str(error.value)
