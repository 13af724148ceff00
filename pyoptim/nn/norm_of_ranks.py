"""Batch normalisation by the statistics of a batch whose parts several processes have.

Each process calls the same functions at the same time. ``sum_up`` returns the sum over all of them of a
float64 array, with the same bits on each; a part may be empty.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..formulas.norms import NormOptions, running_statistic
from ..ops.batch_norm import SavedNorm, norm_forward
from ..runtime import dispatch
from ..runtime.dtypes import Array

SumUp = Callable[[Array], Array]


class Saved(NamedTuple):
    """What the backward pass needs of the forward pass."""

    norm: SavedNorm
    values: float  # how many a channel has on all processes


def forward(
    x: Array,
    affine: tuple[Array | None, Array | None],
    running: tuple[Array | None, Array | None],
    options: NormOptions,
    y: Array,
    sum_up: SumUp,
) -> Saved:
    """As `ops.batch_norm.norm_forward` in training, by the statistics of all processes.

    First the counts and the sums are added up, then the squares of the distances from the mean of all: where
    the mean is large, the square of the mean would swallow the variance.
    """
    sums = sum_up(np.array([x[:, 0].size, *x.sum(axis=(0, 2), dtype=np.float64)]))
    count = float(sums[0])
    if count < 2:
        raise ValueError(
            f"x has {count:.0f} values per channel on all ranks, expected more than 1 to take statistics of"
        )
    mean = sums[1:] / count
    squares = sum_up(np.square(x - mean[:, None]).sum(axis=(0, 2)))
    var = squares / count
    own: Any = mean.astype(x.dtype), var.astype(x.dtype)
    norm = norm_forward(x, affine, own, options._replace(training=False), y)
    new = mean, squares / (count - 1) if options.unbiased else var
    for old, value in zip(running, new, strict=True):
        if old is not None:
            old[...] = running_statistic(old.astype(np.float64), value, options.momentum)
    return Saved(norm, count)


def backward(
    dy: Array,
    x: Array,
    affine: tuple[Array | None, Array | None],
    saved: Saved,
    relu: bool,
    outputs: tuple[Array | None, Array, Array],
    sum_up: SumUp,
) -> None:
    """Write dx through the statistics of all processes; the other gradients are those of the own part."""
    (mean, inv_std, _), values = saved
    dispatch.of(dy).norm_backward(dy, x, affine, saved.norm, relu, outputs)  # as if these were constants
    dx, dgamma, dbeta = outputs
    if dx is None:
        return
    scale = inv_std.astype(np.float64) / values
    if affine[0] is not None:
        scale *= affine[0]
    of_beta, of_gamma = scale * sum_up(np.array([dbeta, dgamma], np.float64))
    dx -= (x - mean[:, None]) * (inv_std * of_gamma)[:, None] + of_beta[:, None]
