"""The table of back ends: what each needs, what it runs, and which one is taken.

Everything that chooses, reports or checks a back end reads `TABLE`. A new one is a module and a row; one that only a
program needs (a counter, a form for an exporter) is a row of its own that :func:`use_backend` puts in force.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
from collections.abc import Callable, Container, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bundle.ops.native.threads import ForkSafeLock, in_fresh_thread
from bundle.ops.precision import float32_proper

logger = logging.getLogger("iconet")

ENVIRONMENT_VARIABLE = "ICONET_BACKEND"

FLOAT32 = (torch.float32,)
FLOAT32_AND_HALF = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Backend:
    """One way to run the kernels. A function may be given as ``"module:name"``: it is imported when first needed.

    Args:
        name: for `use_backend`, the environment variable and the log.
        scan: a function of the arguments of :func:`bundle.ops.selective_scan_2d`, differentiable.
        search: of query and key (B, H, W, C) and a window or None, gives int64 (B, H * W); of equal keys the first
            wins.
        devices: device types whose tensors it takes; empty: any.
        dtypes: likewise. Tensors reach a back end as float32 or float64, half types as float32.
        why_not: says in one line why it cannot run on this machine, empty if it can; must not raise.
        automatic: taken without being asked for, if no automatic row above it can run.
        traceable: `torch.jit.trace` records it as a graph that holds for every size of the input.
        convolution: 3x3 convolutions, see :func:`bundle.ops.conv.native.conv3x3_native`; None: PyTorch's.
        attention: search and transfer in one, for inference, with the arguments of
            :func:`bundle.ops.search.native.patch_attention_native`; None: the search, then plain PyTorch.
        block: an RSCFL block of x (B, H, W, F) and its parameters by name, for inference; None: its modules run.
    """

    name: str
    scan: Callable[..., Tensor] | str
    search: Callable[[Tensor, Tensor, int | None], Tensor] | str
    devices: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = ()
    why_not: Callable[[], str] | str | None = None
    automatic: bool = False
    traceable: bool = False
    convolution: Callable[..., Tensor] | str | None = None
    attention: Callable[..., tuple[Tensor, Tensor, Tensor]] | str | None = None
    block: Callable[[Tensor, dict[str, Tensor]], Tensor] | str | None = None

    def takes(self, device: str, dtype: torch.dtype) -> bool:
        """Whether it is made for such tensors."""
        return (not self.devices or device in self.devices) and (not self.dtypes or dtype in self.dtypes)

    @functools.cached_property
    def scan_function(self) -> Callable[..., Tensor]:
        """The scan, imported."""
        return _imported(self.scan)

    @functools.cached_property
    def search_function(self) -> Callable[[Tensor, Tensor, int | None], Tensor]:
        """The patch search, imported."""
        return _imported(self.search)

    @functools.cached_property
    def convolution_function(self) -> Callable[..., Tensor] | None:
        """The convolution, imported, if it has one of its own."""
        return None if self.convolution is None else _imported(self.convolution)

    @functools.cached_property
    def attention_function(self) -> Callable[..., tuple[Tensor, Tensor, Tensor]] | None:
        """Search and transfer in one, imported; ``None`` if the back end has no such form."""
        return None if self.attention is None else _imported(self.attention)

    @functools.cached_property
    def block_function(self) -> Callable[[Tensor, dict[str, Tensor]], Tensor] | None:
        """The RSCFL block, imported, if it has one."""
        return None if self.block is None else _imported(self.block)

    def unavailable(self) -> str | None:
        """Why it cannot run on this machine, in one line; ``None`` if it can."""
        why = _imported(self.why_not)() if self.why_not is not None else ""
        if not why and "cuda" in self.devices and torch.cuda.is_available():
            why = _failed_on_gpu(self)
        return why or None


# Of the automatic rows the first that can run is taken: fastest first.
TABLE = (
    Backend(
        "native",
        scan="bundle.ops.scan.native:selective_scan_2d_native",
        search="bundle.ops.search.native:patch_search_native",
        devices=("cpu",),
        dtypes=FLOAT32,
        why_not="bundle.ops.native:reason",
        automatic=True,
        convolution="bundle.ops.conv.native:conv3x3_native",
        attention="bundle.ops.search.native:patch_attention_native",
        block="bundle.ops.block.native:rscfl_native",
    ),
    Backend(
        "triton",
        scan="bundle.ops.scan.triton:selective_scan_2d_triton",
        search="bundle.ops.search.cuda:patch_search_triton",
        devices=("cuda",),
        dtypes=FLOAT32_AND_HALF,
        why_not="bundle.ops.scan.triton:reason",
        automatic=True,
    ),
    Backend(
        "torch",
        scan="bundle.ops.scan.plain:selective_scan_2d_torch",
        search="bundle.ops.search.plain:patch_search_torch",
        automatic=True,
    ),
    Backend(
        "mamba_ssm",  # not automatic: its gradients are not deterministic, and its import loads large packages
        scan="bundle.ops.scan.mamba_ssm:selective_scan_2d_mamba",
        search="bundle.ops.search.cuda:patch_search_tiled",
        devices=("cuda",),
        dtypes=FLOAT32_AND_HALF,
        why_not="bundle.ops.scan.mamba_ssm:reason",
    ),
    Backend(
        "torchscript",
        scan="bundle.ops.scan.plain:selective_scan_2d_scripted",
        search="bundle.ops.search.plain:patch_search_scripted",
        traceable=True,
    ),
    Backend(
        "reference",
        scan="bundle.ops.scan.reference:selective_scan_2d_reference",
        search="bundle.ops.search.plain:patch_search_reference",
    ),
)

_chosen: ContextVar[Backend | None] = ContextVar("iconet_backend", default=None)
_announced: set[str] = set()
_announce_lock, _gpu_lock = ForkSafeLock(), ForkSafeLock()


def named_backend(name: str) -> Backend:
    """The row of `TABLE` with this name.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    for backend in TABLE:
        if backend.name == name:
            return backend
    raise ValueError(f"unknown back end {name!r}: one of {', '.join(backend.name for backend in TABLE)}")


