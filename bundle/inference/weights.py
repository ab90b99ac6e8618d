"""Weights of networks: files of plain tensors, loaded completely or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bundle.data.atomic import replacing
from bundle.data.paths import PathLike, sha256_of

CHECKSUMS = "sha256sums.txt"


class WeightsError(ValueError):
    """Weights that are missing, damaged, unsafe or for another network; the message is one line."""


def load_weights(network: nn.Module, weights: PathLike) -> str:
    """Load a plain state dict into a network.

    Args:
        network: newly built.
        weights: file of tensors, a state dict from ``torch.save`` or safetensors (extension ``.safetensors``). If a
            file ``sha256sums.txt`` next to it lists it, its checksum must match.

    Returns:
        SHA-256 of the file, in hexadecimal.

    Raises:
        WeightsError: the file is missing or changed, holds more than tensors, or does not fit; nothing is loaded
            partially, and no code in the file is ever run.
    """
    path = Path(weights)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights; train them, or choose a scale and a network that have weights")
    digest = sha256_of(path)
    listed = listed_digests(path.parent).get(path.name)
    if listed not in (None, digest):
        raise WeightsError(f"{path}: not the file that {CHECKSUMS} beside it lists (SHA-256 {digest}); get it again")
    try:
        state = _read_tensors(path)
    except Exception as error:  # on a damaged file, the readers can raise anything
        reason = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: not a file of plain tensors that can be loaded safely: {reason}") from error
    if misfit := _misfit(network.state_dict(), state):
        raise WeightsError(f"{path}: not the weights of this network (another scale or size?): {misfit}")
    network.load_state_dict(state)
    return digest


def listed_digests(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 as listed in a folder's ``sha256sums.txt``, if there is one (format of sha256sum)."""
    table = folder / CHECKSUMS
    if not table.is_file():
        return {}
    rows = [line.split(maxsplit=1) for line in table.read_text(encoding="utf-8").splitlines()]
    return {row[1].lstrip("*"): row[0].lower() for row in reversed(rows) if len(row) == 2}


def _read_tensors(path: Path) -> Mapping[str, Tensor]:
    state: Any
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise TypeError("it holds something other than named tensors")
    return state


def _misfit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """The first difference in names or shapes between two state dicts; empty if they match."""
    for name, tensor in expected.items():
        if name not in found:
            return f"{name} is missing"
        if found[name].shape != tensor.shape:
            return f"{name} is {tuple(found[name].shape)}, expected {tuple(tensor.shape)}"
    extra = sorted(set(found) - set(expected))
    return f"{extra[0]} is not part of it" if extra else ""


def save_atomically(obj: Any, path: PathLike) -> None:
    """Atomic ``torch.save``: a killed process leaves either the old file or the new one."""
    with replacing(Path(path)) as file:
        torch.save(obj, file)
