"""Guard bundle runs against mistyped options and invalid values."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Container, Sequence
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

from bundle.networks import NETWORKS
from bundle.options import CONFIG_OPTIONS, SCALES, former_names

ENTRY_POINTS = {
    *("_meta_", "imports", "initialize", "run", "finalize"),
    *("training", "inference", "evaluating"),
    *("bundle_root", "output_dir", "network_def", "dataset", "train", "validate", "preprocessing", "postprocessing"),
    # keys that MONAI adds for experiment tracking
    *("tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0"),
}


def _device_is_there(name: Any) -> bool:
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        return False
    return device.type != "cuda" or (device.index or 0) < torch.cuda.device_count()


def _permits(name: str, value: Any) -> bool:
    about = CONFIG_OPTIONS[name][1]
    if name == "network_name":
        return value in NETWORKS
    return _device_is_there(value) if about.kind == "device" else about.permits(value)


def _range_text(name: str) -> str:
    return ", ".join(NETWORKS) if name == "network_name" else CONFIG_OPTIONS[name][1].range_text


def check_overrides() -> None:
    """Stop a bundle run if its command line has an option that the config does not use.

    MONAI adds a mistyped ``--slice_axes 1`` to the config as a new key that nothing refers to, and runs with the
    default. Call this first in a ``run`` list: any top-level key that no ``@key`` or ``%key`` refers to, and that is
    not an entry point, is an error.

    Raises:
        SystemExit: one line for each option that is unknown (with the closest match) or has an invalid value.
    """
    config = _running_config()
    if config is None:  # not called from ConfigWorkflow.run: there is no command line to check
        return
    if complaints := wrong_options(config):
        raise SystemExit("\n".join(complaints))


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


def wrong_values(config: dict[str, Any]) -> list[str]:
    """One line for each option with an invalid value; expressions (``$...``, ``@...``) are not checked."""
    literal = {
        key: value
        for key, value in config.items()
        if key in CONFIG_OPTIONS and not (isinstance(value, str) and value.startswith(("$", "@", "%")))
    }
    wrong = [
        f"--{key} {value}: must be {_range_text(key)}"
        for key, value in literal.items()
        if value is not None and not _permits(key, value)
    ]
    size, scale = (literal.get(key) for key in ("patch_size", "scale"))
    if isinstance(size, int) and isinstance(scale, int) and scale in SCALES and size % scale:
        wrong.append(f"--patch_size {size}: must be a multiple of --scale, which is {scale}")
    return wrong


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


def _running_config() -> dict[str, Any] | None:
    """Config of the ConfigWorkflow whose ``run`` is on the call stack (MONAI does not pass it on)."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigWorkflow):
            config: Any = owner.parser.config
            return config
        frame = frame.f_back  # type: ignore[assignment]
    return None
