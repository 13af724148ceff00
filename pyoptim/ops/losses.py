"""Losses on arrays: arguments are checked here, then the backend in force computes them."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np

from ..arrays.checks import as_numpy, check_finite, check_float_array, check_like, is_within, refuse_where
from ..arrays.fitting import fitting
from ..arrays.gpu import DeviceArray
from ..arrays.memory import constant, empty, empty_like
from ..arrays.operand import Operand
from ..formulas.losses import POINTWISE
from ..runtime import dispatch
from ..runtime.dtypes import Array
from ..runtime.numbers import POSITIVE, SHARE, check_name
from .either_memory import for_either_memory

_FLOAT64, _INT64 = np.dtype(np.float64), np.dtype(np.int64)
_LABELS = fitting("nc, n<c, c+?, n+? -> nc")
_SHARES = fitting("nc, nc+, c+?, n+? -> nc")
_POINTWISE = fitting("nS, nS, n+? -> nS")


@for_either_memory
def softmax_cross_entropy(
    logits: Array,
    labels: Array,
    *,
    class_weight: Any = None,
    label_smoothing: float = 0.0,
    sample_weight: Any = None,
) -> tuple[float, Array]:
    """The mean over the batch of ``-sum(target * log softmax(logits))``, and its gradient.

    As `torch.nn.functional.cross_entropy`, and with its smoothing: (1 - label_smoothing) of the target
    and label_smoothing/classes of every class.

    Parameters
    ----------
    logits : array (batch, classes)
    labels : integer or bool array (batch,), each in [0, classes), or float array (batch, classes)
        The latter is each class's share of the target, >= 0; usually a row sums to 1. Labels in a GPU's
        memory are read in place where they are int64, and converted by the processor else.
    class_weight : array (classes,), optional
        Multiplies each class's term. With integer labels the mean is the weighted one: the sum is divided
        by that of the labels' weights, not by the batch. Where these are all 0, so are the loss and its
        gradient, also with label_smoothing.
    label_smoothing : float in [0, 1], default 0
    sample_weight : array (batch,), optional
        Multiplies each example's loss; the divisor stays the same.

    Returns
    -------
    loss : float
    dlogits : array (batch, classes)

    Raises
    ------
    TypeError, ValueError
        A dtype or a shape does not match, an empty batch, a label out of range, or a negative weight.
    """
    target: Any = labels
    dlogits = _LABELS(logits, target, class_weight, sample_weight)
    if dlogits is None and is_soft(labels):
        dlogits = _SHARES(logits, target, class_weight, sample_weight)
    elif dlogits is None and type(labels) is np.ndarray and labels.dtype.kind in "iub":
        target = labels.astype(np.int64)  # a uint64 beyond int64 is negative
        dlogits = _LABELS(logits, target, class_weight, sample_weight)
    if dlogits is None:
        logits = check_float_array("logits", logits, ndim=2)
        batch, classes = logits.shape
        if is_soft(labels):
            target = check_shares("labels", labels, (batch, classes), logits.dtype)
        else:
            target = check_labels("labels", labels, batch, classes)
        class_weight = check_weights("class_weight", class_weight, classes, logits.dtype)
        sample_weight = check_weights("sample_weight", sample_weight, batch, logits.dtype)
        dlogits = empty_like(logits)
    if type(label_smoothing) is not float or not 0 <= label_smoothing <= 1:
        label_smoothing = SHARE.number("label_smoothing", label_smoothing)
    value = dispatch.of(logits).softmax_cross_entropy(
        logits, target, dlogits, sample_weight, class_weight, label_smoothing
    )
    return float(value), dlogits


@for_either_memory
def pointwise_loss(
    prediction: Array,
    target: Array,
    kind: str = "squared",
    *,
    delta: float = 1.0,
    pos_weight: Any = None,
    sample_weight: Any = None,
) -> tuple[float, Array]:
    """The mean over all elements of a loss of each, and its gradient; as PyTorch's of these names.

    Parameters
    ----------
    prediction, target : arrays of one shape and dtype
        The first dimension is the batch.
    kind : str
        Such as "squared" for ``(x - t)^2``, "absolute" for ``|x - t|``, "huber" for ``d^2/2`` up to
        ``|d| = delta`` and ``delta (|d| - delta/2)`` beyond, "binary" for the cross-entropy of the logit x
        and t in [0, 1], "hinge" for ``max(0, 1 - t x)`` with t = -1 or 1, "poisson" for
        ``exp(x) - t x + t log t - t`` with t >= 0. An unknown name is answered by a
        list of all.
    delta : float > 0, default 1
    pos_weight : float or array (last dimension of prediction,), optional
        What "binary" multiplies the term of ``t`` with.
    sample_weight : array (batch,), optional
        Multiplies each example's loss; the divisor stays the number of elements.

    Returns
    -------
    loss : float
    dprediction : array like prediction

    Raises
    ------
    TypeError, ValueError
        A dtype or a shape does not match, there are no elements, or a value that cannot be.
    """
    dprediction = _POINTWISE(prediction, target, sample_weight)
    if dprediction is None:
        prediction = check_float_array("prediction", prediction)
        target = check_like("target", target, prediction.shape, prediction.dtype, " as prediction")
        if prediction.size == 0:
            raise ValueError("prediction is empty, expected at least one element")
        batch = prediction.shape[0] if prediction.ndim else 1
        sample_weight = check_weights("sample_weight", sample_weight, batch, prediction.dtype)
        dprediction = empty_like(prediction)
    if type(kind) is not str or kind not in POINTWISE:
        check_name("kind", kind, POINTWISE)
    loss = POINTWISE[kind]
    check_pointwise_target("target", target, kind)
    if type(delta) is not float or not 0 < delta < math.inf:
        delta = POSITIVE.number("delta", delta)
    parameter: Any = 1.0
    if loss.parameter == "delta":
        parameter = delta
    elif pos_weight is not None and loss.parameter == "pos_weight":
        columns = prediction.shape[-1] if prediction.ndim > 1 else 1
        parameter = check_pos_weight(pos_weight, columns, prediction.dtype)
    value = run_pointwise(kind, prediction, target, dprediction, sample_weight, parameter)
    return float(value), dprediction


def run_pointwise(
    kind: str, prediction: Array, target: Array, dprediction: Array | None, rows: Array | None, parameter: Any
) -> float:
    """`pointwise_loss` on checked arrays; parameter is a number, or an array along the last dimension."""
    if not isinstance(parameter, (float, int)):  # a union of types would be made in every call
        if prediction.ndim > 2:
            parameter = _tiled(parameter, math.prod(prediction.shape[1:-1]))
        parameter = constant(parameter, prediction)
    gradient = dprediction
    if prediction.ndim != 2:
        shape = (prediction.shape[0] if prediction.ndim else 1, -1)
        prediction, target = prediction.reshape(shape), target.reshape(shape)
        gradient = None if dprediction is None else dprediction.reshape(shape)
    value: float = dispatch.of(prediction).pointwise_loss(kind, prediction, target, gradient, rows, parameter)
    return value


def _tiled(row: Any, times: int) -> Any:
    """A vector of ``times`` copies of ``row``, one after the other."""
    if isinstance(row, np.ndarray):
        return np.tile(row, times)
    tiled, done = empty((times, row.size), row), min(1, times)
    tiled[:done][...] = row.reshape(1, -1)[:done]
    while done < times:
        more = min(done, times - done)
        tiled[done : done + more][...] = tiled[:more]
        done += more
    return tiled.reshape(-1)


@for_either_memory
def kl_divergence(
    logits: Array, target: Array, *, temperature: float = 1.0, sample_weight: Any = None
) -> tuple[float, Array]:
    """The mean over the batch of ``T^2 sum(target log(target / softmax(logits/T)))``, and its gradient.

    Distillation (Hinton, Vinyals & Dean 2015): the factor keeps gradients of one size for every
    temperature T. With T = 1, `torch.nn.functional.kl_div` of log-probabilities with "batchmean".

    Parameters
    ----------
    logits : array (batch, classes)
    target : array (batch, classes)
        The teacher's probabilities, at the same temperature. Those of 0 cost nothing.
    temperature : float > 0, default 1
    sample_weight : array (batch,), optional
        Multiplies each example's loss; the divisor stays the batch.

    Returns
    -------
    loss : float
    dlogits : array (batch, classes)

    Raises
    ------
    TypeError, ValueError
        A dtype or a shape does not match, an empty batch, or a value that cannot be.
    """
    dlogits = _SHARES(logits, target, None, sample_weight)
    if dlogits is None:
        logits = check_float_array("logits", logits, ndim=2)
        target = check_shares("target", target, logits.shape, logits.dtype)
        sample_weight = check_weights("sample_weight", sample_weight, len(logits), logits.dtype)
        dlogits = empty_like(logits)
    if type(temperature) is not float or not 0 < temperature < math.inf:
        temperature = POSITIVE.number("temperature", temperature)
    value = dispatch.of(logits).kl_divergence(logits, target, dlogits, sample_weight, temperature)
    return float(value), dlogits


def is_soft(target: Any) -> bool:
    """Whether a target of a cross-entropy is shares of the classes, not labels."""
    return isinstance(target, (np.ndarray, DeviceArray)) and target.ndim == 2 and target.dtype.kind == "f"


def check_labels(name: str, labels: Any, batch: int, classes: int) -> Array:
    """Class indices as contiguous int64, bools as 0 or 1; in a GPU's memory only their shape is looked at."""
    on_gpu = isinstance(labels, Operand)
    labels = labels if on_gpu else as_numpy(name, labels)
    if labels.dtype.kind not in "iub":
        raise TypeError(f"{name} has dtype {labels.dtype}, expected integers or bool")
    if labels.shape != (batch,):
        raise ValueError(f"{name} has shape {labels.shape}, expected ({batch},): one per example")
    if batch == 0:
        raise ValueError(f"{name} is empty, expected at least one example")
    if on_gpu:
        return cast(Array, labels)
    usual = labels.dtype is _INT64 and labels.flags.carray
    converted: Array = labels if usual else np.ascontiguousarray(labels, dtype=np.int64)
    if not is_within(converted, 0, classes - 1):  # a uint64 beyond int64 is negative
        wrong = (labels < 0) | (labels >= classes)
        refuse_where(wrong, name, labels, f"a class in [0, {classes})")
    return converted


