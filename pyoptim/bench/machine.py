"""The machine: what it is, how fast its memory streams, and how fast it computes."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from .. import threads
from ..config import show_config
from .timing import Run

_ELEMENTS = 25_000_000  # doubles in each array of the streaming kernels: 200 MB


def describe() -> dict[str, Any]:
    """What to print beside figures, and to know them by later."""
    names = ("backend", "instruction_set", "threads", "pyoptim", "python", "numpy", "torch", "platform")
    config = show_config()
    found = {"cpu": _cpu(), "last_level_cache": last_level_cache(), **{name: config[name] for name in names}}
    if hasattr(os, "getloadavg"):
        found["load_average"] = os.getloadavg()[0]  # of the last minute: what runs beside us disturbs
    return found


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def last_level_cache() -> int:
    """Bytes; 32 MiB where the system does not say."""
    files = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((int(file.read_text().strip().removesuffix("K")) << 10 for file in files), default=32 << 20)


@functools.cache
def streaming_runs(peers: tuple[str, ...]) -> dict[str, tuple[int, Run]]:
    """Kernels that do nothing but stream: the bytes that one run reads and writes, and what runs it.

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


_ROUNDS = 100_000  # of multiply-adds: some 300 microseconds


def peak_runs(dtype: str) -> dict[str, tuple[int, Run]]:
    """Multiply-adds in registers on all threads: the operations of one run, and what runs it."""
    if threads._native is None:
        return {}
    run = functools.partial(threads._native.multiply_add, dtype, _ROUNDS)
    return {"multiply-add": (int(run()), run)}
