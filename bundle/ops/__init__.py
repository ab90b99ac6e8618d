"""The two hot kernels, each behind one function; their back ends lie beside them and give the same result."""

from bundle.ops.backend import backend_report, use_backend
from bundle.ops.scan.dispatch import selective_scan_2d
from bundle.ops.search.patch_match import PatchMatch, patch_match

__all__ = ["PatchMatch", "backend_report", "patch_match", "selective_scan_2d", "use_backend"]
