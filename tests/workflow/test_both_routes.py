"""The command and the MONAI workflow share one path: the same volume gives the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cli_command import command
from conftest import blob_volume
from monai.bundle import create_workflow

from bundle.data.nifti import reader
from bundle.data.sidecar import content_digest, sidecar_path


def brain(*shape: int, seed: int = 0) -> np.ndarray:
    """A blob on noise, non-negative, off centre."""
    noise = np.random.default_rng(seed).gamma(2.0, 20.0, shape)
    return (blob_volume(shape, [n / 2 + 0.3 for n in shape]) + noise).astype(np.float32)


def spaced(*voxel: float) -> np.ndarray:
    turned = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) @ np.diag(voxel)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turned, (-31.0, 12.5, 7.25)
    return affine


def masked(*shape: int) -> np.ndarray:
    volume = brain(*shape, seed=1)
    volume[: shape[0] // 3] = 0
    volume[:, -2:] = 0
    return volume


def series(*shape: int, sign: int = 1) -> np.ndarray:
    """Volumes of very different brightness, as in a dynamic scan."""
    volumes = [brain(*shape, seed=n) * 10.0**n for n in range(3)]
    volumes[1] = volumes[1] - (3000.0 if sign < 0 else 0.0)
    return np.stack(volumes, -1).astype(np.float32)


KINDS: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "axial": (brain(14, 17, 5), spaced(1, 1.1, 4)),
    "sagittal": (brain(5, 16, 13), spaced(5, 1, 1)),
    "coronal": (brain(13, 4, 16), spaced(1, 6, 1.2)),
    "isotropic": (brain(12, 13, 6), spaced(1, 1, 1)),
    "image": (brain(15, 12), spaced(1, 1, 1)),
    "single_slice": (brain(1, 15, 12), spaced(1, 1, 1)),
    "series": (series(5, 12, 13), spaced(4, 1, 1)),
    "signed_series": (series(12, 13, 3, sign=-1), spaced(1, 1, 3)),
    "signed": (brain(12, 13, 4) - 300.0, spaced(1, 1, 3)),
    "plateau": (np.where(masked(14, 13, 4) > 0, masked(14, 13, 4), -1024.0).astype(np.float32), spaced(1, 1, 3)),
    "masked": (masked(14, 12, 4), spaced(1, 1, 3)),
    "integers": (masked(12, 14, 3).astype(np.int16), spaced(1, 1, 3)),
    "padded": (np.where(brain(20, 18, 4) > 60, brain(20, 18, 4), -32768).astype(np.float32), spaced(1, 1, 3)),
    "padded_series": (np.where(series(14, 13, 3) < 30, -9e6, series(14, 13, 3)).astype(np.float32), spaced(1, 1, 3)),
    "stray": (np.where(brain(14, 13, 4) > brain(14, 13, 4).min(), brain(14, 13, 4), -2), spaced(1, 1, 3)),
    "constant": (np.full((9, 8, 2), 37.25, np.float32), spaced(1, 1, 3)),
}


def run_config(source: Path, target: Path, root: Path, **options: object) -> None:
    workflow = create_workflow(
        config_file=str(root / "configs/inference.json"),
        workflow_type="inference",
        logging_file=False,
        bundle_root=str(root),
        dataset_dir=str(source),
        output_dir=str(target),
        device="cpu",
        **options,
    )
    workflow.run()
    workflow.finalize()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("volumes")
    for name, (voxels, affine) in KINDS.items():
        nib.save(nib.Nifti1Image(voxels, affine), place / f"{name}.nii.gz")
    return place


@pytest.fixture(scope="module")
def results(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Paths of the results of both routes."""
    out = tmp_path_factory.mktemp("results")
    assert command(folder, out / "command").exit_code == 0
    run_config(folder, out / "config", Path(__file__).parents[2])
    return lambda name: (out / "command" / f"{name}_SRx2.nii.gz", out / "config" / f"{name}_SRx2.nii.gz")


@pytest.mark.parametrize("name", KINDS)
def test_both_routes_write_the_same_bytes(name: str, results: Callable[[str], tuple[Path, Path]]) -> None:
    one, other = results(name)
    assert one.read_bytes() == other.read_bytes()


SIGNED = {"signed_series", "signed", "plateau"}


