"""Arrays in files that are mapped into memory."""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Any

import numpy as np


def forget_pages(array: Any) -> None:
    """Let the system take back the memory of a mapped file's pages, which it reads again when asked for.

    Nothing is done where the array is not mapped, where the system knows no such request, and for files that
    are mapped as mode "c", whose changes are in memory alone and would be lost.
    """
    if isinstance(array, np.memmap) and array.mode != "c" and hasattr(mmap, "MADV_DONTNEED"):
        with suppress(AttributeError, OSError, ValueError):
            array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
