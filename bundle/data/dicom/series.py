"""Split the slices of one DICOM series into volumes: by echo, time point, b-value and plane."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations
from pathlib import Path

from bundle.data.dicom.frame import CONTRASTS, PHASES, Broken, Frame, Image
from bundle.data.dicom.order import result_numbers, volume_order

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
        origin: a hash of the patient, study and series; the volumes split from one series share it.
        volume: its number among the volumes of its series, from 1, and how many there are.
        numbers: InstanceNumber of the result of each file, unique in the series.
    """

    uid: str
    modality: str
    frames: tuple[Frame, ...]
    description_for_log: str
    label: str
    problem: str | None = None
    broken: tuple[Path, ...] = ()
    origin: str = ""
    volume: tuple[int, int] = (1, 1)
    numbers: Mapping[Image, int] = field(default_factory=dict)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, sorted, each once."""
        return tuple(sorted({*(frame.path for frame in self.frames), *self.broken}))

    def __repr__(self) -> str:
        return f"DicomSeries({self.description_for_log})"


def split_volumes(members: Sequence[Frame | Broken]) -> list[DicomSeries]:
    """The volumes of one series. A broken file spoils all of them, since it may belong to any."""
    broken = [member for member in members if isinstance(member, Broken)]
    frames = [member for member in members if isinstance(member, Frame)]
    if not frames:
        return [_lost(broken)]
    volumes = list(chain.from_iterable(_by_phase(key, group) for key, group in _by_contrast(frames)))
    volumes.sort(key=lambda volume: volume_order(volume[1]))
    numbers = result_numbers([group for _, group in volumes])
    return [
        _series(key, group, tag, broken, (at + 1, len(volumes)), numbers[at])
        for at, ((key, group), tag) in enumerate(zip(volumes, _tags(volumes), strict=True))
    ]


def _lost(broken: list[Broken]) -> DicomSeries:
    """DICOM files none of which can be used; kept so that reading them reports the error."""
    first = broken[0]
    label = f"unusable-{_digest(first.series if first.series[1] else str(first.path))}"
    description = f"{len(broken)} unusable file{'s' * (len(broken) != 1)} [{label}]"
    paths = tuple(item.path for item in broken)
    return DicomSeries(first.series[1], "?", (), description, label, first.error, paths)


Volume = tuple[tuple[Hashable, ...], list[Frame]]


def _by_contrast(frames: list[Frame]) -> list[Volume]:
    """Groups with the same SOP class, matrix, contrast and orientation."""
    planes: list[tuple[float, ...]] = []
    groups: dict[tuple[Hashable, ...], list[Frame]] = defaultdict(list)
    for frame in frames:
        image = frame.image
        groups[(image.sop_class, image.columns, image.rows, _plane(frame, planes), *frame.contrasts)].append(frame)
    return list(groups.items())


def _plane(frame: Frame, planes: list[tuple[float, ...]]) -> tuple[float, ...]:
    """The frame's orientation as listed in `planes`, added there if new; empty if the frame has none."""
    if frame.orientation is None:
        return ()
    for known in planes:
        if all(abs(a - b) <= PARALLEL for a, b in zip(known, frame.orientation, strict=True)):
            return known
    planes.append(tuple(round(x, 4) + 0.0 for x in frame.orientation))
    return planes[-1]


def _by_phase(key: tuple[Hashable, ...], frames: list[Frame]) -> list[Volume]:
    """Separate slices at the same position by the first one or two attributes that yield complete volumes.

    "Complete": no volume has two slices at one position, and at least one volume has a slice at every position.
    Without such attributes the frames stay together, and reading them reports the duplicates.
    """
    places = {_place(frame) for frame in frames}
    if not _doubled(frames) or None in places:
        return [(key, frames)]
    varying = [n for n in range(len(PHASES)) if len({frame.phases[n] for frame in frames}) > 1]
    for names in chain(combinations(varying, 1), combinations(varying, 2)):
        groups: dict[tuple[Hashable, ...], list[Frame]] = defaultdict(list)
        for frame in frames:
            groups[(*key, *((PHASES[n], frame.phases[n]) for n in names))].append(frame)
        whole = any({_place(frame) for frame in group} == places for group in groups.values())
        if whole and not any(map(_doubled, groups.values())):
            return list(groups.items())
    return [(key, frames)]


def _place(frame: Frame) -> tuple[float, ...] | None:
    return None if frame.position is None else tuple(round(x, 2) for x in frame.position)


def _doubled(frames: list[Frame]) -> bool:
    """Whether two different slices share a position; copies of one instance do not count."""
    instances = {(frame.image.uid or frame.path, frame.index): _place(frame) for frame in frames}
    return len(set(instances.values())) < len(instances)


def _tags(volumes: list[Volume]) -> Iterator[str]:
    """What distinguishes each volume from the others, as text."""
    keys = [key for key, _ in volumes]
    fixed = ("class", "columns", "rows", "plane", *CONTRASTS)
    for key in keys:
        parts = [
            f"{name} {value}"
            for n, (name, value) in enumerate(zip(fixed, key, strict=False))
            if name not in ("class", "columns", "rows") and any(other[n] != value for other in keys)
        ]
        parts += [f"{part[0]} {part[1]}" for part in key[len(fixed) :] if isinstance(part, tuple)]
        yield ", ".join(parts)


def _series(
    key: tuple[Hashable, ...],
    frames: list[Frame],
    tag: str,
    broken: list[Broken],
    volume: tuple[int, int],
    numbers: dict[Image, int],
) -> DicomSeries:
    image = frames[0].image
    number = image.series_number or 0
    # If an anonymiser blanked the series UID, the folder identifies it.
    identity = (image.study, image.series or str(image.path.parent), image.patient)
    of_series = f"volume {volume[0]} of {volume[1]}, " if volume[1] > 1 else ""
    in_series = f"v{volume[0]:0{len(str(volume[1]))}d}-" if volume[1] > 1 else ""
    label = f"{image.modality}-{max(number, 0):04d}-{in_series}{_digest((identity, key))}"
    size = f"{len(frames)} slice{'s' * (len(frames) != 1)} of {image.columns}x{image.rows}"
    return DicomSeries(
        uid=image.series,
        modality=image.modality,
        frames=tuple(frames),
        description_for_log=f"{image.modality} series {number}, {of_series}{size}{', ' * bool(tag)}{tag} [{label}]",
        label=label,
        problem=broken[0].error if broken else None,
        broken=tuple(item.path for item in broken),
        origin=_digest(identity),
        volume=volume,
        numbers=numbers,
    )


def _digest(value: Hashable) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:10]
