"""Optimizer steps: pyoptim through its public interface, NumPy, and PyTorch where it is installed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import optimizers
from .._arrays import Array
from ..optimizer import Optimizer
from . import numpy_optimizers as plain
from .case import Case, Family, Mismatch, Options, Row, Target
from .timing import Run

_BOTH = {"momentum": 0.9, "centered": True}


class Kind(NamedTuple):
    """An optimizer in each library; pyoptim's argument names are PyTorch's."""

    optimizer: type[Optimizer]
    numpy: Callable[..., None]
    torch: str
    fused: bool  # torch has a fused kernel for CPUs
    arguments: Mapping[str, Any] = {}
    torch_arguments: Mapping[str, Any] = {}

    @property
    def states(self) -> int:
        return len(inspect.signature(self.numpy).parameters) - 3


KINDS = {
    "SGD": Kind(optimizers.SGD, plain.sgd, "SGD", True),
    "SGD momentum": Kind(optimizers.SGD, plain.momentum, "SGD", True, {"momentum": 0.9}),
    "SGD Nesterov": Kind(optimizers.SGD, plain.nesterov, "SGD", True, {"momentum": 0.9, "nesterov": True}),
    "Adagrad": Kind(optimizers.Adagrad, plain.adagrad, "Adagrad", True),
    "RMSprop": Kind(optimizers.RMSprop, plain.rmsprop, "RMSprop", False),
    "RMSprop centered momentum": Kind(
        optimizers.RMSprop, plain.rmsprop_centered_momentum, "RMSprop", False, _BOTH
    ),
    "Adadelta": Kind(optimizers.Adadelta, plain.adadelta, "Adadelta", False),
    "Adam": Kind(optimizers.Adam, plain.adam, "Adam", True),
    "AdamW": Kind(optimizers.AdamW, plain.adamw, "AdamW", True),
    "AMSGrad": Kind(optimizers.AMSGrad, plain.amsgrad, "Adam", True, {}, {"amsgrad": True}),
    "Adamax": Kind(optimizers.Adamax, plain.adamax, "Adamax", False),
    "NAdam": Kind(optimizers.NAdam, plain.nadam, "NAdam", False),
}

# The data is a block of random numbers, repeated: so the float64 reference need only work on the block,
# and yet every element is checked. A prime, for threads and vectors not to see a whole number of blocks.
_BLOCK = 99_991
_STEPS = 3


def _cases(options: Options) -> Iterator[Case]:
    dtype = np.dtype(options.dtype)
    for name in options.names:
        kind = KINDS[name]
        # Read: parameter, gradient, states. Written: parameter, states.
        bytes_each = dtype.itemsize * (3 + 2 * kind.states)
        for size in options.sizes:
            prepare = functools.partial(_prepare, name, size, dtype, options.peers)
            yield Case(name, size, size * bytes_each, prepare)


class _Competitor:
    """A parameter, a gradient, and what updates the one by the other."""

    def __init__(self, p: Array, g: Array, make: Callable[[Array, Array], Run]) -> None:
        self.p, self.g, self.run = p, g, make(p, g)


def _prepare(name: str, size: int, dtype: np.dtype[Any], peers: tuple[str, ...]) -> dict[str, Run]:
    start, gradient = np.random.default_rng(0).uniform(-1, 1, (2, min(size, _BLOCK))).astype(dtype)
    # Each has a gradient of its own, since torch foreach writes to it.
    competitors = {
        who: _Competitor(np.resize(start, size), np.empty(size, dtype), make)
        for who, make in _makers(KINDS[name], peers).items()
    }
    expected = start.astype(np.float64)
    states = [np.zeros_like(expected) for _ in range(KINDS[name].states)]
    for t in range(1, _STEPS + 1):
        # The gradient changes: with a constant one Adam, for one, would hide mistakes in its states.
        gradient *= dtype.type(-0.7)
        KINDS[name].numpy(t, expected, gradient.astype(np.float64), *states)
        for competitor in competitors.values():
            competitor.g[...] = np.resize(gradient, size)
            competitor.run()
    moved = np.abs(expected - start).max()
    for who, competitor in competitors.items():
        try:
            _check(competitor.p, expected, moved)
        except Mismatch as mismatch:
            raise Mismatch(f"{name} of {who} on {size} {dtype} values: {mismatch}") from None
    return {who: competitor.run for who, competitor in competitors.items()}


def _check(p: Array, expected: Array, moved: float) -> None:
    # Rounding, of each step: of p, at most 1, by half an eps or twice that; of the update, in ten operations.
    tolerance = np.finfo(p.dtype).eps * (2 * _STEPS + 20 * _STEPS * moved)
    for begin in range(0, p.size, expected.size):
        piece = p[begin : begin + expected.size]
        error = np.abs(piece - expected[: piece.size])
        if not error.max() <= tolerance:
            i = int(np.argmax(error))
            raise Mismatch(
                f"p[{begin + i}] is {piece[i]} in step {_STEPS}, expected {expected[i]} +- {tolerance:.1e}"
            )


def _makers(kind: Kind, peers: tuple[str, ...]) -> dict[str, Callable[[Array, Array], Run]]:
    """Of each competitor, what makes its run from a parameter and a gradient."""
    makers: dict[str, Callable[[Array, Array], Run]] = {
        "pyoptim": lambda p, g: functools.partial(kind.optimizer(p, **kind.arguments).step, g)
    }
    if "numpy" in peers:
        makers["numpy"] = functools.partial(_numpy_run, kind)
    if "torch" in peers:
        if kind.fused:
            makers["torch fused"] = functools.partial(_torch_run, kind, {"fused": True})
        makers["torch foreach"] = functools.partial(_torch_run, kind, {"foreach": True})
        makers["torch default"] = functools.partial(_torch_run, kind, {})
    return makers


def _numpy_run(kind: Kind, p: Array, g: Array) -> Run:
    states = [np.zeros_like(p) for _ in range(kind.states)]
    t = 0

    def run() -> None:
        nonlocal t
        t += 1
        kind.numpy(t, p, g, *states)

    return run


def _torch_run(kind: Kind, way: Mapping[str, bool], p: Array, g: Array) -> Run:
    import torch

    parameter = torch.from_numpy(p).requires_grad_()
    parameter.grad = torch.from_numpy(g)
    arguments = {**kind.arguments, **kind.torch_arguments, **way}
    run: Run = getattr(torch.optim, kind.torch)([parameter], **arguments).step
    return run


def _adam(peer: str, sizes: Callable[[int], bool]) -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        is_meant = row.name == "Adam" and row.dtype == "float32" and sizes(row.size)
        return row.faster_than(peer) if is_meant else None

    return value


def _of_ceiling(row: Row) -> float | None:
    return row.of_ceiling if row.size >= 50_000_000 else None


FAMILY = Family(
    _cases,
    [
        Target("Adam, 1,000: times torch fused", 20, _adam("torch fused", lambda n: n == 1_000)),
        Target("Adam, 1M: times torch fused", 1.5, _adam("torch fused", lambda n: n == 1_000_000)),
        Target("Adam, 50M: times torch fused", 0.95, _adam("torch fused", lambda n: n == 50_000_000)),
        Target("Adam, 100,000 and more: times numpy", 8, _adam("numpy", lambda n: n >= 100_000)),
        Target("all, 50M: share of the bandwidth that the traffic allows", 0.85, _of_ceiling),
    ],
)
