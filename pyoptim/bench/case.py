"""A benchmark case, and the row that holds its measurement."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from typing import Any, NamedTuple

from .timing import FULL, Effort, Run


class Mismatch(Exception):
    """A competitor computed something else than the reference."""


class Options(NamedTuple):
    """The options of the command line that concern the cases."""

    sizes: Sequence[int]
    dtype: str
    peers: tuple[str, ...]  # some of "numpy", "torch", "jax" and "cupy"
    names: Collection[str]  # of the cases to run
    quick: bool = False
    device: str = "cpu"  # or "cuda"
    dtypes: Sequence[str] = ("float32",)  # of the parts that measure several
    threads: Sequence[int] = (1,)  # likewise


class Case(NamedTuple):
    """One piece of work, done by several competitors on equal data.

    ``prepare`` makes the arrays, lets every competitor work, and returns what runs each, "pyoptim" among
    them; it raises `Mismatch` where a result is not the reference's.
    """

    name: str
    size: int
    traffic: int  # bytes that one run must read and write
    prepare: Callable[[], Mapping[str, Run]]
    flops: int = 0  # operations of one run, if they and not memory are the limit; else 0
    scale: float = 1  # factor of the times, for a run that does only a part of the work
    streams: bool = False  # compared with plain streaming, although caches may keep a part
    dtype: str = ""  # if it is not that of the options
    threads: int = 0  # the most that may run, if it is not the number in force
    load: str = "idle"  # what else runs on the machine meanwhile
    parts: int = 0  # into which the work is cut, if the case is about that

    @property
    def label(self) -> str:
        """What ``--match`` looks at."""
        return f"{self.name}, {self.size}, {self.dtype}, {self.threads} threads, {self.load}"


class Row(NamedTuple):
    """A case, measured."""

    name: str
    size: int
    dtype: str
    traffic: int
    seconds: Mapping[str, float]  # of one run of each competitor
    # Speeds of plain streaming in bytes per second, empty if caches hold the data. For cases with flops:
    # speeds of multiply-adds in registers, in operations per second.
    ceiling: Mapping[str, float]
    flops: int = 0
    quartiles: Mapping[str, tuple[float, float]] = {}  # the first and the third, of the same seconds
    threads: int = 0
    load: str = "idle"  # what the benchmark itself kept running meanwhile
    disturbed: str = ""  # by what, where something else was running too
    counters: Mapping[str, Any] = {}  # see machine.Disturbance
    parts: int = 0

    def faster_than(self, peer: str) -> float | None:
        """How many times as fast as the fastest competitor whose name begins with ``peer``."""
        times = [t for name, t in self.seconds.items() if name.startswith(peer)]
        return min(times) / self.seconds["pyoptim"] if times else None

    @property
    def bandwidth(self) -> float:
        return self.traffic / self.seconds["pyoptim"]

    @property
    def rate(self) -> float:
        """Operations per second if the case has flops, else bytes per second."""
        return self.flops / self.seconds["pyoptim"] if self.flops else self.bandwidth

    @property
    def of_ceiling(self) -> float | None:
        return self.rate / max(self.ceiling.values()) if self.ceiling else None


def times(peer: str, names: Collection[str], sizes: Collection[int] = ()) -> Callable[[Row], float | None]:
    """How many times as fast as the peer in float32, in rows of these names and, if given, these sizes."""

    def value(row: Row) -> float | None:
        is_meant = row.dtype == "float32" and row.name in names and (not sizes or row.size in sizes)
        return row.faster_than(peer) if is_meant else None

    return value


class Target(NamedTuple):
    """The least that ``value`` must be in every row that the target is about: where it is not None."""

    text: str
    bound: float
    value: Callable[[Row], float | None]
    of: Callable[[list[float]], float] = min  # median: in half of the rows


class Family(NamedTuple):
    """Cases of one kind."""

    cases: Callable[[Options], Generator[Case]]
    targets: Sequence[Target]
    effort: Effort = FULL
    sweeps: str = ""  # what is measured, of a part that is run only where it is asked for; else ""
    draw: Callable[[str, Sequence[Row]], Any] | None = None  # into an image; None: a bar for each row
    conclude: Callable[[Sequence[Row]], list[str]] | None = None  # what the rows say together
