"""Which back end runs: chosen by device and by what is there, overridden by one variable or one context manager."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections.abc import Iterator
from contextvars import ContextVar

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
    modules = {"native": "bundle.ops.native", "triton": "bundle.ops.scan_triton", "mamba_ssm": "bundle.ops.scan_mamba"}
    if name not in modules:
        return None
    module = importlib.import_module(modules[name])
    there = module.load() is not None if name == "native" else module.is_available()
    return None if there else module.reason()


def select_backend(tensor: Tensor) -> str:
    """Back end for a kernel on ``tensor``: the forced one, else the fastest that runs on its device and dtype.

    Raises:
        RuntimeError: if a back end was forced that cannot run here.
    """
    forced = forced_backend()
    if forced is not None:
        why = unavailable(forced)
        if why is not None:
            raise RuntimeError(f"the back end {forced!r} was asked for and cannot run: {why}")
        return forced
    candidates = {"cuda": ("triton", "mamba_ssm"), "cpu": ("native",)}.get(tensor.device.type, ())
    if tensor.element_size() == 8:  # the fused kernels keep their state in float32
        candidates = ()
    chosen = next((name for name in candidates if unavailable(name) is None), "torch")
    _announce(chosen, candidates, tensor.device.type)
    return chosen


def _announce(chosen: str, candidates: tuple[str, ...], device: str) -> None:
    if chosen in _announced or not candidates:
        return
    _announced.add(chosen)
    passed_over = [f"{name} not available ({unavailable(name)})" for name in candidates[: _rank(chosen, candidates)]]
    logger.info("kernels on %s: %s%s", device, chosen, "".join(f"; {text}" for text in passed_over))


def _rank(name: str, candidates: tuple[str, ...]) -> int:
    return candidates.index(name) if name in candidates else len(candidates)


def backend_report() -> dict[str, str]:
    """For every back end ``"available"`` or the reason why it is not."""
    return {name: unavailable(name) or "available" for name in BACKENDS}
