"""The number of threads that every backend of this process uses."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import math
import operator
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

from .numbers import shown

try:
    _native: ModuleType | None = importlib.import_module("pyoptim.runtime._native")
except ModuleNotFoundError:  # an installation without compiled kernels
    _native = None

_limit: int | None = None  # as set from Python
_reason = "set by the program"
_blocks: list[list[int]] = []  # the numbers before each `num_threads` that has not ended, in their order
_changing = threading.Lock()


def set_num_threads(n: int) -> None:
    """Use at most ``n`` threads, in every backend.

    Parameters
    ----------
    n : int
        At least 1. Initially it is the number in the environment variable ``PYOPTIM_NUM_THREADS``, else in
        ``OMP_NUM_THREADS``, else that of the processors which this process may use: those that it may run
        on, or what the CPU quota of its container or control group allows, rounded up.

    Raises
    ------
    TypeError, ValueError
        Not an integer, or less than 1.

    See Also
    --------
    num_threads : The same for a block of code.

    Notes
    -----
    ``threadpoolctl.threadpool_limits`` sets the number too, and ``threadpool_info`` lists it.
    """
    global _limit, _reason
    try:
        count = operator.index(n)
    except TypeError:
        count = None
    if count is None or isinstance(n, bool):
        raise TypeError(f"n is {shown(n)}, expected an integer")
    n = count
    if not 1 <= n <= _most():
        raise ValueError(f"n is {n}, expected between 1 and {_most()}")
    _limit, _reason = n, "set by the program"
    if _native is not None:
        _native.set_num_threads(n)


def get_num_threads() -> int:
    """The number of threads in force: see `set_num_threads`."""
    if _native is not None:
        return int(_native.get_num_threads())
    return _limit or _number_at_first()


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Use at most ``n`` threads in a ``with`` block, and as many as before after it.

    The number belongs to the process: a block in one thread of the program changes it for all others. Where
    such blocks overlap, the one that began last counts, and the last to end puts back what was before them.

    Examples
    --------
    >>> import pyoptim as po
    >>> with po.num_threads(1):
    ...     po.get_num_threads()
    1
    """
    with _changing:
        before = [get_num_threads()]
        set_num_threads(n)
        _blocks.append(before)
    try:
        yield
    finally:
        with _changing:
            # Blocks of several threads may end in any order. Equal lists are not the same: identity decides.
            place = next(i for i, other in enumerate(_blocks) if other is before)
            del _blocks[place]
            if place == len(_blocks):
                set_num_threads(before[0])
            else:
                _blocks[place][0] = before[0]


def reason() -> str:
    """Why `get_num_threads` is what it is, in a few words."""
    if _limit is not None and get_num_threads() == _limit:
        return _reason
    for number, why in (
        (_number_in_omp(), "OMP_NUM_THREADS"),
        (_allowed(), "processors that this process may run on"),
        (_quota() if _native is None else _native.processor_quota(), "CPU quota of its control group"),
    ):
        if number == get_num_threads():
            return why
    return "set by the program"


@cache  # a kernel asks at each call, and the quota is in files
def _number_at_first() -> int:
    return _number_in_omp() or _usable_processors()


def _number_in_omp() -> int:
    """The first number of OMP_NUM_THREADS, which may be a list, or 0."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(int(first), _most()) if first.isdecimal() else 0


def _most() -> int:
    return max(64, 4 * (os.cpu_count() or 1)) if _native is None else int(_native.most_threads())


def _allowed() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _usable_processors() -> int:
    allowed = _allowed()
    return min(allowed, _quota() or allowed)


def _quota(root: str = "") -> int:
    """Twin of processor_quota in csrc/runtime/processors.cpp, for installs without it."""
    least = math.inf
    try:
        lines = _read(f"{root}/proc/self/cgroup").splitlines()
    except OSError:
        return 0
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        while True:  # the group's own quota, and those of the groups above it
            for folder in (controllers, "cpu"):  # version 1 has both names, or only one
                least = min(least, _quota_of(f"{root}/sys/fs/cgroup/{folder}{path}"))
            if not path:
                break
            path = path.rpartition("/")[0]
    return 0 if least == math.inf else math.ceil(least)


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _quota_of(folder: str) -> float:
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        try:
            quota, period = " ".join(_read(f"{folder}/{name}") for name in names).split()
        except (OSError, ValueError):
            continue
        if quota.isdecimal() and int(quota) > 0:
            return int(quota) / int(period)
    return math.inf


def _read_environment() -> None:
    global _reason
    value = os.environ.get("PYOPTIM_NUM_THREADS", "")
    if value:
        try:
            set_num_threads(int(value))
        except ValueError as error:
            raise ValueError(f"PYOPTIM_NUM_THREADS is {value!r}: {error}") from None
        _reason = "PYOPTIM_NUM_THREADS"


class _Finder:
    """Makes threadpoolctl, when a program imports it, know the compiled library."""

    def __init__(self) -> None:
        self._looking = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "threadpoolctl" or getattr(self._looking, "now", False):
            return None
        self._looking.now = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._looking.now = False
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
        return spec


class _Loader:
    """A loader of threadpoolctl that registers the compiled library afterwards."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _register(module)


def _register(threadpoolctl: Any) -> None:
    if not hasattr(threadpoolctl, "register"):  # older than 3.2
        return

    class PyoptimController(threadpoolctl.LibController):  # type: ignore[misc]
        user_api = internal_api = "pyoptim"
        filename_prefixes = ("_native",)
        check_symbols = ("pyoptim_threads",)

        def get_num_threads(self) -> int:
            return int(self.dynlib.pyoptim_threads())

        def set_num_threads(self, num_threads: int) -> None:
            self.dynlib.pyoptim_use_threads(num_threads)

        def get_version(self) -> Any:
            return getattr(sys.modules.get("pyoptim"), "__version__", None)

    threadpoolctl.register(PyoptimController)


_read_environment()
if _native is not None:
    if "threadpoolctl" in sys.modules:
        _register(sys.modules["threadpoolctl"])
    sys.meta_path.insert(0, _Finder())
