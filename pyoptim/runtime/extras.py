"""Packages that only some features need."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def needed(module: str, what: str, install: str) -> Any:
    """Import a module; ImportError says what needs it and what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{what} (pip install {install!r})") from error


def mpiexec() -> str | None:
    """Return the path of MPI's starter, of this environment or of the system, or None."""
    from shutil import which  # its import takes long

    beside = os.path.dirname(sys.executable)
    return which("mpiexec", path=os.pathsep.join([beside, os.environ.get("PATH", "")]))


def the_bar() -> Any:
    """Return tqdm's class of bars: the one of notebooks in a notebook.

    ``tqdm.auto`` finds that out, but imports asyncio for it, which costs more than a short training.
    """
    if "IPython" in sys.modules:
        from tqdm.auto import tqdm
    else:
        from tqdm import tqdm
    return tqdm
