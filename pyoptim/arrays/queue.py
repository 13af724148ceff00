"""The memory pool and the order of work of one GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import Any, Protocol

from ..runtime.dtypes import Array

_MIB = 1 << 20
_SOURCES = 64  # host arrays that are kept before the host waits
_COUNTERS = 512  # bytes of numbers that kernels count in
_SIDES = 2  # a product of matrices and sums of columns beside the chain of layers
LEGACY_STREAM = 1  # the default stream's number in CUDA and __cuda_array_interface__


class Launcher(Protocol):
    """The functions that drive a GPU. Addresses and streams are ints; calls queue work without waiting."""

    Memory: Any  # Memory(bytes), with its .address
    Event: Any  # Event(), with record(stream) and hold(stream): later work on the stream waits for it
    Stream: Any  # Stream(), with its .address
    Graph: Any  # Graph(stream): what the stream captured, to launch(stream) many times

    def why_not(self) -> str | None:
        """Return why no GPU can be used, or None."""

    def launch(self, kernel: str, blocks: int, arguments: tuple[Any, ...], stream: int) -> None:
        """Queue a kernel; an argument of None is a null pointer, and bytes are a struct."""

    def copy(self, to: int, source: int, bytes: int, stream: int) -> None:
        """Copy bytes within the GPU's memory, or between it and the processor's."""

    def fill(self, to: int, byte: int, bytes: int, stream: int) -> None: ...
    def synchronize(self, stream: int) -> None: ...
    def begin_capture(self, stream: int) -> None:
        """Record the work that is queued on the stream from here on, instead of running it."""

    def is_capturing(self, stream: int) -> bool:
        """Return whether anybody, we or other code, captures what is queued on the stream."""

    def device_count(self) -> int: ...
    def set_device(self, index: int) -> None: ...
    def get_device(self) -> int: ...
    def device(self, index: int) -> dict[str, Any]: ...


class Pool:
    """A pool that reuses GPU memory, since the driver's own calls to free memory wait for all work.

    Memory that is reused at once may still be read by work queued earlier, so all work on a pool's memory
    goes through one `Queue`, in order. While other work runs beside it, returned memory is held back.
    """

    def __init__(self, allocate: Callable[[int], Any]) -> None:
        self._allocate = allocate
        self._free: dict[int, list[Any]] = {}
        self._held: list[tuple[int, Any]] | None = None
        self._sides: list[Pool] = []
        self._workspace: Block | None = None
        self.counters: Block | None = None  # see `Queue.counters`

    def take(self, size: int) -> Block:
        """Return a block of at least ``size`` bytes, which is reused once nothing refers to it."""
        rounded = max(512, 1 << (size - 1).bit_length() if size < _MIB else -(-size // _MIB) * _MIB)
        free = self._free.setdefault(rounded, [])
        return Block(free.pop() if free else self._allocate(rounded), self, rounded)

    def workspace(self, size: int) -> Block:
        """Return a block of scratch memory that all work on the queue shares, one after the other."""
        if self._workspace is None:
            self._workspace = self.take(size)
        return self._workspace

    def side(self, index: int) -> Pool:
        """Return a pool for work that runs beside the work on this pool's memory."""
        while len(self._sides) <= index:
            self._sides.append(Pool(self._allocate))
        return self._sides[index]

    def hold(self) -> None:
        """Hold back returned memory from reuse until `release`."""
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
        """Free unused memory once the GPU's work is done; return whether there was any."""
        self._workspace = None
        some = any(self._free.values())
        for free in self._free.values():
            free.clear()
        return some


class Block:
    """A piece of a `Pool`'s memory, which returns to the pool with its last reference."""

    __slots__ = ("_memory", "_pool", "_size", "address")

    def __init__(self, memory: Any, pool: Pool, size: int) -> None:
        self._memory, self._pool, self._size, self.address = memory, pool, size, int(memory.address)

    def __del__(self) -> None:
        self._pool._give(self._size, self._memory)


