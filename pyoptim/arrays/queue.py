"""The memory pool and the order of work of one GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

from ..runtime.dtypes import Array

if TYPE_CHECKING:
    pass


_MIB = 1 << 20
_SOURCES = 64  # host arrays that are kept before the host waits
_SIDES = 2  # a product of matrices and sums of columns beside the chain of layers
LEGACY_STREAM = 1  # what CUDA and __cuda_array_interface__ call the default stream


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
        self.constants: dict[Any, Any] = {}  # copies that `gpu.constant` has made
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
