"""Checks that build networks: MONAI's own, called through its functions, and what they leave out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import monai.bundle
import torch
from monai.bundle import ConfigParser
from torch import Tensor

from bundle.workflow.options import unused_keys, wrong_values
from release.zoo.folder import Check, Folder, Missing
from release.zoo.metadata import RULES
from release.zoo.runs import TINY_TRAINING

WORKFLOWS = {"train.json": "training", "evaluate.json": "evaluation", "inference.json": "inference"}


def verified_by_monai(folder: Folder) -> Iterator[str]:
    """`monai.bundle verify_metadata`, offline: it does not download the schema if the file exists."""
    schema = folder.work / "schema.json"
    schema.write_bytes(folder.schema.read_bytes() if folder.schema else json.dumps(RULES).encode())
    monai.bundle.verify_metadata(meta_file=str(folder.root / "configs/metadata.json"), filepath=str(schema))
    return iter(())


def properties(folder: Folder) -> Iterator[str]:
    for name, kind in WORKFLOWS.items():
        if not (folder.root / "configs" / name).is_file() and not folder.is_repository:
            continue
        workflow = monai.bundle.create_workflow(
            config_file=str(folder.config(name)),
            workflow_type=kind,
            logging_file=False,
            bundle_root=str(folder.root),
            dataset_dir=str(folder.volumes),
            output_dir=str(folder.work / "properties"),
        )
        try:
            wrong = workflow.check_properties()
        except KeyError as error:  # this is how MONAI reports a missing required property
            wrong = [str(error)]
        yield from (f"{name}: {text}" for text in wrong or ())
        workflow.finalize()


def net_in_out(folder: Folder) -> Iterator[str]:
    for scale in folder.scales:
        monai.bundle.verify_net_in_out(
            net_id="network_def",
            meta_file=str(folder.root / "configs/metadata.json"),
            config_file=str(folder.config("inference.json")),
            device="cpu",
            bundle_root=str(folder.root),
            scale=scale,
        )
    return iter(())


def spatial_sizes(folder: Folder) -> Iterator[str]:
    """The zoo only compares channels and types: a 4x network would pass with the metadata of a 2x network."""
    formats = folder.metadata["network_data_format"]
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    default = folder.json("configs/inference.json")["scale"]
    for scale in folder.scales:
        network = _inference(folder, scale).get_parsed_content("network_def").eval()
        for n in (1, 3):
            size = [_size(entry, n) for entry in image["spatial_shape"]]
            expected = [_size(entry, n) for entry in pred["spatial_shape"]]
            if scale != default:  # the metadata describe the default
                expected = [scale * length for length in size]
            with torch.no_grad():
                found = list(network(torch.rand(1, image["num_channels"], *size)).shape[2:])
            if found != expected:
                yield f"scale {scale}: {size} gives {found}, expected {expected}"


def _size(entry: int | str, n: int) -> int:
    found = re.fullmatch(r"(?:(\d+)\*)?n|(\d+)", str(entry))
    if found is None:
        raise ValueError(f"spatial_shape {entry!r}: give a number, or n or a multiple of it such as '8*n'")
    return int(found[2]) if found[2] else int(found[1] or 1) * n


def _inference(folder: Folder, scale: int) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(folder.config("inference.json")))
    parser.update({"bundle_root": str(folder.root), "scale": scale})
    return parser


def plain_weights(folder: Folder) -> Iterator[str]:
    paths = [p for p in sorted((folder.root / "models").iterdir()) if p.suffix in (".pt", ".safetensors")]
    for path in paths:
        try:
            state = _tensors(path)
        except Exception as error:  # on a damaged file, the readers can raise anything
            yield f"models/{path.name}: not a file of plain tensors: {' '.join(str(error).split())[:200]}"
            continue
        if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
            yield f"models/{path.name}: holds something other than named tensors"


def _tensors(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def torchscript(folder: Folder) -> Iterator[str]:
    """`monai.bundle ckpt_export` of each scale's weights gives the same output as the network."""
    for scale in folder.scales:
        parser = _inference(folder, scale)
        weights, exported = parser.get_parsed_content("weights"), folder.work / f"model_x{scale}.ts"
        monai.bundle.ckpt_export(
            net_id="network_def",
            filepath=str(exported),
            ckpt_file=weights,
            meta_file=str(folder.root / "configs/metadata.json"),
            config_file=str(folder.config("inference.json")),
            bundle_root=str(folder.root),
            scale=scale,
        )
        network = parser.get_parsed_content("network_def").eval()
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        image = torch.rand(2, 1, 12, 17, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            difference = float((torch.jit.load(exported)(image) - network(image)).abs().max())
        if difference > 1e-5:
            yield f"scale {scale}: TorchScript differs from the network by {difference:.1g}"


def experiments(folder: Folder) -> Iterator[str]:
    """Each overlay parses, sets existing options, and trains for one update."""
    overlays = sorted((folder.root / "configs/experiments").glob("*.yaml"))
    if not overlays and not folder.is_repository:
        raise Missing("an exported folder without experiments")
    for overlay in overlays:
        row = overlay.stem.startswith("table")  # the others are shared by rows, or belong to a script
        base = ["configs/train.json", *(["configs/experiments/paper.yaml"] if row else [])]
        parser = ConfigParser()
        parser.read_config([*(str(folder.root / name) for name in base), str(overlay)])
        config = parser.get()
        labels = {"experiment_name", "run_name"}
        wrong = [f"nothing uses {key}" for key in unused_keys(config) if key not in labels] if row else []
        yield from (f"{overlay.name}: {text}" for text in [*wrong, *wrong_values(config)])
        output = folder.work / "experiments" / overlay.stem
        # no validation on whole volumes, which the other runs have
        places = {"bundle_root": str(folder.root), "dataset_dir": str(folder.volumes), "output_dir": str(output)}
        parser.update({**TINY_TRAINING, **places, "device": "cpu", "val_interval": 2})
        parser.get_parsed_content("train#trainer").run()


CHECKS = (
    Check("monai.bundle verify_metadata accepts metadata.json", verified_by_monai),
    Check("training, evaluation and inference have MONAI's properties", properties),
    Check("monai.bundle verify_net_in_out accepts network_def", net_in_out),
    Check("the network's output size is that of metadata.json", spatial_sizes),
    Check("weights are plain tensors", plain_weights),
    Check("monai.bundle ckpt_export gives an equivalent TorchScript file", torchscript),
    Check("every experiment parses and trains", experiments),
)
