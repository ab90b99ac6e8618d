"""The command line: `iconet-sr INPUT OUTPUT`, and the commands `doctor` and `export-bundle` beside it.

Heavy modules are imported once the options are understood, so that --help is quick.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from bundle.cli import doctor, export_bundle
from bundle.cli.arguments import DeclaredCommand, dashed, options_of
from bundle.cli.errors import RunError
from bundle.inference.shipped import tool_version
from bundle.options import CommandOptions

_EPILOG = """\b
Examples:
  python -m bundle scan.nii.gz fine.nii.gz    one volume, 2x
  python -m bundle IN OUT --scale 4           all volumes below IN, same tree
  python -m bundle IN OUT --dry-run           say what would be done
  python -m bundle BIDS BIDS/derivatives/sr   as a BIDS derivatives dataset
  python -m bundle DICOM OUT --to nifti       DICOM series as NIfTI
  torchrun --nproc_per_node=2 -m bundle IN OUT    shared by two processes

Each result x_SRx2.nii.gz comes with x_SRx2.json, which records the input, the settings and any doubts. Run the same
command again to continue: finished volumes are skipped, changed ones are redone. OUT/results.csv lists the last run.

\b
Other commands (add --help for more; write ./doctor for a volume or folder of that name):
  iconet-sr doctor                  versions, back ends, weights and device
  iconet-sr export-bundle FOLDER    a folder for python -m monai.bundle and MONAI Label

Exit status: 0 all volumes done, 1 some failed (see OUT/results.csv), 2 wrong use and nothing was done.

Not a medical device. Detail beyond the measured k-space is estimated from training images, not measured.
"""


_SETTINGS = {
    "max_content_width": 110,
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": dashed,  # the configs write underscores
}


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


@click.command(cls=DeclaredCommand, options_of=CommandOptions, epilog=_EPILOG, context_settings=_SETTINGS)
@click.argument("input", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@options_of(CommandOptions)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def super_resolve(**given: Any) -> None:
    """Super-resolve MR and PET volumes in the plane of their slices.

    INPUT is a NIfTI file (.nii, .nii.gz, .hdr with .img), a DICOM file, a folder of either, or a tree of both. OUTPUT
    is a folder (for one NIfTI file also the name of the result). The input is never changed.
    """
    options = CommandOptions(**given)
    from bundle.cli.run import run

    try:
        sys.exit(run(options))
    except RunError as error:
        raise _WrongUse(str(error)) from error


main = _Program(super_resolve, [doctor.command, export_bundle.command])
