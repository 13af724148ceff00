"""Activations, forward and backward: the backend in force, NumPy, and PyTorch where it is installed."""

from __future__ import annotations

import functools
from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np

from ..backends.reference import layers as reference
from ..formulas.activations import ACTIVATIONS
from ..runtime import dispatch
from ..runtime.dtypes import Array
from .case import Case, Family, Options, Target, times
from .layers import Competitor, Expected, Maker, aligned, checked, chosen
from .timing import Run

_SIZE = 1_000_000
_KINDS = tuple(kind for kind in ACTIVATIONS if kind != "identity")


class _Arrays(NamedTuple):
    x: Array
    dy: Array
    y: Array
    dx: Array

    def results(self) -> dict[str, Array]:
        return {"y": self.y, "dx": self.dx}


def _cases(options: Options) -> Generator[Case]:
    dtype = np.dtype(options.dtype)
    for kind in _KINDS:
        runs = functools.partial(prepare, kind, _SIZE, dtype, options.peers)
        yield Case(kind, _SIZE, 5 * _SIZE * dtype.itemsize, runs)


def prepare(kind: str, size: int, dtype: np.dtype[Any], peers: tuple[str, ...]) -> dict[str, Run]:
    """The runs of an activation of this many elements, checked."""
    rng = np.random.default_rng(0)
    x, dy = (rng.normal(0, std, size=size).astype(dtype).astype(np.float64) for std in (2, 1))
    a, b = _numbers(kind)
    y = ACTIVATIONS[kind].value(x, a, b)
    dx = dy * ACTIVATIONS[kind].slope(x if ACTIVATIONS[kind].keeps_input else y, a, b)
    # A dozen roundings; for arguments of this size each is amplified by less than 10.
    eps = 128 * float(np.finfo(dtype).eps)
    expected = {"y": Expected(y, eps * (1 + np.abs(y))), "dx": Expected(dx, eps * (1 + np.abs(dx)))}
    makers: dict[str, Maker] = {"pyoptim": functools.partial(_kernels, dispatch.current())}
    makers |= {"numpy": functools.partial(_kernels, reference), "torch autograd": _autograd}
    competitors = {
        who: make(kind, _Arrays(*(aligned(v, dtype) for v in (x, dy, x, x))))
        for who, make in chosen(makers, peers).items()
    }
    return checked(f"{kind}, {dtype}", competitors, expected)


def _numbers(kind: str) -> tuple[float, float]:
    a, b = (*ACTIVATIONS[kind].defaults.values(), 0.0, 0.0)[:2]
    return a, b


def _kernels(backend: Any, kind: str, v: _Arrays) -> Competitor:
    a, b = _numbers(kind)
    kept = v.x if ACTIVATIONS[kind].keeps_input else v.y

    def run() -> None:
        backend.activation_forward(kind, v.x, v.y, a, b)
        backend.activation_backward(kind, v.dy, kept, v.dx, a, b)

    return Competitor(run, v.results)


def _autograd(kind: str, v: _Arrays) -> Competitor:
    import torch

    functional = torch.nn.functional
    theirs = getattr(functional, kind, None) or functools.partial(functional.gelu, approximate="tanh")
    x, dy = torch.from_numpy(v.x).requires_grad_(), torch.from_numpy(v.dy)
    found: dict[str, Any] = {}

    def run() -> None:
        y = theirs(x)
        found.update(y=y, dx=torch.autograd.grad(y, x, dy)[0])

    return Competitor(run, lambda: {name: tensor.detach().numpy() for name, tensor in found.items()})


FAMILY = Family(_cases, [Target("activations: times torch", 1.5, times("torch", _KINDS))])
