"""A network with its weights, on its device."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bundle.data.paths import PathLike
from bundle.inference.shipped import models_folder, models_origin, shipped_weights
from bundle.inference.weights import load_weights
from bundle.networks import NETWORKS, build_network
from bundle.options import CONFIG_OPTIONS, SCALES
from bundle.trust import TrainingRange, load_training_range


class ModelError(ValueError):
    """A network that cannot be loaded because of its name, weights or device; the message is one line."""


@dataclass(frozen=True, eq=False)
class Model:
    """A network ready to run; `digest` is the SHA-256 of its weights, `trained_on` their training range, if any."""

    network: nn.Module
    scale: int
    weights: Path
    digest: str
    trained_on: TrainingRange | None


def load_model(name: str, scale: int, weights: PathLike | None = None, device: str | None = None) -> Model:
    """Build a network, load its weights and move it to its device, in evaluation mode.

    Args:
        name: a key of :data:`bundle.networks.NETWORKS`.
        scale: 2, 4 or 8.
        weights: plain state dict or safetensors; the shipped ones by default.
        device: ``cpu``, ``cuda``, ``cuda:1``...; CUDA where there is one by default.

    Raises:
        ModelError: unknown network, no or bad weights, no such device.
    """
    if name not in NETWORKS:
        raise ModelError(f"no network {name!r}; there are {', '.join(NETWORKS)}")
    if scale not in SCALES:
        raise ModelError(f"scale must be {CONFIG_OPTIONS['scale'][1].range_text}, got {scale!r}")
    path = Path(weights) if weights is not None else shipped_weights(name, scale)
    if weights is None and not path.is_file():
        raise ModelError(_none_shipped(name, scale))
    try:
        network = build_network(name, scale)
        digest = load_weights(network, path)
        trained_on = load_training_range(path)
    except ValueError as error:  # also WeightsError
        raise ModelError(str(error)) from error
    return Model(network.to(_device(own_device(device))).eval(), scale, path, digest, trained_on)


def _none_shipped(name: str, scale: int) -> str:
    every = [(other, factor) for other in NETWORKS for factor in SCALES]
    there = ", ".join(f"{other} {factor}x" for other, factor in every if shipped_weights(other, factor).is_file())
    place = f"{models_folder()} ({models_origin()}; there: {there or 'nothing'})"
    return f"no weights of {name} {scale}x in {place}; give weights of your own"


def own_device(name: str | None) -> str:
    """Name of the device to use: CUDA if available; with several GPUs, the one for this process (`LOCAL_RANK`)."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and (count := torch.cuda.device_count()):
        name = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % count}"
    return name


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(f"no device {name!r} on this machine; use cpu, or cuda where there is one") from error
