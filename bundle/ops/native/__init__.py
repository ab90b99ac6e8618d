"""Build, load and check the C++ kernels of `bundle.ops`: the fused SS2D scan and the exact patch search.

The kernels are plain C functions in one shared library without torch or Python headers, so one small binary serves
every Python and torch. Nothing is compiled or loaded before the first `load()`. The library is kept in a per-user
cache (`ICONET_CACHE_DIR`, else `XDG_CACHE_HOME/iconet`, else `~/.cache/iconet`) under a name that hashes the sources,
the flags, the compiler and the processor, and it is trusted only after it has reproduced the torch form on a tiny
image.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["Library", "Unavailable", "cache_folder", "library_path", "load", "reason"]

logger = logging.getLogger(__name__)

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("ss2d.cpp", "patch_search.cpp"))
# The kernels round by adding a large constant: value-changing optimisation (-ffast-math) must stay off.
_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fno-fast-math", "-ffp-contract=fast", "-Wno-psabi")
_LANES = 8


class Unavailable(RuntimeError):
    """The native kernels cannot be used on this machine; the message says why in one line."""


# --- threads
_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_pool_lock = threading.Lock()


_load_lock = threading.Lock()


def _after_fork() -> None:
    # The threads of a pool do not survive a fork, and a lock may have been held: the child starts afresh.
    global _pool, _pool_size, _pool_lock, _load_lock
    _pool, _pool_size, _pool_lock, _load_lock = None, 0, threading.Lock(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _helpers(count: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    with _pool_lock:
        if _pool is None or _pool_size < count:
            _pool, _pool_size = ThreadPoolExecutor(count, thread_name_prefix="iconet"), count
        return _pool


def _run_workers(work: Callable[[], int], tasks: int) -> None:
    """Call `work` on the current thread and on up to `torch.get_num_threads() - 1` helpers.

    The workers share the tasks through a counter in C and every task's result is independent of who runs it, so the
    number of threads never changes a bit of the output, and a helper that starts late or not at all changes nothing.
    """
    futures = _submit(work, min(torch.get_num_threads(), tasks) - 1)
    try:
        failed = work()
    finally:  # even on Ctrl-C no buffer may be freed while a helper still writes to it
        running = [future for future in futures if not future.cancel()]
        wait(running)
    if failed or any(future.result() for future in running):
        raise MemoryError("the native kernel could not allocate its buffers")


def _submit(work: Callable[[], int], helpers: int) -> list[Future[int]]:
    if helpers < 1:
        return []
    try:
        pool = _helpers(helpers)
        return [pool.submit(work) for _ in range(helpers)]
    except RuntimeError:  # the interpreter is shutting down: no new threads, the caller does all the work
        return []


# --- library
def _fields(pointers: str, integers: str) -> list[tuple[str, Any]]:
    return [(n, ctypes.c_void_p) for n in pointers.split()] + [(n, ctypes.c_int64) for n in integers.split()]


class _Ss2dCall(ctypes.Structure):
    _fields_ = _fields(
        "x proj dt_weight dt_bias a d y states dy dx dproj ddt_weight ddt_bias da dd",
        "batch height width channels n_state rank group",
    )


class _PatchSearchCall(ctypes.Structure):
    _fields_ = _fields(
        "query key best_index best_score workspace locks",
        "batch height width channels pack_next packed norm_next normed search_next",
    )


_BACKWARD_WORKERS = 2  # fewer, larger groups are 13 % faster on two cores; with a batch there are tasks enough for more


@functools.lru_cache(maxsize=256)
def _group_channels(channels: int, batch: int, workers: int) -> int:
    """Channels of one task, a multiple of 8: the grouping with the least work on the busiest of `workers`.

    A task costs its vectors of 8 channels and about two more for fetching its pixels.
    """
    vectors = -(-channels // _LANES)

    def cost(groups: int) -> int:
        return -(-batch * groups // workers) * (-(-vectors // groups) + 2)

    groups = min(range(1, vectors + 1), key=cost)
    return -(-vectors // groups) * _LANES


class Library:
    """The loaded kernels. All tensors are contiguous float32 on the CPU; the callers check."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lib = ctypes.CDLL(str(path))
        self._forward, self._backward = lib.iconet_ss2d_forward, lib.iconet_ss2d_backward
        self._search = lib.iconet_patch_search
        for function in (self._forward, self._backward):
            function.restype, function.argtypes = ctypes.c_int, (ctypes.c_void_p, ctypes.c_void_p)
        self._search.restype, self._search.argtypes = ctypes.c_int, (ctypes.c_void_p,)
        self._workspace = lib.iconet_patch_search_workspace
        self._workspace.restype, self._workspace.argtypes = ctypes.c_int64, (ctypes.c_int64,) * 4
        lib.iconet_ss2d_steps.restype = ctypes.c_int64
        self.steps: int = lib.iconet_ss2d_steps()

    def states_shape(self, x: Tensor, n_state: int) -> tuple[int, int, int, int, int]:
        """Shape of the states kept for the backward pass: (B, 4, chunks, channels rounded up to 8, N)."""
        chunks = (x.shape[1] * x.shape[2] + self.steps - 1) // self.steps
        return x.shape[0], 4, chunks, (x.shape[3] + _LANES - 1) // _LANES * _LANES, n_state

    def ss2d_forward(self, inputs: tuple[Tensor, ...], store_states: bool) -> tuple[Tensor, Tensor]:
        """Of (x, proj, dt_weight, dt_bias, A, D) returns y (B, H, W, Di) and the states, empty if not kept."""
        x, n_state = inputs[0], inputs[4].shape[2]
        y = torch.empty_like(x)
        states = x.new_empty(self.states_shape(x, n_state) if store_states else (0,))
        # The channels do not meet in the forward pass: their grouping may follow the threads, the result does not.
        call = self._ss2d_call(inputs, torch.get_num_threads())
        call.y, call.states = y.data_ptr(), states.data_ptr() if store_states else None
        self._run_ss2d(self._forward, call)
        return y, states

    def ss2d_backward(self, dy: Tensor, inputs: tuple[Tensor, ...], states: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the six inputs, given dL/dy (B, H, W, Di) and the states of the forward pass."""
        x, proj, *weights = inputs
        # Here dproj is summed over the groups: a grouping that followed the threads would change the last bits.
        call = self._ss2d_call(inputs, _BACKWARD_WORKERS)
        groups = -(-call.channels // call.group)
        dx, dproj = torch.empty_like(x), proj.new_empty((groups, *proj.shape))
        per_image = [w.new_empty((x.shape[0], *w.shape)) for w in weights]
        call.dy, call.states, call.dx, call.dproj = dy.data_ptr(), states.data_ptr(), dx.data_ptr(), dproj.data_ptr()
        call.ddt_weight, call.ddt_bias, call.da, call.dd = (g.data_ptr() for g in per_image)
        self._run_ss2d(self._backward, call)
        return dx, _sum_first(dproj), *map(_sum_first, per_image)

    def patch_search(self, query: Tensor, key: Tensor) -> Tensor:
        """Index (B, H * W) int64 of the best key patch of every query patch; query and key (B, H, W, C)."""
        batch, height, width, channels = query.shape
        index = torch.zeros((batch, height * width), dtype=torch.int64)
        score = torch.full((batch, height * width), -torch.inf)
        workspace = torch.empty(self._workspace(batch, height, width, channels))
        locks = torch.zeros(batch, dtype=torch.int32)
        call = _PatchSearchCall(
            *(t.data_ptr() for t in (query, key, index, score, workspace, locks)), batch, height, width, channels
        )
        address = ctypes.addressof(call)
        _run_workers(lambda: self._search(address), batch * (2 * height - 1))
        return index

    @staticmethod
    def _ss2d_call(inputs: tuple[Tensor, ...], workers: int) -> _Ss2dCall:
        x, _, dt_weight, _, a, _ = inputs
        call = _Ss2dCall(*(t.data_ptr() for t in inputs))
        call.batch, call.height, call.width, call.channels = x.shape
        call.n_state, call.rank = a.shape[2], dt_weight.shape[2]
        call.group = _group_channels(call.channels, call.batch, workers)
        return call

    @staticmethod
    def _run_ss2d(function: Callable[[int, int], int], call: _Ss2dCall) -> None:
        counter = ctypes.c_int64(0)
        at_call, at_counter = ctypes.addressof(call), ctypes.addressof(counter)
        tasks = call.batch * -(-call.channels // call.group)
        _run_workers(lambda: function(at_call, at_counter), tasks)


def _sum_first(t: Tensor) -> Tensor:
    return t[0] if t.shape[0] == 1 else t.sum(0)


# --- build
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


def _target_flags() -> tuple[str, ...]:
    machine = platform.machine().lower()
    if os.name == "nt":
        raise Unavailable("native kernels: not built on Windows")
    if machine in ("x86_64", "amd64"):
        if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or {"avx2", "fma"} <= _cpu_flags():
            return ("-march=x86-64-v3",)
        raise Unavailable("native kernels: this processor has no AVX2 and FMA")
    if machine in ("aarch64", "arm64"):
        return ("-mcpu=native",)
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


def cache_folder() -> Path:
    """Where the library is kept: ``ICONET_CACHE_DIR``, else ``XDG_CACHE_HOME/iconet``, else ``~/.cache/iconet``."""
    if os.environ.get("ICONET_CACHE_DIR"):
        return Path(os.environ["ICONET_CACHE_DIR"]).expanduser()
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]).expanduser() / "iconet"
    return Path(os.path.expanduser("~")) / ".cache" / "iconet"


def _writable(folder: Path) -> Path:
    """The folder, made if need be; a fresh temporary folder where it cannot be written."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="iconet-"))


def _cpu_name() -> str:
    """Part of the hash: a binary for one processor must not be picked up by another that shares the home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("model name", "CPU part"))), platform.processor())
    except OSError:
        return platform.processor()


def library_path() -> Path:
    """The library for this machine in the cache folder, whether or not it has been compiled; writes nothing.

    Raises:
        Unavailable: it cannot be compiled here.
    """
    target, compiler = _target_flags(), _compiler()
    parts = [source.read_bytes() for source in _SOURCES]
    parts += [" ".join([*compiler, *_FLAGS, *target]).encode()]
    parts += [_run([*compiler, "--version"]).encode(), _cpu_name().encode()]
    name = hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]
    return cache_folder() / f"iconet-{name}.so"


def _build(anew: bool = False) -> Path:
    """Path of the shared library, compiled unless the cache has it."""
    path = library_path()
    if path.exists() and not anew:
        return path
    target, compiler = _target_flags(), _compiler()
    flags = [*_FLAGS, *target]
    path = _writable(path.parent) / path.name
    logger.info("compiling the native kernels into %s (a few seconds, once)", path)
    handle, temporary = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    sources = [str(source) for source in _SOURCES]
    try:
        try:
            _run([*compiler, *flags, *sources, "-o", temporary])
        except Unavailable:
            if "-mcpu=native" not in target:
                raise
            _run([*compiler, *_FLAGS, *sources, "-o", temporary])  # a compiler that does not know this processor
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


# --- self-test
def _check_scan(library: Library) -> None:
    from bundle.ops.scan.plain import selective_scan_2d_torch

    random = torch.Generator().manual_seed(0)
    channels, n_state, rank = 11, 3, 2
    shapes = [(1, 4, 5, channels), (1, 4, 5, 4, rank + 2 * n_state), (4, channels, rank), (4, channels)]
    inputs = [torch.randn(shape, generator=random) for shape in shapes]
    inputs += [
        -torch.rand(4, channels, n_state, generator=random) * 4 - 0.1,
        torch.randn(4, channels, generator=random),
    ]
    dy = torch.randn(shapes[0], generator=random)
    with torch.enable_grad():
        leaves = [t.clone().requires_grad_() for t in inputs]
        expected = selective_scan_2d_torch(*leaves)
        expected_grads = torch.autograd.grad(expected, leaves, dy)
    y, states = library.ss2d_forward(tuple(inputs), store_states=True)
    grads = library.ss2d_backward(dy, tuple(inputs), states)
    for got, want in zip((y, *grads), (expected.detach(), *expected_grads), strict=True):
        if not torch.allclose(got, want, rtol=1e-4, atol=1e-4 * max(1.0, float(want.abs().max()))):
            raise Unavailable("native kernels: the self-test of the scan failed")


def _check_search(library: Library) -> None:
    random = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 4, 5, 3, generator=random) for _ in range(2))
    unfold = torch.nn.functional.unfold
    q, k = (unfold(t.movedim(3, 1).double(), 3, padding=1)[0] for t in (query, key))
    expected = (q.T @ (k / k.norm(dim=0))).argmax(1)
    if not torch.equal(library.patch_search(query, key)[0], expected):
        raise Unavailable("native kernels: the self-test of the patch search failed")


# --- load
_loaded: tuple[Library | None, str] | None = None


def _open() -> Library:
    try:
        return Library(_build())
    except (OSError, AttributeError) as error:  # a damaged file in the cache
        logger.info("building the native kernels anew (%s)", error)
        return Library(_build(anew=True))


def _try_load() -> tuple[Library | None, str]:
    try:
        library = _open()
        _check_scan(library)
        _check_search(library)
    except Unavailable as error:
        return None, str(error)
    except Exception as error:  # whatever goes wrong here must only mean "use another back end"
        return None, f"native kernels: {type(error).__name__}: {error}".splitlines()[0]
    return library, ""


def load() -> Library | None:
    """The native kernels, compiled on the first call of the process if need be; None when they cannot be used."""
    global _loaded
    if _loaded is None:
        with _load_lock:
            if _loaded is None:
                # A deterministic check that must not disturb the caller: no gradient mode, no autocast.
                with torch.autocast("cpu", enabled=False), torch.no_grad():
                    _loaded = _try_load()
                if _loaded[0] is None:
                    logger.info("%s", _loaded[1])
    return _loaded[0]


def reason() -> str:
    """One line that says why `load()` returned None; empty when the kernels are there."""
    load()
    return _loaded[1] if _loaded is not None else ""
