"""Log of a run: lines for people on stderr, JSON lines for programs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from tqdm import tqdm

from bundle.cli.errors import RunError

_LOGGER = logging.getLogger("iconet")


@contextmanager
def logging_to(json_lines: Path | None, prefix: str = "", quiet: bool = False) -> Iterator[None]:
    """Show the project's messages on stderr with a prefix, and append them to a file if one is given.

    `quiet` shows only warnings and errors; the file gets everything.

    Raises:
        RunError: the file cannot be written, or is not a log.
    """
    with ExitStack() as stack:
        handlers: list[logging.Handler] = [_PeopleHandler(prefix, logging.WARNING if quiet else logging.INFO)]
        if json_lines is not None:
            handlers.append(_JsonHandler(stack.enter_context(_open_log(json_lines))))
        level = _LOGGER.level
        _LOGGER.setLevel(logging.INFO)
        for handler in handlers:
            _LOGGER.addHandler(handler)
        try:
            yield
        finally:
            _LOGGER.setLevel(level)
            for handler in handlers:
                _LOGGER.removeHandler(handler)


def printable(text: str) -> str:
    """Text without control characters and what a terminal cannot show: file names may hold anything."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)


class _PeopleHandler(logging.Handler):
    """Lines between the progress bars."""

    def __init__(self, prefix: str, level: int) -> None:
        super().__init__(level)
        self.prefix = prefix

    def emit(self, record: logging.LogRecord) -> None:
        mark = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        tqdm.write(printable(self.prefix + mark + record.getMessage()), file=sys.stderr)


class _JsonHandler(logging.Handler):
    """One JSON object per line: time (UTC), level, message, and whatever was passed as `extra={"fields": ...}`."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__()
        self.stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "message": record.getMessage()}
        self.stream.write(json.dumps({**line, **getattr(record, "fields", {})}) + "\n")
        self.stream.flush()


@contextmanager
def _open_log(path: Path) -> Iterator[IO[str]]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+", encoding="utf-8") as stream:
            stream.seek(0)
            if stream.read(1) not in ("", "{"):
                raise RunError(f"{path}: exists and is not a log of JSON lines; choose another name")
            yield stream
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: the log cannot be written ({error}); choose another file") from error
