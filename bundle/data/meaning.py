"""What a file says its voxels are: an image, or something that must not be treated as one.

Only declared facts count: intent codes of NIfTI headers, BIDS names and sidecars, DICOM's image type. Interpolating
vectors component by component or a phase across its wraps gives plausible nonsense, so these are refused; for
statistics and labels there is a warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundle.data.bids_sidecar import sidecar_metadata, volume_stem
from bundle.data.errors import fail
from bundle.data.paths import PathLike

if TYPE_CHECKING:
    from bundle.data.dicom.series import DicomSeries
    from bundle.data.nifti.geometry import Header

MODALITY_KEY = "stated_modality"
"""Key of the metadata of MetaTensors: MR, CT or PT, empty if not known."""

_COMPONENTS = {
    **{1004: "matrices", 1005: "symmetric matrices (tensors)", 1006: "displacement vectors", 1007: "vectors"},
    **{1010: "quaternions", 2003: "colours", 2004: "colours"},
}
"""Intent codes of voxels with several components; a file that holds a single one is a scalar image."""

_NO_IMAGE = {
    **{1008: "a point set", 1009: "triangles", 2002: "node indices", 2005: "the shape of a surface"},
    **{2006: "an FNIRT displacement field", 2007: "spline coefficients of FNIRT", 2008: "DCT coefficients of FNIRT"},
    **{
        2009: "spline coefficients of FNIRT",
        2016: "spline coefficients of topup",
        2017: "spline coefficients of topup",
    },
    **dict.fromkeys(range(3000, 3100), "CIFTI data"),
}

_STATISTICS = {
    **{2: "correlations", 3: "t statistics", 4: "F statistics", 5: "z scores", 22: "p-values"},
    **{
        23: "logarithms of p-values",
        24: "logarithms of p-values",
        1001: "estimates of a parameter",
        2018: "a field map",
    },
}
_LABELS = {1002: "labels", 1003: "names of structures"}

_BIDS_NAME = re.compile(r"sub-[0-9A-Za-z+]+(_[A-Za-z0-9]+-[0-9A-Za-z+.]+)*_[0-9A-Za-z]+")
_MR_SUFFIXES = {
    *("T1w", "T2w", "PDw", "T2starw", "FLAIR", "inplaneT1", "inplaneT2", "PDT2", "PDT2w", "angio", "UNIT1", "VFA"),
    *("T2star", "FLASH", "PD", "MEGRE", "MESE", "MP2RAGE", "MPM", "MTS", "MTR", "MTw", "IRT1", "bold", "cbv", "sbref"),
    *("dwi", "asl", "m0scan", "epi", "magnitude", "magnitude1", "magnitude2"),
}
_MODALITIES = {"MR": "MR", "MRI": "MR", "PT": "PT", "PET": "PT", "CT": "CT"}
_FOLDERS = {**dict.fromkeys(("anat", "func", "dwi", "fmap", "perf"), "MR"), "pet": "PT", "ct": "CT"}

_BIDS_PHASE = ("phase", "phase1", "phase2", "phasediff")
_BIDS_LABELS = {"dseg": "labels", "mask": "a mask", "defacemask": "a mask", "probseg": "probabilities of labels"}

_LABEL_MAPS = ("dseg", "mask", "defacemask")

_PHASE = {"P", "PHASE", "PHASE MAP", "PHASE_MAP", "PHASEDIFF", "VELOCITY MAP", "VELOCITY_MAP"}
_GE_PART = {1.0: "PHASE", "0100": "PHASE", 2.0: "REAL", "0200": "REAL", 3.0: "IMAGINARY", "0300": "IMAGINARY"}
"""GE (0043,xx2F), whose ImageType does not tell; as text if the file does not give its type."""

_PART = {"R": "real", "REAL": "real", "I": "imaginary", "IMAGINARY": "imaginary"}


@dataclass(frozen=True)
class Finding:
    """What a file says its voxels are, by which fact, and whether super-resolution makes no sense of them."""

    what: str
    by: str
    refused: bool


def judge(name: PathLike, findings: Iterable[Finding], force: bool) -> list[str]:
    """Warnings about what voxels are.

    Raises:
        VolumeError: they are no image, and `force` is not given.
    """
    lines = []
    for found in findings:
        if found.refused and not force:
            wrong = f"{found.what} by {found.by}, not an image: interpolation would make nonsense of it"
            fail(name, wrong, "give an image, such as the magnitude (--force processes the file all the same)")
        doubt = "processed all the same (--force)" if found.refused else "sharpened as if it were an image"
        lines.append(f"{found.what} by {found.by}: {doubt}")
    return lines


def check_nifti(path: Path, header: Header, force: bool) -> list[str]:
    """Warnings about what the voxels of a file are, by its header, its name and its sidecar. Errors as for `judge`."""
    shape = header.get_data_shape()
    components = int(shape[3]) if len(shape) > 3 else 1
    return judge(path, [*by_intent(int(header["intent_code"]), components), *by_bids(path)], force)


def check_dicom(name: str, series: DicomSeries, force: bool) -> list[str]:
    """The same for a DICOM series, by the image types of its slices, or by what GE writes instead."""
    from bundle.data.dicom.frame import GE_PART, TRAITS

    if series.modality != "MR":
        return []
    types: dict[str, None] = {}
    parts: dict[str, None] = {}
    for frame in series.frames:
        values = dict(zip(TRAITS, frame.traits, strict=True))
        for key in ("ImageType", "FrameType", "ComplexImageComponent"):
            types |= dict.fromkeys(_words(values.get(key)))
        parts |= dict.fromkeys(_words(_GE_PART.get(values[GE_PART])))
    return judge(name, [*_by_type(types, "ImageType"), *_by_type(parts, "GE's private (0043,xx2F)")], force)


def by_intent(code: int, components: int) -> Iterator[Finding]:
    """What an intent code says; `components` is the length of the fourth axis."""
    by = f"the intent code {code} of the header"
    if code in _COMPONENTS:
        yield Finding(
            _COMPONENTS[code] if components > 1 else f"one component of {_COMPONENTS[code]}", by, components > 1
        )
    elif code in _NO_IMAGE:
        yield Finding(_NO_IMAGE[code], by, True)
    elif code in _STATISTICS or 2 <= code <= 24:
        yield Finding(_STATISTICS.get(code, "statistics"), by, False)
    elif code in _LABELS:
        yield Finding(_LABELS[code], by, False)


def by_bids(path: Path) -> Iterator[Finding]:
    """What a BIDS name and a sidecar say."""
    stem = volume_stem(path)
    if _BIDS_NAME.fullmatch(stem):
        *entities, suffix = stem.split("_")
        labels = dict(entity.split("-", 1) for entity in entities)
        by = "its BIDS name"
        if labels.get("part") == "phase" or (suffix in _BIDS_PHASE and "part" not in labels):
            yield Finding("a phase image", by, True)
            return
        if suffix == "xfm":
            yield Finding("a transform", by, True)
        elif labels.get("part") in ("real", "imag"):
            yield Finding("the real or imaginary part of a complex image", by, False)
        elif suffix in _BIDS_LABELS:
            yield Finding(_BIDS_LABELS[suffix], by, False)
        elif suffix == "statmap" or "stat" in labels:
            yield Finding("statistics", by, False)
    yield from _by_sidecar(sidecar_metadata(path))


def modality_by_bids(path: Path, metadata: Mapping[str, Any]) -> str | None:
    """The modality of a file as DICOM names it (MR, CT or PT), by its sidecar, or by a BIDS name and its folder."""
    declared = metadata.get("Modality")
    if isinstance(declared, str) and (name := declared.strip().upper()):
        return _MODALITIES.get(name, name)
    stem = volume_stem(path)
    if not _BIDS_NAME.fullmatch(stem):
        return None
    suffix = stem.rpartition("_")[2]
    if suffix in ("pet", "ct"):
        return _FOLDERS[suffix]
    return "MR" if suffix in _MR_SUFFIXES else _FOLDERS.get(path.absolute().parent.name)


def modality_in_meta(meta: Mapping[str, Any], item: int = 0) -> str | None:
    """The modality that the metadata of a MetaTensor say, of one item of a batch; None if they do not."""
    given = _words(meta.get(MODALITY_KEY))
    return (given[min(item, len(given) - 1)] or None) if given else None


def is_label_map(path: Path) -> bool:
    """Whether a file is a label map by its BIDS name."""
    stem = volume_stem(path)
    return bool(_BIDS_NAME.fullmatch(stem)) and stem.rsplit("_", 1)[-1] in _LABEL_MAPS


def _by_sidecar(metadata: Mapping[str, Any]) -> Iterator[Finding]:
    if metadata.get("Modality", "MR") not in ("MR", "MRI"):
        return
    words = [*_words(metadata.get("ImageType")), *_words(metadata.get("ComplexImageComponent"))]
    yield from _by_type(words, "ImageType in its sidecar")


def _by_type(words: Iterable[str], by: str) -> Iterator[Finding]:
    given = {word.strip().upper() for word in words}
    if given & _PHASE:
        yield Finding("a phase image", f"{by} ({', '.join(sorted(given & _PHASE))})", True)
    elif parts := given & _PART.keys():
        kinds = " and ".join(sorted({_PART[part] for part in parts}))
        yield Finding(f"the {kinds} part of a complex image", f"{by} ({', '.join(sorted(parts))})", False)


def _words(value: Any) -> list[str]:
    """The texts in a value that may be a text, a list or anything else."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [text for text in values if isinstance(text, str)]
