"""Optimizer steps on arrays in a GPU's memory, the same for every way of launching kernels.

A launcher is the compiled module ``_cuda``, or `nvrtc`: both run the kernels of ``csrc/include/pyoptim``
by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from .._arrays import Array
from ..rules import Common, Rule
from . import BackendError, StepGroup

if TYPE_CHECKING:
    from .._device import DeviceArray

# As in launch.hpp and cuda.cuh: tests/test_contract.py compares them.
THREADS, ELEMENTS, CHUNK, SUM_BLOCK, PART_ROWS, STEP_ROWS, ROW_LENGTH = 256, 1024, 4096, 16384, 128, 8, 16
COLUMN_SPACE = 256
WARP, WARPS = 32, THREADS // 32  # threads in one, and how many a block has
ARRAYS = np.dtype([("param", "u8"), ("state", "u8", (4,)), ("size", "i8"), ("row", "i8")])
CHUNKS = np.dtype([("array", "i4"), ("chunk", "i4")])
POSITION = np.dtype([("steps", "i8"), ("example", "i8"), ("row", "i8"), ("loss", "f8"), ("right", "u8")])
PLAN = 1024  # steps whose coefficients fit into a plan
TYPES = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}

_MIB = 1 << 20
_SOURCES = 64  # host arrays that are kept before the host waits
_SIDES = 2  # a product of matrices and sums of columns beside the chain of layers
LEGACY_STREAM = 1  # what CUDA and __cuda_array_interface__ call the default stream


_Count = TypeVar("_Count", int, Array)


def blocks_of(n: _Count, of: int) -> _Count:
    """How many blocks work on n things, each on so many; of several n too."""
    return -(-n // of)


class Launcher(Protocol):
    """What a GPU is driven by. Addresses and streams are ints; work is queued, not waited for."""

    Memory: Any  # Memory(bytes), with its .address
    Event: Any  # Event(), with record(stream) and hold(stream): later work on the stream waits for it
    Stream: Any  # Stream(), with its .address
    Graph: Any  # Graph(stream): what was captured there, to launch(stream) many times

    def why_not(self) -> str | None:
        """Why no device can be used, or None."""

    def launch(self, kernel: str, blocks: int, arguments: tuple[Any, ...], stream: int) -> None:
        """Run a kernel; None is a null pointer, bytes are a struct."""

    def copy(self, to: int, source: int, bytes: int, stream: int) -> None:
        """Between any two of host and device."""

    def fill(self, to: int, byte: int, bytes: int, stream: int) -> None: ...
    def synchronize(self, stream: int) -> None: ...
    def begin_capture(self, stream: int) -> None:
        """What is queued on the stream from here on is recorded, not run."""

    def is_capturing(self, stream: int) -> bool:
        """Whether somebody, ourselves or others, captures what is queued there."""

    def device_count(self) -> int: ...
    def set_device(self, index: int) -> None: ...
    def get_device(self) -> int: ...
    def device(self, index: int) -> dict[str, Any]: ...


def host_functions(name: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a backend that has no kernels for the processor's memory."""

    def missing(function: str) -> Any:
        if function.startswith("_"):
            raise AttributeError(f"module {name!r} has no attribute {function!r}")
        raise BackendError(
            f"the {name!r} backend has no {function} for arrays in the processor's memory: ask for another "
            "backend, or for none"
        )

    return missing


