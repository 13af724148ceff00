"""Packages that only some features need."""

from __future__ import annotations

import importlib
from typing import Any


def needed(module: str, what: str, install: str) -> Any:
    """Import a module; ImportError says what needs it and what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{what} (pip install {install!r})") from error
