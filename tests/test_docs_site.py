"""The docs site builds without warnings, loads nothing external, its links and figures hold; imports point down."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parent.parent
FETCHED = {("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("source", "src")}


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Addresses(HTMLParser):
    """Every URL of a page with its tag and attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [(tag, name, value) for name, value in attrs if name in ("href", "src") and value]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def addresses(site: Path) -> list[tuple[Path, str, str, str]]:
    found = []
    for page in sorted(site.rglob("*.html")):
        parser = Addresses()
        parser.feed(page.read_text(encoding="utf-8"))
        found += [(page, *address) for address in parser.found]
    return found


@pytest.mark.slow
def test_no_page_fetches_anything_from_elsewhere(site):
    fetched = [f"{p}: {a}" for p, tag, name, a in addresses(site) if (tag, name) in FETCHED and "//" in a]
    assert not fetched
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.search(r"url\(\s*[\"']?(https?:)?//|@import", styles)


@pytest.mark.slow
def test_every_link_within_the_site_leads_somewhere(site):
    broken = []
    for page, _, _, address in addresses(site):
        target, _, anchor = unquote(address).partition("#")
        if page.name == "404.html" or re.match(r"[a-z]+:", target):
            continue
        path = (page.parent / target).resolve() if target else page
        path = path / "index.html" if path.is_dir() else path
        if not path.is_file():
            broken.append(f"{page.relative_to(site)}: {address}")
        elif anchor and path.suffix == ".html" and f'id="{anchor}"' not in path.read_text(encoding="utf-8"):
            broken.append(f"{page.relative_to(site)}: no {address}")
    assert not broken


@pytest.mark.slow
def test_the_api_pages_show_what_the_packages_export(site):
    for name in ("ops", "physics", "transforms", "data"):
        page = (site / f"api/{name}/index.html").read_text(encoding="utf-8")
        tree = ast.parse((ROOT / f"bundle/{name}/__init__.py").read_text())
        exported = next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign))
        assert not [item for item in exported if f'id="bundle.{name}.{item}"' not in page]


@pytest.mark.slow
def test_one_command_draws_the_figures_that_the_pages_show(tmp_path):
    script = ROOT / "scripts/draw_docs_figures.py"
    command = [sys.executable, "-W", "ignore", str(script), "--output_dir", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    text = "".join((ROOT / f"docs/{page}.md").read_text() for page in ("geometry_and_intensity", "architecture"))
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == set(re.findall(r"\]\(figures/([^)]+)\)", text))
    diagrams = [name for name in drawn if name.endswith(".svg")]  # of the others, the last bits depend on the machine
    stale = [n for n in diagrams if (tmp_path / n).read_bytes() != (ROOT / "docs/figures" / n).read_bytes()]
    assert not stale, "run scripts/draw_docs_figures.py again"


def imports(path: Path) -> set[str]:
    """Folders and modules of the package that a file imports, by their names right below bundle."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "bundle":
            parts = str(node.module).split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("bundle.")}
    return found


def test_imports_run_downward_as_the_diagram_of_the_code_shows():
    floors = load(ROOT / "scripts/draw_docs_figures.py").FLOORS
    floor = {name: level for level, (_, names) in enumerate(floors) for name in names}
    wrong = []
    for path in sorted((ROOT / "bundle").rglob("*.py")):
        own = path.relative_to(ROOT / "bundle").parts[0].removesuffix(".py")
        if own in ("__init__", "__main__"):
            continue
        assert own in floor, f"bundle/{own}: give it a floor in FLOORS of scripts/draw_docs_figures.py and draw again"
        wrong += [f"{path.name} imports {other}" for other in imports(path) - {own} if floor[other] <= floor[own]]
    assert not wrong
