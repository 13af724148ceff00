"""Small calls of `pyoptim.ops`, each beside its backend's function alone: what checks and results cost."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from .. import ops
from ..runtime import dispatch
from ..runtime.dtypes import Array
from .case import Case, Family, Options, Row, Target
from .timing import Run

_SHAPE = (4, 8)
_Call = Callable[[], object]


def _calls(dtype: np.dtype[Any]) -> dict[str, _Call]:
    """A call of each function, with arrays of a few elements."""
    rng = np.random.default_rng(0)

    def some(*shape: int) -> Array:
        return np.asarray(rng.uniform(0.1, 1, shape), dtype)

    x, dy, weight, bias, dz = some(*_SHAPE), some(*_SHAPE), some(6, 8), some(6), some(4, 6)
    gamma, beta, labels = some(8), some(8), np.arange(4)
    norm = x, gamma, beta, some(8), some(8)
    _, of_batch = ops.batch_norm_forward(*norm)
    _, of_rows = ops.layer_norm_forward(x, 8, gamma, beta)
    return {
        "activation forward": lambda: ops.activation_forward(x, "relu"),
        "activation backward": lambda: ops.activation_backward(dy, x, "relu"),
        "softmax forward": lambda: ops.softmax_forward(x),
        "softmax backward": lambda: ops.softmax_backward(dy, x),
        "dense forward": lambda: ops.dense_forward(x, weight, bias, "relu"),
        "dense backward": lambda: ops.dense_backward(dz, x, weight, dz, "relu"),
        "dropout forward": lambda: ops.dropout_forward(x, 0.5, 0, 1),
        "dropout backward": lambda: ops.dropout_backward(dy, 0.5, 0, 1),
        "gaussian noise": lambda: ops.gaussian_noise(x, 0.1, 0, 1),
        "batch norm forward": lambda: ops.batch_norm_forward(*norm),
        "batch norm backward": lambda: ops.batch_norm_backward(dy, x, gamma, of_batch),
        "layer norm forward": lambda: ops.layer_norm_forward(x, 8, gamma, beta),
        "layer norm backward": lambda: ops.layer_norm_backward(dy, x, 8, gamma, of_rows),
        "cross-entropy": lambda: ops.softmax_cross_entropy(x, labels),
        "KL divergence": lambda: ops.kl_divergence(x, dy),
        "pointwise loss": lambda: ops.pointwise_loss(x, dy, "binary"),
    }


class _Recorder:
    """A backend that notes what is asked of another."""

    def __init__(self, backend: Any) -> None:
        self._backend, self.noted = backend, list[_Call]()

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._backend, name)

        def noting(*arguments: Any) -> Any:
            self.noted.append(functools.partial(function, *arguments))
            return function(*arguments)

        return noting


def _prepare(name: str, dtype: np.dtype[Any]) -> dict[str, Run]:
    call = _calls(dtype)[name]
    recorder = _Recorder(dispatch.current())
    token = dispatch._chosen.set(recorder)
    try:
        call()
    finally:
        dispatch._chosen.reset(token)
    return {"pyoptim": call, "kernel": recorder.noted[-1]}  # what came before were checks


def _cases(options: Options) -> Generator[Case]:
    dtype = np.dtype(options.dtype)
    for name in _calls(dtype):
        size = int(np.prod(_SHAPE))
        yield Case(f"call: {name}", size, 2 * size * dtype.itemsize, functools.partial(_prepare, name, dtype))


def _share(row: Row) -> float | None:
    """2 µs as a multiple of what the call adds to the kernel."""
    if "kernel" not in row.seconds:
        return None
    return 2e-6 / max(row.seconds["pyoptim"] - row.seconds["kernel"], 1e-9)


FAMILY = Family(_cases, [Target("functions of ops: 2 us over what a call adds to its kernel", 1, _share)])
