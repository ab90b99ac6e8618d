"""scripts/compare.py and scripts/figures.py: what they refuse, in one line and before anything is written."""

from __future__ import annotations

import json
import runpy
from argparse import Namespace

import numpy as np
import pytest
import torch
from comparison.protocol import BICUBIC, ZERO_FILLED
from comparison.records import read_rows, write_rows

from bundle.data.paths import sha256_of
from bundle.networks import build_network

KINDS = ("equal_updates", "equal_compute")
TABLE = """file,subject ,modality,contrast, split
sub-00_T1.nii.gz,s0,MR,T1,test
sub-01_T1.nii.gz,s1 ,MR,T2,test
sub-02_T1.nii.gz,s2,MR,T1,val
"""


@pytest.fixture
def table(training_folder):
    path = training_folder / "split.csv"
    path.write_text(TABLE)
    return path


def weights(path, name, scale=2, **options):
    path.parent.mkdir(exist_ok=True)
    torch.save(build_network(name, scale, **options).state_dict(), path)
    return path


# ------------------------------------------------------------------------------------------------------ volumes


def test_without_a_split_file_every_volume_is_compared_and_with_one_the_test_split(
    script, training_folder, table, tmp_path
):
    found = {}
    for kind, given in {
        "all": [],
        "test": ["--split_file", table],
        "val": ["--split_file", table, "--split", "val"],
    }.items():
        out = tmp_path / kind
        script("compare.py", training_folder, "--only", "--scales", 2, "--output_dir", out, "--device", "cpu", *given)
        found[kind] = sorted({(row["file"], row["subject"]) for row in read_rows(out / "compare_x2.csv")})
    assert found["all"] == [(f"sub-0{i}_T1.nii.gz", f"sub-0{i}") for i in range(5)]
    assert found["test"] == [("sub-00_T1.nii.gz", "s0"), ("sub-01_T1.nii.gz", "s1")]
    assert found["val"] == [("sub-02_T1.nii.gz", "s2")]


def test_a_bad_volume_ends_the_comparison_with_its_line(refused, training_folder, tmp_path, write_nifti):
    image = np.ones((24, 24, 3), np.float32)
    image[2, 3, 1] = np.nan
    write_nifti(training_folder / "sub-03_T1.nii.gz", image)
    said = refused("compare.py", training_folder, "--only", "--scales", 2, "--output_dir", tmp_path / "out")
    assert said.startswith(f"{training_folder / 'sub-03_T1.nii.gz'}: 1 NaN")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "val"], "--split_file"),
        (["--every", "0"], "every must be at least 1"),
        (["--slice_axis", "5"], "--slice_axis: invalid choice: 5"),
        (["--scales", "3"], "invalid choice: 3"),
        (["--degradation", "lines", "--acceleration", "0.5"], "acceleration >= 1"),
        (["--records", "nowhere"], "nowhere: no training_*.json"),
        (["--only", "vdsr", "--models_dir", "nowhere"], "no weights for 2x in nowhere"),
        (["--data_consistency", "2"], "must be from 0 to 1"),
    ],
)
def test_an_option_that_cannot_be_meant_is_one_line(options, message, refused, training_folder, tmp_path):
    said = refused("compare.py", training_folder, "--only", "--output_dir", tmp_path / "out", *options)
    assert message in said and not (tmp_path / "out").exists()


def test_an_image_skip_that_a_network_does_not_permit_is_one_line(refused, training_folder, tmp_path):
    vdsr = weights(tmp_path / "models/model_vdsr_x2.pt", "vdsr").parent
    skip = ["--scales", 2, "--models_dir", vdsr, "--image_skip", "none", "--output_dir", tmp_path / "out"]
    for name, rest in (("compare.py", [training_folder]), ("figures.py", [])):
        assert "image_skip must be one of" in refused(name, *rest, *skip)


# ------------------------------------------------------------------------------------------- weights and records


