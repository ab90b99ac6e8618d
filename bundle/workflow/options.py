"""Guard bundle runs against mistyped options and invalid values."""

from __future__ import annotations

import difflib
import json
import re
import shlex
import sys
from collections.abc import Container, Sequence
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from bundle.networks import NETWORKS
from bundle.options import CONFIG_OPTIONS, SCALES, Option, former_names
from bundle.workflow.typed_text import as_typed, typed_text

ENTRY_POINTS = {
    *("_meta_", "imports", "initialize", "run", "finalize"),
    *("training", "inference", "evaluating"),
    *("bundle_root", "output_dir", "network_def", "dataset", "train", "validate", "preprocessing", "postprocessing"),
    # keys that MONAI adds for experiment tracking
    *("tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0"),
}


_NAMES = {**CONFIG_OPTIONS, "bundle_root": (".", Option("Folder of the bundle.", kind="path"))}


def _device_is_there(name: Any) -> bool:
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        return False
    return device.type != "cuda" or (device.index or 0) < torch.cuda.device_count()


def _permits(name: str, value: Any) -> bool:
    about = _NAMES[name][1]
    if name == "network_name":
        return isinstance(value, str) and value in NETWORKS
    return _device_is_there(value) if about.kind == "device" else about.permits(value)


def _range_text(name: str) -> str:
    return ", ".join(NETWORKS) if name == "network_name" else _NAMES[name][1].range_text


def check_overrides() -> None:
    """Take names as they were typed, and stop a bundle run whose command line has an option that cannot be meant.

    MONAI adds a mistyped ``--slice_axes 1`` to the config as a new key that nothing refers to, and runs with the
    default. Call this first in a ``run`` list: any top-level key that no ``@key`` or ``%key`` refers to, and that is
    not an entry point, is an error.

    Raises:
        SystemExit: one line for each option that is unknown (with the closest match) or has an invalid value.
    """
    workflow = _running_workflow()
    if workflow is None:  # not called from ConfigWorkflow.run: there is no command line to check
        return
    config: Any = workflow.parser.config
    for name, text in names_as_typed(config, sys.argv[1:]).items():
        _set_name(workflow.parser, name, text)
    if complaints := wrong_options(config):
        raise SystemExit("\n".join(complaints))


def names_as_typed(config: dict[str, Any], arguments: Sequence[str]) -> dict[str, str]:
    """The names among the options of a config (paths, text, words of a list) as they were typed.

    Args:
        config: with the options in it.
        arguments: of the command line.

    Returns:
        Option -> name, without expressions. `None` stays None where that is the default.
    """
    found = {}
    for name, (default, about) in _NAMES.items():
        value = config.get(name)
        wanted = isinstance(value, str) or (about.kind in ("path", "text") and not about.choices)
        text = typed_text(name, arguments)
        nothing = default is None and (value is None or text == "None")
        if name in config and wanted and not nothing:
            meant = as_typed(value, text)
            if isinstance(meant, str) and not _is_expression(meant):
                found[name] = meant
    return found


def _set_name(parser: ConfigParser, name: str, text: str) -> None:
    """Give an option of a config that is running this name; as a value of the config, MONAI would write :: for #."""
    resolved = parser.ref_resolver.resolved_content
    if resolved.get(name, text) != text:
        raise SystemExit(f"--{name} {text}: was used as {resolved[name]!r} before this was noticed; give another name")
    config: Any = parser.config
    config[name] = resolved[name] = text


def _quoted(value: Any) -> str:
    """Text as it has to be written in a shell for MONAI's command line to leave it alone."""
    return shlex.quote(json.dumps(str(value), ensure_ascii=False))


def wrong_options(config: dict[str, Any], given: Container[str] | None = None) -> list[str]:
    """One line for each option that the config does not use (with the closest match) or that has an invalid value.

    Args:
        config: with the options in it.
        given: the options, if known; other unused keys are then not reported.
    """
    components = [old for old in former_names(CONFIG_OPTIONS) if isinstance(config.get(old), str)]
    if replaced := [old for old in components if not config[old].startswith(("$", "@", "%"))]:
        return [_complaint(old, ()) for old in replaced]  # a name that took the place of a component
    unused = unused_keys(config)
    known = [key for key in config if key not in unused]
    return [_complaint(key, known) for key in unused if given is None or key in given] + wrong_values(config)


def _is_expression(value: Any) -> bool:
    """Whether a value of a config is computed: an expression, a reference, or a component."""
    return (
        value.startswith(("$", "@", "%")) if isinstance(value, str) else isinstance(value, dict) and "_target_" in value
    )


def wrong_values(config: dict[str, Any]) -> list[str]:
    """One line for each option with an invalid value; expressions (``$...``) and components are not checked."""
    literal = {key: value for key, value in config.items() if key in _NAMES and not _is_expression(value)}
    wrong = [
        f"--{key} {value}: must be {_range_text(key)}{_how_to_quote(key, value)}"
        for key, value in literal.items()
        if value is not None and not _permits(key, value)
    ]
    wrong += [f"--{key}: is empty" for key, value in literal.items() if _NAMES[key][1].kind == "path" and value == ""]
    size, scale = (literal.get(key) for key in ("patch_size", "scale"))
    if isinstance(size, int) and isinstance(scale, int) and scale in SCALES and size % scale:
        wrong.append(f"--patch_size {size}: must be a multiple of --scale, which is {scale}")
    return wrong


def _how_to_quote(name: str, value: Any) -> str:
    about = _NAMES[name][1]
    if about.kind not in ("path", "text") or about.choices or isinstance(value, str):
        return ""
    return f", but is understood as {value!r}; write the name in two pairs of quotes: --{name} {_quoted('NAME')}"


def unused_keys(config: dict[str, Any]) -> list[str]:
    """Top-level keys of a config that nothing in it refers to and that are not entry points."""
    text = json.dumps(config, default=str)
    return [key for key in config if key not in ENTRY_POINTS and not re.search(rf"[@%]{re.escape(key)}\b", text)]


def _complaint(key: str, known: Sequence[str]) -> str:
    if (now := former_names(CONFIG_OPTIONS).get(key)) is not None:
        return f"--{key} is now called --{now}"
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean --{near[0]}?" if near else ""
    return f"unknown option --{key}: nothing in the configuration uses it{hint}"


def _running_workflow() -> ConfigWorkflow | None:
    """The ConfigWorkflow whose ``run`` is on the call stack (MONAI does not pass it on)."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigWorkflow):
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    return None
