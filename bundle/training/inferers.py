"""The training inferer: all stages of the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import SimpleInferer
from torch import Tensor

from bundle.networks import ICONetOutput
from bundle.physics import measured_as, restore_measured


class StageInferer(SimpleInferer):
    """Run a network with the output of every stage, as the multi-stage loss needs.

    Args:
        return_stages: ``False`` returns only the last image (single-stage supervision).
        data_consistency: add the last image once more, after data consistency with the input, so that the loss also
            trains through that step: what the network adds beyond the measured band then counts for more.
        bf16: compute convolutions and products in bfloat16 (autocast). CPUs with AMX and GPUs then train several times
            faster; images, loss and weights stay in single precision.
    """

    def __init__(self, return_stages: bool = True, data_consistency: bool = False, bf16: bool = False) -> None:
        super().__init__()
        if data_consistency and not return_stages:
            raise ValueError("training through data consistency adds to the stages: it needs return_stages=True")
        self.return_stages, self.data_consistency, self.bf16 = return_stages, data_consistency, bf16

    def __call__(
        self, inputs: Tensor, network: Callable[..., Any], *args: Any, measured: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Outputs in single precision.

        Args:
            inputs: (B, C, h, w).
            network: takes ``return_stages``.
            args, kwargs: further arguments of the network.
            measured: bool (B,), which inputs hold k-space as it was measured; the others, filtered or incomplete, keep
                the image of the network in place of the one after data consistency. By default all do.
        """
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.bf16):
            out = _single(network(inputs, *args, return_stages=self.return_stages, **kwargs))
        if self.data_consistency:
            own = out.super_resolved[-1]
            restored = restore_measured(own, measured_as(own.detach(), inputs))
            keep = None if measured is None else measured[:, None, None, None]
            out.super_resolved.append(restored if keep is None else torch.where(keep, restored, own))
        return out


def _single(out: ICONetOutput | Tensor) -> Any:
    if isinstance(out, Tensor):
        return out.float()
    return ICONetOutput([x.float() for x in out.reconstructions], [x.float() for x in out.super_resolved])
