"""Results that travel back in a few small files: one archive cut into parts, and put together again."""

from __future__ import annotations

import io
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from bundle.data.atomic import replacing

NAME = "results.zip"
_EXTRA = 1024
"""Bytes of an archive for each member besides its content, at most."""


class PartsError(ValueError):
    """Parts that do not make an archive; the message is one line."""


def gather(items: Iterable[tuple[str, Callable[[], bytes]]], limit: int) -> tuple[bytes, list[str]]:
    """One archive of the items that fit, in order; a large one that does not fit lets later small ones in.

    Args:
        items: (name, function that gives the content).
        limit: bytes of the archive.

    Returns:
        The archive, and the names that were left out.
    """
    buffer, left_out, room = io.BytesIO(), list[str](), limit - _EXTRA
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in items:
            data = content()
            size = len(zlib.compress(data, 1)) + _EXTRA
            if size > room:
                left_out.append(name)
                continue
            archive.writestr(name, data)
            room -= size
    return buffer.getvalue(), left_out


def cut(data: bytes, folder: Path, size: int) -> list[Path]:
    """Write ``folder/results.zip.00``, ``.01``... of at most ``size`` bytes each; parts of an earlier run go."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{NAME}.*"):
        old.unlink()
    paths = []
    for number, start in enumerate(range(0, len(data), size)):
        paths.append(folder / f"{NAME}.{number:02d}")
        with replacing(paths[-1]) as file:
            file.write(data[start : start + size])
    return paths


def joined(folder: Path) -> bytes:
    """The bytes that :func:`cut` was given.

    Raises:
        PartsError: there are none, or one is missing in between.
    """
    paths = sorted(folder.glob(f"{NAME}.*"))
    if not paths or [path.suffix for path in paths] != [f".{n:02d}" for n in range(len(paths))]:
        found = ", ".join(path.name for path in paths) or "none"
        raise PartsError(f"{folder}: parts {NAME}.00, .01... are missing (found: {found})")
    return b"".join(path.read_bytes() for path in paths)


def extract(folder: Path, target: Path) -> list[str]:
    """Join the parts in a folder and write the archive's files below ``target``; return their names.

    Raises:
        PartsError: parts are missing or damaged, or a name leads out of the target; nothing is written then.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(joined(folder))) as archive:
            names = archive.namelist()
            if damaged := archive.testzip():
                raise PartsError(f"{folder}: {damaged} is damaged")
            if outside := [n for n in names if not (target / n).resolve().is_relative_to(target.resolve())]:
                raise PartsError(f"{folder}: {outside[0]} leads out of the folder")
            for name in names:
                with archive.open(name) as source, replacing(target / name) as file:
                    shutil.copyfileobj(source, file)
            return names
    except zipfile.BadZipFile as error:
        raise PartsError(f"{folder}: the parts do not make an archive ({error}); is the last one missing?") from error
