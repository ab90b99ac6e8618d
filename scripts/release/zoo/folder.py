"""The folder under test, and how a check reports what it found."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

NOT_SHIPPED = {"__pycache__", "runs", "eval", "outputs", "demo", "build", "dist", "site"}


class Missing(Exception):
    """The subject of the check is missing and not required; the message says what it is."""


@dataclass(frozen=True)
class Folder:
    """A bundle folder.

    Attributes:
        root: the folder: a checkout of the repository, or a slim bundle exported from it.
        work: an empty folder for whatever a check writes.
        schema: a JSON schema of the zoo, checked in addition to the project's own rules.
        install: also ask the package registry whether the required versions are compatible.
    """

    root: Path
    work: Path
    schema: Path | None = None
    install: bool = False

    @property
    def is_repository(self) -> bool:
        """Whether it is a checkout, which must be complete; an exported folder may lack what only the project needs."""
        return (self.root / "pyproject.toml").is_file()

    @cached_property
    def files(self) -> list[Path]:
        """Files relative to the root, without hidden folders: those git tracks or would add, else all except caches."""
        command = ["git", "-C", str(self.root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        if (self.root / ".git").exists():
            names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
            paths = {Path(name) for name in names if name}
        else:
            paths = {p.relative_to(self.root) for p in self.root.rglob("*")}
            paths = {p for p in paths if not NOT_SHIPPED.intersection(p.parts)}
        return sorted(p for p in paths if not p.parts[0].startswith(".") and (self.root / p).is_file())

    def text(self, name: str | Path) -> str:
        """Content of a file; raises Missing if an exported folder lacks it, FileNotFoundError in a checkout."""
        path = self.root / name
        if not path.is_file() and not self.is_repository:
            raise Missing(f"an exported folder without {name}")
        return path.read_text(encoding="utf-8")

    def json(self, name: str | Path) -> Any:
        """Parsed content of a JSON file."""
        return json.loads(self.text(name))

    def config(self, name: str) -> Path:
        """A config by file name; raises Missing if an exported folder lacks it, FileNotFoundError in a checkout."""
        self.text(Path("configs") / name)
        return self.root / "configs" / name

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """configs/metadata.json."""
        content: dict[str, Any] = json.loads((self.root / "configs/metadata.json").read_text(encoding="utf-8"))
        return content

    @cached_property
    def scales(self) -> list[int]:
        """The default scale of inference.json, and the scales of further weights ``models/model_x<n>.pt``."""
        names = [p.stem.removeprefix("model_x") for p in (self.root / "models").glob("model_x*.pt")]
        return sorted({int(self.json("configs/inference.json")["scale"]), *(int(n) for n in names if n.isdecimal())})

    def copy(self, name: str) -> Path:
        """Copy the files to a new folder, since training an exported bundle replaces the weights in its folder."""
        for file in self.files:
            target = self.work / name / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root / file, target)
        return self.work / name

    @cached_property
    def volumes(self) -> Path:
        """Three small volumes (X, Y, Z) = (40, 32, 4) of three subjects, written on first use."""
        random = np.random.default_rng(0)
        folder = self.work / "volumes"
        folder.mkdir()
        for number in range(3):
            voxels = random.uniform(1, 200, (40, 32, 4)).astype(np.float32)
            nib.save(nib.Nifti1Image(voxels, np.diag([1.5, 1.25, 4.0, 1.0])), folder / f"sub-{number}_T1.nii.gz")
        return folder


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: a statement that is true for a good bundle.
        problems: yields one line per fault; may raise Missing, and any other exception counts as a fault.
    """

    name: str
    problems: Callable[[Folder], Iterable[str]]
