"""Time networks on slices, volumes and updates; beside each figure the rate of the matrix product and the memory."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from comparison.cost import floor_flops, multiply_adds, parameters

from bundle.networks import build_network
from bundle.networks.upsample import fourier_image_upsample
from timing.machine import ROOT, Timed, busy, in_its_own_process, median_time, run_python

Case = tuple[str, int, int]
"""Name of a network, scale, side of the input slice."""


def _slice(name: str, scale: int, side: int, device: str) -> str:
    return f"""
from bundle.networks import build_network
network = build_network("{name}", {scale}).to("{device}").eval()
image = torch.rand(1, 1, {side}, {side}, device="{device}")
with torch.no_grad(): network(image[..., :32, :32])  # loads the kernels, which small images do without
"""


def _call(device: str) -> str:
    return "network(image)" + ("; torch.cuda.synchronize()" if device == "cuda" else "")


def slices(cases: Sequence[Case], threads: Sequence[int], device: str, before: Path | None) -> list[dict[str, Any]]:
    """One slice per case: seconds, what the floor would be, memory; with `before`, the same in that checkout."""
    rows = []
    for name, scale, side in cases:
        for number in threads:
            setup = _slice(name, scale, side, device)
            now = in_its_own_process(setup, _call(device), number)
            row = {"network": f"{name} {scale}x", "input": f"{side}x{side}", "threads": number}
            row |= {"seconds": now.seconds, "sgemm_gflops": now.sgemm_gflops, "product_gflop": product(now)}
            row["floor_gflop"] = floor_flops(build_network(name, scale), (1, 1, side, side)) / 1e9
            row["bytes_per_input_pixel"] = None if now.peak_bytes is None else round(now.peak_bytes / side**2)
            if before is not None:
                row |= _earlier(in_its_own_process(setup, _call(device), number, before), now)
            rows.append(row)
            print("  slice", row, flush=True)
    return rows


def product(timed: Timed) -> float:
    """Seconds times the rate of the matrix product: comparable between machines whose kernels keep up with it."""
    return timed.seconds * timed.sgemm_gflops


def _earlier(then: Timed, now: Timed) -> dict[str, float]:
    return {"seconds_before": then.seconds, "times_faster": product(then) / product(now)}


def every_network(names: Sequence[str], threads: int, device: str) -> list[dict[str, Any]]:
    """Every network on one slice, 2x from 128x128 and 4x from 64x64, and the interpolation alone."""
    rows = []
    for name in names:
        for scale, side in ((2, 128), (4, 64)):
            timed = in_its_own_process(_slice(name, scale, side, device), _call(device), threads)
            network = build_network(name, scale)
            counts = multiply_adds(network, (1, 1, side, side))
            rows.append({"network": f"{name} {scale}x", "input": f"{side}x{side}", "parameters": parameters(network)})
            rows[-1] |= {f"gmacs_{kind}": count / 1e9 for kind, count in counts.items()}
            rows[-1] |= {"seconds_per_slice": timed.seconds, "sgemm_gflops": timed.sgemm_gflops}
            print("  network", rows[-1], flush=True)
    image = torch.rand(1, 1, 128, 128, device=device)
    seconds = median_time(lambda: fourier_image_upsample(image, 2), device)
    rows.append({"network": "zero-filled Fourier 2x", "input": "128x128", "seconds_per_slice": seconds})
    return rows


def volumes(
    names: Sequence[str], counts: Sequence[int], threads: Sequence[int], device: str, before: Path | None
) -> list[dict[str, Any]]:
    """Volumes of 128x128 slices, 2x with data consistency, as in the inference workflow."""
    rows = []
    for name in names:
        for count in counts:
            for number in threads:
                setup = f"""
from bundle.inference.inferers import VolumeInferer
from bundle.networks import build_network
network, volume = build_network("{name}", 2).to("{device}").eval(), torch.rand(1, 1, 128, 128, {count})
inferer = VolumeInferer()
inferer(torch.rand(1, 1, 32, 32, 1), network)
"""
                call = "inferer(volume, network)"
                now = in_its_own_process(setup, call, number, repeats=1)
                row: dict[str, Any] = {"network": f"{name} 2x", "slices": count, "threads": number}
                row |= {"seconds": now.seconds, "sgemm_gflops": now.sgemm_gflops}
                row |= {"extra_gb": None if now.peak_bytes is None else now.peak_bytes / 2**30}
                row["of_it_result_gb"] = 4 * 256 * 256 * count / 2**30
                if before is not None:
                    row |= _earlier(in_its_own_process(setup, call, number, before, repeats=1), now)
                rows.append(row)
                print("  volume", row, flush=True)
    return rows


def training_steps(names: Sequence[str], threads: int, device: str, before: Path | None) -> list[dict[str, Any]]:
    """One update, forward and backward, on four patches of 96x96 high-resolution samples."""
    rows = []
    for name in names:
        for scale in (2, 4):
            setup = f"""
from bundle.networks import build_network
from bundle.training.losses import MultiStageL1Loss
network, loss = build_network("{name}", {scale}).to("{device}"), MultiStageL1Loss()
label = torch.rand(4, 1, 96, 96, device="{device}")
image = label[..., ::{scale}, ::{scale}].contiguous()
def update():
    with torch.enable_grad(): loss(network(image, return_stages=True), label).backward()
update()
"""
            call = "update()" + ("; torch.cuda.synchronize()" if device == "cuda" else "")
            now = in_its_own_process(setup, call, threads)
            row: dict[str, Any] = {"network": f"{name} {scale}x", "threads": threads, "seconds": now.seconds}
            row |= {"sgemm_gflops": now.sgemm_gflops, "product_gflop": product(now)}
            if before is not None:
                row |= _earlier(in_its_own_process(setup, call, threads, before), now)
            rows.append(row)
            print("  training", row, flush=True)
    return rows


def loaded_machine(names: Sequence[str], threads: int, before: Path | None) -> list[dict[str, Any]]:
    """A 128x128 slice, 2x, alone and beside four processes that keep a core busy each."""
    rows = []
    for name in names:
        for version, root in (("now", ROOT), ("before", before)):
            if root is None:
                continue
            setup, call = _slice(name, 2, 128, "cpu"), _call("cpu")
            quiet = in_its_own_process(setup, call, threads, root).seconds
            with busy(4):
                loaded = in_its_own_process(setup, call, threads, root).seconds
            rows.append({"network": f"{name} 2x", "version": version, "threads": threads})
            rows[-1] |= {"seconds": quiet, "seconds_at_load_4": loaded, "ratio": loaded / quiet}
            print("  load", rows[-1], flush=True)
    return rows


def command(before: Path | None) -> list[dict[str, Any]]:
    """The whole command on one small image: how long it takes to start."""
    import nibabel as nib
    import numpy as np

    rows = []
    for version, root in (("now", ROOT), ("before", before)):
        if root is None:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "in" / "small.nii"
            file.parent.mkdir()
            nib.save(nib.Nifti1Image(np.random.default_rng(0).random((32, 32, 1), np.float32), np.eye(4)), file)

            def run(root: Path = root, file: Path = file) -> None:
                run_python(["-m", "bundle", str(file.parent), str(file.parent.parent / "out"), "--overwrite"], root)

            rows.append({"command on a 32x32 image": version, "seconds": median_time(run, "cpu", repeats=3)})
            print("  command", rows[-1], flush=True)
    return rows
