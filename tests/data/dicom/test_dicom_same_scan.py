"""A derived series is the same scan: dcm2niix finds in it what it finds in the source, on a finer grid.

Same number and order of volumes, b-values, gradient directions and values, and the affine of the grid rule. The real
series below ICONET_DATA/dicom are checked if they are there, everything else on generated series of each vendor.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import dicom_vendors as vendors
import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_factory import save
from programs import program
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from bundle.data.dicom.find import find_series
from bundle.data.dicom.read import read_series
from bundle.data.dicom.write import write_series
from bundle.physics import superres_affine

SCALE = 2
DCM2NIIX = program("dcm2niix")
Renumber = Callable[[list[Dataset]], list[Dataset]]
REAL = Path(os.environ.get("ICONET_DATA", "")) / "dicom" if os.environ.get("ICONET_DATA") else None
REAL_SERIES = ["dcm_qa_enh/Philips", "dcm_qa_enh/XA10"]
REAL_SERIES += [f"dicom2nifti/{name}/001" for name in ("ge_dti", "philips_fmri", "siemens_dti_classic")]


class Image(NamedTuple):
    """A NIfTI image that dcm2niix wrote, with its diffusion tables (None if there are none)."""

    voxels: np.ndarray
    affine: np.ndarray
    bval: np.ndarray | None
    bvec: np.ndarray | None


def converted(folder: Path, out: Path) -> list[Image]:
    """The images that dcm2niix makes of a folder, the brightest last (names depend on how many there are)."""
    if DCM2NIIX is None:
        pytest.skip("dcm2niix is not installed")
    out.mkdir()
    subprocess.run([DCM2NIIX, "-o", str(out), "-f", "x", "-b", "n", str(folder)], check=True, capture_output=True)
    images = []
    for path in sorted(out.glob("*.nii")):
        image = nib.load(path)
        tables = [
            np.loadtxt(table) if (table := path.with_suffix(end)).exists() else None for end in (".bval", ".bvec")
        ]
        images.append(Image(image.get_fdata(), image.affine, *tables))
    return sorted(images, key=lambda one: one.voxels.mean())


def derive_all(source: Path, out: Path, overshoot: float = 0.0) -> list[Path]:
    """Derive every volume of a folder, each voxel repeated; `overshoot` replaces one that the source does not have."""
    paths: list[Path] = []
    for found in find_series(source).series:
        volume = read_series(found)
        fine = np.repeat(np.repeat(volume.voxels, SCALE, axis=0), SCALE, axis=1)
        if overshoot:
            fine[1, 1, 0] = overshoot
        affine = np.asarray(superres_affine(volume.affine, (SCALE, SCALE, 1)))
        paths += write_series(volume, fine, affine, out / found.label, SCALE, 2).paths
    return paths


def assert_same_scan(source: Path, derived: Path, tmp: Path, tolerance: float = 1e-3) -> None:
    """Compare what dcm2niix makes of both; `tolerance` for single voxels relative to the brightest."""
    before, after = converted(source, tmp / "before"), converted(derived, tmp / "after")
    assert len(before) == len(after) > 0
    for old, new in zip(before, after, strict=True):
        columns, rows, *rest = old.voxels.shape
        assert new.voxels.shape == (SCALE * columns, SCALE * rows, *rest)
        # dcm2niix turns the rows over, so a voxel of the source may be the second of its two.
        step = np.linalg.inv(new.affine) @ old.affine
        np.testing.assert_allclose(step[:3, :3], np.diag([SCALE, SCALE, 1]), atol=1e-3)
        x, y = np.rint(step[:2, 3]).astype(int)
        np.testing.assert_allclose(step[:3, 3], [x, y, 0], atol=1e-2)
        assert x in (0, SCALE - 1) and y in (0, SCALE - 1)
        sampled = new.voxels[x::SCALE, y::SCALE]
        np.testing.assert_allclose(sampled, old.voxels, atol=tolerance * np.abs(old.voxels).max())
        np.testing.assert_allclose(sampled.mean((0, 1, 2)), old.voxels.mean((0, 1, 2)), rtol=max(1e-3, tolerance))
        for name in ("bval", "bvec"):
            table, other = getattr(old, name), getattr(new, name)
            assert (table is None) == (other is None), name
            if table is not None:
                np.testing.assert_allclose(other, table, atol=1e-6)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=["explicit", "implicit"])
@pytest.mark.parametrize("vendor", vendors.VENDORS)
def test_diffusion_series_of_every_vendor(tmp_path: Path, vendor: str, syntax: str) -> None:
    source = save(vendors.diffusion(vendor), tmp_path / "in", syntax)
    derive_all(source, tmp_path / "out")
    assert_same_scan(source, tmp_path / "out", tmp_path)


@pytest.mark.parametrize("vendor", vendors.VENDORS)
def test_dcm2niix_itself_finds_b_values_in_these_series(tmp_path: Path, vendor: str) -> None:
    (image,) = converted(save(vendors.diffusion(vendor), tmp_path / "in"), tmp_path / "nii")
    assert image.voxels.shape[3] == len(vendors.VOLUMES)
    np.testing.assert_allclose(image.bval, [b for b, _ in vendors.VOLUMES])


@pytest.mark.parametrize("vendor", ["Siemens", "Philips", "Philips anonymised", "UIH"])
def test_the_same_values_where_the_slope_becomes_coarser(tmp_path: Path, vendor: str) -> None:
    source = save(vendors.diffusion(vendor), tmp_path / "in")
    paths = derive_all(source, tmp_path / "out", overshoot=100_000.0)
    slopes = {float(pydicom.dcmread(path).RescaleSlope) for path in paths}
    assert min(slopes) >= 2  # otherwise this tests nothing
    assert_same_scan(source, tmp_path / "out", tmp_path, tolerance=4e-3)


@pytest.mark.parametrize("overshoot", [0.0, 100_000.0], ids=["same slope", "coarser slope"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=["explicit", "implicit"])
def test_philips_enhanced_objects(tmp_path: Path, syntax: str, overshoot: float) -> None:
    """One object per volume, which dcm2niix does not stack; their folders and InstanceNumber give the order."""
    source = save([vendors.philips_enhanced()], tmp_path / "in", syntax)
    paths = derive_all(source, tmp_path / "out", overshoot)
    (whole,) = converted(source, tmp_path / "whole")
    assert whole.voxels.shape[3] == len(paths) == 2
    for number, path in enumerate(sorted(paths)):
        (image,) = converted(path.parent, tmp_path / str(number))
        dataset = pydicom.dcmread(path)
        assert dataset.InstanceNumber == number + 1
        expected = whole.voxels[..., number]
        np.testing.assert_allclose(image.voxels[::2, 1::2], expected, atol=4e-3 * expected.max())
        for group in dataset.PerFrameFunctionalGroupsSequence:
            assert group.MRDiffusionSequence[0].DiffusionBValue == whole.bval[number]
            content = group.FrameContentSequence[0]
            assert list(content.DimensionIndexValues) == [content.InStackPositionNumber, content.TemporalPositionIndex]
            assert content.TemporalPositionIndex == number + 1
            assert "PixelSpacing" not in group[0x2005140F].value[0]


def test_siemens_enhanced_objects_of_one_volume_each(tmp_path: Path) -> None:
    source = save(vendors.siemens_enhanced(), tmp_path / "in")
    (image,) = converted(source, tmp_path / "nii")
    np.testing.assert_allclose(image.bval, [b for b, _ in vendors.VOLUMES])
    derive_all(source, tmp_path / "out")
    assert_same_scan(source, tmp_path / "out", tmp_path)


def test_a_big_endian_source(tmp_path: Path) -> None:
    source = save(vendors.diffusion("Siemens"), tmp_path / "in", ExplicitVRBigEndian)
    derive_all(source, tmp_path / "out")
    assert_same_scan(source, tmp_path / "out", tmp_path)


def interleaved(instances: list[Dataset]) -> list[Dataset]:
    """Numbered slice by slice, all volumes of one slice first."""
    count = len(vendors.VOLUMES)
    for instance in instances:
        volume, at = divmod(int(instance.InstanceNumber) - 1, len(instances) // count)
        instance.InstanceNumber = at * count + volume + 1
    return instances


def downwards(instances: list[Dataset]) -> list[Dataset]:
    """Numbered against the slice positions in each volume."""
    slices = len(instances) // len(vendors.VOLUMES)
    for instance in instances:
        volume, at = divmod(int(instance.InstanceNumber) - 1, slices)
        instance.InstanceNumber = volume * slices + slices - at
    return instances


def with_gaps(instances: list[Dataset]) -> list[Dataset]:
    for instance in instances:
        instance.InstanceNumber = 100 + 7 * int(instance.InstanceNumber)
    return instances


@pytest.mark.parametrize("renumber", [interleaved, downwards, with_gaps])
def test_the_order_of_volumes_whatever_the_numbering(tmp_path: Path, renumber: Renumber) -> None:
    source = save(renumber(vendors.diffusion("Philips")), tmp_path / "in")
    derive_all(source, tmp_path / "out")
    assert_same_scan(source, tmp_path / "out", tmp_path)


@pytest.mark.parametrize("name", REAL_SERIES)
def test_real_series(tmp_path: Path, name: str) -> None:
    if REAL is None or not (REAL / name).is_dir():
        pytest.skip("ICONET_DATA has no folder dicom with this series")
    derive_all(REAL / name, tmp_path / "out")
    assert_same_scan(REAL / name, tmp_path / "out", tmp_path)
