"""Optimizer steps on arrays in a GPU's memory, the same for both ways of launching kernels."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...arrays.gpu_checks import Gradients
from ...arrays.queue import Queue
from ...formulas.rules import Common, Rule
from ...runtime.dispatch import BackendError
from ...runtime.dtypes import Array
from .. import StepGroup
from .constants import ARRAYS, CHUNK, CHUNKS, PLAN, ROW_LENGTH, STEP_ROWS, TYPES, blocks_of

if TYPE_CHECKING:
    from ...arrays.gpu import DeviceArray


COLUMN_SPACE = 256
_DOUBLE = np.dtype(np.float64)
_FEW = 264  # chunks of arrays that several blocks share: two for each multiprocessor of a large GPU


def host_functions(name: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a backend that has no kernels for the processor's memory."""

    def missing(function: str) -> Any:
        if function.startswith("_"):
            raise AttributeError(f"module {name!r} has no attribute {function!r}")
        raise BackendError(
            f"the {name!r} backend has no {function} for arrays in the processor's memory: ask for another "
            "backend, or for none"
        )

    return missing


class Table:
    """A copy of a NumPy array in the GPU's memory, renewed when the array changes."""

    def __init__(self, queue: Queue) -> None:
        self._queue, self._held = queue, b""
        self._memory: Any = None

    def put(self, array: Array, stream: int) -> int:
        """Return the address of the array's copy; nobody may write the array any more."""
        held = array.tobytes()
        if held != self._held:
            if len(held) != len(self._held):
                self._memory = self._queue.allocate(len(held))
            self._held = b""  # in case the next line fails
            self._queue.copy_from(array, self._memory.address, stream)
            self._held = held
        return int(self._memory.address) if held else 0


def tables(
    params: Sequence[DeviceArray], states: Sequence[Sequence[DeviceArray]], rows: Sequence[int]
) -> tuple[Array, Array]:
    """Return the tables that step_kernel.cuh reads: the arrays, and the chunks of them that blocks take."""
    arrays = np.zeros(len(params), ARRAYS)
    for entry, param, own, row in zip(arrays, params, states, rows, strict=True):
        entry["param"], entry["size"], entry["row"] = param.address, param.size, row
        entry["state"][: len(own)] = [state.address for state in own]
    return arrays, chunks_of(arrays["size"], CHUNK)


def chunks_of(sizes: Array, length: int) -> Array:
    """Cut arrays of these sizes into chunks of at most ``length`` elements."""
    counts = blocks_of(sizes, length)
    chunks = np.empty(counts.sum(), CHUNKS)
    chunks["array"] = np.repeat(np.arange(len(sizes)), counts)
    chunks["chunk"] = np.arange(len(chunks)) - np.repeat(counts.cumsum() - counts, counts)
    return chunks


def coefficient_rows(rows: Sequence[tuple[float, ...]], dtype: np.dtype[Any]) -> bytes:
    """Return rows of coefficients, cast once, in the layout of StepRows."""
    # Beyond float32 is infinity, as in C++. NumPy would take ten times as long for one row.
    length = ROW_LENGTH * dtype.itemsize
    filled = [array(dtype.char, row).tobytes().ljust(length, b"\0") for row in rows]
    return b"".join(filled).ljust(STEP_ROWS * length, b"\0")


def copied_to_gpu(queue: Queue, table: Array) -> Any:
    """Return GPU memory that holds a copy of a NumPy array."""
    memory = queue.allocate(table.nbytes)
    queue.upload(memory.address, table)
    return memory


