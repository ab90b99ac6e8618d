"""What a network costs: parameters, multiply-adds by a stated counter, seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bundle.ops import Backend, use_backend

SCAN, SEARCH = "scan", "patch_search"
PRODUCTS = "products_and_convolutions"


def parameters(network: nn.Module) -> int:
    """Number of trained values."""
    return sum(p.numel() for p in network.parameters())


def multiply_adds(network: nn.Module, shape: Sequence[int]) -> dict[str, int]:
    """Multiply-adds of one forward pass, apart for the three kinds of work.

    * ``products_and_convolutions``: matrix products and convolutions, half of what
      ``torch.utils.flop_counter.FlopCounterMode`` counts;
    * ``scan``: ``4 Di (4 N + R + 2)`` per pixel for the selective scan of :mod:`bundle.ops` in its four directions: per
      channel ``R`` products for the time step, one to weigh the input and one for ``D x``; per channel and state the
      four of ``dt A``, the input term, the recurrence and ``<h, C>``;
    * ``patch_search``: ``9 C (H W)^2`` for each search of :mod:`bundle.ops`, as the relevance matrix is defined. (The
      kernels find the same maximum with a ninth of the products.)

    Element-wise work, norms, exponentials and FFTs are not counted. The scan and the search are not run.

    Args:
        network: on any device.
        shape: of the input, ``(B, C, h, w)``.
    """
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    counts = {SCAN: 0, SEARCH: 0}
    with use_backend(_counting(counts)), FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.rand(*shape, device=device))
    network.train(was_training)
    return {PRODUCTS: counter.get_total_flops() // 2, **counts}


def floor_flops(network: nn.Module, shape: Sequence[int]) -> float:
    """Floating-point operations that no known algorithm here goes without, in the sense of the time of a product.

    Of the convolutions 3x3 with stride 1 a quarter counts (Winograd's F(4x4, 3x3) needs 36 products for the 144 of 16
    outputs), of the patch search a ninth (each product serves the nine patches that share it), within the window if
    there is one; of the scan everything, and 9 multiply-adds for each state in each direction, its exponential among
    them. Transforms, norms and element-wise work, which are bound by memory, count nothing.
    """
    counts = multiply_adds(network, shape)
    small = _three_by_three(network, shape)
    return 2 * (counts[PRODUCTS] - 0.75 * small + counts[SEARCH] / 9) + 2 * 9 / 4 * counts[SCAN]


def _three_by_three(network: nn.Module, shape: Sequence[int]) -> int:
    """Multiply-adds of the dense 3x3 convolutions of stride 1."""
    total = 0

    def count(layer: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if layer.kernel_size == (3, 3) and layer.stride == (1, 1) and layer.groups == 1:
            total += output.numel() * layer.in_channels * 9

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    multiply_adds(network, shape)
    for handle in handles:
        handle.remove()
    return total


def _counting(counts: dict[str, int]) -> Backend:
    """A back end that adds up what the two kernels would cost and runs neither."""

    def scan(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> Tensor:
        counts[SCAN] += x.numel() * A.shape[0] * (4 * A.shape[2] + dt_weight.shape[2] + 2)
        return torch.zeros_like(x)

    def search(query: Tensor, key: Tensor) -> Tensor:
        batch, height, width, channels = query.shape
        counts[SEARCH] += batch * (height * width) ** 2 * 9 * channels
        return torch.zeros(batch, height * width, dtype=torch.int64, device=query.device)

    return Backend("count", scan=scan, search=search)


def seconds_per_slice(network: nn.Module, side: int = 128, budget: float = 5.0, repeats: int = 5) -> float:
    """Median seconds for one slice of ``side x side`` voxels, after a call that is not counted.

    Args:
        network: in evaluation mode.
        side: of the low-resolution slice.
        budget: seconds after which no further call is made; one is always timed.
        repeats: calls at most.
    """
    device = next(network.parameters()).device
    image = torch.rand(1, 1, side, side, device=device)

    def timed() -> float:
        begin = time.perf_counter()
        network(image)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    with torch.no_grad():
        timed()
        times = [timed()]
        while sum(times) < budget and len(times) < repeats:
            times.append(timed())
    return statistics.median(times)
