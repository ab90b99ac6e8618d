"""Compile the C++ kernels into one shared library, once per user, and keep it in a cache folder.

The library is plain C without torch or Python headers, so one small binary serves every Python and torch. Its name
hashes the sources, the flags, the compiler and the processor: a change of any of them compiles it again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

__all__ = ["Unavailable", "build_library", "cache_folder", "library_path"]

logger = logging.getLogger("iconet")

_FOLDER = Path(__file__).parent
_SOURCES, _HEADERS = sorted(_FOLDER.glob("*.cpp")), sorted(_FOLDER.glob("*.h"))
# The kernels round by adding a large constant: value-changing optimisation (-ffast-math) must stay off.
_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fno-fast-math", "-ffp-contract=fast", "-Wno-psabi", "-pthread")
_AVX512 = ("-march=x86-64-v4", "-mprefer-vector-width=512")
_AVX2 = ("-march=x86-64-v3",)


class Unavailable(RuntimeError):
    """The native kernels cannot be used on this machine; the message says why in one line."""


def cache_folder() -> Path:
    """Where the library is kept: ``ICONET_CACHE_DIR``, else ``XDG_CACHE_HOME/iconet``, else ``~/.cache/iconet``."""
    if os.environ.get("ICONET_CACHE_DIR"):
        return Path(os.environ["ICONET_CACHE_DIR"]).expanduser()
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]).expanduser() / "iconet"
    return Path(os.path.expanduser("~")) / ".cache" / "iconet"


def library_path() -> Path:
    """The library for this machine in the cache folder, whether or not it has been compiled; writes nothing.

    Raises:
        Unavailable: it cannot be compiled here.
    """
    commands = _commands()
    parts = [source.read_bytes() for source in (*_SOURCES, *_HEADERS)]
    parts += [str(commands).encode(), _run([*_compiler(), "--version"]).encode(), _cpu_name().encode()]
    name = hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]
    return cache_folder() / f"iconet-{name}.so"


def build_library(anew: bool = False) -> Path:
    """Path of the shared library, compiled unless the cache has it.

    Args:
        anew: compile even if the cache has it (a damaged file).

    Raises:
        Unavailable: it cannot be compiled here.
    """
    path = library_path()
    if path.exists() and not anew:
        return path
    path = _writable(path.parent) / path.name
    logger.info("compiling the CPU kernels into %s: about 20 seconds on a laptop, only this once", path.parent)
    handle, temporary = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    try:
        _compile(temporary)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def _compile(output: str) -> None:
    *first, last = _commands()
    rest = [*map(str, _SOURCES), "-o", output]
    for command in first:
        try:
            _run([*command, *rest])
            return
        except Unavailable:  # a compiler that does not know this processor
            continue
    _run([*last, *rest])


def _commands() -> list[list[str]]:
    """Compiler and flags for this processor; the later ones are for compilers that do not know the earlier."""
    return [[*_compiler(), *_FLAGS, *target] for target in _targets()]


def _writable(folder: Path) -> Path:
    """The folder, made if need be; a fresh temporary folder where it cannot be written."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="iconet-"))


def _cpu_flags() -> set[str]:
    """Features of an x86-64 processor as the system names them; empty when it does not say."""
    try:
        if platform.system() == "Darwin":
            text = subprocess.run(
                ["sysctl", "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features"],
                capture_output=True, text=True, timeout=10, check=False,
            ).stdout  # fmt: skip
        else:
            text = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration, subprocess.SubprocessError):
        return set()
    return set(text.lower().split())


def _targets() -> list[tuple[str, ...]]:
    """Flags for this processor, the fastest first. ``ATEN_CPU_CAPABILITY=avx2`` counts, as for PyTorch itself."""
    machine = platform.machine().lower()
    if os.name == "nt":
        raise Unavailable("native kernels: not built on Windows")
    if machine in ("x86_64", "amd64"):
        capability = torch.backends.cpu.get_cpu_capability()
        if capability.startswith("AVX512"):
            return [_AVX512, _AVX2]
        if capability == "AVX2" or {"avx2", "fma"} <= _cpu_flags():
            return [_AVX2]
        raise Unavailable("native kernels: this processor has no AVX2 and FMA")
    if machine in ("aarch64", "arm64"):
        return [("-mcpu=native",), ()]
    raise Unavailable(f"native kernels: no build for the processor type {platform.machine()!r}")


def _compiler() -> list[str]:
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else []
    for candidate in [*candidates, "c++", "g++", "clang++"]:
        command = shlex.split(candidate)
        if command and shutil.which(command[0]):
            return command
    raise Unavailable("native kernels: no C++ compiler found ($CXX, c++, g++, clang++)")


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"native kernels: {command[0]} could not be run ({error})") from error
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), "no message").strip()
        raise Unavailable(f"native kernels: {command[0]} failed ({first})")
    return done.stdout


def _cpu_name() -> str:
    """Part of the hash: a binary for one processor must not be picked up by another that shares the home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("model name", "CPU part"))), platform.processor())
    except OSError:
        return platform.processor()
