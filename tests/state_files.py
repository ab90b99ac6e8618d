"""Weights that go through a file, as they do between training and inference."""

from __future__ import annotations

import io

import torch
from torch import nn


def load_through_file(source: nn.Module, target: nn.Module) -> None:
    """Save the weights of one network and load them into another, as plain tensors."""
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))
