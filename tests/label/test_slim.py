"""The exported folder of one scale, and what MONAI Label does with such a folder, reproduced step by step.

The steps that MONAI Label 0.8.5 adds (resizing after the bundle's post-processing, replacements in the training config)
are written out here, so that they are tested without installing it; test_label_server.py uses the real one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged, Resize, SaveImaged

from bundle.cli.command import main
from bundle.cli.export_bundle import ExportError, export_bundle
from bundle.inference.shipped import weights_path
from bundle.inference.volume import super_resolve
from bundle.inference.weights import WeightsError, load_weights
from bundle.networks import build_network


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return {scale: export_bundle(tmp_path_factory.mktemp("out") / f"iconet_x{scale}", scale) for scale in (2, 4)}


@pytest.fixture
def fresh(tmp_path):
    return export_bundle(tmp_path / "iconet_x2", 2)


@pytest.fixture
def volume(tmp_path, write_nifti):
    affine = np.array([[0, -1.5, 0, 12], [1.25, 0, 0, -30], [0, 0, 4, 5], [0, 0, 0, 1.0]])
    data = np.random.default_rng(0).integers(0, 3000, (12, 10, 2)).astype(np.int16)
    return write_nifti(tmp_path / "in" / "scan.nii.gz", data, affine)


def expected(root, volume, scale, weights=None):
    """The result of the command line for a volume."""
    network = build_network(scale=scale)
    load_weights(network, weights or weights_path(root / "models", scale=scale))
    image = nib.load(volume)
    return super_resolve(image.get_fdata(dtype=np.float32), image.affine, network).voxels


# The folder


@pytest.mark.parametrize("scale", [2, 4])
def test_the_folder_holds_what_serving_needs_and_nothing_else(scale, exported):
    folder = exported[scale]
    assert {p.name for p in folder.iterdir()} == {"LICENSE", "bundle", "configs", "docs", "models"}
    assert [p.name for p in (folder / "models").iterdir()] == ["model.pt"]
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 6e6
    assert not list(folder.rglob("__pycache__"))
    assert "@_meta_" not in (folder / "configs/inference.json").read_text()
    assert not {"cli", "report"} & {p.name for p in (folder / "bundle").iterdir()}


def test_the_folder_holds_under_15000_lines_of_python(exported):
    assert sum(len(p.read_text().splitlines()) for p in exported[2].rglob("*.py")) < 15000


@pytest.mark.parametrize("scale", [2, 4])
def test_the_metadata_say_the_scale(scale, exported, monkeypatch):
    monkeypatch.chdir(exported[scale])
    metadata = json.loads((exported[scale] / "configs/metadata.json").read_text())
    shapes = [
        metadata["network_data_format"][g][k]["spatial_shape"] for g, k in (("inputs", "image"), ("outputs", "pred"))
    ]
    low, high = ([eval(s, {"n": 1}) for s in shape] for shape in shapes)
    assert high == [scale * n for n in low]
    monai.bundle.verify_net_in_out(
        net_id="network_def", meta_file="configs/metadata.json", config_file="configs/inference.json", device="cpu"
    )


def test_the_folder_runs_by_itself_and_gives_what_the_command_line_gives(exported, bundle_root, volume, tmp_path):
    folder = exported[4]
    run = (
        "import monai.bundle, sys; "
        f"monai.bundle.run(run_id='inference', config_file={str(folder / 'configs/inference.json')!r}, "
        f"bundle_root={str(folder)!r}, device='cpu', "
        f"dataset_dir={str(volume)!r}, output_dir={str(tmp_path / 'out')!r}); "
        "print('package', sys.modules['bundle'].__file__)"
    )
    (tmp_path / "clean").mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", run],
        cwd=tmp_path / "clean",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"package {folder}" in done.stdout
    result = nib.load(tmp_path / "out/scan_SRx4.nii.gz")
    # the same arithmetic in another process: float32 rounding at most
    np.testing.assert_allclose(result.get_fdata(), expected(bundle_root, volume, 4), atol=1e-3)


def in_folder(folder, *words):
    """Run Python in an exported folder, as a user does: it imports the folder's own package."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-W", "ignore", *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_monai_bundle_run_works_in_the_folder(fresh, bundle_root, volume, tmp_path):
    words = ["-m", "monai.bundle", "run", "inference", "--config_file", "configs/inference.json", "--device", "cpu"]
    in_folder(fresh, *words, "--dataset_dir", volume, "--output_dir", tmp_path / "out")
    result = nib.load(tmp_path / "out/scan_SRx2.nii.gz")
    np.testing.assert_allclose(result.get_fdata(), expected(bundle_root, volume, 2), atol=1e-3)


