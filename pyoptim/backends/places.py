"""Where arrays are: in the processor's memory (`Host`) or in a GPU's (`pyoptim.backends.gpu.place.Gpu`).

Optimizers, averages and models choose their place once, when they are made, and ask it for whatever differs
between the two. Both classes have the same methods.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeAlias

import numpy as np

from ..arrays import checks, gpu, gpu_checks, gpu_data, memory
from ..formulas import storage
from ..formulas.ascent import ascent
from ..formulas.rules import RULES
from ..runtime import dispatch
from . import StepGroup, spans

if TYPE_CHECKING:
    from .gpu.place import Gpu

Row = tuple[float, ...]


class Host:
    """The processor's memory. There is one, `HOST`.

    Attributes
    ----------
    name : str
        The value of `Sequential.device`.
    queue : Queue or None
        The order of the work on arrays in a GPU's memory.
    queues : tuple
        The arguments that steppers of this place's backends take beside their groups.
    clips : bool
        Whether a step clips the gradients by itself, so that it takes the limit of their norm.
    runs_python : bool
        Whether layers and losses that users write in NumPy can work on its arrays.
    """

    name = "cpu"
    queue = None
    queues: ClassVar[tuple[Any, ...]] = ()
    clips = False
    runs_python = True

    backend = staticmethod(dispatch.current)  # the backend in force
    overlap_finder = staticmethod(memory.OverlapFinder)  # finds what overlaps some arrays
    zeros_beside = staticmethod(memory.zeros_beside)
    check_gradients: Any = staticmethod(checks.check_gradients)

    def __reduce__(self) -> str:
        return "HOST"

    # Parameters and gradients.

    def addresses(self, params: Sequence[Any]) -> list[Any]:
        """Return the addresses with which `check_memory` compares later ones."""
        return [(_address(p), p.shape) for p in params]

    def check_memory(self, names: Sequence[str], params: Sequence[Any], addresses: Sequence[Any]) -> None:
        """Raise ValueError if a parameter has become read-only or has been resized."""
        self.check_writeable(names, params)
        for name, p, address in zip(names, params, addresses, strict=True):
            if (_address(p), p.shape) != address:
                raise ValueError(f"{name} has been resized or reshaped: make a new optimizer for it")

    def check_writeable(self, names: Sequence[str], params: Sequence[Any]) -> None:
        """Raise ValueError if an array cannot be written."""
        for name, p in zip(names, params, strict=True):
            if not p.flags.writeable:
                raise ValueError(f"{name} is read-only, expected a writeable array")

    def staged(self, params: Sequence[Any]) -> dict[int, Any]:
        """Return contiguous copies of the parameters that kernels cannot read as they are, by index."""
        return {i: np.array(p, order="C") for i, p in enumerate(params) if not memory.is_fast(p)}

    def gradient_finder(self, params: Sequence[Any], written: Any) -> None:
        """Return an object that finds gradients faster than `check_gradients`, or None."""

    def norm(self, grads: Sequence[Any], stepper: Any = None) -> float:
        """Return the L2 norm of checked gradients as one vector; ``stepper`` updates their parameters."""
        norm: float = dispatch.current().norm([storage.widened(g) for g in grads])
        return norm

    # Memory.

    def values(self, array: Any) -> Any:
        """Return the values of an array as a NumPy array."""
        return array

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return an uninitialised array."""
        return np.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any, beside: Any) -> Any:
        """Return a zeroed array in the memory of another."""
        return memory.aligned_zeros(math.prod(shape), dtype).reshape(shape)

    def copies(self, arrays: Sequence[Any]) -> list[Any]:
        """Return copies of the arrays in new memory."""
        return [a.copy() for a in arrays]

    def wide_copies(self, arrays: Sequence[Any]) -> list[Any]:
        """Return contiguous copies; arrays of 16-bit floats become float32."""
        return [np.array(storage.widened(a), order="C") for a in arrays]

    def assign(self, to: Sequence[Any], values: Sequence[Any]) -> None:
        """Copy the values of arrays into others of the same shapes, rounded where those have fewer bits."""
        for array, value in zip(to, values, strict=True):
            array[...] = value

    def moved(self, array: Any) -> Any:
        """Return a copy in this memory of an array that may be in another."""
        made = memory.aligned_zeros(array.size, array.dtype).reshape(array.shape)
        made[...] = array
        return made

    # Arrays that users pass and get.

    def upload(self, array: Any) -> Any:
        """Copy data from the processor to this memory; None and arrays already in it stay as they are."""
        return array

    def download(self, name: str, value: Any) -> Any:
        """Return data as a NumPy array if they are in a GPU's memory, which must be this place's."""
        return gpu_data.downloaded(name, value, None)

    def adopt(self, name: str, value: Any, *_: Any, **__: Any) -> NoReturn:
        """Raise TypeError, since a model on the processor takes no array in a GPU's memory."""
        raise TypeError(f"{name} is in a GPU's memory, but the model is not: see Sequential.to")

    def release(self, array: Any) -> None:
        """Let the owner of an adopted array work on it again, after what is queued."""

    def result(self, array: Any, given: Any) -> Any:
        """Return a copy of a model's result, in the memory of the array that the user gave."""
        return array.copy()

    # Data and losses.

    def batches(
        self, arrays: tuple[Any, ...], size: Any, dtype: Any, order: Any = None, first: int = 0
    ) -> Iterator[tuple[Any, ...]]:
        """Yield batches from example ``first`` on, of those in the order if one is given.

        The first array becomes ``dtype``. ``size`` is as `spans` takes it.
        """
        for begin, end in spans(size, first, len(arrays[0] if order is None else order)):
            rows = slice(begin, end)
            given = (a for a in arrays if a is not None)
            x, *others = (a[rows] if order is None else a.take(order[rows], axis=0) for a in given)
            yield (x.astype(dtype, copy=False), *others)

    def sums(self, classification: bool) -> Sums:
        """Return an object that sums up the losses of batches and, of classes, counts the right ones."""
        return Sums(classification)

    def added(self, loss: Any, more: Any) -> Any:
        """Return the sum of two losses; on a GPU it replaces the first, and nothing waits."""
        return float(loss) + more

    # Steps made of several kernels.

    def accumulator(self, params: Sequence[Any], averaged: bool) -> Accumulator:
        """Return an object that sums up gradients; if ``averaged``, it gives their mean and no factor."""
        return Accumulator(averaged)

    def mover(self, params: Sequence[Any], directions: Sequence[storage.Packed]) -> Mover:
        """Return an object that moves parameters along directions."""
        return Mover(params, directions)

    def ascent(self, params: Sequence[Any]) -> Ascent:
        """Return an object that moves parameters along their gradients."""
        return Ascent(params)

    def follower(self, names: Sequence[str], averages: Sequence[Any], params: Sequence[Any]) -> Follower:
        """Return an object that moves averages towards parameters."""
        return Follower(names, averages, params)


