"""``pyoptim bench layers``: layers of every shape, in both types, on one thread and on all.

Dense layers forward and backward, with ReLU, are compared with PyTorch and with the processor's peak; the
activations, the normalisations and cross-entropy, forward and backward together, with PyTorch.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from ..formulas.activations import ACTIVATIONS
from ..runtime import dispatch
from ..runtime.dtypes import Array
from ..runtime.figures import new_figure, saved
from . import activations, norms
from .case import Case, Family, Options, Row, Target
from .layers import Competitor, DenseArrays, Expected, Maker, aligned, checked, chosen, cross_entropy
from .timing import SWEEP, Run

_BATCHES = (1, 10, 32, 128, 200, 1024, 4096)
_LAYERS = (
    (1, 1), (3, 32), (5, 64), (13, 100), (30, 100), (100, 4), (64, 100), (100, 10), (32, 32), (64, 64),
    (100, 100), (128, 128), (256, 256), (784, 256), (256, 128), (128, 10), (1024, 1024), (512, 16),
    (16, 512), (300, 1), (1, 300), (2048, 2048), (4096, 1024), (1024, 4096),
)  # fmt: skip
_OFF_THE_ROUND_NUMBERS = 350  # shapes with sizes drawn from 1 to 4,096
_MOST = 1 << 30  # multiply-adds of a shape that is drawn, for the sake of time
_QUICK_SHAPES = [(1, 3, 5), (32, 33, 40), (7, 1, 1)]
_ELEMENTS = (2_000, 20_000, 200_000)  # of activations
_NORMS = [
    ("batch norm", (10, 64)), ("batch norm", (32, 100)), ("batch norm", (200, 64)),
    ("batch norm", (1024, 128)), ("batch norm", (16, 64, 7, 7)), ("batch norm ReLU", (128, 256)),
    ("batch norm ReLU", (1000, 100)), ("layer norm", (1, 512)), ("layer norm", (32, 100)),
    ("layer norm", (200, 64)), ("layer norm", (1000, 1000)),
]  # fmt: skip
_LOGITS = ((1, 10), (32, 2), (33, 10), (200, 4), (1024, 10), (128, 100), (100, 1000), (4096, 20))


def shapes() -> list[tuple[int, int, int]]:
    """The sizes of batch, inputs and outputs, always the same ones."""
    round_numbers = [
        (batch, inputs, outputs)
        for batch, (inputs, outputs) in itertools.product(_BATCHES, _LAYERS)
        if batch < 4096 or inputs * outputs <= 1 << 20
    ]
    rng, drawn = np.random.default_rng(0), list[tuple[int, int, int]]()
    while len(drawn) < _OFF_THE_ROUND_NUMBERS:
        batch, inputs, outputs = (int(n) for n in np.round(2 ** rng.uniform(0, 12, 3)))
        if batch * inputs * outputs <= _MOST:
            drawn.append((batch, inputs, outputs))
    return round_numbers + drawn


def _cases(options: Options) -> Generator[Case]:
    dense = _QUICK_SHAPES if options.quick else shapes()
    for threads, dtype in itertools.product(options.threads, options.dtypes):
        for way, shape in itertools.product(("forward", "backward"), dense):
            yield _dense_case(way, shape, dtype, options.peers)._replace(threads=threads)
        for case in _other_cases(dtype, options):
            yield case._replace(threads=threads, dtype=dtype)


def _dense_case(way: str, shape: tuple[int, int, int], dtype: str, peers: tuple[str, ...]) -> Case:
    batch, inputs, outputs = shape
    sizes = inputs * outputs, batch * inputs, batch * outputs
    traffic = np.dtype(dtype).itemsize * sum(sizes) * (2 if way == "backward" else 1)
    flops = (4 if way == "backward" else 2) * batch * inputs * outputs
    prepare = functools.partial(_prepare, way, shape, np.dtype(dtype), peers)
    return Case(f"{way} {inputs}-{outputs}", batch, traffic, prepare, flops, dtype=dtype)


def _other_cases(dtype: str, options: Options) -> Generator[Case]:
    kind = np.dtype(dtype)
    peers = tuple(peer for peer in options.peers if peer == "torch")
    most = 1 if options.quick else 99
    for name, size in itertools.product([n for n in ACTIVATIONS if n != "identity"], _ELEMENTS[:most]):
        # PyTorch's hardsigmoid computes with a sixth in float32 in either type.
        right = () if (name, dtype) == ("hardsigmoid", "float64") else peers
        prepare = functools.partial(activations.prepare, name, size, kind, right)
        yield Case(name, size, 5 * size * kind.itemsize, prepare)
    for norm, shape in _NORMS[:most]:
        of_norm = functools.partial(norms.prepare, norm, shape, kind, options._replace(peers=peers))
        size = int(np.prod(shape))
        yield Case(f"{norm} {'x'.join(map(str, shape))}", shape[0], 8 * size * kind.itemsize, of_norm)
    for batch, classes in _LOGITS[:most]:
        of_loss = functools.partial(cross_entropy, batch, classes, kind, peers)
        yield Case(f"cross-entropy {classes}", batch, 2 * batch * classes * kind.itemsize, of_loss)


def _some(n: int) -> Array:
    """At most 64 indices below n, the first and the last among them: the results that are checked."""
    return np.unique(np.linspace(0, n - 1, 64).astype(int))


def _prepare(
    way: str, shape: tuple[int, int, int], dtype: np.dtype[Any], peers: tuple[str, ...]
) -> dict[str, Run]:
    batch, inputs, outputs = shape
    rng = np.random.default_rng(0)
    forms = (batch, inputs), (outputs, inputs), (outputs,), (batch, outputs)
    x, weight, bias, dy = (rng.standard_normal(s, dtype=np.float32).astype(dtype) for s in forms)
    y = np.maximum(x @ weight.T + bias, 0)
    given = x, weight, bias, dy, y
    expected = (_forward_expected if way == "forward" else _backward_expected)(*given)
    makers: dict[str, Maker] = {"pyoptim": _ours, "torch out=": _torch}
    if way == "forward":
        makers["torch functional"] = _torch_functional
    competitors = {
        who: make(way, DenseArrays(*(aligned(a, dtype) for a in (*given, x, weight, bias))))
        for who, make in chosen(makers, peers).items()
    }
    return checked(f"{way} {inputs}-{outputs}, batch {batch}, {dtype}", competitors, expected)


def _forward_expected(x: Array, weight: Array, bias: Array, dy: Array, y: Array) -> dict[str, Expected]:
    # The error of a sum of k terms in any order: k eps times the sum of their sizes (Higham 2002, 3.1).
    eps = float(np.finfo(x.dtype).eps)
    some, w = x[_some(len(x))].astype(float), weight.astype(float)
    z = some @ w.T + bias
    bound = (x.shape[1] + 2) * eps * (np.abs(some) @ np.abs(w).T + np.abs(bias))
    return {"y": Expected(np.maximum(z, 0), bound)}


def _backward_expected(x: Array, weight: Array, bias: Array, dy: Array, y: Array) -> dict[str, Expected]:
    eps = float(np.finfo(x.dtype).eps)
    (batch, outputs), w, rows, cols = y.shape, weight.astype(float), _some(len(x)), _some(y.shape[1])
    dz = np.where(y > 0, dy, 0)
    row, col, x64 = dz[rows].astype(float), dz[:, cols].astype(float), x.astype(float)
    sums, sizes = dz.sum(0, dtype=float), np.abs(dz).sum(0, dtype=float)
    return {
        "dx": Expected(row @ w, (outputs + 2) * eps * (np.abs(row) @ np.abs(w))),
        "dweight": Expected(col.T @ x64, (batch + 2) * eps * (np.abs(col).T @ np.abs(x64))),
        "dbias": Expected(sums, (batch + 2) * eps * sizes),
    }


def _results(way: str, a: DenseArrays) -> Callable[[], dict[str, Array]]:
    if way == "forward":
        return lambda: {"y": a.y[_some(len(a.y))]}
    rows, cols = _some(len(a.x)), _some(len(a.bias))
    return lambda: {"dx": a.dx[rows], "dweight": a.dweight[cols], "dbias": a.dbias}


def _ours(way: str, a: DenseArrays) -> Competitor:
    backend = dispatch.current()
    if way == "forward":
        run = functools.partial(backend.dense_forward, a.x, a.weight, a.bias, "relu", a.y)
    else:
        gradients = a.dx, a.dweight, a.dbias
        run = functools.partial(backend.dense_backward, a.dy, a.x, a.weight, a.y, "relu", *gradients)
    return Competitor(run, _results(way, a))


def _torch(way: str, a: DenseArrays) -> Competitor:
    import torch

    x, weight, bias, dy, y, dx, dweight, dbias = (torch.from_numpy(array) for array in a)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def forward() -> None:
        torch.addmm(bias, x, weight.T, out=y)
        torch.relu_(y)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def backward() -> None:
        dz = torch.ops.aten.threshold_backward(dy, y, 0)
        torch.mm(dz, weight, out=dx)
        torch.mm(dz.T, x, out=dweight)
        torch.sum(dz, 0, out=dbias)

    return Competitor(forward if way == "forward" else backward, _results(way, a))


def _torch_functional(way: str, a: DenseArrays) -> Competitor:
    import torch

    x, weight, bias = (torch.from_numpy(array) for array in a[:3])
    rows, found = _some(len(a.x)), dict[str, Any]()

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def run() -> None:
        found["y"] = torch.relu(torch.nn.functional.linear(x, weight, bias))

    return Competitor(run, lambda: {"y": found["y"].numpy()[rows]})


class _Dense(NamedTuple):
    """What the name and the size of a row say."""

    way: str
    batch: int
    inputs: int
    outputs: int


def _dense_of(row: Row) -> _Dense | None:
    found = re.fullmatch(r"(forward|backward) (\d+)-(\d+)", row.name)
    return _Dense(found[1], row.size, int(found[2]), int(found[3])) if found else None


def _against_torch(row: Row) -> float | None:
    return row.faster_than("torch")


def _of_peak(row: Row) -> float | None:
    found = _dense_of(row)
    return row.of_ceiling if found and min(found[1:]) >= 32 else None


def draw(path: str | Path | None, rows: Sequence[Row]) -> Any:
    """Draw a map of the share of the peak of every dense layer; returns the figure.

    It has a panel for each way, type and number of threads. The larger a dot, the larger the batch.
    """
    dense = [(row, found) for row in rows if (found := _dense_of(row)) and row.of_ceiling is not None]
    panels = sorted({(found.way == "backward", row.dtype, row.threads) for row, found in dense})
    columns = max(1, (len(panels) + 1) // 2)
    figure = new_figure(4.2 * columns + 1, 8)
    grid = list(figure.subplots(2, columns, squeeze=False, sharex=True, sharey=True).flat)
    dots = None
    for axes, panel in zip(grid, panels, strict=False):
        mine = [(row, it) for row, it in dense if (it.way == "backward", row.dtype, row.threads) == panel]
        mine.sort(key=lambda pair: -pair[1].batch)  # small dots lie on large ones
        dots = axes.scatter(
            [it.inputs for _, it in mine],
            [it.outputs for _, it in mine],
            s=[6 + 6 * np.log2(it.batch) for _, it in mine],
            c=[row.of_ceiling for row, _ in mine],
            vmin=0, vmax=1, cmap="RdYlGn", edgecolors="black", linewidths=0.2,
        )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        backward, dtype, threads = panel
        title = f"{'backward' if backward else 'forward'}, {dtype}, {threads} thread{'s' * (threads > 1)}"
        axes.set(title=title, xlabel="inputs", ylabel="outputs")
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    if dots is not None:
        figure.colorbar(
            dots, ax=grid, label="share of the peak; the size of a dot is the batch, from 1 to 4,096"
        )
    return saved(figure, path)


FAMILY = Family(
    _cases,
    [
        Target("layers, every shape: times torch", 1, _against_torch),
        Target("layers, median: times torch", 1.3, _against_torch, median),
        Target("dense, batch, inputs and outputs of 32 and more: share of peak", 0.7, _of_peak),
    ],
    SWEEP,
    "layers of some 500 shapes, in two types, on one thread and on all: some 15 minutes (--match, --quick)",
    draw,
)
