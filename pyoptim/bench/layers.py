"""Layers and losses, forward and backward: the backend in force, NumPy, and PyTorch where it is installed.

Results are written into arrays that exist, by all who can: memory from the system would cost more than
the small cases themselves. To add cases: a generator of `Case`, and its family in `FAMILIES`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Generator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..arrays.memory import aligned_zeros
from ..runtime import dispatch
from ..runtime.dtypes import Array
from .case import Case, Family, Mismatch, Options, Row, Target, times
from .timing import Run


class Competitor(NamedTuple):
    """A function that does the work, and one that returns the results of its last run."""

    run: Run
    results: Callable[[], Mapping[str, Array]]


Maker = Callable[..., Competitor]


class Expected(NamedTuple):
    """A result in float64, and the tolerance of each of its elements."""

    value: Array
    bound: Array


def checked(
    what: str, competitors: Mapping[str, Competitor], expected: Mapping[str, Expected]
) -> dict[str, Run]:
    """The function to time for each competitor, after one run that is compared; `Mismatch` if it is wrong."""
    for who, (run, results) in competitors.items():
        run()
        found = results()
        for name, (value, bound) in expected.items():
            off = np.abs(found[name] - value) > bound
            off |= ~np.isfinite(found[name])
            if off.any():
                at = tuple(int(i) for i in np.argwhere(off)[0])
                raise Mismatch(
                    f"{what} of {who}: {name}{list(at)} is {found[name][at]}, expected {value[at]} "
                    f"+- {bound[at]:.1e}"
                )
    return {who: competitor.run for who, competitor in competitors.items()}


def chosen(makers: Mapping[str, Maker], peers: Collection[str]) -> dict[str, Maker]:
    """Those that make pyoptim's competitors and those of the libraries to compare with."""
    return {who: make for who, make in makers.items() if who.split()[0] in ("pyoptim", *peers)}


def aligned(values: Array, dtype: np.dtype[Any]) -> Array:
    """A copy that begins on a cache line, as a model's memory and PyTorch's do."""
    out = aligned_zeros(values.size, dtype).reshape(values.shape)
    out[...] = values
    return out


_DENSE = {(784, 256): (1, 10, 32, 128, 256, 1024), (1024, 1024): (256,)}
_DENSE_NAMES = [f"dense {inputs}-{outputs} ReLU" for inputs, outputs in _DENSE]


class DenseArrays(NamedTuple):
    """The arrays of a dense layer with ReLU, and of its gradients."""

    x: Array
    weight: Array
    bias: Array
    dy: Array
    y: Array
    dx: Array
    dweight: Array
    dbias: Array

    def results(self) -> dict[str, Array]:
        return {name: getattr(self, name) for name in ("y", "dx", "dweight", "dbias")}


def _dense_cases(options: Options) -> Generator[Case]:
    dtype = np.dtype(options.dtype)
    for (inputs, outputs), batches in _DENSE.items():
        for batch in batches:
            sizes = inputs * outputs, batch * inputs, batch * outputs
            traffic = dtype.itemsize * (3 * sizes[0] + 3 * sizes[1] + 4 * sizes[2])
            prepare = functools.partial(_dense, (batch, inputs, outputs), dtype, options.peers)
            flops = 3 * 2 * batch * inputs * outputs
            yield Case(f"dense {inputs}-{outputs} ReLU", batch, traffic, prepare, flops)


