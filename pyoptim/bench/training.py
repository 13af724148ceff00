"""Training: epochs over MNIST in the compiled engine, in an eager loop of PyTorch and in a scan of JAX.

A run trains on as many examples as make a measurable time; what is reported is the time of 60,000. Every
competitor visits the examples in a new order each run. Before, all train on the first examples in one
order, and their losses must agree.
"""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import datasets, nn
from ..optim.elementwise import SGD, Adam
from ..runtime import threads
from ..runtime.dtypes import Array
from ..train.trainer import Trainer
from . import libraries
from .case import Case, Family, Mismatch, Options, Row, Target, times
from .timing import Run

_WIDTHS = (784, 256, 128, 10)
_EPOCH = 60_000
_LR = {"Adam": 1e-3, "SGD": 0.01}
_EPS = 1e-5  # of BatchNorm
_CHECKED = 10  # steps whose losses are compared
# The examples of a run, by the size of a batch.
_EXAMPLES = {1: 2_000, 10: 10_000, 32: 16_000, 128: 32_000, 1024: 30_720}
_GPU_EXAMPLES = {1: 2_000, 10: 10_000, 32: 32_000, 128: 59_904, 1024: 59_392}  # JAX takes whole batches
_QUICK_EXAMPLES = {1: 100, 10: 200, 32: 320, 128: 1_280, 1024: 2_048}
_ADAM = ["epoch Adam"]  # the rows of this name
_NORMED = "pyoptim without"  # name of the same network without BatchNorm


