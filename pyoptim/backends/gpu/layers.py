"""Layers and losses on arrays in a GPU's memory: the functions that `reference` defines.

Arrays are `pyoptim.arrays.gpu.DeviceArray`s of one queue, on which kernels are queued: nothing waits.
Losses are arrays of no dimension for the same reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from ...arrays.gpu import DeviceArray, empty
from ...arrays.memory import as_channels
from ...arrays.queue import Queue
from ...formulas.losses import POINTWISE
from ...formulas.norms import NormOptions
from ...runtime import dispatch
from ..reference import FUNCTIONS
from .constants import CHUNK, ELEMENTS, PART_ROWS, THREADS, TYPES, WARP, WARPS, blocks_of
from .products import ACTIVATION_NAMES, is_own, product
from .steps import COLUMN_SPACE, host_functions

__all__ = ["add", "affine", *FUNCTIONS]

_Pair = tuple[DeviceArray | None, DeviceArray | None]
_Gradients = tuple[DeviceArray | None, DeviceArray, DeviceArray]
_POINTWISE = tuple(POINTWISE)  # kernels know a loss by its index in this tuple


class _Launch:
    """Queues the kernels that are compiled for an array's dtype."""

    def __init__(self, function: str, array: Any) -> None:
        if not isinstance(array, DeviceArray):
            host_functions(dispatch.for_device().name)(function)  # raises
        assert array.queue is not None
        self.queue: Queue = array.queue
        self._type = TYPES[array.dtype]

    def __call__(self, kernel: str, blocks: int, *arguments: Any) -> None:
        values = [value.address if isinstance(value, DeviceArray) else value for value in arguments]
        self.queue.launch(f"{kernel}<{self._type}>", blocks, *values)

    def scratch(self, *shape: int, dtype: Any = np.float64) -> DeviceArray:
        return empty(self.queue, shape, dtype)

    def total(self, partial: DeviceArray, scale: float, divisor: DeviceArray | None = None) -> DeviceArray:
        """Return the sum of all partial sums, times ``scale``, divided by ``divisor`` if that is given."""
        out = self.scratch()
        by = None if divisor is None else divisor.address
        with self.queue.aside():
            self.queue.launch("total<double>", 1, partial.size, partial.address, scale, by, out.address)
        return out


def dense_forward(
    x: DeviceArray, weight: DeviceArray, bias: DeviceArray | None, activation: str | None, y: DeviceArray
) -> None:
    launch = _Launch("dense_forward", x)
    product(launch.queue, (x, False), (weight, True), y, bias, activation or "identity")


def dense_backward(
    dy: DeviceArray,
    x: DeviceArray,
    weight: DeviceArray,
    y: DeviceArray | None,
    activation: str | None,
    dx: DeviceArray | None,
    dweight: DeviceArray | None,
    dbias: DeviceArray | None,
) -> None:
    launch = _Launch("dense_backward", dy)
    queue, (batch, inside), outside = launch.queue, x.shape, weight.shape[0]
    dz, through = dy, None
    if activation is not None and y is not None:
        sizes = ((dweight, (outside, inside, batch)), (dx, (batch, inside, outside)))
        if activation == "relu" and all(out is None or is_own(queue, dy.dtype, *of) for out, of in sizes):
            through = y  # what reads dz computes it
        else:
            dz = launch.scratch(*dy.shape, dtype=dy.dtype)
            activation_backward(activation, dy, y, dz)
    if dbias is not None:
        with queue.aside():
            _column_sums(launch, dz, through, dbias)
    if dweight is not None:
        with queue.aside() if dx is not None else nullcontext():
            product(queue, (dz, True), (x, False), dweight, through=through)
    if dx is not None:  # dx goes first, since the earlier layers wait for it
        product(queue, (dz, False), (weight, False), dx, through=through)


def _column_sums(launch: _Launch, x: DeviceArray, through: DeviceArray | None, out: DeviceArray) -> None:
    """Queue the sums of x's columns, or of those of the gradient through ReLU with these outputs."""
    rows, cols = x.shape
    parts, tiles = blocks_of(rows, PART_ROWS), blocks_of(cols, WARP)
    if parts <= 1:
        launch("column_sum", tiles, rows, cols, x, through, None, out)
        return
    partial = launch.scratch(parts, cols)
    launch("column_sum", parts * tiles, rows, cols, x, through, partial, None)
    launch("sum_parts", blocks_of(cols, THREADS), parts, cols, partial, out)


def activation_forward(kind: str, x: DeviceArray, y: DeviceArray, a: float = 0.0, b: float = 0.0) -> None:
    launch = _Launch("activation_forward", x)
    launch(
        "activation_forward", blocks_of(x.size, ELEMENTS), ACTIVATION_NAMES.index(kind), a, b, x.size, x, y
    )


