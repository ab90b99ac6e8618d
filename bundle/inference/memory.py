"""How much memory this process may use, and how much a volume needs, so that no run is killed for asking too much.

A machine, a control group (containers, systemd, batch systems) or a batch job that is short of memory kills the process
without a word. What cannot fit is refused before it is tried.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bundle.ops.backend import convolution_backend

_COPIES = 5
"""Approximate number of float32 copies of the result that exist at the same time."""

BYTES_PER_PIXEL = {("ResidualSR", 2): 600, ("ResidualSR", 4): 600, ("ICONet", 2): 900, ("ICONet", 4): 3600}
"""Memory of a network per pixel of its input on a CPU, by its class and scale; measured (docs/reliability.md)."""
WITHOUT_KERNELS = {("ResidualSR", 2): 900, ("ResidualSR", 4): 900, ("ICONet", 2): 3300, ("ICONet", 4): 12000}
"""The same in plain PyTorch, which runs where the native kernels do not."""
PIXELS_AT_ONCE = 2**22
"""Of the input, in one batch: more make nothing faster."""


@dataclass(frozen=True)
class Room:
    """How many more bytes this process may use, and who says so."""

    bytes: int
    limit: int
    owner: str


def room(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> Room | None:
    """The tightest limit on the memory of this process: what it leaves beyond what the process uses already.

    Args:
        root: of the file system, for the files that tell.
        environment: with the variables of a batch system.

    Returns:
        None if nothing is known.
    """
    resident, mapped = _used(root)
    found = [Room(limit - resident, limit, owner) for owner, limit in _limits(root, environment)]
    if (space := _address_space()) is not None:
        found.append(Room(space - mapped, space, "ulimit -v"))
    return min(found, key=lambda entry: entry.bytes, default=None)


def bytes_needed(voxels: int, pixels: int, batch: int, network: Any) -> int:
    """Memory for a result of so many voxels, made from batches of slices of so many pixels.

    Args:
        voxels: of the result, a volume of a series.
        pixels: of a slice of the input.
        batch: slices at a time.
        network: one whose need is unknown, or that runs on a GPU, counts nothing.
    """
    return _COPIES * 4 * voxels + batch * pixels * _per_pixel(network)


def batch_worth_taking(pixels: int, batch: int) -> int:
    """At most `batch` slices of so many pixels, at least one, and no more than :data:`PIXELS_AT_ONCE` allows."""
    return max(1, min(batch, PIXELS_AT_ONCE // max(pixels, 1)))


def batch_that_fits(
    voxels: int, pixels: int = 0, slices: int = 1, batch: int = 1, network: Any = None, limit: Room | None = None
) -> int:
    """The largest of `batch`, `batch` / 2, ... slices at a time for which there is memory.

    Args:
        voxels, pixels, network: as for :func:`bytes_needed`.
        slices: in the volume.
        batch: slices at a time, if there is memory.
        limit: what there is; by default that of this process.

    Raises:
        MemoryError: not even one slice at a time fits.
    """
    limit = limit or room()
    if limit is None:
        return batch
    while (needed := bytes_needed(voxels, pixels, min(batch, slices), network)) > limit.bytes and batch > 1:
        batch //= 2
    if needed > limit.bytes:
        left = f"{_size(limit.limit)} are the limit ({limit.owner}), {_size(max(limit.bytes, 0))} of them are left"
        raise MemoryError(f"about {_size(needed)} of memory are needed, {left}; crop or split the volume")
    return batch


def _per_pixel(network: Any) -> int:
    module = getattr(network, "__self__", network)
    module = getattr(module, "module", module)  # of a data-parallel wrapper
    if isinstance(module, nn.Module) and any(parameter.device.type != "cpu" for parameter in module.parameters()):
        return 0
    native = convolution_backend(torch.empty(0)) is not None
    table = BYTES_PER_PIXEL if native else WITHOUT_KERNELS
    return table.get((type(module).__name__, getattr(module, "scale", 0)), 0)


def _size(count: int) -> str:
    return f"{count / 2**30:.3g} GiB"


def _limits(root: Path, environment: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    if (machine := _machine(root)) is not None:
        yield "this machine", machine
    for limit in _control_groups(root):
        yield "control group", limit
    if (job := _batch_job(environment)) is not None:
        yield "batch job", job


def _machine(root: Path) -> int | None:
    with suppress(OSError):
        if found := re.search(r"^MemTotal:\s*(\d+) kB", (root / "proc/meminfo").read_text(), re.MULTILINE):
            return int(found[1]) * 1024
    with suppress(AttributeError, ValueError, OSError):  # not a POSIX system
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _control_groups(root: Path) -> Iterator[int]:
    """The limits of the control groups of this process and of those above, versions 1 and 2.

    Inside a container the path may be that of the host, which is not to be seen there; what can be seen counts.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        _, _, named = line.partition(":")
        controllers, _, path = named.partition(":")
        if controllers == "":
            tops, name = [mount, mount / "unified"], "memory.max"
        elif "memory" in controllers.split(","):
            tops, name = [mount / "memory"], "memory.limit_in_bytes"
        else:
            continue
        for top in tops:
            group = Path(os.path.normpath(top / path.lstrip("/")))
            for folder in {top, *(place for place in (group, *group.parents) if place.is_relative_to(top))}:
                with suppress(OSError, ValueError):  # not there, or "max"
                    yield int((folder / name).read_text())


def _batch_job(environment: Mapping[str, str]) -> int | None:
    """The memory of a job of Slurm on this node, which gives megabytes; 0 stands for the whole machine."""

    def number(name: str) -> int:
        text = environment.get(name, "")
        return int(text) if text.isdecimal() else 0

    counts = (
        number("SLURM_MEM_PER_NODE"),
        number("SLURM_MEM_PER_CPU") * number("SLURM_CPUS_ON_NODE"),
        number("SLURM_MEM_PER_GPU") * number("SLURM_GPUS_ON_NODE"),
    )
    return next((count * 2**20 for count in counts if count), None)


def _address_space() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def _used(root: Path) -> tuple[int, int]:
    """Bytes that this process holds in memory, and bytes of its address space; 0 where nobody says."""
    with suppress(OSError, ValueError, AttributeError):
        mapped, resident = map(int, (root / "proc/self/statm").read_text().split()[:2])
        page = os.sysconf("SC_PAGE_SIZE")
        return resident * page, mapped * page
    return 0, 0
