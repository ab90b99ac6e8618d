"""A real MONAI Label server (`make label-env`) with both exported bundles, used as its users do.

Results are compared with the command line, which runs in the other environment (other numpy, NIfTI written by nibabel
instead of ITK). Voxels agree to 1e-5 of the brightest one: torch is the same, but the order of summation may depend on
the number of threads. Affines agree to 1e-5: ITK stores spacing and directions separately, in float32.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
import requests
import torch
from nibabel.eulerangles import euler2mat

pytestmark = pytest.mark.label


class Label:
    """A running server, its folders, and the client as a program."""

    def __init__(self, root, work, studies):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.root, self.work, self.url = root, work, f"http://127.0.0.1:{self.port}"
        command = [root / ".venv-label/bin/python", root / "scripts/label_server.py"]
        command += ["--work", work, "--studies", studies, "--port", str(self.port)]
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        self.log = open(work / "server.txt", "w")  # noqa: SIM115
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=subprocess.STDOUT)

    def wait(self):
        for _ in range(600):
            if self.process.poll() is not None:
                break
            try:
                return requests.get(f"{self.url}/info/", timeout=60).json()
            except requests.ConnectionError:
                time.sleep(1)
        pytest.fail("no server:\n" + (self.work / "server.txt").read_text()[-3000:])

    def stop(self):
        self.process.terminate()
        self.process.wait(60)
        self.log.close()

    def model(self, scale):
        return self.work / f"app/model/iconet_x{scale}"

    def client(self, *arguments):
        command = [sys.executable, self.root / "scripts/label_client.py", "--server", self.url, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Small oblique volumes of smooth shapes, and a 4-D series; two of the volumes are the server's studies."""
    folder = tmp_path_factory.mktemp("volumes")
    (folder / "studies").mkdir()
    affine = np.eye(4)
    affine[:3, :3] = euler2mat(0.2, -0.1, 0.3) @ np.diag([1.4, 1.2, 4])
    affine[:3, 3] = -20, 15, 7
    x, y, z = np.meshgrid(np.linspace(-1, 1, 24), np.linspace(-1, 1, 20), np.arange(3), indexing="ij")
    for number, name in enumerate(["studies/first", "studies/second", "sharp"], start=1):
        data = 900 * np.exp(-4 * (x - 0.1 * number) ** 2 - 5 * y**2) * (1 + 0.3 * np.sin(5 * x + z + number))
        image = nib.Nifti1Image((data.repeat(2, 0).repeat(2, 1) if name == "sharp" else data).astype(np.int16), affine)
        image.set_qform(affine, 1)
        image.set_sform(affine, 1)
        nib.save(image, folder / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((24, 20, 3, 2), np.int16), affine), folder / "series.nii.gz")
    return folder


@pytest.fixture(scope="module")
def server(request, volumes, tmp_path_factory):
    running = Label(request.config.rootpath, tmp_path_factory.mktemp("work"), volumes / "studies")
    try:
        running.wait()
        yield running
    finally:
        running.stop()


