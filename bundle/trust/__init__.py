"""Checks whether an input suits the weights."""

from bundle.trust.acquired import find_matrix
from bundle.trust.check import check_volume
from bundle.trust.interpolation import CONFIDENT, Interpolation, find_interpolation
from bundle.trust.training_range import (
    ImageFacts,
    ModalityRange,
    TrainingRange,
    image_facts,
    load_training_range,
    training_range,
    training_range_from,
)

__all__ = [
    "CONFIDENT",
    "ImageFacts",
    "Interpolation",
    "ModalityRange",
    "TrainingRange",
    "check_volume",
    "find_interpolation",
    "find_matrix",
    "image_facts",
    "load_training_range",
    "training_range",
    "training_range_from",
]
