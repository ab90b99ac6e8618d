"""The kernels that cost the most, each behind one function; :mod:`bundle.ops.backend` is the table of back ends."""

from bundle.ops.backend import Backend, backend_report, use_backend
from bundle.ops.block.dispatch import block_kernel
from bundle.ops.conv.dispatch import conv3x3, own_convolution
from bundle.ops.modules import is_plain, is_unwatched
from bundle.ops.scan.dispatch import selective_scan_2d
from bundle.ops.search.patch_match import PatchMatch, patch_match

__all__ = [
    "Backend",
    "PatchMatch",
    "backend_report",
    "block_kernel",
    "conv3x3",
    "is_plain",
    "is_unwatched",
    "own_convolution",
    "patch_match",
    "selective_scan_2d",
    "use_backend",
]
