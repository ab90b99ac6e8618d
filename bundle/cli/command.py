"""The command line: `iconet-sr INPUT OUTPUT`, and the commands `doctor` and `export-bundle` beside it.

Heavy modules are imported once the options are understood, so that --help is quick.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from bundle.cli import doctor, export_bundle
from bundle.cli.options import Options, RunError
from bundle.inference.shipped import tool_version

_EPILOG = """\b
Examples:
  python -m bundle scan.nii.gz fine.nii.gz    one volume, by 2
  python -m bundle IN OUT --scale 4           all volumes below IN, same tree
  python -m bundle IN OUT --dry-run           say what would be done
  python -m bundle BIDS BIDS/derivatives/sr   as a BIDS derivatives dataset
  python -m bundle DICOM OUT --to nifti       DICOM series as NIfTI
  torchrun --nproc_per_node=2 -m bundle IN OUT    shared by two processes

Beside every result x_SRx2.nii.gz lies x_SRx2.json: what it was made from and how, and what was doubtful. Run the same
command again: what is done is skipped, what changed is redone. OUT/results.csv lists the volumes of the last run.

\b
Other commands (--help after one of them says more; a volume or folder of that name is given as ./doctor):
  iconet-sr doctor                  versions, back ends, weights and device
  iconet-sr export-bundle FOLDER    a folder for python -m monai.bundle and MONAI Label

Exit status: 0 all done, 1 some volumes failed (they are listed at the end), 2 wrong use, nothing was done.

Not a medical device. What lies beyond the measured k-space is estimated from training images, not measured.
"""


_SETTINGS = {"max_content_width": 110, "help_option_names": ["-h", "--help"]}


class _WrongUse(click.ClickException):
    exit_code = 2


class _Program(click.Group):
    """A group whose default command is chosen by any first word that names no command."""

    def __init__(self, default: click.Command, others: list[click.Command]) -> None:
        super().__init__(default.name, others, context_settings=_SETTINGS)
        self.default = default

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args and args[0] in self.commands:
            return super().make_context(info_name, args, parent, **extra)
        return self.default.make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"ICONet SR {tool_version()}")
        ctx.exit()


@click.command(epilog=_EPILOG, context_settings=_SETTINGS)
@click.argument("input", type=click.Path(exists=True, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--scale", type=click.Choice([2, 4, 8]), default=2, show_default=True, help="Factor in the plane.")
@click.option("--network", default="iconet_small", show_default=True, help="Network (a wrong name lists them).")
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Its weights, a plain state dict (.pt or .safetensors).  [default: those shipped for network and scale]",
)
@click.option("--device", help="cpu, cuda, cuda:1...  [default: cuda if there is one]")
@click.option(
    "--slice-axis",
    type=click.Choice(["auto", 0, 1, 2]),
    default="auto",
    show_default=True,
    help="Array axis that runs over the slices, which is not super-resolved. auto: the one of the largest voxel "
    "spacing, the last if no single one has it.",
)
@click.option(
    "--data-consistency",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="How far the measured k-space is put back into the result: 1 wholly, 0 not at all (the network alone).",
)
@click.option("--slice-batch", type=click.IntRange(1), default=4, show_default=True, help="Slices at a time.")
@click.option(
    "--nan",
    "nonfinite",
    type=click.Choice(["error", "zero"]),
    default="error",
    show_default=True,
    help="What to do with NaN and infinite voxels: refuse the volume, or set them to zero.",
)
@click.option("--allow-gap", is_flag=True, help="Accept DICOM series with missing or unevenly spaced slices.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "same"]),
    default="float32",
    show_default=True,
    help="Number type of NIfTI results; same: that of the input, with a new slope where values do not fit.",
)
@click.option(
    "--to", type=click.Choice(["nifti", "dicom"]), help="Format of the results.  [default: that of the input]"
)
@click.option("--overwrite", is_flag=True, help="Redo all, and replace files that another program made.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing.")
@click.option("--report", is_flag=True, help="Write OUTPUT/report.html: images, spectra and header of every volume.")
@click.option("--log-json", type=click.Path(dir_okay=False, path_type=Path), help="Append what happens as JSON lines.")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show it and exit."
)
def super_resolve(**given: Any) -> None:
    """Super-resolve MR, PET and CT volumes in the plane of their slices.

    INPUT is a NIfTI file (.nii, .nii.gz, .hdr with .img), a DICOM file, a folder of either, or a tree of both. OUTPUT
    is a folder (for one NIfTI file also the name of the result). The input is never changed.
    """
    options = Options(**{**given, "slice_axis": None if given["slice_axis"] == "auto" else given["slice_axis"]})
    from bundle.cli.run import run

    try:
        sys.exit(run(options))
    except RunError as error:
        raise _WrongUse(str(error)) from error


main = _Program(super_resolve, [doctor.command, export_bundle.command])
