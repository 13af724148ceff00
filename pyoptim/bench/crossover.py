"""``pyoptim bench threads``: from which size on work is worth a second thread, and from which it gets one.

Every kind of work runs at many sizes on one thread, on two and more whatever its size, and as the library
decides. The results must have the same bits.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np

from ..formulas.norms import NormOptions
from ..optim.elementwise import SGD, Adam
from ..runtime import dispatch, threads
from ..runtime.dtypes import Array
from .case import Case, Family, Mismatch, Options, Row
from .timing import SWEEP, Run

_ALWAYS = 1 << 20  # divides grains so that all work is shared
_SIZES = [1 << n for n in range(10, 22)]  # elements that the work writes; of dense layers, of x
_QUICK_SIZES = [1 << 10, 1 << 17]
_WIDTH = 64  # of dense layers and normalisations

_Made = tuple[Run, Sequence[Array]]  # the work, and its results


def _some(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _activation(kind: str, size: int) -> _Made:
    x, y = _some(size), _some(size)
    return functools.partial(dispatch.current().activation_forward, kind, x, y, 0.0, 0.0), [y]


def _forward(size: int) -> _Made:
    x, weight, bias = _some(size // _WIDTH, _WIDTH), _some(_WIDTH, _WIDTH), _some(_WIDTH)
    y = np.empty_like(x)
    return functools.partial(dispatch.current().dense_forward, x, weight, bias, "relu", y), [y]


def _backward(size: int) -> _Made:
    x, dy, weight, bias = (_some(*s) for s in ((size // _WIDTH, _WIDTH),) * 2 + ((_WIDTH, _WIDTH), (_WIDTH,)))
    out = [np.empty_like(a) for a in (x, weight, bias)]
    return functools.partial(dispatch.current().dense_backward, dy, x, weight, x, "relu", *out), out


def _norm(size: int) -> _Made:
    x, gamma = _some(size // _WIDTH, _WIDTH, 1), np.ones(_WIDTH, np.float32)
    y, saved, running = np.empty_like(x), (gamma.copy(), gamma.copy()), (gamma.copy(), gamma.copy())
    arguments = x, (gamma, gamma), running, NormOptions(), y, saved
    return functools.partial(dispatch.current().norm_forward, *arguments), [y]


def _cross_entropy(size: int) -> _Made:
    x, labels = _some(size // _WIDTH, _WIDTH), np.arange(size // _WIDTH) % _WIDTH
    dx = np.empty_like(x)
    function = dispatch.current().softmax_cross_entropy
    return functools.partial(function, x, labels, dx, None, None, 0.0), [dx]


def _step(kind: Callable[..., Any], size: int) -> _Made:
    p = _some(size)
    return functools.partial(kind(p).step, _some(size)), []


_KINDS: dict[str, Callable[[int], _Made]] = {
    "relu": functools.partial(_activation, "relu"),
    "tanh": functools.partial(_activation, "tanh"),
    "dense 64-64 forward": _forward,
    "dense 64-64 backward": _backward,
    "batch norm 64 forward": _norm,
    "cross-entropy 64": _cross_entropy,
    "SGD": functools.partial(_step, SGD),
    "Adam": functools.partial(_step, Adam),
}


def _cases(options: Options) -> Generator[Case]:
    native, many = threads._native, threads.get_num_threads()
    if native is None or dispatch.current().name != "native":
        raise dispatch.BackendError("the threads of the native backend are measured, which is not in use")
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n < many] + [many]
    try:
        for name, make in _KINDS.items():
            for size in _QUICK_SIZES if options.quick else _SIZES:
                run, _ = make(size)
                _limited(many, 1, native.most_parts)
                run()
                prepare = functools.partial(_prepare, f"{name}, {size}", make, size, counts)
                yield Case(name, size, 4 * size, prepare, dtype="float32", parts=native.most_parts())
    finally:
        _limited(many, 1, native.most_parts)


def _prepare(what: str, make: Callable[[int], _Made], size: int, counts: list[int]) -> dict[str, Run]:
    run, results = make(size)
    many = counts[-1]
    runs: dict[str, Run] = {"pyoptim": functools.partial(_limited, many, 1, run)}
    for n in dict.fromkeys((1, *counts)):
        runs[_threads(n)] = functools.partial(_limited, n, _ALWAYS, run)
    first: list[Array] = []
    for who, each in runs.items():
        each()
        if results and not first:
            first = [array.copy() for array in results]
        for array, expected in zip(results, first, strict=True):
            if not np.array_equal(array, expected):
                raise Mismatch(f"{what}: the result with {who} has other bits")
    return runs


def _threads(n: int) -> str:
    return "1 thread" if n == 1 else f"{n} threads"


_limits = [0, 0]  # in force: how many threads, and what grains are divided by


def _limited(n: int, finer: int, run: Run) -> None:
    if _limits != [n, finer]:  # to set them takes microseconds
        _limits[:] = n, finer
        threads._native.set_num_threads(n)  # type: ignore[union-attr]
        threads._native.divide_grains(finer)  # type: ignore[union-attr]
    run()


def _conclude(rows: Sequence[Row]) -> list[str]:
    """Of each kind of work the size from which threads pay, beside that from which the library uses them."""
    lines = ["Elements from which two threads and more are faster, and from which they are used:"]
    for name in dict.fromkeys(row.name for row in rows):
        mine = sorted((row for row in rows if row.name == name), key=lambda row: row.size)
        slower = [row.size for row in mine if not _pays(row)]
        pays = next((f"{row.size:,}" for row in mine if row.size > max(slower, default=0)), "never")
        used = next((f"{row.size:,}" for row in mine if row.parts > 1), "never")
        lines.append(f"  {name:<24}{pays:>12}{used:>12}")
    return lines + _figures_of_the_pool() if rows else []


def _pays(row: Row) -> bool:
    several = [t for who, t in row.seconds.items() if who.endswith(" threads")]
    return min(several, default=1e9) < row.seconds["1 thread"]


def _figures_of_the_pool() -> list[str]:
    """What a region costs beyond its work, and what threads without work cost."""
    many = threads.get_num_threads()
    if many == 1:
        return []
    run, _ = _activation("relu", 64 * many)  # a line for each

    def median(n: int, pause: float) -> float:
        found = []
        for _ in range(301 if pause == 0 else 31):
            time.sleep(pause)
            begin = time.perf_counter()
            _limited(n, _ALWAYS, run)
            found.append(time.perf_counter() - begin)
        return 1e6 * float(np.median(found))

    spinning = median(many, 0.0) - median(1, 0.0)
    asleep = median(many, 0.002) - median(1, 0.002)
    _limited(many, _ALWAYS, run)
    time.sleep(0.005)
    before = time.process_time()
    time.sleep(0.5)
    idle = time.process_time() - before
    _limited(many, 1, run)
    return [
        f"A shared region costs {spinning:.1f} us while threads spin, {asleep:.1f} us while they sleep.",
        f"Idle threads use {idle * 1e3:.1f} ms of processor time in 500 ms, 5 ms after the last call.",
    ]


FAMILY = Family(
    _cases,
    [],
    SWEEP,
    "work of many sizes on one thread and on several, some 20 seconds",
    conclude=_conclude,
)