def check_shares(name: str, target: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Shares of the classes, finite and >= 0, in this dtype."""
    shares = check_numbers(name, target, shape, dtype, 0.0)
    if shares.size == 0:
        raise ValueError(f"{name} is empty, expected at least one example and class")
    return shares


def check_numbers(
    name: str, value: Any, shape: tuple[int, ...], dtype: np.dtype[Any], low: float = -math.inf
) -> Array:
    """Finite numbers of any dtype, converted to a contiguous array of ``dtype``; ``low`` may be 0, the least.

    An array in a GPU's memory must have that dtype already; its values are not looked at.
    """
    if type(value) is np.ndarray and value.dtype is dtype and value.shape == shape and value.flags.carray:
        if is_within(value, low):
            return value  # the usual case at little cost
    elif isinstance(value, Operand):
        return check_like(name, value, shape, dtype)
    value = as_numpy(name, value)
    if value.dtype.kind not in "fiub":
        raise TypeError(f"{name} has dtype {value.dtype}, expected numbers")
    if value.shape != shape:
        raise ValueError(f"{name} has shape {value.shape}, expected {shape}")
    converted: Array = value
    if value.dtype is not dtype or not value.flags.carray:
        with np.errstate(over="ignore"):
            converted = np.ascontiguousarray(value, dtype).reshape(shape)
    if not is_within(converted, low):
        check_finite(name, converted)
        if low == 0:
            refuse_where(converted < 0, name, converted, "numbers >= 0")
    return converted


def check_pointwise_target(name: str, target: Array, kind: str) -> None:
    """Refuse targets that the loss does not allow; those in a GPU's memory are not looked at."""
    loss = POINTWISE[kind]
    if loss.bounded is None or isinstance(target, Operand):
        return
    if not is_within(np.asarray(loss.bounded(target)), loss.low, loss.high):
        refuse_where(~loss.allows(target), name, target, str(loss.targets))


def check_weights(name: str, weight: Any, count: int, dtype: np.dtype[Any]) -> Array | None:
    """Finite weights >= 0, one per example or class; None stays None."""
    if weight is None:
        return None
    return check_numbers(name, weight, (count,), dtype, 0.0)


def check_pos_weight(weight: Any, columns: int, dtype: np.dtype[Any]) -> Any:
    """A finite number >= 0, or one per column."""
    if type(weight) is float and 0 <= weight < 1e38:  # the usual case at little cost
        return weight if dtype is _FLOAT64 else float(np.float32(weight))
    if type(weight) is np.ndarray and weight.ndim == 1:
        return check_numbers("pos_weight", weight, (columns,), dtype, 0.0)
    if not isinstance(weight, Operand) and as_numpy("pos_weight", weight).ndim == 0:
        return float(check_numbers("pos_weight", weight, (), dtype, 0.0))
    return check_numbers("pos_weight", weight, (columns,), dtype, 0.0)
