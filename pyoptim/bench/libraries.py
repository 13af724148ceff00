"""Where competitors keep their arrays: NumPy, PyTorch and CuPy, and pyoptim in a GPU's memory."""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import gpu
from ..arrays.memory import views
from ..arrays.queue import LEGACY_STREAM, Queue
from ..runtime import dispatch
from ..runtime.dtypes import Array


class Library:
    """NumPy. Competitors on the processor work on the arrays that they are given, without a copy."""

    def array(self, values: Array) -> Any:
        """These values as an array of the library."""
        return values

    def split(self, array: Any, sizes: Sequence[int]) -> list[Any]:
        """Consecutive pieces of a vector, as views of it."""
        return list(views(array, [(n,) for n in sizes]))

    def write(self, array: Any, values: Array) -> None:
        array[...] = values

    def read(self, array: Any) -> Array:
        """The values as a NumPy array."""
        return np.asarray(array)


class Torch(Library):
    """PyTorch, on "cpu" or "cuda"."""

    def __init__(self, device: str) -> None:
        self._device = device

    def array(self, values: Array) -> Any:
        import torch

        return torch.from_numpy(values).to(self._device)

    def split(self, array: Any, sizes: Sequence[int]) -> list[Any]:
        return list(array.split(list(sizes)))

    def write(self, array: Any, values: Array) -> None:
        import torch

        array.copy_(torch.from_numpy(values))

    def read(self, array: Any) -> Array:
        values: Array = array.detach().cpu().numpy()
        return values


class CuPy(Library):
    """CuPy, whose arrays NumPy's functions take as their own."""

    def array(self, values: Array) -> Any:
        return importlib.import_module("cupy").asarray(values)

    def write(self, array: Any, values: Array) -> None:
        array.set(values)

    def read(self, array: Any) -> Array:
        values: Array = array.get()
        return values


class OurDevice(Library):
    """pyoptim's own arrays in the first GPU's memory."""

    def __init__(self) -> None:
        self.queue = Queue(dispatch.for_device().launcher, 0)

    def array(self, values: Array) -> Any:
        made = gpu.empty(self.queue, values.shape, values.dtype)
        made[...] = values
        return made

    def split(self, array: Any, sizes: Sequence[int]) -> list[Any]:
        ends = itertools.accumulate(sizes)
        return [array[end - n : end] for end, n in zip(ends, sizes, strict=True)]

    def read(self, array: Any) -> Array:
        values: Array = array.numpy()
        return values

    def wait(self) -> None:
        """Wait for all work that anybody has queued on the default stream."""
        self.queue.launcher.synchronize(LEGACY_STREAM)


def of(who: str, device: str) -> Library:
    """The library of a competitor, on "cpu" or "cuda"."""
    if who.startswith("torch"):
        return Torch(device)
    if who == "cupy":
        return CuPy()
    return OurDevice() if device == "cuda" else Library()


def of_users(device: str) -> Library:
    """The library whose arrays pyoptim is given: NumPy; on a GPU PyTorch, else CuPy, else pyoptim itself."""
    return of(next(iter(installed(device)), "pyoptim") if device == "cuda" else "numpy", device)


# The modules that each needs.
_PEERS = {"torch": ["torch"], "jax": ["jax"], "onnxruntime": ["onnxruntime", "onnx"]}


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def installed(device: str) -> tuple[str, ...]:
    """The libraries to compare with that are installed and reach "cpu" or "cuda"."""
    if device == "cpu":
        return ("numpy", *(peer for peer, modules in _PEERS.items() if all(map(_is_there, modules))))
    found = []
    for peer, module in (("torch", "torch.cuda"), ("cupy", "cupy")):
        if _is_there(peer) and importlib.import_module(module).is_available():
            found.append(peer)
    if _is_there("jax"):
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # others need memory too
        if importlib.import_module("jax").default_backend() == "gpu":
            found.append("jax")
    return tuple(found)


def missing(device: str) -> tuple[str, ...]:
    """The libraries that could be compared with on this device, but are not installed."""
    possible = _PEERS if device == "cpu" else ("torch", "cupy", "jax")
    return tuple(peer for peer in possible if peer not in installed(device))