HOST = Host()
Place: TypeAlias = "Host | Gpu"


def _address(array: Any) -> int | None:
    """Return where an array's memory is, or None for a view, whose memory is not its own to resize."""
    return array.ctypes.data if array.base is None else None  # reading it takes as long as a small kernel


class Sums:
    """The loss of some batches, and how many examples were classified right."""

    def __init__(self, classification: bool) -> None:
        self._classification, self._loss, self._divisor, self._right = classification, 0.0, 0.0, 0

    def add(self, output: Any, target: Any, loss: float, divisor: float) -> None:
        """Add a batch, whose loss is a sum divided by ``divisor``."""
        self._loss += loss * divisor
        self._divisor += divisor
        if self._classification:
            self._right += count_right(output, target)

    def read(self) -> dict[str, float]:
        """Return the sum of all losses, each times its divisor, that of the divisors, and the right ones."""
        return {"loss": self._loss, "divisor": self._divisor, "right": self._right}


def count_right(output: Any, target: Any) -> int:
    """Return how often the largest output is that of the label, or that with the largest share.

    Outputs of which the largest is NaN or infinite are never right: they have no softmax.
    """
    right = output.argmax(axis=1) == (target if target.ndim == 1 else target.argmax(axis=1))
    if not checks.is_within(output, -math.inf):  # this takes less time than a look at each example
        right &= np.isfinite(output.max(axis=1))
    return int(np.count_nonzero(right))


