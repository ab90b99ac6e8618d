"""Files that are not what their name says, and pairs whose header says something else."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.data import VolumeError, read_header, read_volume

VOXELS = np.arange(1, 121, dtype=np.int16).reshape(6, 5, 4)
IMAGE = nib.Nifti1Image(VOXELS, np.diag([1, 1, 3, 1]))
WHOLE = IMAGE.to_bytes()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(gzip.compress(WHOLE)), "gzip in gzip.*gunzip"),
        (gzip.compress(gzip.compress(gzip.compress(WHOLE))), "gzip in gzip"),
        (bz2.compress(WHOLE), "bzip2.*bunzip2"),
        (gzip.compress(bz2.compress(WHOLE)), "bzip2"),
        (lzma.compress(WHOLE), "xz.*unxz"),
        (b"\x28\xb5\x2f\xfd" + bytes(500), "zstd"),
        (b"<!DOCTYPE html><html><body>Please log in</body></html>", "web page"),
        (b'\n<?xml version="1.0"?>' + b" " * 500, "web page or XML"),
        (bytes(128) + b"DICM" + bytes(500), "DICOM"),
        (b"PK\x03\x04" + bytes(500), "zip"),
        (b"NRRD0004\ntype: float\n" + bytes(500), "NRRD"),
        (b"\x89HDF\r\n\x1a\n" + bytes(500), "HDF5"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n", "Git LFS"),
        (b"/annex/objects/MD5E-s12--0.nii.gz\n", "git annex get"),
    ],
)
@pytest.mark.parametrize("name", ["x.nii.gz", "x.nii", "x.hdr"])
def test_what_is_no_nifti_is_named_in_one_line(content: bytes, said: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    for read in (read_volume, read_header):
        with pytest.raises(VolumeError, match=said) as told:
            read(tmp_path / name)
        assert "\n" not in str(told.value)


def pair(folder: Path, magic: bytes, offset: float, before: int, after: int, packed: bool, version: int = 1) -> Path:
    """A header with this magic and vox_offset, and an image with so many bytes around the voxels."""
    header = nib.nifti1.Nifti1PairHeader() if version == 1 else nib.nifti2.Nifti2PairHeader()
    header.set_data_shape(VOXELS.shape)
    header.set_data_dtype(np.int16)
    header.set_sform(np.diag([1, 1, 3, 1]), 1)
    header["magic"] = magic
    header["vox_offset"] = offset
    (folder / "x.hdr").write_bytes(header.binaryblock + bytes(4))
    content = bytes(before) + VOXELS.tobytes(order="F") + bytes(after)
    (folder / "x.img").write_bytes(gzip.compress(content) if packed else content)
    return folder / "x.hdr"


@pytest.mark.parametrize(("magic", "version", "offset"), [(b"n+1", 1, 0), (b"n+1", 1, 352), (b"n+2", 2, 544)])
@pytest.mark.parametrize("name", ["x.hdr", "x.img"])
def test_a_pair_whose_header_says_single_file_is_read_with_a_warning(
    magic: bytes, version: int, offset: int, name: str, tmp_path: Path
) -> None:
    path = pair(tmp_path, magic, offset, 0, 0, False, version)
    volume = read_volume(path.with_name(name))
    np.testing.assert_array_equal(volume.array, VOXELS)
    assert any("the voxels are in x.img" in text for text in volume.warnings)
    assert read_header(path).get_data_shape() == VOXELS.shape


@given(
    offset=st.sampled_from([0, 16, 352]),
    before=st.sampled_from([0, 16, 352]),
    after=st.sampled_from([0, 7, 300]),
    packed=st.booleans(),
)
def test_a_pair_whose_header_says_single_file_gives_its_voxels_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, offset: int, before: int, after: int, packed: bool
) -> None:
    path = pair(tmp_path_factory.mktemp("pair"), b"n+1", offset, before, after, packed)
    try:
        volume = read_volume(path)
    except VolumeError as error:
        assert (before, after, packed) != (0, 0, False) and "\n" not in str(error)
    else:
        np.testing.assert_array_equal(volume.array, VOXELS)


@given(before=st.sampled_from([0, 16, 352]), after=st.sampled_from([0, 7]), packed=st.booleans())
def test_a_pair_as_the_standard_wants_it_is_read_as_it_says(
    tmp_path_factory: pytest.TempPathFactory, before: int, after: int, packed: bool
) -> None:
    volume = read_volume(pair(tmp_path_factory.mktemp("pair"), b"ni1", before, before, after, packed))
    np.testing.assert_array_equal(volume.array, VOXELS)
    assert not any("vox_offset" in text or "magic" in text for text in volume.warnings)


def test_the_place_of_a_single_file_in_the_header_of_a_pair_is_not_believed(tmp_path: Path) -> None:
    volume = read_volume(pair(tmp_path, b"ni1", 352, 0, 0, False))
    np.testing.assert_array_equal(volume.array, VOXELS)
    assert any("x.img holds the voxels alone" in text for text in volume.warnings)


def test_a_single_file_named_hdr_is_read_although_an_image_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "x.hdr").write_bytes(WHOLE)
    (tmp_path / "x.img").write_bytes(bytes(240))
    np.testing.assert_array_equal(read_volume(tmp_path / "x.hdr").array, VOXELS)
