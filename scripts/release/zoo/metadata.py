"""Checks of configs/metadata.json: the zoo's schema of 2024 as our own rules, and the version."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft7Validator

from release.zoo.folder import Check, Folder

_TEXT = {"type": "string", "minLength": 1}
_VERSION = {"type": "string", "pattern": r"^\d+(\.\d+)+([a-z]+\d*)?([+.-][\w.]+)?$"}
_VERSIONS = {"type": "object", "additionalProperties": _VERSION}
_TENSOR = {
    "type": "object",
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
    "properties": {
        "type": _TEXT,
        "format": _TEXT,
        "modality": _TEXT,
        "num_channels": {"type": "integer", "minimum": 1},
        "spatial_shape": {
            "type": "array",
            "minItems": 1,
            "items": {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^(\*|\d+|(\d+\*)?n|\d+\*\*p)$"}]},
        },
        "dtype": {"enum": ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"]},
        "value_range": {"type": "array", "items": {"type": "number"}},
        "is_patch_data": {"type": "boolean"},
        "channel_def": {"type": "object", "patternProperties": {r"^\d+$": {"type": "string"}}},
    },
}
_TENSORS = {"type": "object", "additionalProperties": _TENSOR}

RULES: dict[str, Any] = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "required": [
        *("schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"),
        *("changelog", "task", "description", "authors", "copyright", "network_data_format"),
    ],
    "properties": {
        "schema": {"type": "string", "pattern": r"meta_schema_20\d{6}\.json$"},
        **dict.fromkeys(("version", "monai_version", "pytorch_version", "numpy_version"), _VERSION),
        "required_packages_version": _VERSIONS,
        "optional_packages_version": _VERSIONS,
        "changelog": {"type": "object", "minProperties": 1, "additionalProperties": _TEXT},
        **dict.fromkeys(("name", "task", "description", "authors", "copyright"), _TEXT),
        "supported_apps": {"type": "object"},
        "references": {"type": "array", "items": {"type": "string"}},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {
                # names that MONAI's tools and MONAI Label look up
                "inputs": {**_TENSORS, "required": ["image"]},
                "outputs": {**_TENSORS, "required": ["pred"]},
                "post_processed_outputs": _TENSORS,
            },
        },
    },
}
"""The rules of meta_schema_20240725.json, plus the changelog and tensor names that the zoo's other checks need."""


def follows_the_rules(folder: Folder) -> Iterator[str]:
    schemas = [RULES] if folder.schema is None else [RULES, json.loads(folder.schema.read_text(encoding="utf-8"))]
    for schema in schemas:
        for error in Draft7Validator(schema).iter_errors(folder.metadata):
            yield f"metadata.json, {'#'.join(map(str, error.absolute_path)) or 'top level'}: {error.message}"


def version_in_changelog(folder: Folder) -> Iterator[str]:
    version = folder.metadata["version"]
    if version not in folder.metadata["changelog"]:
        yield f"version {version} has no entry in the changelog of metadata.json"


def one_version(folder: Folder) -> Iterator[str]:
    version = folder.metadata["version"]
    packaged = tomllib.loads(folder.text("pyproject.toml"))["project"]["version"]
    if packaged != version:
        yield f"pyproject.toml has {packaged}, metadata.json {version}"
    if f"\n## [{version}]" not in folder.text("CHANGELOG.md"):
        yield f"CHANGELOG.md has no section ## [{version}]"
    cited = re.search(r"^version: *[\"']?([^\"'\s]+)", folder.text("CITATION.cff"), re.MULTILINE)
    if cited is None or cited[1] != version:
        yield f"CITATION.cff has {cited[1] if cited else 'no version'}, metadata.json {version}"


CHECKS = (
    Check("metadata.json follows the schema", follows_the_rules),
    Check("the version is in the changelog of metadata.json", version_in_changelog),
    Check("pyproject.toml, CHANGELOG.md and CITATION.cff have that version", one_version),
)