class Pool:
    """Memory that is given back and taken again, since the device's own calls wait for all work.

    What is taken again at once may still be read by work queued before: so all work on a pool's memory is
    on one `Queue`, in order. While other work goes on aside, what is given back is held.
    """

    def __init__(self, allocate: Callable[[int], Any]) -> None:
        self._allocate = allocate
        self._free: dict[int, list[Any]] = {}
        self._held: list[tuple[int, Any]] | None = None
        self._sides: list[Pool] = []
        self._workspace: Block | None = None

    def take(self, size: int) -> Block:
        """At least so many bytes, until the block's last reference goes."""
        rounded = max(512, 1 << (size - 1).bit_length() if size < _MIB else -(-size // _MIB) * _MIB)
        free = self._free.setdefault(rounded, [])
        return Block(free.pop() if free else self._allocate(rounded), self, rounded)

    def workspace(self, size: int) -> Block:
        """What every work may write, one after the other."""
        if self._workspace is None:
            self._workspace = self.take(size)
        return self._workspace

    def side(self, index: int) -> Pool:
        """Of work that goes on beside that on this pool's memory."""
        while len(self._sides) <= index:
            self._sides.append(Pool(self._allocate))
        return self._sides[index]

    def hold(self) -> None:
        """Keep what is given back from others until `release`."""
        if self._held is None:
            self._held = []

    def release(self) -> None:
        held, self._held = self._held or [], None
        for size, memory in held:
            self._give(size, memory)

    def _give(self, size: int, memory: Any) -> None:
        if self._held is None:
            self._free[size].append(memory)
        else:
            self._held.append((size, memory))

    def give_back(self) -> bool:
        """Let the device have what nobody uses, when its work is done; whether there was any."""
        self._workspace = None
        some = any(self._free.values())
        for free in self._free.values():
            free.clear()
        return some


class Block:
    """Memory of a `Pool`."""

    __slots__ = ("_memory", "_pool", "_size", "address")

    def __init__(self, memory: Any, pool: Pool, size: int) -> None:
        self._memory, self._pool, self._size, self.address = memory, pool, size, int(memory.address)

    def __del__(self) -> None:
        self._pool._give(self._size, self._memory)


class Queue:
    """The order of all work on some arrays of one device, whatever streams it comes on.

    Attributes
    ----------
    stream : int
        What work on our own arrays is queued on.
    pool : Pool
    position : int or None
        The address of the `POSITION` that kernels of a training step read, while one is queued.
    products : tuple or None
        What multiplies matrices (`device_products`), once that is known.
    """

    def __init__(self, launcher: Launcher, device: int) -> None:
        self.launcher, self.device, self.stream = launcher, device, LEGACY_STREAM
        self.pool = self._spare = Pool(self.allocate)
        self.position: int | None = None
        self._capturing = False
        self._sides: list[Any] = []  # streams beside that of a capture
        self._aside: list[int] = []  # those that have been used since `join`, by their indices
        self._holding: Pool | None = None
        self._sources: list[Array] = []  # what copies may still read
        self._constants: dict[Any, DeviceArray] = {}
        self.products: tuple[Any] | None = None
        with self._device():
            self._last = launcher.Event()

    @contextmanager
    def _device(self) -> Iterator[None]:
        before = self.launcher.get_device()
        if before == self.device:
            yield
            return
        self.launcher.set_device(self.device)
        try:
            yield
        finally:
            self.launcher.set_device(before)

    @contextmanager
    def on(self, stream: int) -> Iterator[None]:
        """What is queued on the stream in the ``with`` block comes after what was queued here before."""
        if self._capturing:  # all on one stream, and nothing outside may be waited for
            assert stream == self.stream
            yield
            return
        with self._device():
            self._refuse_capture(stream)
            self._last.hold(stream)
            try:
                yield
            finally:
                self._last.record(stream)

    @contextmanager
    def among(
        self, streams: Sequence[int], queues: Sequence[Queue], stream: int | None = None
    ) -> Iterator[int]:
        """`on` the stream, after all work on arrays whose `works_of` these are, and before what comes.

        By default the first of theirs; what memory of other queues is used for next comes later too.
        """
        if stream is None:
            stream = streams[0] if streams else self.stream
        with self.on(stream), ExitStack() as stack:
            for queue in queues:
                if queue is not self:
                    stack.enter_context(queue.on(stream))
            for other in streams:
                self.chain(other, stream)
            try:
                yield stream
            finally:  # what has been queued reads them
                for other in streams:
                    self.chain(stream, other)

    def chain(self, first: int | None, then: int | None) -> None:
        """What is queued on the second stream from here on comes after what has been on the first."""
        if first is None or then is None or first == then:
            return
        with self._device():
            for stream in () if self._capturing else (first, then):
                self._refuse_capture(stream)
            event = self.launcher.Event()
            event.record(first)
            event.hold(then)

    def _refuse_capture(self, stream: int) -> None:
        # Nothing has been queued, and the capture goes on.
        if self.launcher.is_capturing(stream):
            raise RuntimeError(
                f"a CUDA graph is being captured on the stream {stream:#x}, which would repeat one step for "
                "ever: coefficients come from the processor's memory. Call pyoptim outside of the capture"
            )

    def capture(self, body: Callable[[], object]) -> Any:
        """The graph of what ``body`` queues, of which nothing is run.

        Memory that it takes from `pool` must be nobody else's as long as the graph is launched.
        """
        with self._device():
            # The default one cannot capture.
            own, *sides = (self.launcher.Stream() for _ in range(1 + _SIDES))
            self.launcher.begin_capture(own.address)
            before, self.stream, self._capturing, self._sides = self.stream, own.address, True, sides
            try:
                body()
                self.join()
            except BaseException:
                with suppress(RuntimeError):
                    self.launcher.Graph(own.address)  # ends the capture
                raise
            finally:
                self.stream, self._capturing, self._sides = before, False, []
                self._forget_aside()
            return self.launcher.Graph(own.address)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is captured in the ``with`` block may run beside what comes after it, up to `join`.

        Without a capture all is in order, as ever. What is taken from the pool in the block is used there
        only, or after `join` and up to the capture's end.
        """
        main, pool = self.stream, self.pool
        if not self._sides or pool is not (self._holding or pool):  # in such a block already
            yield
            return
        index = len(self._aside) % _SIDES
        self._aside.append(index)
        self._holding = pool
        pool.hold()
        self.stream, self.pool = self._sides[index].address, pool.side(index)
        self.chain(main, self.stream)
        try:
            yield
        finally:
            self.stream, self.pool = main, pool

    def join(self) -> None:
        """What is queued from here on comes after all that was captured aside."""
        for index in sorted(set(self._aside)):
            self.chain(self._sides[index].address, self.stream)
        self._forget_aside()

    def _forget_aside(self) -> None:
        self._aside.clear()
        if self._holding is not None:
            self._holding.release()
            self._holding = None

    def constant(self, array: Array) -> DeviceArray:
        """A small array's copy in the device's memory, made once."""
        from .._device import uploaded

        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = uploaded(self, array)
        return self._constants[key]

    def allocate(self, size: int) -> Any:
        """Memory of so many bytes."""
        with self._device():
            try:
                return self.launcher.Memory(size)
            except RuntimeError:
                # Not what another pool has: graphs use it.
                if self._capturing or not self._spare.give_back():
                    raise
            return self.launcher.Memory(size)

    def launch(self, kernel: str, blocks: int, *arguments: Any) -> None:
        """Run a kernel on `stream`, after all that was queued before."""
        with self.on(self.stream):
            self.launcher.launch(kernel, blocks, arguments, self.stream)

    def copy(self, to: int, source: int, size: int) -> None:
        """So many bytes, within the device."""
        with self.on(self.stream):
            self.launcher.copy(to, source, size, self.stream)

    def clear(self, address: int, size: int) -> None:
        """Zero so many bytes."""
        with self.on(self.stream):
            self.launcher.fill(address, 0, size, self.stream)

    def download(self, address: int, into: Array, stream: int | None = None) -> Array:
        """Fill a contiguous array from the device, and wait for it."""
        stream = self.stream if stream is None else stream
        with self.on(stream):
            self.launcher.copy(into.ctypes.data, address, into.nbytes, stream)
            self._wait(stream)
        return into

    def put(self, address: int, source: Array) -> None:
        """Fill the device's memory from a contiguous array, which nobody may write any more."""
        with self.on(self.stream):
            self.copy_from(source, address, self.stream)

    def upload(self, address: int, source: Array) -> None:
        """Fill the device's memory from a contiguous array, and wait for it."""
        with self.on(self.stream):
            self.launcher.copy(address, source.ctypes.data, source.nbytes, self.stream)
            self._wait(self.stream)

    def copy_from(self, source: Array, address: int, stream: int) -> None:
        """As `put`, on a stream that is `on`.

        Most GPUs have then read what is not pinned; those that share the processor's page tables, as Grace
        Hopper's, need not have. So it is kept until there has been a wait.
        """
        self.launcher.copy(address, source.ctypes.data, source.nbytes, stream)
        self._sources.append(source)
        if len(self._sources) >= _SOURCES:
            self._wait(stream)

    def _wait(self, stream: int) -> None:
        """For all that has been queued here, on a stream that is `on`."""
        self.launcher.synchronize(stream)
        self._sources.clear()


class Table:
    """A host array's copy on the device, renewed when it changes."""

    def __init__(self, queue: Queue) -> None:
        self._queue, self._held = queue, b""
        self._memory: Any = None

    def put(self, array: Array, stream: int) -> int:
        """Its address; nobody may write the array any more."""
        held = array.tobytes()
        if held != self._held:
            if len(held) != len(self._held):
                self._memory = self._queue.allocate(len(held))
            self._held = b""  # should the next line fail
            self._queue.copy_from(array, self._memory.address, stream)
            self._held = held
        return int(self._memory.address) if held else 0


def tables(
    params: Sequence[DeviceArray], states: Sequence[Sequence[DeviceArray]], rows: Sequence[int]
) -> tuple[Array, Array]:
    """What a launch works on, as step_kernel.cuh takes it: arrays, and the chunks that blocks take."""
    arrays = np.zeros(len(params), ARRAYS)
    for entry, param, own, row in zip(arrays, params, states, rows, strict=True):
        entry["param"], entry["size"], entry["row"] = param.address, param.size, row
        entry["state"][: len(own)] = [state.address for state in own]
    return arrays, chunks_of(arrays["size"], CHUNK)


def chunks_of(sizes: Array, length: int) -> Array:
    """The chunks of so many elements, at most, that arrays are cut into."""
    counts = blocks_of(sizes, length)
    chunks = np.empty(counts.sum(), CHUNKS)
    chunks["array"] = np.repeat(np.arange(len(sizes)), counts)
    chunks["chunk"] = np.arange(len(chunks)) - np.repeat(counts.cumsum() - counts, counts)
    return chunks


def coefficient_rows(rows: Sequence[tuple[float, ...]], dtype: Any) -> Array:
    """Rows of coefficients, cast once, as StepRows has them."""
    values = np.zeros((max(len(rows), STEP_ROWS), ROW_LENGTH))
    for i, row in enumerate(rows):
        values[i, : len(row)] = row
    with np.errstate(over="ignore"):  # beyond float32 is infinity, as in C++
        return values.astype(dtype)


def uploaded(queue: Queue, table: Array) -> Any:
    """Memory with a copy of a host array."""
    memory = queue.allocate(table.nbytes)
    queue.upload(memory.address, table)
    return memory


class Launch:
    """All arrays of one rule and dtype: one launch a step."""

    prefix = ""  # of the kernels' names

    def __init__(self, queue: Queue, rule: Rule, dtype: np.dtype[Any], members: Sequence[Any]) -> None:
        self._queue, self._launcher, self._dtype, self._type = queue, queue.launcher, dtype, TYPES[dtype]
        self._plan: Any = None
        self._kernel = f"{self.prefix}step<rule_named::{rule.name}, {self._type}>"
        self._length = len(Common._fields) + len(rule.coefficients._fields)
        self._which = [i for i, _, _, _ in members]
        self._groups = list(dict.fromkeys(group for _, group, _, _ in members))
        arrays, chunks = self._made_tables(members)
        self.blocks = len(chunks)
        self._tables = [uploaded(queue, table) for table in (arrays, chunks)]
        self._grads, self._rows = Table(queue), Table(queue)
        self._scaled = queue.allocate(8 * max(len(self._groups), STEP_ROWS) * ROW_LENGTH)
        self._no_rows = bytes(STEP_ROWS * ROW_LENGTH * dtype.itemsize)  # by value, where they lie in memory

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
        """Take the gradients that are there."""
        at = self._grads.put(addresses[self._which], stream)
        self._at = (*(table.address for table in self._tables), at)

    def sum_of_squares(self, partial: int, stream: int) -> None:
        """Of each chunk, to ``partial``."""
        kernel = f"{self.prefix}sum_of_squares<{self._type}>"
        self._launcher.launch(kernel, self.blocks, (*self._at, partial), stream)

    def _rows_of(self, coefficients: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
        """Of the groups that have arrays here."""
        rows = [coefficients[group] for group in self._groups]
        if any(len(row) != self._length for row in rows):
            raise ValueError(f"{self._kernel} takes rows of {self._length} coefficients, {rows} were given")
        return rows

    def _exact_rows(self, coefficients: Sequence[tuple[float, ...]] | None, stream: int) -> Any:
        """The addresses of the rows in double and of the position they are at: None, without a plan."""
        if coefficients is None:
            return self._plan.address, self._queue.position
        return self._rows.put(coefficient_rows(self._rows_of(coefficients), np.float64), stream), None

    def _scale(self, exact: Any, factor: int | None, stream: int, kind: str) -> int:
        """The address of the rows as a kernel takes them: ``kind`` is "float" or "double"."""
        at: int = self._scaled.address
        arguments = (len(self._groups), *exact, factor, at)
        self._launcher.launch(f"scale_rows<{kind}>", 1, arguments, stream)
        return at

    def step(
        self,
        coefficients: Sequence[tuple[float, ...]] | None,
        factor: int | None,
        stream: int,
        *more: Any,
    ) -> None:
        """``factor``: the address of what the gradients are multiplied by as well; ``more``: arguments.

        Without coefficients, with the row of the plan that the queue's position is at.
        """
        at, by_value = None, self._no_rows
        if coefficients is None or factor is not None:
            at = self._scale(self._exact_rows(coefficients, stream), factor, stream, self._type)
        else:
            rows = coefficient_rows(self._rows_of(coefficients), self._dtype)
            if len(self._groups) > STEP_ROWS:
                at = self._rows.put(rows, stream)
            else:
                by_value = rows.tobytes()
        self._launcher.launch(self._kernel, self.blocks, (*self._at, at, by_value, *more), stream)


class Stepper:
    """See `pyoptim.backends.Stepper`; arrays are `pyoptim._device.DeviceArray`.

    The work is queued on the stream that the gradients say they are on, and the host does not wait.
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
        """``members``: by rule's name and dtype, each array's index, group, rule, parameter and states."""
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
        self._scalars = queue.allocate(16)  # a sum of squares, a factor

    def step(
        self,
        grads: Sequence[DeviceArray],
        coefficients: Sequence[tuple[float, ...]] | None,
        max_norm: float | None = None,
        *more: Any,
    ) -> bool:
        """``max_norm``: of the gradients multiplied by the first coefficient, up to its sign.

        Without coefficients, by those of `plan`: nothing then differs between steps but the device's memory.
        ``more`` is what steps of this kind take beside the coefficients.
        """
        with self._ordered(grads) as stream:
            factor = self._clip(coefficients, max_norm, stream)
            for launch in self._launches:
                launch.step(coefficients, factor, stream, *more)
        return True

    def plan(self, grads: Sequence[DeviceArray], steps: Sequence[Sequence[tuple[float, ...]]]) -> None:
        """Coefficients of up to `PLAN` steps to come with these gradients; the first of a row is 1 or -1."""
        with self._ordered(grads):
            for launch in self._launches:
                launch.plan(steps)

    def _clip(
        self, coefficients: Sequence[tuple[float, ...]] | None, max_norm: float | None, stream: int
    ) -> int | None:
        """The address of what the gradients are multiplied by as well, if by anything."""
        if max_norm is None or not self._launches:
            return None
        self._squares(1.0 if coefficients is None else coefficients[0][0] ** 2, stream)
        squares: int = self._scalars.address
        arguments = (squares, float(max_norm), squares + 8)
        self._queue.launcher.launch("clip_factor<double>", 1, arguments, stream)
        return squares + 8

    def sum_of_squares(self, grads: Sequence[DeviceArray]) -> float:
        """Of all gradients, in double; waits for it."""
        with self._ordered(grads) as stream:
            self._squares(1.0, stream)
        return float(self._queue.download(self._scalars.address, np.empty(1), stream)[0])

    def _squares(self, scale: float, stream: int) -> None:
        partial = self._partial.address
        for launch in self._launches:
            launch.sum_of_squares(partial, stream)
            partial += 8 * launch.blocks
        arguments = (self._blocks, self._partial.address, scale, None, self._scalars.address)
        self._queue.launcher.launch("total<double>", 1, arguments, stream)

    @contextmanager
    def _ordered(self, grads: Sequence[DeviceArray]) -> Iterator[int]:
        """The stream to use: it waits for the gradients' own, and they wait for it."""
        from .._device import Gradients

        found = grads if isinstance(grads, Gradients) else Gradients.of(grads)
        with self._queue.among(found.streams, found.queues) as stream:
            for launch in self._launches:
                launch.point_at(found.addresses, stream)
            yield stream
