"""Read the volume of a job, NIfTI or DICOM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from nibabel.nifti1 import Nifti1Header

from bundle.cli.plan import Job
from bundle.data import VolumeError, check_volume_file, read_header
from bundle.data.dicom.geometry import Stack
from bundle.data.dicom.matrix import stated_matrix
from bundle.data.dicom.read import DicomVolume, read_geometry, read_pixels
from bundle.data.dicom.series import DicomSeries
from bundle.data.errors import error_line
from bundle.data.meaning import check_dicom, check_nifti
from bundle.data.nifti.axes import stated_axes
from bundle.data.nifti.geometry import Header
from bundle.data.nifti.geometry import read_geometry as header_geometry
from bundle.data.nifti.storage import FLOAT32, Storage
from bundle.data.values import Values
from bundle.options import CommandOptions
from bundle.physics.matrix import StatedMatrix
from bundle.physics.slices import StatedAxes, decide_slice_axis, in_plane_axes

_OF_SERIES = StatedAxes(header=2)
"""The slices of a DICOM series are its images."""


@dataclass(frozen=True, eq=False)
class Source:
    """A volume that passed all checks.

    Attributes:
        shape: (X, Y), (X, Y, Z) or (X, Y, Z, T).
        affine: voxel index to world (RAS), mm.
        frames: yields each image (X, Y) or volume (X, Y, Z), float32.
        like: header for a NIfTI result.
        storage: data type of the file; float32 if it has no single one.
        values: what the values mean.
        stated: the slice axis as the file says.
        stated_matrix: the acquired matrix as the file says.
        modality: MR, CT or PT, if the file says so.
        dicom: the volume, if it is DICOM.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    frames: Callable[[], Iterator[np.ndarray]]
    like: Header
    warnings: tuple[str, ...]
    values: Values
    storage: Storage = FLOAT32
    stated: StatedAxes | None = None
    stated_matrix: StatedMatrix | None = None
    modality: str | None = None
    dicom: DicomVolume | None = None

    def strongest(self, first: np.ndarray) -> tuple[np.ndarray, Values]:
        """The volume of the series with the largest contrast, and what its values mean.

        Args:
            first: the first volume; no other one is read if that is it.
        """
        if self.dicom is not None:
            return self.dicom.strongest()
        number = self.values.strongest
        return (next(islice(self.frames(), number, None)) if number else first), self.values


def open_source(job: Job, options: CommandOptions) -> Source:
    """Read a volume from end to end; a NIfTI series is read one volume at a time.

    Raises:
        VolumeError: it cannot be read, or cannot be written in the requested format.
    """
    if isinstance(job.source, DicomSeries):
        return _open_dicom(job, job.source, options)
    if job.to == "dicom":
        wrong = "a NIfTI file has no patient and no study, which a DICOM series needs"
        raise VolumeError(error_line(job.source, wrong, "write NIfTI (--to nifti)"))
    warnings = check_nifti(job.source, read_header(job.source), options.force)
    file = check_volume_file(job.source, options.nonfinite)
    return Source(
        *(file.shape, file.affine, file.frames, file.header, (*warnings, *file.warnings)),
        *(file.values, file.storage, file.stated, file.stated_matrix, file.modality),
    )


def in_plane(job: Job, options: CommandOptions) -> tuple[tuple[int, int], tuple[float, float]]:
    """Matrix and voxel size (mm) along the two in-plane array axes, from the header alone.

    Raises:
        VolumeError: the header is unusable.
    """
    shape: tuple[int, ...]
    if isinstance(job.source, DicomSeries):
        stack = read_geometry(job.source, allow_gap=options.allow_gap)
        image, affine, stated = stack.frames[0].image, stack.affine, _OF_SERIES
        shape = image.columns, image.rows, len(stack.frames)
    else:
        header = read_header(job.source)
        affine, shape = header_geometry(job.source, header, []).affine, tuple(map(int, header.get_data_shape()))
        stated = stated_axes(job.source, header)
    axis = decide_slice_axis(options.slice_axis, shape, affine, stated).axis
    first, second = in_plane_axes(min(len(shape), 3), axis)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    return (shape[first], shape[second]), (float(sizes[first]), float(sizes[second]))


def check_series(job: Job, series: DicomSeries, options: CommandOptions) -> Stack:
    """Geometry of a series and doubts about what it is, from its headers alone.

    Raises:
        VolumeError: as for `open_source`, except for pixels that cannot be decoded.
    """
    if job.to == "dicom" and options.slice_axis not in ("auto", 2):
        wrong = f"slice axis {options.slice_axis}, but the slices of a DICOM series are its images (axis 2)"
        raise VolumeError(error_line(job.name, wrong, "write NIfTI (--to nifti)"))
    meaning = check_dicom(job.name, series, options.force)
    stack = read_geometry(series, allow_gap=options.allow_gap)
    if job.to == "nifti" and not stack.regular:
        wrong = "slices with gaps have no single affine, which NIfTI needs"
        raise VolumeError(error_line(job.name, wrong, "write DICOM (--to dicom)"))
    return replace(stack, warnings=(*meaning, *stack.warnings))


def _open_dicom(job: Job, series: DicomSeries, options: CommandOptions) -> Source:
    volume = read_pixels(series, check_series(job, series, options))
    like = Nifti1Header()
    like.set_data_shape(volume.voxels.shape)
    like.set_sform(volume.affine, 1)
    like.set_qform(volume.affine, 1)
    like.set_xyzt_units("mm", "sec")
    return Source(
        volume.voxels.shape,
        volume.affine,
        lambda: iter([volume.voxels]),
        like,
        (*volume.warnings, *volume.values.warnings),
        volume.values,
        stated=_OF_SERIES,
        stated_matrix=stated_matrix(volume.frames),
        modality=series.modality,
        dicom=volume,
    )
