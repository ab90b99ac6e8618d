"""For every shape, frame and data type, every measured voxel is found again at its position with its value."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nifti_files import fine_grid
from torch import nn

from bundle.data import check_volume_file, writing_volume
from bundle.inference.volume import super_resolve
from bundle.inference.walker import SliceWalker
from bundle.physics import fourier_upsample

shapes = st.lists(st.integers(1, 7), min_size=2, max_size=4).map(tuple)
types = st.sampled_from(["u1", "i2", "u2", "i4", "f4", "f8"])
affines = st.builds(
    lambda angles, zooms, hand, origin: nib.affines.from_matvec(
        nib.eulerangles.euler2mat(*angles) * (np.array(zooms) * [hand, 1, 1]), origin
    ),
    st.tuples(*[st.floats(-3.0, 3.0)] * 3),
    st.tuples(*[st.floats(0.2, 8)] * 3),
    st.sampled_from([1, -1]),
    st.tuples(*[st.floats(-200, 200)] * 3),
)


class ZeroFill(nn.Module):
    """Interpolation through all samples: fine voxel 2j has the value of voxel j."""

    scale = 2

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return fourier_upsample(image, (2 * image.shape[-2], 2 * image.shape[-1]))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=shapes, kind=types, affine=affines, axis=st.sampled_from([0, 1, 2]))
def test_a_measured_voxel_is_found_again_in_its_place(data, shape, kind, affine, axis) -> None:
    voxels = data.draw(hnp.arrays(kind, shape, elements=st.integers(0, 200)))
    axis = axis if len(shape) > 2 else 2
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "a.nii.gz"), Path(folder, "b.nii.gz")
        nib.save(nib.Nifti1Image(voxels, affine), source)
        file = check_volume_file(source)
        walker = SliceWalker(data_consistency=0)
        results = [super_resolve(frame, affine, ZeroFill(), axis, walker).voxels for frame in file.frames()]
        storage = file.storage.covering(*(float(of(results)) for of in (np.min, np.max)))
        fine_shape, fine_affine = fine_grid(file.shape, file.affine, 2, axis)
        with writing_volume(target, fine_shape, fine_affine, file.header, storage=storage) as write:
            for result in results:
                write(result)
        image = nib.load(target)
        fine = image.get_fdata()
    assert image.get_data_dtype() == np.dtype(kind)
    plane = {0, 1, 2} - {axis}
    factors = [2 if n in plane else 1 for n in range(3)]
    measured = tuple(slice(None, None, factor) for factor in factors[: len(shape)])
    np.testing.assert_allclose(fine[measured], voxels, atol=0.51 * storage.slope + 1e-2)
    lengths = [*shape[:3], 1][:3]
    for corner in np.ndindex(2, 2, 2):
        index = np.array(corner) * lengths
        here, there = affine @ [*index, 1], image.affine @ [*(index * factors), 1]
        np.testing.assert_allclose(here, there, atol=1e-3 * (1 + np.abs(affine).max()))
