"""The C++ kernels of `bundle.ops`, loaded and checked: SS2D scan, RSCFL block, patch search, 3x3 convolutions.

Nothing is compiled or loaded before the first `load()`, and the library is trusted only after it has reproduced the
torch form on a tiny image. `build` compiles and caches it, `library` loads it, one module per kernel calls it, and
`pool.cpp` shares its tasks among threads.
"""

from __future__ import annotations

import logging
from itertools import pairwise

import torch

from bundle.ops.native.build import Unavailable, build_library
from bundle.ops.native.conv3x3 import convolve
from bundle.ops.native.library import Library
from bundle.ops.native.patch_search import patch_search
from bundle.ops.native.rscfl import PARAMETERS, parameter_shapes, rscfl
from bundle.ops.native.ss2d import ss2d_backward, ss2d_forward
from bundle.ops.native.threads import ForkSafeLock, in_fresh_thread

__all__ = ["Library", "load", "reason"]

logger = logging.getLogger("iconet")

_loaded: tuple[Library | None, str] | None = None
_load_lock = ForkSafeLock()


def load() -> Library | None:
    """The native kernels, compiled on the first call of the process if need be; None when they cannot be used."""
    global _loaded
    if _loaded is None:
        with _load_lock:
            if _loaded is None:
                _loaded = _try_load()
                if _loaded[0] is None:
                    logger.info("%s", _loaded[1])
    return _loaded[0]


def reason() -> str:
    """One line that says why `load()` returned None; empty when the kernels are there."""
    load()
    return _loaded[1] if _loaded is not None else ""


def _try_load() -> tuple[Library | None, str]:
    try:
        library = _open()
        in_fresh_thread(lambda: _check(library))
    except Unavailable as error:
        return None, str(error)
    except Exception as error:  # whatever goes wrong here must only mean "use another back end"
        return None, f"native kernels: {type(error).__name__}: {error}".splitlines()[0]
    return library, ""


def _open() -> Library:
    try:
        return Library(build_library())
    except (OSError, AttributeError) as error:  # a damaged file in the cache
        logger.info("building the native kernels anew (%s)", error)
        return Library(build_library(anew=True))


# --- self-test
def _check(library: Library) -> None:
    with torch.no_grad():
        _check_scan(library)
        _check_block(library)
        _check_search(library)
        _check_convolution(library)


def _check_scan(library: Library) -> None:
    from bundle.ops.scan.plain import selective_scan_2d_torch

    random = torch.Generator().manual_seed(0)
    channels, n_state, rank = 11, 3, 2
    shapes = [(1, 4, 5, channels), (1, 4, 5, 4, rank + 2 * n_state), (4, channels, rank), (4, channels)]
    inputs = [torch.randn(shape, generator=random, dtype=torch.float32) for shape in shapes]
    inputs += [
        -torch.rand(4, channels, n_state, generator=random, dtype=torch.float32) * 4 - 0.1,
        torch.randn(4, channels, generator=random, dtype=torch.float32),
    ]
    dy = torch.randn(shapes[0], generator=random, dtype=torch.float32)
    with torch.enable_grad():
        leaves = [t.clone().requires_grad_() for t in inputs]
        expected = selective_scan_2d_torch(*leaves)
        expected_grads = torch.autograd.grad(expected, leaves, dy)
    y, states = ss2d_forward(library, tuple(inputs), store_states=True)
    grads = ss2d_backward(library, dy, tuple(inputs), states)
    for got, want in zip((y, *grads), (expected.detach(), *expected_grads), strict=True):
        if not torch.allclose(got, want, rtol=1e-4, atol=1e-4 * max(1.0, float(want.abs().max()))):
            raise Unavailable("native kernels: the self-test of the scan failed")


def _check_block(library: Library) -> None:
    from torch.nn.functional import conv2d, layer_norm, linear, silu

    from bundle.ops.scan.plain import selective_scan_2d_torch

    random = torch.Generator().manual_seed(0)
    features, inner, n_state, rank, squeezed = 5, 9, 3, 2, 4
    shapes = parameter_shapes(features, inner, n_state, rank, squeezed)
    p = {name: torch.randn(shapes[name], generator=random, dtype=torch.float32) for name in PARAMETERS}
    x = torch.randn(2, 4, 5, features, generator=random, dtype=torch.float32)
    path, gate = linear(layer_norm(x, (features,), p["norm_weight"], p["norm_bias"]), p["in_proj"]).chunk(2, dim=-1)
    path = conv2d(path.permute(0, 3, 1, 2), p["conv_weight"], p["conv_bias"], padding=1, groups=inner)
    path = silu(path).permute(0, 2, 3, 1).contiguous()
    proj = linear(path, p["x_proj"]).view(2, 4, 5, 4, -1)
    y = selective_scan_2d_torch(path, proj, p["dt_weight"], p["dt_bias"], -p["a_log"].exp(), p["d"])
    y = layer_norm(y, (inner,), p["out_norm_weight"], p["out_norm_bias"]) * silu(gate)
    y = x + linear(y, p["out_proj"])
    hidden = linear(y.mean(dim=(1, 2)), p["squeeze_weight"].flatten(1), p["squeeze_bias"]).relu()
    weight = linear(hidden, p["excite_weight"].flatten(1), p["excite_bias"]).sigmoid()
    if not torch.allclose(rscfl(library, x, list(p.values())), x + y * weight[:, None, None], rtol=1e-4, atol=1e-3):
        raise Unavailable("native kernels: the self-test of the block failed")


def _check_search(library: Library) -> None:
    random = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 4, 5, 3, generator=random, dtype=torch.float32) for _ in range(2))
    unfold = torch.nn.functional.unfold
    q, k = (unfold(t.movedim(3, 1).double(), 3, padding=1)[0] for t in (query, key))
    expected = (q.T @ (k / k.norm(dim=0))).argmax(1)
    if not torch.equal(patch_search(library, query, key)[0][0], expected):
        raise Unavailable("native kernels: the self-test of the patch search failed")


def _check_convolution(library: Library) -> None:
    """Three layers, one for each form of the kernel."""
    random = torch.Generator().manual_seed(0)
    widths = (1, 20, 20, 1)
    x = torch.randn(1, 1, 6, 9, generator=random, dtype=torch.float32)
    weights = [torch.randn(o, i, 3, 3, generator=random, dtype=torch.float32) for i, o in pairwise(widths)]
    biases = [torch.randn(o, generator=random, dtype=torch.float32) for o in widths[1:]]
    out, expected = torch.empty_like(x), x.double()
    convolve(library, x, weights, biases, x, False, None, None, out)
    for weight, bias in zip(weights, biases, strict=True):
        maps = expected if weight is weights[0] else expected.relu()
        expected = torch.nn.functional.conv2d(maps, weight.double(), bias.double(), padding=1)
    if not torch.allclose(out.double(), expected + x, rtol=1e-4, atol=1e-4 * float(expected.abs().max())):
        raise Unavailable("native kernels: the self-test of the convolution failed")
