"""The weights in the repository match their record and fit the network of their name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from bundle.inference.shipped import weights_path
from bundle.networks import build_network

SHIPPED = [("residual_sr", 2), ("residual_sr", 4), ("iconet_small", 2), ("iconet_small", 4)]
shipped = pytest.mark.parametrize(("name", "scale"), SHIPPED)


def test_every_weight_file_is_listed_with_its_checksum(bundle_root):
    lines = (bundle_root / "models/sha256sums.txt").read_text().split("\n")
    listed = dict(reversed(line.split("  ")) for line in lines if line)
    kept = [p for p in (bundle_root / "models").iterdir() if p.suffix == ".pt"]
    assert {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in kept} == listed
    assert set(kept) == {Path(weights_path(bundle_root / "models", *which)) for which in SHIPPED}


@shipped
def test_weights_are_plain_tensors_of_the_named_network_with_a_record(name, scale, bundle_root):
    path = Path(weights_path(bundle_root / "models", name, scale))
    state = torch.load(path, weights_only=True)
    build_network(name, scale).load_state_dict(state)
    assert all(t.dtype == torch.float32 and torch.isfinite(t).all() for t in state.values())
    record = json.loads((bundle_root / f"models/training/{path.stem}.json").read_text())
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["parameters"] == sum(t.numel() for t in state.values())
