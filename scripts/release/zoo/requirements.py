"""The packages that metadata.json requires: exact, pinned, complete."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from release.zoo.folder import Check, Folder, Missing

NAMED_APART = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
NEEDED_BY_MONAI = {"fire": "every `python -m monai.bundle` command needs it"}


def required(metadata: dict[str, Any]) -> dict[str, str]:
    """Package -> version, as the zoo installs them with ``==`` before it tests a bundle."""
    listed = {**metadata.get("optional_packages_version", {}), **metadata["required_packages_version"]}
    return {**{package: metadata[key] for package, key in NAMED_APART.items()}, **listed}


def pinned(folder: Folder) -> Iterator[str]:
    lines = [line.split("#")[0].strip() for line in folder.text("constraints.txt").splitlines()]
    versions = {_plain(name): version for name, _, version in (line.partition("==") for line in lines if line)}
    for package, version in required(folder.metadata).items():
        found = versions.get(_plain(package))
        if found != version:
            yield f"{package}=={version} in metadata.json, {found or 'nothing'} in constraints.txt"


def complete(folder: Folder) -> Iterator[str]:
    listed = {_plain(package) for package in required(folder.metadata)}
    for package, why in NEEDED_BY_MONAI.items():
        if package not in listed:
            yield f"{package} is not in required_packages_version: {why}"
    owners = _owners()
    for module, importer in sorted(_imports(folder).items()):
        packages = {_plain(name) for name in owners.get(module, [])}
        if not packages & listed:
            yield f"{module}, imported by {importer}, is not in any package of required_packages_version"


def agree(folder: Folder) -> Iterator[str]:
    if not folder.install:
        raise Missing("the package registry is only asked with --install")
    packages = [f"{package}=={version}" for package, version in required(folder.metadata).items()]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        yield f"pip: {(done.stderr.strip().splitlines() or ['failed'])[-1]}"


@functools.cache
def _owners() -> Mapping[str, list[str]]:
    """Importable module -> installed packages that provide it."""
    return packages_distributions()


def _plain(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def _imports(folder: Folder) -> dict[str, str]:
    """Third-party module -> importer, for everything the configs name; imports inside functions do not count."""
    waiting = [target for path in (folder.root / "configs").glob("*.json") for target in _targets(path)]
    found: dict[str, str] = {}
    seen: set[Path] = set()
    while waiting:
        path = _source(folder.root, waiting.pop())
        if path is None or path in seen:
            continue
        seen.add(path)
        package = path.relative_to(folder.root).parent.as_posix().replace("/", ".")
        waiting.append(package)  # its __init__ runs too
        for name in _imported(path, package):
            if name.split(".")[0] == "bundle":
                waiting.append(name)
            elif name.split(".")[0] not in sys.stdlib_module_names:
                found.setdefault(name.split(".")[0], path.relative_to(folder.root).as_posix())
    return found


def _targets(config: Path) -> list[str]:
    return re.findall(r'"_target_": "(bundle\.[\w.]+)"', config.read_text(encoding="utf-8"))


def _source(root: Path, dotted: str) -> Path | None:
    """File of a dotted name in the package: a module, or the module or package that holds the named object."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        place = root.joinpath(*parts[:count])
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                return path
    return None


def _imported(path: Path, package: str) -> Iterator[str]:
    """Absolute names of a module's top-level imports."""
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            above = ".".join(package.split(".")[: len(package.split(".")) - statement.level + 1])
            module = ".".join(filter(None, [above if statement.level else "", statement.module]))
            yield module
            yield from (f"{module}.{alias.name}" for alias in statement.names if module.split(".")[0] == "bundle")


CHECKS = (
    Check("the package versions of metadata.json match constraints.txt", pinned),
    Check("metadata.json names every package that the configs import", complete),
    Check("the packages of metadata.json can be installed together", agree),
)
