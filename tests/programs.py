"""Find the programs that some tests need, also beside Python, where pip puts them."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def program(*names: str) -> str | None:
    """The path of the first of these programs that is installed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return next((found for name in names if (found := shutil.which(name, path=path))), None)