def activation_backward(
    kind: str, dy: DeviceArray, kept: DeviceArray, dx: DeviceArray, a: float = 0.0, b: float = 0.0
) -> None:
    launch = _Launch("activation_backward", dy)
    index = ACTIVATION_NAMES.index(kind)
    launch("activation_backward", blocks_of(dy.size, ELEMENTS), index, a, b, dy.size, dy, kept, dx)


def softmax_forward(log: bool, x: DeviceArray, y: DeviceArray) -> None:
    launch = _Launch("softmax_forward", x)
    launch("softmax_forward", blocks_of(x.shape[0], WARPS), log, *x.shape, x, y)


def softmax_backward(log: bool, dy: DeviceArray, y: DeviceArray, dx: DeviceArray) -> None:
    launch = _Launch("softmax_backward", dy)
    launch("softmax_backward", blocks_of(dy.shape[0], WARPS), log, *dy.shape, dy, y, dx)


def softmax_cross_entropy(
    logits: DeviceArray,
    target: DeviceArray,
    dlogits: DeviceArray | None,
    sample_weight: DeviceArray | None,
    class_weight: DeviceArray | None,
    smoothing: float,
) -> DeviceArray:
    """Do what the reference does; labels are not checked, and one that is not a class makes the loss NaN."""
    launch = _Launch("softmax_cross_entropy", logits)
    labels, shares = (target, None) if target.ndim == 1 else (None, target)
    divisor = None
    if labels is not None and class_weight is not None:
        divisor = label_weights(labels, class_weight)
    weights, options = (sample_weight, class_weight), (smoothing, 1.0, False)
    return _cross_entropy(launch, logits, (labels, shares), weights, options, divisor, dlogits)


def label_weights(labels: DeviceArray, class_weight: DeviceArray) -> DeviceArray:
    launch = _Launch("label_weights", class_weight)
    total = launch.scratch()
    launch("label_weights", 1, labels.size, class_weight.size, labels, class_weight, total)
    return total


def _cross_entropy(
    launch: _Launch,
    logits: DeviceArray,
    target: tuple[DeviceArray | None, DeviceArray | None],
    weights: tuple[DeviceArray | None, DeviceArray | None],
    options: tuple[float, float, bool],
    divisor: DeviceArray | None,
    dlogits: DeviceArray | None,
) -> DeviceArray:
    """Return the mean loss, and write its gradient into dlogits unless that is None.

    ``target`` is (labels, shares), one of them None; ``weights`` is (sample weights, class weights);
    ``options`` is (smoothing, temperature, divergence). Without a divisor the sum is divided by the batch.
    """
    batch = logits.shape[0]
    partial = launch.scratch(blocks_of(batch, WARPS))
    launch("cross_entropy", partial.size, *logits.shape, logits, *target, *weights, *options, float(batch),
           divisor, dlogits, partial)  # fmt: skip
    return launch.total(partial, 1.0 if divisor is not None else 1.0 / batch, divisor)


def kl_divergence(
    logits: DeviceArray,
    target: DeviceArray,
    dlogits: DeviceArray | None,
    sample_weight: DeviceArray | None,
    temperature: float,
) -> DeviceArray:
    launch, options = _Launch("kl_divergence", logits), (0.0, temperature, True)
    return _cross_entropy(launch, logits, (None, target), (sample_weight, None), options, None, dlogits)


def pointwise_loss(
    kind: str,
    prediction: DeviceArray,
    target: DeviceArray,
    dprediction: DeviceArray | None,
    sample_weight: DeviceArray | None,
    parameter: float | DeviceArray,
) -> DeviceArray:
    launch = _Launch("pointwise_loss", prediction)
    a, of_column = (1.0, parameter) if isinstance(parameter, DeviceArray) else (float(parameter), None)
    partial = launch.scratch(blocks_of(prediction.size, CHUNK))
    index, shape = _POINTWISE.index(kind), prediction.shape
    launch("pointwise_loss", partial.size, index, a, of_column, *shape, prediction, target, sample_weight,
           dprediction, partial)  # fmt: skip
    return launch.total(partial, 1.0 / prediction.size)


def penalty(
    parameters: DeviceArray, gradients: DeviceArray, runs: Sequence[tuple[int, int]], l2: float, l1: float
) -> DeviceArray:
    launch = _Launch("penalty", parameters)
    blocks = [blocks_of(end - begin, CHUNK) for begin, end in runs]
    left = partial = launch.scratch(sum(blocks))
    launch.queue.join()  # the gradients may have been captured on a side stream
    for (begin, end), own in zip(runs, blocks, strict=True):
        with launch.queue.aside():
            launch("penalty", own, end - begin, l2, l1, parameters[begin:end], gradients[begin:end], left)
        left = left[own:]
    launch.queue.join()
    return launch.total(partial, 1.0)


def add(a: DeviceArray, b: DeviceArray, y: DeviceArray) -> None:
    """Compute y = a + b."""
    _Launch("add", a)("add", blocks_of(a.size, ELEMENTS), a.size, a, b, y)