def command_line(root, source, output, scale, *options):
    """``python -m bundle`` on a file or folder, with the shipped weights or others; returns the results by name."""
    command = [sys.executable, "-W", "ignore", "-m", "bundle", source, output, "--scale", str(scale), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {path.name.split("_")[0]: nib.load(path) for path in output.rglob("*.nii.gz")}


@pytest.fixture(scope="module")
def expected(request, volumes, tmp_path_factory):
    """Scale -> name -> result of the command line."""
    root, folder = request.config.rootpath, tmp_path_factory.mktemp("cli")
    return {scale: command_line(root, volumes / "studies", folder / str(scale), scale) for scale in (2, 4)}


def assert_same(found, wanted):
    assert found.get_data_dtype() == np.float32
    truth = wanted.get_fdata()
    np.testing.assert_allclose(found.get_fdata(), truth, rtol=0, atol=1e-5 * truth.max())
    np.testing.assert_allclose(found.affine, wanted.affine, atol=1e-5)


def test_both_scales_are_served_and_their_images_listed(server):
    done = server.client("list")
    assert done.returncode == 0, done.stderr
    words = {tuple(line.split(":")[0].split()) for line in done.stdout.splitlines()}
    assert words == {("model", "iconet_x2"), ("model", "iconet_x4"), ("image", "first"), ("image", "second")}


def test_the_server_listens_on_this_machine_alone(server):
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", server.port), 5):
        pass  # another address of this machine: only a server bound to all of them would answer


@pytest.mark.parametrize("scale", [2, 4])
def test_an_image_by_its_id_gives_what_the_command_line_gives(scale, server, expected, tmp_path):
    done = server.client("infer", f"iconet_x{scale}", "first", tmp_path / "out.nii.gz")
    assert done.returncode == 0, done.stderr
    assert_same(nib.load(tmp_path / "out.nii.gz"), expected[scale]["first"])


@pytest.mark.parametrize("scale", [2, 4])
def test_an_uploaded_file_gives_what_the_command_line_gives(scale, server, volumes, expected, tmp_path):
    shutil.copyfile(volumes / "studies/second.nii.gz", tmp_path / "new.name.nii.gz")
    done = server.client("infer", f"iconet_x{scale}", tmp_path / "new.name.nii.gz", tmp_path / "out.nii.gz")
    assert done.returncode == 0, done.stderr
    assert_same(nib.load(tmp_path / "out.nii.gz"), expected[scale]["second"])


def test_the_uint8_nrrd_that_the_slicer_plugin_asks_for_is_a_float_one(server, volumes, tmp_path):
    params = {"result_extension": ".nrrd", "result_dtype": "uint8"}
    with open(volumes / "studies/first.nii.gz", "rb") as file:
        answer = requests.post(
            f"{server.url}/infer/iconet_x2?output=image",
            data={"params": json.dumps(params)},
            files={"file": ("upload.nii.gz", file)},
        )
    header = answer.content[:2000].split(b"\n\n")[0].decode()
    assert answer.ok
    assert "type: float" in header
    assert "sizes: 48 40 3" in header


def test_wrong_names_get_one_clear_line(server, tmp_path):
    for arguments, words in [
        (
            ("infer", "iconet_x2", "third", tmp_path / "o.nii.gz"),
            "no image 'third' on the server; it has first, second",
        ),
        (("infer", "iconet_x3", "first", tmp_path / "o.nii.gz"), "no model 'iconet_x3' on the server"),
        (("train", "iconet_x2", "third"), "no image 'third'"),
        (("infer", "iconet_x2", "first", tmp_path / "o.png"), "must end with .nii.gz or .nii or .nrrd"),
    ]:
        done = server.client(*arguments)
        assert done.returncode == 1
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert requests.get(f"{server.url}/datastore/image", params={"image": "third"}).status_code == 404
    assert requests.post(f"{server.url}/infer/iconet_x2", params={"image": "third"}).status_code == 500
    assert not list(tmp_path.iterdir())


def test_a_4d_series_and_a_nrrd_upload_are_refused_with_the_reason(server, volumes, tmp_path):
    done = server.client("infer", "iconet_x2", volumes / "series.nii.gz", tmp_path / "out.nii.gz")
    assert done.returncode == 1
    assert "2 volumes in one file; give them one by one" in done.stderr
    shutil.copyfile(volumes / "studies/first.nii.gz", tmp_path / "upload.nrrd")
    done = server.client("infer", "iconet_x2", tmp_path / "upload.nrrd", tmp_path / "out.nii.gz")
    assert "the name must end with .nii.gz or .nii" in done.stderr
    assert not (tmp_path / "out.nii.gz").exists()


def test_a_client_without_a_server_says_so(server, tmp_path):
    command = [sys.executable, server.root / "scripts/label_client.py", "--server", "http://127.0.0.1:9", "list"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "Error: no server at http://127.0.0.1:9; start it with `make label-server`\n"


def test_batch_inference_gives_every_image_of_the_studies(server, expected, tmp_path):
    done = server.client("batch", "iconet_x2", tmp_path / "batch")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "batch").iterdir()} == {"first_iconet_x2.nii.gz", "second_iconet_x2.nii.gz"}
    result = nib.load(tmp_path / "batch/second_iconet_x2.nii.gz")
    assert_same(result, expected[2]["second"])


def test_one_bad_study_does_not_stop_the_batch(server, volumes, tmp_path):
    with open(volumes / "series.nii.gz", "rb") as file:
        url, upload = f"{server.url}/datastore/image", {"file": ("image.nii.gz", file)}
        assert requests.put(url, params={"image": "a_series"}, files=upload).ok
    try:
        done = server.client("batch", "iconet_x2", tmp_path / "batch")
    finally:
        assert requests.delete(url, params={"id": "a_series"}).ok
    assert done.returncode == 1
    assert done.stderr.startswith("Error: a_series: the server failed: ")
    assert "2 volumes in one file" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert {p.name for p in (tmp_path / "batch").iterdir()} == {"first_iconet_x2.nii.gz", "second_iconet_x2.nii.gz"}


def test_training_does_not_replace_a_study_of_the_same_name(server, volumes, tmp_path):
    study = (volumes / "studies/first.nii.gz").read_bytes()
    shutil.copyfile(volumes / "sharp.nii.gz", tmp_path / "first.nii.gz")
    done = server.client("train", "iconet_x2", tmp_path / "first.nii.gz")
    assert done.returncode == 1
    assert "another 'first' is already on the server" in done.stderr
    assert (volumes / "studies/first.nii.gz").read_bytes() == study


def test_training_changes_what_the_next_inference_gives(server, volumes, tmp_path):
    """Last in this file, because it changes the 2x model."""
    config = server.model(2) / "configs/train.json"
    small = {**json.loads(config.read_text()), "updates_per_epoch": 2, "batch_size": 2, "patch_size": 32}
    config.write_text(json.dumps(small))
    assert server.client("infer", "iconet_x2", "first", tmp_path / "before.nii.gz").returncode == 0

    done = server.client("train", "iconet_x2", volumes / "sharp.nii.gz", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    assert server.client("infer", "iconet_x2", "first", tmp_path / "after.nii.gz").returncode == 0

    before, after = (nib.load(tmp_path / f"{name}.nii.gz").get_fdata() for name in ("before", "after"))
    assert 1e-3 < np.abs(after - before).max() < 0.1 * before.max()
    trained = server.model(2) / "models/model.pt"
    state = torch.load(trained, weights_only=True)
    assert all(tensor.isfinite().all() for tensor in state.values())
    source, options = volumes / "studies/first.nii.gz", ("--weights", str(trained))
    wanted = command_line(server.root, source, tmp_path / "cli", 2, *options)["first"]
    assert_same(nib.load(tmp_path / "after.nii.gz"), wanted)
