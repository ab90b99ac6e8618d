"""The configs as MONAI's tools see them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow

from bundle.networks import ICONet, build_network
from bundle.training.degradation import PLAIN, Shares

WORKFLOWS = [("train.json", "training"), ("evaluate.json", "evaluation"), ("inference.json", "inference")]


def run_in_root(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(str(root))


@pytest.mark.parametrize(("config", "kind"), WORKFLOWS)
def test_monai_finds_every_required_property(config, kind, bundle_root, tmp_path, monkeypatch):
    run_in_root(monkeypatch, bundle_root)
    options = {"output_dir": str(tmp_path), "logging_file": False}
    workflow = create_workflow(config_file=f"configs/{config}", workflow_type=kind, **options)
    assert isinstance(workflow, ConfigWorkflow)
    assert workflow.check_properties() == []
    workflow.finalize()


@pytest.mark.parametrize("scale", [2, 4])
def test_net_in_and_out_agree_with_the_metadata(scale, bundle_root, monkeypatch):
    run_in_root(monkeypatch, bundle_root)
    arguments = {"net_id": "network_def", "meta_file": "configs/metadata.json", "scale": scale}
    monai.bundle.verify_net_in_out(config_file="configs/inference.json", device="cpu", **arguments)


def test_the_metadata_give_the_spatial_size_that_the_network_makes(bundle_root):
    formats = json.loads((bundle_root / "configs/metadata.json").read_text())["network_data_format"]
    size = [eval(s, {"n": 2}) for s in formats["inputs"]["image"]["spatial_shape"]]
    out = ICONet(scale=2, features=8, num_blocks=1, d_state=1)(torch.rand(1, 1, *size))
    assert list(out.shape[2:]) == [eval(s, {"n": 2}) for s in formats["outputs"]["pred"]["spatial_shape"]]


def test_the_metadata_hold_what_the_schema_of_2024_requires(bundle_root):
    metadata = json.loads((bundle_root / "configs/metadata.json").read_text())
    text = ("schema", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors")
    assert all(isinstance(metadata[key], str) and metadata[key] for key in (*text, "copyright"))
    assert metadata["version"] in metadata["changelog"]
    assert all(isinstance(v, str) for v in metadata["required_packages_version"].values())
    for group in metadata["network_data_format"].values():
        for tensor in group.values():
            assert {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range"} <= set(tensor)


def test_the_metadata_versions_are_those_of_the_constraints(bundle_root):
    metadata = json.loads((bundle_root / "configs/metadata.json").read_text())
    pinned = dict(line.split("==") for line in (bundle_root / "constraints.txt").read_text().split() if "==" in line)
    assert (metadata["monai_version"], metadata["pytorch_version"]) == (pinned["monai"], pinned["torch"])
    assert metadata["numpy_version"] == pinned["numpy"]
    assert {k: pinned[k] for k in metadata["required_packages_version"]} == metadata["required_packages_version"]


@pytest.mark.parametrize("config", sorted(p.name for p in (Path(__file__).parents[2] / "configs").glob("*.json")))
def test_no_config_holds_an_absolute_path(config, bundle_root):
    text = (bundle_root / "configs" / config).read_text()
    assert not any(mark in text for mark in ('"/', "$'/", "C:", "/home/", "/root/"))


@pytest.mark.parametrize("config", ["train.json", "evaluate.json", "inference.json"])
def test_initialize_and_imports_need_nothing_of_the_package(config, bundle_root):
    content = json.loads((bundle_root / "configs" / config).read_text())
    assert "bundle." not in json.dumps([content["initialize"], content["imports"]])


@pytest.mark.parametrize("use_trace", [False, True])
def test_ckpt_export_makes_a_file_that_runs_without_the_package(use_trace, bundle_root, tmp_path, monkeypatch):
    run_in_root(monkeypatch, bundle_root)
    exported = tmp_path / "model.ts"
    monai.bundle.ckpt_export(
        net_id="network_def",
        filepath=str(exported),
        ckpt_file="models/model.pt",
        meta_file="configs/metadata.json",
        config_file="configs/inference.json",
        use_trace=use_trace,
    )
    image = torch.rand(2, 1, 20, 27, generator=torch.Generator().manual_seed(0))
    torch.save(image, tmp_path / "image.pt")
    code = "import sys, torch; m = torch.jit.load(sys.argv[1]); torch.save(m(torch.load(sys.argv[2])), sys.argv[3])"
    files = [str(exported), str(tmp_path / "image.pt"), str(tmp_path / "out.pt")]
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, *files], check=True, cwd=tmp_path)

    network = create_workflow(config_file="configs/inference.json", workflow_type="inference", logging_file=False)
    network = network.network_def
    network.load_state_dict(torch.load("models/model.pt", weights_only=True))
    with torch.no_grad():
        expected = network(image)
    assert torch.allclose(torch.load(tmp_path / "out.pt"), expected, atol=1e-5)


def test_monai_bundle_load_gives_the_network_with_the_shipped_weights(bundle_root, tmp_path, monkeypatch):
    parent = tmp_path / "bundles"
    for folder in ("bundle", "configs", "models"):
        shutil.copytree(bundle_root / folder, parent / "iconet_sr" / folder)
    run_in_root(monkeypatch, bundle_root)
    loaded = monai.bundle.load("iconet_sr", bundle_dir=str(parent), source="github", repo="local/local/local")
    weights = torch.load(bundle_root / "models/model.pt", weights_only=True)
    name = json.loads((bundle_root / "configs/train.json").read_text())["network_name"]
    assert type(loaded).__name__ == type(build_network(name)).__name__
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in weights.items())


def training_config(bundle_root: Path, overlay: str = "", **options: Any) -> ConfigParser:
    config = ConfigParser()
    config.read_config([str(bundle_root / f) for f in ("configs/train.json", overlay) if f])
    config.update({"bundle_root": str(bundle_root), **options})
    return config


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({}, Shares()),
        ({"scale": 4}, Shares()),
        ({"degradation": "plain"}, PLAIN),
        ({"overlay": "configs/experiments/paper.yaml"}, PLAIN),
        ({"overlay": "configs/experiments/alike.yaml"}, PLAIN),
    ],
)
def test_inputs_are_degraded_as_the_options_and_the_papers_say(options, shares, bundle_root):
    acquisition = training_config(bundle_root, **options).get_parsed_content("train#acquisition")
    assert acquisition.shares == shares and acquisition.scale == options.get("scale", 2)


@pytest.mark.parametrize(("options", "consistency"), [({}, True), ({"line_mask_acceleration": 2}, False)])
def test_the_batches_of_the_config_are_those_of_its_options(options, consistency, bundle_root, training_folder):
    size = {"patch_size": 24, "batch_size": 3, "updates_per_epoch": 2}
    config = training_config(bundle_root, dataset_dir=str(training_folder), device="cpu", **size, **options)
    batches = list(config.get_parsed_content("train#batches"))
    assert [tuple(b["image"].shape) for b in batches] == [(3, 1, 12, 12)] * 2
    assert [tuple(b["label"].shape) for b in batches] == [(3, 1, 24, 24)] * 2
    assert config.get_parsed_content("train#inferer").data_consistency is consistency