def test_every_module_of_the_folder_can_be_imported_and_comes_from_it(fresh):
    files = sorted(path.relative_to(fresh) for path in (fresh / "bundle").rglob("*.py"))
    modules = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files]
    code = f"import importlib; [print(importlib.import_module(name).__file__) for name in {modules}]"
    assert in_folder(fresh, "-c", code).split() == [str(fresh / path) for path in files]


def test_a_baseline_is_exported_with_its_module(tmp_path):
    torch.save(build_network("mambair_light", 2).state_dict(), tmp_path / "weights.pt")
    folder = export_bundle(tmp_path / "baseline", 2, "mambair_light", tmp_path / "weights.pt")
    code = "from bundle.networks import build_network; print(type(build_network('mambair_light')).__module__)"
    assert in_folder(folder, "-c", code).strip() == "bundle.networks.baselines.mambair"


def test_an_export_can_be_repeated_in_its_place(fresh):
    before = {p.relative_to(fresh): p.read_bytes() for p in fresh.rglob("*") if p.is_file()}
    (fresh / "bundle/__pycache__").mkdir()
    (fresh / "bundle/__pycache__/slim.pyc").write_text("of the folder that is replaced")
    export_bundle(fresh, 2)
    assert {p.relative_to(fresh): p.read_bytes() for p in fresh.rglob("*") if p.is_file()} == before
    assert [p.name for p in fresh.parent.iterdir()] == ["iconet_x2"]


