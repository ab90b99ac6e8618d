"""Open the file of a volume: NIfTI, or another format as the NIfTI file it could be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bundle.data.errors import fail
from bundle.data.foreign import names
from bundle.data.nifti.stream import Source, open_stream

INSTALL = "pip install SimpleITK"


@contextmanager
def open_volume(path: Path) -> Iterator[Source]:
    """Open a file whose name decides the format; errors while reading become VolumeError."""
    if names.is_mgh(path):
        from bundle.data.foreign.mgh import open_mgh

        with open_mgh(path) as source:
            yield source
    elif names.is_itk(path):
        if not names.itk_installed():
            fail(path, "read by SimpleITK, which is not installed", INSTALL)
        from bundle.data.foreign.itk import open_itk

        with open_itk(path) as source:
            yield source
    else:
        with open_stream(path) as source:
            yield source
