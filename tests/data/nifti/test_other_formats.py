"""MGH, NRRD and MetaImage: every voxel lies where nibabel and ITK say, with its value; what is no image is refused."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from other_formats import matrix_of, mgh_bytes, nrrd, sitk_image

from bundle.data import VolumeError, check_volume_file, read_header, read_volume
from bundle.data.find import volume_files, volumes_below
from bundle.data.foreign.names import detached
from bundle.data.nifti.storage import Storage

sitk = pytest.importorskip("SimpleITK")

MGH_TYPES = ("uint8", "int16", "int32", "float32", "uint16")
ITK_TYPES = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")
SHAPES = (
    st.lists(st.integers(1, 6), min_size=3, max_size=4)
    .map(tuple)
    .filter(lambda shape: max(shape[1:3]) > 1 and shape[3:] != (1,))
)


def voxels(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 120, shape).astype(dtype)


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, dtype=st.sampled_from(MGH_TYPES), seed=st.integers(0, 2**31), packed=st.booleans())
def test_mgh_is_read_as_nibabel_reads_it(shape, dtype, seed, packed, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("mgh") / ("a.mgz" if packed else "a.mgh")
    nib.save(nib.MGHImage(voxels(shape, dtype, seed), matrix_of(seed).astype(np.float32)), path)
    image, volume = nib.load(path), read_volume(path)
    assert volume.array.shape == image.shape and np.array_equal(volume.array, image.get_fdata())
    assert np.allclose(volume.affine, image.affine, atol=1e-4) and volume.header.get_data_dtype() == dtype
    assert check_volume_file(path).storage.dtype.newbyteorder("=") == dtype


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple).filter(lambda shape: shape[3:] != (1,)),
    dtype=st.sampled_from(ITK_TYPES),
    ending=st.sampled_from((".nrrd", ".nhdr", ".mha", ".mhd")),
    packed=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_itk_formats_are_read_as_itk_reads_them(shape, dtype, ending, packed, seed, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("itk") / f"a{ending}"
    data = voxels(shape, dtype, seed)
    sitk.WriteImage(sitk_image(data, matrix_of(seed)), str(path), useCompression=packed)
    image, volume = sitk.ReadImage(str(path)), read_volume(path)
    assert np.array_equal(volume.array, data) and volume.header.get_data_dtype() == dtype
    assert check_volume_file(path).storage == Storage(np.dtype(dtype))
    for index in np.ndindex(*(min(n, 2) for n in shape)):
        at = [int(i) * (n - 1) for i, n in zip(index, shape, strict=True)]
        x, y, z = (*image.TransformIndexToPhysicalPoint(at), 0.0)[:3]
        placed = volume.affine @ [*(*at, 0, 0)[:2], at[2] if len(at) > 2 else 0, 1]
        assert np.allclose(placed[:3], [-x, -y, z], atol=1e-5 * max(1, np.abs(placed).max()))


@pytest.mark.parametrize(
    ("space", "turn"),
    [
        ("left-posterior-superior", (-1, -1, 1)),
        ("LPS", (-1, -1, 1)),
        ("right-anterior-superior", (1, 1, 1)),
        ("RAS", (1, 1, 1)),
        ("LAS", (-1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
    ],
)
@pytest.mark.parametrize("time", [False, True])
def test_the_space_of_a_nrrd_header_decides_where_it_lies(space: str, turn, time: bool, tmp_path: Path) -> None:
    directions = [(0.9, 0.1, 0.0), (0.0, 2.0, 0.3), (0.2, 0.0, -3.0)]
    name = space if not time else f"{space}T" if len(space) == 3 else f"{space}-time"
    path = nrrd(tmp_path / "a.nrrd", (2, 3, 4), directions, (5, 6, 7), name, time=2 if time else 0)
    affine, header = read_volume(path).affine, read_header(path)
    assert np.allclose(affine[:3, :3], np.diag(turn) @ np.array(directions).T)
    assert np.allclose(affine[:3, 3], np.multiply(turn, (5, 6, 7)))
    assert header.get_data_shape() == ((2, 3, 4, 2) if time else (2, 3, 4)) and header["sform_code"] == 1


@pytest.mark.parametrize("space", ["scanner-xyz", "3D-right-handed", None])
def test_a_space_that_does_not_say_where_the_patient_is_gives_a_warning(space: str | None, tmp_path: Path) -> None:
    directions = None if space is None else np.diag([1, 2, 3])
    volume = read_volume(nrrd(tmp_path / "a.nrrd", (2, 3, 4), directions, (5, 6, 7), space))
    assert any("position and orientation are unknown" in line for line in volume.warnings)
    assert any("no voxel size" in line for line in volume.warnings) == (space is None)
    assert volume.header["sform_code"] == 2


def test_metaimage_without_size_and_direction_gives_the_same_warnings(tmp_path: Path) -> None:
    path, data = tmp_path / "a.mha", voxels((2, 3, 4), "float32")
    head = "ObjectType = Image\nNDims = 3\nDimSize = 2 3 4\nElementType = MET_FLOAT\n"
    for fields, count in (("", 2), ("ElementSpacing = 1 2 3\n", 1), ("Orientation = 1 0 0 0 1 0 0 0 1\n", 1)):
        path.write_bytes(f"{head}{fields}ElementDataFile = LOCAL\n".encode() + data.tobytes(order="F"))
        volume = read_volume(path)
        assert np.array_equal(volume.array, data) and len(volume.warnings) == count


@pytest.mark.parametrize(
    ("kind", "said"),
    [("list", "list"), ("vector", "vector"), ("3-vector", "3-vector"), ("RGB-color", "RGB-color"), ("time", "ITK")],
)
def test_an_axis_of_several_values_is_refused_by_its_kind(kind: str, said: str, tmp_path: Path) -> None:
    path = nrrd(tmp_path / "a.nrrd", (2, 3, 4), np.diag([1, 2, 3]), (0, 0, 0), "LPS", kind=kind)
    with pytest.raises(VolumeError, match=said) as error:
        read_volume(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_colours_complex_numbers_and_five_dimensions_are_refused(ending: str, tmp_path: Path) -> None:
    path = str(tmp_path / f"a{ending}")
    for data in (
        sitk.GetImageFromArray(np.zeros((3, 4, 5, 3), np.uint8), isVector=True),
        sitk.GetImageFromArray(np.zeros((3, 4, 5), np.complex64)),
        sitk.GetImageFromArray(np.zeros((2, 2, 3, 4, 5), np.float32), isVector=False),
    ):
        sitk.WriteImage(data, path)
        with pytest.raises(VolumeError, match="not supported|not readable"):
            read_header(path)


@pytest.mark.parametrize(("unit", "factor"), [("um", 1e-3), ("mm", 1), ("m", 1e3)])
def test_lengths_are_converted_to_millimetres(unit: str, factor: float, tmp_path: Path) -> None:
    units = "space units: " + " ".join([f'"{unit}"'] * 3)
    path = nrrd(tmp_path / "a.nrrd", (2, 3, 4), np.diag([1, 2, 3]) / factor, (0, 0, 0), "RAS", extra=[units])
    assert np.allclose(np.diag(read_volume(path).affine), [1, 2, 3, 1])
    with pytest.raises(VolumeError, match="unit of length inch"):
        read_volume(nrrd(path, (2, 3, 4), np.diag([1, 2, 3]), (0, 0, 0), "RAS", extra=[units.replace(unit, "inch")]))


def test_a_voxel_size_left_open_is_said(tmp_path: Path) -> None:
    path = nrrd(tmp_path / "a.nrrd", (2, 3, 4), None, (0, 0, 0), None, extra=["spacings: 1 nan 3"])
    assert any("leaves a voxel size open" in line for line in read_volume(path).warnings)


def test_an_axis_without_direction_is_refused(tmp_path: Path) -> None:
    path = nrrd(tmp_path / "a.nrrd", (2, 3, 4), [(1, 0, 0), (0, 2, 0), None], (0, 0, 0), "LPS")
    with pytest.raises(VolumeError, match="without a direction"):
        read_volume(path)


def test_scaling_that_itk_does_not_apply_is_said(tmp_path: Path) -> None:
    path = nrrd(
        tmp_path / "a.nrrd", (2, 3, 4), np.diag([1, 2, 3]), (0, 0, 0), "LPS", extra=["old min: 3", "old max: 9"]
    )
    assert any("not applied" in line for line in read_volume(path).warnings)


# ------------------------------------------------------------------------------------------------- FreeSurfer


def test_mgh_without_good_ras_is_coronal_as_freesurfer_assumes(tmp_path: Path) -> None:
    path = tmp_path / "a.mgh"
    path.write_bytes(mgh_bytes(voxels((4, 5, 6), "uint8"), good_ras=0))
    volume = read_volume(path)
    assert np.allclose(volume.affine, nib.load(path).affine) and np.allclose(volume.affine[:3, 0], [-1, 0, 0])
    assert "goodRASFlag 0" in volume.warnings[0] and volume.header["sform_code"] == 2


def test_the_repetition_time_of_mgh_is_in_seconds(tmp_path: Path) -> None:
    image = nib.MGHImage(voxels((4, 5, 6, 3), "int16"), np.eye(4))
    image.header.set_zooms((1, 1, 1, 2500))
    nib.save(image, tmp_path / "a.mgz")
    header = read_header(tmp_path / "a.mgz")
    assert header["pixdim"][4] == 2.5 and header.get_xyzt_units() == ("mm", "sec")


def test_labels_are_known_by_the_colour_table_or_the_intent_of_mgh(tmp_path: Path) -> None:
    data = voxels((4, 5, 6), "int32")
    matrix, command = b"\0\0\0\x1e\0\0\0\x04abcd", b"\0\0\0\x03" + (6).to_bytes(8, "big") + b"recon\0"
    for name, content, intent in (
        ("plain", mgh_bytes(data) + matrix + command, 0),
        ("coloured", mgh_bytes(data) + matrix + command + b"\0\0\0\x01\xff\xff\xff\xfe", 1002),
        ("marked", mgh_bytes(data, intent=1), 1002),
        ("warp", mgh_bytes(data, intent=3), 1006),
    ):
        path = tmp_path / f"{name}.mgh.gz"
        path.write_bytes(gzip.compress(content))
        assert read_header(path)["intent_code"] == intent
        assert np.array_equal(read_volume(path).array, data)


def test_slicer_segmentations_are_labels(tmp_path: Path) -> None:
    path = nrrd(
        tmp_path / "a.seg.nrrd", (2, 3, 4), np.diag([1, 2, 3]), (0, 0, 0), "LPS", extra=["Segment0_ID:=Segment_1"]
    )
    assert read_header(path)["intent_code"] == 1002


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda block: block[:100], "truncated|intact"),
        (lambda block: block[:400], "truncated"),
        (lambda block: b"\0\0\0\x02" + block[4:], "version 1"),
        (lambda block: block[:20] + b"\0\0\0\x06" + block[24:], "tensors"),
        (lambda block: block[:4] + b"\xff\xff\xff\xff" + block[8:], "size"),
        (lambda block: block[:4] + b"\x7f\xff\xff\xff" * 3 + block[16:], "truncated"),
        (lambda block: block[:8] + b"\0\0\0\x01" * 2 + block[16:], "surface"),
        (lambda block: block[:4] + b"\0\0\x6a\xab\0\0\0\x01\0\0\0\x06" + block[16:], "surface"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_mgh_and_surfaces_are_one_line(change, said: str, packed: bool, tmp_path: Path) -> None:
    content = change(mgh_bytes(voxels((4, 5, 60), "int16")))
    path = tmp_path / "a.mgz"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(VolumeError, match=rf"{said}|more than \d+ bytes of gzip") as error:
        read_volume(path)
    assert "\n" not in str(error.value)


def test_a_damaged_gzip_stream_of_mgz_is_noticed(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(mgh_bytes(voxels((20, 20, 20), "int16"))))
    content[-6] ^= 255
    (tmp_path / "a.mgz").write_bytes(content)
    with pytest.raises(VolumeError, match="damaged gzip"):
        read_volume(tmp_path / "a.mgz")


# --------------------------------------------------------------------------------------------- data files apart


def test_data_files_are_parts_of_their_volume_and_no_volumes(tmp_path: Path) -> None:
    data = voxels((4, 5, 6), "int16")
    for ending in (".nhdr", ".mhd"):
        sitk.WriteImage(sitk_image(data, np.eye(4)), str(tmp_path / f"a{ending}"))
    for number, plane in enumerate(np.moveaxis(data, 2, 0)):
        (tmp_path / f"s{number + 1:02d}.raw").write_bytes(plane.tobytes(order="F"))
    head = "NDims = 3\nDimSize = 4 5 6\nElementSpacing = 1 1 1\nElementType = MET_SHORT\nElementDataFile = "
    (tmp_path / "p.mhd").write_text(f"{head}s%02d.raw 1 6 1\n")
    (tmp_path / "l.mhd").write_text(head + "LIST\n" + "".join(f"s{n:02d}.raw\n" for n in range(1, 7)))
    field = "NRRD0004\ntype: int16\ndimension: 3\nsizes: 4 5 6\nendian: little\nencoding: raw\nspace: LPS\n"
    field += "space directions: (1,0,0) (0,1,0) (0,0,1)\ndata file: "
    (tmp_path / "p.nhdr").write_text(f"{field}s%02d.raw 1 6 1\n")
    (tmp_path / "l.nhdr").write_text(field + "LIST\n" + "".join(f"s{n:02d}.raw\n" for n in range(1, 7)))
    found = volumes_below(tmp_path)
    assert {path.name for path in found} == {"a.mhd", "a.nhdr", "p.mhd", "l.mhd", "p.nhdr", "l.nhdr"}
    for path in found:
        assert np.array_equal(read_volume(path).array, data)
        parts = volume_files(path)
        assert len(parts) == (2 if path.stem == "a" else 7) and all(part.is_file() for part in parts)


def test_missing_data_files_and_pipes_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.mhd"
    sitk.WriteImage(sitk_image(voxels((4, 5, 6), "int16"), np.eye(4)), str(path))
    (part,) = detached(path)
    part.unlink()
    with pytest.raises(VolumeError, match=r"data file a\.raw is missing"):
        read_volume(path)
    os.mkfifo(part)
    with pytest.raises(VolumeError, match="a pipe"):
        read_volume(path)


META = "NDims = 3\nDimSize = 2 3 4\nElementSpacing = 1 1 1\nElementType = MET_SHORT\n"
PLANES = "s0.raw\ns1.raw\ns2.raw\ns3.raw\n"


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("s%d.raw 0 3 1", None),
        ("s%d.raw 0 6 2", None),
        (f"LIST\n{PLANES}", None),
        (f"LIST 2\n{PLANES}", None),
        (f"LIST\n{PLANES}s0.raw\n", "the last ones are not read"),
        ("LIST\ns0.raw\ns1.raw\n", "2 data files for 4 slices"),
        ("LIST 3\nwhole.raw\n", "data files of 3 dimensions"),
        ("s%d.raw 0 2 1", "3 data files for 4 slices"),
        ("s%d.raw 0 3 2", "2 data files for 4 slices"),
        ("s%d.raw 3 0 -1", "in steps of -1"),
        ("s%s%d.raw 0 3 1", "is missing"),
        ("s%n%d.raw 0 3 1", "is missing"),
        ("a.mhd", "names itself"),
    ],
)
def test_slices_that_no_file_holds_are_refused_and_never_what_was_in_memory(named, said, tmp_path: Path) -> None:
    data = voxels((2, 3, 4), "int16")
    step = 2 if named.endswith(" 6 2") else 1
    for number, plane in enumerate(np.moveaxis(data, 2, 0)):
        (tmp_path / f"s{step * number}.raw").write_bytes(plane.tobytes(order="F"))
    (tmp_path / "whole.raw").write_bytes(data.tobytes(order="F"))
    path = tmp_path / "a.mhd"
    path.write_text(f"{META}ElementDataFile = {named}\n")
    assert volumes_below(tmp_path) in ([path], [])  # whatever the header says, the folder can be searched
    try:
        volume = read_volume(path)
    except VolumeError as error:
        assert said is not None and said in str(error) and "\n" not in str(error)
    else:
        assert np.array_equal(volume.array, data) and any(said or "space" in line for line in volume.warnings)


@settings(max_examples=30, deadline=None)
@given(change=st.one_of(st.none(), st.integers(-30, 30)), local=st.booleans())
def test_a_wrong_size_of_compressed_data_never_gives_other_voxels(change, local, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("meta")
    data = np.random.default_rng(0).integers(0, 1000, (2, 3, 4)).astype(np.int16)
    packed = zlib.compress(data.tobytes(order="F"))
    size = "" if change is None else f"CompressedDataSize = {len(packed) + change}\n"
    (folder / "a.zraw").write_bytes(packed)
    path = folder / "a.mha"
    head = f"{META}CompressedData = True\n{size}ElementDataFile = {'LOCAL' if local else 'a.zraw'}\n"
    path.write_bytes(head.encode() + (packed if local else b""))
    try:
        found = read_volume(path).array
    except VolumeError as error:
        assert change != 0 and "\n" not in str(error)
    else:
        assert np.array_equal(found, data)


def test_a_volume_that_another_header_names_as_its_data_is_still_a_volume(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(voxels((4, 5, 6), "int16"), np.eye(4)), tmp_path / "scan.nii")
    (tmp_path / "a.mhd").write_text(f"{META}ElementDataFile = scan.nii\n")
    assert [path.name for path in volumes_below(tmp_path)] == ["a.mhd", "scan.nii"]


@settings(max_examples=40, deadline=None)
@given(at=st.floats(0.35, 0.98), cut=st.booleans(), ending=st.sampled_from((".mha", ".mhd", ".nrrd", ".nhdr")))
def test_damaged_compressed_data_are_never_read_as_something_else(at, cut, ending, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("itk") / f"a{ending}"
    data = np.random.default_rng(0).integers(0, 1000, (12, 13, 14)).astype(np.int16)
    sitk.WriteImage(sitk_image(data, np.eye(4)), str(path), useCompression=True)
    part = volume_files(path)[-1]
    content = bytearray(part.read_bytes())
    place = int(at * len(content))
    content[place] ^= 255
    part.write_bytes(content[:place] if cut else content)
    try:
        found = read_volume(path).array
    except VolumeError as error:
        assert "\n" not in str(error)
    else:
        assert np.array_equal(found, data)


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd", ".nhdr"])
def test_non_finite_voxels_follow_the_rule_of_nifti(ending: str, tmp_path: Path) -> None:
    data = voxels((4, 5, 6), "float32")
    data[1, 2, 3] = np.nan
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk_image(data, np.eye(4)), str(path))
    with pytest.raises(VolumeError, match="1 NaN"):
        read_volume(path)
    assert read_volume(path, "zero").array[1, 2, 3] == 0
