"""ICONet SR: slice-wise super-resolution of MR and PET volumes as a MONAI bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bundle.inference.api import super_resolve

__all__ = ["super_resolve"]


def __getattr__(name: str) -> Any:
    """Import torch and MONAI only once something that needs them is asked for: importing the package stays quick."""
    if name == "super_resolve":
        from bundle.inference.api import super_resolve

        return super_resolve
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
