"""Checks of the files: required files, sizes, JSON formatting, checksums, licences, machine-specific paths."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from bundle.data.paths import sha256_of
from release.zoo.folder import Check, Folder

NEEDED = ("LICENSE", "configs/metadata.json", "configs/inference.json", "models/model.pt", "docs/README.md")
NEEDED_OF_A_CHECKOUT = (
    *("configs/train.json", "configs/evaluate.json", "configs/logging.conf", "docs/data_license.txt"),
    *("configs/multi_gpu_train.json", "configs/multi_gpu_evaluate.json", "constraints.txt"),
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff"),
)
LARGEST = 25 * 2**20
"""Size in bytes above which the zoo keeps a file out of git and lists it in large_files.yml."""

WEIGHTS = {".pt", ".safetensors", ".ts", ".onnx"}
IMAGES = {".png", ".jpg", ".jpeg", ".gif", ".svg", ".nii", ".gz", ".nrrd", ".mha", ".dcm"}
WRITTEN = {".py", ".md", ".txt", ".json", ".yaml", ".yml", ".conf", ".csv", ".sh", ".toml", ".cff", ".cpp", ".h", ".j2"}

_HOME = re.compile(r"(?<![\w.~$}*)])/(?:home|root|Users|mnt)/\w|\b[A-Z]:\\{1,2}(?:Users|Documents)")
_ROOTED = re.compile(r"""^\$?['"]?(?:/|~|file:)""")


def needed_files(folder: Folder) -> Iterator[str]:
    for name in (*NEEDED, *(NEEDED_OF_A_CHECKOUT if folder.is_repository else ())):
        if not (folder.root / name).is_file():
            yield f"{name} is missing"


def licence(folder: Folder) -> Iterator[str]:
    text = " ".join((folder.root / "LICENSE").read_text(encoding="utf-8").split())
    if "Apache License Version 2.0" not in text:
        yield "LICENSE is not the Apache License 2.0, which the zoo requires"


def file_sizes(folder: Folder) -> Iterator[str]:
    listed = _large_files(folder)
    for name in folder.files:
        size = (folder.root / name).stat().st_size
        if size > LARGEST and name.as_posix() not in listed:
            yield f"{name}: {size / 2**20:.0f} MiB; list it in large_files.yml"


def _large_files(folder: Folder) -> set[str]:
    path = folder.root / "large_files.yml"
    if not path.is_file():
        return set()
    rows = yaml.safe_load(path.read_text(encoding="utf-8"))["large_files"]
    if lacking := [row.get("path") for row in rows if not {"path", "url", "hash_val", "hash_type"} <= set(row)]:
        raise ValueError(f"large_files.yml: {lacking[0]} needs path, url, hash_val and hash_type")
    return {row["path"] for row in rows}


def json_form(folder: Folder) -> Iterator[str]:
    for name in _configs(folder, ".json"):
        text = (folder.root / name).read_text(encoding="utf-8")
        content = json.loads(text, object_pairs_hook=_no_key_twice)
        if text.rstrip("\n") not in (json.dumps(content, indent=4, ensure_ascii=ascii) for ascii in (True, False)):
            yield f"{name}: not indented by four spaces"


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"the key {twice[0]!r} appears twice in one object")
    return dict(pairs)


def no_machine_paths(folder: Folder) -> Iterator[str]:
    for name in _configs(folder, ".json", ".yaml"):
        content = yaml.safe_load((folder.root / name).read_text(encoding="utf-8"))  # JSON is YAML
        yield from (f"{name}: {text!r} is an absolute path" for text in _strings(content) if _ROOTED.match(text))
    for name in folder.files:
        if name.parts[0] != "tests" and name.suffix in WRITTEN:
            text = (folder.root / name).read_text(encoding="utf-8", errors="replace")
            yield from (f"{name}: {found} is a machine-specific path" for found in sorted(set(_HOME.findall(text))))


def _configs(folder: Folder, *endings: str) -> list[Path]:
    return [name for name in folder.files if name.parts[0] == "configs" and name.suffix in endings]


def _strings(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from _strings(value)
    elif isinstance(content, list):
        for value in content:
            yield from _strings(value)


def checksums(folder: Folder) -> Iterator[str]:
    lines = folder.text("models/sha256sums.txt").splitlines()
    listed = {name.lstrip(" *"): digest for digest, _, name in (line.partition(" ") for line in lines if line)}
    kept = {p.name: p for p in (folder.root / "models").iterdir() if p.suffix in WEIGHTS}
    yield from (f"models/{name} is not in sha256sums.txt" for name in sorted(set(kept) - set(listed)))
    yield from (f"sha256sums.txt lists {name}, which is not there" for name in sorted(set(listed) - set(kept)))
    for name in sorted(set(kept) & set(listed)):
        if sha256_of(kept[name]) != listed[name]:
            yield f"models/{name} does not match its checksum in sha256sums.txt"


def named_licences(folder: Folder) -> Iterator[str]:
    text = (folder.root / "docs/data_license.txt").read_text(encoding="utf-8")
    for name in folder.files:
        if name.suffix.lower() in WEIGHTS | IMAGES:
            places = [f"{place.as_posix()}/" for place in name.parents if place.parts] + [name.as_posix()]
            if not any(re.search(rf"{re.escape(place)}(?![\w-])", text) for place in places):
                yield f"{name}: docs/data_license.txt names neither it nor a folder above it"


CHECKS = (
    Check("the files that the zoo requires are there", needed_files),
    Check("the licence is Apache-2.0", licence),
    Check("no file is above 25 MB, unless large_files.yml lists it", file_sizes),
    Check("configs are JSON indented by four spaces, without duplicate keys", json_form),
    Check("configs, documents and code have no machine-specific paths", no_machine_paths),
    Check("sha256sums.txt has the correct checksum of every weights file", checksums),
    Check("docs/data_license.txt names every image and weights file", named_licences),
)
