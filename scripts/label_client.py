"""Talk to a MONAI Label server that serves ICONet: list, infer, batch, train (docs/monai_label.md).

    python scripts/label_client.py list
    python scripts/label_client.py infer iconet_x2 scan.nii.gz scan_SRx2.nii.gz
    python scripts/label_client.py train iconet_x2 sharp_1.nii.gz sharp_2.nii.gz sharp_3.nii.gz --epochs 5

Needs only `requests` and `click`, nothing from this repository.
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import click
import requests

NIFTI = (".nii.gz", ".nii")


class Server:
    """The REST interface of MONAI Label; every failure is a one-line ClickException."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        try:
            answer = requests.request(method, self.url + path, timeout=(10, 3600), **options)
        except requests.ConnectionError as error:
            raise click.ClickException(f"no server at {self.url}; start it with `make label-server`") from error
        except requests.RequestException as error:
            raise click.ClickException(f"{self.url}{path}: {error}") from error
        if answer.status_code >= 500:
            told = "" if answer.text == "Internal Server Error" else one_line(answer.text)
            raise click.ClickException(f"the server failed: {told or self._last_error() or answer.text}")
        if not answer.ok:
            raise click.ClickException(f"the server refused {path}: {answer.status_code} {one_line(answer.text)}")
        return answer

    def table(self, path: str, key: str, params: dict[str, str] | None = None) -> dict[str, dict[str, Any]]:
        answer = self.ask("GET", path, params=params)
        try:
            return {name: dict(entry) for name, entry in answer.json()[key].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise click.ClickException(f"{self.url} answers, but it is not a MONAI Label server") from error

    def _last_error(self) -> str:
        """MONAI Label answers a failure with only a status code; the reason is the last exception in its log."""
        try:
            log = requests.get(f"{self.url}/logs/", params={"lines": 300, "text": "true"}, timeout=10).text
        except requests.RequestException:
            return ""
        found = re.findall(r"^[\w.]*(?:Error|Exception): .+$", log, flags=re.MULTILINE)
        return str(found[-1]) if found else ""

    def models(self) -> dict[str, str]:
        return {name: model.get("description", "") for name, model in self.table("/info/", "models").items()}

    def images(self) -> dict[str, dict[str, Any]]:
        """Models by name; "labels" holds a model's labels by tag."""
        return dict(sorted(self.table("/datastore/", "objects", {"output": "all"}).items()))

    def image(self, name: str) -> requests.Response:
        return self.ask("GET", "/datastore/image", params={"image": name})

    def infer(self, model: str, image: str, params: dict[str, str]) -> bytes:
        """Of an image on the server."""
        query = {"image": image, "output": "image"}
        return self.ask("POST", f"/infer/{model}", params=query, data={"params": json.dumps(params)}).content

    def check_model(self, name: str) -> None:
        if name not in (known := self.models()):
            raise click.ClickException(f"no model {name!r} on the server; it has {', '.join(sorted(known))}")

    def check_image(self, name: str) -> None:
        if name not in (known := self.images()):
            listed = ", ".join(list(known)[:10]) or "none"
            raise click.ClickException(f"no such file, and no image {name!r} on the server; it has {listed}")

    def wait_for_training(self, known: int) -> None:
        """Wait until the background task started after the `known` ones ends."""
        while True:
            tasks = self.trainings()[known:]
            if tasks and tasks[-1]["status"] not in ("SUBMITTED", "RUNNING"):
                break
            time.sleep(1)
        if tasks[-1]["status"] != "DONE":
            lines = [line for line in tasks[-1].get("details", []) if line.strip()]
            raise click.ClickException(
                f"training ended as {tasks[-1]['status']}: {lines[-1] if lines else 'no output'}"
            )

    def trainings(self) -> list[dict[str, Any]]:
        try:
            answer = requests.get(f"{self.url}/train/", params={"all": "true"}, timeout=60)
            return [] if answer.status_code == 404 else list(answer.json())  # 404: no task yet
        except requests.RequestException as error:
            raise click.ClickException(f"the server at {self.url} is gone: {error}") from error


def one_line(text: str) -> str:
    return " ".join(text.split())[:200]


def ending(path: Path, allowed: tuple[str, ...] = NIFTI) -> str:
    found = [end for end in allowed if path.name.lower().endswith(end)]
    if not found:
        raise click.ClickException(f"{path}: the name must end with {' or '.join(allowed)}")
    return found[0]


def save(content: bytes, path: Path) -> None:
    """Write atomically."""
    partial = path.with_name(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise click.ClickException(f"{path}: {error.strerror}") from error


@click.group(help=__doc__)
@click.option("--server", default="http://127.0.0.1:8123", show_default=True)
@click.pass_context
def main(context: click.Context, server: str) -> None:
    context.obj = Server(server)


@main.command("list")
@click.pass_obj
def list_(server: Server) -> None:
    """Show the models and images of the server."""
    for name, description in server.models().items():
        click.echo(f"model {name}: {description}")
    for name in server.images():
        click.echo(f"image {name}")


@main.command()
@click.argument("model")
@click.argument("image")
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--device", help="cpu, cuda, cuda:1. [default: the server's choice]")
@click.pass_obj
def infer(server: Server, model: str, image: str, out: Path, device: str | None) -> None:
    """Super-resolve IMAGE, a local file (it is uploaded) or the id of an image on the server, into the file OUT."""
    params = {"result_extension": ending(out, (*NIFTI, ".nrrd")), **({"device": device} if device else {})}
    server.check_model(model)
    source = Path(image)
    if source.is_file():
        if out.exists() and os.path.samefile(source, out):
            raise click.ClickException(f"{out}: is the input file; give another name")
        name = f"image{ending(source)}"  # the server treats everything after the first dot as the extension
        form = {"params": json.dumps(params)}
        with open(source, "rb") as file:
            answer = server.ask("POST", f"/infer/{model}?output=image", data=form, files={"file": (name, file)})
        result = answer.content
    else:
        server.check_image(image)
        result = server.infer(model, image, params)
    save(result, out)
    click.echo(str(out))


@main.command()
@click.argument("model")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--device", help="cpu, cuda, cuda:1. [default: the server's choice]")
@click.pass_obj
def batch(server: Server, model: str, folder: Path, device: str | None) -> None:
    """Super-resolve every image on the server and save the results in FOLDER.

    A failed image is reported in one line and the run continues; the exit status is then 1.
    """
    server.check_model(model)
    params = {"result_extension": ".nii.gz", **({"device": device} if device else {})}
    images, done = server.images(), 0
    # one by one: MONAI Label's own batch inference returns nothing if one image fails
    for name in images:
        try:
            save(server.infer(model, name, params), folder / f"{name}_{model}.nii.gz")
            done += 1
        except click.ClickException as error:
            click.echo(f"Error: {name}: {error.message}", err=True)
    click.echo(f"{done} of {len(images)} images: {folder}")
    if done < len(images):
        raise SystemExit(1)


@main.command()
@click.argument("model")
@click.argument("images", nargs=-1, required=True)
@click.option("--epochs", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--device", default="cuda", show_default=True, help="The CPU is used if there is no such device.")
@click.pass_obj
def train(server: Server, model: str, images: tuple[str, ...], epochs: int, device: str) -> None:
    """Fine-tune MODEL on sharp IMAGES (files, or ids on the server) and wait until it has finished.

    The next inference uses the result. Images given in earlier calls are used for training too.
    """
    server.check_model(model)
    names = check_sharp(server, images)
    for image, name in zip(images, names, strict=True):
        mark_for_training(server, image, name)
    known = len(server.trainings())
    server.ask("POST", f"/train/{model}", json={"max_epochs": epochs, "device": device})
    server.wait_for_training(known)
    click.echo(f"{model}: trained for {epochs} epochs on {', '.join(images)}")


def check_sharp(server: Server, images: tuple[str, ...]) -> list[str]:
    """Names for files and ids on the server, checked so that storing them overwrites nothing (MONAI Label would)."""
    names = [Path(i).name[: -len(ending(Path(i)))] if Path(i).is_file() else i for i in images]
    if twice := [name for name in names if names.count(name) > 1]:
        raise click.ClickException(f"two of the images have the name {twice[0]!r}; give it once, or rename a file")
    stored = server.images()
    for image, name in zip(images, names, strict=True):
        if not Path(image).is_file():
            server.check_image(image)
        elif name in stored and server.image(name).content != read(image):
            raise click.ClickException(f"another {name!r} is already on the server; give its id, or rename {image}")
        if "final" in stored.get(name, {}).get("labels", {}):
            label = server.ask("GET", "/datastore/label", params={"label": name, "tag": "final"})
            if label.content != server.image(name).content:
                raise click.ClickException(
                    f"{name!r} has a label on the server that would be lost; rename a copy of it"
                )
    return names


def read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from error


def mark_for_training(server: Server, image: str, name: str) -> None:
    """Store an image as its own label: MONAI Label only trains on labelled images, and sharp images need no other."""
    if Path(image).is_file():
        content, filename = read(image), f"image{ending(Path(image))}"
        if name not in server.images():
            server.ask("PUT", "/datastore/image", params={"image": name}, files={"file": (filename, content)})
    else:
        answer = server.image(name)
        named = re.search(r'filename="?([^";]+)', answer.headers.get("content-disposition", ""))
        content, filename = answer.content, named[1] if named else f"{image}.nii.gz"
    server.ask("PUT", "/datastore/label", params={"image": name}, files={"label": (filename, content)})


if __name__ == "__main__":
    main()
