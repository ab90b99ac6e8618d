"""What the configs call besides MONAI: a guard against mistyped options, and the folder run."""

from __future__ import annotations

import difflib
import functools
import json
import logging
import re
import sys
from collections.abc import Callable, Container, Sequence
from typing import Any, TypeVar

import torch
from monai.bundle import ConfigWorkflow
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Transform
from torch import nn

from bundle.data import (
    DatasetError,
    VolumeError,
    check_folders,
    evaluation_datalist,
    inference_datalist,
    read_header,
    training_datalist,
)
from bundle.data.errors import root_cause
from bundle.networks import NETWORKS
from bundle.weights import WeightsError, load_weights

logger = logging.getLogger("iconet")

T = TypeVar("T")

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
    **dict.fromkeys(("smooth_prob", "contrast_prob"), ("a share from 0 to 1", _is_share)),
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


def one_line_exit(function: Callable[..., T]) -> Callable[..., T]:
    """Let a bad folder, volume or file of weights end a bundle run or a script with its one line, not a traceback."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> T:
        try:
            return function(*args, **kwargs)
        except (DatasetError, VolumeError, WeightsError) as error:
            raise SystemExit(str(error)) from error

    return wrapped


@one_line_exit
def inference_data(dataset_dir: str, output_dir: str) -> list[dict[str, str]]:
    """:func:`bundle.data.inference_datalist`, once it is clear that results can be written and lie elsewhere."""
    check_folders(dataset_dir, output_dir)
    return inference_datalist(dataset_dir, exclude=output_dir)


@one_line_exit
def training_data(dataset_dir: str, split: str, split_file: str | None, seed: int) -> list[dict[str, str]]:
    """:func:`bundle.data.training_datalist`, with every volume's dimension checked from its header."""
    return _three_dimensional(training_datalist(dataset_dir, split, split_file, seed=seed))


@one_line_exit
def evaluation_data(dataset_dir: str, split: str, split_file: str | None) -> list[dict[str, str]]:
    """:func:`bundle.data.evaluation_datalist`, with every volume's dimension checked from its header."""
    return _three_dimensional(evaluation_datalist(dataset_dir, split, split_file))


def _three_dimensional(items: list[dict[str, str]]) -> list[dict[str, str]]:
    for item in items:
        shape = read_header(item["image"]).get_data_shape()
        if len(shape) != 3:
            raise VolumeError(f"{item['image']}: {len(shape)} dimensions; training and evaluation take 3-D volumes")
    return items


class VolumesFailed(SystemExit):
    """Some volumes of a folder run failed; the message lists them, the exit status is 1."""


def run_folder(
    evaluator: SupervisedEvaluator, data: Sequence[dict], preprocessing: Transform, key: str = "image"
) -> None:
    """Run an evaluator over volumes one by one; a bad one is reported and the rest goes on.

    Args:
        evaluator: MONAI evaluator whose post-processing writes the result.
        data: items with the path of the volume under ``key``.
        preprocessing: transform of an item.

    Raises:
        VolumesFailed: after the last volume, if any failed.
    """
    failures: list[str] = []
    for number, item in enumerate(data, start=1):
        name = str(item[key])
        logger.info("volume %d of %d: %s", number, len(data), name)
        try:
            _run_on(evaluator, DataLoader(Dataset([preprocessing(dict(item))]), batch_size=1))
        except Exception as error:
            reason = root_cause(error)
            failures.append(reason if name in reason else f"{name}: {reason}")
            logger.error("failed: %s", failures[-1])
            logger.debug("traceback", exc_info=True)
    logger.info("%d of %d volumes done", len(data) - len(failures), len(data))
    if failures:
        raise VolumesFailed("\n".join([f"{len(failures)} of {len(data)} volumes failed:", *failures]))


def _run_on(evaluator: SupervisedEvaluator, loader: DataLoader) -> None:
    """Run an evaluator on other data than it was built with, whatever a run before this one left in its state."""
    evaluator.data_loader = loader
    evaluator.state.epoch, evaluator.state.iteration, evaluator.state.epoch_length = 0, 0, len(loader)
    evaluator._internal_run_generator = None  # ignite keeps that of a failed run, and would only finish it
    evaluator.run()
    if evaluator.state.iteration != len(loader):
        raise RuntimeError("the evaluator did not run")


@one_line_exit
def prepare_network(network: nn.Module, weights: str | None, device: str) -> nn.Module:
    """Load a plain state dict into a network, if one is given, and move it to the device.

    Args:
        network: freshly built.
        weights: file of tensors (``torch.save`` of a state dict), or ``None`` to keep the initial values.
        device: ``cpu``, ``cuda``, ``cuda:1``...

    Raises:
        SystemExit: the file is missing, holds more than tensors, or does not fit; nothing is loaded in part.
    """
    if weights is not None:
        load_weights(network, weights)
    return network.to(device)
