"""The weights in the repository are those of their record and fit the network of their name."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from bundle.networks import iconet

SHIPPED = {"model.pt": ("small", 2), "model_x4.pt": ("small", 4)}


def test_every_weight_file_is_listed_with_its_checksum(bundle_root):
    lines = (bundle_root / "models/sha256sums.txt").read_text().split("\n")
    listed = dict(reversed(line.split("  ")) for line in lines if line)
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (bundle_root / "models").glob("*.pt")}
    assert files == listed
    assert set(files) == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_weights_are_plain_tensors_of_the_named_network_with_a_record(name, bundle_root):
    size, scale = SHIPPED[name]
    state = torch.load(bundle_root / "models" / name, weights_only=True)
    iconet(size, scale).load_state_dict(state)
    assert all(t.dtype == torch.float32 and torch.isfinite(t).all() for t in state.values())
    record = json.loads((bundle_root / "models/training" / name.replace(".pt", ".json")).read_text())
    assert record["sha256"] == hashlib.sha256((bundle_root / "models" / name).read_bytes()).hexdigest()
    assert record["parameters"] == sum(t.numel() for t in state.values())
