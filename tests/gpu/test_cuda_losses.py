"""The CUDA kernels of softmax and of losses, within what rounding allows.

Kernels are compiled for the host and run by the emulator in tests/gpu/emulator: results, not speed.
"""

import math

import numpy as np
import pytest
from oracles import losses as loss_oracles
from support.launcher import blocks_of, same

pytest.importorskip("pyoptim.runtime._native", reason="what is compared with", exc_type=ImportError)
from pyoptim.formulas.losses import POINTWISE
from pyoptim.runtime import _native


@pytest.fixture
def rng():
    """Targets leave no gradient of cross-entropy near 0 by cancellation, which no tolerance allows for."""
    return np.random.default_rng(11)


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (9, 10), (8, 33), (3, 300)], ids=str)
def test_softmax(run, dtype, shape, log, rng):
    x, dy = rng.normal(0, 5, size=shape).astype(dtype), rng.normal(size=shape).astype(dtype)
    x[0, 0] = 100
    y, dx, eps = run.empty(shape, dtype), run.empty(shape, dtype), np.finfo(dtype).eps
    run("softmax_forward", blocks_of(shape[0], 8), log, *shape, x, y, dtype=dtype)
    wide = x.astype(float) - x.max(1, keepdims=True)
    power = np.exp(wide)
    exact = wide - np.log(power.sum(1, keepdims=True)) if log else power / power.sum(1, keepdims=True)
    assert (abs(y - exact) <= (8 - wide) * eps * (1 if log else exact) + 1e-40).all()  # x - max(x) is rounded
    run("softmax_backward", blocks_of(shape[0], 8), log, *shape, dy, y, dx, dtype=dtype)
    wide, share = y.astype(float), np.exp(y.astype(float)) if log else y.astype(float)
    if log:
        exact, size = dy - share * dy.sum(1, keepdims=True, dtype=float), abs(dy).sum(1, keepdims=True)
    else:
        inner = (dy * wide).sum(1, keepdims=True)
        exact, size = wide * (dy - inner), wide * (abs(dy) + (abs(dy) * wide).sum(1, keepdims=True))
    assert (abs(dx - exact) <= 8 * eps * (abs(dy) + size)).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("shape", [(1, 2), (9, 10), (17, 40)], ids=str)
def test_cross_entropy(run, dtype, shape, soft, weighted, smoothing, rng):
    rows, classes = shape
    logits = rng.normal(0, 3, size=shape).astype(dtype)
    labels = rng.integers(0, classes, rows)
    shares = rng.uniform(size=shape)
    shares = (shares / shares.sum(1, keepdims=True)).astype(dtype)
    sample_weight = rng.uniform(1, 2, rows).astype(dtype) if weighted else None
    class_weight = rng.uniform(1, 2, classes).astype(dtype) if weighted else None
    divisor = run.array([float(rows)])
    if weighted and not soft:
        run("label_weights", 1, rows, classes, labels, class_weight, divisor, dtype=dtype)
    blocks = blocks_of(rows, 8)
    partial, loss, dx = run.empty(blocks, float), run.empty(1, float), run.empty(shape, dtype)
    targets = (None, shares) if soft else (labels, None)
    weights = sample_weight, class_weight
    given = divisor if weighted else None  # else the number
    for gradient in (dx, None):
        run("cross_entropy", blocks, rows, classes, logits, *targets, *weights, smoothing, 1.0, False,
            float(rows), given, gradient, partial, dtype=dtype)  # fmt: skip
        run("total<double>", 1, blocks, partial, 1.0, divisor, loss)
        target = shares if soft else labels
        exact = loss_oracles.cross_entropy(
            logits.astype(float), target, class_weight, smoothing, sample_weight
        )
        # Rounded are the logits' differences, and the terms of the oracle's sum too.
        assert abs(loss[0] - exact) <= 8 * np.finfo(dtype).eps * (abs(logits).max() + exact)
    cpu = np.empty_like(logits)
    _native.softmax_cross_entropy(logits, target, cpu, sample_weight, class_weight, smoothing)
    np.testing.assert_allclose(dx, cpu, rtol=0, atol=16 * np.finfo(dtype).eps * abs(cpu).max())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_that_all_have_weight_0_cost_nothing(run, dtype, smoothing, rng):
    logits, labels = rng.normal(size=(9, 4)).astype(dtype), np.zeros(9, np.int64)
    weight, divisor = np.array([0, 1, 2, 3], dtype), run.array([7.0])
    dx, partial, loss = run.empty((9, 4), dtype), run.empty(2, float), run.empty(1, float)
    run("label_weights", 1, 9, 4, labels, weight, divisor, dtype=dtype)
    assert divisor == 0
    run("cross_entropy", 2, 9, 4, logits, labels, None, None, weight, smoothing, 1.0, False, 9.0, divisor,
        dx, partial, dtype=dtype)  # fmt: skip
    run("total<double>", 1, 2, partial, 1.0, divisor, loss)
    assert loss == 0
    assert not dx.any()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("shape", [(1, 2), (9, 10), (17, 40)], ids=str)
