"""The script that measures the effect of exact zero-order hold computes the exact scan."""

from __future__ import annotations

import runpy

import torch

from bundle.networks import build_network
from bundle.networks.ss2d import SS2D
from bundle.ops.scan.reference import selective_scan_2d_reference


def test_the_fast_form_of_the_exact_scan_is_that_of_the_reference(bundle_root):
    program = runpy.run_path(str(bundle_root / "scripts/discretisation.py"))
    torch.manual_seed(0)
    scan, x = SS2D(6, d_state=3, dt_rank=2).double(), torch.randn(2, 5, 4, 6).double()
    proj, A = scan.x_proj(x).unflatten(-1, (4, -1)), -scan.A_log.exp()
    args = (x, proj, scan.dt_weight, scan.dt_bias + 3.0, A, scan.D)  # long time steps, where the two differ
    out, ratio = program["exact_scan"](*args)
    assert torch.allclose(out, selective_scan_2d_reference(*args, exact=True), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(out, selective_scan_2d_reference(*args), atol=1e-3)
    assert ratio.shape == (4, 3, 2, 5, 4, 6) and bool((ratio > 1).all())


def test_every_scan_of_a_network_is_replaced(bundle_root):
    program = runpy.run_path(str(bundle_root / "scripts/discretisation.py"))
    network = build_network("iconet_small", 4, num_blocks=2)
    scans = program["with_exact_scans"](network)
    assert len(scans) == sum(isinstance(module, SS2D) for module in network.modules()) == 2 * 2 * 2