def test_weights_that_one_scale_lacks_are_missed_before_the_other_is_evaluated(refused, training_folder, tmp_path):
    by_scale = weights(tmp_path / "models/fmisr_x2.pt", "fmisr").with_name("fmisr_x{scale}.pt")
    given = ["--models_dir", tmp_path, "--network", f"fmisr={by_scale}", "--output_dir", tmp_path / "out"]
    assert "fmisr_x4.pt" in refused("compare.py", training_folder, *given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("skip", "given", "message"),
    [
        ("fourier", [], "trained with --image_skip fourier"),
        (None, ["--image_skip", "fourier"], "trained with no --image_skip"),
    ],
)
def test_records_must_be_of_the_image_skip(skip, given, message, refused, training_folder, tmp_path):
    for name in ("iconet_small", "vdsr"):
        record = {"network": name, "image_skip": None if name == "iconet_small" else skip}
        (tmp_path / f"training_{name}_x2.json").write_text(json.dumps(record))
    given = ["--only", "--records", tmp_path, "--output_dir", tmp_path / "out", *given]
    said = refused("compare.py", training_folder, *given)
    assert message in said and str(tmp_path / "training_vdsr_x2.json") in said and not (tmp_path / "out").exists()


def test_records_must_be_of_the_weights(refused, script, training_folder, tmp_path):
    file = weights(tmp_path / "runs/model_fmisr_x2.pt", "fmisr")
    record = file.with_name("training_fmisr_x2.json")
    out = tmp_path / "out"
    given = ["--scales", 2, "--models_dir", file.parent, "--records", file.parent, "--output_dir", out]

    def write(name, *digests):
        kept = {kind: {"sha256": digest} for kind, digest in zip(KINDS, digests, strict=True)}
        record.with_name(f"training_{name}_x2.json").write_text(
            json.dumps({"network": name, "image_skip": None, "weights": kept})
        )

    write("srcnn", sha256_of(file), sha256_of(file))
    assert f"{record}: no such record" in refused("compare.py", training_folder, *given)
    write("fmisr", "0" * 64, "1" * 64)
    said = refused("compare.py", training_folder, *given)
    assert str(file) in said and str(record) in said and not out.exists()
    write("fmisr", "0" * 64, sha256_of(file))
    script("compare.py", training_folder, *given, "--device", "cpu", "--every", 4)
    assert {path.name for path in out.glob("training_*")} == {"training_fmisr_x2.json", "training_srcnn_x2.json"}


# --------------------------------------------------------------------------------------------------------- --only


def test_rows_of_other_volumes_are_not_joined_and_nothing_is_overwritten(refused, script, training_folder, tmp_path):
    out = tmp_path / "out"
    run = ["compare.py", training_folder, "--only", "--output_dir", out, "--device", "cpu"]
    script(*run, "--scales", 4, "--slice_axis", 2)
    interpolated = read_rows(out / "compare_x4.csv")
    kept = [{**r, "method": "ICONet small", "consistency": 1.0} for r in interpolated if r["method"] == ZERO_FILLED]
    write_rows(out / "compare_x4.csv", [*interpolated, *kept])
    script(*run, "--scales", 4)
    assert {r["method"] for r in read_rows(out / "compare_x4.csv")} == {ZERO_FILLED, BICUBIC, "ICONet small"}

    before = {path: path.read_bytes() for path in out.iterdir()}
    said = refused(*run, "--scales", 2, 4, "--slice_axis", 0)
    assert said.startswith(f"{out / 'compare_x4.csv'}: ") and "--output_dir" in said
    write_rows(out / "compare_x4.csv", [*interpolated, *({**r, "subject": "other"} for r in kept)])
    before[out / "compare_x4.csv"] = (out / "compare_x4.csv").read_bytes()
    assert "other volumes, subjects" in refused(*run, "--scales", 2, 4)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


# -------------------------------------------------------------------------------------------------------- figures


def test_the_figures_take_networks_that_make_what_is_drawn(refused, tmp_path):
    out = ["--output_dir", tmp_path / "out"]
    said = refused("figures.py", "--stages", "vdsr", *out)
    assert "invalid choice: 'vdsr'" in said and "iconet_paper" in said and "t2net" in said
    assert refused("figures.py", tmp_path / "no.nii.gz", *out).startswith(f"{tmp_path / 'no.nii.gz'}: no such file")


def test_the_figures_draw_a_baseline_with_the_skip_of_its_training(bundle_root, tmp_path):
    models = weights(tmp_path / "models/model_t2net_x2.pt", "t2net").parent
    load = runpy.run_path(str(bundle_root / "scripts/figures.py"))["load"]
    for given, expected in (("fourier", "fourier"), (None, "none")):
        network = load("t2net", 2, Namespace(models_dir=models, image_skip=given, device="cpu"))
        assert network.image_skip == expected
