"""``pyoptim bench fallbacks``: what an installation without compiled kernels gets.

Steps on Numba beside the compiled ones, steps on NumPy beside those that one writes in NumPy, and epochs on
all three beside a training loop as a course writes it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import numpy as np

from ..runtime import dispatch
from ..runtime.dtypes import Array
from . import numpy_optimizers, optimizers, training
from .case import Case, Family, Mismatch, Options, Row, Target
from .timing import SWEEP, Run

_PLAIN = "plain NumPy"  # what one writes without pyoptim
_SIZES = (1_000, 10_000, 100_000, 1_000_000, 5_000_000)
_QUICK_SIZES = (1_000,)
_TOGETHER = 20_000  # elements that a run updates at least, in several steps, as choosing a backend takes 1 us


class _Training(NamedTuple):
    """Epochs of a network with Adam."""

    widths: tuple[int, ...]
    norm: bool  # whether BatchNorm follows each hidden layer
    batch: int
    examples: int  # of a run
    epoch: int  # examples

    @property
    def name(self) -> str:
        between = "-BatchNorm-" if self.norm else "-"
        return f"epoch {'-'.join(map(str, self.widths[:-1]))}{between}{self.widths[-1]}"


_TRAININGS = (
    _Training((64, 128, 10), True, 64, 6_400, 20_000),
    _Training((784, 256, 128, 10), False, 128, 6_400, 60_000),
)
_QUICK_TRAININGS = (_Training((64, 128, 10), True, 64, 640, 20_000),)


def _cases(options: Options) -> Generator[Case]:
    known = dispatch.available_backends()
    for it in _QUICK_TRAININGS if options.quick else _TRAININGS:
        for own in ("numba", "numpy"):
            if own in known:
                prepare = functools.partial(
                    _epochs, it, own, [name for name in known if name in dispatch.MODULES]
                )
                yield Case(
                    f"{it.name}, {own}", it.batch, 0, prepare, scale=it.epoch / it.examples, dtype="float32"
                )
    ways = [("numpy", _PLAIN, max(options.threads))] + [("numba", "native", n) for n in options.threads]
    for name, kind in optimizers.OPTIMIZERS.items():
        if name not in options.names:
            continue
        for dtype, size in itertools.product(options.dtypes, _QUICK_SIZES if options.quick else _SIZES):
            steps, itemsize = max(1, _TOGETHER // size), np.dtype(dtype).itemsize
            traffic = size * itemsize * (3 + 2 * kind.states)
            for own, other, count in ways:
                if {own, other} <= {*known, _PLAIN}:
                    prepare = functools.partial(_steps, name, (size, np.dtype(dtype), steps), own, other)
                    scale = 1 / steps
                    yield Case(
                        f"{name}, {own}", size, traffic, prepare, scale=scale, dtype=dtype, threads=count
                    )


def _steps(name: str, work: tuple[int, np.dtype[Any], int], own: str, other: str) -> dict[str, Run]:
    """Some steps in each run, on the backends ``own`` and ``other`` or in plain NumPy."""
    size, dtype, steps = work
    makers = {"pyoptim": functools.partial(_on, own, name), other: functools.partial(_on, other, name)}
    runs: dict[str, Any] = optimizers.prepared(name, (size,), dtype, makers)
    return {who: functools.partial(run, steps) for who, run in runs.items()}


def _on(backend: str, name: str, p: optimizers.Arrays, g: optimizers.Arrays) -> Callable[..., None]:
    """Return a function that makes a number of steps."""
    kind = optimizers.OPTIMIZERS[name]
    plain = backend == _PLAIN
    step = optimizers.numpy_run(kind, p, g) if plain else optimizers.pyoptim_run(kind, p, g)

    def run(steps: int = 1) -> None:
        with dispatch.use_backend("numpy" if plain else backend):
            for _ in range(steps):
                step()

    return run


def _epochs(it: _Training, own: str, backends: list[str]) -> dict[str, Run]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((it.examples, it.widths[0]), np.float32)
    y = rng.integers(0, it.widths[-1], it.examples)
    work = training._Work("Adam", it.batch, it.norm, x, y, "cpu", it.widths)
    first = work._replace(x=x[: 10 * it.batch], y=y[: 10 * it.batch])
    makers: dict[str, Callable[[Any], Any]] = {"pyoptim": functools.partial(_trained, own)}
    makers |= {name: functools.partial(_trained, name) for name in backends if name != own}
    makers[_PLAIN] = _Plain
    order = np.arange(len(first.x))
    losses = {who: make(first)(order) for who, make in makers.items()}
    for who, loss in losses.items():
        if not abs(loss - losses["pyoptim"]) <= 1e-3 * losses["pyoptim"]:
            raise Mismatch(f"{it.name}: {who} has a mean loss of {loss}, {own} {losses['pyoptim']}")
    epochs = {who: make(work) for who, make in makers.items()}
    return {who: functools.partial(epoch, None) for who, epoch in epochs.items()}


def _trained(backend: str, work: training._Work) -> Callable[[Array | None], float]:
    epoch = training._pyoptim(work)

    def run(order: Array | None) -> float:
        with dispatch.use_backend(backend):
            return epoch(order)

    return run


class _Plain:
    """The same network as a course on NumPy writes it: forward, backward, and Adam array by array."""

    def __init__(self, work: training._Work) -> None:
        self._work, self._rng, self._t = work, np.random.default_rng(0), 0
        self._p = {name: p.copy() for name, p in training._model(work).parameters().items()}
        self._moments = {name: (np.zeros_like(p), np.zeros_like(p)) for name, p in self._p.items()}
        self.right = 0  # how often a class was the most likely one, as `Trainer` counts too

    def __call__(self, order: Array | None) -> float:
        x, y = self._work.x, self._work.y
        chosen = self._rng.permutation(len(x)) if order is None else order
        losses = []
        for begin in range(0, len(chosen), self._work.batch):
            rows = chosen[begin : begin + self._work.batch]
            losses.append(self._step(x[rows], y[rows]))
        return float(np.mean(losses))

    def _step(self, x: Array, y: Array) -> float:
        p, g = self._p, dict[str, Array]()
        hidden, norm = len(self._work.widths) - 2, self._work.norm
        inputs, kept = [x], list[tuple[str, Array, Array]]()
        dense = [str((1 + norm) * i) for i in range(hidden + 1)]  # the layers' names
        for name in dense[:-1]:
            z = inputs[-1] @ p[f"{name}.weight"].T + p[f"{name}.bias"]
            if norm:
                after = f"{int(name) + 1}"
                inv_std = 1 / np.sqrt(z.var(axis=0) + training._EPS)
                z = (z - z.mean(axis=0)) * inv_std
                kept.append((after, z, inv_std))
                z = z * p[f"{after}.weight"] + p[f"{after}.bias"]
            inputs.append(np.maximum(z, 0))
        logits = inputs[-1] @ p[f"{dense[-1]}.weight"].T + p[f"{dense[-1]}.bias"]
        e = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares = e / e.sum(axis=1, keepdims=True)
        rows = np.arange(len(y))
        loss = -np.log(shares[rows, y]).mean()
        self.right += int((logits.argmax(axis=1) == y).sum())
        d = shares
        d[rows, y] -= 1
        d /= len(y)
        for name in dense[::-1]:
            g[f"{name}.weight"], g[f"{name}.bias"] = d.T @ inputs[int(name) // (1 + norm)], d.sum(axis=0)
            if name == "0":
                break
            d = d @ p[f"{name}.weight"]
            d = d * (inputs[int(name) // (1 + norm)] > 0)
            if norm:
                after, z, inv_std = kept.pop()
                g[f"{after}.weight"], g[f"{after}.bias"] = (d * z).sum(axis=0), d.sum(axis=0)
                d = d * p[f"{after}.weight"]
                d = inv_std * (d - d.mean(axis=0) - z * (d * z).mean(axis=0))
        self._t += 1
        for name, gradient in g.items():
            numpy_optimizers.adam(self._t, p[name], gradient, *self._moments[name])
        return float(loss)


def _of(own: str, other: str, is_epoch: bool) -> Callable[[Row], float | None]:
    """How many times as fast one is as the other, in epochs or in steps."""

    def value(row: Row) -> float | None:
        is_meant = row.name.startswith("epoch ") == is_epoch and row.name.endswith(f", {own}")
        return row.seconds[other] / row.seconds["pyoptim"] if is_meant and other in row.seconds else None

    return value


FAMILY = Family(
    _cases,
    [
        Target("steps: NumPy backend, times plain NumPy", 1.5, _of("numpy", _PLAIN, False)),
        Target("steps: Numba, of the native speed", 0.7, _of("numba", "native", False)),
        Target("epochs: Numba, times the NumPy backend", 2, _of("numba", "numpy", True)),
        Target("epochs: NumPy backend, times plain NumPy", 1, _of("numpy", _PLAIN, True)),
    ],
    SWEEP,
    "steps and epochs on Numba and NumPy, beside native ones and plain NumPy: some 5 minutes",
)