class _Work(NamedTuple):
    """The work that all competitors do."""

    optimizer: str
    batch: int
    norm: bool
    x: Array  # the examples of a run: float32 from 0 to 1
    y: Array
    device: str
    widths: tuple[int, ...] = ()  # of the network, from inputs to classes; empty: MNIST's

    @property
    def layers(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each dense layer."""
        return list(itertools.pairwise(self.widths or _WIDTHS))


# A function that trains on the examples in this order (None: in a random one) and returns the mean loss.
_Epoch = Callable[[Array | None], float]


def _cases(options: Options) -> Generator[Case]:
    on_gpu = options.device == "cuda"
    examples = _QUICK_EXAMPLES if options.quick else _GPU_EXAMPLES if on_gpu else _EXAMPLES
    wanted = [("Adam", batch, False) for batch in examples]
    wanted += [("SGD", 1, False)] * (not on_gpu) + [("Adam", 128 if 128 in examples else max(examples), True)]
    sizes = [m * n for m, n in itertools.pairwise(_WIDTHS)]
    # forward, the gradients of the weights, and those of the inputs except in the first layer
    flops = 2 * (3 * sum(sizes) - sizes[0]) * _EPOCH
    for optimizer, batch, norm in wanted:
        name = f"epoch {optimizer}{' BatchNorm' if norm else ''}"

        def prepare(key: tuple[str, int, bool] = (optimizer, batch, norm)) -> dict[str, Run]:
            optimizer, batch, norm = key
            x, y = _data(examples[batch])
            work = _Work(optimizer, batch, norm, x, y, options.device)
            return checked(work, options.peers)

        yield Case(name, batch, 4 * _EPOCH * _WIDTHS[0], prepare, flops, _EPOCH / examples[batch])


def _data(examples: int) -> tuple[Array, Array]:
    if (Path(os.environ.get("PYOPTIM_DATA", "")) / "mnist").is_dir():
        data = datasets.load("mnist", flatten=True, normalize=True)
        return data.x_train[:examples].copy(), data.y_train[:examples].copy()
    rng = np.random.default_rng(0)
    x = np.maximum(rng.random((examples, _WIDTHS[0]), np.float32) * 5 - 4, 0)  # four of five pixels are 0
    return x, rng.integers(0, _WIDTHS[-1], examples)


def checked(
    work: _Work, peers: tuple[str, ...], ways: tuple[str, ...] = ("fused", "foreach")
) -> dict[str, Run]:
    """The runs that train, after first steps whose losses must agree; ways: of PyTorch's optimizer."""
    first = work._replace(x=work.x[: _CHECKED * work.batch], y=work.y[: _CHECKED * work.batch])
    makers: dict[str, Callable[[_Work], _Epoch]] = {"pyoptim": _pyoptim}
    if "torch" in peers:
        makers |= {f"torch {way}": _torch(way) for way in ways}
        if work.device == "cuda":
            makers["torch graph"] = _torch_graph
    if "jax" in peers:
        makers["jax"] = _jax
    order = np.arange(len(first.x))
    losses = {who: make(first)(order) for who, make in makers.items()}
    for who, loss in losses.items():
        if not abs(loss - losses["pyoptim"]) <= 1e-3 * losses["pyoptim"]:
            raise Mismatch(
                f"{work.optimizer}, batch {work.batch}: {who} has a mean loss of {loss} over the first "
                f"steps, pyoptim {losses['pyoptim']}"
            )
    if work.norm and not work.widths:
        makers[_NORMED] = lambda work: _pyoptim(work._replace(norm=False))
    epochs = {who: make(work) for who, make in makers.items()}
    return {who: lambda epoch=epoch: epoch(None) for who, epoch in epochs.items()}  # type: ignore[misc]


def _model(work: _Work) -> nn.Sequential:
    layers: list[nn.Layer] = []
    *hidden, last = work.layers
    for inputs, outputs in hidden:
        layers.append(nn.Dense(inputs, outputs, activation=None if work.norm else "relu", init="he"))
        if work.norm:
            layers.append(nn.BatchNorm(outputs, activation="relu"))
    return nn.Sequential(*layers, nn.Dense(*last), seed=0)


def _pyoptim(work: _Work) -> _Epoch:
    model = _model(work).to(work.device)
    optimizer = {"Adam": Adam, "SGD": SGD}[work.optimizer](model.parameters(), lr=_LR[work.optimizer])
    trainer = Trainer(model, nn.CrossEntropy(), optimizer, seed=0)
    data = libraries.of("pyoptim", work.device).array(work.x)  # copied to a GPU once, as for PyTorch

    def epoch(order: Array | None) -> float:
        x, y = (data, work.y) if order is None else (work.x[order], work.y[order])
        history = trainer.fit(x, y, batch_size=work.batch, shuffle=order is None, verbose=False)
        return history["loss"][0]

    return epoch


class _Torch:
    """The same network in PyTorch, and a step on some rows of the data."""

    def __init__(self, work: _Work, **way: bool) -> None:
        import torch

        layers: list[Any] = []
        *hidden, last = work.layers
        for inputs, outputs in hidden:
            layers.append(torch.nn.Linear(inputs, outputs))
            layers += [torch.nn.BatchNorm1d(outputs)] * work.norm + [torch.nn.ReLU()]
        layers.append(torch.nn.Linear(*last))
        self.model = torch.nn.Sequential(*layers).to(work.device)
        with torch.no_grad():
            ours = _model(work).parameters().values()
            for theirs, values in zip(self.model.parameters(), ours, strict=True):
                theirs.copy_(torch.from_numpy(values))
        kind = getattr(torch.optim, work.optimizer)
        self.optimizer = kind(self.model.parameters(), lr=_LR[work.optimizer], **way)
        self._loss_of = torch.nn.CrossEntropyLoss()
        self.x, self.y = (torch.from_numpy(a).to(work.device) for a in (work.x, work.y))
        self.total = torch.zeros((), device=work.device)
        self._device, self._batch = work.device, work.batch

    def step(self, indices: Any) -> None:
        self.optimizer.zero_grad()
        loss = self._loss_of(self.model(self.x[indices]), self.y[indices])
        loss.backward()
        self.optimizer.step()
        self.total += loss.detach()

    def epoch(self, order: Array | None, step: Callable[[Any], None]) -> float:
        import torch

        examples = len(self.x)
        chosen = torch.randperm(examples) if order is None else torch.from_numpy(order)
        self.total.zero_()
        for indices in chosen.to(self._device).split(self._batch):
            step(indices)
        return float(self.total) * self._batch / examples


def _torch(way: str) -> Callable[[_Work], _Epoch]:
    def make(work: _Work) -> _Epoch:
        torch = _Torch(work, **{way: True})
        return lambda order: torch.epoch(order, torch.step)

    return make


def _torch_graph(work: _Work) -> _Epoch:
    """Whole batches as a captured CUDA graph, the last one step by step."""
    import torch

    it = _Torch(work, fused=True, capturable=True)
    before = [tensor.clone() for tensor in it.model.state_dict().values()]
    rows = torch.zeros(work.batch, dtype=torch.int64, device=work.device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # warm-up that PyTorch's notes on CUDA graphs ask for
            it.step(rows)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        it.step(rows)
    with torch.no_grad():  # back to the initial values
        for tensor, values in zip(it.model.state_dict().values(), before, strict=True):
            tensor.copy_(values)
        for state in it.optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()

    def step(indices: Any) -> None:
        if len(indices) < work.batch:
            it.step(indices)
            return
        rows.copy_(indices)
        graph.replay()

    return lambda order: it.epoch(order, step)


def _jax(work: _Work) -> _Epoch:
    """The epoch is one compiled function: a scan over the mini-batches."""
    jax = importlib.import_module("jax")
    np_ = importlib.import_module("jax.numpy")
    lr, beta1, beta2, eps = _LR[work.optimizer], 0.9, 0.999, 1e-8
    tree = jax.tree_util.tree_map

    def loss_of(parameters: Any, x: Any, y: Any) -> Any:
        *hidden, last = parameters
        if work.norm:
            for (weight, bias), (gamma, beta) in zip(hidden[::2], hidden[1::2], strict=True):
                x = x @ weight.T + bias
                x = jax.nn.relu((x - x.mean(0)) * gamma / np_.sqrt(x.var(0) + _EPS) + beta)
            hidden = []
        for weight, bias in hidden:
            x = jax.nn.relu(x @ weight.T + bias)
        logits = jax.nn.log_softmax(x @ last[0].T + last[1])
        return -np_.take_along_axis(logits, y[:, None], axis=1).mean()

    def step(state: Any, batch: Any) -> Any:
        parameters, m, v, t = state
        loss, g = jax.value_and_grad(loss_of)(parameters, *batch)
        if work.optimizer == "SGD":
            return (tree(lambda p, g: p - lr * g, parameters, g), m, v, t), loss
        t = t + 1
        m = tree(lambda m, g: beta1 * m + (1 - beta1) * g, m, g)
        v = tree(lambda v, g: beta2 * v + (1 - beta2) * g * g, v, g)
        rate, root = lr / (1 - beta1**t), np_.sqrt(1 - beta2**t)
        parameters = tree(lambda p, m, v: p - rate * m / (np_.sqrt(v) / root + eps), parameters, m, v)
        return (parameters, m, v, t), loss

    def run(state: Any, x: Any, y: Any, order: Any) -> Any:
        rows = order.reshape(-1, work.batch)
        state, losses = jax.lax.scan(lambda state, rows: step(state, (x[rows], y[rows])), state, rows)
        return state, losses.mean()

    compiled = jax.jit(run, donate_argnums=0)
    device = jax.devices("cpu" if work.device == "cpu" else "gpu")[0]
    values = [jax.device_put(p, device) for p in _model(work).parameters().values()]
    parameters = list(zip(values[::2], values[1::2], strict=True))
    zeros = [tree(np_.zeros_like, parameters) for _ in range(2)]
    state = [(parameters, *zeros, jax.device_put(np.float32(0), device))]
    x, y, rng = jax.device_put(work.x, device), jax.device_put(work.y, device), np.random.default_rng(0)

    def epoch(order: Array | None) -> float:
        chosen = rng.permutation(len(work.x)) if order is None else order
        with jax.default_matmul_precision("highest"):  # as all others: on GPUs JAX's default has 10 bits
            state[0], loss = compiled(state[0], x, y, jax.device_put(chosen, device))
        return float(loss)

    return epoch


def _times(peer: str, optimizer: str, batch: int) -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        is_meant = row.name == f"epoch {optimizer}" and row.size == batch
        return row.faster_than(peer) if is_meant and threads.get_num_threads() == 2 else None

    return value


def _eager(row: Row) -> float | None:
    """How many times as fast as the faster of PyTorch's fused and foreach steps."""
    times = [ratio for way in ("fused", "foreach") if (ratio := row.faster_than(f"torch {way}"))]
    return min(times, default=None) if (row.name, row.size) == ("epoch Adam", 128) else None


def _norm_costs(row: Row) -> float | None:
    return row.faster_than(_NORMED) if row.name == "epoch Adam BatchNorm" else None


_BOUNDS = {
    ("Adam", 1): (8, 2),
    ("Adam", 10): (6, 2),
    ("Adam", 32): (4, 1.7),
    ("Adam", 128): (2.2, 1.4),
    ("Adam", 1024): (1.3, 1.2),
    ("SGD", 1): (8, 1.8),
}
FAMILY = Family(
    _cases,
    [
        *(
            Target(f"epoch {name}, batch {batch}: times {peer}", bound, _times(peer, name, batch))
            for (name, batch), bounds in _BOUNDS.items()
            for peer, bound in zip(("torch", "jax"), bounds, strict=True)
        ),
        Target("epoch, batch 128: with BatchNorm, of the speed without", 0.8, _norm_costs),
    ],
)

_GPU_PEERS = {"torch's graph": "torch graph", "jax": "jax"}
_GPU_BOUNDS = {1: (2, 1.2), 10: (2, 1.2), 32: (2, 1.2), 128: (2, 1.2), 1024: (1.5, 1.2)}
GPU_FAMILY = Family(
    _cases,
    [
        Target("epoch Adam, batch 128: times torch eager", 4, _eager),
        *(
            Target(f"epoch Adam, batch {n}: times {name}", bound, times(peer, _ADAM, [n]))
            for n, bounds in _GPU_BOUNDS.items()
            for (name, peer), bound in zip(_GPU_PEERS.items(), bounds, strict=True)
        ),
    ],
)
