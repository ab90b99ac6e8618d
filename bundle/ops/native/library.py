"""The compiled library: its functions take the address of a call structure and a number of threads."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch

__all__ = ["Library", "fields"]


def fields(pointers: str, integers: str) -> list[tuple[str, Any]]:
    """Fields of a `ctypes.Structure`: names of pointers, then of 64-bit integers."""
    return [(n, ctypes.c_void_p) for n in pointers.split()] + [(n, ctypes.c_int64) for n in integers.split()]


class Library:
    """The loaded kernels. Each has a module beside this one, which fills in its call structure.

    Raises:
        OSError: the file cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))
        self.lanes = self.integer("iconet_lanes")

    def integer(self, function: str, *arguments: int) -> int:
        """Call a function of 64-bit integers that returns one.

        Raises:
            AttributeError: the library has no such function (a damaged file).
        """
        call = getattr(self._library, function)
        call.restype, call.argtypes = ctypes.c_int64, (ctypes.c_int64,) * len(arguments)
        return int(call(*arguments))

    def run(self, function: str, call: ctypes.Structure) -> None:
        """Run a kernel on as many threads as PyTorch uses; the number never changes a bit of the result.

        Raises:
            MemoryError: a thread could not allocate its buffers.
        """
        kernel = getattr(self._library, function)
        kernel.restype, kernel.argtypes = ctypes.c_int, (ctypes.c_void_p, ctypes.c_int64)
        if kernel(ctypes.addressof(call), torch.get_num_threads()):
            raise MemoryError("the native kernel could not allocate its buffers")
