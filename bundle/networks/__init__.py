"""ICONet, its parts and the baselines, as MONAI-style components."""

from bundle.networks.config import NETWORK_SIZES, ICONetConfig
from bundle.networks.iconet import ICONet, ICONetOutput, iconet
from bundle.networks.registry import NETWORKS, NetworkEntry, build_network

__all__ = [
    "NETWORKS",
    "NETWORK_SIZES",
    "ICONet",
    "ICONetConfig",
    "ICONetOutput",
    "NetworkEntry",
    "build_network",
    "iconet",
]
