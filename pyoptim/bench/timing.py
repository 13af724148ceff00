"""Times competitors in turn, so that a disturbance of the machine hits all of them."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

Run = Callable[[], object]


class Effort(NamedTuple):
    """How long to measure, in seconds and in number of blocks."""

    warm_up: float  # before each block, so that threads and caches are those of this competitor
    block: float
    budget: float  # for one competitor, beyond the least number of blocks
    least: int
    most: int
    pause: float = 0.0  # before each block, until the threads of the library before have gone to sleep


FULL = Effort(warm_up=0.010, block=0.010, budget=0.25, least=3, most=15, pause=0.003)
QUICK = Effort(warm_up=0.0, block=0.0005, budget=0.0, least=2, most=2)
# Of sweeps over hundreds of cases.
SWEEP = Effort(warm_up=0.0015, block=0.001, budget=0.03, least=3, most=7, pause=0.003)
# Beside busy processes, a scheduler's slices of milliseconds must average out.
LONG = Effort(warm_up=0.005, block=0.050, budget=0.5, least=5, most=15, pause=0.003)


class Timing(NamedTuple):
    """Seconds of one run: the median and the quartiles of the blocks."""

    median: float
    quartiles: tuple[float, float]

    def scaled(self, by: float) -> Timing:
        first, third = self.quartiles
        return Timing(self.median * by, (first * by, third * by))


def settle_openmp() -> None:
    """Let the OpenMP threads of competitors sleep soon after a run: call it before they are imported.

    By default those of GCC's OpenMP, which PyTorch brings, spin for ten milliseconds, and take the processors
    from the competitor that comes next. Within a run they wait for microseconds.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # a third of a millisecond


def nothing() -> None:
    """Do nothing: a run on the processor has ended when it returns."""


def in_turn(runs: Mapping[str, Run], effort: Effort, wait: Run = nothing) -> dict[str, Timing]:
    """Time the runs in blocks, each after a warm-up, the runs alternating.

    ``wait`` returns when work is done that runs have only queued, on a GPU.
    """
    blocks: dict[str, list[float]] = {name: [] for name in runs}
    spent = dict.fromkeys(runs, 0.0)
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        while True:
            waiting = [
                name
                for name, done in blocks.items()
                if len(done) < effort.least or (len(done) < effort.most and spent[name] < effort.budget)
            ]
            if not waiting:
                return {name: _summary(done) for name, done in blocks.items()}
            for name in waiting:
                time.sleep(effort.pause)
                begin = time.perf_counter()
                blocks[name].append(_block(runs[name], effort, blocks[name], wait))
                spent[name] += time.perf_counter() - begin
    finally:
        if was_enabled:
            gc.enable()


def _summary(seconds: list[float]) -> Timing:
    first, median, third = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median, (first, third))


def _block(run: Run, effort: Effort, earlier: list[float], wait: Run) -> float:
    """Seconds of one run, the mean of as many as fill a block."""
    count, elapsed = 0, 0.0
    one = min(earlier, default=0.0)
    if one < 10 * effort.warm_up or not earlier:  # a longer run is not disturbed
        begin = time.perf_counter()
        while count == 0 or elapsed < effort.warm_up:
            run()
            count += 1
            elapsed = time.perf_counter() - begin
        wait()
        one = (time.perf_counter() - begin) / count
    repetitions = range(max(1, int(effort.block / max(one, 1e-7))))
    begin = time.perf_counter()
    for _ in repetitions:
        run()
    wait()
    return (time.perf_counter() - begin) / len(repetitions)
