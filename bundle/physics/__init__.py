"""k-space and grid mathematics on plain tensors: no MONAI, no files, nothing above this folder."""

from bundle.physics.consistency import (
    agreed_weight,
    band_edge_gain,
    consistency_residual,
    measured_as,
    restore_agreed,
    restore_magnitude,
    restore_measured,
)
from bundle.physics.grid import divisible_size, lowres_affine, superres_affine
from bundle.physics.kspace import (
    fft2c,
    fftc,
    fourier_upsample,
    ifft2c,
    smooth_truncate,
    truncate,
    truncate_kspace,
    zero_fill,
)
from bundle.physics.labels import carry_labels
from bundle.physics.padding import fill_padding, fine_padding
from bundle.physics.shift import measure_grid_shift
from bundle.physics.slices import in_plane_axes, resolve_slice_axis

__all__ = [
    "agreed_weight",
    "band_edge_gain",
    "carry_labels",
    "consistency_residual",
    "divisible_size",
    "fft2c",
    "fftc",
    "fill_padding",
    "fine_padding",
    "fourier_upsample",
    "ifft2c",
    "in_plane_axes",
    "lowres_affine",
    "measure_grid_shift",
    "measured_as",
    "resolve_slice_axis",
    "restore_agreed",
    "restore_magnitude",
    "restore_measured",
    "smooth_truncate",
    "superres_affine",
    "truncate",
    "truncate_kspace",
    "zero_fill",
]
