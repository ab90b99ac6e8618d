"""Volumes through a 2-D network, slice by slice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from bundle.data.intensity import intensity_window
from bundle.inference.inferers import VolumeInferer
from bundle.networks import ICONetOutput, iconet
from bundle.physics import consistency_residual, restore_magnitude, restore_measured
from bundle.training.inferers import StageInferer
from bundle.training.losses import MultiStageL1Loss

axes = pytest.mark.parametrize("slice_axis", [0, 1, 2])
consistency = pytest.mark.parametrize("data_consistency", [False, True])


class Marking(nn.Module):
    """Repeats voxels and adds a term that depends on the position in the slice and on the slice; records its inputs."""

    def __init__(self, scale: int = 2, ramp: float = 1.0) -> None:
        super().__init__()
        self.scale, self.ramp = scale, ramp
        self.batches: list[int] = []

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        assert x.shape[1] == 1 and x.ndim == 4
        self.batches.append(x.shape[0])
        fine = x.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)
        ramp = torch.arange(fine.shape[2])[:, None] + 10.0 * torch.arange(fine.shape[3])
        return gain * fine + self.ramp * ramp * x.mean(dim=(2, 3), keepdim=True)


class Wrapped(nn.Module):
    """Like PyTorch's data-parallel wrappers."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def by_hand(volume: Tensor, network: Callable[[Tensor], Tensor], slice_axis: int, data_consistency: bool) -> Tensor:
    """Every slice of every channel of every volume alone, normalised, restored, and non-negative if the input is."""
    batches = []
    for item in volume:
        signed, channels = bool(item.min() < 0), []
        restore = restore_measured if signed else restore_magnitude
        for channel in item:
            offset, scale = intensity_window(channel)
            planes = []
            for plane in ((channel - offset) / scale).unbind(slice_axis):
                out = network(plane[None, None])
                out = (restore(out, plane[None, None]) if data_consistency else out)[0, 0]
                planes.append((out if signed else out.clamp(min=0)) * scale + offset)
            channels.append(torch.stack(planes, slice_axis))
        batches.append(torch.stack(channels))
    return torch.stack(batches)


@axes
@consistency
@pytest.mark.parametrize("scale", [2, 4])
def test_a_volume_is_super_resolved_slice_by_slice(slice_axis: int, scale: int, data_consistency: bool) -> None:
    x, network = noise(1, 1, 5, 6, 7), Marking(scale)
    out = VolumeInferer(slice_axis, slice_batch=3, data_consistency=data_consistency)(x, network)
    shape = [n if axis == slice_axis else scale * n for axis, n in enumerate((5, 6, 7))]
    assert list(out.shape) == [1, 1, *shape]
    assert torch.allclose(out, by_hand(x, network, slice_axis, data_consistency), atol=1e-4)


@axes
def test_several_volumes_and_channels_are_treated_one_by_one(slice_axis: int) -> None:
    x, network = noise(2, 3, 4, 5, 6), Marking()
    out = VolumeInferer(slice_axis, slice_batch=4, data_consistency=False)(x, network)
    assert torch.allclose(out, by_hand(x, network, slice_axis, False), atol=1e-4)


