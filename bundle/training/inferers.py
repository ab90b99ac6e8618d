"""The training inferer: all stages of the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monai.inferers import SimpleInferer
from torch import Tensor

from bundle.physics import restore_magnitude


class StageInferer(SimpleInferer):
    """Run a network with the output of every stage, as the multi-stage loss needs.

    Args:
        return_stages: ``False`` returns only the last image (single-stage supervision).
        data_consistency: add the last image once more, after data consistency with the input, so that the loss also
            trains through that step: what the network adds beyond the measured band then counts for more.
    """

    def __init__(self, return_stages: bool = True, data_consistency: bool = False) -> None:
        super().__init__()
        if data_consistency and not return_stages:
            raise ValueError("training through data consistency adds to the stages: it needs return_stages=True")
        self.return_stages, self.data_consistency = return_stages, data_consistency

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        out = network(inputs, *args, return_stages=self.return_stages, **kwargs)
        if self.data_consistency:
            out.super_resolved.append(restore_magnitude(out.super_resolved[-1], inputs))
        return out
