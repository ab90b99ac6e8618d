"""The benchmark's parts that are not clocks."""

from __future__ import annotations

import benchmark
import pytest
from comparison.cost import floor_flops, multiply_adds
from timing.machine import in_its_own_process, run_python
from timing.networks import product
from torch import nn

from bundle.networks import build_network


def test_a_process_of_its_own_reports_its_time_its_memory_and_the_rate_of_products() -> None:
    timed = in_its_own_process("import time", "time.sleep(0.02); held = torch.ones(20_000_000)", 1, repeats=2)
    assert 0.02 < timed.seconds < 5
    assert timed.peak_bytes is None or timed.peak_bytes > 70_000_000
    assert product(timed) == timed.seconds * timed.sgemm_gflops > 0


def test_code_that_fails_is_an_error_with_its_message() -> None:
    with pytest.raises(RuntimeError, match="no such name"):
        run_python(["-c", "raise ValueError('no such name')"], benchmark.machine.ROOT)


def test_the_floor_counts_a_quarter_of_a_3x3_convolution_and_all_of_others() -> None:
    shape = (1, 8, 12, 20)
    for layer, share in ((nn.Conv2d(8, 8, 3, padding=1), 0.25), (nn.Conv2d(8, 8, 5, padding=2), 1.0)):
        whole = 2 * multiply_adds(layer, shape)["products_and_convolutions"]
        assert floor_flops(layer, shape) == pytest.approx(share * whole)


def test_the_floor_of_a_network_counts_its_scans() -> None:
    network = build_network("iconet_small", 2)
    counts = multiply_adds(network, (1, 1, 32, 32))
    assert 2 * 9 / 4 * counts["scan"] < floor_flops(network, (1, 1, 32, 32)) < 2 * sum(counts.values()) * 9 / 4


def test_only_rows_with_a_goal_and_all_threads_are_held_against_it() -> None:
    rows = [{"network": n, "input": "128x128", "threads": t} for n in ("iconet_small 2x", "vdsr 2x") for t in (1, 2)]
    rows = [{**row, "product_gflop": 30.0, "floor_gflop": 20.0} for row in rows]
    (row,) = benchmark.against_goals(rows, 2)
    assert row["now"] == 30.0 and row["goal"] == pytest.approx(0.15 * 171.5)
