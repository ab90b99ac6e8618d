"""The page in a browser at phone and desktop width: headless Chromium, if available."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from programs import program

from bundle.physics import superres_affine
from bundle.physics.place import grids
from bundle.report import ReportEntry, section, write_report

CHROMIUM = program("chromium", "chromium-browser", "google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the report was not opened in a browser")

# The page forbids scripts; this one is put into a copy to measure it in frames of given width.
PROBE = """<!DOCTYPE html><body><script>
const measured = {}
function look(width) {
  return new Promise(done => {
    const frame = document.createElement("iframe")
    frame.width = width; frame.height = 900
    frame.onload = () => {
      const page = frame.contentDocument
      const pictures = [...page.images]
      for (const part of page.querySelectorAll("section")) part.style.contentVisibility = "visible"
      measured[width] = {
        inner: frame.contentWindow.innerWidth, wide: page.documentElement.scrollWidth,
        broken: pictures.filter(p => !(p.complete && p.naturalWidth)).length, pictures: pictures.length,
        outside: pictures.filter(p => p.getBoundingClientRect().right > width).length,
        narrowest: Math.min(...pictures.map(p => p.getBoundingClientRect().width)),
        columns: getComputedStyle(page.querySelector(".three")).gridTemplateColumns.split(" ").length,
      }
      done()
    }
    frame.srcdoc = PAGE
    document.body.append(frame)
  })
}
look(375).then(() => look(1280)).then(() => {
  document.body.innerHTML = "<pre>" + JSON.stringify(measured) + "</pre>"
})
</script></body>"""


def test_the_page_fits_a_phone_and_a_desktop(tmp_path: Path):
    rng = np.random.default_rng(0)
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    name = "a_very_long_name_without_a_place_to_break_it_" * 4 + ".nii.gz"
    low, high = rng.random((32, 32, 4)), rng.random((64, 64, 4))
    entry = ReportEntry(
        name,
        low,
        affine,
        high,
        np.asarray(superres_affine(affine, (2, 2, 1))),
        grids(low.shape[:2], 2),
        warnings=[name],
    )
    report = write_report([section(entry)], tmp_path / "report.html", {"sha256": "0" * 64}, {name: name})
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", report.read_text(encoding="utf-8"))
    (tmp_path / "probe.html").write_text(PROBE.replace("PAGE", json.dumps(page).replace("</", r"<\/")))
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=20000",
        "--dump-dom",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "probe.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    found = re.search(r"<pre>(.*?)</pre>", shown)
    assert found, shown[-2000:]
    measured = json.loads(found[1])
    for width in ("375", "1280"):
        assert measured[width]["inner"] == int(width)
        assert measured[width]["wide"] <= int(width), "the page scrolls sideways"
        assert measured[width]["pictures"] == 15
        assert measured[width]["broken"] == measured[width]["outside"] == 0
        assert measured[width]["narrowest"] > 140
    assert (measured["375"]["columns"], measured["1280"]["columns"]) == (1, 3)