def affine(x: DeviceArray, scale: float, shift: float, y: DeviceArray) -> None:
    """Compute y = scale * x + shift."""
    _Launch("affine", x)("affine", blocks_of(x.size, ELEMENTS), x.size, scale, shift, x, y)


def dropout(x: DeviceArray, p: float, seed: int, step: int, y: DeviceArray) -> None:
    launch = _Launch("dropout", x)
    threshold = min(round(p * 2**32), 2**32 - 1)
    position, scale = launch.queue.position, 1 / (1 - p)
    launch("dropout", _random_blocks(x.size), seed, step, position, x.size, threshold, scale, x, y)


def gaussian_noise(x: DeviceArray, std: float, seed: int, step: int, y: DeviceArray) -> None:
    launch = _Launch("gaussian_noise", x)
    position = launch.queue.position
    launch("gaussian_noise", _random_blocks(x.size), seed, step, position, x.size, std, x, y)


def _random_blocks(n: int) -> int:
    """Return how many blocks draw n numbers: each thread has a counter, 16 of which serve 64 positions."""
    return blocks_of(blocks_of(n, 64) * 16, THREADS)


def _norm_plan(batch: int, channels: int, space: int) -> tuple[int, int]:
    """Return how many blocks and partial sums there are, as NormShape of norm_kernels.cuh computes them."""
    if space < COLUMN_SPACE:
        parts, cols = blocks_of(batch, PART_ROWS), channels * space
        return parts * blocks_of(cols, WARP), parts * cols
    blocks = batch * channels * blocks_of(space, CHUNK)
    return blocks, blocks


def norm_forward(
    x: DeviceArray,
    affine: _Pair,
    running: _Pair,
    options: NormOptions,
    y: DeviceArray,
    saved: tuple[DeviceArray, DeviceArray],
) -> None:
    """Normalise a batch; a momentum below 0 stands for 1/(steps repeated - momentum)."""
    launch = _Launch("norm_forward", x)
    shape, (running_mean, running_var) = as_channels(x).shape, running
    momentum, eps, training, unbiased, relu = options
    blocks, sums = _norm_plan(*shape)
    partial = None
    if training or running_mean is None:
        partial = launch.scratch(2, sums)
        launch("norm_moments", blocks, *shape, x, partial)
    launch("norm_statistics", blocks_of(shape[1], WARPS), *shape, x, partial, momentum,
           launch.queue.position, eps, unbiased, running_mean, running_var, *saved)  # fmt: skip
    launch("norm_apply", blocks, *shape, x, *affine, *saved, relu, y)


def norm_backward(
    dy: DeviceArray,
    x: DeviceArray,
    affine: _Pair,
    saved: tuple[DeviceArray, DeviceArray, bool],
    relu: bool,
    gradients: _Gradients,
) -> None:
    launch = _Launch("norm_backward", dy)
    (gamma, _), (mean, inv_std, of_this_batch), (dx, *sums_of) = affine, saved, gradients
    shape = as_channels(x).shape
    blocks, sums = _norm_plan(*shape)
    partial, slope = launch.scratch(2, sums), launch.scratch(2, shape[1], dtype=x.dtype)
    launch("norm_products", blocks, *shape, dy, x, *affine, mean, inv_std, relu, partial)
    launch("norm_slopes", blocks_of(shape[1], WARPS), *shape, partial, gamma, inv_std, *sums_of, slope)
    if dx is not None:
        through = slope if of_this_batch else None
        launch("norm_gradient", blocks, *shape, dy, x, *affine, mean, inv_std, through, relu, dx)


def layer_norm_forward(
    x: DeviceArray, affine: _Pair, eps: float, y: DeviceArray, saved: tuple[DeviceArray, DeviceArray]
) -> None:
    launch = _Launch("layer_norm_forward", x)
    launch("layer_norm", blocks_of(x.shape[0], WARPS), *x.shape, x, *affine, eps, y, *saved)


def layer_norm_backward(
    dy: DeviceArray,
    x: DeviceArray,
    gamma: DeviceArray | None,
    saved: tuple[DeviceArray, DeviceArray],
    gradients: _Gradients,
) -> None:
    launch = _Launch("layer_norm_backward", dy)
    (rows, cols), (dx, dgamma, dbeta) = x.shape, gradients
    parts = blocks_of(rows, PART_ROWS)
    with launch.queue.aside() if dx is not None else nullcontext():
        partial = launch.scratch(2, parts, cols)
        blocks = parts * blocks_of(cols, WARP)
        launch("layer_norm_products", blocks, rows, cols, dy, x, *saved, partial)
        for part, out in ((partial[:1], dgamma), (partial[1:], dbeta)):
            launch("sum_parts", blocks_of(cols, THREADS), parts, cols, part, out)
    if dx is not None:
        launch("layer_norm_gradient", blocks_of(rows, WARPS), rows, cols, dy, x, gamma, *saved, dx)
