"""The order of the results of a series."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bundle.data.dicom.frame import Frame, Image


def result_numbers(volumes: Sequence[Sequence[Frame]]) -> list[dict[Image, int]]:
    """InstanceNumber of the result of each file, for the volumes of one series in order.

    1, 2, ... in the order of the source's numbers if those are unique, and volume by volume within a file; else volume
    by volume, in the order of positions. So readers that go by InstanceNumber find the source's order again.
    """
    files = [list({frame.image: frame for frame in frames}.values()) for frames in volumes]
    images = {frame.image for members in files for frame in members}
    unique = len({image.instance_number for image in images} - {None}) == len(images)
    entries = [(at, frame) for at, members in enumerate(files) for frame in members]
    if unique:
        entries.sort(key=lambda entry: (_number(entry[1].image), entry[0]))
    else:
        entries.sort(key=lambda entry: (entry[0], _height(entry[1]), str(entry[1].path)))
    numbers: list[dict[Image, int]] = [{} for _ in volumes]
    for number, (at, frame) in enumerate(entries, start=1):
        numbers[at][frame.image] = number
    return numbers


def _number(image: Image) -> float:
    return math.inf if image.instance_number is None else image.instance_number


def _height(frame: Frame) -> float:
    """Distance from the origin along the slice normal, 0 if unknown."""
    if frame.position is None or frame.orientation is None:
        return 0.0
    return float(np.dot(np.cross(frame.orientation[:3], frame.orientation[3:]), frame.position))