def _imported(function: Callable[..., Any] | str) -> Callable[..., Any]:
    if not isinstance(function, str):
        return function
    module, name = function.split(":")
    imported: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return imported


@contextlib.contextmanager
def use_backend(backend: str | Backend) -> Iterator[None]:
    """Run the kernels on one back end inside a ``with`` block, in this thread (or task) alone.

    Args:
        backend: the name of a row of `TABLE`, or a row of one's own.

    Raises:
        ValueError: unknown name.
        RuntimeError: when a kernel is called and that back end cannot run here (the message says why).
    """
    token = _chosen.set(named_backend(backend) if isinstance(backend, str) else backend)
    try:
        yield
    finally:
        _chosen.reset(token)


def forced_backend() -> Backend | None:
    """The back end asked for by :func:`use_backend` or, failing that, by the variable ``ICONET_BACKEND``."""
    name = os.environ.get(ENVIRONMENT_VARIABLE)
    return _chosen.get() or (named_backend(name) if name else None)


def select_backend(tensor: Tensor) -> Backend:
    """Back end for a kernel on ``tensor``: the forced one, else the fastest that runs on its device and dtype.

    While `torch.jit.trace` records: the forced one if it is traceable, else ``torchscript``.

    Raises:
        RuntimeError: if a back end was forced that cannot run here.
    """
    device, dtype = tensor.device.type, tensor.dtype
    return TABLE[_row_to_compile(device, dtype)] if torch.compiler.is_compiling() else _select(device, dtype)


def convolution_backend(tensor: Tensor) -> Backend | None:
    """Back end with a convolution of its own for ``tensor``; None where PyTorch's is to run.

    A forced back end without one is no error: convolutions need no back end.

    Raises:
        RuntimeError: if a back end with one was forced that cannot run here.
    """
    forced = forced_backend()
    if forced is not None and forced.convolution is None:
        return None
    backend = _select(tensor.device.type, tensor.dtype)
    return None if backend.convolution is None else backend


