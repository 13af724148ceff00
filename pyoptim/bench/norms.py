"""BatchNorm and LayerNorm, forward and backward: the backend in force, NumPy, and PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Generator
from typing import Any

import numpy as np

from ..formulas.norms import NormOptions
from ..runtime import dispatch
from ..runtime.dtypes import Array
from . import libraries
from .case import Case, Family, Options, Target, times
from .layers import Competitor, Expected, Maker, aligned, checked, chosen
from .libraries import Library
from .timing import Run

_EPS = 1e-5
_CASES = [
    ("batch norm", (128, 256)), ("batch norm", (4096, 1024)), ("batch norm", (32, 64, 32, 32)),
    ("batch norm ReLU", (4096, 1024)), ("layer norm", (4096, 1024)),
]  # fmt: skip
_GPU_CASES = [
    ("batch norm", (4096, 1024)), ("batch norm", (256, 64, 56, 56)), ("batch norm ReLU", (4096, 1024)),
    ("layer norm", (4096, 1024)),
]  # fmt: skip
_RESULTS = ("y", "dx", "dgamma", "dbeta")


def _cases(options: Options) -> Generator[Case]:
    dtype = np.dtype(options.dtype)
    for kind, shape in _CASES if options.device == "cpu" else _GPU_CASES:
        # Forward reads x twice, for the statistics and for y, and writes y; backward reads x and dy twice and
        # writes dx. A row of layer norm is still in the first-level cache when it is read again.
        passes = 5 if kind == "layer norm" else 8
        size = int(np.prod(shape))
        runs = functools.partial(prepare, kind, shape, dtype, options)
        traffic = passes * size * dtype.itemsize
        name = f"{kind} {'x'.join(map(str, shape))}"
        yield Case(name, shape[0], traffic, runs, streams=shape == (4096, 1024))


def prepare(kind: str, shape: tuple[int, ...], dtype: np.dtype[Any], options: Options) -> dict[str, Run]:
    """The runs of a normalisation of this shape, checked."""
    rng = np.random.default_rng(0)
    by_row = kind == "layer norm"
    x3 = (*shape[:2], int(np.prod(shape[2:])))
    forms = x3, x3, (shape[1], 1), (shape[1], 1)
    x, dy, gamma, beta = (rng.normal(size=s).astype(dtype).astype(np.float64) for s in forms)
    axes, down = ((1, 2), (0,)) if by_row else ((0, 2), (0, 2))
    inv_std = 1 / np.sqrt(x.var(axes, keepdims=True) + _EPS)
    z = (x - x.mean(axes, keepdims=True)) * inv_std
    y = z * gamma + beta
    # A few roundings of numbers of order 1; sums of n random terms grow at most as sqrt(n).
    unit = 64 * float(np.finfo(dtype).eps)
    if kind.endswith("ReLU"):
        dy[np.abs(y) <= unit * 8] = 0  # where rounding decides the sign, and so the slope of ReLU
        dz, y = np.where(y > 0, dy, 0), np.maximum(y, 0)
    else:
        dz = dy
    g = dz * gamma
    dx = inv_std * (g - g.mean(axes, keepdims=True) - z * (g * z).mean(axes, keepdims=True))
    sums = [(dz * z).sum(down), dz.sum(down)] if not by_row else [(dz * z).sum(0)[:, 0], dz.sum(0)[:, 0]]
    values = [y, dx, *sums]
    many = np.sqrt(x.size // shape[1])
    expected = {
        name: Expected(value, unit * (scale + np.abs(value)))
        for name, value, scale in zip(_RESULTS, values, (8, 8, many, many), strict=True)
    }
    makers: dict[str, Maker] = {"pyoptim": _pyoptim, "numpy": _numpy, "torch autograd": _autograd}
    if not kind.endswith("ReLU"):
        makers["torch native"] = _native
    competitors = {}
    for who, make in chosen(makers, options.peers).items():
        library = libraries.of(who, options.device)
        given = (library.array(aligned(a, dtype)) for a in (x, dy, gamma[:, 0], beta[:, 0]))
        competitors[who] = make(library, kind, *given)
    return checked(f"{kind} {shape}, {dtype}", competitors, expected)


def _pyoptim(library: Library, kind: str, x: Any, dy: Any, gamma: Any, beta: Any) -> Competitor:
    backend, relu, dtype = dispatch.of(x), kind.endswith("ReLU"), x.dtype

    def some(shape: tuple[int, ...], value: float = 0.0) -> Any:
        return library.array(aligned(np.full(shape, value), dtype))

    out = {name: some(a.shape) for name, a in zip(_RESULTS, (x, x, gamma, gamma), strict=True)}
    y, dx, dgamma, dbeta = out.values()
    if kind == "layer norm":
        x2, dy2, y2, dx2 = (a.reshape(x.shape[:2]) for a in (x, dy, y, dx))
        mean, inv_std = some(x.shape[:1]), some(x.shape[:1])

        def run() -> None:
            backend.layer_norm_forward(x2, (gamma, beta), _EPS, y2, (mean, inv_std))
            backend.layer_norm_backward(dy2, x2, gamma, (mean, inv_std), (dx2, dgamma, dbeta))

    else:
        mean, inv_std = some(gamma.shape), some(gamma.shape)
        running = some(gamma.shape), some(gamma.shape, 1)
        options = NormOptions(eps=_EPS, relu=relu)

        def run() -> None:
            backend.norm_forward(x, (gamma, beta), running, options, y, (mean, inv_std))
            saved = mean, inv_std, True
            backend.norm_backward(dy, x, (gamma, beta), saved, relu, (dx, dgamma, dbeta))

    return Competitor(run, lambda: {name: library.read(a) for name, a in out.items()})


def _numpy(library: Library, kind: str, x: Array, dy: Array, gamma: Array, beta: Array) -> Competitor:
    axes = (1, 2) if kind == "layer norm" else (0, 2)
    relu, out = kind.endswith("ReLU"), dict[str, Array]()
    down = (0, 2)

    def run() -> None:
        inv_std = 1 / np.sqrt(x.var(axes, keepdims=True) + x.dtype.type(_EPS))
        z = (x - x.mean(axes, keepdims=True)) * inv_std
        y = z * gamma[:, None] + beta[:, None]
        dz = np.where(y > 0, dy, 0) if relu else dy
        out["y"] = np.maximum(y, 0) if relu else y
        g = dz * gamma[:, None]
        out["dx"] = inv_std * (g - g.mean(axes, keepdims=True) - z * (g * z).mean(axes, keepdims=True))
        out["dgamma"], out["dbeta"] = (dz * z).sum(down), dz.sum(down)

    return Competitor(run, lambda: out)


def _autograd(library: Library, kind: str, tx: Any, tdy: Any, weight: Any, bias: Any) -> Competitor:
    import torch

    mean, var = torch.zeros_like(weight), torch.ones_like(weight)
    wanted = [t.requires_grad_() for t in (tx, weight, bias)]
    out: dict[str, Any] = {}

    def run() -> None:
        if kind == "layer norm":
            y = torch.nn.functional.layer_norm(tx[:, :, 0], tx.shape[1:2], weight, bias, _EPS)[:, :, None]
        else:
            y = torch.nn.functional.batch_norm(tx, mean, var, weight, bias, True, 0.1, _EPS)
        if kind.endswith("ReLU"):
            y = torch.relu(y)
        out.update(zip(_RESULTS, (y, *torch.autograd.grad(y, wanted, tdy)), strict=True))

    return Competitor(run, lambda: {name: library.read(tensor) for name, tensor in out.items()})


def _native(library: Library, kind: str, tx: Any, tdy: Any, weight: Any, bias: Any) -> Competitor:
    import torch

    mean, var = torch.zeros_like(weight), torch.ones_like(weight)
    out: dict[str, Any] = {}
    aten, all_three = torch.ops.aten, [True] * 3

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def run() -> None:
        if kind == "layer norm":
            x2, shape = tx[:, :, 0], list(tx.shape[1:2])
            y, *kept = aten.native_layer_norm(x2, shape, weight, bias, _EPS)
            found = aten.native_layer_norm_backward(tdy[:, :, 0], x2, shape, *kept, weight, bias, all_three)
            out.update(zip(_RESULTS, (y[:, :, None], found[0][:, :, None], *found[1:]), strict=True))
            return
        y, *kept = aten.native_batch_norm(tx, weight, bias, mean, var, True, 0.1, _EPS)
        found = aten.native_batch_norm_backward(
            tdy, tx, weight, mean, var, *kept, True, _EPS, all_three
        )  # fmt: skip
        out.update(zip(_RESULTS, (y, *found), strict=True))

    return Competitor(run, lambda: {name: library.read(tensor) for name, tensor in out.items()})


FAMILY = Family(
    _cases,
    [
        *(
            Target(f"{name}: times torch", bound, times("torch", [name]))
            for name, bound in (
                ("batch norm 128x256", 4),
                ("batch norm 4096x1024", 2.2),
                ("batch norm 32x64x32x32", 2),
            )
        ),
        Target(
            "batch norm 4096x1024: share of the bandwidth",
            0.7,
            lambda row: row.of_ceiling if row.name == "batch norm 4096x1024" else None,
        ),
    ],
)

GPU_FAMILY = Family(
    _cases,
    [
        Target(f"{name}: times torch", 1.2, times("torch", [name]))
        for name in ("batch norm 4096x1024", "batch norm 256x64x56x56")
    ],
)
