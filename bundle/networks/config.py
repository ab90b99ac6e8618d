"""Options of an ICONet with their defaults and ranges, and the named sizes."""

from __future__ import annotations

from dataclasses import dataclass

SCALES = (2, 4, 8)
ORDERS = ("serial", "parallel")
UPSAMPLERS = ("pixelshuffle", "full_resolution")


@dataclass(frozen=True)
class ICONetConfig:
    """Options of :class:`bundle.networks.ICONet`, which takes them as keywords. The defaults are the paper's size.

    The paper gives 96 features, N = 7 RSCFL modules and the serial order; docs/architecture.md lists what it leaves
    open and what is chosen here.

    Attributes:
        scale: 2, 4 or 8: ``log2(scale)`` stages.
        in_channels: channels of the image (the output has as many).
        features: feature maps of both branches.
        num_blocks: RSCFL modules per branch (the paper's N).
        d_state, expand: selective scan, see :class:`bundle.networks.vision_mamba.VisionMambaBlock`.
        match_features, match_stride, match_window: fusion, see :class:`bundle.networks.fusion.SRRecFusion`.
        upsampler: ``pixelshuffle`` (:class:`bundle.networks.heads.ImageHead`) or ``full_resolution``
            (:class:`bundle.networks.heads.FullResolutionHead`); the paper names none.
        head_features, head_layers: width and number of convolutions of the latter.
        reconstruction: ``False`` removes the reconstruction branch, and the fusion with it (Table IV).
        fusion: ``False`` removes the fusion (Table IV).
        order: ``serial`` (the paper) or ``parallel``: both branches read the input of the stage (Table V).
        share_stages: one set of weights for all stages.

    Raises:
        ValueError: an option is out of range; TypeError: an option is not in this list.
    """

    scale: int = 2
    in_channels: int = 1
    features: int = 96
    num_blocks: int = 7
    d_state: int = 16
    expand: float = 2.0
    match_features: int | None = None
    match_stride: int = 1
    match_window: int | None = None
    upsampler: str = "pixelshuffle"
    head_features: int = 48
    head_layers: int = 12
    reconstruction: bool = True
    fusion: bool = True
    order: str = "serial"
    share_stages: bool = False

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"scale must be 2, 4 or 8, got {self.scale}")
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {ORDERS}, got {self.order!r}")
        if self.upsampler not in UPSAMPLERS:
            raise ValueError(f"upsampler must be one of {UPSAMPLERS}, got {self.upsampler!r}")
        if self.num_blocks < 1 or self.features < 1:
            raise ValueError(f"num_blocks and features must be positive, got {self.num_blocks} and {self.features}")
        if self.match_stride < 1:
            raise ValueError(f"match_stride must be at least 1, got {self.match_stride}")
        if self.match_window is not None and self.match_window < 0:
            raise ValueError(f"match_window must be at least 0 or None, got {self.match_window}")
        if self.head_features < 1 or self.head_layers < 2:
            raise ValueError(
                "head_features must be positive, head_layers at least 2, "
                f"got {self.head_features} and {self.head_layers}"
            )


NETWORK_SIZES = {
    "paper": ICONetConfig(),
    "small": ICONetConfig(
        features=32,
        num_blocks=4,
        d_state=4,
        expand=1.5,
        match_features=8,
        match_stride=2,
        match_window=20,
        upsampler="full_resolution",
    ),
}
"""The named sizes: the paper's width and depth, and a small one for machines without a GPU."""
