"""The number of threads that every backend of this process uses."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import math
import operator
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    global _limit
    if not hasattr(n, "__index__") or isinstance(n, bool):
        raise TypeError(f"n is {n!r}, expected an integer")
    n = operator.index(n)
    most = max(64, 4 * (os.cpu_count() or 1)) if _native is None else _native.most_threads()
    if not 1 <= n <= most:
        raise ValueError(f"n is {n}, expected between 1 and {most}")
    _limit = n
    if _native is not None:
        _native.set_num_threads(n)


def get_num_threads() -> int:
    """The number of threads in force: see `set_num_threads`."""
    global _limit
    if _native is not None:
        return int(_native.get_num_threads())
    if _limit is None:
        first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
        _limit = int(first) if first.isdecimal() and int(first) > 0 else _usable_processors()
    return _limit


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Use at most ``n`` threads in a ``with`` block, and as many as before after it.

    The number belongs to the process: a block in one thread of the program changes it for all others.

    Examples
    --------
    >>> import pyoptim as po
    >>> with po.num_threads(1):
    ...     po.get_num_threads()
    1
    """
    before = get_num_threads()
    set_num_threads(n)
    try:
        yield
    finally:
        set_num_threads(before)


def reason() -> str:
    """Why `get_num_threads` is what it is, in a few words."""
    quota = _quota() if _native is None else _native.processor_quota()
    for number, why in (
        (os.environ.get("PYOPTIM_NUM_THREADS"), "PYOPTIM_NUM_THREADS"),
        (os.environ.get("OMP_NUM_THREADS", "").partition(",")[0], "OMP_NUM_THREADS"),
        (_allowed(), "processors that this process may run on"),
        (quota, "CPU quota of its control group"),
    ):
        if str(number) == str(get_num_threads()):
            return why
    return "set by the program"


def _allowed() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _usable_processors() -> int:
    return min(_allowed(), _quota() or _allowed())


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
            least = min(least, _quota_of(f"{root}/sys/fs/cgroup/{controllers}{path}"))
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
    value = os.environ.get("PYOPTIM_NUM_THREADS", "")
    if value:
        try:
            set_num_threads(int(value))
        except ValueError as error:
            raise ValueError(f"PYOPTIM_NUM_THREADS is {value!r}: {error}") from None


class _Registers:
    """Tells threadpoolctl of the compiled library as soon as it is imported, without importing it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "threadpoolctl":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _register(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _register(threadpoolctl: ModuleType) -> None:
    class PyoptimController(threadpoolctl.LibController):  # type: ignore[misc, name-defined]
        user_api = internal_api = "pyoptim"
        filename_prefixes = ("_native",)
        check_symbols = ("pyoptim_threads",)

        def get_num_threads(self) -> int:
            return int(self.dynlib.pyoptim_threads())

        def set_num_threads(self, num_threads: int) -> None:
            self.dynlib.pyoptim_use_threads(num_threads)

        def get_version(self) -> str:
            from importlib.metadata import version

            return version("pyoptim")

    threadpoolctl.register(PyoptimController)


_read_environment()
if _native is not None:
    if "threadpoolctl" in sys.modules:
        _register(sys.modules["threadpoolctl"])
    else:
        sys.meta_path.insert(0, _Registers())  # importlib.abc, for a base class, would take 5 ms to import