def test_kl_divergence(run, dtype, shape, weighted, temperature, rng):
    rows, classes = shape
    logits = rng.normal(0, 3, size=shape).astype(dtype)
    target = rng.uniform(size=shape)
    target = (target / target.sum(1, keepdims=True)).astype(dtype)
    target[0] = np.eye(classes)[0]
    weight = rng.uniform(1, 2, rows).astype(dtype) if weighted else None
    blocks = blocks_of(rows, 8)
    partial, loss, dx = run.empty(blocks, float), run.empty(1, float), run.empty(shape, dtype)
    for gradient in (dx, None):
        run("cross_entropy", blocks, rows, classes, logits, None, target, weight, None, 0.0, temperature,
            True, float(rows), None, gradient, partial, dtype=dtype)  # fmt: skip
        run("total<double>", 1, blocks, partial, 1 / rows, None, loss)
        exact = loss_oracles.kl_divergence(logits.astype(float), target.astype(float), temperature, weight)
        size = temperature**2 + temperature * abs(logits).max()  # of the terms
        assert abs(loss[0] - exact) <= 8 * np.finfo(dtype).eps * (size + exact)
    cpu = np.empty_like(logits)
    _native.kl_divergence(logits, target, cpu, weight, temperature)
    np.testing.assert_allclose(dx, cpu, rtol=0, atol=16 * np.finfo(dtype).eps * abs(cpu).max())


def test_a_label_that_is_no_class_makes_nan_and_touches_nothing(run, rng):
    logits, dx, partial = rng.normal(size=(9, 4)).astype("f4"), run.empty((9, 4), "f4"), run.empty(2, float)
    for label in (-1, 4, 2**40):
        labels = np.zeros(9, np.int64)
        labels[2] = label
        run(
            "cross_entropy",
            2,
            9,
            4,
            logits,
            labels,
            None,
            None,
            None,
            0.0,
            1.0,
            False,
            9.0,
            None,
            dx,
            partial,
            dtype=np.float32,
        )
        assert math.isnan(partial[0])
        assert not math.isnan(partial[1])
        assert np.isnan(dx).all(1).nonzero()[0].tolist() == [2]


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("kind", POINTWISE)
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (70, 61)], ids=str)
def test_pointwise_losses(run, cuda, dtype, shape, kind, weighted, rng):
    x = rng.normal(size=shape).astype(dtype)
    target = rng.integers(0, 2, size=shape).astype(dtype)
    columns = rng.uniform(0.5, 2, shape[1]).astype(dtype) if weighted else None
    sample_weight = rng.uniform(1, 2, shape[0]).astype(dtype) if weighted else None
    blocks = blocks_of(x.size, cuda.chunk)
    partial, loss, dx = run.empty(blocks, float), run.empty(1, float), run.empty(shape, dtype)
    index = list(POINTWISE).index(kind)
    for gradient in (dx, None):
        run("pointwise_loss", blocks, index, 0.75, columns, *shape, x, target, sample_weight, gradient,
            partial, dtype=dtype)  # fmt: skip
        run("total<double>", 1, blocks, partial, 1 / x.size, None, loss)
        exact = loss_oracles.pointwise(kind, x, target, 0.75 if columns is None else columns, sample_weight)
        np.testing.assert_allclose(
            loss[0], exact, rtol=8 * np.finfo(dtype).eps + x.size * np.finfo(float).eps
        )
    cpu = np.empty_like(x)
    _native.pointwise_loss(kind, x, target, cpu, sample_weight, 0.75 if columns is None else columns)
    assert same(dx, cpu)
