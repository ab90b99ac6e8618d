"""mkdocs hook: links that work in the file view of the repository work on the site too.

Pages link to other files by relative paths. On the site, a link that leaves docs/ or names a folder leads to a copy of
that file, or to a list of the folder, under source/. Some Markdown files outside the site's own pages become pages.
"""

from __future__ import annotations

import html
import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = {
    "README.md": "overview.md",
    "docs/README.md": "monai_bundle.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
"""Files of the repository that are pages of the site under another name."""

_FENCED = re.compile(r"^(```.*?^```[^\S\n]*$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:|mailto:|#|<)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere."""
    for source, page in PAGES.items():
        if (ROOT / source).is_file():
            files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the relative links of a page, except in code blocks."""
    source = Path(page.file.abs_src_path or DOCS / page.file.src_uri)
    here = os.path.dirname(page.file.src_uri)

    def rewritten(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / match[1]))
        if not target.exists() or not target.is_relative_to(ROOT):
            return match[0]  # mkdocs says so
        return f"]({os.path.relpath(_on_site(target, config, files), here or '.')}{match[2] or ''})"

    parts = _FENCED.split(markdown)
    return "".join(part if number % 2 else _LINK.sub(rewritten, part) for number, part in enumerate(parts))


def _on_site(path: Path, config: MkDocsConfig, files: Files) -> str:
    """Where a file or folder of the repository is found on the site; it is put there if need be."""
    name = path.relative_to(ROOT).as_posix()
    if name in PAGES:
        return PAGES[name]
    if path.is_relative_to(DOCS) and files.get_file_from_path(path.relative_to(DOCS).as_posix()):
        return path.relative_to(DOCS).as_posix()
    # .txt, so that browsers show sources instead of saving them
    place = f"source/{name}/index.html" if path.is_dir() else f"source/{name}.txt"
    if files.get_file_from_path(place) is None:
        content = _listing(path, place, config, files) if path.is_dir() else path.read_bytes()
        files.append(File.generated(config, place, content=content))
    return place


def _listing(folder: Path, place: str, config: MkDocsConfig, files: Files) -> str:
    rows = []
    for path in sorted(folder.iterdir()):
        if not path.name.startswith((".", "__")):
            file = files.get_file_from_path(_on_site(path, config, files))
            assert file is not None
            link = os.path.relpath(file.dest_uri, os.path.dirname(place))
            rows.append(f'<li><a href="{html.escape(link)}">{html.escape(path.name)}</a></li>')
    title = html.escape(folder.relative_to(ROOT).as_posix())
    return f'<!doctype html><meta charset="utf-8"><title>{title}</title><h1>{title}</h1><ul>{"".join(rows)}</ul>'
