"""The machine: what it is, how fast its memory streams, and how fast it computes."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

from ..config import show_config
from ..runtime import dispatch, threads
from . import libraries
from .timing import Run

_GPU_CACHE = 64 << 20  # bytes; no GPU of today has a larger cache
_ELEMENTS = 25_000_000  # doubles in each array of the streaming kernels: 200 MB


def describe(device: str) -> dict[str, Any]:
    """The machine, to be printed and kept beside its figures; device: "cpu" or "cuda"."""
    names = ("backend", "instruction_set", "threads", "pyoptim", "python", "numpy", "torch", "platform")
    config = show_config()
    found = {
        "cpu": _cpu(),
        "last_level_cache": last_level_cache(device),
        **{name: config[name] for name in names},
    }
    found["date"] = datetime.date.today().isoformat()
    if device == "cuda":
        backend = dispatch.for_device()
        gpu = backend.launcher.device(0)
        found |= {
            "gpu": gpu["name"],
            "backend": backend.name,
        }
    found["processors"] = os.cpu_count()
    if hasattr(os, "getloadavg"):
        found["load_average"] = os.getloadavg()[0]  # of the last minute: other programs disturb the figures
    return found


class Disturbance:
    """What else ran on the machine while a case was measured: a ``with`` block.

    Attributes
    ----------
    counters : dict
        ``load_average``, of the last minute; ``switches``, how often a thread of this process lost its
        processor against its will; on Linux ``others`` and ``steal``, how many processors other processes,
        and other guests of the host, used on average.
    text : str
        What is worth telling; "" beside processes of the benchmark's own.
    """

    def __init__(self, has_own: bool = False) -> None:
        self._has_own = has_own
        self.counters: dict[str, float] = {}
        self.text = ""

    def __enter__(self) -> Disturbance:
        self._before = _counters()
        return self

    def __exit__(self, *_: object) -> None:
        spent = {name: after - self._before[name] for name, after in _counters().items()}
        seconds, told = max(spent["seconds"], 1e-9), []
        if hasattr(os, "getloadavg"):
            self.counters["load_average"] = os.getloadavg()[0]
        self.counters["switches"] = spent["switches"]
        if "all" in spent and seconds > _TICKS * _TICK:
            others, steal = max(0.0, (spent["all"] - spent["own"]) / seconds), spent["steal"] / seconds
            self.counters |= {"others": others, "steal": steal}
            if others > 0.2:
                told.append(f"others use {others:.1f} processors")
            if steal > 0.05:
                told.append(f"the host takes {steal:.1f} processors")
        # Competitors with more threads than there are processors interrupt each other, so switches alone say
        # nothing.
        if told and not self._has_own:
            told.append(f"{spent['switches'] / seconds:.0f} involuntary switches a second")
            self.text = ", ".join(told)


# The system counts processor time in ticks: seconds of one, and how many must pass before a share of them
# says something.
_TICK, _TICKS = 0.01, 20


def _counters() -> dict[str, float]:
    found = {"seconds": time.perf_counter(), "switches": 0.0}
    if resource is not None:
        found["switches"] = float(resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw)
    try:
        first = Path("/proc/stat").read_text().partition("\n")[0]
    except OSError:
        return found
    # user, nice, system, idle, waiting, interrupts, soft interrupts, steal: proc_stat(5)
    user, nice, system, _, _, hard, soft, steal = (int(v) * _TICK for v in first.split()[1:9])
    return {**found, "all": user + nice + system + hard + soft, "own": time.process_time(), "steal": steal}


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def last_level_cache(device: str = "cpu") -> int:
    """The size in bytes; 32 MiB if the system does not tell it."""
    if device == "cuda":
        return _GPU_CACHE
    files = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((int(file.read_text().strip().removesuffix("K")) << 10 for file in files), default=32 << 20)


@functools.cache
def streaming_runs(peers: tuple[str, ...]) -> dict[str, tuple[int, Run]]:
    """Kernels that only stream: the bytes that one run reads and writes, and the function that runs it.

    The bytes are those that a kernel asks for. A processor that reads what a copy is about to overwrite
    moves more, so a copy can look slower than an update in place.
    """
    a, b = np.zeros(_ELEMENTS), np.ones(_ELEMENTS)
    runs: dict[str, tuple[int, Run]] = {"numpy copy": (16, functools.partial(np.copyto, a, b))}
    if threads._native is not None:
        runs["a += s * b"] = (24, functools.partial(threads._native.stream_update, a, b, 0.5))
    if "torch" in peers:
        import torch

        ta, tb = torch.from_numpy(a), torch.from_numpy(b)
        runs["torch copy"] = (16, functools.partial(ta.copy_, tb))
        runs["torch add"] = (24, functools.partial(ta.add_, tb, alpha=0.5))
    return {name: (each * _ELEMENTS, run) for name, (each, run) in runs.items()}


_GPU_BYTES = 400_000_000


@functools.cache
def copy_runs(peers: tuple[str, ...]) -> dict[str, tuple[int, Run]]:
    """Copies in a GPU's memory: the bytes that one run reads and writes, and the function that runs it."""
    values = np.zeros(_GPU_BYTES // 4, np.float32)
    ours = libraries.OurDevice()
    a, b = ours.array(values), ours.array(values)
    runs: dict[str, Run] = {"copy": functools.partial(ours.queue.copy, a.address, b.address, a.nbytes)}
    if "torch" in peers:
        torch = libraries.Torch("cuda")
        runs["torch copy"] = functools.partial(torch.array(values).copy_, torch.array(values))
    return {name: (2 * values.nbytes, run) for name, run in runs.items()}


_ROUNDS = 100_000  # of multiply-adds, about 300 microseconds


def peak_runs(dtype: str) -> dict[str, tuple[int, Run]]:
    """Multiply-adds in registers on all threads: the operations of one run, and the function that runs it."""
    if threads._native is None:
        return {}
    run = functools.partial(threads._native.multiply_add, dtype, _ROUNDS)
    return {"multiply-add": (int(run()), run)}
