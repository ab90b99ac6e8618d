"""Exported networks: scripted and traced forms give the same images, even where this package is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bundle.networks import ICONet, iconet

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")

IN_ANOTHER_PROCESS = """
import sys, torch
network = torch.jit.load("network.ts")
assert "bundle" not in sys.modules and "monai" not in sys.modules
assert network.scale == 2
x = torch.load("x.pt", weights_only=True)
with torch.no_grad():
    torch.save([network(x), network(x, return_stages=True).reconstructions[0]], "y.pt")
"""


def tiny(scale: int = 2, **kwargs: Any) -> ICONet:
    torch.manual_seed(0)
    return iconet("small", scale, **{"features": 8, "num_blocks": 1, "d_state": 2, "match_features": 4, **kwargs})


def image(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


SIZES = [(2, 1, 9, 6), (1, 1, 1, 7)]


@pytest.mark.parametrize(
    "arguments",
    [
        {"scale": 4, "share_stages": True},
        {"reconstruction": False},
        {"fusion": False, "order": "parallel"},
        {"match_window": 1},
        {"match_window": None, "match_stride": 1},
    ],
    ids=str,
)
def test_a_scripted_network_is_the_network(arguments: dict[str, Any]) -> None:
    network = tiny(**arguments).double()
    scripted = torch.jit.script(network)
    assert scripted.scale == network.scale
    with torch.no_grad():
        for size in SIZES:
            assert torch.allclose(scripted(image(*size)), network(image(*size)), atol=1e-9)
        stages, expected = scripted(image(*SIZES[0]), return_stages=True), network(image(*SIZES[0]), return_stages=True)
    for a, e in zip(stages, expected, strict=True):
        assert len(a) == len(e) and all(torch.allclose(s, t, atol=1e-9) for s, t in zip(a, e, strict=True))


def test_a_traced_network_is_the_network_at_other_sizes() -> None:
    network = tiny().double()
    with torch.no_grad():
        traced = torch.jit.trace(network, image(1, 1, 6, 7), check_trace=False)
        for size in SIZES:
            assert torch.allclose(traced(image(*size)), network(image(*size)), atol=1e-9)


def test_a_scripted_network_learns_as_the_network_does() -> None:
    network, x = tiny().double(), image(1, 1, 5, 6)
    scripted = torch.jit.script(network)
    expected = torch.autograd.grad(network(x).square().sum(), list(network.parameters()), allow_unused=True)
    actual = torch.autograd.grad(scripted(x).square().sum(), list(scripted.parameters()), allow_unused=True)
    assert all(torch.allclose(a, e, atol=1e-7) for a, e in zip(actual, expected, strict=True) if e is not None)


def test_a_scripted_network_runs_without_this_package(tmp_path: Path) -> None:
    network, x = tiny(), image(1, 1, 10, 7).float()
    torch.jit.script(network).save(str(tmp_path / "network.ts"))
    torch.save(x, tmp_path / "x.pt")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", IN_ANOTHER_PROCESS], cwd=tmp_path, env=environment, check=True, timeout=300)
    sr, rec = torch.load(tmp_path / "y.pt", weights_only=True)
    expected = network(x, return_stages=True)
    assert torch.allclose(sr, expected.super_resolved[0], atol=1e-4)
    assert torch.allclose(rec, expected.reconstructions[0], atol=1e-4)