def _row_to_compile(device: str, dtype: torch.dtype) -> int:
    backend = _select(device, dtype)
    if backend not in TABLE:
        raise RuntimeError(f"the back end {backend.name!r} is not in the table: networks cannot be compiled with it")
    _ = (
        backend.scan_function,
        backend.search_function,
        backend.attention_function,
    )  # `torch.compile` does not follow their import
    return TABLE.index(backend)


# A compiled network keeps the back end that it was compiled with. This is what `torch.compiler.assume_constant_result`
# does, which would import the compiler, in half a second, for everyone.
_row_to_compile._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _select(device: str, dtype: torch.dtype) -> Backend:
    forced = forced_backend()
    if torch.jit.is_tracing():
        return forced if forced is not None and forced.traceable else named_backend("torchscript")
    if forced is None:
        return _automatic(device, dtype)
    why = forced.unavailable()
    if why is None and not forced.takes(device, dtype):
        types, devices = _listed(forced.dtypes, "all"), _listed(forced.devices, "any device")
        why = f"it takes {types} tensors on {devices}, not {dtype} on {device}"
    if why is not None:
        raise RuntimeError(f"the back end {forced.name!r} was asked for and cannot run: {why}")
    return forced


def _listed(names: Sequence[object], otherwise: str) -> str:
    return " or ".join(str(name).removeprefix("torch.") for name in names) or otherwise


def _automatic(device: str, dtype: torch.dtype) -> Backend:
    passed_over = ""
    candidates = [backend for backend in TABLE if backend.automatic and backend.takes(device, dtype)]
    for backend in candidates[:-1]:
        why = backend.unavailable()
        if why is None:
            break
        passed_over += f"; {backend.name} not available ({why})"
    else:
        backend = candidates[-1]  # plain PyTorch, which runs everywhere
    if len(candidates) > 1:
        with _announce_lock:
            if backend.name not in _announced:
                logger.info("kernels on %s: %s%s", device, backend.name, passed_over)
            _announced.add(backend.name)
    return backend


def backend_report(without: Container[str] = ()) -> dict[str, str]:
    """For every back end ``"available"`` or the reason why it is not.

    Args:
        without: back ends that are not asked: asking ``native`` for the first time compiles it.
    """
    return {b.name: b.unavailable() or "available" for b in TABLE if b.name not in without}


# ------------------------------------------------------------------------------------------------------ check on a GPU


def _failed_on_gpu(backend: Backend) -> str:
    with _gpu_lock:
        return _gpu_failures(backend)


@functools.cache
def _gpu_failures(backend: Backend) -> str:
    """Trust a CUDA back end only after it has reproduced the torch form, forward and backward, on a tiny image."""
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        right = in_fresh_thread(lambda: _scan_is_right(backend, device))
    except Exception as error:  # a compiler or driver that fails must only mean "use another back end"
        return f"it fails on this GPU ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    return "" if right else "its result on this GPU differs from the torch form"


def _scan_is_right(backend: Backend, device: torch.device) -> bool:
    random = torch.Generator().manual_seed(0)
    shapes = [(1, 4, 5, 11), (1, 4, 5, 4, 8), (4, 11, 2), (4, 11), (4, 11, 3), (4, 11)]
    tensors = [torch.randn(shape, generator=random, dtype=torch.float32) for shape in shapes]
    inputs = [tensor.to(device).requires_grad_() for tensor in tensors]
    results = []
    with torch.cuda.device(device), float32_proper():  # TF32 in the torch form's products would look like our error
        for form in (backend, named_backend("torch")):
            x, proj, dt_weight, dt_bias, rate, skip = inputs
            y = form.scan_function(x, proj, dt_weight, dt_bias, -rate.abs(), skip)
            results.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(*results, strict=True))
