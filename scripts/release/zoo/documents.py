"""Every `python -m monai.bundle` command in the documents names configs, run ids and options that exist."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from release.zoo.folder import Check, Folder, Missing

_FENCED = re.compile(r"^```[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_CALL = re.compile(r"-m monai\.bundle (\w.*)")
_CONFIG = re.compile(r"configs/[\w./-]+\.(?:json|yaml)")
RUN_DEFAULT = "run"


def documented_commands(folder: Folder) -> Iterator[str]:
    seen = 0
    for name in folder.files:
        if name.suffix in (".md", ".sh") and name.parts[0] != "tests":
            for call in _calls(folder.root / name):
                seen += 1
                yield from (f"{name}: {problem}: {call}" for problem in _problems(call, folder.root))
    if not seen:
        raise Missing("no document shows a command of monai.bundle")


def _calls(path: Path) -> Iterator[str]:
    """The arguments of ``-m monai.bundle`` in the code blocks of a page, or in a script."""
    text = path.read_text(encoding="utf-8")
    blocks = _FENCED.findall(text) if path.suffix == ".md" else [text]
    for block in blocks:
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            if found := _CALL.search(line):
                yield found[1].strip()


def _problems(call: str, root: Path) -> Iterator[str]:
    import monai.bundle
    from monai.bundle import ConfigParser

    words = shlex.split(call, comments=True)
    command, function = words[0], getattr(monai.bundle, words[0], None)
    if function is None:
        yield f"monai.bundle has no command {command}"
        return
    files = [root / name for name in _CONFIG.findall(_option(words, "config_file"))]
    if absent := [path for path in files if not path.is_file()]:
        yield f"{absent[0].relative_to(root)} does not exist"
        return
    config = ConfigParser.load_config_files([str(path) for path in files]) if files else {}
    yield from _unknown(words[1:], config, function)
    if command == "run":
        run_id = words[1] if len(words) > 1 and not words[1].startswith("--") else RUN_DEFAULT
        if run_id not in config:
            yield f"none of the command's configs has the run id {run_id}"


def _option(words: list[str], name: str) -> str:
    flag = f"--{name}"
    values = [after for before, after in pairwise(words) if before == flag]
    return values[0] if values else next((w.partition("=")[2] for w in words if w.startswith(f"{flag}=")), "")


def _unknown(words: list[str], config: dict[str, Any], function: Callable[..., Any]) -> Iterator[str]:
    known = set(inspect.signature(function).parameters) | {key.split("#")[0] for key in config}
    for word in words:
        if word.startswith("--"):
            name = word[2:].partition("=")[0]
            if re.split("#|::", name.lstrip("+"))[0] not in known:
                yield f"unknown option --{name}"


CHECKS = (Check("documented commands name configs, run ids and options that exist", documented_commands),)
