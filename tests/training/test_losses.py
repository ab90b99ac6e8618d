"""The multi-stage loss against equation 8, written out."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from bundle.networks import ICONetOutput
from bundle.physics import fourier_upsample, measure_grid_shift, smooth_truncate
from bundle.training.losses import MultiStageL1Loss, stage_targets


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stages(size: int = 16, count: int = 2) -> tuple[ICONetOutput, Tensor]:
    """Outputs of a network of ``count`` stages and the label of ``size`` x ``size``."""
    sr = [noise(2, 1, size // 2**i, size // 2**i, seed=i) for i in reversed(range(count))]
    rec = [noise(2, 1, size // 2 ** (i + 1), size // 2 ** (i + 1), seed=10 + i) for i in reversed(range(count))]
    return ICONetOutput(rec, sr), noise(2, 1, size, size, seed=20)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_loss_is_equation_8(alpha: float, count: int) -> None:
    out, label = stages(count=count)
    expected = torch.zeros((), dtype=torch.float64)
    for weight, images in ((alpha, out.super_resolved), (1 - alpha, out.reconstructions)):
        for image in images:
            same = image.shape == label.shape
            target = label if same else smooth_truncate(label, (image.shape[2], image.shape[3]), 0.25)
            expected += weight * (image - target).abs().sum() / image.numel()
    assert torch.allclose(MultiStageL1Loss(alpha)(out, label), expected)


def test_the_loss_by_hand() -> None:
    label = torch.full((1, 1, 8, 8), 2.0)
    out = ICONetOutput([torch.full((1, 1, 4, 4), 1.0)], [torch.full((1, 1, 8, 8), 5.0)])
    assert float(MultiStageL1Loss(0.9)(out, label)) == pytest.approx(0.9 * 3 + 0.1 * 1)


@pytest.mark.parametrize(("alpha", "learns"), [(1.0, "super_resolved"), (0.0, "reconstructions")])
def test_the_ends_of_alpha_train_one_task(alpha: float, learns: str) -> None:
    out, label = stages()
    for image in (*out.reconstructions, *out.super_resolved):
        image.requires_grad_()
    MultiStageL1Loss(alpha)(out, label).backward()
    for field in out._fields:
        gradients = [image.grad for image in getattr(out, field)]
        assert all(bool(g.abs().max() > 0) == (field == learns) for g in gradients)


def test_a_single_image_gives_the_plain_l1_loss() -> None:
    pred, label = noise(2, 1, 8, 8), noise(2, 1, 8, 8, seed=1)
    assert torch.allclose(MultiStageL1Loss(0.9)(pred, label), (pred - label).abs().mean())


def test_without_reconstructions_their_term_is_zero() -> None:
    out, label = stages()
    alone = MultiStageL1Loss(0.9)(ICONetOutput([], out.super_resolved), label)
    assert torch.allclose(alone, 0.9 * MultiStageL1Loss(1.0)(out, label))


def test_outputs_equal_to_their_targets_cost_nothing() -> None:
    out, label = stages()
    perfect = ICONetOutput(*(stage_targets(label, images) for images in out))
    assert float(MultiStageL1Loss()(perfect, label)) == 0.0


def test_the_target_at_full_size_is_the_label_itself() -> None:
    out, label = stages()
    targets = stage_targets(label, out.super_resolved)
    assert targets[1] is label
    assert torch.equal(targets[0], smooth_truncate(label, (8, 8)))


def test_targets_lie_on_the_grid_of_the_outputs() -> None:
    def there_and_back(low: Tensor) -> Tensor:
        size = (2 * low.shape[2], 2 * low.shape[3])
        (target,) = stage_targets(fourier_upsample(low, size), [low])
        return fourier_upsample(target, size)

    assert measure_grid_shift(there_and_back, 2) == pytest.approx((0, 0), abs=1e-6)


def test_the_taper_is_passed_on() -> None:
    out, label = stages()
    assert torch.equal(stage_targets(label, out.super_resolved, 0.5)[0], smooth_truncate(label, (8, 8), 0.5))
    assert MultiStageL1Loss(0.9, taper=0.5)(out, label) != MultiStageL1Loss(0.9, taper=0.25)(out, label)


def test_a_label_with_metadata_is_accepted() -> None:
    out, label = stages()
    loss = MultiStageL1Loss()
    assert float(loss(out, MetaTensor(label))) == pytest.approx(float(loss(out, label)))


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_a_weight_outside_zero_and_one_is_an_error(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        MultiStageL1Loss(alpha)
