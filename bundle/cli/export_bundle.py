"""`iconet-sr export-bundle`: a self-contained bundle folder with one network and one scale.

The repository is a bundle with many networks and both scales. MONAI Label builds the network of a folder once, takes
``models/model.pt`` as its weights and reads only ``configs/inference.json``, so one folder is one model. The folder
holds only the part of the package that inference and fine-tuning through the configs import.

PyTorch is imported inside the functions that need it, to keep `--help` fast.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from bundle.cli.arguments import DeclaredCommand, options_of
from bundle.inference.shipped import LICENCES, PACKAGE, configs_folder, licence_text, models_folder
from bundle.options import DEFAULT_NETWORK, InferenceOptions

PARTS = ("physics", "ops", "networks", "data", "trust", "transforms", "inference", "training", "workflow")
"""Subpackages that the configs need."""
MODULES = ("options.py",)
"""Top-level modules that they need."""
LEFT_OUT = ("dicom", "baselines", "api.py", "model.py")
"""Parts of :data:`PARTS` that are not needed: the configs read only NIfTI and run a single network."""
INIT = '"""The part of ICONet SR that the configs of this folder need."""\n'
RECORD = "configs/exported.json"
"""This file marks an exported folder: the options of the export, and the checksum of every other file."""
TASK_WORDS = ("detection", "segmentation", "classification", "deepedit", "deepgrow")
"""MONAI Label takes a bundle with one of these words in its name for a different kind of model."""
BASELINES = "bundle.networks.baselines."
WEIGHTS = "$@bundle_root + '/models/model.pt'"
INPUT = "$@bundle_root + '/input'"

Config = dict[str, Any]
PathLike = str | os.PathLike[str]


class ExportError(ValueError):
    """The folder cannot be written; the message is one line."""


@click.command(
    "export-bundle",
    cls=DeclaredCommand,
    options_of=InferenceOptions,
    short_help="Write a bundle folder for `python -m monai.bundle` and MONAI Label.",
)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@options_of(InferenceOptions, only=("scale", "network_name", "weights"))
def command(folder: Path, scale: int, network_name: str, weights: Path | None) -> None:
    """Write FOLDER as a MONAI bundle with one network and one scale.

    It holds the configs, one weights file and the part of the package that they need: `python -m monai.bundle run`
    works in it, and MONAI Label serves it. A folder from an earlier export with the same options is replaced, unless
    something in it has changed since.
    """
    try:
        out = export_bundle(folder, scale, network_name, weights)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out}: {network_name}, {scale}x")


def export_bundle(
    out: PathLike, scale: int, network_name: str = DEFAULT_NETWORK, weights: PathLike | None = None
) -> Path:
    """Write the bundle folder `out` atomically, replacing an earlier export with the same options.

    Args:
        out: the folder to write; its name has only letters, digits, ``_ . -`` and none of :data:`TASK_WORDS`.
        scale: factor of the network.
        network_name: a key of :data:`bundle.networks.NETWORKS`.
        weights: plain state dict or safetensors; the shipped ones by default.

    Raises:
        ExportError: the name is invalid, or `out` is not an exported folder, was exported with other options, or was
            trained or edited since.
        WeightsError: the weights are missing or for another network.
        ValueError: unknown network or scale.
    """
    from bundle.data.atomic import replacing_folder
    from bundle.inference.shipped import weights_path
    from bundle.inference.weights import load_weights, save_atomically
    from bundle.networks import build_network

    out = Path(out).resolve()
    _check_name(out.name)
    options = {"network_name": network_name, "scale": scale, "weights": "shipped" if weights is None else "given"}
    source = Path(weights or weights_path(models_folder(), network_name, scale))
    network = build_network(network_name, scale)
    load_weights(network, source)  # fail before writing anything if the weights do not fit
    _check_target(out, options)
    with replacing_folder(out) as partial:
        _copy_package(partial / "bundle", with_baselines=type(network).__module__.startswith(BASELINES))
        _copy_texts(partial)
        (partial / "models").mkdir()
        save_atomically(network.state_dict(), partial / "models/model.pt")
        _write_configs(partial, scale, network_name)
        _write_page(partial, scale, network_name)
        _write_json(partial / RECORD, {"options": options, "sha256": _digests(partial)})
    return out


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ExportError(f"{name!r}: use only letters, digits, _ . - in the folder name; MONAI Label fails on others")
    if found := [word for word in TASK_WORDS if word in name.lower()]:
        raise ExportError(f"{name}: choose a name without {found[0]!r}, which MONAI Label takes for another task")


def _check_target(out: Path, options: Config) -> None:
    """Never delete anyone's work: an export replaces only an unchanged export with the same options."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        record = _read_json(out / RECORD)
        before, written = record["options"], dict(record["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{out}: exists and is not an exported bundle; choose another folder") from error
    if before != options:
        raise ExportError(f"{out}: was exported with another network, scale or weights; move it away first")
    found = _digests(out)
    changed = sorted(name for name in written.keys() | found.keys() if written.get(name) != found.get(name))
    if "models/model.pt" in changed:
        raise ExportError(f"{out}: its weights were trained or changed after the export; move it away first")
    if changed:
        raise ExportError(f"{out}: {changed[0]} was changed after the export; move the folder away first")


def _digests(folder: Path) -> dict[str, str]:
    """Path -> checksum of every file except the record and Python byte code."""
    from bundle.data.paths import sha256_of

    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    kept = {name: path for name, path in files.items() if name != RECORD and not name.endswith(".pyc")}
    return {name: sha256_of(path) for name, path in kept.items()}


def _copy_package(out: Path, with_baselines: bool) -> None:
    left_out = LEFT_OUT if not with_baselines else tuple(name for name in LEFT_OUT if name != "baselines")
    unwanted = shutil.ignore_patterns("__pycache__", "*.pyc", ".*", *left_out)
    for room in PARTS:
        shutil.copytree(PACKAGE / room, out / room, ignore=unwanted)
    for name in MODULES:
        shutil.copyfile(PACKAGE / name, out / name)
    (out / "__init__.py").write_text(INIT, encoding="utf-8")


def _copy_texts(out: Path) -> None:
    (out / "docs").mkdir()
    (out / "configs").mkdir()
    for name in LICENCES:
        (out / name).write_text(licence_text(name), encoding="utf-8")
    for name in ("logging.conf", "multi_gpu_train.json"):
        shutil.copyfile(configs_folder() / name, out / "configs" / name)


def _write_configs(out: Path, scale: int, network_name: str) -> None:
    changes = {"inference.json": slim_inference, "train.json": slim_training, "metadata.json": slim_metadata}
    for name, change in changes.items():
        _write_json(out / "configs" / name, change(_read_json(configs_folder() / name), scale, network_name))


def slim_inference(config: Mapping[str, Any], scale: int, network_name: str) -> Config:
    """`inference.json` for one network and scale, one volume at a time.

    A caller's request for another data type is dropped: MONAI Label's 3D Slicer plug-in asks for uint8, meant for label
    maps, which would wrap every intensity above 255.
    """
    new = _fixed(config, scale, network_name)
    new["preprocessing"]["transforms"].append(
        {"_target_": "bundle.transforms.one_channel.RequireOneChanneld", "keys": "image"}
    )
    last = new["postprocessing"]["transforms"][-1]
    if last["_target_"] != "DeleteItemsd":  # without it MONAI Label resizes the result to the input's matrix
        raise ExportError("configs/inference.json: its postprocessing must end with DeleteItemsd")
    last["keys"].append("result_dtype")
    return new


def slim_training(config: Mapping[str, Any], scale: int, network_name: str) -> Config:
    """`train.json` for fine-tuning ``models/model.pt`` in place, on data lists that MONAI Label inserts.

    The weights are replaced only if the validation volumes show an improvement; without validation volumes (MONAI Label
    holds out a fifth, so none of fewer than three), by the weights after the last epoch. The "label" of MONAI Label's
    items is not used: the low-resolution image is made from the volume itself.
    """
    new = _fixed(config, scale, network_name)
    new.update(output_dir="$@bundle_root + '/finetune'", val_interval=1)
    new.update(updates_per_epoch=50, learning_rate=1e-4, warmup_updates=20)
    new["best_model"]["path"] = WEIGHTS
    # MONAI Label sets the trainer's max_epochs, not the option epochs
    new["lr_scheduler"]["t_total"] = "$@train#trainer#max_epochs * @updates_per_epoch"
    new["load_volume"].insert(0, {"_target_": "SelectItemsd", "keys": "image"})
    handlers = new["train"]["handlers"]
    _handler(handlers, "ValidationHandler")["exec_at_start"] = True  # the score of the current weights
    handlers.append(
        {
            "_target_": "CheckpointSaver",
            "_disabled_": "$len(@validate#dataset#data) > 0",
            "save_dir": "$@bundle_root + '/models'",
            "save_dict": {"model": "$@ema.ema_model"},
            "save_final": True,
            "final_filename": "model.pt",
        }
    )
    # no guard against mistyped options: it would report those that MONAI Label makes unused
    new["run"] = [step for step in new["run"] if not _is_guard(step)]
    return new


def slim_metadata(metadata: Mapping[str, Any], scale: int, network_name: str) -> Config:
    """`metadata.json` with the scale, in words and in the spatial shapes."""
    new: Config = json.loads(json.dumps(metadata))
    new["name"] = f"{metadata['name']} x{scale}"
    new["task"] = f"In-plane {scale}x super-resolution of MR and PET volumes"
    new["description"] = f"In-plane {scale}x super-resolution ({network_name}). {metadata['description']}"
    formats = new["network_data_format"]
    sizes = [f"{8 * scale}*n" for _ in formats["inputs"]["image"]["spatial_shape"]]
    formats["outputs"]["pred"]["spatial_shape"] = sizes
    return new


def _fixed(config: Mapping[str, Any], scale: int, network_name: str) -> Config:
    new: Config = json.loads(json.dumps(config))
    new.update(scale=scale, network_name=network_name, weights=WEIGHTS, dataset_dir=INPUT)
    return new


def _handler(handlers: list[Config], name: str) -> Config:
    return next(handler for handler in handlers if handler["_target_"] == name)


def _is_guard(step: Any) -> bool:
    return isinstance(step, dict) and step.get("_target_") == "bundle.workflow.check_overrides"


def _read_json(path: Path) -> Config:
    config: Config = json.loads(path.read_text(encoding="utf-8"))
    return config


def _write_json(path: Path, config: Config) -> None:
    path.write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")


PAGE = """# Model Overview

ICONet SR: in-plane {scale}x super-resolution of MR and PET volumes, slice by slice ({network_name}). This folder holds
one network with its weights, written by `iconet-sr export-bundle` for applications that serve bundles.

Input: a 3-D NIfTI volume of any matrix and intensity. Output: float32, in-plane matrix times {scale}, in-plane voxel
size divided by {scale}, same origin, units of the input.

## MONAI Bundle Commands

From this folder:

```
python -m monai.bundle run inference --config_file configs/inference.json --dataset_dir IN --output_dir OUT
python -m monai.bundle run training --config_file configs/train.json --dataset_dir HIGH_RESOLUTION_VOLUMES
```

Training starts from `models/model.pt` and replaces it when the score on the validation volumes improves.

## License

Apache-2.0, see `LICENSE`; the data behind the weights: `data_license.txt`. Not a medical device.
"""


def _write_page(out: Path, scale: int, network_name: str) -> None:
    (out / "docs/README.md").write_text(PAGE.format(scale=scale, network_name=network_name), encoding="utf-8")
