"""Which slices of a stack form a volume: frames are told apart within each place, a position along the normal.

If no two frames share a place, they are one volume, whatever their attributes say: echo times jitter, trigger times
drift. Otherwise attributes are tried from the most to the least meaningful, in five ways:

1. values that each occur equally often in every place (echo times, b-values, time points of complete volumes);
2. the same for numbers that agree within 1 %;
3. the rank of a value within each place, where values drift and every place has as many (trigger times of a cine,
   acquisition times); InstanceNumber and the number of a frame are the last resort;
4. values that agree across most places: complete volumes and incomplete ones (an aborted scan);
5. the rank within each place where volumes follow each other and only the last is unfinished.

What is left shares places still; reading it reports slices that are not copies of each other.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bundle.data.dicom.frame import ACQUISITIONS, PRIVATE, TEXTS, TIMES, TRAITS, VALUES, Frame

NEAR = 0.01
"""Numbers within this fraction of each other are one value that jitters."""

AGREE = 0.5
"""Values agree across places if on average each occurs in more than this fraction of the other places."""

UNEVEN = 0.1
"""Largest deviation of a slice from even steps, as a fraction of the step."""

DRIFT, DRIFT_OF_TWO = 0.5, 0.25
"""Values of one rank that differ by no more than this fraction of a step belong together without a doubt. The second
holds for two ranks, which show no regular steps."""

SAME_PLACE_MM, LOOSE_MM = 1e-3, 0.1
"""Frames closer than the first are always in one place; farther apart than the second never."""

_NUMBER, _ACQUIRED, _CONTENT, _INDEX = "InstanceNumber", "AcquisitionTime", "ContentTime", "number in the file"
_DIMENSION = "DimensionIndexValues"
_IN_PLANE = "position in the plane"
_RANKED = (*TIMES, "NominalPercentageOfCardiacPhase", "NominalPercentageOfRespiratoryPhase", *ACQUISITIONS)
LAST_RESORTS = (_ACQUIRED, _NUMBER, _CONTENT, _INDEX)
_BY_VALUE = frozenset(TRAITS) - {*_RANKED}
_MEASURED = frozenset(
    (
        *(*TIMES, "EchoTime", "EffectiveEchoTime", "DiffusionBValue", "InversionTime", "FlipAngle", "RepetitionTime"),
        *("NominalPercentageOfCardiacPhase", "NominalPercentageOfRespiratoryPhase", "KVP"),
    )
)
_CONSTANT = [name for name in VALUES if name not in ("RepetitionTime", "FlipAngle", "ReceiveCoilName")]
_CONSTANT += [name for name in PRIVATE.values() if name.endswith("b-value")]
"""What should not differ within a volume."""

_CONTRASTS = ("EchoTime", "EffectiveEchoTime", "DiffusionBValue")
_SHOWN = {*VALUES, *TIMES, *ACQUISITIONS, *PRIVATE.values()} - {"ReceiveCoilName", "ScanOptions", "ConvolutionKernel"}


@dataclass(frozen=True, eq=False)
class Placed:
    """A frame in a stack: its place (from 0, along the normal) and its lateral position there (0 where all agree)."""

    frame: Frame
    place: int
    lateral: int


@dataclass(frozen=True, eq=False)
class Part:
    """Frames that form a volume, or that cannot be told apart.

    Attributes:
        frames: with copies.
        split: (attribute, value as text) of each split that led to it.
        key: as `split`, with values.
        warnings: how doubtful that is.
        doubt: how many slices share places, "" if none do.
    """

    frames: list[Frame]
    split: tuple[tuple[str, str], ...] = ()
    key: tuple[tuple[str, Hashable], ...] = ()
    warnings: tuple[str, ...] = ()
    doubt: str = ""


@dataclass(frozen=True, eq=False)
class _Group:
    """Placed frames without copies, and how they were split off so far."""

    members: list[Placed]
    split: tuple[tuple[str, str], ...] = ()
    key: tuple[tuple[str, Hashable], ...] = ()
    warnings: tuple[str, ...] = ()
    at: list[int] = field(init=False)
    counts: Counter[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", [member.place for member in self.members])
        object.__setattr__(self, "counts", Counter(self.at))

    @property
    def told_apart(self) -> bool:
        return max(self.counts.values()) == 1


Attribute = tuple[str, Callable[[Placed], Any]]


def split_stack(frames: Sequence[Frame]) -> list[Part]:
    """The volumes of a stack (same matrix and orientation), in the order of their InstanceNumber, dimensions and time.

    Takes O(n log n) for each of the attributes that vary.
    """
    placed = places(frames)
    if placed is None:
        return [Part(list(frames))]
    copies: dict[Hashable, list[Placed]] = defaultdict(list)
    for item in placed:
        copies[_signature(item)].append(item)
    whole = _Group([same[0] for same in copies.values()])
    attributes = list(_attributes(whole.members))
    groups = sorted(_told_apart(whole, attributes), key=_order)
    return [_part(group, len(whole.counts), copies) for group in groups]


def _part(group: _Group, places: int, copies: dict[Hashable, list[Placed]]) -> Part:
    frames = [copy.frame for item in group.members for copy in copies[_signature(item)]]
    warnings = list(group.warnings)
    if not group.told_apart:
        each = sorted(group.counts.values())
        counts = f"{each[0]}" if each[0] == each[-1] else f"{each[0]} to {each[-1]}"
        doubt = f"{len(group.members)} slices at {len(each)} positions, {counts} at each"
        return Part(frames, group.split, group.key, group.warnings, doubt)
    if len(group.counts) < places:
        warnings.append(f"incomplete: slices at {len(group.counts)} of the {places} positions of the series")
    for name, values in _mixed(group.members):
        warnings.append(f"slices of one volume differ in {name} ({values}); no two of them share a position")
    return Part(frames, group.split, group.key, tuple(warnings))


# -------------------------------------------------------------------------------------------------------------- places


def places(frames: Sequence[Frame]) -> list[Placed] | None:
    """The frames sorted along their normal, with the number of their place; None if some have no position."""
    if any(frame.position is None or frame.orientation is None for frame in frames):
        return None
    cosines = np.array(frames[0].orientation, dtype=np.float64)
    row, column = cosines[:3], cosines[3:]
    positions = np.array([frame.position for frame in frames], dtype=np.float64)
    depths = positions @ np.cross(row, column)
    sizes = [size for frame in frames for size in (frame.thickness, frame.step) if size and size > 0]
    tolerance = float(np.clip(0.02 * min(sizes), SAME_PLACE_MM, LOOSE_MM)) if sizes else 10 * SAME_PLACE_MM
    order = np.argsort(depths, kind="stable")
    numbers = _clusters(depths[order], tolerance)
    flat = np.stack([positions @ row, positions @ column], axis=1)
    members: dict[int, list[int]] = defaultdict(list)
    for at, place in zip(order.tolist(), numbers.tolist(), strict=True):
        members[place].append(at)
    return [
        Placed(frames[at], place, lateral)
        for place, here in members.items()
        for at, lateral in zip(here, _laterals(flat[here], tolerance), strict=True)
    ]


def _clusters(values: np.ndarray, tolerance: float) -> np.ndarray:
    """Cluster numbers of sorted values: a gap of the tolerance starts a new one, and none is wider than that."""
    for limit in (tolerance, SAME_PLACE_MM):
        numbers = np.concatenate([[0], np.cumsum(np.diff(values) >= limit)])
        first = np.flatnonzero(np.diff(numbers, prepend=-1))
        if (values - values[first][numbers] <= tolerance).all():
            return numbers
    return numbers


def _laterals(flat: np.ndarray, tolerance: float) -> list[int]:
    """A number for each different position in the plane, in the order of the positions."""
    if len(flat) == 1 or np.ptp(flat, axis=0).max() < tolerance:
        return [0] * len(flat)
    cells = [tuple(cell) for cell in np.rint((flat - flat.min(axis=0)) / (10 * tolerance)).astype(int).tolist()]
    known = {cell: number for number, cell in enumerate(sorted(set(cells)))}
    return [known[cell] for cell in cells]


# ---------------------------------------------------------------------------------------------------------- attributes


def _attributes(members: Sequence[Placed]) -> Iterator[Attribute]:
    """Names and values of what varies, the most meaningful first."""
    every: list[Attribute] = [(_IN_PLANE, lambda item: float(item.lateral))]
    every += [(name, _trait(name)) for name in VALUES]
    names = members[0].frame.image.dimensions
    if all(item.frame.image.dimensions == names and len(item.frame.indices) == len(names) for item in members):
        every += [(name, _index(at)) for at, name in enumerate(names)]
    every += [(name, _trait(name)) for name in (*PRIVATE.values(), *TEXTS, *TIMES, *ACQUISITIONS)]
    every.append((_ACQUIRED, lambda item: item.frame.acquired))
    every.append((_NUMBER, lambda item: item.frame.image.instance_number))
    every.append((_CONTENT, lambda item: item.frame.content))
    every.append((_INDEX, lambda item: item.frame.index))
    for name, value in every:
        first = value(members[0])
        if any(value(item) != first for item in members):
            yield name, value


def _trait(name: str) -> Callable[[Placed], Any]:
    at = TRAITS.index(name)
    return lambda item: item.frame.traits[at]


def _index(at: int) -> Callable[[Placed], Any]:
    return lambda item: item.frame.indices[at]


def _signature(item: Placed) -> Hashable:
    """Equal for copies of one slice, and for slices whose headers do not differ: their pixels will tell."""
    frame, image = item.frame, item.frame.image
    times = frame.acquired, frame.content, image.instance_number, frame.index
    return item.place, item.lateral, times, frame.indices, frame.traits, frame.slope, frame.intercept


def _order(group: _Group) -> tuple[Any, ...]:
    """The first slice by InstanceNumber, dimensions and time; where these agree, the order of values is kept."""

    def place(item: Placed) -> tuple[Any, ...]:
        frame = item.frame
        return frame.image.instance_number or 0, frame.indices, frame.acquired or 0.0

    return min(map(place, group.members))


# ------------------------------------------------------------------------------------------------------------ splitting


def _told_apart(group: _Group, attributes: Sequence[Attribute]) -> Iterator[_Group]:
    """The group, or the groups that it falls into; those that cannot be told apart stay together."""
    if group.told_apart:
        yield from _separate_stacks(group, attributes)
        return
    left = [(name, value, [value(item) for item in group.members]) for name, value in attributes]
    left = [(name, value, values) for name, value, values in left if _tells(group, values)]
    telling = {name: values for name, _, values in left}
    for way in (_even, _even_nearly, _even_ranks, _mostly, _unfinished, _stacks_apart):
        for name in telling:
            if parts := way(group, name, telling):
                for part in parts:
                    yield from _told_apart(part, [(name, value) for name, value, _ in left])
                return
    yield group


Telling = dict[str, list[Any]]
"""Attributes that take different values in one place, and their values for each member of a group."""


def _tells(group: _Group, values: Sequence[Any]) -> bool:
    return len(set(zip(values, group.at, strict=True))) > len(group.counts)


def _even(group: _Group, name: str, telling: Telling) -> list[_Group]:
    """Groups by value, if each value occurs equally often in every place."""
    return _parts(group, name, telling[name]) if _is_even(group, telling[name]) else []


def _even_nearly(group: _Group, name: str, telling: Telling) -> list[_Group]:
    """As `_even`, for measured numbers that jitter."""
    near = _near(name, telling[name])
    return _parts(group, name, near) if _tells(group, near) and _is_even(group, near) else []


def _even_ranks(group: _Group, name: str, telling: Telling) -> list[_Group]:
    """Groups by the rank of a value in its place, if every place has as many, and values drift from place to place.

    Slices are missing if the steps between ranks differ from place to place, or if a rank would mix values of another
    attribute that agree across places.
    """
    values = telling[name]
    if not name.startswith((*_RANKED, *LAST_RESORTS, _DIMENSION)) or _agreement(group, values) >= AGREE:
        return []
    ranks = _ranks(group, values)
    if ranks is None or not _is_even(group, ranks):
        return []
    table = _table(group, ranks, values)
    if _is_irregular(table, 0.5 if name in (_ACQUIRED, _CONTENT) else 0.2):
        return []
    for other, theirs in telling.items():
        near = _near(other, theirs)
        if other == name or other in LAST_RESORTS or _agreement(group, near) < AGREE:
            continue
        if len(set(zip(near, ranks, strict=True))) > max(ranks):
            return []
    if name in LAST_RESORTS and _times_deny(group, ranks, telling):
        return []
    return _parts(group, name, ranks, _rank_doubts(group, name, ranks, table, telling), rank=True)


def _mostly(group: _Group, name: str, telling: Telling) -> list[_Group]:
    """Groups by value, if most values occur in most places: some volumes are incomplete then."""
    for values in (telling[name], _near(name, telling[name])):
        if not _tells(group, values) or _agreement(group, values) < AGREE:
            continue
        pairs = Counter(place for place, _ in set(zip(group.at, values, strict=True)))
        if name in _BY_VALUE or max(pairs.values()) == len(set(values)):
            return _parts(group, name, values)
    return []


def _unfinished(group: _Group, name: str, telling: Telling) -> list[_Group]:
    """Groups by the rank of a value in its place, if the last of at least three volumes was aborted.

    Nothing else is missing if all values of a volume are below all of the next, steps are regular, and the places run
    side by side, or in turn and the last ones are lacking: a frame missing elsewhere moves later ones of its place.
    """
    if not name.startswith((*_RANKED, *LAST_RESORTS, _DIMENSION)):
        return []
    ranks = _ranks(group, telling[name])
    if ranks is None or max(ranks) < 3 or len(set(zip(group.at, ranks, strict=True))) < len(ranks):
        return []
    table = _table(group, ranks, telling[name])
    there = ~np.isnan(table)
    if not there[:, :-1].all() or there[:, -1].all():
        return []
    whole, finished = table[:, :-1], table[there[:, -1]]
    follow = (np.nanmax(table, axis=0)[:-1] < np.nanmin(table, axis=0)[1:]).all()
    if not follow or _is_irregular(whole, 0.2) or _is_irregular(finished, 0.2):
        return []
    scaled = _is_scaled(whole) and not _is_irregular(finished, 0.1)
    if not (_drift(table) <= DRIFT or scaled or _is_in_turn(table[:, 0], there[:, -1])):
        return []
    return _parts(group, name, ranks, _rank_doubts(group, name, ranks, table, telling), rank=True)


def _stacks_apart(group: _Group, name: str, telling: Telling) -> list[_Group]:
    """Groups by echo time or b-value, if each is a stack in even steps, wherever it lies."""
    near = _near(name, telling[name])
    if name not in _CONTRASTS or len(set(near)) < 2:
        return []
    parts = _parts(group, name, near)
    return parts if all(part.told_apart and len(part.at) > 2 and _is_stack(part) for part in parts) else []


def _separate_stacks(group: _Group, attributes: Sequence[Attribute]) -> list[_Group]:
    """The group, or the stacks by contrast that it consists of if it is not in even steps as a whole."""
    if not _is_stack(group):
        for name, value in attributes:
            if parts := _stacks_apart(group, name, {name: [value(item) for item in group.members]}):
                return parts
    return [group]


def _is_stack(group: _Group) -> bool:
    """Whether slices of different places lie in even steps."""
    lines = np.array([item.frame.position for item in sorted(group.members, key=lambda item: item.place)])
    even = np.linspace(lines[0], lines[-1], len(lines))
    return bool(
        np.linalg.norm(lines - even, axis=1).max() <= UNEVEN * np.linalg.norm(lines[-1] - lines[0]) / len(lines)
    )


def _is_even(group: _Group, values: Sequence[Hashable]) -> bool:
    """Whether each of several values occurs equally often in every place."""
    each: dict[Hashable, list[int]] = defaultdict(list)
    for (value, _), count in Counter(zip(values, group.at, strict=True)).items():
        each[value].append(count)
    counts = each.values()
    return len(each) > 1 and all(len(c) == len(group.counts) and min(c) == max(c) for c in counts)


def _agreement(group: _Group, values: Sequence[Hashable]) -> float:
    """Mean over the values of the fraction of other places in which each occurs; 1 for a single place."""
    pairs = set(zip(values, group.at, strict=True))
    others = len(group.counts) - 1
    return (len(pairs) / len({value for value, _ in pairs}) - 1) / others if others else 1.0


def _near(name: str, values: list[Any]) -> list[Any]:
    """Measured numbers replaced by the lowest of those that follow each other within NEAR; other values as they are."""
    if name not in _MEASURED:
        return values
    lowest: dict[Any, Any] = {}
    before = start = None
    for value in sorted({value for value in values if isinstance(value, float)}):
        if before is None or start is None or value - before > NEAR * abs(value):
            start = value
        lowest[value] = start
        before = value
    return [lowest.get(value, value) for value in values]


def _ranks(group: _Group, values: Sequence[Any]) -> list[int] | None:
    """The rank of each value among those of its place, from 1; None if there is anything but numbers."""
    if not all(isinstance(value, (int, float)) for value in values):
        return None
    here: dict[int, set[float]] = defaultdict(set)
    for place, value in zip(group.at, values, strict=True):
        here[place].add(value)
    ranks = {place: {value: rank for rank, value in enumerate(sorted(some), 1)} for place, some in here.items()}
    return [ranks[place][value] for place, value in zip(group.at, values, strict=True)]


def _table(group: _Group, ranks: list[int], values: Sequence[float]) -> np.ndarray:
    """Values by place and rank, NaN where a place has fewer."""
    known = {(place, rank): value for place, rank, value in zip(group.at, ranks, values, strict=True)}
    every = range(1, max(ranks) + 1)
    return np.array(
        [[known.get((place, rank), np.nan) for rank in every] for place in sorted(group.counts)], np.float64
    )


def _drift(table: np.ndarray) -> float:
    """Largest distance between values of one rank, in the smallest step between ranks of one place.

    Up to a half, each value is nearest to those that it is matched with. A frame that is missing from one place alone
    moves its later values by a step; if every second one is missing, by half of what is then a step.
    """
    spread = np.nanmax(table, axis=0) - np.nanmin(table, axis=0)
    return float(spread.max() / np.nanmin(np.diff(table, axis=1)))


def _is_scaled(whole: np.ndarray) -> bool:
    """Whether all steps of a place are longer by a common factor, as by the heart rate.

    It takes three ranks to see that, and they must agree closely: missing frames give steps of any length.
    """
    spans = whole[:, -1] - whole[:, 0]
    together = np.ptp(whole[:, 0]) <= DRIFT * np.diff(whole, axis=1).min()
    return bool(together and whole.shape[1] > 2 and spans.max() <= 1.75 * spans.min() and not _is_irregular(whole, 0.1))


def _is_in_turn(starts: np.ndarray, last: np.ndarray) -> bool:
    """Whether the places start one after the other in even steps, and the first of them are those of the last volume.

    A place that lacks its first frame starts a step late, as if it came last: in an order or at a time that no scanner
    has.
    """
    turned = len(starts) > 2 and starts[0] > starts[-1]
    starts, last = (starts[::-1], last[::-1]) if turned else (starts, last)
    even = np.linspace(starts[0], starts[-1], len(starts))
    return bool(
        len(starts) > 2
        and (np.diff(starts) >= 0).all()
        and np.abs(starts - even).max() <= 0.25 * (starts[-1] - starts[0])
        and (np.diff(last.astype(int)) <= 0).all()
    )


def _is_irregular(table: np.ndarray, tolerance: float) -> bool:
    """Whether steps between ranks differ from place to place as if frames were missing; a common factor does not count.

    A frame that is missing within a place moves others by at least a quarter of a step. `tolerance` is in steps; times
    of day need more, since they are often whole seconds.
    """
    spans = table[:, -1] - table[:, 0]
    steps = table.shape[1] - 1
    if steps == 1:
        return bool(spans.max() > 1.75 * spans.min())
    shape = (table - table[:, :1]) / spans[:, None]
    return bool(np.ptp(shape, axis=0).max() > tolerance / steps)


def _times_deny(group: _Group, ranks: list[int], telling: Telling) -> bool:
    """Whether times of the same rank have steps that differ from place to place as if frames were missing."""
    return any(
        _ranks(group, telling[name]) == ranks and _is_irregular(_table(group, ranks, telling[name]), 0.5)
        for name in TIMES
        if name in telling
    )


def _rank_doubts(group: _Group, name: str, ranks: list[int], table: np.ndarray, telling: Telling) -> tuple[str, ...]:
    if name in LAST_RESORTS:
        doubt = f"the volumes of this series are told apart only by the order of {name} at each position"
        for other in LAST_RESORTS[:2]:
            if other != name and other in telling and _ranks(group, telling[other]) not in (None, ranks):
                doubt += f"; {other} gives another order"
        return (doubt,)
    whole = table[:, ~np.isnan(table).any(axis=0)]
    limit = DRIFT if whole.shape[1] > 2 else DRIFT_OF_TWO
    if _drift(table) <= limit or _is_scaled(whole):
        return ()
    starts = np.ptp(table[:, 0]) > limit * np.nanmin(np.diff(table, axis=1))
    how = "starts at different values" if starts else "has different steps from position to position"
    return (f"{name} {how}: if files are missing, volumes in its order are mixed",)


def _parts(
    group: _Group, name: str, values: Sequence[Any], warnings: tuple[str, ...] = (), rank: bool = False
) -> list[_Group]:
    """Groups of equal values, with the split noted."""
    members: dict[Any, list[Placed]] = defaultdict(list)
    for item, value in zip(group.members, values, strict=True):
        members[value].append(item)
    every = sorted(members, key=lambda value: (value is not None, isinstance(value, str), _sortable(value)))
    parts = []
    for number, value in enumerate(every, 1):
        shown = text_of(value) if name in _SHOWN and not rank else f"{number} of {len(every)}"
        split, key = (*group.split, (name, shown)), (*group.key, (name, value))
        parts.append(_Group(members[value], split, key, (*group.warnings, *warnings)))
    return parts


def _sortable(value: Any) -> Any:
    return value if isinstance(value, (int, float)) else str(value)


def text_of(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.10g}"
    return "\\".join(map(text_of, value)) if isinstance(value, tuple) else "none" if value is None else str(value)


def _mixed(members: Sequence[Placed]) -> Iterator[tuple[str, str]]:
    """Attributes that should not differ in a volume, and their values."""
    for name in _CONSTANT:
        at = TRAITS.index(name)
        values = [value for item in members if (value := item.frame.traits[at]) is not None]
        if len(different := set(_near(name, values))) > 1:
            shown = sorted(map(text_of, different))
            yield name, ", ".join(shown[:3]) + ", ..." * (len(shown) > 3)
