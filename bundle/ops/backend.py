"""Which back end runs: chosen by device and by what is there, overridden by one variable or one context manager."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
from collections.abc import Callable, Container, Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

logger = logging.getLogger("iconet")

ENVIRONMENT_VARIABLE = "ICONET_BACKEND"
BACKENDS = ("reference", "torch", "native", "triton", "mamba_ssm")
_chosen: ContextVar[str | None] = ContextVar("iconet_backend", default=None)
_announced: set[str] = set()


def _check(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"unknown back end {name!r}: one of {', '.join(BACKENDS)}")
    return name


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the kernels on one back end inside a ``with`` block.

    Args:
        name: ``reference``, ``torch``, ``native``, ``triton`` or ``mamba_ssm``.

    Raises:
        ValueError: unknown name.
        RuntimeError: when a kernel is called and that back end cannot run here (the message says why).
    """
    token = _chosen.set(_check(name))
    try:
        yield
    finally:
        _chosen.reset(token)


def forced_backend() -> str | None:
    """The back end asked for by :func:`use_backend` or, failing that, by the variable ``ICONET_BACKEND``."""
    name = _chosen.get() or os.environ.get(ENVIRONMENT_VARIABLE) or None
    return None if name is None else _check(name)


def unavailable(name: str) -> str | None:
    """Why a back end cannot run on this machine, in one line; ``None`` if it can."""
    modules = {
        "native": "bundle.ops.native",
        "triton": "bundle.ops.scan.triton",
        "mamba_ssm": "bundle.ops.scan.mamba_ssm",
    }
    if name not in modules:
        return None
    module = importlib.import_module(modules[name])
    there = module.load() is not None if name == "native" else module.is_available()
    if not there:
        return module.reason()
    return _failed_on_gpu(name) if name != "native" and torch.cuda.is_available() else None


@functools.cache
def _failed_on_gpu(name: str) -> str | None:
    """Trust a CUDA back end only after it has reproduced the torch form, forward and backward, on a tiny image."""
    from bundle.ops.scan import mamba_ssm as scan_mamba
    from bundle.ops.scan import triton as scan_triton
    from bundle.ops.scan.plain import selective_scan_2d_torch

    forms: dict[str, Callable[..., Tensor]] = {
        "triton": scan_triton.selective_scan_2d_triton,
        "mamba_ssm": scan_mamba.selective_scan_2d_mamba,
    }
    random = torch.Generator().manual_seed(0)
    shapes = [(1, 4, 5, 11), (1, 4, 5, 4, 8), (4, 11, 2), (4, 11), (4, 11, 3), (4, 11)]
    inputs = [torch.randn(shape, generator=random).cuda().requires_grad_() for shape in shapes]
    try:
        with torch.enable_grad():
            results = []
            for form in (forms[name], selective_scan_2d_torch):
                x, proj, dt_weight, dt_bias, rate, skip = inputs
                y = form(x, proj, dt_weight, dt_bias, -rate.abs(), skip)
                results.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
        right = all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(*results, strict=True))
    except Exception as error:  # a compiler or driver that fails must only mean "use another back end"
        return f"it fails on this GPU ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    return None if right else "its result on this GPU differs from the torch form"


def select_backend(tensor: Tensor) -> str:
    """Back end for a kernel on ``tensor``: the forced one, else the fastest that runs on its device and dtype.

    Raises:
        RuntimeError: if a back end was forced that cannot run here.
    """
    return _select(tensor.device.type, tensor.dtype)


@torch.compiler.assume_constant_result  # a compiled network keeps the back end that it was compiled with
def _select(device: str, dtype: torch.dtype) -> str:
    forced = forced_backend()
    if forced is not None:
        why = unavailable(forced)
        if why is None and forced == "native" and (device, dtype) != ("cpu", torch.float32):
            why = f"it takes float32 tensors on the CPU, not {dtype} on {device}"
        if why is not None:
            raise RuntimeError(f"the back end {forced!r} was asked for and cannot run: {why}")
        return forced
    candidates = {"cuda": ("triton", "mamba_ssm"), "cpu": ("native",)}.get(device, ())
    if dtype == torch.float64:  # the fused kernels keep their state in float32
        candidates = ()
    chosen = next((name for name in candidates if unavailable(name) is None), "torch")
    _announce(chosen, candidates, device)
    return chosen


def _announce(chosen: str, candidates: tuple[str, ...], device: str) -> None:
    if chosen in _announced or not candidates:
        return
    _announced.add(chosen)
    passed_over = [f"{name} not available ({unavailable(name)})" for name in candidates[: _rank(chosen, candidates)]]
    logger.info("kernels on %s: %s%s", device, chosen, "".join(f"; {text}" for text in passed_over))


def _rank(name: str, candidates: tuple[str, ...]) -> int:
    return candidates.index(name) if name in candidates else len(candidates)


def backend_report(without: Container[str] = ()) -> dict[str, str]:
    """For every back end ``"available"`` or the reason why it is not.

    Args:
        without: back ends that are not asked: asking ``native`` for the first time compiles it.
    """
    return {name: unavailable(name) or "available" for name in BACKENDS if name not in without}
