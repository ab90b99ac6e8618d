"""`iconet-sr doctor`: what a bug report should say about an installation. Writes nothing and compiles nothing.

PyTorch is imported inside the functions that need it, to keep `--help` fast.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from bundle.inference.shipped import MODELS_VARIABLE, PACKAGE, models_folder, models_origin, tool_version

REQUIRED = ("torch", "monai", "pytorch-ignite", "numpy", "nibabel")
OPTIONAL = {"pydicom": "dicom", "python-gdcm": "dicom", "SimpleITK": "itk", "onnx": "export", "mamba-ssm": "cuda"}
"""Packages that some features need, and the extra that installs them."""


@click.command("doctor", short_help="Show what is installed, which back ends run and which weights there are.")
def command() -> None:
    """Show what is installed, which back ends run, which weights there are and whether they are intact.

    Writes nothing. Exit status: 0, or 1 if shipped weights are missing or damaged.
    """
    _show(f"ICONet SR {tool_version()}", {"package": str(PACKAGE), "system": platform.platform()})
    _show("Versions", _versions())
    if lacking := [name for name in REQUIRED if _version(name) is None]:
        raise click.ClickException(f"not installed: {', '.join(lacking)}; install ICONet SR again")
    _show("Machine", _machine())
    _show("Back ends", _back_ends())
    weights = weights_report(models_folder())
    _show(f"Weights in {models_folder()}, {models_origin()}", weights)
    if wrong := [name for name, state in weights.items() if state.startswith(("missing", "damaged", "none"))]:
        remedy = "install ICONet SR again" if MODELS_VARIABLE not in os.environ else f"correct {MODELS_VARIABLE}"
        raise click.ClickException(f"weights are missing or damaged: {', '.join(wrong)}; {remedy}")


def _show(title: str, rows: dict[str, str]) -> None:
    click.echo(title)
    for name, value in rows.items():
        click.echo(f"  {name:<20} {value}")


def weights_report(folder: Path) -> dict[str, str]:
    """Weights file -> its SHA-256 and whether it matches the list next to it."""
    from bundle.data.paths import sha256_of
    from bundle.inference.weights import CHECKSUMS, listed_digests

    listed = listed_digests(folder)
    found = {path.name: path for path in folder.glob("*.pt")}
    report = {}
    for name in sorted(found.keys() | listed.keys()):
        digest = sha256_of(found[name]) if name in found else ""
        if not digest:
            report[name] = f"missing; {CHECKSUMS} lists it"
        elif name not in listed:
            report[name] = f"{digest} (not in {CHECKSUMS})"
        else:
            report[name] = f"{digest} ok" if digest == listed[name] else f"damaged: {digest}, not {listed[name]}"
    return report or {"model.pt": "none here"}


def _versions() -> dict[str, str]:
    rows = {"Python": f"{platform.python_version()} ({sys.executable})"}
    for name in REQUIRED:
        rows[name] = _version(name) or "not installed"
    for name, extra in OPTIONAL.items():
        rows[name] = _version(name) or f"not installed: pip install 'iconet-sr[{extra}]'"
    return rows


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _machine() -> dict[str, str]:
    import torch

    from bundle.inference.model import own_device

    device = own_device(None)
    named = f" ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"device": device + named, "threads": f"{torch.get_num_threads()} of {cores} cores"}


def _back_ends() -> dict[str, str]:
    from bundle.ops import backend_report
    from bundle.ops.backend import ENVIRONMENT_VARIABLE
    from bundle.ops.native.build import Unavailable, cache_folder, library_path

    folder = cache_folder()
    rows = {"cache folder": str(folder) if folder.is_dir() else f"{folder} (not made yet)"}
    if forced := os.environ.get(ENVIRONMENT_VARIABLE):
        rows["chosen"] = f"{forced}, by {ENVIRONMENT_VARIABLE}"
    try:
        compiled = _opens(library_path())
    except Unavailable:
        compiled = True  # the report gives the reason, and has nothing to compile
    with _no_kernel_cache():
        rows |= backend_report(without=() if compiled else ("native",))
    if not compiled:
        rows["native"] = "not compiled yet; the first run compiles it in about 20 seconds"
    return rows


def _opens(library: Path) -> bool:
    """Whether a shared library is there and whole: a damaged one would be compiled again."""
    try:
        ctypes.CDLL(str(library))
    except OSError:
        return False
    return True


@contextmanager
def _no_kernel_cache() -> Iterator[None]:
    """Triton's self-test on a GPU compiles: into a folder that goes again."""
    before = os.environ.get("TRITON_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        try:
            yield
        finally:
            os.environ.pop("TRITON_CACHE_DIR")
            if before is not None:
                os.environ["TRITON_CACHE_DIR"] = before
