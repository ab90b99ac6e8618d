"""The robustness table: its acquisitions, its figures against the ordinary comparison, its file and its section."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from comparison.acquisitions import ACQUISITIONS, Acquisition, seeded, tissue
from comparison.pages import page
from comparison.protocol import ZERO_FILLED, KnownVolume, Protocol, known_volumes
from comparison.records import read_rows, write_rows
from comparison.robustness import BRIGHTNESS, DIMMED, NAMES, _figures, dimmed, evaluate, with_old
from comparison.robustness_tables import robustness_file, robustness_section
from torch import nn

from bundle.data import evaluation_datalist
from bundle.networks import build_network
from bundle.networks.upsample import fourier_image_upsample
from bundle.physics import truncate


class Fourier(nn.Module):
    """Zero-filled Fourier interpolation as a network; counts its slices."""

    scale = 2

    def __init__(self):
        super().__init__()
        self.slices = 0

    def forward(self, image):
        self.slices += len(image)
        return fourier_image_upsample(image, 2)


class Squared(Fourier):
    """A network whose result does not scale with its input."""

    def forward(self, image):
        return fourier_image_upsample(image + 0.02 * image.square(), 2)


@pytest.fixture
def ellipses(training_folder):
    datalist = evaluation_datalist(training_folder, "test")[:2]
    volumes = known_volumes(training_folder, datalist, None)
    return [KnownVolume(v.path, v.name, v.subject, m, "") for v, m in zip(volumes, ("MR", "PET"), strict=True)]


@pytest.fixture
def positive(tmp_path, write_nifti):
    """A volume whose interpolation has no negative voxel: nothing is set to zero."""
    x, y = np.meshgrid(np.linspace(0, 2 * np.pi, 32, False), np.linspace(0, 2 * np.pi, 24, False), indexing="ij")
    image = np.stack([300 + 40 * np.sin(3 * x + s) * np.cos(2 * y) + 20 * (s == 1) for s in range(3)], -1)
    noisy = image + np.random.default_rng(0).normal(0, 4, image.shape)
    return KnownVolume(write_nifti(tmp_path / "p.nii.gz", noisy.astype(np.float32)), "p", "s", "PET", "FDG")


def run(volumes, network, names=NAMES, protocol=None):
    return evaluate(protocol or Protocol(2), volumes, "val", {"net": network}, {"net": "0" * 64}, names)


# -------------------------------------------------------------------------------------------------- acquisitions


@pytest.fixture
def slices():
    image = torch.zeros(2, 24, 32)
    image[:, 6:18, 8:24] = 100.0
    image[1, 9:12] = 150.0
    return image


def test_truncation_is_that_of_the_project(slices):
    assert torch.equal(ACQUISITIONS["truncation"].low(slices, 2, seeded("a")), truncate(slices, (12, 16)))


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_an_acquisition_is_the_same_each_time_and_another_for_another_file(name, slices):
    one = ACQUISITIONS[name]
    first, again, other = (one.low(slices, 2, seeded(file, name)) for file in ("a", "a", "b"))
    assert torch.equal(first, again) and bool((first >= 0).all())
    assert torch.equal(first, other) == (one.snr is None and not one.phase)
    assert first.shape == (2, 12, 12 if name == "rectangular" else 16)


@pytest.mark.parametrize("name", [name for name in ACQUISITIONS if name not in ("truncation", "smooth")])
def test_every_acquisition_changes_the_input(name, slices):
    low = ACQUISITIONS[name].low(slices, 2, seeded("a"))
    plain = truncate(slices, (12, 16))
    assert low.shape != plain.shape or not torch.allclose(low, plain, atol=0.1)


def test_the_signal_to_noise_ratio_is_that_of_the_tissue(slices):
    flat = torch.full((8, 64, 64), 50.0)
    assert bool(tissue(flat).all())
    noise = Acquisition("", snr=20.0).low(flat, 2, seeded("a")) - 50.0
    assert float(noise.std()) == pytest.approx(50.0 / 20, rel=0.03)
    assert int(tissue(slices).sum()) == int((slices > 0).sum())


def test_the_first_rows_of_a_partial_echo_are_missing(slices):
    low = Acquisition("", rows=0.75)._weights(12, 16)
    assert low[:, 0].tolist() == [0.0] * 3 + [1.0] * 9
    assert ACQUISITIONS["partial_echo"].rows == 0.75


def test_a_smooth_scan_is_compared_with_the_average_of_its_neighbours(slices):
    smooth = ACQUISITIONS["smooth"].truth(slices)
    assert smooth.shape == slices.shape
    assert smooth[0, 6, 12] == pytest.approx(100 * 2 / 3) and smooth[0, 12, 12] == pytest.approx(100)
    assert smooth[1, 9, 12] == pytest.approx(slices[1, 8:11, 11:14].mean())
    assert ACQUISITIONS["hamming"].truth(slices) is slices


# ------------------------------------------------------------------------------------------------------- figures


def test_truncation_gains_what_the_comparison_says(ellipses):
    torch.manual_seed(0)
    network = build_network("iconet_small", 2, features=16, num_blocks=1).eval()
    protocol = Protocol(2, every=2)
    rows = run(ellipses, network, ["truncation"], protocol)
    known, by_slice = protocol.evaluate(ellipses, {"net": network}, [1.0])
    for row in rows:
        psnr = {r["method"]: r["psnr"] for r in known if r["file"] == row["file"]}
        assert row["psnr"] == pytest.approx(psnr["net"], abs=1e-4)
        assert row["gain"] == pytest.approx(psnr["net"] - psnr[ZERO_FILLED], abs=1e-4)
        mine = [r for r in by_slice if r["file"] == row["file"]]
        pairs = zip(*([r for r in mine if r["method"] == m] for m in ("net", ZERO_FILLED)), strict=True)
        gains = {net["slice"]: net["psnr"] - fourier["psnr"] for net, fourier in pairs}
        assert row["slices"] == 2 and row["below"] == sum(gain < -0.05 for gain in gains.values())
        assert row["worst_slice"] == min(gains, key=lambda number: gains[number])
        assert row["worst_slice_gain"] == pytest.approx(min(gains.values()), abs=1e-3)


def test_fourier_interpolation_as_a_network_gains_nothing(positive, monkeypatch):
    monkeypatch.setattr("comparison.robustness.CONSISTENCY", 0.0)  # it would move the last row of k-space a little
    rows = run([positive], Fourier())
    assert len(rows) == len(ACQUISITIONS) + len(BRIGHTNESS)
    for row in rows:
        assert row["gain"] == pytest.approx(0.0, abs=1e-3), row["degradation"]
        assert row["below"] in ("", 0)
        if row["noise_ratio"] != "":
            assert row["noise_ratio"] == pytest.approx(1.0, abs=1e-3)
        if row["hot_spot"] != "":
            assert row["hot_spot"] == pytest.approx(row["fourier_hot_spot"], abs=1e-3)


def test_every_row_of_the_file_is_complete(ellipses, tmp_path):
    rows = run(ellipses, Fourier())
    write_rows(tmp_path / "rows.csv", rows)
    found = read_rows(tmp_path / "rows.csv")
    assert len(found) == 2 * (len(ACQUISITIONS) + len(BRIGHTNESS)) and len({tuple(row) for row in rows}) == 1
    about = ("file", "subject", "modality", "split", "degradation", "every", "method", "weights", "data_consistency")
    for row in found:
        plain = row["degradation"] != DIMMED
        filled = {*about, "psnr", "fourier_psnr", "gain"}
        filled |= {"slices", "below", "worst_slice", "worst_slice_gain"} if plain else {"brightness"}
        filled |= {"noise_ratio"} if row["degradation"] == "rician_20" else set()
        filled |= {"hot_spot", "fourier_hot_spot"} if plain and row["modality"] == "PET" else set()
        assert {column for column, value in row.items() if value != ""} == filled
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))
        assert row["gain"] == pytest.approx(row["psnr"] - row["fourier_psnr"], abs=2e-4)


def test_slices_that_lose_are_counted_if_there_is_something_in_them():
    truth = torch.zeros(4, 8, 8)
    truth[:3] = 1.0
    truth[3, 0, 0] = 0.01  # below 2 % of the volume's maximum
    fourier = truth + 0.1
    pred = truth + torch.tensor([0.05, 0.1005, 0.2, 9.0])[:, None, None]
    row = _figures(pred, fourier, truth, every=3)
    assert (row["slices"], row["below"], row["worst_slice"]) == (3, 1, 6)
    assert row["worst_slice_gain"] == pytest.approx(-20 * math.log10(2), abs=1e-4)


def test_a_network_that_scales_with_its_input_gains_the_same_at_every_brightness(ellipses):
    torch.manual_seed(0)
    network = build_network("residual_sr", 2, features=8, blocks=2).eval()
    with torch.no_grad():
        network.last.weight.mul_(30)  # well away from its image skip
    gains = [row["gain"] for row in run(ellipses[:1], network, [DIMMED])]
    assert abs(gains[0]) > 0.01 and gains == pytest.approx([gains[0]] * len(BRIGHTNESS), abs=1e-3)
    other = [row["gain"] for row in run(ellipses[:1], Squared(), [DIMMED])]
    assert abs(other[0] - other[-1]) > 0.01 * abs(other[0])


def test_the_slice_with_the_largest_mean_is_dimmed_and_only_three_are_run():
    image = torch.rand(7, 16, 16, generator=torch.Generator().manual_seed(0))
    image *= torch.tensor([1.0, 5.0, 2.0, 9.0, 3.0, 1.0, 8.0])[:, None, None]
    network = Fourier()
    rows = dimmed(image, network, 2)
    assert network.slices == 3 * len(BRIGHTNESS)
    assert [row["brightness"] for row in rows] == list(BRIGHTNESS)
    fourier = fourier_image_upsample(truncate(image[3], (8, 8)), 2)
    error = float((fourier - image[3]).square().mean())
    expected = 10 * math.log10(float(image[3].max()) ** 2 / error)
    assert [row["fourier_psnr"] for row in rows] == pytest.approx([expected] * len(BRIGHTNESS), abs=1e-3)
    assert dimmed(image[:2], network, 2) == []


# ----------------------------------------------------------------------------------------------------------- files


def small_row(split="val", method="net", weights="a", name="truncation", gain=1.0, subject="s", **more):
    about = {"file": subject, "subject": subject, "modality": "MR", "contrast": "T1", "degradation": name}
    made = {"brightness": "", "split": split, "every": 1, "method": method, "weights": weights}
    figures = {
        "data_consistency": "1.0",
        "psnr": 30 + gain,
        "fourier_psnr": 30.0,
        "gain": gain,
        "slices": 5,
        "below": 1,
    }
    rest = {"worst_slice": 2, "worst_slice_gain": -0.5, "noise_ratio": "", "hot_spot": "", "fourier_hot_spot": ""}
    return {**about, **made, **figures, **rest, **more}


def test_rows_of_other_splits_stay_if_they_are_of_the_same_weights(tmp_path):
    path, new = tmp_path / "robustness_x2.csv", [small_row("test")]
    assert with_old(path, new, keep=False) == new

    def kept(row, keep=False):
        write_rows(path, [row])
        return row in with_old(path, new, keep)

    assert kept(small_row("val")) and not kept(small_row("val", weights="b"))
    assert not kept(small_row("test", gain=2.0)) and not kept(small_row("test", name="hann"))
    other = small_row("test", method="other", weights="b")
    assert kept(other, keep=True) and not kept(other)


def test_the_page_has_a_section_on_other_acquisitions_where_there_are_files(tmp_path):
    assert "Other acquisitions" not in page(tmp_path, "results")
    rows = [
        small_row(subject="a", gain=1.0),
        small_row(subject="a", gain=2.0, file="a2"),
        small_row(subject="b", gain=-1),
    ]
    rows += [small_row(name="rician_20", noise_ratio=1.25), small_row("test", method="other", gain=0.25)]
    rows += [small_row(name=DIMMED, brightness=b, gain=b) for b in BRIGHTNESS]
    write_rows(robustness_file(tmp_path, 4), rows)
    text = page(tmp_path, "results")
    assert robustness_section(tmp_path, "results") in text + "\n"
    assert [line for line in text.splitlines() if line.startswith(("## ", "### "))] == [
        "## Other acquisitions",
        "### 4x, net, validation split",
        "### 4x, other, test split",
    ]
    assert "| truncation | +0.25 (-1.00 to +1.50) | -1.00 | 3 of 15 (-0.50) |" in text
    assert "| MR (n = 1) | +1.00 | +0.50 | +0.20 | +0.10 | +0.05 | +0.02 |" in text
    assert "| noise in tissue / that of Fourier | 1.25 (1.25) |" in text
    assert "Volumes (subjects): MR 4 (3). Data consistency: 1.0." in text and "hot spot /" not in text


# --------------------------------------------------------------------------------------------------------- command


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(build_network("srcnn", 2).state_dict(), path)
    return ["--network", f"srcnn={path}", "--only", "srcnn"]


def test_the_command_writes_the_rows_of_one_split_after_the_other(script, training_folder, tmp_path, weights, capsys):
    table, out = training_folder / "split.csv", tmp_path / "out"
    table.write_text("file,subject,modality,split\nsub-00_T1.nii.gz,a,MR,val\nsub-01_T1.nii.gz,b,PET,test\n")
    given = ["--split_file", table, "--scales", 2, "--device", "cpu", "--output_dir", out, *weights]
    names = ["--robustness", "hamming", DIMMED]
    script("compare.py", training_folder, *given, "--split", "val", *names)
    assert "| Hamming filter |" in capsys.readouterr().out
    script("compare.py", training_folder, *given, *names)
    rows = read_rows(out / "robustness_x2.csv")
    assert {(row["split"], row["modality"], row["degradation"]) for row in rows} == {
        (*volume, name) for volume in (("val", "MR"), ("test", "PET")) for name in ("hamming", DIMMED)
    }
    assert {path.name for path in out.iterdir()} == {"robustness_x2.csv", "results.md"}
    assert "### 2x, SRCNN, test split" in (out / "results.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--robustness", "motion"], "invalid choice: 'motion'"),
        (["--robustness", "--degradation", "lines"], "two measurements"),
        (["--robustness", "--only"], "name one after --only"),
    ],
)
def test_what_cannot_be_measured_is_one_line(options, message, refused, training_folder, tmp_path):
    said = refused("compare.py", training_folder, "--output_dir", tmp_path / "out", *options)
    assert message in said and not (tmp_path / "out").exists()