class _Last:
    """The end of the last work of a queue and of its copies, for which their later work waits.

    The default stream keeps its own order, and nobody can destroy it. So its work is recorded only when
    another stream has to wait for it, and steps on the default stream alone need neither call.
    """

    def __init__(self, launcher: Launcher) -> None:
        self._launcher, self.event, self._is_due = launcher, launcher.Event(), False

    def record(self, stream: int) -> None:
        if stream != LEGACY_STREAM:
            self.event.record(stream)
        self._is_due = stream == LEGACY_STREAM

    def hold(self, stream: int) -> None:
        if self._is_due:
            if stream == LEGACY_STREAM:
                return
            self._launcher.is_capturing(LEGACY_STREAM)  # raises where the next line would spoil a capture
            self.event.record(LEGACY_STREAM)
            self._is_due = False
        self.event.hold(stream)


class _OnDevice:
    """A ``with`` block in which this thread uses a queue's GPU."""

    # Each launch has one, so this is no generator, which would take twice as long.
    __slots__ = ("_before", "_queue")

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def __enter__(self) -> Any:
        self._before = self._queue.launcher.get_device()
        if self._before != self._queue.device:
            self._queue.launcher.set_device(self._queue.device)

    def __exit__(self, *error: object) -> None:
        if self._before != self._queue.device:
            self._queue.launcher.set_device(self._before)


class _Turn(_OnDevice):
    """A ``with`` block in which work is queued on a stream: see `Queue.on`."""

    __slots__ = ("_stream",)

    def __init__(self, queue: Queue, stream: int) -> None:
        self._queue, self._stream = queue, stream

    def __enter__(self) -> int:
        super().__enter__()
        try:
            self._queue._refuse_capture(self._stream)
            self._queue._last.hold(self._stream)
        except BaseException:
            super().__exit__()
            raise
        return self._stream

    def __exit__(self, *error: object) -> None:
        try:
            self._queue._last.record(self._stream)
        finally:
            super().__exit__()


