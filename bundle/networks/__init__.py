"""ICONet, its parts and its peers, as MONAI-style components."""

from bundle.networks.iconet import NETWORK_SIZES, ICONet, ICONetOutput, iconet
from bundle.networks.registry import NETWORKS, build_network, weights_path

__all__ = ["NETWORKS", "NETWORK_SIZES", "ICONet", "ICONetOutput", "build_network", "iconet", "weights_path"]
