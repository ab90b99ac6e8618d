"""The networks by name: one option of the configs chooses among ICONet and the baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from torch import nn

from bundle.options import DEFAULT_NETWORK


@dataclass(frozen=True)
class NetworkEntry:
    """Everything the project needs to know about a network besides its code.

    Attributes:
        builder: takes ``scale``, ``in_channels`` and the further arguments of the class.
        title: its name in tables and figures.
        image_skip: the network's default for its option ``image_skip``, as in its paper; ``None`` for a network without
            that option (ICONet has its own skips).
        reconstructs: whether it also makes a reconstruction on the grid of its input.
        training: options of configs/train.json in which its paper differs from ICONet's.
    """

    builder: Callable[..., nn.Module]
    title: str
    image_skip: str | None = None
    reconstructs: bool = False
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_baseline(self) -> bool:
        """Whether it is one of the baselines for ICONet."""
        return self.image_skip is not None


def _from(module: str, name: str, *first: Any) -> Callable[..., nn.Module]:
    """A builder that imports its network only when called.

    Exported bundles leave out networks that they do not run, and SwinIR needs MONAI's blocks, which take seconds to
    import.
    """

    def build(**kwargs: Any) -> nn.Module:
        network: nn.Module = getattr(import_module(f"bundle.networks.{module}"), name)(*first, **kwargs)
        return network

    return build


NETWORKS: dict[str, NetworkEntry] = {
    "residual_sr": NetworkEntry(_from("residual_sr", "ResidualSR"), "Residual SR"),
    "iconet_small": NetworkEntry(_from("iconet", "iconet", "small"), "ICONet small", reconstructs=True),
    "iconet_paper": NetworkEntry(_from("iconet", "iconet", "paper"), "ICONet paper", reconstructs=True),
    "srcnn": NetworkEntry(_from("baselines.srcnn", "SRCNN"), "SRCNN", image_skip="none"),
    "vdsr": NetworkEntry(_from("baselines.vdsr", "VDSR"), "VDSR", image_skip="bicubic"),
    "fmisr": NetworkEntry(_from("baselines.fmisr", "FMISR"), "FMISR", image_skip="none"),
    "t2net": NetworkEntry(
        _from("baselines.t2net", "T2Net"), "T2Net", image_skip="none", reconstructs=True, training={"alpha": 0.8}
    ),
    "divanet": NetworkEntry(_from("baselines.divanet", "DiVANet"), "DiVANet", image_skip="bicubic"),
    "swinir_light": NetworkEntry(_from("baselines.swinir", "SwinIR"), "SwinIR light", image_skip="none"),
    "mambair_light": NetworkEntry(_from("baselines.mambair", "MambaIR"), "MambaIR light", image_skip="none"),
}
"""One entry per network; configs, programs, tables and figures read it."""


def build_network(name: str = DEFAULT_NETWORK, scale: int = 2, **kwargs: Any) -> nn.Module:
    """Build a network of :data:`NETWORKS`: slices (B, C, h, w) in, (B, C, scale * h, scale * w) out.

    Args:
        name: a key of :data:`NETWORKS`.
        scale: 2, 4 or 8.
        kwargs: further arguments of the network's class.

    Raises:
        ValueError: unknown name, or an argument out of range; TypeError: unknown argument.
    """
    return _known(name).builder(scale=scale, **kwargs)


def _known(name: str) -> NetworkEntry:
    if name not in NETWORKS:
        raise ValueError(f"network name must be one of {tuple(NETWORKS)}, got {name!r}")
    return NETWORKS[name]
