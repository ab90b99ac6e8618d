"""The command line. Heavy modules are imported once the options are understood, so that --help is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from bundle.cli.arguments import OwnedCommand, options_of
from bundle.cli.errors import RunError
from bundle.options import CommandOptions

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

Exit status: 0 all done, 1 some volumes failed (they are listed at the end), 2 wrong use, nothing was done.

Not a medical device. What lies beyond the measured k-space is estimated from training images, not measured.
"""


class _WrongUse(click.ClickException):
    exit_code = 2


@click.command(
    cls=OwnedCommand,
    options_of=CommandOptions,
    epilog=_EPILOG,
    context_settings={
        "max_content_width": 110,
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),  # the names of the configs do as well
    },
)
@click.argument("input", type=click.Path(exists=True, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@options_of(CommandOptions)
def main(**given: Any) -> None:
    """Super-resolve MR, PET and CT volumes in the plane of their slices.

    INPUT is a NIfTI file (.nii, .nii.gz, .hdr with .img), a DICOM file, a folder of either, or a tree of both. OUTPUT
    is a folder (for one NIfTI file also the name of the result). The input is never changed.
    """
    options = CommandOptions(**given)
    from bundle.cli.run import run

    try:
        sys.exit(run(options))
    except RunError as error:
        raise _WrongUse(str(error)) from error