class Queue:
    """The order of all work on some arrays of one GPU, whatever streams it comes on.

    Attributes
    ----------
    stream : int
        The stream on which work on our own arrays is queued.
    pool : Pool
    position : int or None
        The address of the `POSITION` that kernels of a training step read, while one is queued.
    products : tuple or None
        The library that multiplies matrices, once `pyoptim.backends.gpu.products` has looked for it.
    """

    def __init__(self, launcher: Launcher, device: int) -> None:
        self.launcher, self.device, self.stream = launcher, device, LEGACY_STREAM
        self.pool = self._spare = Pool(self.allocate)
        self.position: int | None = None
        self._capturing = False
        self._sides: list[Any] = []  # streams beside that of a capture
        self._aside: list[int] = []  # indices of the side streams used since the last `join`
        self._holding: Pool | None = None
        self._sources: list[Array] = []  # host arrays that queued copies may still read
        self.constants: dict[Any, Any] = {}  # copies that `gpu.constant` has made
        self.products: tuple[Any] | None = None
        with _OnDevice(self):
            self._last = _Last(launcher)

    def on(self, stream: int) -> AbstractContextManager[int]:
        """Make the work queued on the stream in the ``with`` block wait for this queue's earlier work."""
        if self._capturing:  # a capture has one stream, and may not wait for work outside it
            assert stream == self.stream
            return nullcontext(stream)
        return _Turn(self, stream)

    def among(
        self, streams: Sequence[int], queues: Sequence[Queue], stream: int | None = None
    ) -> AbstractContextManager[int]:
        """Queue work between all earlier and all later work on some arrays, whose `works_of` these are.

        The default stream is the arrays' first. Later work on memory of other queues waits too.
        """
        if stream is None:
            stream = streams[0] if streams else self.stream
        alone = not queues and set(streams) <= {stream}
        return self.on(stream) if alone else self._among(streams, queues, stream)

    @contextmanager
    def _among(self, streams: Sequence[int], queues: Sequence[Queue], stream: int) -> Iterator[int]:
        with self.on(stream), ExitStack() as stack:
            for queue in queues:
                if queue is not self:
                    stack.enter_context(queue.on(stream))
            for other in streams:
                self.chain(other, stream)
            try:
                yield stream
            finally:  # queued work reads the arrays, so their streams wait for it
                for other in streams:
                    self.chain(stream, other)

    def chain(self, first: int | None, then: int | None) -> None:
        """Make the work queued on the second stream from here on wait for all earlier work on the first."""
        if first is None or then is None or first == then:
            return
        with _OnDevice(self):
            for stream in () if self._capturing else (first, then):
                self._refuse_capture(stream)
            event = self.launcher.Event()
            event.record(first)
            event.hold(then)

    def _refuse_capture(self, stream: int) -> None:
        # At this point nothing has been queued, and the user's capture goes on.
        if self.launcher.is_capturing(stream):
            raise RuntimeError(
                f"a CUDA graph is being captured on the stream {stream:#x}, which would repeat one step for "
                "ever: coefficients come from the processor's memory. Call pyoptim outside of the capture"
            )

    def capture(self, body: Callable[[], object]) -> Any:
        """Return the graph of the work that ``body`` queues; none of it is run.

        Memory that ``body`` takes from `pool` must belong to nobody else as long as the graph is launched.
        """
        with _OnDevice(self):
            # The default stream cannot capture, so these are new ones.
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
        """Let the work captured in the ``with`` block run beside the work that follows it, up to `join`.

        Outside a capture all work stays in order. Memory taken from the pool in the block is used only in the
        block, or between `join` and the capture's end.
        """
        main, pool = self.stream, self.pool
        if not self._sides or pool is not (self._holding or pool):  # this is inside such a block already
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
        """Make the work queued from here on wait for all work that was captured `aside`."""
        for index in sorted(set(self._aside)):
            self.chain(self._sides[index].address, self.stream)
        self._forget_aside()

    def _forget_aside(self) -> None:
        self._aside.clear()
        if self._holding is not None:
            self._holding.release()
            self._holding = None

    def allocate(self, size: int) -> Any:
        """Allocate ``size`` bytes of the GPU's memory."""
        with _OnDevice(self):
            try:
                return self.launcher.Memory(size)
            except RuntimeError:
                # Only this pool's spare memory is freed: graphs still use that of other pools.
                if self._capturing or not self._spare.give_back():
                    raise
            return self.launcher.Memory(size)

    def launch(self, kernel: str, blocks: int, *arguments: Any) -> None:
        """Queue a kernel on `stream`, after all work queued earlier."""
        with self.on(self.stream):
            self.launcher.launch(kernel, blocks, arguments, self.stream)

    def copy(self, to: int, source: int, size: int) -> None:
        """Copy ``size`` bytes within the GPU's memory."""
        with self.on(self.stream):
            self.launcher.copy(to, source, size, self.stream)

    def counters(self) -> int:
        """Return the address of 128 numbers of 4 bytes, all 0, that kernels count in and leave at 0.

        Work that runs beside this work has others.
        """
        if self.pool.counters is None:
            self.pool.counters = made = self.pool.take(_COUNTERS)
            # Within a capture too they are cleared now, not whenever the graph is launched.
            with nullcontext() if self._capturing else self.on(LEGACY_STREAM):
                self.launcher.fill(made.address, 0, _COUNTERS, LEGACY_STREAM)
        return self.pool.counters.address

    def clear(self, address: int, size: int) -> None:
        """Set ``size`` bytes to zero."""
        with self.on(self.stream):
            self.launcher.fill(address, 0, size, self.stream)

    def download(self, address: int, into: Array, stream: int | None = None) -> Array:
        """Fill a contiguous NumPy array from the GPU's memory, and wait for that."""
        stream = self.stream if stream is None else stream
        with self.on(stream):
            self.launcher.copy(into.ctypes.data, address, into.nbytes, stream)
            self._wait(stream)
        return into

    def put(self, address: int, source: Array) -> None:
        """Fill the GPU's memory from a contiguous NumPy array, which nobody may write any more."""
        with self.on(self.stream):
            self.copy_from(source, address, self.stream)

    def upload(self, address: int, source: Array) -> None:
        """Fill the GPU's memory from a contiguous NumPy array, and wait for that."""
        with self.on(self.stream):
            self.launcher.copy(address, source.ctypes.data, source.nbytes, self.stream)
            self._wait(self.stream)

    def copy_from(self, source: Array, address: int, stream: int) -> None:
        """Do what `put` does, on a stream inside an `on` block.

        Most GPUs have read pageable memory when the call returns, but those that share the processor's page
        tables, as Grace Hopper does, may not have. So the source is kept alive until the host has waited.
        """
        self.launcher.copy(address, source.ctypes.data, source.nbytes, stream)
        self._sources.append(source)
        if len(self._sources) >= _SOURCES:
            self._wait(stream)

    def _wait(self, stream: int) -> None:
        """Wait for all work queued so far, on a stream inside an `on` block."""
        self.launcher.synchronize(stream)
        self._sources.clear()