@consistency
def test_the_number_of_slices_at_a_time_does_not_matter(data_consistency: bool) -> None:
    torch.manual_seed(0)
    network = iconet("small", 2, features=8, num_blocks=1, d_state=2, match_features=4)
    x = noise(1, 1, 6, 7, 5)
    one, three, nine = (VolumeInferer(2, batch, data_consistency=data_consistency)(x, network) for batch in (1, 3, 9))
    assert torch.allclose(one, three, atol=1e-5) and torch.allclose(one, nine, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(one, by_hand(x, network, 2, data_consistency), atol=1e-5)


def test_the_network_gets_as_many_slices_as_were_asked_for() -> None:
    network = Marking()
    VolumeInferer(2, slice_batch=4)(noise(1, 1, 5, 6, 10), network)
    assert network.batches == [4, 4, 2]


@axes
def test_images_have_no_slice_axis(slice_axis: int) -> None:
    x, network = noise(3, 2, 5, 6), Marking()
    out = VolumeInferer(slice_axis, data_consistency=False)(x, network)
    expected = torch.stack([torch.cat([network(c[None, None])[0] for c in item]) for item in x])  # it is linear
    assert torch.allclose(out, expected, atol=1e-4)


@consistency
@pytest.mark.parametrize("level", [0.0, -0.3, 1e9])
def test_slices_without_contrast_are_written_as_they_are_and_not_asked_for(
    level: float, data_consistency: bool
) -> None:
    x, network = noise(1, 1, 5, 6, 4), Marking()
    x[..., 1] = level
    out = VolumeInferer(2, slice_batch=4, data_consistency=data_consistency)(x, network)
    assert network.batches == [3]
    assert torch.equal(out[..., 1], torch.full_like(out[..., 1], level))
    busy = [0, 2, 3]
    assert torch.allclose(out[..., busy], by_hand(x, network, 2, data_consistency)[..., busy], atol=1e-4)


def test_a_volume_without_contrast_never_reaches_the_network() -> None:
    network = Marking()
    out = VolumeInferer()(torch.full((1, 1, 5, 6, 3), 7.0), network)
    assert torch.equal(out, torch.full((1, 1, 10, 12, 3), 7.0)) and network.batches == []


@axes
@pytest.mark.parametrize("offset", [0.0, -0.5])
def test_with_data_consistency_truncating_the_result_gives_the_input(slice_axis: int, offset: float) -> None:
    """Up to rounding for signed volumes; a magnitude volume, whose signs must be guessed, comes close."""
    x = noise(1, 1, 6, 7, 5) + 0.5 + 2 * offset
    network = Marking(ramp=0.001)  # little beyond the measured band, so that nothing has to be set to zero
    free, bound = (VolumeInferer(slice_axis, data_consistency=w)(x, network) for w in (False, True))
    planes = [v[0, 0].movedim(slice_axis, 0) for v in (x, free, bound)]
    before, after = (consistency_residual(v, planes[0]) for v in planes[1:])
    assert before > 0.05
    assert after < (1e-5 if offset else 0.01)


def test_a_weight_between_goes_part_of_the_way() -> None:
    x = noise(1, 1, 6, 7, 3) - 0.5  # signed: nothing is set to zero
    off, half, on = (VolumeInferer(data_consistency=w)(x, Marking()) for w in (0.0, 0.5, 1.0))
    assert torch.allclose(half, 0.5 * (off + on), atol=1e-4)
    with pytest.raises(ValueError, match="from 0 to 1"):
        VolumeInferer(data_consistency=2.0)


def test_further_arguments_reach_the_network() -> None:
    x, network = noise(1, 1, 5, 6, 3), Marking()
    inferer = VolumeInferer(data_consistency=False)
    assert torch.equal(inferer(x, network, gain=3.0), inferer(x, network, 3.0))
    assert not torch.allclose(inferer(x, network, gain=3.0), inferer(x, network))


@pytest.mark.parametrize("batched", [False, True])
def test_the_affine_chooses_the_slices_and_the_result_gets_the_fine_one(batched: bool) -> None:
    affine = torch.tensor([[0, -2.0, 0.5, 10], [9, 0, 0, -20], [0, 0.25, 1, 7], [0, 0, 0, 1]], dtype=torch.float64)
    x = MetaTensor(noise(1, 1, 5, 6, 3), affine=affine[None] if batched else affine)
    out = VolumeInferer()(x, Marking())
    assert torch.equal(torch.as_tensor(out), VolumeInferer(0)(x.as_tensor(), Marking()))
    assert torch.allclose(out.affine[0] if batched else out.affine, affine / torch.tensor([1.0, 2, 2, 1]))


def test_a_non_negative_volume_stays_one_and_a_series_has_one_rule() -> None:
    x = noise(1, 2, 6, 7, 5)
    inferer = VolumeInferer(2, data_consistency=1.0)
    assert inferer(x, Marking()).min() == 0
    x[0, 1, 0, 0, 0] = -1.0
    out = inferer(x, Marking())
    assert out[0, 0].min() < 0 and out[0, 1].min() < 0


def test_no_gradient_is_kept() -> None:
    network = iconet("small", 2, features=8, num_blocks=1, d_state=2)
    assert not VolumeInferer()(noise(1, 1, 5, 6, 2), network).requires_grad


def test_a_progress_bar_changes_nothing() -> None:
    x, network = noise(1, 1, 5, 6, 3), Marking()
    assert torch.equal(VolumeInferer(progress=True)(x, network), VolumeInferer()(x, network))


def test_one_inferer_serves_volumes_of_any_matrix() -> None:
    inferer = VolumeInferer(1)
    for size in [(5, 6, 7), (9, 3, 4)]:
        assert inferer(noise(1, 1, *size), Marking()).shape[2:] == (2 * size[0], size[1], 2 * size[2])


def test_wrapped_scripted_and_bound_networks_say_their_scale() -> None:
    torch.manual_seed(0)
    network = iconet("small", 2, features=8, num_blocks=1, d_state=2, reconstruction=False)
    x = noise(1, 1, 5, 6, 2)
    expected = VolumeInferer()(x, network)
    for other in (Wrapped(network), torch.jit.script(network), network.forward):
        assert torch.allclose(VolumeInferer()(x, other), expected, atol=1e-5)


def test_a_network_without_a_scale_is_an_error() -> None:
    with pytest.raises(ValueError, match="'scale'"):
        VolumeInferer()(noise(1, 1, 5, 6, 2), nn.Identity())


@pytest.mark.parametrize("slice_axis", [3, -1])
def test_a_wrong_slice_axis_is_an_error(slice_axis: int) -> None:
    with pytest.raises(ValueError, match="slice_axis must be 0, 1 or 2"):
        VolumeInferer(slice_axis)


def test_less_than_one_slice_at_a_time_is_an_error() -> None:
    with pytest.raises(ValueError, match="slice_batch"):
        VolumeInferer(slice_batch=0)


def test_the_stage_inferer_asks_for_all_stages_or_for_the_last() -> None:
    network, x = iconet("small", 4, features=8, num_blocks=1, d_state=2), noise(1, 1, 4, 5)
    stages = StageInferer()(x, network)
    assert isinstance(stages, ICONetOutput) and len(stages.super_resolved) == 2
    assert torch.equal(StageInferer(return_stages=False)(x, network), stages.super_resolved[-1])


def test_the_stage_inferer_adds_the_consistent_image_for_the_loss_to_train_through() -> None:
    network, x = iconet("small", 4, features=8, num_blocks=1, d_state=2), noise(1, 1, 6, 5)
    stages = StageInferer(data_consistency=True)(x, network)
    assert torch.equal(stages.super_resolved[2], restore_magnitude(stages.super_resolved[1], x))
    label = noise(1, 1, 24, 20)
    alone = MultiStageL1Loss(alpha=1.0)(ICONetOutput([], stages.super_resolved[2:]), label)
    alone.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.stages[0].sr_branch.parameters())
    with pytest.raises(ValueError, match="return_stages"):
        StageInferer(return_stages=False, data_consistency=True)
