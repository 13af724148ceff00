"""Norms and clipping of gradients in a GPU's memory, on the gradients' own stream.

`pyoptim.gradients` has the same functions for the processor's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import gpu, gpu_checks, gpu_views, operand, tensors
from ..arrays.gpu import DeviceArray
from ..arrays.gpu_checks import check_parameters
from ..arrays.queue import Queue
from ..arrays.tensors import tell_autograd
from ..backends.gpu.constants import CHUNK, TYPES, blocks_of
from ..backends.gpu.steps import root_of
from ..runtime import dispatch
from . import either_memory

__all__ = ["check_parameters", "clamp", "is_finite", "norm", "scale", "viewed"]


def viewed(named: Sequence[tuple[str, Any]], *, written: bool) -> list[tuple[str, Any]]:
    """Return views of arrays on one GPU; arrays to be written must be writeable, others may be copied."""
    streams: dict[int, int] = {}
    views: list[Any] = []
    for name, g in named:
        if gpu_views.is_on_gpu(g):
            g = gpu_views.view(name, g if written else gpu_views.made_contiguous(g), streams)
        views.append(g)
    names = [name for name, _ in named]
    gpu_checks.check_together(names, views, written)
    return list(zip(names, views, strict=True))


def norm(arrays: Sequence[DeviceArray]) -> float:
    """Return the norm of all as one vector, with the bits of ``max_grad_norm``; the host waits for it."""
    with either_memory.ordered(arrays) as queue:
        # By dtype, then in order, as the step of one rule has them.
        dtypes = dict.fromkeys(a.dtype for a in arrays)
        in_order = [a for dtype in dtypes for a in arrays if a.dtype == dtype and a.size]
        counts = [blocks_of(a.size, CHUNK) for a in in_order]
        partial, out = (gpu.empty(queue, (n,), np.float64) for n in (sum(counts), 1))
        at = partial.address
        for a, blocks in zip(in_order, counts, strict=True):
            queue.launch(f"chunk_squares<{TYPES[a.dtype]}>", blocks, a.size, a.address, at)
            at += 8 * blocks
        queue.launch("total_squares<double>", 1, partial.size, partial.address, 1.0, out.address)
        return root_of(float(out.numpy()[0]))


def is_finite(array: DeviceArray) -> bool:
    """Whether all elements are finite; the host waits for it."""
    with either_memory.ordered([array]) as queue:
        return bool(np.isfinite(array.download(queue)).all())


def scale(arrays: Sequence[DeviceArray], factor: float) -> None:
    """Multiply the arrays by a factor, in place."""
    with either_memory.ordered(arrays) as queue:
        for g in _operands(arrays, queue):
            dispatch.of(g).affine(g, factor, -0.0, g)  # adding -0 changes no bit
    _tell_autograd(arrays)


def clamp(arrays: Sequence[DeviceArray], limit: float) -> None:
    """Clamp the arrays to ``[-limit, limit]``, in place."""
    with either_memory.ordered(arrays) as queue:
        for g in _operands(arrays, queue):
            with np.errstate(over="ignore"):  # beyond float32 is infinity
                bound = float(g.dtype.type(limit))
            dispatch.of(g).activation_forward("hardtanh", g, g, -bound, bound)
    _tell_autograd(arrays)


def _operands(arrays: Sequence[DeviceArray], queue: Queue) -> list[Any]:
    return [operand.Operand.of(array, queue, None) for array in arrays if array.size]


def _tell_autograd(arrays: Sequence[DeviceArray]) -> None:
    tell_autograd([a.owner for a in arrays if tensors.is_tensor(a.owner)])
