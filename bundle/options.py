"""The options of the project, each declared once: name, default, range, help and former names.

The command line (:mod:`bundle.cli.command`), the guard of the configs (:mod:`bundle.workflow.options`) and the tables
of the documents (``scripts/option_tables.py``) are made from these dataclasses. A name is the same everywhere;
the command line writes a dash for an underscore. Only the standard library is imported here, so that ``--help`` is
quick.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any, Literal

SCALES = (2, 4, 8)
DEFAULT_NETWORK = "residual_sr"


@dataclass(frozen=True)
class Option:
    """What is known of an option besides its name and default.

    Attributes:
        help: one or two sentences.
        choices: the values that are permitted, if they can be listed.
        kind: ``whole`` (a whole number), ``number``, ``share`` (a number from 0 to 1), ``matrix`` and ``size`` (see
            :func:`pair_of`), ``flag``, ``path``, ``device`` or ``text``; of listed values it is ``choice``.
        minimum: of a number.
        default_text: the default in words, where the value alone would not tell.
        words: permitted values beside the numbers.
        former: names that the option had before.
        offered: the choices that the command line's help shows; the others need weights of the user's own.
    """

    help: str
    choices: tuple[Any, ...] = ()
    kind: str = "text"
    minimum: float | None = None
    default_text: str | None = None
    words: tuple[str, ...] = ()
    former: tuple[str, ...] = ()
    offered: tuple[Any, ...] | None = None

    @property
    def range_text(self) -> str:
        """The permitted values in words."""
        if self.choices:
            *most, last = map(str, self.choices)
            return f"{', '.join(most)} or {last}"
        words = "".join(f"{word} or " for word in self.words)
        return words + {
            "whole": f"a whole number of at least {self.minimum:g}" if self.minimum is not None else "a whole number",
            "number": f"a number of at least {self.minimum:g}" if self.minimum is not None else "a number",
            "share": "a number from 0 to 1",
            "matrix": "two whole numbers, such as 192x256",
            "size": "one or two sizes in mm, such as 0.5 or 0.5x0.6",
            "flag": "True or False",
            "path": "a path",
            "device": "a device of this machine, such as cpu or cuda",
        }.get(self.kind, "text")

    def permits(self, value: Any) -> bool:
        """Whether a value from a config or a command line can be meant (devices and paths are checked when used)."""
        if self.choices:
            return any(type(value) is type(choice) and value == choice for choice in self.choices)
        if value in self.words:
            return True
        if self.kind == "flag":
            return isinstance(value, bool)
        if self.kind == "whole":
            return type(value) is int and (self.minimum is None or value >= self.minimum)
        if self.kind == "share":
            return isinstance(value, (bool, int, float)) and 0 <= value <= 1  # True is 1: data consistency on
        if self.kind == "number":
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            return number and (self.minimum is None or value >= self.minimum)
        if self.kind in ("matrix", "size"):
            return pair_of(value, whole=self.kind == "matrix") is not None
        if self.kind in ("path", "text"):
            return isinstance(value, (str, PathLike))
        return True


def pair_of(value: Any, whole: bool = False) -> tuple[float, float] | None:
    """Two positive numbers from ``0.5`` (twice the same), ``"0.5x0.6"`` or ``(0.5, 0.6)``; None if they are not.

    Args:
        whole: the numbers must be whole, and both be given.
    """
    parts = value.lower().split("x") if isinstance(value, str) else value
    parts = list(parts) if isinstance(parts, Sequence) else [parts]
    try:
        numbers = [float(part) for part in parts if not isinstance(part, bool)]
    except (TypeError, ValueError):
        return None
    if len(numbers) != len(parts) or not all(0 < n < math.inf for n in numbers):
        return None
    if whole and not all(n.is_integer() for n in numbers):
        return None
    if len(numbers) == 1 and not whole:
        return numbers[0], numbers[0]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else None


def size_text(value: Any) -> str | None:
    """A voxel size in one way of writing, such as ``0.5`` or ``0.5x0.6``; None if it is none."""
    pair = None if value is None else pair_of(value)
    return None if pair is None else "x".join(f"{size:g}" for size in dict.fromkeys(pair))


def option(default: Any, help: str, **about: Any) -> Any:
    """A dataclass field of an option."""
    return field(default=default, metadata={"option": Option(help, **about)})


def declared(*classes: type) -> dict[str, tuple[Any, Option]]:
    """Name -> (default, option) of the options of dataclasses, those of their bases first."""
    found: dict[str, tuple[Any, Option]] = {}
    for cls in classes:
        every: Sequence[Field[Any]] = fields(cls)
        found |= {f.name: (f.default, f.metadata["option"]) for f in every if "option" in f.metadata}
    return found


@dataclass(frozen=True)
class InferenceOptions:
    """How a volume becomes its result, by the command, the configs and from Python."""

    scale: int = option(2, "In-plane factor.", choices=SCALES, offered=(2, 4))
    network_name: str = option(
        DEFAULT_NETWORK, "Network. The default one and iconet_small have shipped weights.", former=("network",)
    )
    weights: Path | None = option(
        None,
        "Weights: a plain state dict, .pt or .safetensors.",
        kind="path",
        default_text="the shipped ones for network and scale",
    )
    device: str | None = option(
        None, "Where to compute: cpu, cuda, cuda:1...", kind="device", default_text="cuda if there is one, else cpu"
    )
    slice_axis: int | Literal["auto"] = option(
        "auto",
        "Array axis across the slices; it keeps its size. auto takes what the header says (dim_info, DICOM), else the "
        "BIDS sidecar, else the axis with the largest voxel spacing, else the last one.",
        choices=("auto", 0, 1, 2),
    )
    matrix: str = option(
        "auto",
        "Where the network starts if the scanner has interpolated the image: auto at the acquired matrix, where it is "
        "found, with the result on the grid of the stored one; acquired also makes the result scale times the acquired "
        "matrix; keep takes the image as it is stored; a matrix, such as 192x256 (of DICOM: rows x columns), is taken "
        "for the acquired one.",
        kind="matrix",
        words=("auto", "keep", "acquired"),
    )
    voxel_size: str | None = option(
        None,
        "In-plane voxel size of the result in mm, such as 0.5 or 0.5x0.6, reached by the next higher factor of the "
        "network and exact Fourier interpolation, instead of --scale.",
        kind="size",
        default_text="that of the input divided by the scale",
    )
    data_consistency: float | Literal["auto"] = option(
        "auto",
        "How much of the measured k-space is put back into the result: 1 all of it, 0 none (the network alone); auto "
        "is 1, and less for slices whose k-space the scanner has filtered.",
        kind="share",
        words=("auto",),
    )
    quality: Literal["standard", "best"] = option(
        "standard",
        "best runs the network on all eight flips and transpositions of each slice and averages the results: a little "
        "better, eight times the time.",
        choices=("standard", "best"),
    )
    slice_batch: int = option(
        4,
        "Slices at a time, on a CPU side by side on its threads; halved when memory runs short.",
        kind="whole",
        minimum=1,
    )
    nonfinite: Literal["error", "zero"] = option(
        "error",
        "NaN and infinite voxels: error refuses the volume, zero sets them to zero.",
        choices=("error", "zero"),
        former=("nan",),
    )
    force: bool = option(
        False,
        "Process files that say they are no image: phase, vectors, tensors, coefficients of warps.",
        kind="flag",
    )


@dataclass(frozen=True)
class FolderOptions:
    """What the configs read and write."""

    dataset_dir: str = option("", "Folder with volumes, or one file.", kind="path", default_text="the sample volume")
    output_dir: str = option(
        "",
        "Folder for the results.",
        kind="path",
        default_text="inference: outputs; training: runs/...; evaluation: eval/...",
    )
    split_file: str | None = option(
        None,
        "Training, evaluation: CSV with the columns file, subject and split (train, val or test).",
        kind="path",
        default_text="none",
    )
    split: str = option(
        "test",
        "Evaluation: the split to evaluate. Without a split file, every volume is.",
        choices=("train", "val", "test"),
    )


@dataclass(frozen=True)
class TrainingOptions:
    """What training takes besides network, scale, slice axis and device."""

    epochs: int = option(40, "Number of epochs.", kind="whole", minimum=1)
    updates_per_epoch: int = option(
        250, "Updates per epoch; an epoch is not a pass through the data.", kind="whole", minimum=1
    )
    batch_size: int = option(8, "Patches per update and process.", kind="whole", minimum=1)
    patch_size: int = option(
        64, "Side of a patch in high-resolution voxels.", kind="whole", minimum=1, default_text="32 times the scale"
    )
    learning_rate: float = option(0.0005, "Learning rate of Adam after the warm-up.", kind="number", minimum=0)
    warmup_updates: int = option(200, "Updates over which the learning rate rises.", kind="whole", minimum=0)
    ema_momentum: float = option(
        0.002, "Share of the new weights in the moving average, which is validated and kept.", kind="share"
    )
    alpha: float = option(
        0.9, "Weight of the super-resolved images in the loss; the reconstructions have 1 - alpha.", kind="share"
    )
    return_stages: bool = option(True, "False leaves all stages but the last out of the loss.", kind="flag")
    train_consistency: bool = option(
        True, "Add the result after data consistency to the loss of the plain result.", kind="flag"
    )
    degradation: Literal["wide", "plain"] = option(
        "wide",
        "How inputs are made: wide mixes truncation alone with k-space filters, phase, noise and partial echoes; plain "
        "is truncation alone, as in the paper.",
        choices=("wide", "plain"),
    )
    line_mask_acceleration: float = option(
        1, "Also drop k-space lines of the input: all lines / kept lines.", kind="number", minimum=1
    )
    val_interval: int = option(
        5, "Epochs between validations on whole volumes; the best weights go to model.pt.", kind="whole", minimum=1
    )
    resume: bool = option(False, "Continue from last.pt in the output folder.", kind="flag")
    bf16: bool = option(
        False,
        "Convolutions and products in bfloat16: several times faster on CPUs with AMX and on GPUs, slower on other "
        "CPUs.",
        kind="flag",
    )
    seed: int = option(0, "Seed of the split, the patches and the initial weights.", kind="whole", minimum=0)


@dataclass(frozen=True)
class CommandOptions(InferenceOptions):
    """What the command takes besides; `input` and `output` are its two arguments."""

    input: Path = Path()
    output: Path = Path()
    allow_gap: bool = option(False, "Accept DICOM series with missing or unevenly spaced slices.", kind="flag")
    join: bool = option(
        False,
        "Join single DICOM slices to which an anonymiser gave a series, study, patient or frame of reference each.",
        kind="flag",
    )
    dtype: Literal["float32", "same"] = option(
        "float32",
        "Number type of NIfTI results. same keeps that of the input, with a new slope where values do not fit.",
        choices=("float32", "same"),
    )
    labels: str | None = option(
        None,
        "File names of label maps, such as '*_seg.nii.gz': not sharpened, but carried by nearest neighbour to the grid "
        "of the result of their image, that of the same folder (BIDS: subject and session) with the same matrix and "
        "affine.",
        default_text="_dseg and _mask in a BIDS dataset, else none",
    )
    to: Literal["nifti", "dicom"] | None = option(
        None, "Format of the results.", choices=("nifti", "dicom"), default_text="that of the input"
    )
    overwrite: bool = option(False, "Redo finished volumes, and replace files that other programs made.", kind="flag")
    dry_run: bool = option(False, "Print what would be done, write nothing.", kind="flag")
    report: bool = option(
        False, "Write OUTPUT/report.html with images, spectra and header of every volume.", kind="flag"
    )
    quiet: bool = option(False, "Show only warnings and errors.", kind="flag")
    log_json: Path | None = option(None, "Append the log to this file as JSON lines.", kind="path", default_text="none")

    def settings(self) -> dict[str, Any]:
        """What decides the content of a result, besides the input and the weights, for its sidecar."""
        return {
            "Scale": self.scale,
            "Network": self.network_name,
            "SliceAxis": self.slice_axis,
            "Matrix": self.matrix.lower(),
            "VoxelSize": size_text(self.voxel_size),
            "DataConsistency": self.data_consistency,
            "Quality": self.quality,
            "NonFinite": self.nonfinite,
            "AllowGap": self.allow_gap,
            "Join": self.join,
            "DataType": self.dtype,
        }


CONFIG_OPTIONS = declared(InferenceOptions, FolderOptions, TrainingOptions)
"""Options of the configs."""


def former_names(options: dict[str, tuple[Any, Option]]) -> dict[str, str]:
    """Former name -> name of today."""
    return {old: name for name, (_, about) in options.items() for old in about.former}
