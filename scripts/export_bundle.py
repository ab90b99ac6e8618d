"""Write a self-contained bundle folder of one scale, for MONAI Label or for passing on.

    python scripts/export_bundle.py exported/iconet_x2 --scale 2

The folder holds the configs with the scale fixed, the package, one file of weights, metadata and licences. A folder
that the same export made before is replaced, unless something in it was changed since.
"""

from __future__ import annotations

from pathlib import Path

import click

from bundle.cli.export_bundle import export_bundle
from bundle.networks import NETWORKS

ROOT = Path(__file__).resolve().parent.parent


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--scale", type=click.Choice(["2", "4", "8"]), required=True, help="Factor of the network.")
@click.option("--network_name", type=click.Choice(list(NETWORKS)), default="iconet_small", show_default=True)
@click.option("--weights", type=click.Path(path_type=Path), help="State dict or safetensors. [default: the shipped]")
def main(out: Path, scale: str, network_name: str, weights: Path | None) -> None:
    try:
        export_bundle(ROOT, out, int(scale), network_name, weights)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out}: {network_name}, by {scale}")


if __name__ == "__main__":
    main()
