"""The checks distinguish a good bundle from one with a single fault, and name only that fault."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from release.zoo import built, documents, files, metadata, requirements, runs
from release.zoo.folder import Check, Folder
from release.zoo.gate import READING, judge, verdicts

from bundle.cli.export_bundle import export_bundle

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")

PARTS = (
    *("bundle", "configs", "models", "LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
    *("CITATION.cff", "pyproject.toml", "constraints.txt", "docs/README.md", "docs/data_license.txt"),
)
OF_THE_REPOSITORY = (
    *("pyproject.toml", "constraints.txt", "CHANGELOG.md", "CITATION.cff", "README.md", "CONTRIBUTING.md"),
    *("SECURITY.md", "models/sha256sums.txt"),
)


@pytest.fixture
def folder(bundle_root: Path, tmp_path: Path) -> Folder:
    """A copy of the files that are checked, to be broken."""
    root, work = tmp_path / "copy", tmp_path / "work"
    work.mkdir()
    for part in PARTS:
        source, target = bundle_root / part, root / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
    return Folder(root, work)


def check(problems: Callable[..., Any]) -> Check:
    return next(c for c in (*READING, *built.CHECKS) if c.problems is problems)


def failed(checks: tuple[Check, ...], folder: Folder) -> set[str]:
    return {verdict.name for verdict in (judge(c, folder) for c in checks) if verdict.status == "FAIL"}


def change(folder: Folder, config: str, mutate: Callable[[dict[str, Any]], Any]) -> None:
    """Mutate a JSON file and write it in the zoo's format."""
    path = folder.root / "configs" / config
    content = json.loads(path.read_text())
    mutate(content)
    path.write_text(json.dumps(content, indent=4))


def put(folder: Folder, name: str, content: str | bytes) -> None:
    path = folder.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def add(folder: Folder, name: str, text: str) -> None:
    put(folder, name, (folder.root / name).read_text() + text)


def huge(folder: Folder) -> None:
    with open(folder.root / "docs/huge.bin", "wb") as file:
        file.truncate(26 * 2**20)


def drop(folder: Folder, name: str) -> None:
    (folder.root / name).unlink()


