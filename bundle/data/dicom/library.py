"""A guard around pydicom: it may be missing, and on a damaged file it may raise or quote anything."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bundle.data.errors import VolumeError, fail


def require_pydicom(path: Path) -> None:
    """Fail with the install command if pydicom is missing."""
    if importlib.util.find_spec("pydicom") is None:
        fail(path, "DICOM files need the package pydicom", 'install it with: pip install ".[dicom]"')


@contextmanager
def guarded(path: Path, doing: str, remedy: str, *, quote: bool = False, writing: bool = False) -> Iterator[None]:
    """Turn whatever pydicom or a plug-in raises inside the block into one VolumeError.

    Damage shows up as almost any exception (struct.error, KeyError, RecursionError, zlib.error...), even when an
    attribute is first accessed. Messages and warnings of pydicom may quote header values, including the patient's, so
    warnings are dropped and the text of an exception is only passed on if it is about pixels (`quote`).
    Disk errors while `writing` are not the fault of `path` and pass as OSError.
    """
    logger = logging.getLogger("pydicom")
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except VolumeError:
        raise
    except OSError as error:
        if writing:
            raise
        fail(path, f"{doing} ({error.strerror or type(error).__name__})", remedy, error)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] if quote else ""
        fail(path, f"{doing} ({type(error).__name__}{': ' * bool(reason)}{reason})", remedy, error)
    finally:
        logger.disabled = disabled
