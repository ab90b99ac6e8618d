"""Where the files that ship with the package are: weights, configs, licences and the version.

In an installed wheel, ``models/`` and ``configs/`` are inside the package; in the repository and in an exported bundle
they are next to it. This module imports nothing heavy, because ``iconet-sr --version`` needs it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from bundle.options import DEFAULT_NETWORK, SCALES

MODELS_VARIABLE = "ICONET_MODELS"
"""Environment variable that names another folder of weights."""
PACKAGE = Path(__file__).resolve().parents[1]
LICENCES = ("LICENSE", "docs/data_license.txt")
"""Licences of the code and of the training data, by their names in the repository."""


def models_folder() -> Path:
    """The folder of the weights: what ``ICONET_MODELS`` names, else the package's, else the repository's."""
    given = os.environ.get(MODELS_VARIABLE)
    return Path(given).expanduser() if given else _inside_or_beside("models")


def models_origin() -> str:
    """What kind of folder :func:`models_folder` is, for messages."""
    if os.environ.get(MODELS_VARIABLE):
        return f"the folder that {MODELS_VARIABLE} names"
    return f"the folder {'inside' if (PACKAGE / 'models').is_dir() else 'beside'} the package"


def configs_folder() -> Path:
    """The folder of the configs: the package's, else the repository's."""
    return _inside_or_beside("configs")


def tool_version() -> str:
    """Version of this copy of the package, from the metadata of the bundle."""
    metadata = json.loads((configs_folder() / "metadata.json").read_bytes())
    return str(metadata["version"])


def licence_text(name: str) -> str:
    """Text of one of :data:`LICENCES`: from the repository, else from the records of the installed wheel.

    Raises:
        FileNotFoundError: it is in neither place.
    """
    beside = PACKAGE.parent / name
    if not (PACKAGE / "configs").is_dir() and beside.is_file():
        return beside.read_text(encoding="utf-8")
    try:
        text = distribution("iconet-sr").read_text(f"licenses/{name}")
    except PackageNotFoundError:
        text = None
    if text is None:
        raise FileNotFoundError(f"{name}: not found beside the package in {PACKAGE}; install ICONet SR again")
    return text


def _inside_or_beside(name: str) -> Path:
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def weights_path(models_dir: str | os.PathLike[str], name: str = DEFAULT_NETWORK, scale: int = 2) -> str:
    """Where the weights of a network lie in ``models_dir``, shipped or not: the only place that spells their names.

    ``model.pt`` is the default network 2x, as MONAI expects a bundle's weights to be called.
    """
    network = "" if name == DEFAULT_NETWORK else f"_{name}"
    factor = "" if (name, scale) == (DEFAULT_NETWORK, 2) else f"_x{scale}"
    return str(Path(models_dir) / f"model{network}{factor}.pt")


def shipped_scales(name: str) -> list[int]:
    """The factors for which a network has shipped weights."""
    return [scale for scale in SCALES if shipped_weights(name, scale).is_file()]


def factor_for(size: Sequence[float], spacing: Sequence[float], scales: Sequence[int]) -> int:
    """The smallest factor of a network that reaches a voxel size, or the largest that there is.

    Args:
        size, spacing: of the result and of the stored voxels along the in-plane axes, mm.
        scales: factors with weights.
    """
    needed = max(have / want for have, want in zip(spacing, size, strict=True))
    return next((scale for scale in sorted(scales) if scale >= needed * (1 - 1e-6)), max(scales))


def shipped_weights(name: str, scale: int) -> Path:
    """File of the shipped weights of a network, whether or not it is there."""
    return Path(weights_path(models_folder(), name, scale))
