"""The machine: what it is, how fast its memory streams, and how fast it computes."""

from __future__ import annotations

import datetime
import functools
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

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
    if hasattr(os, "getloadavg"):
        found["load_average"] = os.getloadavg()[0]  # of the last minute: other programs disturb the figures
    return found


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
