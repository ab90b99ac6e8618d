"""One image or volume through a network: normalise, super-resolve slice by slice, restore.

The parts are those of the MONAI inference workflow (`configs/inference.json`), called as functions.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from bundle.inference.inferers import VolumeInferer, _is_out_of_memory
from bundle.physics import consistency_residual
from bundle.physics.slices import slices_last
from bundle.transforms import NormalizeVolume, RestoreIntensityd
from bundle.transforms.intensity import OFFSET, SCALE

_COPIES = 5
"""Float32 copies of the result that exist at the same time, about: what the walk over slices and its steps keep."""


@dataclass(frozen=True, eq=False)
class SuperResolved:
    """What the network made of an image or volume.

    Attributes:
        voxels: float32, in the units of the input, in-plane axes `scale` times longer.
        offset, scale: the network saw (value - offset) / scale.
        residual: how far the result is from the input by its own truncation, relative, measured on what the network
            saw (:func:`bundle.physics.consistency_residual`).
        notes: what had to be done for lack of memory.
    """

    voxels: np.ndarray
    offset: float
    scale: float
    residual: float
    notes: tuple[str, ...]


def super_resolve(voxels: np.ndarray, network: nn.Module, scale: int, inferer: VolumeInferer) -> SuperResolved:
    """Super-resolve one image (X, Y) or volume (X, Y, Z).

    When memory is short, the batches of slices are halved (and stay so in `inferer`); a CUDA device too small for a
    single slice leaves the volume to the CPU.

    Args:
        voxels: finite real numbers.
        network: takes slices (B, 1, h, w) of order 1 to (B, 1, scale * h, scale * w); it stays on its device.
        scale: factor of the network.
        inferer: slice axis, batch and data consistency.

    Raises:
        MemoryError: one slice at a time, or the result itself, is too much.
    """
    _check_memory(voxels.size * scale**2)
    image = NormalizeVolume()(MetaTensor(torch.from_numpy(np.ascontiguousarray(voxels, np.float32))[None]))
    notes: list[str] = []
    pred = _infer(image.as_tensor(), network, inferer, notes)
    residual = _residual(pred, image.as_tensor(), inferer.slice_axis)
    fine = RestoreIntensityd("pred", "image")({"pred": pred, "image": image})["pred"]
    return SuperResolved(fine[0].numpy(), image.meta[OFFSET], image.meta[SCALE], residual, tuple(notes))


def _infer(image: Tensor, network: nn.Module, inferer: VolumeInferer, notes: list[str]) -> Tensor:
    """(1, ...) -> the same with longer in-plane axes, on the CPU."""
    home = device = next(network.parameters(), torch.empty(0)).device
    try:
        while True:
            try:
                return inferer(image[None].to(device), network)[0].cpu()
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
            # Outside the handler: the exception would keep the tensors of the failed attempt alive.
            if device.type == "cuda":
                torch.cuda.empty_cache()
            if inferer.slice_batch > 1:
                inferer.slice_batch //= 2
                notes.append(f"memory was short: {inferer.slice_batch} slices at a time from here on")
            elif device.type != "cpu":
                device = torch.device("cpu")
                network.to(device)
                notes.append(f"{home} has too little memory for one slice: this volume runs on the CPU")
            else:
                raise MemoryError("not even one slice at a time fits in memory; crop the volume")
    finally:
        if device != home:
            network.to(home)


def _check_memory(voxels: int) -> None:
    """Refuse a result that this machine can never hold: it would be killed for it, and the whole run with it."""
    needed = _COPIES * 4 * voxels
    try:
        present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return
    if needed > present:
        found = f"about {needed / 2**30:.0f} GiB of memory are needed, this machine has {present / 2**30:.0f} GiB"
        raise MemoryError(f"{found}; crop or split the volume")


def _residual(pred: Tensor, image: Tensor, slice_axis: int) -> float:
    """`consistency_residual` of a whole volume (C, ...), gathered slice by slice to bound the memory."""
    fine, coarse = (slices_last(x, slice_axis).flatten(0, -3) for x in (pred, image))
    off = total = 0.0
    for sr, lr in zip(fine, coarse, strict=True):
        if norm := float(lr.double().norm()):
            off += (consistency_residual(sr, lr) * norm) ** 2
            total += norm**2
    return math.sqrt(off / total) if total else 0.0
