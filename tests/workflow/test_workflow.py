"""The guard against wrong options, and a folder run in which something fails midway."""

from __future__ import annotations

import json

import pytest
import torch
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer

from bundle.inference.inferers import VolumeInferer
from bundle.networks import iconet
from bundle.options import CONFIG_OPTIONS
from bundle.workflow import VolumesFailed, run_folder
from bundle.workflow.options import unused_keys, wrong_options, wrong_values

CONFIGS = ("train.json", "evaluate.json", "inference.json")


class FailsOnce(torch.nn.Module):
    """A network that fails on volumes with negative values."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if float(image.min()) < 0:
            raise RuntimeError("no room for this volume")
        return image


def test_volumes_after_one_that_failed_in_the_network_are_done():
    seen: list[float] = []
    volumes = {"a": 1.0, "bad": -1.0, "c": 2.0, "d": 3.0}

    def load(item: dict) -> dict:
        return {"image": torch.full((1, 2, 2), volumes[item["image"]])}

    def keep(item: dict) -> dict:
        seen.append(float(item["pred"].max()))
        return item

    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=[],
        network=FailsOnce(),
        inferer=SimpleInferer(),
        postprocessing=keep,
        epoch_length=1,
    )
    with pytest.raises(VolumesFailed, match="1 of 4 volumes failed:\nbad: RuntimeError: no room"):
        run_folder(evaluator, [{"image": name} for name in volumes], load)
    assert seen == [1.0, 2.0, 3.0]


def test_a_two_dimensional_metatensor_is_super_resolved():
    image = MetaTensor(torch.rand(2, 1, 9, 12))
    assert VolumeInferer()(image, iconet("small", 2)).shape == (2, 1, 18, 24)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_shipped_configs_have_no_unused_option_and_no_wrong_value(name, bundle_root):
    config = json.loads((bundle_root / "configs" / name).read_text())
    assert unused_keys(config) == []
    assert wrong_values(config) == []


@pytest.mark.parametrize("name", CONFIGS)
def test_every_plain_value_of_a_config_is_the_default_of_a_declared_option(name, bundle_root):
    config = json.loads((bundle_root / "configs" / name).read_text())
    plain = {
        key: value
        for key, value in config.items()
        if key != "bundle_root" and not isinstance(value, (dict, list)) and not str(value).startswith(("$", "%"))
    }
    declared = {key: CONFIG_OPTIONS[key][0] for key in plain}
    assert plain == declared


def test_a_former_name_is_answered_with_the_name_of_today():
    assert wrong_options({"nan": "zero"}) == ["--nan is now called --nonfinite"]


def test_a_former_name_that_takes_the_place_of_a_component_is_answered_too(bundle_root):
    config = json.loads((bundle_root / "configs/inference.json").read_text())
    assert wrong_options({**config, "network": "vdsr"}) == ["--network is now called --network_name"]


def test_a_patch_that_the_scale_does_not_divide_is_one_line():
    (line,) = wrong_values({"patch_size": 33, "scale": 2})
    assert line == "--patch_size 33: must be a multiple of --scale, which is 2"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data_consistency", "false"),
        ("resume", "yes"),
        ("scale", 3),
        ("scale", 2.0),
        ("slice_axis", -1),
        ("slice_axis", "x"),
        ("slice_batch", 0),
        ("network_name", "huge"),
        ("device", "gpu"),
        ("nonfinite", "skip"),
        ("degradation", "some"),
        ("bf16", 1.5),
    ],
)
def test_a_value_that_cannot_be_meant_is_one_line(key, value):
    (line,) = wrong_values({key: value})
    assert line.startswith(f"--{key} {value}: must be")


def test_expressions_are_not_judged():
    assert wrong_values({"device": "$'cuda' if x else 'cpu'", "scale": "@other"}) == []