def _dense(shape: tuple[int, int, int], dtype: np.dtype[Any], peers: tuple[str, ...]) -> dict[str, Run]:
    batch, inputs, outputs = shape
    rng = np.random.default_rng(0)
    forms = (batch, inputs), (outputs, inputs), (outputs,), (batch, outputs)
    x, weight, bias, dy = (rng.normal(size=s).astype(dtype).astype(np.float64) for s in forms)
    # The error of a sum of k terms in any order: k eps times the sum of their sizes (Higham 2002, 3.1).
    eps = float(np.finfo(dtype).eps)
    z = x @ weight.T + bias
    bound = (inputs + 2) * eps * (np.abs(x) @ np.abs(weight).T + np.abs(bias))
    dy[np.abs(z) <= bound] = 0  # where rounding decides the sign, and so the slope of ReLU
    dz = np.where(z > 0, dy, 0)
    size = np.abs(dz)
    expected = {
        "y": Expected(np.maximum(z, 0), bound),
        "dx": Expected(dz @ weight, (outputs + 2) * eps * (size @ np.abs(weight))),
        "dweight": Expected(dz.T @ x, (batch + 2) * eps * (size.T @ np.abs(x))),
        "dbias": Expected(dz.sum(0), (batch + 2) * eps * size.sum(0)),
    }
    makers: dict[str, Maker] = {"pyoptim": _dense_pyoptim, "numpy": _dense_numpy}
    makers |= {"torch out=": _dense_torch, "torch autograd": _dense_autograd}
    arrays = x, weight, bias, dy, z, x, weight, bias  # the last four are written
    competitors = {
        who: make(DenseArrays(*(aligned(a, dtype) for a in arrays)))
        for who, make in chosen(makers, peers).items()
    }
    return checked(f"dense {inputs}-{outputs}, batch {batch}, {dtype}", competitors, expected)


def _dense_pyoptim(a: DenseArrays) -> Competitor:
    backend = dispatch.current()

    def run() -> None:
        backend.dense_forward(a.x, a.weight, a.bias, "relu", a.y)
        backend.dense_backward(a.dy, a.x, a.weight, a.y, "relu", a.dx, a.dweight, a.dbias)

    return Competitor(run, a.results)


def _dense_numpy(a: DenseArrays) -> Competitor:
    dz = np.empty_like(a.dy)

    def run() -> None:
        np.matmul(a.x, a.weight.T, out=a.y)
        np.add(a.y, a.bias, out=a.y)
        np.maximum(a.y, 0, out=a.y)
        np.multiply(a.dy, a.y > 0, out=dz)
        np.matmul(dz, a.weight, out=a.dx)
        np.matmul(dz.T, a.x, out=a.dweight)
        np.sum(dz, axis=0, out=a.dbias)

    return Competitor(run, a.results)


def _dense_torch(a: DenseArrays) -> Competitor:
    import torch

    t = [torch.from_numpy(array) for array in a]
    x, weight, bias, dy, y, dx, dweight, dbias = t

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def run() -> None:
        torch.addmm(bias, x, weight.T, out=y)
        torch.relu_(y)
        dz = torch.ops.aten.threshold_backward(dy, y, 0)
        torch.mm(dz, weight, out=dx)
        torch.mm(dz.T, x, out=dweight)
        torch.sum(dz, 0, out=dbias)

    return Competitor(run, a.results)


def _dense_autograd(a: DenseArrays) -> Competitor:
    import torch

    x, weight, bias, dy = (torch.from_numpy(array) for array in a[:4])
    wanted = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    found: dict[str, Any] = {}

    def run() -> None:
        y = torch.relu(torch.nn.functional.linear(x, weight, bias))
        dx, dweight, dbias = torch.autograd.grad(y, wanted, dy)
        found.update(y=y, dx=dx, dweight=dweight, dbias=dbias)

    return Competitor(run, lambda: {name: tensor.detach().numpy() for name, tensor in found.items()})


_LOGITS = ((1024, 10), (256, 1000))
_TEMPERATURE = 2.0
_SQUARED = 1_000_000


class _Loss(NamedTuple):
    """The arrays of a loss: outputs, labels or targets of the same shape, and the gradient."""

    x: Array
    target: Array
    dx: Array


def _loss_cases(options: Options) -> Generator[Case]:
    dtype = np.dtype(options.dtype)
    for batch, classes in _LOGITS:
        prepare = functools.partial(cross_entropy, batch, classes, dtype, options.peers)
        yield Case(f"cross-entropy {classes}", batch, 2 * batch * classes * dtype.itemsize, prepare)
    for batch, classes in _LOGITS:
        prepare = functools.partial(_divergence, batch, classes, dtype, options.peers)
        yield Case(f"KL divergence {classes}", batch, 3 * batch * classes * dtype.itemsize, prepare)
    squared = functools.partial(_squared, dtype, options.peers)
    yield Case("squared error", _SQUARED, 3 * _SQUARED * dtype.itemsize, squared)