@pytest.mark.parametrize("name", KINDS)
def test_both_routes_write_the_same_record(name: str, results: Callable[[str], tuple[Path, Path]]) -> None:
    one, other = (json.loads(sidecar_path(path).read_text()) for path in results(name))
    assert one == other
    assert one["SuperResolution"]["Provenance"]["OutputSha256"] == content_digest([results(name)[1]])


def test_both_routes_say_the_same(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = []
    for route in (command, lambda a, b: run_config(a, b, Path(__file__).parents[2])):
        caplog.clear()
        reader._already_logged.clear()
        route(folder / "stray.nii.gz", tmp_path / str(len(said)))
        lines = [r.getMessage() for r in caplog.records if r.name == "iconet" and r.levelname == "WARNING"]
        said.append({line.split("stray.nii.gz: ")[-1] for line in lines})
    assert said[0] == said[1] and any("slightly negative" in line for line in said[0])


def test_the_command_skips_what_the_config_has_finished_and_neither_takes_it_as_input(
    folder: Path, tmp_path: Path
) -> None:
    source = folder / "signed.nii.gz"
    run_config(source, tmp_path / "out", Path(__file__).parents[2])
    assert "1 skipped" in command(source, tmp_path / "out").output
    with pytest.raises(SystemExit, match="only results of this program"):
        run_config(tmp_path / "out", tmp_path / "again", Path(__file__).parents[2])
    assert command(tmp_path / "out", tmp_path / "again").exit_code == 2


AXES = {"sagittal": 0, "single_slice": 0, "series": 0, "coronal": 1}


@pytest.mark.parametrize("name", KINDS)
def test_the_right_axes_are_refined(name: str, results: Callable[[str], tuple[Path, Path]]) -> None:
    voxels, affine = KINDS[name]
    axis = AXES.get(name, 2)
    factors = [1 if a == axis or a > 2 else 2 for a in range(voxels.ndim)]
    for path in results(name):
        image = nib.load(path)
        assert image.shape == tuple(n * f for n, f in zip(voxels.shape, factors, strict=True))
        scale = [1 / f for f in (*factors, 1)[:3]] if voxels.ndim > 2 else [0.5, 0.5, 1]
        np.testing.assert_allclose(image.affine, affine @ np.diag([*scale, 1]), atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_the_result_is_non_negative_where_the_input_is(name: str, results: Callable[[str], tuple[Path, Path]]) -> None:
    for path in results(name):
        voxels = nib.load(path).get_fdata()
        negative = voxels[voxels != KINDS[name][0].min()] if "padded" in name else voxels
        assert (negative.min() < 0) == (name in SIGNED)


def test_each_volume_of_a_series_is_treated_as_if_it_stood_alone(
    folder: Path, results: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    voxels, affine = KINDS["series"]
    for number in range(voxels.shape[3]):
        nib.save(nib.Nifti1Image(voxels[..., number], affine), tmp_path / f"{number}.nii.gz")
    assert command(tmp_path, tmp_path / "out").exit_code == 0
    together = nib.load(results("series")[0]).get_fdata()
    for number in range(voxels.shape[3]):
        alone = nib.load(tmp_path / "out" / f"{number}_SRx2.nii.gz").get_fdata()
        np.testing.assert_array_equal(together[..., number], alone)


@pytest.mark.parametrize("options", [{"slice_axis": 1}, {"data_consistency": 0.0}, {"slice_batch": 1}])
def test_the_options_mean_the_same_on_both_routes(options: dict[str, object], folder: Path, tmp_path: Path) -> None:
    source = folder / "sagittal.nii.gz"
    given = [part for key, value in options.items() for part in (f"--{key}", value)]
    assert command(source, tmp_path / "command", *given).exit_code == 0
    run_config(source, tmp_path / "config", Path(__file__).parents[2], **options)
    one, other = (tmp_path / name / "sagittal_SRx2.nii.gz" for name in ("command", "config"))
    assert one.read_bytes() == other.read_bytes()


def test_results_of_the_command_are_no_input_of_the_config(folder: Path, tmp_path: Path) -> None:
    assert command(folder / "signed.nii.gz", tmp_path / "out").exit_code == 0
    with pytest.raises(SystemExit, match="only results of this program"):
        run_config(tmp_path / "out", tmp_path / "again", Path(__file__).parents[2])
