"""A GPU's memory as a place of arrays: the methods of `pyoptim.backends.places.Host`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...arrays import gpu, gpu_checks, gpu_data
from ...arrays.queue import Queue
from ...formulas.ascent import ascent
from ...formulas.rules import RULES
from ...formulas.storage import Packed, widened
from ...runtime import dispatch
from .. import StepGroup, reference
from . import copies
from .batches import Sums, batches
from .steps import Stepper


class Gpu:
    """The memory of a GPU, and the order of the work on it; `Host` says what the methods do."""

    clips = True
    runs_python = False

    overlap_finder: Any = staticmethod(gpu_checks.DeviceRanges)
    check_gradients: Any = staticmethod(gpu_checks.check_gradients)
    gradient_finder: Any = staticmethod(gpu_checks.TensorFinder)

    def __init__(self, queue: Queue) -> None:
        self.queue, self.queues, self.name = queue, (queue,), f"cuda:{queue.device}"

    def backend(self) -> Any:
        backend = dispatch.for_device()
        if backend.launcher is not self.queue.launcher:
            raise dispatch.BackendError(
                f"the {backend.name!r} backend was asked for, but another one when this optimizer was made"
            )
        return backend

    # Parameters and gradients.

    def addresses(self, params: Sequence[Any]) -> list[Any]:
        return []  # their owners know the addresses

    def check_memory(self, names: Sequence[str], params: Sequence[Any], addresses: Any) -> None:
        gpu_checks.check_memory(names, params)

    check_writeable = staticmethod(gpu_checks.check_memory)

    def staged(self, params: Sequence[Any]) -> dict[int, Any]:
        return {}

    def norm(self, grads: Sequence[Any], stepper: Any) -> float:
        norm: float = stepper.norm(grads)
        return norm

    # Memory.

    def values(self, array: Any) -> Any:
        return array.download(self.queue)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return gpu.empty(self.queue, shape, dtype)

    def zeros_beside(self, arrays: Sequence[Any], shapes: Sequence[tuple[int, ...]], dtype: Any) -> list[Any]:
        return gpu.zeros_beside(self.queue, arrays, shapes, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any, beside: Any) -> Any:
        return gpu.zeros_beside(self.queue, [beside], [shape], dtype)[0]

    def copies(self, arrays: Sequence[Any]) -> list[Any]:
        return copies.copies(self.queue, arrays)

    def wide_copies(self, arrays: Sequence[Any]) -> list[Any]:
        made = self._wide_zeros(arrays)
        self.assign(made, arrays)
        return made

    def _wide_zeros(self, arrays: Sequence[Any]) -> list[Any]:
        return copies.zeros(self.queue, arrays, [copies.widened(a.dtype) for a in arrays])

    def assign(self, to: Sequence[Any], values: Sequence[Any]) -> None:
        copies.assign(self.queue, to, values)

    def moved(self, array: Any) -> Any:
        return gpu.uploaded(self.queue, np.asarray(array))

    # Arrays that users pass and get.

    def upload(self, array: Any) -> Any:
        return gpu.uploaded(self.queue, array) if isinstance(array, np.ndarray) else array

    def download(self, name: str, value: Any) -> Any:
        return gpu_data.downloaded(name, value, self.queue)

    def adopt(self, name: str, value: Any, dtype: Any, shape: Any = None, *, or_bytes: bool = False) -> Any:
        """Return a user's array in this GPU's memory as one of ours, not copied; see `gpu_data.adopted`."""
        return gpu_data.adopted(name, value, self.queue, dtype, shape, or_bytes=or_bytes)

    release = staticmethod(gpu_data.release)

    def result(self, array: Any, given: Any) -> Any:
        return array.numpy() if isinstance(given, np.ndarray) else array.copy()

    # Data and losses.

    batches = staticmethod(batches)

    def sums(self, classification: bool) -> Sums:
        return Sums(self.queue, classification)

    def added(self, loss: Any, more: Any) -> Any:
        self.queue.join()
        dispatch.of(loss).add(loss, more, loss)
        return loss

    # Steps made of several kernels.

    def accumulator(self, params: Sequence[Any], averaged: bool) -> Accumulator:
        means = copies.zeros(self.queue, params, [p.dtype for p in params]) if averaged else None
        return Accumulator(self.queue, params, self._wide_zeros(params), means)

    def mover(self, params: Sequence[Any], directions: Sequence[Packed]) -> Mover:
        return Mover(self.queue, params, directions)

    def ascent(self, params: Sequence[Any]) -> Ascent:
        return Ascent(self.queue, params)

    def follower(self, names: Sequence[str], averages: Sequence[Any], params: Sequence[Any]) -> Follower:
        return Follower(self.queue, names, averages, params)


class Accumulator:
    """Sums up gradients in buffers of its own, and their means, if any, in others."""

    in_place = True

    def __init__(
        self,
        queue: Queue,
        params: Sequence[Any],
        buffers: list[Any],
        means: list[Any] | None,
    ) -> None:
        self._queue, self._buffers, self._means = queue, buffers, means
        self._adder = copies.Descent(queue, buffers, params)

    def add(
        self, sums: Sequence[Any], count: int, grads: Sequence[Any], last: bool
    ) -> tuple[list[Any], int, list[Any], float]:
        """Add gradients as on the processor, but the sums include the last ones even if the step fails."""
        for buffer in () if count else self._buffers:
            self._queue.clear(buffer.address, buffer.nbytes)
        if count and sums is not self._buffers:  # the sums have been loaded from a file
            for buffer, values in zip(self._buffers, sums, strict=True):
                buffer[...] = values
        self._adder.step(grads, [(1.0, 0.0, 1.0, -1.0)])  # a descent at rate -1: sums + g
        count += 1
        if not last:
            return self._buffers, count, [], 1.0
        gathered = copies.on_streams_of(self._buffers, grads)
        if self._means is None:
            return self._buffers, count, gathered, 1 / count
        means = copies.on_streams_of(self._means, grads)
        copies.assign(self._queue, means, gathered, 1 / count)
        return self._buffers, count, means, 1.0


class Mover:
    """Moves parameters along directions, which may be stored in any type."""

    def __init__(self, queue: Queue, params: Sequence[Any], directions: Sequence[Packed]) -> None:
        self._params = params
        self._directions: list[Any] = [direction.data for direction in directions]
        self._descent = copies.Descent(queue, params, directions, range(len(params)))

    def move(self, rates: Sequence[float]) -> None:
        directions = copies.on_streams_of(self._directions, copies.renewed(self._params))
        # The rates are rounded to the parameter's type, as on the processor.
        rows = [(1.0, 0.0, 1.0, float(p.dtype.type(r))) for p, r in zip(self._params, rates, strict=True)]
        self._descent.step(directions, rows)


class Ascent:
    """Moves parameters along their gradients; what is adaptive or has 16 bits, with the processor's help."""

    def __init__(self, queue: Queue, params: Sequence[Any]) -> None:
        self._queue, self._params = queue, params
        self._plain: Any = None
        if all(p.dtype.itemsize > 2 for p in params):
            self._plain = Stepper([StepGroup(RULES["sgd"], params, [()] * len(params))], queue)

    def move(self, grads: Sequence[Any], rho: float, adaptive: bool) -> None:
        if self._plain is not None and not adaptive:
            self._plain.ascend(grads, rho)
            return
        points, slopes = ([widened(a.download(self._queue)) for a in of] for of in (self._params, grads))
        directions, rate = ascent(points, slopes, rho, adaptive, reference.norm)
        uploaded = [gpu.uploaded(self._queue, direction) for direction in directions]
        copies.Descent(self._queue, self._params, uploaded).step(uploaded, [(-1.0, 0.0, 1.0, rate)])


class Follower:
    """Moves averages towards the parameters that they follow, by one launch for each dtype."""

    def __init__(
        self,
        queue: Queue,
        names: Sequence[str],
        averages: Sequence[Any],
        params: Sequence[Any],
    ) -> None:
        self._names, self._params = names, params
        self._descent = copies.Descent(queue, averages, params)

    def follow(self, weight: float) -> None:
        dispatch.for_device()  # raises if a backend of the processor is in force
        gpu_checks.check_memory(self._names, self._params)
        self._descent.step(copies.renewed(self._params), [(-1.0, 1.0, 1.0, weight)])
