"""Run every config with `python -m monai.bundle run` in its own process, from an empty working directory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from release.zoo.folder import Check, Folder, Missing

TINY_TRAINING = {
    "epochs": 1,
    "updates_per_epoch": 2,
    "batch_size": 2,
    "patch_size": 16,
    "val_interval": 1,
    "warmup_updates": 1,
}
ONE_PROCESS = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1")
"""torchrun; the project's tests check that several processes agree."""


def run(folder: Folder, run_id: str, configs: tuple[str, ...], name: str, multi: bool = False, **options: Any) -> Path:
    """Run configs of a copy of the bundle; returns the output folder.

    Args:
        folder: the bundle.
        run_id: what to run.
        configs: file names, overlays last.
        name: of the output folder and of the empty working directory next to it.
        multi: use torchrun.
        options: overrides.

    Raises:
        RuntimeError: the run failed, with the end of its output, or left files in its working directory.
        Missing: see :meth:`Folder.config`.
    """
    for config in configs:
        folder.config(config)
    root = folder.copy(f"{name}_root")
    files = [str(root / "configs" / config) for config in configs]
    empty, output = folder.work / f"{name}_cwd", folder.work / name
    empty.mkdir()
    command = [sys.executable, "-W", "ignore", *(ONE_PROCESS if multi else ()), "-m", "monai.bundle", "run", run_id]
    given = {"bundle_root": root, "output_dir": output, **options}
    command += ["--config_file", files[0] if len(files) == 1 else str(files)]
    command += [word for key, value in given.items() for word in (f"--{key}", str(value))]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise RuntimeError(f"exit status {done.returncode}: {' | '.join(lines[-3:])}")
    if left := sorted(path.name for path in empty.iterdir()):
        raise RuntimeError(f"left {', '.join(left)} in the working directory")
    return output


def inference(folder: Folder, scale: int | None, overlays: tuple[str, ...] = ()) -> Iterator[str]:
    """Every result is finite, `scale` times finer in-plane, with the same origin.

    Args:
        folder: the bundle.
        scale: given as an option; ``None`` for the default of the config.
        overlays: further configs.
    """
    options: dict[str, Any] = {} if scale is None else {"scale": scale}
    factor = folder.json("configs/inference.json")["scale"] if scale is None else scale
    sample = folder.root / f"docs/sample/lr_x{factor}"
    source = sample if sample.is_dir() else folder.volumes
    name = "_".join(["inference", str(factor), *overlays])
    output = run(folder, "inference", ("inference.json", *overlays), name, dataset_dir=source, **options)
    for path in sorted(source.glob("*.nii.gz")):
        result = output / path.name.replace(".nii.gz", f"_SRx{factor}.nii.gz")
        if not result.is_file():
            yield f"{path.name} gave no {result.name}"
            continue
        coarse, fine = nib.Nifti1Image.from_filename(path), nib.Nifti1Image.from_filename(result)
        grid = np.diag([1 / factor, 1 / factor, 1, 1])
        if fine.shape != (factor * coarse.shape[0], factor * coarse.shape[1], *coarse.shape[2:]):
            yield f"{result.name}: {coarse.shape} became {fine.shape}"
        elif not np.allclose(fine.affine, coarse.affine @ grid, atol=1e-4):
            yield f"{result.name}: not the affine of the grid rule"
        elif not np.isfinite(fine.get_fdata()).all():
            yield f"{result.name}: not finite"


def other_scales(folder: Folder) -> Iterator[str]:
    default = folder.json("configs/inference.json")["scale"]
    if folder.scales == [default]:
        raise Missing(f"only {default}x weights")
    for scale in folder.scales:
        if scale != default:
            yield from inference(folder, scale)


def training(folder: Folder, *overlays: str) -> Iterator[str]:
    name = "_".join(["train", *overlays])
    options = {**TINY_TRAINING, "dataset_dir": folder.volumes}
    output = run(folder, "training", ("train.json", *overlays), name, bool(overlays), **options)
    # an exported folder's training replaces models/model.pt instead
    wanted = ["last.pt", *(["model.pt"] if folder.is_repository else [])]
    yield from (f"no {file} was written" for file in wanted if not (output / file).is_file())


def evaluating(folder: Folder, *overlays: str) -> Iterator[str]:
    name = "_".join(["evaluate", *overlays])
    configs = ("evaluate.json", *overlays)
    output = run(folder, "evaluating", configs, name, bool(overlays), dataset_dir=folder.volumes)
    rows = (output / "metrics.csv").read_text(encoding="utf-8").splitlines()[1:]
    if len(rows) != 2 * 3:
        yield f"metrics.csv has {len(rows)} rows for 3 volumes and 2 methods"


def tensorrt(folder: Folder) -> Iterator[str]:
    """Runs if TensorRT is available; otherwise the overlay is only parsed, together with its base."""
    import torch
    from monai.bundle import ConfigParser

    from bundle.workflow.options import unused_keys, wrong_values

    files = [folder.root / "configs" / name for name in ("inference.json", "inference_trt.json")]
    if not files[1].is_file():
        raise Missing("no inference_trt.json")
    config = ConfigParser.load_config_files([str(path) for path in files])
    problems = [f"nothing uses {key}" for key in unused_keys(config)] + wrong_values(config)
    if problems:
        yield from problems
    elif torch.cuda.is_available() and find_spec("tensorrt"):
        yield from inference(folder, None, ("inference_trt.json",))
    else:
        raise Missing("parsed, not run: no TensorRT or no GPU here")


def _check(name: str, problems: Callable[..., Iterator[str]], *arguments: Any) -> Check:
    return Check(name, lambda folder: problems(folder, *arguments))


CHECKS = (
    _check("inference.json runs from an empty folder", inference, None),
    _check("inference.json runs at the other scales", other_scales),
    _check("train.json runs from an empty folder", training),
    _check("evaluate.json runs from an empty folder", evaluating),
    _check("multi_gpu_train.json runs with torchrun", training, "multi_gpu_train.json"),
    _check("multi_gpu_evaluate.json runs with torchrun", evaluating, "multi_gpu_evaluate.json"),
    _check("inference_trt.json runs, or is parsed where TensorRT cannot run", tensorrt),
)
