"""The weights in the repository match their record and fit the network of their name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from bundle.inference.shipped import weights_path
from bundle.networks import build_network

SHIPPED = [("iconet_small", 2), ("iconet_small", 4)]
shipped = pytest.mark.parametrize(("name", "scale"), SHIPPED)


def test_every_weight_file_is_listed_with_its_checksum(bundle_root):
    lines = (bundle_root / "models/sha256sums.txt").read_text().split("\n")
    listed = dict(reversed(line.split("  ")) for line in lines if line)
    kept = [p for p in (bundle_root / "models").iterdir() if p.suffix in (".pt", ".safetensors")]
    assert {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in kept} == listed
    named = [Path(weights_path(bundle_root / "models", *which)) for which in SHIPPED]
    assert set(kept) == {*named, *(p.with_suffix(".safetensors") for p in named)}


@shipped
def test_weights_are_plain_tensors_of_the_named_network_with_a_record(name, scale, bundle_root):
    path = Path(weights_path(bundle_root / "models", name, scale))
    state = torch.load(path, weights_only=True)
    build_network(name, scale).load_state_dict(state)
    assert all(t.dtype == torch.float32 and torch.isfinite(t).all() for t in state.values())
    record = json.loads((bundle_root / f"models/training/{path.stem}.json").read_text())
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["parameters"] == sum(t.numel() for t in state.values())


@shipped
def test_the_safetensors_file_holds_the_same_weights_and_says_what_they_assume(name, scale, bundle_root):
    path = Path(weights_path(bundle_root / "models", name, scale))
    state = torch.load(path, weights_only=True)
    with safe_open(path.with_suffix(".safetensors"), "pt") as file:
        assert set(file.keys()) == set(state)
        assert all(torch.equal(file.get_tensor(key), value) for key, value in state.items())
        metadata = file.metadata()
    assert metadata["scale"] == str(scale) and "scale * j" in metadata["grid_rule"]
    assert json.loads(metadata["training_range"])["scale"] == scale
