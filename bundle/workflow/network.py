"""The network of a bundle run, with weights, on its device."""

from __future__ import annotations

from torch import nn

from bundle.inference.weights import load_weights
from bundle.workflow.errors import one_line_exit


@one_line_exit
def prepare_network(network: nn.Module, weights: str | None, device: str) -> nn.Module:
    """Load a plain state dict into a network, if one is given, and move it to the device.

    Args:
        network: newly built.
        weights: file of tensors (``torch.save`` of a state dict), or ``None`` to keep the initial values.
        device: ``cpu``, ``cuda``, ``cuda:1``...

    Raises:
        SystemExit: the file is missing, holds more than tensors, or does not fit; nothing is loaded partially.
    """
    if weights is not None:
        load_weights(network, weights)
    return network.to(device)
