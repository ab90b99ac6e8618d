"""ICONet and its parts, as MONAI-style components."""

from bundle.networks.iconet import NETWORK_SIZES, ICONet, ICONetOutput, iconet

__all__ = ["NETWORK_SIZES", "ICONet", "ICONetOutput", "iconet"]
