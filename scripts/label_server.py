"""Serve ICONet 2x and 4x with MONAI Label (run by the Python of `make label-env`).

    make label-server

The bundles are exported to WORK/app/model at every start; bundles that were fine-tuned or edited there are kept. Any
other bundle folder there is served too. MONAI Label keeps its metadata and labels in the studies folder.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import sys
from pathlib import Path

import click

from bundle.cli.export_bundle import ExportError, export_bundle

ROOT = Path(__file__).resolve().parent.parent
SAMPLE_APP = Path(sys.prefix) / "monailabel/sample-apps/monaibundle"


def prepare(work: Path) -> list[str]:
    """Update the work folder, except for bundles changed in it; return the names of the models."""
    if not (work / "app/main.py").is_file():
        shutil.copytree(SAMPLE_APP, work / "app", dirs_exist_ok=True)
    for scale in (2, 4):
        folder = work / f"app/model/iconet_x{scale}"
        try:
            export_bundle(folder, scale)
        except ExportError as error:
            if not folder.exists():
                raise
            click.echo(f"kept and served unchanged: {error}")
    found = (work / "app/model").glob("[!.]*/configs/inference.json")
    return sorted(config.parent.parent.name for config in found)


def sample_studies(work: Path) -> Path:
    """A studies folder with a copy of the sample, so that MONAI Label does not write next to the original."""
    if not (work / "studies").exists():
        shutil.copytree(ROOT / "docs/sample/lr_x2", work / "studies")
    return work / "studies"


def log_config(work: Path) -> Path:
    """MONAI Label's logging, with the reason of a failed request added to the log file that clients can fetch."""
    spec = importlib.util.find_spec("monailabel")
    assert spec is not None and spec.origin is not None
    text = Path(spec.origin).with_name("logging.json").read_text(encoding="utf-8")
    (work / "app/logs").mkdir(parents=True, exist_ok=True)
    config = json.loads(text.replace("${LOGFILE}", (work / "app/logs/app.log").as_posix()))
    config["loggers"]["uvicorn"]["handlers"] = ["console", "file_handler"]
    (work / "logging.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return work / "logging.json"


def check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise click.ClickException(f"{host}, port {port}: {error.strerror}; is a server running there?") from error


@click.command(help=__doc__)
@click.option("--studies", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of volumes.")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=ROOT / ".label", help="Work folder.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Anyone who can reach it can use and change everything."
)
@click.option("--port", default=8123, show_default=True, type=click.IntRange(1, 65535))
def main(studies: Path | None, work: Path, host: str, port: int) -> None:
    if not SAMPLE_APP.is_dir():
        raise click.ClickException("MONAI Label is not installed here; run `make label-env`, then `make label-server`")
    check_port(host, port)
    work = work.resolve()
    try:
        models = prepare(work)
        studies = (studies or sample_studies(work)).resolve()
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(work / "app")]
    command += ["--studies", str(studies), "--host", host, "--port", str(port), "--conf", "models", ",".join(models)]
    # with any non-default source, MONAI Label does not fetch its list of models from the network
    command += ["--conf", "zoo_source", "local", "--conf", "sam2", "false", "--log_config", str(log_config(work))]
    # no path to this repository: each bundle contains its package
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts/label_shim")}
    click.echo(f"models {', '.join(models)}; studies {studies}; http://{host}:{port}")
    sys.stdout.flush()
    os.chdir(work)
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main()
