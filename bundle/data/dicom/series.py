"""The volumes of one DICOM series: stacks by matrix and orientation, and the volumes of each stack."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from bundle.data.dicom.frame import SIDES, Broken, Frame, Image
from bundle.data.dicom.join import ENOUGH, in_even_steps
from bundle.data.dicom.order import result_numbers
from bundle.data.dicom.together import Together, together
from bundle.data.dicom.volumes import Part, split_stack, text_of

PARALLEL = 1e-3
"""Slices have the same orientation if no component of their direction vectors differs by more than this."""


@dataclass(frozen=True, eq=False, repr=False)
class DicomSeries:
    """Slices that should form one volume. Only the paths in it can identify the patient.

    Attributes:
        uid: SeriesInstanceUID, "" if blank. Volumes split from one series share it.
        modality: MR, CT or PT; "?" if no file can be used.
        frames: the slices, in the order of their files.
        description_for_log: one line: modality, number, size, what distinguishes it from others of its series.
        label: a file name for results, unique for each volume of a tree and the same in every run.
        problem: why it cannot be read, if the headers already show it; `read_series` raises it.
        broken: files of the series that cannot be used.
        volume: its number (from 1) among the volumes of its stack, and how many these are; None for a single volume.
        warnings: doubts about which slices belong to it.
        doubt: "" unless several slices share a position and nothing tells them apart: how many there are.
        join: whether slices of several frames of reference may be joined.
        lead: the image whose patient, study, series and frame of reference the result takes.
        numbers: InstanceNumber of the result of each file, unique in the series.
        together: the volumes with which it decides what values mean; None if it is the only one.
    """

    uid: str
    modality: str
    frames: tuple[Frame, ...]
    description_for_log: str
    label: str
    problem: str | None = None
    broken: tuple[Path, ...] = ()
    volume: tuple[int, int] | None = None
    warnings: tuple[str, ...] = ()
    doubt: str = ""
    join: bool = False
    lead: Image | None = None
    numbers: Mapping[Image, int] = field(default_factory=dict)
    together: Together | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, sorted, each once."""
        return tuple(sorted({*(frame.path for frame in self.frames), *self.broken}))

    def __repr__(self) -> str:
        return f"DicomSeries({self.description_for_log})"


def split_volumes(
    members: Sequence[Frame | Broken], warnings: tuple[str, ...] = (), join: bool = False
) -> list[DicomSeries]:
    """The volumes of one series, in order. A broken file spoils all of them, since it may belong to any.

    Args:
        members: slices and broken files of one series.
        warnings: about the series as a whole.
        join: whether slices of several frames of reference may be joined.
    """
    broken = [member for member in members if isinstance(member, Broken)]
    frames = [member for member in members if isinstance(member, Frame)]
    if not frames:
        return [_lost(broken)]
    stacks = _stacks(frames)
    if (merged := _without_stack_ids(stacks)) is not None:
        stacks = merged
        warnings = (*warnings, "each slice has a StackID of its own: taken as one stack")
    found: list[DicomSeries] = []
    for key, tags in zip(stacks, _stack_tags(list(stacks)), strict=True):
        parts = split_stack(stacks[key])
        shared = together([part.frames for part in parts])
        for number, part in enumerate(parts, start=1):
            count = (number, len(parts)) if len(parts) > 1 else None
            volume = _series(key, part, tags, count, broken, (*warnings, *part.warnings), join)
            found.append(replace(volume, together=shared[number - 1]))
    numbers = result_numbers([volume.frames for volume in found])
    torn = len({(frame.image.study, frame.image.series, frame.image.patient) for frame in frames}) > 1
    return [
        replace(volume, lead=(frames if torn else volume.frames)[0].image, numbers=numbers[at])
        for at, volume in enumerate(found)
    ]


