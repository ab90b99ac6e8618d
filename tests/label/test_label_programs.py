"""The client against an in-memory stand-in for MONAI Label, and how label_server.py starts.

test_label_server.py tests against the real server.
"""

from __future__ import annotations

import importlib.util
import json
import socket

import pytest
import requests
from click.testing import CliRunner


def program(root, name):
    spec = importlib.util.spec_from_file_location(name, root / f"scripts/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answer(content, status=200):
    made = requests.Response()
    made.status_code, made.encoding = status, "utf-8"
    made._content = content if isinstance(content, bytes) else json.dumps(content).encode()
    return made


class Label:
    """Stands in for `requests`: an image or a label is replaced without asking, as MONAI Label does."""

    def __init__(self, **images):
        self.images, self.labels, self.trained = images, {}, []

    def request(self, method, url, params=None, files=None, **_):
        path, params = url.removeprefix("http://127.0.0.1:8123"), params or {}
        if path == "/info/":
            return answer({"models": {"iconet_x2": {"description": "by 2"}}})
        if path == "/datastore/":
            tags = {name: {"final": {}} if name in self.labels else {} for name in self.images}
            return answer({"objects": {name: {"labels": labels} for name, labels in tags.items()}})
        if path.startswith("/datastore/"):
            kept = self.images if path.endswith("image") else self.labels
            name = params.get("label" if method == "GET" and kept is self.labels else "image")
            if method == "PUT":
                kept[name] = files["file" if kept is self.images else "label"][1]
            return answer(kept[name])
        if path == "/infer/iconet_x2":
            return answer(b"by 2: " + self.images[params["image"]], 500 if params["image"] == "bad" else 200)
        assert path == "/train/iconet_x2"
        self.trained.append(sorted(self.labels))
        return answer({})

    def get(self, url, **_):
        if "/logs/" in url:
            return answer(b"")
        return answer([{"status": "DONE"}] * len(self.trained))


@pytest.fixture
def client(request, monkeypatch, tmp_path):
    module = program(request.config.rootpath, "label_client")
    monkeypatch.chdir(tmp_path)

    def run(server, *arguments):
        monkeypatch.setattr(module.requests, "request", server.request)
        monkeypatch.setattr(module.requests, "get", server.get)
        return CliRunner().invoke(module.main, [str(a) for a in arguments])

    return run


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def test_sharp_files_and_ids_are_stored_as_their_own_labels_and_trained_on(client, tmp_path):
    server = Label(there=b"sharp 2")
    for _ in range(2):  # the second time, all are already there
        done = client(server, "train", "iconet_x2", write(tmp_path / "new.nii.gz", b"sharp 1"), "there")
        assert done.exit_code == 0, done.output
    assert server.images == server.labels == {"there": b"sharp 2", "new": b"sharp 1"}
    assert server.trained == [["new", "there"]] * 2


@pytest.mark.parametrize(
    ("files", "labels", "words"),
    [
        (["a/scan.nii.gz", "b/scan.nii"], {}, "two of the images have the name 'scan'"),
        (["a/new.nii.gz", "b/study.nii.gz"], {}, "another 'study' is already on the server; give its id, or rename"),
        (["a/new.nii.gz", "study"], {"study": b"drawn"}, "'study' has a label on the server that would be lost"),
    ],
)
def test_training_replaces_no_study_and_no_label(files, labels, words, client, tmp_path):
    server = Label(study=b"low")
    server.labels.update(labels)
    images = [write(tmp_path / name, name.encode()) if "/" in name else name for name in files]
    done = client(server, "train", "iconet_x2", *images)
    assert done.exit_code == 1
    assert words in done.output
    assert len(done.output.splitlines()) == 1
    assert (server.images, server.labels, server.trained) == ({"study": b"low"}, labels, [])


def test_the_batch_goes_on_after_an_image_that_fails(client, tmp_path):
    done = client(Label(a=b"1", bad=b"reason", c=b"3"), "batch", "iconet_x2", "out")
    assert done.exit_code == 1
    assert done.output.splitlines() == [
        "Error: bad: the server failed: by 2: reason",
        "2 of 3 images: out",
    ]
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert found == {"a_iconet_x2.nii.gz": b"by 2: 1", "c_iconet_x2.nii.gz": b"by 2: 3"}


@pytest.mark.parametrize("content", [b"<html>\nwelcome", {"models": 3}, [], {"name": "another"}])
@pytest.mark.parametrize("status", [200, 404])
def test_another_server_on_the_port_is_told_in_one_line(content, status, client):
    server = Label()
    server.request = lambda *_, **__: answer(content, status)
    done = client(server, "list")
    assert done.exit_code == 1
    assert ("is not a MONAI Label server" if status == 200 else "refused /info/: 404") in done.output
    assert len(done.output.splitlines()) == 1


@pytest.fixture
def starter(bundle_root, tmp_path, monkeypatch):
    """label_server.py with a stand-in for MONAI Label that is an empty app."""
    module = program(bundle_root, "label_server")
    monkeypatch.setattr(module, "SAMPLE_APP", tmp_path / "sample")
    write(tmp_path / "sample/main.py", b"")
    return module


def test_the_bundles_are_exported_anew_at_every_start(starter, tmp_path, monkeypatch, capsys):
    work = tmp_path / "work"
    assert starter.prepare(work) == ["iconet_x2", "iconet_x4"]
    monkeypatch.setattr("bundle.cli.export_bundle.PAGE", "the page of the next version")
    starter.prepare(work)
    assert (work / "app/model/iconet_x2/docs/README.md").read_text() == "the page of the next version"
    assert capsys.readouterr().out == ""


def test_a_changed_bundle_is_kept_and_named_at_the_start(starter, tmp_path, capsys):
    work = tmp_path / "work"
    starter.prepare(work)
    folder = work / "app/model/iconet_x2"
    for name in ("configs/train.json", "models/model.pt"):
        with open(folder / name, "ab") as file:
            file.write(b" ")
        before = (folder / name).read_bytes()
        starter.prepare(work)
        assert (folder / name).read_bytes() == before
        told = capsys.readouterr().out
        assert told.startswith(f"kept and served unchanged: {folder}: ")
        assert len(told.splitlines()) == 1


def test_bad_shipped_weights_are_told_in_one_line(starter, tmp_path, monkeypatch):
    monkeypatch.setenv("ICONET_MODELS", str(tmp_path / "no weights"))
    monkeypatch.setattr(starter, "check_port", lambda host, port: None)
    done = CliRunner().invoke(starter.main, ["--work", str(tmp_path / "work")])
    assert done.exit_code == 1
    assert "no such weights" in done.output
    assert len(done.output.splitlines()) == 1


def test_a_port_in_use_is_told_before_anything_is_written(starter, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = CliRunner().invoke(starter.main, ["--work", str(tmp_path / "work"), "--port", str(port)])
    assert done.exit_code == 1
    assert done.output.startswith(f"Error: 127.0.0.1, port {port}: Address already in use")
    assert len(done.output.splitlines()) == 1
    assert not (tmp_path / "work").exists()
