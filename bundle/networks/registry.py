"""The networks by name: one option of the configs chooses among ICONet and its peers."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from bundle.networks.iconet import iconet


def _baseline(module: str, name: str) -> Callable[..., nn.Module]:
    """Builder of a baseline, imported when it is built: exported bundles leave out the baselines they do not run."""

    def build(**kwargs: Any) -> nn.Module:
        network: nn.Module = getattr(import_module(f"bundle.networks.baselines.{module}"), name)(**kwargs)
        return network

    return build


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "iconet_small": partial(iconet, "small"),
    "iconet_paper": partial(iconet, "paper"),
    "srcnn": _baseline("srcnn", "SRCNN"),
    "vdsr": _baseline("vdsr", "VDSR"),
    "fmisr": _baseline("fmisr", "FMISR"),
    "t2net": _baseline("t2net", "T2Net"),
    "divanet": _baseline("divanet", "DiVANet"),
    "swinir_light": _baseline("swinir", "SwinIR"),
    "mambair_light": _baseline("mambair", "MambaIR"),
}
"""Builders; each takes ``scale``, ``in_channels`` and what its class takes besides."""


def build_network(name: str = "iconet_small", scale: int = 2, **kwargs: Any) -> nn.Module:
    """Build a network of :data:`NETWORKS`: slices (B, C, h, w) in, (B, C, scale * h, scale * w) out.

    Args:
        name: a key of :data:`NETWORKS`.
        scale: 2, 4 or 8.
        kwargs: further arguments of the network's class.

    Raises:
        ValueError: unknown name, or an argument that the network does not permit.
    """
    return _known(name)(scale=scale, **kwargs)


def weights_path(models_dir: str | os.PathLike[str], name: str = "iconet_small", scale: int = 2) -> str:
    """Where the weights of a network lie in ``models_dir``, shipped or not: the only place that spells their names.

    ``model.pt`` is the small ICONet by 2, as MONAI expects a bundle's weights to be called.

    Raises:
        ValueError: unknown name.
    """
    _known(name)
    network = "" if name == "iconet_small" else f"_{name}"
    factor = "" if (name, scale) == ("iconet_small", 2) else f"_x{scale}"
    return str(Path(models_dir) / f"model{network}{factor}.pt")


def _known(name: str) -> Callable[..., nn.Module]:
    if name not in NETWORKS:
        raise ValueError(f"network name must be one of {tuple(NETWORKS)}, got {name!r}")
    return NETWORKS[name]
