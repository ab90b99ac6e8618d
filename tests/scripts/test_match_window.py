"""The script that measures what a search window loses."""

from __future__ import annotations

import runpy

import pytest
from comparison.records import read_rows


def test_a_loss_is_what_the_whole_image_gains_over_the_window(bundle_root):
    program = runpy.run_path(str(bundle_root / "scripts/match_window.py"))
    figures = {("a", "none"): 30.0, ("b", "none"): 40.0, ("a", "4"): 29.9, ("b", "4"): 40.02}
    rows = [{"file": file, "window": window, "psnr": psnr} for (file, window), psnr in figures.items()]
    assert program["losses"](rows) == [["none", "0.0000", "0.0000", "a"], ["4", "0.0400", "0.1000", "a"]]


@pytest.mark.parametrize("scale", [2, 4])
def test_the_window_of_the_small_network_loses_a_hundredth_of_a_decibel_at_most(bundle_root, scale):
    from bundle.networks import NETWORK_SIZES

    rows = read_rows(bundle_root / f"docs/results/match_window/x{scale}.csv")
    lines = {line[0]: line for line in runpy.run_path(str(bundle_root / "scripts/match_window.py"))["losses"](rows)}
    mean, largest = map(float, lines[str(NETWORK_SIZES["small"].match_window)][1:3])
    assert mean < 0.01 and round(largest, 2) <= 0.02
