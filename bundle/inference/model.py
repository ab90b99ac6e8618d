"""The network of a run, with its weights, on its device."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bundle.cli.options import Options, RunError
from bundle.inference.weights import load_weights
from bundle.networks import NETWORKS, build_network, weights_path
from bundle.trust import TrainingRange, load_training_range

MODELS = Path(__file__).resolve().parents[2] / "models"
"""Shipped weights: beside the package, in the folder of the bundle."""


@dataclass(frozen=True, eq=False)
class Model:
    """A network ready to run; `digest` is the SHA-256 of its weights, `trained_on` what they know, if recorded."""

    network: nn.Module
    scale: int
    weights: Path
    digest: str
    trained_on: TrainingRange | None


def load_model(options: Options) -> Model:
    """Build the network that the options name and load its weights.

    Raises:
        RunError: unknown network, no or bad weights, no such device.
    """
    if options.network not in NETWORKS:
        raise RunError(f"no network {options.network!r}; there are {', '.join(NETWORKS)}")
    try:
        network = build_network(options.network, options.scale)
        weights = options.weights or Path(weights_path(MODELS, options.network, options.scale))
        digest = load_weights(network, weights)
        trained_on = load_training_range(weights)
    except ValueError as error:  # also WeightsError
        raise RunError(str(error)) from error
    return Model(network.to(_device(own_device(options.device))).eval(), options.scale, weights, digest, trained_on)


def own_device(name: str | None) -> str:
    """Name of the device to use: CUDA if there is one, and of several the one of this process (`LOCAL_RANK`)."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and (count := torch.cuda.device_count()):
        name = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % count}"
    return name


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"no device {name!r} on this machine ({reason}); use cpu, or cuda where there is one") from error
