"""What a run leaves: one table of everything, and the files that a next run or another machine needs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from comparison.records import write_text
from comparison.tables import markdown

from gpu.parts import cut, gather
from gpu.trainings import BEST, CHECKPOINT, RECORD, WEIGHTS, Training

MIB = 1 << 20
TABLES = ("table.md", "table.json")


@dataclass(frozen=True)
class Room:
    """What may come back: so many files of so many MiB each, and so many MiB in all."""

    files: int = 8
    mib: float = 16.0
    total: float = 64.0

    @property
    def part(self) -> int:
        """Largest part in bytes, a little below the limit."""
        return int((self.mib - 0.05) * MIB)

    @property
    def archive(self) -> int:
        """Largest archive in bytes, beside the two tables."""
        return min(int((self.total - 0.5) * MIB), (self.files - len(TABLES)) * self.part)


def write_tables(folder: Path, content: Mapping[str, Any]) -> None:
    """Write ``table.json`` with everything and ``table.md`` to read."""
    write_text(folder / TABLES[1], json.dumps(content, indent=1) + "\n")
    write_text(folder / TABLES[0], "\n\n".join(section.strip() for section in _sections(content)) + "\n")


def described(training: Training) -> dict[str, Any]:
    """A training as a row of the table."""
    record, entry = training.record, training.entry
    keys = ("state", "updates", "seconds", "timed", "device", "validation", "why", "evaluation_failed")
    known = {key: record[key] for key in keys if record.get(key)}
    about = {"name": entry.name, "network": entry.network_name, "scale": entry.scale}
    return {**about, "planned": training.planned, **known}


def pack_results(trainings: Sequence[Training], reports: Sequence[Path], folder: Path, room: Room) -> list[str]:
    """Write the parts of one archive to a folder, the most important first, as far as there is room.

    First the averaged weights and records of all trainings, then the weights of the best validations that differ from
    them, then the state of the unfinished ones (network, optimiser, schedule), without which they start again.

    Returns:
        the names that did not fit.
    """
    data, left_out = gather(_items(trainings, reports), room.archive)
    cut(data, folder, room.part)
    return left_out


def _items(trainings: Sequence[Training], reports: Sequence[Path]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    for path in reports:
        yield path.name, path.read_bytes
    own = [training for training in trainings if not training.foreign and (training.folder / RECORD).is_file()]
    for name in (RECORD, WEIGHTS, "training.log"):
        for training in own:
            if (path := training.folder / name).is_file():
                yield f"{training.entry.name}/{name}", path.read_bytes
    for training in own:
        best, last = training.folder / BEST, training.folder / WEIGHTS
        if best.is_file() and last.is_file() and not _same_tensors(best, last):
            yield f"{training.entry.name}/{BEST}", best.read_bytes
    for training in own:
        path = training.folder / CHECKPOINT
        if path.is_file() and not training.finished:
            yield f"{training.entry.name}/state.pt", partial(_without_weights, path)


def _tensors(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def _same_tensors(one: Path, other: Path) -> bool:
    first, second = _tensors(one), _tensors(other)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def _without_weights(path: Path) -> bytes:
    """A checkpoint without the averaged weights, which travel as a file of their own."""
    buffer = io.BytesIO()
    torch.save({key: value for key, value in _tensors(path).items() if key != "ema"}, buffer)
    return buffer.getvalue()


def rebuild_checkpoints(folder: Path) -> list[str]:
    """Make ``last.pt`` of each training from its ``state.pt`` and averaged weights; return the trainings' names."""
    names = []
    for path in sorted(folder.glob("*/state.pt")):
        torch.save({**_tensors(path), "ema": _tensors(path.with_name(WEIGHTS))}, path.with_name(CHECKPOINT))
        path.unlink()
        names.append(path.parent.name)
    return names


# ------------------------------------------------------------------------------------------------------ the table


def _sections(content: Mapping[str, Any]) -> Iterator[str]:
    yield f"# Run of {content['plan']} on {content['device']}, {content['minutes']:g} minutes"
    yield "\n".join(f"* {note}" for note in content["notes"])
    yield "## Trainings\n\n" + _trainings(content["trainings"])
    if proof := content["kernels"].get("proof"):
        verdict = {True: "All hold.", False: "**Not all hold.**", None: "Not all were reached."}
        head = f"## Kernels against float64 ({content['kernels'].get('backend', '')})"
        yield f"{head}\n\n{verdict[content['kernels'].get('proved')]}\n\n{_proof(proof)}"
    if times := content["kernels"].get("times"):
        header = ["what", "size", "variant", "ms", "floor, ms"]
        rows = [[_text(row[key]) for key in ("what", "size", "variant", "ms", "floor_ms")] for row in times]
        yield "## Times of the kernels\n\n" + markdown(header, rows)
    if speed := content["speed"].get("speed"):
        yield "## Speed of the step alone\n\n" + _speed(speed)


def _trainings(rows: Sequence[Mapping[str, Any]]) -> str:
    header = [
        "training",
        "state",
        "updates",
        "of",
        "updates a second",
        "PSNR, dB",
        "gain over Fourier, dB",
        "at update",
    ]
    table = []
    for row in rows:
        updates, last = row.get("updates", 0), row.get("validation", {})
        state = f"{row['state']}: {row['why']}" if row.get("why") else row["state"]
        figures = [f"{last['psnr']:.2f}", f"{last['gain']:+.2f}", f"{last['updates']:,}"] if last else ["", "", ""]
        speed = f"{row.get('timed', 0) / row['seconds']:.2f}" if row.get("seconds") else ""
        table.append([row["name"], state.replace("|", "/"), f"{updates:,}", f"{row['planned']:,}", speed, *figures])
    return markdown(header, table)


def _proof(rows: Sequence[Mapping[str, Any]]) -> str:
    table = []
    for row in rows:
        errors = ", ".join(f"{name} {_text(value)}" for name, value in row["errors"].items())
        size = " x ".join(map(str, row["shape"]))
        table.append([row["kernel"], size, row["dtype"], errors.replace("|", "/"), "yes" if row["ok"] else "**no**"])
    return markdown(["kernel", "shape", "type", "largest errors, as shares of the largest value", "holds"], table)


def _speed(rows: Sequence[Mapping[str, Any]]) -> str:
    keys = ("parameters", "batch", "patch", "updates_per_second", "slices_per_second", "training_mib")
    header = ["network", "parameters", "batch", "patch", "updates a second", "slices a second", "MiB in training"]
    table = []
    for row in rows:
        head = f"{row['network']} {row['scale']}x{', bf16' if row.get('bf16') else ''}"
        rest = [row["failed"].replace("|", "/")] if "failed" in row else [_text(row[key]) for key in keys]
        table.append([head, *rest, *[""] * (len(keys) - len(rest))])
    return markdown(header, table)


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
