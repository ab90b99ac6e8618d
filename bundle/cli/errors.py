"""Usage errors of the command."""

from __future__ import annotations


class RunError(Exception):
    """The run cannot start (exit status 2); the message is one line."""