class Accumulator:
    """Sums up the gradients of several calls of `Optimizer.step`."""

    in_place = False  # whether a step that fails has changed the sums

    def __init__(self, averaged: bool) -> None:
        self._averaged = averaged

    def add(
        self, sums: list[Any], count: int, grads: Sequence[Any], last: bool
    ) -> tuple[list[Any], int, list[Any], float]:
        """Add gradients to the sums of ``count`` others; with ``last`` a step is made of them.

        Returns
        -------
        sums, count
            The sums to keep. The last call does not change them, so it can be repeated if the step fails.
        grads, factor
            The gradients to step with, and their factor. There are no gradients before the last call.
        """
        with np.errstate(all="ignore"):
            # Sums are float32 at least, since those of 16 bits would overflow, or stand still.
            wide = [storage.widened(g) for g in grads]
            if count:  # NumPy's sum of arrays without dimensions is a scalar
                wide = [np.asarray(a + g) for a, g in zip(sums, wide, strict=True)]
            if not last:
                return (wide if count else [g.copy() for g in wide]), count + 1, [], 1.0
            mean = 1 / (count + 1)  # accumulate may have been lowered in the meantime
            if not self._averaged:
                return sums, count, wide, mean
            return sums, count, [np.asarray(a * mean, g.dtype) for a, g in zip(wide, grads, strict=True)], 1.0


class Mover:
    """Moves parameters along directions, which may be stored in any type."""

    def __init__(self, params: Sequence[Any], directions: Sequence[storage.Packed]) -> None:
        self._params, self._directions = params, directions

    def move(self, rates: Sequence[float]) -> None:
        """Compute ``p -= rate * direction`` in the type of each parameter."""
        for p, direction, rate in zip(self._params, self._directions, rates, strict=True):
            is_plain = direction.kind in ("float32", "float64")
            values = direction.data if is_plain else storage.decode(direction).reshape(p.shape)
            p[...] = p - p.dtype.type(rate) * values


class Ascent:
    """Moves parameters along their gradients, as `Optimizer.ascended` says."""

    def __init__(self, params: Sequence[Any]) -> None:
        self._params = params

    def move(self, grads: Sequence[Any], rho: float, adaptive: bool) -> None:
        """Move by rho along checked gradients; 16-bit parameters are rounded to nearest."""
        points = [storage.widened(p) for p in self._params]
        slopes = [storage.widened(g) for g in grads]
        directions, rate = ascent(points, slopes, rho, adaptive, HOST.norm)
        with np.errstate(all="ignore"):
            for p, point, direction in zip(self._params, points, directions, strict=True):
                p[...] = point + point.dtype.type(rate) * direction


class Follower:
    """Moves averages towards the parameters that they follow."""

    def __init__(self, names: Sequence[str], averages: Sequence[Any], params: Sequence[Any]) -> None:
        self._names, self._averages, self._params = names, averages, params
        self._steppers: dict[str, Any] = {}  # by backend

    def follow(self, weight: float) -> None:
        """Compute ``average -= weight * (average - parameter)``."""
        backend = dispatch.current()
        stepper = self._steppers.get(backend.name)
        if stepper is None:
            group = StepGroup(RULES["sgd"], self._averages, [()] * len(self._averages))
            stepper = self._steppers[backend.name] = backend.Stepper([group])
        points = [storage.widened(p) for p in self._params]
        # This update is a step of gradient descent along the parameters, with decay 1 and sign -1.
        rows: list[Row] = [(-1.0, 1.0, 1.0, weight)]
        if not (stepper.checks and stepper.step(points, rows)):
            written = memory.OverlapFinder(self._averages)
            stepper.step(checks.check_gradients(self._names, points, self._averages, written), rows)


def place_of(names: Sequence[str], params: Sequence[Any]) -> Place:
    """Return the place of parameters, which must be writeable, separate, and all in one memory.

    Raises
    ------
    TypeError, ValueError
        The parameters are not so; the message names the one at fault.
    """
    if not any(isinstance(p, gpu.DeviceArray) for p in params):
        checks.check_parameters(names, params)
        return HOST
    gpu_checks.check_parameters(names, params)
    return _on(gpu.queue_of(params))


def place_with(array: Any) -> Place:
    """Return the place of an array of our own."""
    return _on(getattr(array, "queue", None))


def place_named(device: str) -> Place:
    """Return the place named "cpu", "cuda", or by a GPU's number as in "cuda:1"; see `gpu.queue_on`."""
    return _on(gpu.queue_on(device))


def _on(queue: Any) -> Place:
    if queue is None:
        return HOST
    from .gpu.place import Gpu  # `import pyoptim` does not pay for it

    return Gpu(queue)
