"""Run a 2-D network over the slices of one volume: batches that fit in memory, data consistency, constant slices."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from bundle.inference.flips import flip_average
from bundle.inference.side_by_side import side_by_side
from bundle.physics import restore_agreed


@dataclass(frozen=True, eq=False)
class Walked:
    """What a walk over a volume gives.

    Attributes:
        volume: (X, Y[, Z]) with in-plane axes ``scale`` times longer, on the CPU.
        notes: what was done because memory was short.
        weights: of data consistency, one per slice that is not constant; empty without that step.
    """

    volume: Tensor
    notes: tuple[str, ...]
    weights: tuple[float, ...]


class SliceWalker:
    """Apply a 2-D super-resolution network to every slice of a volume.

    Constant slices are copied to the fine grid without calling the network. When memory is short, the batches of
    slices are halved and stay smaller for later volumes; if a CUDA device cannot hold a single slice, the volume runs
    on the CPU. There, the networks of this package take the slices one by one, on several threads.

    Args:
        slice_batch: slices at a time: per call of the network, or side by side on a CPU.
        data_consistency: weight of the measured k-space of each input slice in its result: 1 replaces the network's
            samples, 0 keeps them (the paper has no such step). "auto" is 1, and less for a slice that the network takes
            for filtered (:func:`bundle.physics.agreed_weight`).
        progress: show a progress bar over the batches of slices, if stderr is a terminal.
        quality: "best" averages the network over the flips of each slice (:func:`bundle.inference.flips.flip_average`).

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        slice_batch: int = 4,
        data_consistency: float | Literal["auto"] = "auto",
        progress: bool = False,
        quality: Literal["standard", "best"] = "standard",
    ) -> None:
        if slice_batch < 1:
            raise ValueError(f"slice_batch must be at least 1, got {slice_batch}")
        if not (data_consistency == "auto" if isinstance(data_consistency, str) else 0.0 <= data_consistency <= 1.0):
            raise ValueError(f"data_consistency must be auto or a weight from 0 to 1, got {data_consistency}")
        if quality not in ("standard", "best"):
            raise ValueError(f"quality must be standard or best, got {quality!r}")
        self.slice_batch, self.progress, self.quality = slice_batch, progress, quality
        self.data_consistency: float | Literal["auto"] = data_consistency

    @torch.no_grad()
    def __call__(
        self, volume: Tensor, network: Callable[..., Any], slice_axis: int, signed: bool, *args: Any, **kwargs: Any
    ) -> Walked:
        """Super-resolve one normalised image or volume.

        Args:
            volume: ``(X, Y)`` or ``(X, Y, Z)``, float32.
            network: slices ``(B, 1, h, w)`` in, ``(B, 1, scale * h, scale * w)`` out; it stays on its device.
            slice_axis: 0, 1 or 2; ignored for an image.
            signed: the input may hold negative values and counts as measured
                (:func:`bundle.physics.restore_measured`); otherwise it is a magnitude image
                (:func:`bundle.physics.restore_magnitude`).
            args, kwargs: further arguments of the network.

        Raises:
            MemoryError: not even one slice fits.
        """
        scale = scale_of(network)

        def by_slice(slices: Tensor) -> tuple[Tensor, list[float]]:
            """(B, 1, h, w) -> (B, 1, scale * h, scale * w), and the weights of data consistency."""
            weights: list[float] = []
            low, high = slices.amin(dim=(1, 2, 3)), slices.amax(dim=(1, 2, 3))
            batch, _, height, width = slices.shape
            out = slices.new_empty((batch, 1, scale * height, scale * width))
            out[:] = low[:, None, None, None]
            busy = (high > low).nonzero().squeeze(1)
            if busy.numel():
                images = slices[busy]
                if self.quality == "best":
                    fine = flip_average(network, images, scale, *args, **kwargs)
                else:
                    fine = network(images, *args, **kwargs)
                if self.data_consistency != 0:
                    fine, weight = restore_agreed(fine, images, self.data_consistency, signed)
                    weights.extend(weight.flatten().tolist())
                out[busy] = fine.to(out.dtype)
            return out, weights

        return self._within_memory(volume, network, slice_axis, by_slice)

    @contextmanager
    def taking(self, batch: int) -> Iterator[tuple[str, ...]]:
        """Take so many slices at a time for one volume, as memory allows; yields a note if these are fewer than usual.

        What the volume itself brings to light about memory stays.
        """
        usual, self.slice_batch = self.slice_batch, batch
        try:
            yield (f"memory is short for this volume: {batch} slices at a time",) if batch < usual else ()
        finally:
            if self.slice_batch == batch:
                self.slice_batch = usual

    def _within_memory(
        self,
        volume: Tensor,
        network: Any,
        slice_axis: int,
        by_slice: Callable[[Tensor], tuple[Tensor, list[float]]],
    ) -> Walked:
        notes: list[str] = []
        module = _module_of(network)
        home = device = _device_of(module)
        try:
            while True:
                try:
                    fine, weights = self._walk(volume, network, slice_axis, by_slice, device)
                    return Walked(fine, tuple(notes), tuple(weights))
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                # Outside the handler, where the exception would keep the tensors of the failed attempt alive.
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                if self.slice_batch > 1:
                    self.slice_batch //= 2
                    notes.append(f"memory was short: {self.slice_batch} slices at a time from now on")
                elif device.type != "cpu":
                    device = torch.device("cpu")
                    module.to(device)
                    notes.append(f"{home} has too little memory for one slice: this volume runs on the CPU")
                else:
                    raise MemoryError("not even a single slice fits in memory; crop the volume")
        finally:
            if device != home:
                module.to(home)

    def _walk(
        self,
        volume: Tensor,
        network: Any,
        slice_axis: int,
        by_slice: Callable[[Tensor], tuple[Tensor, list[float]]],
        device: torch.device,
    ) -> tuple[Tensor, list[float]]:
        """(X, Y[, Z]) -> the same with longer in-plane axes; only the slices being processed are on the device."""
        if volume.ndim == 2:
            image, weights = by_slice(volume[None, None].to(device))
            return image[0, 0].cpu(), weights
        scale = scale_of(network)
        size = [n if axis == slice_axis else scale * n for axis, n in enumerate(volume.shape)]
        fine = volume.new_empty(size, device="cpu")
        slices, fine_slices = volume.movedim(slice_axis, 0), fine.movedim(slice_axis, 0)
        workers = self._workers(network, device, len(slices))
        step = self.slice_batch if workers == 0 else 1

        def batch(number: int) -> list[float]:
            part = slice(number * step, (number + 1) * step)
            images, weights = by_slice(slices[part, None].to(device).contiguous())
            fine_slices[part] = images[:, 0].cpu()
            return weights

        count = -(-len(slices) // step)
        silent = not (self.progress and sys.stderr.isatty())
        done = tqdm(side_by_side(batch, count, workers), total=count, disable=silent)
        return fine, [weight for weights in done for weight in weights]

    def _workers(self, network: Any, device: torch.device, slices: int) -> int:
        """Slices that run side by side, each in a call of its own; 0: the network takes them in batches."""
        alone = getattr(_module_of(network), "slices_side_by_side", False)
        if device.type != "cpu" or not alone or torch.is_autocast_enabled("cpu"):
            return 0
        return min(self.slice_batch, torch.get_num_threads(), slices)


def scale_of(network: Any) -> int:
    """Scale of a network, which may be scripted, in a data-parallel wrapper, or a bound method.

    Raises:
        ValueError: it has no attribute ``scale``.
    """
    module = _module_of(network)
    scale = getattr(getattr(module, "module", module), "scale", None)
    if scale is None:
        raise ValueError(f"{type(network).__name__} has no attribute 'scale', the factor by which it upsamples")
    return int(scale)


def _module_of(network: Any) -> Any:
    return getattr(network, "__self__", network)


def _device_of(module: Any) -> torch.device:
    parameters = module.parameters() if isinstance(module, nn.Module) else iter(())
    return next(parameters, torch.empty(0)).device


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's error, CUDA's, or the CPU allocator's RuntimeError, known by its text."""
    texts = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in texts)
