"""The number of threads that every backend of this process uses."""

from __future__ import annotations

import importlib
import operator
import os
from types import ModuleType

try:
    _native: ModuleType | None = importlib.import_module("pyoptim.runtime._native")
except ModuleNotFoundError:  # an installation without compiled kernels
    _native = None

_limit: int | None = None


def set_num_threads(n: int) -> None:
    """Use at most ``n`` threads, in every backend.

    Parameters
    ----------
    n : int
        At least 1. The environment variable ``PYOPTIM_NUM_THREADS`` sets the initial value; without
        it the default is OpenMP's: one per processor, or what ``OMP_NUM_THREADS`` and threadpoolctl say.

    Raises
    ------
    TypeError, ValueError
        Not an integer, or less than 1.
    """
    global _limit
    if not hasattr(n, "__index__") or isinstance(n, bool):
        raise TypeError(f"n is {n!r}, expected an integer")
    n = operator.index(n)
    most = max(64, 4 * (os.cpu_count() or 1))  # OpenMP ends the process if it cannot start a thread
    if not 1 <= n <= most:
        raise ValueError(f"n is {n}, expected between 1 and {most}")
    _limit = n
    if _native is not None:
        _native.set_num_threads(n)


def get_num_threads() -> int:
    """The number of threads in force: see `set_num_threads`."""
    if _native is not None:
        return int(_native.get_num_threads())
    if _limit is not None:
        return _limit
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_environment() -> None:
    value = os.environ.get("PYOPTIM_NUM_THREADS", "")
    if value:
        try:
            set_num_threads(int(value))
        except ValueError as error:
            raise ValueError(f"PYOPTIM_NUM_THREADS is {value!r}: {error}") from None


_read_environment()
