"""
CUDA kernels of pyoptim. Private: pyoptim.backends is the door. Addresses are ints.
"""
from __future__ import annotations
import typing
__all__: list[str] = ['Event', 'Graph', 'Memory', 'Stream', 'begin_capture', 'chunk', 'copy', 'device', 'device_count', 'elements', 'fill', 'get_device', 'is_capturing', 'kernels', 'launch', 'part_rows', 'row_length', 'scale_block', 'set_device', 'step_rows', 'sum_block', 'synchronize', 'threads', 'tile', 'versions', 'why_not']
class Memory:
    """
    Device memory, freed with the object.
    """
    def __init__(self, bytes: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def address(self) -> int:
        ...
    @property
    def bytes(self) -> int:
        ...
class Stream:
    def __init__(self) -> None:
        ...
    @property
    def address(self) -> int:
        ...
class Event:
    def __init__(self) -> None:
        ...
    def hold(self, stream: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Later work on the stream waits for this event.
        """
    def record(self, stream: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
class Graph:
    """
    What was launched on the stream since begin_capture.
    """
    def __init__(self, stream: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def launch(self, stream: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
def begin_capture(stream: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    What is launched on the stream from here on is recorded, not run; not the default stream.
    """
def copy(to: typing.SupportsInt | typing.SupportsIndex, source: typing.SupportsInt | typing.SupportsIndex, bytes: typing.SupportsInt | typing.SupportsIndex, stream: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Between any two of host and device, in the stream's order.
    """
def device(index: typing.SupportsInt | typing.SupportsIndex) -> dict[str, typing.Any]:
    """
    Name, compute capability, memory in bytes, multiprocessors.
    """
def device_count() -> int:
    """
    0 where there is no device or driver: why_not() has the reason.
    """
def fill(to: typing.SupportsInt | typing.SupportsIndex, byte: typing.SupportsInt | typing.SupportsIndex, bytes: typing.SupportsInt | typing.SupportsIndex, stream: typing.SupportsInt | typing.SupportsIndex) -> None:
    ...
def get_device() -> int:
    ...
def is_capturing(stream: typing.SupportsInt | typing.SupportsIndex) -> bool:
    """
    Whether somebody captures what is queued there.
    """
def kernels() -> dict[str, str]:
    """
    Every kernel: its name -> its parameters, a letter each: p (address), i (int), d (float), s (bytes of a struct).
    """
def launch(kernel: str, blocks: typing.SupportsInt | typing.SupportsIndex, arguments: tuple[typing.Any, ...], stream: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Run a kernel in `blocks` blocks of `threads` threads on a stream (its address; 0: the default one).
    """
def set_device(index: typing.SupportsInt | typing.SupportsIndex) -> None:
    ...
def synchronize(stream: typing.SupportsInt | typing.SupportsIndex) -> None:
    ...
def versions() -> tuple[int, int]:
    """
    Of the CUDA runtime inside and of the driver (0: none), as 1000 major + 10 minor.
    """
def why_not() -> str | None:
    """
    Why no device can be used, or None.
    """
chunk: int = 4096
elements: int = 1024
part_rows: int = 128
row_length: int = 16
scale_block: int = 256
step_rows: int = 8
sum_block: int = 16384
threads: int = 256
tile: int = 32
