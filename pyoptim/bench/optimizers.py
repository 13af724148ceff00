"""Optimizer steps: pyoptim through its public interface, NumPy, and PyTorch where it is installed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..formulas.rules import Common, common
from ..optim import elementwise
from ..optim.optimizer import Optimizer
from ..runtime.dtypes import Array
from . import libraries
from . import numpy_optimizers as plain
from .case import Case, Family, Mismatch, Options, Row, Target, times
from .timing import Run

_BOTH = {"momentum": 0.9, "centered": True}


class Kind(NamedTuple):
    """An optimizer in each library; pyoptim's argument names are PyTorch's."""

    optimizer: type[Optimizer]
    numpy: Callable[..., None]
    torch: str  # its name in torch.optim, or ""
    fused: bool  # whether torch has a fused kernel for CPUs: see `_has_fused`
    arguments: Mapping[str, Any] = {}
    torch_arguments: Mapping[str, Any] = {}

    @property
    def states(self) -> int:
        return len(self.optimizer(np.zeros(1), **self.arguments)._rules[0].states)


OPTIMIZERS = {
    "SGD": Kind(elementwise.SGD, plain.sgd, "SGD", True),
    "SGD momentum": Kind(elementwise.SGD, plain.momentum, "SGD", True, {"momentum": 0.9}),
    "SGD Nesterov": Kind(elementwise.SGD, plain.nesterov, "SGD", True, {"momentum": 0.9, "nesterov": True}),
    "Adagrad": Kind(elementwise.Adagrad, plain.adagrad, "Adagrad", True),
    "RMSprop": Kind(elementwise.RMSprop, plain.rmsprop, "RMSprop", False),
    "RMSprop centered momentum": Kind(
        elementwise.RMSprop, plain.rmsprop_centered_momentum, "RMSprop", False, _BOTH
    ),
    "Adadelta": Kind(elementwise.Adadelta, plain.adadelta, "Adadelta", False),
    "Adam": Kind(elementwise.Adam, plain.adam, "Adam", True),
    "AdamW": Kind(elementwise.AdamW, plain.adamw, "AdamW", True),
    "AMSGrad": Kind(elementwise.AMSGrad, plain.amsgrad, "Adam", True, {}, {"amsgrad": True}),
    "Adamax": Kind(elementwise.Adamax, plain.adamax, "Adamax", False),
    "NAdam": Kind(elementwise.NAdam, plain.nadam, "NAdam", False),
    "RAdam": Kind(elementwise.RAdam, plain.radam, "RAdam", False),
    "Lion": Kind(elementwise.Lion, plain.lion, "", False),
    "Rprop": Kind(elementwise.Rprop, plain.rprop, "Rprop", False),
    "ASGD": Kind(elementwise.ASGD, plain.asgd, "ASGD", False),
}


def _by_rule(optimizer: type[Optimizer]) -> Callable[..., None]:
    """A step by the Python twin of the rule, for an optimizer that `numpy_optimizers` does not have."""
    made = optimizer(np.zeros(1))
    (rule,), (group,), scalars = made._rules, made.param_groups, made._scalars

    def step(t: int, p: Array, g: Array, *states: Array) -> None:
        nonlocal scalars
        if t == 1:
            scalars = made._scalars
            for name, state in zip(rule.states, states, strict=True):
                state[...] = made._initial(group).get(name, 0.0)
        scalars, (row,) = made._next_rows(scalars)
        own = len(Common._fields)
        moved, scaled = common(Common(*row[:own]), p, g)
        new = rule.function(rule.coefficients(*row[own:]), moved, scaled, *states)
        for array, value in zip((p, *states), new, strict=True):
            array[...] = value

    return step


for _name in elementwise.__all__:
    if (_class := getattr(elementwise, _name)) not in {kind.optimizer for kind in OPTIMIZERS.values()}:
        OPTIMIZERS[_name] = Kind(_class, _by_rule(_class), "", False)

# Adam on several arrays at once: the sizes of the arrays.
SEVERAL = {
    "Adam 6 arrays": (256 * 784, 256, 128 * 256, 128, 10 * 128, 10),  # an MLP 784-256-128-10
    "Adam 200 arrays": (1_000,) * 200,
}
NAMES = (*OPTIMIZERS, *SEVERAL)

# The data is a block of random numbers, repeated, so that the float64 reference need only work on the block
# and yet every element is checked. Its length is a prime, so that no thread or vector gets whole blocks.
_BLOCK = 99_991
_STEPS = 3


def _cases(options: Options) -> Generator[Case]:
    dtype = np.dtype(options.dtype)
    for name in options.names:
        kind = "Adam" if name in SEVERAL else name
        # A step reads parameter, gradient and states, and writes parameter and states.
        bytes_each = dtype.itemsize * (3 + 2 * OPTIMIZERS[kind].states)
        for sizes in [SEVERAL[name]] if name in SEVERAL else [(size,) for size in options.sizes]:
            makers = _makers(OPTIMIZERS[kind], options.peers, options.device)
            prepare = functools.partial(prepared, kind, sizes, dtype, makers, options.device)
            yield Case(name, sum(sizes), sum(sizes) * bytes_each, prepare)


Arrays = list[Any]
Maker = Callable[[Arrays, Arrays], Run]  # from parameters and gradients to the run that is timed


class _Competitor:
    """Parameters, gradients, and the function that updates the parameters by the gradients."""

    def __init__(
        self,
        library: libraries.Library,
        p: Array,
        sizes: tuple[int, ...],
        make: Maker,
    ) -> None:
        self.library, self.p, self.g = library, library.array(p), library.array(np.empty_like(p))
        self.run = make(library.split(self.p, sizes), library.split(self.g, sizes))


def prepared(
    name: str, sizes: tuple[int, ...], dtype: np.dtype[Any], makers: Mapping[str, Maker], device: str = "cpu"
) -> dict[str, Run]:
    """The run that each maker makes, after first steps of which the results must be right."""
    size = sum(sizes)
    start, gradient = np.random.default_rng(0).uniform(-1, 1, (2, min(size, _BLOCK))).astype(dtype)
    # Each competitor has a gradient of its own, since foreach of torch writes to it.
    competitors = {
        who: _Competitor(
            libraries.of_users(device) if who == "pyoptim" else libraries.of(who, device),
            np.resize(start, size),
            sizes,
            make,
        )
        for who, make in makers.items()
    }
    expected = start.astype(np.float64)
    states = [np.zeros_like(expected) for _ in range(OPTIMIZERS[name].states)]
    for t in range(1, _STEPS + 1):
        # The gradient changes, since a constant one would hide mistakes in the states, for instance of Adam.
        gradient *= dtype.type(-0.7)
        OPTIMIZERS[name].numpy(t, expected, gradient.astype(np.float64), *states)
        for competitor in competitors.values():
            competitor.library.write(competitor.g, np.resize(gradient, size))
            competitor.run()
    moved = np.abs(expected - start).max()
    for who, competitor in competitors.items():
        try:
            _check(competitor.library.read(competitor.p), expected, moved)
        except Mismatch as mismatch:
            raise Mismatch(f"{name} of {who} on {size} {dtype} values: {mismatch}") from None
    return {who: competitor.run for who, competitor in competitors.items()}


def _check(p: Array, expected: Array, moved: float) -> None:
    # Each step rounds p, which is at most 1, by at most an eps, and the update in about ten operations.
    tolerance = np.finfo(p.dtype).eps * (2 * _STEPS + 20 * _STEPS * moved)
    for begin in range(0, p.size, expected.size):
        piece = p[begin : begin + expected.size]
        error = np.abs(piece - expected[: piece.size])
        if not error.max() <= tolerance:
            i = int(np.argmax(error))
            raise Mismatch(
                f"p[{begin + i}] is {piece[i]} in step {_STEPS}, expected {expected[i]} +- {tolerance:.1e}"
            )


def _has_fused(kind: Kind, device: str) -> bool:
    """Whether torch has a fused kernel; PyTorch's Adagrad has one for CPUs alone."""
    return kind.fused and (device == "cpu" or kind.torch != "Adagrad")


