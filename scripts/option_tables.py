"""Write the tables of options in the documents from their declaration in bundle/options.py.

    python scripts/option_tables.py

Each page in PAGES has a block between ``<!-- options: NAME -->`` and ``<!-- /options -->``, which is replaced.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bundle.cli.arguments import dashed
from bundle.networks import NETWORKS
from bundle.options import CommandOptions, FolderOptions, InferenceOptions, Option, TrainingOptions, declared

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("docs/quick_start.md", "docs/README.md", "docs/training.md")
TABLES: dict[str, tuple[type, ...]] = {
    "command": (CommandOptions,),
    "bundle": (FolderOptions, InferenceOptions),
    "training": (TrainingOptions,),
}
_BLOCK = re.compile(r"(<!-- options: (\w+) -->\n).*?(<!-- /options -->)", re.DOTALL)


def table(name: str) -> str:
    """The Markdown table of a block: option, values, default, meaning."""
    command = name == "command"
    rows = ["| option | values | default | meaning |", "|---|---|---|---|"]
    for key, (default, about) in declared(*TABLES[name]).items():
        flag, values, usual = key, _values(key, about), _default(default, about)
        if command:  # its flags take no value
            flag, values, usual = dashed(key), *(("", "off") if about.kind == "flag" else (values, usual))
        rows.append(f"| `--{flag}` | {values} | {usual} | {about.help} |")
    return "\n".join(rows) + "\n"


def filled(text: str) -> str:
    """The text of a page with its blocks written anew. Raises KeyError for a block that no table is made for."""
    return _BLOCK.sub(lambda block: block[1] + table(block[2]) + block[3], text)


def _values(key: str, about: Option) -> str:
    if key == "network_name":
        return ", ".join(f"`{name}`" for name in NETWORKS)
    if about.choices:
        return ", ".join(f"`{choice}`" for choice in about.choices)
    if about.kind == "flag":
        return "`True`, `False`"
    if about.kind in ("whole", "number"):
        return "any number" if about.minimum is None else f"{about.minimum:g} or more"
    words = "".join(f"`{word}`, " for word in about.words)
    return words + {"share": "0 to 1"}.get(about.kind, about.kind)


def _default(value: Any, about: Option) -> str:
    if about.default_text is not None:
        return about.default_text
    return f"{value:g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Fill the blocks of all pages."""
    for name in PAGES:
        path = ROOT / name
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
