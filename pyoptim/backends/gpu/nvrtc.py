"""The CuPy backend: the same CUDA kernels, compiled at run time from the headers in the package.

It serves installs without the compiled module, and has the same functions, on CuPy's bindings of CUDA.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, cast

try:
    import cupy
    from cupy.cuda import compiler, runtime
    from cupy.cuda.function import Module
    from cupy_backends.cuda.api import driver
except ImportError as error:
    raise ImportError(f"CuPy is not installed (pip install 'pyoptim[cuda]'): {error}") from error

from ...arrays.queue import Launcher
from .. import STEPPERS
from . import layers
from .adafactor import AdafactorStepper
from .constants import THREADS
from .layers import *
from .muon import MuonStepper
from .packed import PackedStepper
from .steps import Stepper, host_functions
from .trust import TrustStepper

__all__ = ["launcher", "name", *STEPPERS, *layers.__all__]

name = "cupy"
PROGRAM = '#include "cuda/kernels/kernels.cuh"\nusing namespace pyoptim::cuda;\n'
# Multiply-adds are not contracted, for the same bits as the other backends. Division and roots are IEEE's by
# default.
OPTIONS = ("--std=c++17", "--fmad=false")


def why_not() -> str | None:
    """Return why no GPU can be used, or None."""
    if runtime.is_hip:
        return "this CuPy is built for ROCm"
    try:
        if not runtime.driverGetVersion():
            return "there is no NVIDIA driver"
        return None if runtime.getDeviceCount() else "there is no CUDA device"
    except runtime.CUDARuntimeError as error:
        return str(error)


def headers() -> Path:
    """Return the folder that ``#include "cuda/kernels/kernels.cuh"`` is relative to."""
    folder = Path(__file__).with_name("csrc")
    if not (folder / "cuda" / "kernels" / "kernels.cuh").is_file():
        raise ImportError(f"this install has no CUDA headers: there is no folder {str(folder)!r}")
    return folder


def options(folder: Path) -> tuple[str, ...]:
    """Return the compiler's options; CuPy adds the GPU's architecture."""
    return (*OPTIONS, f"-I{folder}")


@cache
def _function(kernel: str, device: int) -> Any:
    """Compile one kernel for a GPU's architecture, so that kernels that are not used cost nothing.

    CuPy's RawModule is avoided: it flushes subnormal numbers to 0 (its last option is -ftz=true).
    """
    code, names = compiler.compile_using_nvrtc(PROGRAM, options(headers()), name_expressions=(kernel,))
    module = Module()
    module.load(code)
    return module.get_function(names[kernel])  # the function keeps its module alive


def _packed(value: Any) -> Any:
    """Return an argument as memory that is at least as long as the kernel's parameter."""
    if isinstance(value, bytes):
        return ctypes.create_string_buffer(value, len(value))
    if isinstance(value, float):
        return ctypes.c_double(value)
    return ctypes.c_uint64(0 if value is None else value)  # shorter integers are its low bytes


def launch(kernel: str, blocks: int, arguments: tuple[Any, ...], stream: int) -> None:
    """Launch a kernel with the addresses of its arguments, as CUDA takes them."""
    if blocks == 0:
        return
    function = _function(kernel, runtime.getDevice())
    values = [_packed(value) for value in arguments]
    pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    driver.launchKernel(function.ptr, blocks, 1, 1, THREADS, 1, 1, 0, stream, ctypes.addressof(pointers), 0)


class Memory:
    """GPU memory, freed with the object. CuPy's pool would reuse it before the streams are done."""

    def __init__(self, size: int) -> None:
        self._memory = cupy.cuda.Memory(size)
        self.address, self.bytes = int(self._memory.ptr), size


class Event:
    """A point in the order of a stream's work."""

    def __init__(self) -> None:
        self._event = cupy.cuda.Event(disable_timing=True)

    def record(self, stream: int) -> None:
        runtime.eventRecord(self._event.ptr, stream)

    def hold(self, stream: int) -> None:
        """Make later work on the stream wait for this event."""
        runtime.streamWaitEvent(stream, self._event.ptr)


class Stream:
    """A CUDA stream that does not wait for the default stream."""

    def __init__(self) -> None:
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self.address = int(self._stream.ptr)


def begin_capture(stream: int) -> None:
    """Record the work queued on the stream, which is not the default one, instead of running it."""
    runtime.streamBeginCapture(stream, runtime.streamCaptureModeRelaxed)


def is_capturing(stream: int) -> bool:
    """Return whether anybody captures the work that is queued on the stream."""
    return bool(runtime.streamIsCapturing(stream))


class Graph:
    """A graph of the work queued on the stream since begin_capture."""

    def __init__(self, stream: int) -> None:
        try:
            graph = runtime.streamEndCapture(stream)
        except runtime.CUDARuntimeError as error:
            raise RuntimeError(f"CUDA: {error}") from error
        try:
            self._graph = runtime.graphInstantiate(graph)
        finally:
            runtime.graphDestroy(graph)

    def __del__(self) -> None:
        if hasattr(self, "_graph"):
            with suppress(runtime.CUDARuntimeError):  # at exit the driver may have shut down already
                runtime.graphExecDestroy(self._graph)

    def launch(self, stream: int) -> None:
        runtime.graphLaunch(self._graph, stream)


def copy(to: int, source: int, bytes: int, stream: int) -> None:
    """Copy bytes within the GPU's memory or between it and the processor's, in the stream's order."""
    if bytes:
        runtime.memcpyAsync(to, source, bytes, runtime.memcpyDefault, stream)


def fill(to: int, byte: int, bytes: int, stream: int) -> None:
    """Set ``bytes`` bytes to one value, in the stream's order."""
    if bytes:
        runtime.memsetAsync(to, byte, bytes, stream)


def synchronize(stream: int) -> None:
    """Wait for all work queued on the stream."""
    runtime.streamSynchronize(stream)


def set_device(index: int) -> None:
    """Make this thread use another GPU."""
    runtime.setDevice(index)


def get_device() -> int:
    """Return the index of the GPU that this thread uses."""
    return int(runtime.getDevice())


def device_count() -> int:
    """Return the number of GPUs: 0 without a GPU or a driver, for which why_not() has the reason."""
    return int(runtime.getDeviceCount()) if why_not() is None else 0


def device(index: int) -> dict[str, Any]:
    """Return a GPU's name, compute capability, memory in bytes, and number of multiprocessors."""
    properties = runtime.getDeviceProperties(index)
    return {
        "name": properties["name"].decode(),
        "compute_capability": (properties["major"], properties["minor"]),
        "memory": properties["totalGlobalMem"],
        "multiprocessors": properties["multiProcessorCount"],
    }


if reason := why_not():
    raise ImportError(f"no CUDA device can be used: {reason}")
headers()

launcher = cast(Launcher, sys.modules[__name__])
__getattr__ = host_functions(name)