class Launch:
    """All arrays of one rule and dtype, which one launch updates."""

    prefix = ""  # the first part of the kernels' names

    def __init__(self, queue: Queue, rule: Rule, dtype: np.dtype[Any], members: Sequence[Any]) -> None:
        self._queue, self._launcher, self._dtype, self._type = queue, queue.launcher, dtype, TYPES[dtype]
        self._plan: Any = None
        self._rows_type = self._type  # in which kernels take coefficients
        self._kernel = f"{self.prefix}step<rule_named::{rule.name}, {self._type}>"
        self._length = len(Common._fields) + len(rule.coefficients._fields)
        self._which = [i for i, _, _, _ in members]
        self._groups = list(dict.fromkeys(group for _, group, _, _ in members))
        arrays, chunks = self._made_tables(members)
        self.blocks = len(chunks)
        self._tables = [copied_to_gpu(queue, table) for table in (arrays, chunks)]
        self._grads, self._rows = Table(queue), Table(queue)
        self._scaled = queue.allocate(8 * max(len(self._groups), STEP_ROWS) * ROW_LENGTH)
        self._ready = False  # whether the rows that `ready` makes have been made
        self._no_rows = bytes(STEP_ROWS * ROW_LENGTH * dtype.itemsize)  # passed if GPU memory holds the rows

    def _made_tables(self, members: Sequence[Any]) -> tuple[Array, Array]:
        return tables(
            [param for _, _, param, _ in members],
            [states for _, _, _, states in members],
            [self._groups.index(group) for _, group, _, _ in members],
        )

    def plan(self, steps: Sequence[Sequence[tuple[float, ...]]]) -> None:
        """See `Stepper.plan`."""
        values = np.array([self._rows_of(step) for step in steps])
        rows = np.zeros((*values.shape[:2], ROW_LENGTH))
        rows[:, :, : self._length] = values
        if self._plan is None:
            self._plan = self._queue.allocate(PLAN * rows[0].nbytes)
        self._queue.put(self._plan.address, rows)

    def point_at(self, addresses: Array, stream: int) -> None:
        """Use the gradients at these addresses."""
        at = self._grads.put(addresses[self._which], stream)
        self._at = (*(table.address for table in self._tables), at)

    def sum_of_squares(self, partial: int, stream: int) -> None:
        """Write the sum of the squares of each chunk to the address ``partial``."""
        kernel = f"{self.prefix}sum_of_squares<{self._type}>"
        self._launcher.launch(kernel, self.blocks, (*self._at, partial), stream)

    def _rows_of(self, coefficients: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
        """Return the rows of the groups that have arrays in this launch."""
        rows = [coefficients[group] for group in self._groups]
        if any(len(row) != self._length for row in rows):
            raise ValueError(f"{self._kernel} takes rows of {self._length} coefficients, {rows} were given")
        return rows

    def _exact_rows(self, coefficients: Sequence[tuple[float, ...]] | None, stream: int) -> Any:
        """Return the addresses of the rows in double and of the step's position; None without a plan."""
        if coefficients is None:
            return self._plan.address, self._queue.position
        return self._put_rows(coefficient_rows(self._rows_of(coefficients), _DOUBLE), stream), None

    def _put_rows(self, rows: bytes, stream: int) -> int:
        return self._rows.put(np.frombuffer(rows, np.uint8), stream)

    def ready(self, stream: int) -> None:
        """Queue what `step` computes of the plan alone, where no factor changes it."""
        self._scale(self._exact_rows(None, stream), None, stream)
        self._ready = True

    def _scale(self, exact: Any, factor: int | None, stream: int) -> int:
        """Return the address of the rows as a kernel takes them, in the type `_rows_type`."""
        at: int = self._scaled.address
        if self._ready and factor is None and exact[1] is not None:
            self._ready = False
            return at
        kind, arguments = self._rows_type, (len(self._groups), *exact, factor, at)
        self._launcher.launch(f"scale_rows<{kind}>", 1, arguments, stream)
        return at

    def step(
        self,
        coefficients: Sequence[tuple[float, ...]] | None,
        factor: int | None,
        stream: int,
        *more: Any,
    ) -> None:
        """Queue the kernel. ``factor`` is the address of a number that multiplies the gradients too, or None.

        Without coefficients the step takes the plan's row at the queue's position. ``more`` are further
        arguments of the kernel.
        """
        at, by_value = None, self._no_rows
        if coefficients is None or factor is not None:
            at = self._scale(self._exact_rows(coefficients, stream), factor, stream)
        else:
            rows = coefficient_rows(self._rows_of(coefficients), self._dtype)
            if len(self._groups) > STEP_ROWS:
                at = self._put_rows(rows, stream)
            else:
                by_value = rows
        self._run_step(self._kernel, (*self._at, at, by_value, *more), stream)

    def _run_step(self, kernel: str, arguments: tuple[Any, ...], stream: int) -> None:
        """Launch a kernel of step_kernel.cuh."""
        parts = 4 if self.blocks <= _FEW else 1
        self._launcher.launch(kernel, parts * self.blocks, (parts, *arguments), stream)


class Stepper:
    """See `pyoptim.backends.Stepper`; arrays are `pyoptim.arrays.gpu.DeviceArray`.

    Work is queued on the stream of the gradients, and the host does not wait.
    """

    checks = False
    _launch: Callable[..., Any] = Launch

    def __init__(self, groups: Sequence[StepGroup], queue: Queue | None = None) -> None:
        members: dict[Any, list[Any]] = {}
        i = 0
        for j, (rule, params, states) in enumerate(groups):
            for param, own in zip(params, states, strict=True):
                members.setdefault((rule.name, param.dtype), []).append((i, j, rule, param, own))
                i += 1
        self._prepare(members, queue)

    def _prepare(self, members: dict[Any, list[Any]], queue: Queue | None) -> None:
        """Prepare launches; ``members`` has each array's index, group, rule, parameter and states."""
        if queue is None:
            raise BackendError(
                "the 'cuda' and 'cupy' backends step arrays in a GPU's memory, and these are in the "
                "processor's: ask for another backend, or for none"
            )
        self._queue = queue
        self._launches = [
            self._launch(queue, of[0][2], dtype, [(i, j, param, own) for i, j, _, param, own in of])
            for (_, dtype), of in members.items()
        ]
        self._blocks = sum(launch.blocks for launch in self._launches)
        self._partial = queue.allocate(8 * self._blocks)
        self._pointed: bytes | None = None  # at which gradients the launches were pointed last
        self._scalars = queue.allocate(16)  # room for a sum of squares and a factor, 8 bytes each

    def step(
        self,
        grads: Sequence[DeviceArray],
        coefficients: Sequence[tuple[float, ...]] | None,
        max_norm: float | None = None,
        *more: Any,
    ) -> bool:
        """Queue a step. ``max_norm`` limits the norm of the gradients times the first coefficient's size.

        Without coefficients the step takes those of `plan`, so that only the GPU's memory differs between
        steps. ``more`` are arguments that steps of this kind take beside the coefficients.
        """
        found = Gradients.of(grads)
        with self._queue.among(found.streams, found.queues) as stream:
            self._point_at(found.addresses, stream)
            factor = self._clip(coefficients, max_norm, stream)
            for launch in self._launches:
                launch.step(coefficients, factor, stream, *more)
        return True

    def plan(self, grads: Sequence[DeviceArray], steps: Sequence[Sequence[tuple[float, ...]]]) -> None:
        """Store coefficients of up to `PLAN` later steps on these gradients; a row begins with 1 or -1."""
        found = Gradients.of(grads)
        with self._queue.among(found.streams, found.queues) as stream:
            self._point_at(found.addresses, stream)
            for launch in self._launches:
                launch.plan(steps)

    def ready(self) -> None:
        """Queue what the next `step`, by the plan and without a limit of the norm, computes before it begins.

        In a capture that may be done `aside`.
        """
        with self._queue.on(self._queue.stream):
            for launch in self._launches:
                launch.ready(self._queue.stream)

    def _clip(
        self, coefficients: Sequence[tuple[float, ...]] | None, max_norm: float | None, stream: int
    ) -> int | None:
        """Return the address of a factor that clips the gradients, or None."""
        if max_norm is None or not self._launches:
            return None
        self._squares(1.0 if coefficients is None else coefficients[0][0] ** 2, stream)
        squares: int = self._scalars.address
        arguments = (squares, float(max_norm), squares + 8)
        self._queue.launcher.launch("clip_factor<double>", 1, arguments, stream)
        return squares + 8

    def ascend(self, grads: Sequence[DeviceArray], distance: float) -> None:
        """Queue a move of arrays, whose rule is "sgd", by this distance along all gradients as one vector."""
        found = Gradients.of(grads)
        with self._queue.among(found.streams, found.queues) as stream:
            self._point_at(found.addresses, stream)
            self._squares(1.0, stream)
            squares: int = self._scalars.address
            arguments = (squares, float(distance), squares + 8)
            self._queue.launcher.launch("ascent_factor<double>", 1, arguments, stream)
            for launch in self._launches:
                launch.step([(-1.0, 0.0, 1.0, 1.0)], squares + 8, stream)

    def norm(self, grads: Sequence[DeviceArray]) -> float:
        """Return the norm of all gradients as one vector, in double; the host waits for it."""
        found = Gradients.of(grads)
        with self._queue.among(found.streams, found.queues) as stream:
            self._point_at(found.addresses, stream)
            self._squares(1.0, stream)
        return root_of(float(self._queue.download(self._scalars.address, np.empty(1), stream)[0]))

    def _squares(self, scale: float, stream: int) -> None:
        partial = self._partial.address
        for launch in self._launches:
            launch.sum_of_squares(partial, stream)
            partial += 8 * launch.blocks
        arguments = (self._blocks, self._partial.address, scale, self._scalars.address)
        self._queue.launcher.launch("total_squares<double>", 1, arguments, stream)

    def _point_at(self, addresses: Array, stream: int) -> None:
        """Use the gradients at these addresses."""
        held = addresses.tobytes()
        if held != self._pointed:
            self._pointed = None  # in case a launch fails
            for launch in self._launches:
                launch.point_at(addresses, stream)
            self._pointed = held


def root_of(kept: float) -> float:
    """Return the root of a sum of squares as ``csrc/formulas/squares.hpp`` keeps it."""
    return -kept if kept < 0 else math.sqrt(kept)
