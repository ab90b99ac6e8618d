"""The networks by name: one option of the configs chooses among ICONet and the baselines."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from bundle.networks.baselines.divanet import DiVANet
from bundle.networks.baselines.fmisr import FMISR
from bundle.networks.baselines.mambair import MambaIR
from bundle.networks.baselines.srcnn import SRCNN
from bundle.networks.baselines.t2net import T2Net
from bundle.networks.baselines.vdsr import VDSR
from bundle.networks.iconet import iconet


@dataclass(frozen=True)
class NetworkEntry:
    """All that the project knows of a network besides its code.

    Attributes:
        builder: takes ``scale``, ``in_channels`` and what the class takes besides.
        title: its name in tables and figures.
        image_skip: what the network takes for its option ``image_skip`` if it is not given, as in its paper; ``None``
            for a network without that option (ICONet has skips of its own).
        reconstructs: whether it makes a reconstruction on the grid of its input besides the super-resolved image.
        training: options of configs/train.json in which its paper differs from ICONet's.
    """

    builder: Callable[..., nn.Module]
    title: str
    image_skip: str | None = None
    reconstructs: bool = False
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_baseline(self) -> bool:
        """Whether it is a network that ICONet is compared with."""
        return self.image_skip is not None


def _swinir(**kwargs: Any) -> nn.Module:
    """The one network that needs MONAI's blocks, whose import takes seconds."""
    from bundle.networks.baselines.swinir import SwinIR

    return SwinIR(**kwargs)


NETWORKS: dict[str, NetworkEntry] = {
    "iconet_small": NetworkEntry(partial(iconet, "small"), "ICONet small", reconstructs=True),
    "iconet_paper": NetworkEntry(partial(iconet, "paper"), "ICONet paper", reconstructs=True),
    "srcnn": NetworkEntry(SRCNN, "SRCNN", image_skip="none"),
    "vdsr": NetworkEntry(VDSR, "VDSR", image_skip="bicubic"),
    "fmisr": NetworkEntry(FMISR, "FMISR", image_skip="none"),
    "t2net": NetworkEntry(T2Net, "T2Net", image_skip="none", reconstructs=True, training={"alpha": 0.8}),
    "divanet": NetworkEntry(DiVANet, "DiVANet", image_skip="bicubic"),
    "swinir_light": NetworkEntry(_swinir, "SwinIR light", image_skip="none"),
    "mambair_light": NetworkEntry(MambaIR, "MambaIR light", image_skip="none"),
}
"""One entry per network, which the options of configs and programs, tables and figures read."""


def build_network(name: str = "iconet_small", scale: int = 2, **kwargs: Any) -> nn.Module:
    """Build a network of :data:`NETWORKS`: slices (B, C, h, w) in, (B, C, scale * h, scale * w) out.

    Args:
        name: a key of :data:`NETWORKS`.
        scale: 2, 4 or 8.
        kwargs: further arguments of the network's class.

    Raises:
        ValueError: unknown name, or an argument outside its range; TypeError: an argument that it does not have.
    """
    return _known(name).builder(scale=scale, **kwargs)


def weights_path(models_dir: str | os.PathLike[str], name: str = "iconet_small", scale: int = 2) -> str:
    """Where the weights of a network lie in ``models_dir``, shipped or not: the only place that spells their names.

    ``model.pt`` is the small ICONet 2x, as MONAI expects a bundle's weights to be called.

    Raises:
        ValueError: unknown name.
    """
    _known(name)
    network = "" if name == "iconet_small" else f"_{name}"
    factor = "" if (name, scale) == ("iconet_small", 2) else f"_x{scale}"
    return str(Path(models_dir) / f"model{network}{factor}.pt")


def _known(name: str) -> NetworkEntry:
    if name not in NETWORKS:
        raise ValueError(f"network name must be one of {tuple(NETWORKS)}, got {name!r}")
    return NETWORKS[name]
