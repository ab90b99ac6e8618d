"""Which other formats are read, by the names of their files, and the data files that their headers name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from bundle.data.paths import PathLike, open_regular

MGH = (".mgz", ".mgh", ".mgh.gz")
ITK = (".nrrd", ".nhdr", ".mha", ".mhd")
_META = (".mha", ".mhd")
_NIFTI = (".nii", ".nii.gz")
_HEADER_BYTES = 2**20
PATTERN = re.compile(r"([^\s%]*%0?\d{0,2}d[^\s%]*)\s+(-?\d+)\s+(-?\d+)\s+(-?\d+)(\s+\d+)?")
"""A printf pattern of one number, with first and last number and step, as both NRRD and MetaImage write it."""


@cache
def itk_installed() -> bool:
    """Whether SimpleITK, which reads NRRD and MetaImage, is there."""
    return find_spec("SimpleITK") is not None


def is_mgh(path: PathLike) -> bool:
    return str(path).lower().endswith(MGH)


def is_itk(path: PathLike) -> bool:
    return str(path).lower().endswith(ITK)


def is_meta(path: PathLike) -> bool:
    return str(path).lower().endswith(_META)


def is_read(path: PathLike) -> bool:
    """Whether a name is that of a volume of another format that can be read here."""
    return is_mgh(path) or (is_itk(path) and itk_installed())


def without_parts(files: Iterable[Path]) -> list[Path]:
    """`files` without those that are the data of a header among them (`scan.raw` beside `scan.mhd`).

    What is a volume of its own by its name stays, whatever a header says.
    """
    listed = list(files)
    parts = {part for path in listed if is_itk(path) and itk_installed() for part in detached(path)}
    return [path for path in listed if path not in parts or is_read(path) or str(path).lower().endswith(_NIFTI)]


def detached(path: Path) -> list[Path]:
    """The data files that the header of a NRRD or MetaImage file names, in its order.

    Empty if the data are in the file itself, or if it is another kind of file or cannot be read.
    """
    try:
        fields, rest = header_fields(path)
    except OSError:
        return []
    value = data_field(fields)
    if not value or value.lower() == "local":
        return []
    if value.split()[0].upper() == "LIST":
        names = [line for line in rest if line]
    elif counted := PATTERN.fullmatch(value):
        name, first, last, step = counted[1], *(int(counted[n]) for n in (2, 3, 4))
        end = last + (1 if step > 0 else -1)
        # No more numbers than there could be slices, whatever the header says.
        names = [name % number for number in range(first, end, step)[: 2**16]] if step else []
    else:
        names = [value]
    return [path.parent / name for name in names]


def data_field(fields: dict[str, str]) -> str:
    """What a header says about where its data are: a name, a pattern, a list or LOCAL."""
    return fields.get("elementdatafile", fields.get("data file", fields.get("datafile", "")))


def header_fields(path: Path) -> tuple[dict[str, str], list[str]]:
    """The fields of a NRRD or MetaImage header, names in lower case, and the lines that follow a list of files.

    Raises:
        OSError: it cannot be read.
    """
    if not is_itk(path):
        return {}, []
    meta, fields = is_meta(path), dict[str, str]()
    with open_regular(path) as stream:
        block = stream.read(_HEADER_BYTES)
    lines = iter(_lines(block))
    if not meta and not next(lines, "").startswith("NRRD"):
        return {}, []
    for line in lines:
        if not line and not meta:
            return fields, []
        name, mark, value = line.partition("=" if meta else ":")
        if not mark or line.startswith("#"):
            continue
        name = name.strip().lower()
        fields[name] = value.lstrip("=").strip()  # "key:=value" of NRRD
        if name in ("elementdatafile", "data file", "datafile"):
            listed = fields[name].upper().startswith("LIST")
            if meta or listed:
                return fields, list(lines) if listed else []
    return fields, []


def data_offset(path: Path) -> int:
    """Where the data begin in a file that holds them itself: after ElementDataFile = LOCAL, or after an empty line."""
    with open_regular(path) as stream:
        block = stream.read(_HEADER_BYTES)
    found = re.search(rb"(?im)^\s*ElementDataFile\s*=[^\n]*\n" if is_meta(path) else rb"\n\r?\n", block)
    return found.end() if found else len(block)


def _lines(block: bytes) -> Iterator[str]:
    for line in block.split(b"\n"):
        yield line.decode("utf-8", "replace").strip()
