"""The volumes of one stack decide together what their values mean, as those of a 4-D file do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from bundle.data.dicom.frame import GE_PART, TRAITS, Frame
from bundle.data.dicom.pixels import padding_value, read_values
from bundle.data.errors import VolumeError
from bundle.data.values import Survey, Values, put_padding

_KINDS = [TRAITS.index(name) for name in ("ImageType", "FrameType", "ComplexImageComponent", GE_PART)]
"""Volumes that differ in these (magnitude and real part, water and fat) are images of different kinds."""


@dataclass(frozen=True, eq=False)
class Together:
    """Volumes of one kind in one stack.

    Attributes:
        volumes: the frames of each.
    """

    volumes: tuple[tuple[Frame, ...], ...]

    @cached_property
    def _decision(self) -> tuple[Values, bool, tuple[Frame, ...]]:
        """What the values of all of them mean, whether its padding is declared, and the volume of the largest contrast.

        Each is read and then dropped.

        Volumes that cannot be read have no say, and are reported when their turn comes.
        """
        named = (padding_value(frames) for frames in self.volumes)
        declared = next((value for value in named if value is not None), None)
        found, seen, read = self._survey(declared)
        if declared is not None and not seen:
            # A header may name a value that no voxel has, while padding has another.
            found, _, read = self._survey(None)
        values = found.decide()
        return values, seen, read[values.strongest] if read else self.volumes[0]

    def _survey(self, declared: float | None) -> tuple[Survey, bool, list[tuple[Frame, ...]]]:
        """The survey, whether any voxel is declared padding, and the volumes that could be read."""
        found, seen = Survey(declared, self.volumes[0][0].image.modality == "CT"), False
        read = []
        for frames in self.volumes:
            try:
                voxels = read_values(str(frames[0].path), frames)
            except VolumeError:
                continue
            if declared is not None and (own := padding_value(frames)) is not None:
                mask = voxels == np.float32(own)
                seen |= bool(mask.any())
                if own != declared:  # with another slope, the same integer stands for another value
                    put_padding(voxels, mask, declared)
            found.add(voxels)
            read.append(frames)
        return found, seen, read

    @property
    def strongest(self) -> tuple[Frame, ...]:
        """The frames of the volume with the largest contrast."""
        return self._decision[2]

    def values_of(self, frames: Sequence[Frame]) -> Values:
        """The decision for one of them; declared padding may have a value of its own there."""
        values, declared, _ = self._decision
        own = padding_value(frames) if declared else None
        return values if own is None else replace(values, padding=own)


def together(volumes: Sequence[Sequence[Frame]]) -> list[Together | None]:
    """Who decides for each volume of a stack; None for those alone of their kind."""
    kinds: dict[Hashable, list[tuple[Frame, ...]]] = defaultdict(list)
    keys = [tuple(frames[0].traits[at] for at in _KINDS) for frames in volumes]
    for key, frames in zip(keys, volumes, strict=True):
        kinds[key].append(tuple(frames))
    shared = {key: Together(tuple(members)) if len(members) > 1 else None for key, members in kinds.items()}
    return [shared[key] for key in keys]