def test_another_folder_is_not_overwritten(bundle_root, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("all of it")
    with pytest.raises(ExportError, match="not an exported bundle"):
        export_bundle(tmp_path / "mine", 2)
    with pytest.raises(ExportError, match="not an exported bundle"):
        export_bundle(bundle_root, 2)
    assert [p.name for p in tmp_path.rglob("*")] == ["mine", "thesis.txt"]


def test_trained_weights_are_not_overwritten(fresh):
    torch.save(build_network(scale=2).state_dict(), fresh / "models/model.pt")
    with pytest.raises(ExportError, match="trained or changed after"):
        export_bundle(fresh, 2)


@pytest.mark.parametrize("name", ["configs/train.json", "configs/metadata.json", "docs/note.txt"])
def test_an_edited_or_added_file_is_not_lost(name, fresh):
    (fresh / name).write_text("{}")
    with pytest.raises(ExportError, match=f"{name} was changed after the export"):
        export_bundle(fresh, 2)
    assert (fresh / name).read_text() == "{}"


@pytest.mark.parametrize("options", [{"scale": 4}, {"scale": 2, "weights": "models/model.pt"}])
def test_an_export_of_other_options_is_not_replaced(options, fresh, bundle_root):
    options = {**options, **({"weights": bundle_root / options["weights"]} if "weights" in options else {})}
    with pytest.raises(ExportError, match="another network, scale or weights"):
        export_bundle(fresh, **options)


@pytest.mark.parametrize("name", ["spleen_Segmentation", "deepgrow2", "two words", "größe", ".hidden"])
def test_a_name_with_which_monai_label_fails_is_refused(name, tmp_path):
    with pytest.raises(ExportError, match="use only letters|choose a name without"):
        export_bundle(tmp_path / name, 2)
    assert not list(tmp_path.iterdir())


def test_a_link_leads_to_the_folder_that_is_replaced(fresh, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(fresh)
    export_bundle(tmp_path / "link", 2)
    assert (tmp_path / "link").readlink() == fresh
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert export_bundle(".", 2) == tmp_path / "here"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here", "iconet_x2", "link"]


def test_weights_of_another_scale_leave_nothing_behind(bundle_root, tmp_path):
    with pytest.raises(WeightsError, match="not the weights of this network"):
        export_bundle(tmp_path / "out", 4, weights=bundle_root / "models/model.pt")
    assert not list(tmp_path.iterdir())


def test_the_program_says_in_one_line_what_is_wrong(tmp_path):
    export = ["export-bundle", str(tmp_path / "out"), "--scale"]
    done = CliRunner().invoke(main, [*export, "4", "--weights", str(tmp_path / "none.pt")])
    assert done.exit_code == 1
    assert done.output.startswith(f"Error: {tmp_path / 'none.pt'}: no such weights")
    assert len(done.output.splitlines()) == 1
    done = CliRunner().invoke(main, [*export, "8"])
    assert done.exit_code == 1
    assert len(done.output.splitlines()) == 1


# Inference as MONAI Label does it


def open_config(folder, name):
    """Only the config, with the bundle root set: no metadata, no options."""
    parser = ConfigParser()
    parser.read_config(folder / f"configs/{name}.json")
    parser.config["bundle_root"] = str(folder)
    return parser


def restored(data):
    """What MONAI Label appends to the post-processing: resample to the matrix and affine of the image, if present."""
    reference = data.get("image")
    meta = reference.meta if isinstance(reference, MetaTensor) else data.get("image_meta_dict", {})
    pred = data["pred"]
    size = tuple(meta.get("spatial_shape", pred.shape[1:]))
    if tuple(pred.shape[1:]) != size:
        pred = Resize(size, mode="nearest")(pred)
    return {**data, "pred": pred[0], "pred_meta_dict": {"affine": meta.get("original_affine")}}


def infer(folder, image, keep_image=False, **request):
    """One request: (voxels, affine) that the writer gets, and the data type requested from it."""
    parser = open_config(folder, "inference")
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(folder / "models/model.pt"))
    before, after = (list(parser.get_parsed_content(k).transforms) for k in ("preprocessing", "postprocessing"))
    after = [t for t in after if not isinstance(t, SaveImaged)]
    for transform in before:
        if isinstance(transform, LoadImaged):
            transform._loader.image_only = False
    data = Compose(before)({"image": str(image), "device": "cpu", **request})
    data["pred"] = parser.get_parsed_content("inferer")(data["image"][None], network.eval())[0]
    data = restored(Compose(after[:-1] if keep_image else after)(data))
    affine = data["pred_meta_dict"]["affine"]
    return data["pred"].numpy(), data["pred"].affine.numpy() if affine is None else affine, data.get("result_dtype")


@pytest.mark.parametrize("scale", [2, 4])
def test_shape_affine_and_values_survive_what_monai_label_appends(scale, exported, bundle_root, volume):
    voxels, affine, _ = infer(exported[scale], volume)
    assert voxels.dtype == np.float32
    np.testing.assert_allclose(voxels, expected(bundle_root, volume, scale), atol=1e-3)
    np.testing.assert_allclose(affine, nib.load(volume).affine @ np.diag([1 / scale, 1 / scale, 1, 1]), atol=1e-6)


def test_without_the_last_step_the_result_would_be_the_small_matrix_again(exported, volume):
    voxels, affine, _ = infer(exported[2], volume, keep_image=True)
    assert voxels.shape == (12, 10, 2)
    np.testing.assert_allclose(affine, nib.load(volume).affine)


def test_a_wish_for_uint8_is_dropped(exported, volume):
    assert infer(exported[2], volume, result_dtype="uint8")[2] is None


def test_a_series_is_refused_with_a_reason(exported, tmp_path, write_nifti):
    series = write_nifti(tmp_path / "series.nii.gz", np.ones((12, 10, 2, 3), np.int16))
    with pytest.raises(RuntimeError) as caught:  # MONAI's Compose; MONAI Label runs the bare transforms
        infer(exported[2], series)
    assert re.search(r"series.nii.gz: 3 volumes in one file; give them one by one", str(caught.value.__cause__))


# Training as MONAI Label does it


def train(folder, files, val_files, **options):
    """The replacements of MONAI Label's training task, and small numbers."""
    items, val_items = ([{"image": str(f), "label": str(f)} for f in fs] for fs in (files, val_files))
    handlers = open_config(folder, "train").get("train#handlers")
    load = {
        "_target_": "CheckpointLoader",
        "load_path": str(folder / "models/model.pt"),
        "load_dict": {"model": "$@network"},
        "strict": False,
    }
    monai.bundle.run(
        run_id="run",
        init_id=None,
        final_id=None,
        meta_file=str(folder / "configs/metadata.json"),
        config_file=str(folder / "configs/train.json"),
        logging_file=False,
        **{
            "bundle_root": str(folder),
            "train#trainer#max_epochs": 1,
            "train#dataset#data": items,
            "device": "cpu",
            "train#handlers": [load, *handlers],
            "validate#dataset#data": val_items,
            **{"updates_per_epoch": 2, "batch_size": 2, "patch_size": 32, **options},
        },
    )


def weights(folder):
    return torch.load(folder / "models/model.pt", weights_only=True)


def change(first, second):
    return max(float((first[k].float() - second[k].float()).abs().max()) for k in first)


def test_training_without_validation_volumes_moves_the_weights_a_little(fresh, training_folder):
    before = weights(fresh)
    train(fresh, sorted(training_folder.iterdir())[:1], [])
    assert 0 < change(before, weights(fresh)) < 0.01  # fine-tuned, not trained from scratch


def test_training_that_makes_things_worse_leaves_the_weights(fresh, training_folder):
    before = weights(fresh)
    files = sorted(training_folder.iterdir())
    train(fresh, files[:2], files[2:3], learning_rate=1.0, warmup_updates=0, ema_momentum=0.9)
    assert change(before, weights(fresh)) == 0
    assert [p.name for p in (fresh / "models").iterdir()] == ["model.pt"]  # a shorter name would be served instead