def damage(folder: Folder, name: str) -> None:
    data = bytearray((folder.root / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder.root / name).write_bytes(data)


def meta(mutate: Callable[[dict[str, Any]], Any]) -> Callable[[Folder], None]:
    return lambda folder: change(folder, "metadata.json", mutate)


def command(words: str) -> Callable[[Folder], None]:
    return lambda folder: add(folder, "README.md", f"\n```sh\npython -m monai.bundle {words}\n```\n")


HOME = "/".join(["", "home", "someone", "data"])  # joined, so that this file has no such path itself
FAULTS: dict[str, tuple[Callable[[Folder], Any], list[Callable[..., Any]]]] = {
    "a config is missing": (lambda f: drop(f, "configs/logging.conf"), [files.needed_files]),
    "another licence": (lambda f: put(f, "LICENSE", "All rights reserved."), [files.licence]),
    "a large file": (huge, [files.file_sizes]),
    "two spaces": (
        lambda f: put(f, "configs/train.json", json.dumps(f.json("configs/train.json"), indent=2)),
        [files.json_form],
    ),
    "a key twice": (
        lambda f: put(
            f,
            "configs/metadata.json",
            (f.root / "configs/metadata.json")
            .read_text()
            .replace('    "name":', '    "task": "another",\n    "name":', 1),
        ),
        [files.json_form],
    ),
    "an absolute path": (
        lambda f: change(f, "train.json", lambda c: c.update(dataset_dir="/data/ixi")),
        [files.no_machine_paths],
    ),
    "an absolute path in an expression": (
        lambda f: change(f, "train.json", lambda c: c.update(output_dir="$'/scratch/' + @network_name")),
        [files.no_machine_paths],
    ),
    "somebody's home in a page": (lambda f: add(f, "README.md", f"\nsee {HOME}\n"), [files.no_machine_paths]),
    "damaged weights": (lambda f: damage(f, "models/model_x4.pt"), [files.checksums]),
    "weights that are not listed": (lambda f: put(f, "models/model_x8.pt", b"x"), [files.checksums]),
    "an image without a licence": (lambda f: put(f, "docs/pictures/brain.png", b"x"), [files.named_licences]),
    "no authors": (meta(lambda m: m.pop("authors")), [metadata.follows_the_rules]),
    "a shape that is a word": (
        meta(lambda m: m["network_data_format"]["inputs"]["image"].update(spatial_shape=["any", "any"])),
        [metadata.follows_the_rules],
    ),
    "no changelog entry": (meta(lambda m: m["changelog"].pop(m["version"])), [metadata.version_in_changelog]),
    "another version in pyproject.toml": (
        lambda f: put(f, "pyproject.toml", re.sub(r'\nversion = ".*"', '\nversion = "9.9"', f.text("pyproject.toml"))),
        [metadata.one_version],
    ),
    "a package that is not the pinned one": (
        meta(lambda m: m["required_packages_version"].update(nibabel="5.0.0")),
        [requirements.pinned],
    ),
    "a package without an exact version": (
        meta(lambda m: m["required_packages_version"].update(nibabel=">=5")),
        [metadata.follows_the_rules, requirements.pinned],
    ),
    "a package is not named": (
        meta(lambda m: m["required_packages_version"].pop("pytorch-ignite")),
        [requirements.complete],
    ),
    "a new import": (
        lambda f: put(f, "bundle/training/losses.py", "import scipy.ndimage\n" + f.text("bundle/training/losses.py")),
        [requirements.complete],
    ),
    "a documented config is gone": (
        command("run training --config_file configs/finetune.json"),
        [documents.documented_commands],
    ),
    "a documented option is gone": (
        command("run training \\\n    --config_file configs/train.json --learning_rat 1"),
        [documents.documented_commands],
    ),
    "a documented run id is gone": (
        command("run infer --config_file configs/inference.json"),
        [documents.documented_commands],
    ),
    "a documented command is gone": (command("export_all --net_id x"), [documents.documented_commands]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_fails_its_check_and_no_other(fault, folder):
    mutate, expected = FAULTS[fault]
    mutate(folder)
    assert failed(READING, folder) == {check(problems).name for problems in expected}


def test_the_copy_without_a_fault_passes(folder):
    assert failed(READING, folder) == set()


def test_what_a_slim_folder_may_lack_is_skipped_aloud_and_nothing_fails(folder):
    for name in OF_THE_REPOSITORY:
        drop(folder, name)
    shutil.rmtree(folder.root / "configs/experiments")
    found = {verdict.name: verdict.status for verdict in verdicts(folder, READING, ())}
    absent = (files.checksums, metadata.one_version, requirements.pinned, requirements.agree)
    assert {name for name, status in found.items() if status == "SKIP"} == {check(p).name for p in absent}
    assert "FAIL" not in found.values()


def test_a_large_file_may_be_listed(folder):
    huge(folder)
    row = {"path": "docs/huge.bin", "url": "https://example.org/huge.bin", "hash_val": "0", "hash_type": "sha256"}
    put(folder, "large_files.yml", yaml.safe_dump({"large_files": [row]}))
    assert failed(files.CHECKS, folder) == set()


def test_a_schema_file_is_obeyed_besides_the_rules(folder, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object", "required": ["hospital"]}))
    strict = Folder(folder.root, folder.work, schema)
    (problem,) = metadata.follows_the_rules(strict)
    assert "'hospital' is a required property" in problem
    assert judge(check(built.verified_by_monai), strict).status == "FAIL"
    assert judge(check(built.verified_by_monai), folder).status == "PASS"


def test_a_wrong_spatial_size_passes_monais_check_and_fails_ours(folder):
    change(
        folder,
        "metadata.json",
        lambda m: m["network_data_format"]["outputs"]["pred"].update(spatial_shape=["32*n", "32*n"]),
    )
    assert judge(check(built.net_in_out), folder).status == "PASS"
    verdict = judge(check(built.spatial_sizes), folder)
    assert verdict.status == "FAIL" and "[8, 8] gives [16, 16], expected [32, 32]" in verdict.reasons[0]


def test_the_metadata_of_a_folder_by_4_fit_its_config(folder):
    change(folder, "inference.json", lambda c: c.update(scale=4))
    drop(folder, "models/model_x4.pt")
    assert judge(check(built.spatial_sizes), folder).status == "FAIL"
    change(
        folder,
        "metadata.json",
        lambda m: m["network_data_format"]["outputs"]["pred"].update(spatial_shape=["32*n", "32*n"]),
    )
    fresh = Folder(folder.root, folder.work)
    assert fresh.scales == [4] and judge(check(built.spatial_sizes), fresh).status == "PASS"


def test_another_number_of_channels_fails_monais_check(folder):
    change(folder, "metadata.json", lambda m: m["network_data_format"]["outputs"]["pred"].update(num_channels=3))
    assert judge(check(built.net_in_out), folder).status == "FAIL"


@pytest.mark.parametrize("config", ["train.json", "evaluate.json", "inference.json"])
def test_a_config_without_a_property_that_monai_needs_fails(config, folder):
    change(folder, config, lambda c: c.pop("device"))
    verdict = judge(check(built.properties), folder)
    assert verdict.status == "FAIL" and any(config in reason and "device" in reason for reason in verdict.reasons)


class Harmful:
    """An object whose unpickling would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code of a weights file ran",))


def test_weights_that_hold_an_object_or_no_tensors_fail(folder, capsys):
    torch.save({"weight": torch.ones(2), "more": Harmful()}, folder.root / "models/model_a.pt")
    torch.save({"epoch": 3}, folder.root / "models/model_b.pt")
    put(folder, "models/model_c.safetensors", b"nothing")
    reasons = judge(check(built.plain_weights), folder).reasons
    assert [reason.split(":")[0] for reason in reasons] == [
        *("models/model_a.pt", "models/model_b.pt", "models/model_c.safetensors"),
    ]
    assert "code of a weights file ran" not in capsys.readouterr().out


def test_an_experiment_with_an_option_that_nothing_uses_fails(folder):
    for path in (folder.root / "configs/experiments").glob("table*.yaml"):
        path.unlink()
    drop(folder, "configs/experiments/alike.yaml")
    assert judge(check(built.experiments), folder).status == "PASS"
    put(folder, "configs/experiments/table4_9_new.yaml", "run_name: new\nfusoin: false\n")
    verdict = judge(check(built.experiments), folder)
    assert verdict.reasons == ("table4_9_new.yaml: nothing uses fusoin",)


def test_the_citation_is_complete(bundle_root):
    citation = yaml.safe_load((bundle_root / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation) and citation["cff-version"] == "1.2.0"
    (paper,) = citation["references"]
    assert paper["doi"] in (bundle_root / "README.md").read_text()
    assert [author["family-names"] for author in paper["authors"]][:2] == ["Kui", "Ji"]


def test_a_folder_that_is_no_bundle_is_told_in_one_line(bundle_root, tmp_path):
    done = subprocess.run(
        [sys.executable, str(bundle_root / "scripts/zoo_check.py"), str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "not a bundle of this project" in done.stderr


@pytest.mark.slow
def test_a_run_that_fails_or_gives_another_grid_fails_with_the_reason(folder):
    inference = next(c for c in runs.CHECKS if c.name == "inference.json runs from an empty folder")
    change(folder, "inference.json", lambda c: c.update(slice_axis=0))
    assert "(40, 32, 4) became (40, 64, 8)" in judge(inference, folder).reasons[0]
    shutil.rmtree(folder.work)
    folder.work.mkdir()
    change(folder, "inference.json", lambda c: c.update(weights="models/none.pt"))
    reason = judge(inference, Folder(folder.root, folder.work)).reasons[0]
    assert "exit status 1" in reason and "models/none.pt: no such weights" in reason


@pytest.mark.slow
def test_a_slim_bundle_by_4_passes_the_whole_gate(bundle_root, tmp_path):
    export_bundle(tmp_path / "slim", 4)
    weights = (tmp_path / "slim/models/model.pt").read_bytes()
    done = subprocess.run(
        [sys.executable, str(bundle_root / "scripts/zoo_check.py"), str(tmp_path / "slim")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS  inference.json runs from an empty folder" in done.stdout
    assert (tmp_path / "slim/models/model.pt").read_bytes() == weights


def test_the_small_volumes_of_the_runs_are_three_subjects(folder):
    shapes = {nib.load(path).shape for path in folder.volumes.iterdir()}
    assert shapes == {(40, 32, 4)} and len(list(folder.volumes.iterdir())) == 3
    assert all(np.asarray(nib.load(path).dataobj).min() > 0 for path in folder.volumes.iterdir())