def _makers(kind: Kind, peers: tuple[str, ...], device: str) -> dict[str, Maker]:
    makers: dict[str, Maker] = {"pyoptim": functools.partial(pyoptim_run, kind)}
    for library in {"numpy", "cupy"} & set(peers):  # the same expressions
        makers[library] = functools.partial(numpy_run, kind)
    if "torch" in peers and kind.torch:
        if _has_fused(kind, device):
            makers["torch fused"] = functools.partial(_torch_run, kind, {"fused": True})
        makers["torch foreach"] = functools.partial(_torch_run, kind, {"foreach": True})
        makers["torch default"] = functools.partial(_torch_run, kind, {})
    return makers


def pyoptim_run(kind: Kind, p: Arrays, g: Arrays) -> Run:
    if len(p) == 1:
        return functools.partial(kind.optimizer(p[0], **kind.arguments).step, g[0])
    return functools.partial(kind.optimizer(p, **kind.arguments).step, g)


def numpy_run(kind: Kind, p: Arrays, g: Arrays) -> Run:
    each = [(a, b, *(np.zeros_like(a) for _ in range(kind.states))) for a, b in zip(p, g, strict=True)]
    t = 0

    def run() -> None:
        nonlocal t
        t += 1
        for arrays in each:
            kind.numpy(t, *arrays)

    return run