def _lost(broken: list[Broken]) -> DicomSeries:
    """DICOM files none of which can be used; kept so that reading them reports the error."""
    first = broken[0]
    label = f"unusable-{_digest(first.series if first.series[1] else str(first.path))}"
    description = f"{len(broken)} unusable file{'s' * (len(broken) != 1)} [{label}]"
    paths = tuple(item.path for item in broken)
    return DicomSeries(first.series[1], "?", (), description, label, first.error, paths)


StackKey = tuple[Hashable, ...]


def _stacks(frames: list[Frame]) -> dict[StackKey, list[Frame]]:
    """Frames with the same SOP class, matrix, orientation, side and stack."""
    planes: list[tuple[float, ...]] = []
    known: dict[tuple[float, ...] | None, tuple[float, ...]] = {None: ()}
    groups: dict[StackKey, list[Frame]] = defaultdict(list)
    for frame in frames:
        image = frame.image
        if frame.orientation not in known:
            known[frame.orientation] = _plane(frame.orientation or (), planes)
        groups[(image.sop_class, image.columns, image.rows, known[frame.orientation], *frame.sides)].append(frame)
    return groups


def _without_stack_ids(stacks: dict[StackKey, list[Frame]]) -> dict[StackKey, list[Frame]] | None:
    """The slices as one stack if each position has a StackID of its own and they lie in even steps, else None."""
    keys = {(*key[:-1], None) for key in stacks}
    alone = all(frame.position == frames[0].position for frames in stacks.values() for frame in frames)
    firsts = [frames[0] for frames in stacks.values()]
    if len(keys) > 1 or not alone or len(stacks) < ENOUGH or not in_even_steps(firsts, certain=False):
        return None
    return {keys.pop(): [frame for frames in stacks.values() for frame in frames]}


def _plane(orientation: tuple[float, ...], planes: list[tuple[float, ...]]) -> tuple[float, ...]:
    """The orientation as listed in `planes` (sorted), added there if new."""
    start = bisect_left(planes, (orientation[0] - 2 * PARALLEL,))
    for known in islice(planes, start, None):
        if known[0] > orientation[0] + 2 * PARALLEL:
            break
        if all(abs(a - b) <= PARALLEL for a, b in zip(known, orientation, strict=True)):
            return known
    plane = tuple(round(x, 4) + 0.0 for x in orientation)
    insort(planes, plane)
    return plane


def _stack_tags(keys: list[StackKey]) -> Iterator[list[str]]:
    """What distinguishes each stack from the others, as text."""
    names = ("", "", "", "plane", *SIDES)
    for key in keys:
        differs = (any(other[n] != value for other in keys) for n, value in enumerate(key))
        yield [f"{name} {text_of(value)}" for name, value, yes in zip(names, key, differs, strict=True) if name and yes]


def _series(
    key: StackKey,
    part: Part,
    tags: list[str],
    count: tuple[int, int] | None,
    broken: list[Broken],
    warnings: tuple[str, ...],
    join: bool,
) -> DicomSeries:
    frames = part.frames
    image = frames[0].image
    number = image.series_number or 0
    # If an anonymiser blanked the series UID, the folder identifies it.
    identity = (image.study, image.series or str(image.path.parent), image.patient)
    # The number comes before the hash so that names sort in the order of the volumes.
    place = f"{count[0]:0{len(str(count[1]))}d}-" if count else ""
    label = f"{image.modality}-{max(number, 0):04d}-{place}{_digest((identity, key, part.key))}"
    facts = [f"{image.modality} series {number}"]
    facts += [f"volume {count[0]} of {count[1]}"] if count else []
    facts.append(f"{len(frames)} slice{'s' * (len(frames) != 1)} of {image.columns}x{image.rows}")
    facts += [*tags, *(f"{name} {value}" for name, value in part.split)]
    return DicomSeries(
        uid=image.series,
        modality=image.modality,
        frames=tuple(frames),
        description_for_log=f"{', '.join(facts)} [{label}]",
        label=label,
        problem=broken[0].error if broken else None,
        broken=tuple(item.path for item in broken),
        volume=count,
        warnings=warnings,
        doubt=part.doubt,
        join=join,
    )


def _digest(value: Hashable) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:10]
