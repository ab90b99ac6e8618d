"""Weights that are not plain tensors, not for this network or not the listed file are refused with one line."""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from bundle.inference.weights import WeightsError, load_weights


class Runs:
    """What a hostile pickle would do."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def network() -> nn.Module:
    return nn.Conv2d(1, 2, 3)


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_a_state_dict_is_loaded_and_its_digest_is_told(tmp_path):
    source, target = network(), network()
    path = saved(tmp_path / "w.pt", source.state_dict())
    assert load_weights(target, path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert torch.equal(source.weight, target.weight)


def test_safetensors_are_loaded(tmp_path):
    from safetensors.torch import save_file

    source, target = network(), network()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert torch.equal(source.weight, target.weight)


def test_row_109_a_pickle_with_code_is_refused_and_the_code_does_not_run(tmp_path):
    path = saved(tmp_path / "w.pt", {"weight": Runs(tmp_path / "ran")})
    with pytest.raises(WeightsError, match=r"w\.pt: not a file of plain tensors"):
        load_weights(network(), path)
    assert not (tmp_path / "ran").exists()


def test_row_110_safetensors_with_a_header_of_absurd_length_are_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(WeightsError, match="not a file of plain tensors"):
        load_weights(network(), tmp_path / "w.safetensors")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 zip slip ../../x", b"\x80\x05garbage", b"text\n" * 9])
def test_row_111_damaged_files_are_refused(content, tmp_path):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(WeightsError, match="not a file of plain tensors") as caught:
        load_weights(network(), tmp_path / "w.pt")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["w.pt"]


def test_row_113_a_file_that_is_not_the_listed_one_is_refused(tmp_path):
    path = saved(tmp_path / "w.pt", network().state_dict())
    (tmp_path / "sha256sums.txt").write_text(f"{'0' * 64}  other.pt\n{'1' * 64} *w.pt\n")
    with pytest.raises(WeightsError, match="not the file that sha256sums.txt beside it lists"):
        load_weights(network(), path)
    (tmp_path / "sha256sums.txt").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  w.pt\n")
    load_weights(network(), path)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.zeros(2, 1, 3, 3)}, "bias is missing"),
        (
            {"weight": torch.zeros(4, 1, 3, 3), "bias": torch.zeros(2)},
            r"weight is \(4, 1, 3, 3\), expected \(2, 1, 3, 3\)",
        ),
        ({"weight": torch.ones(2, 1, 3, 3), "bias": torch.zeros(2), "more": torch.zeros(1)}, "more is not part of it"),
        ({"epoch": 3}, "something other than named tensors"),
        ([torch.zeros(2)], "something other than named tensors"),
    ],
)
def test_row_114_weights_of_another_network_are_refused_whole(state, message, tmp_path):
    target = network()
    before = target.weight.clone()
    with pytest.raises(WeightsError, match=message):
        load_weights(target, saved(tmp_path / "w.pt", state))
    assert torch.equal(target.weight, before)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(WeightsError, match=r"gone\.pt: no such weights"):
        load_weights(network(), tmp_path / "gone.pt")