def _torch_run(kind: Kind, way: Mapping[str, bool], p: Arrays, g: Arrays) -> Run:
    import torch

    parameters = [a.requires_grad_() for a in p]
    for parameter, gradient in zip(parameters, g, strict=True):
        parameter.grad = gradient
    arguments = {**kind.arguments, **kind.torch_arguments, **way}
    run: Run = getattr(torch.optim, kind.torch)(parameters, **arguments).step
    return run


def _of_ceiling(row: Row) -> float | None:
    return row.of_ceiling if row.size >= 50_000_000 else None


FAMILY = Family(
    _cases,
    [
        Target("all, 1,000: times torch", 20, times("torch", OPTIMIZERS, [1_000])),
        Target("all, 100,000: times torch", 3, times("torch", OPTIMIZERS, [100_000])),
        Target("all, 1M: times torch", 1.8, times("torch", OPTIMIZERS, [1_000_000])),
        Target("all, 50M: times torch", 1, times("torch", OPTIMIZERS, [50_000_000])),
        Target("Adam 6 arrays: times torch", 8, times("torch", ["Adam 6 arrays"])),
        Target("Adam 200 arrays: times torch", 15, times("torch", ["Adam 200 arrays"])),
        Target("Adam, 100,000 and more: times numpy", 8, times("numpy", ["Adam"], range(100_000, 1 << 62))),
        Target("all, 50M: share of the bandwidth that the traffic allows", 0.85, _of_ceiling),
    ],
)


_FUSED = [name for name, kind in OPTIMIZERS.items() if _has_fused(kind, "cuda")]
_NOT_FUSED = [name for name in OPTIMIZERS if name not in _FUSED]
GPU_FAMILY = Family(
    _cases,
    [
        Target(
            "all, 100M: share of the copy's bandwidth",
            0.92,
            lambda row: row.of_ceiling if row.size == 100_000_000 else None,
        ),
        Target("100M: times torch fused", 1, times("torch fused", _FUSED, [100_000_000])),
        Target("100M, without a fused one: times torch", 1.5, times("torch", _NOT_FUSED, [100_000_000])),
        Target("Adam 200 arrays: times torch fused", 1.5, times("torch fused", ["Adam 200 arrays"])),
    ],
)
