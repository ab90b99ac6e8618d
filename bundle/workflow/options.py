"""The guard of bundle runs against mistyped options and values that cannot be meant."""

from __future__ import annotations

import difflib
import json
import logging
import re
import sys
from collections.abc import Callable, Container, Sequence
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

from bundle.networks import NETWORKS

logger = logging.getLogger("iconet")

ENTRY_POINTS = {
    *("_meta_", "imports", "initialize", "run", "finalize"),
    *("training", "inference", "evaluating"),
    *("bundle_root", "output_dir", "network_def", "dataset", "train", "validate", "preprocessing", "postprocessing"),
    # keys that MONAI adds for experiment tracking
    *("tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0"),
}


def _is_device(name: Any) -> bool:
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        return False
    return device.type != "cuda" or (device.index or 0) < torch.cuda.device_count()


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_share(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) and 0 <= value <= 1


ALLOWED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        ("amp", "resume", "return_stages", "train_consistency"), ("True or False", lambda v: isinstance(v, bool))
    ),
    **dict.fromkeys(
        (
            "slice_batch",
            "epochs",
            "updates_per_epoch",
            "batch_size",
            "patches_per_volume",
            "patch_size",
            "val_interval",
        ),
        ("a positive whole number", _is_count),
    ),
    "scale": ("2, 4 or 8", lambda v: type(v) is int and v in (2, 4, 8)),
    "slice_axis": ("0, 1 or 2, an array axis of the volumes", lambda v: type(v) is int and v in (0, 1, 2)),
    "network_name": (", ".join(NETWORKS), lambda v: v in NETWORKS),
    "data_consistency": ("a weight from 0 (off) to 1", _is_share),
    "smooth_prob": ("a share from 0 to 1", _is_share),
    "device": ("a device of this machine, such as cpu or cuda", _is_device),
    "nonfinite": ("error or zero", lambda v: v in ("error", "zero")),
}
"""Options whose value can be checked before anything is built: what to say, and the check."""


def check_overrides() -> None:
    """Stop a bundle run whose command line named an option that the config does not use.

    MONAI adds a mistyped ``--slice_axes 1`` to the config as a new key that nothing refers to, and runs with the
    default. Call this first in a ``run`` list: any top-level key that no ``@key`` or ``%key`` names, and that is no
    entry point, is an error.

    Raises:
        SystemExit: one line for each option that is unknown (with its nearest neighbour) or has a wrong value.
    """
    config = _running_config()
    if config is None:  # not inside ConfigWorkflow.run: there is no command line to check
        return
    if complaints := wrong_options(config):
        raise SystemExit("\n".join(complaints))


def wrong_options(config: dict[str, Any], given: Container[str] | None = None) -> list[str]:
    """One line for each option that nothing in the config uses (with its nearest neighbour) or has a wrong value.

    Args:
        config: with the options in it.
        given: the options, where they are known; other keys that nothing uses are no one's mistake then.
    """
    unused = unused_keys(config)
    known = [key for key in config if key not in unused]
    return [_complaint(key, known) for key in unused if given is None or key in given] + wrong_values(config)


def wrong_values(config: dict[str, Any]) -> list[str]:
    """One line for each option whose value cannot be meant; expressions (``$...``, ``@...``) are not looked at."""
    given = {key: value for key, value in config.items() if key in ALLOWED}
    literal = {key: v for key, v in given.items() if not (isinstance(v, str) and v.startswith(("$", "@", "%")))}
    wrong = [
        f"--{key} {value}: must be {ALLOWED[key][0]}" for key, value in literal.items() if not ALLOWED[key][1](value)
    ]
    batch, patches = (literal.get(key) for key in ("batch_size", "patches_per_volume"))
    if isinstance(batch, int) and isinstance(patches, int) and patches > 0 and batch % patches:
        wrong.append(f"--batch_size {batch}: must be a multiple of --patches_per_volume, which is {patches}")
    return wrong


def unused_keys(config: dict[str, Any]) -> list[str]:
    """Top-level keys of a config that nothing in it refers to and that are no entry point."""
    text = json.dumps(config, default=str)
    return [key for key in config if key not in ENTRY_POINTS and not re.search(rf"[@%]{re.escape(key)}\b", text)]


def _complaint(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean --{near[0]}?" if near else ""
    return f"unknown option --{key}: nothing in the configuration uses it{hint}"


def _running_config() -> dict[str, Any] | None:
    """Config of the ConfigWorkflow whose ``run`` is on the call stack (MONAI passes it to nobody)."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigWorkflow):
            config: Any = owner.parser.config
            return config
        frame = frame.f_back  # type: ignore[assignment]
    return None