def cross_entropy(batch: int, classes: int, dtype: np.dtype[Any], peers: tuple[str, ...]) -> dict[str, Run]:
    """The runs of cross-entropy with its gradient, checked."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, classes)).astype(dtype).astype(np.float64)
    labels, rows = rng.integers(0, classes, batch), np.arange(batch)
    p = np.exp(x)
    p /= p.sum(1, keepdims=True)
    loss = -np.log(p[rows, labels]).mean()
    gradient = p / batch
    gradient[rows, labels] -= 1 / batch
    # The exp is within 2 ulp; the rest is the rounding of a sum of exponentials.
    off = (32 + classes / 16) * float(np.finfo(dtype).eps)
    expected = {
        "loss": Expected(loss, np.asarray(off * (1 + loss))),
        "dx": Expected(gradient, off * (np.abs(gradient) + 1 / batch)),
    }
    makers = {
        "pyoptim": _ours(lambda kernels, *a: kernels.softmax_cross_entropy(*a, None, None, 0.0)),
        "numpy": _cross_entropy_numpy,
        "torch": _torch(lambda functional, *a: functional.cross_entropy(*a)),
    }
    what = f"cross-entropy ({batch}, {classes}), {dtype}"
    return _loss_runs(what, chosen(makers, peers), x.astype(dtype), labels, expected)


def _cross_entropy_numpy(a: _Loss) -> Competitor:
    rows, batch, found = np.arange(len(a.x)), len(a.x), np.empty(())

    def run() -> None:
        np.subtract(a.x, a.x.max(axis=1, keepdims=True), out=a.dx)
        of_label = a.dx[rows, a.target]
        np.exp(a.dx, out=a.dx)
        total = a.dx.sum(axis=1, keepdims=True)
        found[...] = np.mean(np.log(total[:, 0]) - of_label)
        np.divide(a.dx, total * batch, out=a.dx)
        a.dx[rows, a.target] -= a.dx.dtype.type(1 / batch)

    return Competitor(run, lambda: {"loss": found, "dx": a.dx})


def _divergence(batch: int, classes: int, dtype: np.dtype[Any], peers: tuple[str, ...]) -> dict[str, Run]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, classes)).astype(dtype).astype(np.float64)
    target = rng.dirichlet(np.ones(classes), batch).astype(dtype).astype(np.float64)
    p = np.exp(x / _TEMPERATURE)
    p /= p.sum(1, keepdims=True)
    terms = target * np.log(target / p)
    loss = _TEMPERATURE**2 * terms.sum() / batch
    gradient = _TEMPERATURE * (p * target.sum(1, keepdims=True) - target) / batch
    off = (32 + classes / 16) * float(np.finfo(dtype).eps)
    expected = {
        "loss": Expected(loss, np.asarray(off * (1 + _TEMPERATURE**2 * np.abs(terms).sum() / batch))),
        "dx": Expected(gradient, off * (np.abs(gradient) + _TEMPERATURE / batch)),
    }
    makers = {
        "pyoptim": _ours(lambda kernels, *a: kernels.kl_divergence(*a, None, _TEMPERATURE)),
        "numpy": _divergence_numpy,
        "torch": _torch(_torch_divergence),
    }
    what = f"KL divergence ({batch}, {classes}), {dtype}"
    return _loss_runs(what, chosen(makers, peers), x.astype(dtype), target.astype(dtype), expected)


def _divergence_numpy(a: _Loss) -> Competitor:
    found, t, batch = np.empty(()), a.x.dtype.type(_TEMPERATURE), len(a.x)

    def run() -> None:
        log = (a.x - a.x.max(axis=1, keepdims=True)) / t
        np.exp(log, out=a.dx)
        total = a.dx.sum(axis=1, keepdims=True)
        log -= np.log(total)
        found[...] = t * t * np.vdot(a.target, np.log(a.target) - log) / batch
        np.divide(a.dx, total, out=a.dx)
        np.subtract(a.dx, a.target, out=a.dx)
        np.multiply(a.dx, t / batch, out=a.dx)

    return Competitor(run, lambda: {"loss": found, "dx": a.dx})


def _torch_divergence(functional: Any, x: Any, target: Any) -> Any:
    log = (x / _TEMPERATURE).log_softmax(1)
    return _TEMPERATURE**2 * functional.kl_div(log, target, reduction="batchmean")


def _squared(dtype: np.dtype[Any], peers: tuple[str, ...]) -> dict[str, Run]:
    rng = np.random.default_rng(0)
    x, target = (rng.normal(size=(1000, _SQUARED // 1000)).astype(dtype).astype(np.float64) for _ in range(2))
    d, eps = x - target, float(np.finfo(dtype).eps)
    loss = np.asarray(np.mean(d * d))
    expected = {
        "loss": Expected(np.asarray(loss), np.asarray(1000 * eps * loss)),
        "dx": Expected(2 * d / d.size, 4 * eps * (np.abs(x) + np.abs(target)) / d.size),
    }
    makers = {
        "pyoptim": _ours(lambda kernels, *a: kernels.pointwise_loss("squared", *a, None, 1.0)),
        "numpy": _squared_numpy,
        "torch": _torch(lambda functional, *a: functional.mse_loss(*a)),
    }
    arrays = x.astype(dtype), target.astype(dtype)
    return _loss_runs(f"squared error, {dtype}", chosen(makers, peers), *arrays, expected)


def _squared_numpy(a: _Loss) -> Competitor:
    found = np.empty(())

    def run() -> None:
        np.subtract(a.x, a.target, out=a.dx)
        found[...] = np.vdot(a.dx, a.dx) / a.dx.size
        np.multiply(a.dx, a.dx.dtype.type(2 / a.dx.size), out=a.dx)

    return Competitor(run, lambda: {"loss": found, "dx": a.dx})


def _loss_runs(
    what: str, makers: Mapping[str, Maker], x: Array, target: Array, expected: Mapping[str, Expected]
) -> dict[str, Run]:
    """What `checked` returns for these competitors, each with arrays of its own."""
    arrays = x, target, x  # the last is written
    competitors = {who: make(_Loss(*(aligned(a, a.dtype) for a in arrays))) for who, make in makers.items()}
    return checked(what, competitors, expected)


def _ours(function: Callable[..., Any]) -> Maker:
    """A competitor that calls a loss of the backend in force, given the backend and the arrays."""

    def make(a: _Loss) -> Competitor:
        call, found = functools.partial(function, dispatch.current(), *a), np.empty(())

        def run() -> None:
            found[...] = call()

        return Competitor(run, lambda: {"loss": found, "dx": a.dx})

    return make


def _torch(function: Callable[..., Any]) -> Maker:
    """A competitor that calls a loss of PyTorch, given its functional module, outputs and targets."""

    def make(a: _Loss) -> Competitor:
        import torch

        x, target = torch.from_numpy(a.x).requires_grad_(), torch.from_numpy(a.target)
        found: dict[str, Any] = {}

        def run() -> None:
            loss = function(torch.nn.functional, x, target)
            (dx,) = torch.autograd.grad(loss, x)
            found.update(loss=loss, dx=dx)

        return Competitor(run, lambda: {name: tensor.detach().numpy() for name, tensor in found.items()})

    return make


def _loss_against_torch(row: Row) -> float | None:
    return row.faster_than("torch") if row.name.startswith(("cross-entropy", "KL")) else None


def _of_peak(row: Row) -> float | None:
    return row.of_ceiling if row.name.startswith("dense") and row.size >= 128 else None


FAMILIES = {
    "dense": Family(
        _dense_cases,
        [
            Target("dense, batch 1 to 10: times torch", 3, times("torch", _DENSE_NAMES, (1, 10))),
            Target("dense, batch 32 to 256: times torch", 1.3, times("torch", _DENSE_NAMES, (32, 128, 256))),
            Target("dense, batch 1024: times torch", 1, times("torch", _DENSE_NAMES, (1024,))),
            Target("dense, batch 128 and more: share of peak", 0.7, _of_peak),
        ],
    ),
    "losses": Family(
        _loss_cases, [Target("losses of logits and their gradients: times torch", 3, _loss_against_torch)]
    ),
}
