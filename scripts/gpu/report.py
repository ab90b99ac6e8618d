"""Measurements as JSON, written after every row."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch
from comparison.records import write_text


def device_name(device: str) -> str:
    """Of a GPU its model, else ``cpu``."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


class Report:
    """A file of measurements.

    Args:
        path: of the file; an old one is replaced.
        device: ``cuda`` or ``cpu``.
    """

    def __init__(self, path: Path, device: str) -> None:
        self.path = path
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        self.content: dict[str, Any] = {"device": device_name(device), **versions}

    def set(self, **about: Any) -> None:
        """Set values and write the file."""
        self.content |= about
        write_text(self.path, json.dumps(self.content, indent=1) + "\n")

    def add(self, table: str, row: dict[str, Any]) -> None:
        """Add a row to a table, write the file and print the row."""
        self.content.setdefault(table, []).append(row)
        self.set()
        print(table, " ".join(f"{key}={value}" for key, value in row.items()), flush=True)


def read_report(path: Path) -> dict[str, Any]:
    """The content of a report, empty if there is none."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content
