"""The inferer of whole volumes: slice by slice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer, SliceInferer
from torch import Tensor

from bundle.physics import restore_magnitude, restore_measured
from bundle.physics.slices import check_slice_axis, in_plane_axes


class VolumeInferer(Inferer):
    """Apply a 2-D super-resolution network to every slice of a volume (MONAI's SliceInferer does the walking).

    Takes volumes ``(B, C, X, Y, Z)`` and images ``(B, C, X, Y)``; the channels (time points of a series) are treated
    one by one by a one-channel network. A slice without contrast holds nothing to super-resolve: its constant is
    written as it is and the network is not asked.

    Args:
        slice_axis: axis (0, 1, 2) of a volume that runs over slices.
        slice_batch: slices per call of the network.
        progress: show a progress bar over the batches of slices.
        data_consistency: how far the k-space of each input slice is put back into its result: 1 (or ``True``) wholly,
            0 not at all (the paper has no such step), between them in part. An input without negative values is taken
            for a magnitude image (:func:`bundle.physics.restore_magnitude`), else for a signed one
            (:func:`bundle.physics.restore_measured`).
    """

    def __init__(
        self, slice_axis: int = 2, slice_batch: int = 4, progress: bool = False, data_consistency: float = 1.0
    ) -> None:
        super().__init__()
        self.slice_axis = check_slice_axis(slice_axis)
        if slice_batch < 1:
            raise ValueError(f"slice_batch must be at least 1, got {slice_batch}")
        if not 0.0 <= data_consistency <= 1.0:
            raise ValueError(f"data_consistency is a weight from 0 to 1, got {data_consistency}")
        self.slice_batch, self.progress, self.data_consistency = slice_batch, progress, float(data_consistency)

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Returns the volume with its in-plane axes ``scale`` times longer."""
        restore = restore_magnitude if bool((inputs >= 0).all()) else restore_measured

        def super_resolve(batch: Tensor) -> Tensor:
            out = network(batch, *args, **kwargs)
            return restore(out, batch, self.data_consistency) if self.data_consistency else out

        def by_slice(slices: Tensor) -> Tensor:
            return _by_channel(slices, super_resolve, _scale_of(network))

        if inputs.ndim == 4:
            return by_slice(inputs)
        size = inputs.shape[2:]
        plane = in_plane_axes(len(size), self.slice_axis)
        walker = SliceInferer(
            spatial_dim=self.slice_axis,
            roi_size=[size[axis] for axis in plane],
            sw_batch_size=self.slice_batch,
            progress=self.progress,
        )
        out = walker(inputs, by_slice)
        assert isinstance(out, Tensor)  # one output, so SliceInferer returns it bare
        return out


def _scale_of(network: Any) -> int:
    """Factor of the network, also of a scripted one, of one in a data-parallel wrapper, and of its bound methods."""
    module = getattr(network, "__self__", network)
    module = getattr(module, "module", module)
    scale = getattr(module, "scale", None)
    if scale is None:
        raise ValueError(f"{type(network).__name__} does not say by which factor it upsamples (attribute 'scale')")
    return int(scale)


def _by_channel(slices: Tensor, network: Callable[[Tensor], Tensor], scale: int) -> Tensor:
    """(B, C, h, w) -> (B, C, scale * h, scale * w), one channel at a time, constant slices untouched."""
    batch, channels, height, width = slices.shape
    images = slices.reshape(batch * channels, 1, height, width)
    low, high = images.amin(dim=(1, 2, 3)), images.amax(dim=(1, 2, 3))
    out = images.new_empty((batch * channels, 1, scale * height, scale * width))
    out[:] = low[:, None, None, None]
    busy = (high > low).nonzero().squeeze(1)
    if busy.numel():
        out[busy] = network(images[busy]).to(out.dtype)
    return out.view(batch, channels, scale * height, scale * width)


def _is_out_of_memory(error: BaseException) -> bool:
    """Python's, CUDA's, and the RuntimeError of the CPU allocator, which only its text tells apart."""
    texts = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in texts)
