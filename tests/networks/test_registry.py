"""Networks and their weights by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from bundle.inference.shipped import weights_path
from bundle.networks import NETWORKS, build_network, iconet
from bundle.networks.single_step import SingleStepNetwork
from bundle.options import DEFAULT_NETWORK


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_built_by_its_name(name: str) -> None:
    network = build_network(name, scale=4, in_channels=2)
    assert (network.scale, network.in_channels) == (4, 2)


@pytest.mark.parametrize("size", ["small", "paper"])
def test_iconet_by_name_is_iconet_by_size(size: str) -> None:
    named, sized = build_network(f"iconet_{size}"), iconet(size)
    assert {k: t.shape for k, t in named.state_dict().items()} == {k: t.shape for k, t in sized.state_dict().items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_an_entry_says_what_its_network_does(name: str) -> None:
    entry, network = NETWORKS[name], build_network(name)
    assert entry.is_baseline == type(network).__module__.startswith("bundle.networks.baselines.")
    if entry.is_baseline:
        assert isinstance(network, SingleStepNetwork) and network.image_skip == entry.image_skip
    with torch.no_grad():
        output = network(torch.rand(1, 1, 6, 7), return_stages=True)
    assert bool(output.reconstructions) == entry.reconstructs


def test_every_network_has_a_title_of_its_own() -> None:
    assert len({entry.title for entry in NETWORKS.values()}) == len(NETWORKS)


def test_training_options_of_an_entry_are_options_of_the_training(bundle_root: Path) -> None:
    config = ConfigParser.load_config_file(bundle_root / "configs/train.json")
    options = [option for entry in NETWORKS.values() for option in entry.training]
    assert options == ["alpha"] and all(option in config for option in options)


@pytest.mark.parametrize("name", ["iconet_small", "fmisr"])
def test_an_unknown_argument_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(TypeError, match="widths"):
        build_network(name, widths=3)


def test_without_a_name_the_default_network_is_built() -> None:
    assert type(build_network()) is type(build_network(DEFAULT_NETWORK, 2))
    assert build_network().state_dict().keys() == build_network(DEFAULT_NETWORK, 2).state_dict().keys()


def test_further_arguments_reach_the_network() -> None:
    assert len(build_network("swinir_light", depths=(1, 2), features=12).groups) == 2


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="iconet_small"):
        build_network("unknown")


@pytest.mark.parametrize(
    ("name", "scale", "file"),
    [
        ("residual_sr", 2, "model.pt"),
        ("residual_sr", 4, "model_x4.pt"),
        ("residual_sr", 8, "model_x8.pt"),
        ("iconet_small", 2, "model_iconet_small_x2.pt"),
        ("iconet_paper", 2, "model_iconet_paper_x2.pt"),
        ("t2net", 4, "model_t2net_x4.pt"),
    ],
)
def test_weights_are_called_after_network_and_scale(name: str, scale: int, file: str) -> None:
    assert Path(weights_path("some/models", name, scale)) == Path("some/models") / file


def test_every_network_and_scale_has_weights_of_its_own() -> None:
    paths = [weights_path("models", name, scale) for name in NETWORKS for scale in (2, 4, 8)]
    assert len(set(paths)) == len(paths)


def test_the_shipped_weights_bear_these_names(bundle_root: Path) -> None:
    expected = {weights_path(bundle_root / "models", name, scale) for name in NETWORKS for scale in (2, 4, 8)}
    shipped = {str(path) for path in (bundle_root / "models").glob("*.pt")}
    assert shipped and shipped <= expected


@pytest.mark.parametrize("config", ["evaluate.json", "inference.json"])
def test_one_option_of_a_config_chooses_network_and_weights(config: str, bundle_root: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(bundle_root))
    parser = ConfigParser()
    parser.read_config(bundle_root / "configs" / config)
    parser.update({"network_name": "fmisr", "scale": 4, "bundle_root": "somewhere"})
    assert Path(parser.get_parsed_content("weights")) == Path("somewhere/models/model_fmisr_x4.pt")
    network = parser.get_parsed_content("network_def")
    assert (type(network).__name__, network.scale) == ("FMISR", 4)
