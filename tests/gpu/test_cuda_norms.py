"""The CUDA kernels of batch and layer norm: sums of n terms within n roundings of float64's.

Kernels are compiled for the host and run by the emulator in tests/gpu/emulator: results, not speed.
"""

import numpy as np
import pytest
from support.launcher import LANE, NORM_SHAPES, blocks_of, bound, position, same

pytest.importorskip("pyoptim.runtime._native", reason="what is compared with", exc_type=ImportError)
from pyoptim.formulas.norms import NormOptions
from pyoptim.runtime import _native


def norm_plan(cuda, shape):
    """Blocks, and partial sums, of norm_kernels.cuh."""
    batch, channels, space = shape
    if space < 256:
        parts, cols = blocks_of(batch, cuda.part_rows), channels * space
        return parts * blocks_of(cols, 32), parts * cols
    blocks = batch * channels * blocks_of(space, cuda.chunk)
    return blocks, blocks


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", NORM_SHAPES, ids=str)
def test_batch_norm(run, cuda, dtype, shape, affine, relu, rng):
    channels, count = shape[1], shape[0] * shape[2]
    x, dy = rng.normal(3, 2, size=shape).astype(dtype), rng.normal(size=shape).astype(dtype)
    gamma, beta = rng.normal(size=(2, channels)).astype(dtype) if affine else (None, None)
    running = rng.uniform(1, 2, size=(2, channels)).astype(dtype)
    blocks, sums = norm_plan(cuda, shape)
    partial, mean, inv_std = (
        run.empty(2 * sums, float),
        run.empty(channels, dtype),
        run.empty(channels, dtype),
    )
    per_channel = blocks_of(channels, 8)
    mine = run.array(running)
    run("norm_moments", blocks, *shape, x, partial, dtype=dtype)
    run("norm_statistics", per_channel, *shape, x, partial, 0.3, None, 1e-5, True, mine[0], mine[1], mean,
        inv_std, dtype=dtype)  # fmt: skip
    wide, eps = x.astype(float), np.finfo(dtype).eps
    exact, variance = wide.mean((0, 2)), wide.var((0, 2))
    # Of the differences to a thread's first value, which are a few standard deviations.
    spread = np.ptp(wide, (0, 2))
    assert (abs(mean - exact) <= LANE * eps * spread + 2 * eps * abs(exact)).all()
    limit = 1 / np.sqrt(variance + 1e-5)
    assert (abs(inv_std - limit) <= limit * (LANE * eps * spread**2 / variance + 2 * eps)).all()
    for ours, old, new in zip(mine, running, (exact, variance * count / (count - 1)), strict=True):
        np.testing.assert_allclose(ours, 0.7 * old.astype(float) + 0.3 * new, rtol=4 * LANE * eps)

    # The cumulative mean, as of the batch after those that were counted, and of repeated ones.
    for at, share in ((None, 1 / 2), (position(steps=5), 1 / 7)):
        counted, plain = run.array(running), run.array(running)
        for into, momentum, where in ((counted, -2.0, at), (plain, share, None)):
            run("norm_statistics", per_channel, *shape, x, partial, momentum, where, 1e-5, True, *into, mean,
                inv_std, dtype=dtype)  # fmt: skip
        assert same(counted, plain)

    # From the same statistics, elements have the CPU's bits: there they are running ones.
    y, expected, saved = run.empty(shape, dtype), np.empty_like(x), np.empty((2, channels), dtype)
    run("norm_statistics", per_channel, *shape, x, None, 0.3, None, 1e-5, True, running[0], running[1],
        mean, inv_std, dtype=dtype)  # fmt: skip
    run("norm_apply", blocks, *shape, x, gamma, beta, mean, inv_std, relu, y, dtype=dtype)
    options = NormOptions(training=False, relu=relu)
    _native.norm_forward(x, (gamma, beta), tuple(running), options, expected, tuple(saved))
    assert same(y, expected)
    assert same(mean, saved[0])
    assert same(inv_std, saved[1])
    dx, expected_dx = run.empty(shape, dtype), np.empty_like(x)
    dgamma, dbeta, slope = (
        run.empty(channels, dtype),
        run.empty(channels, dtype),
        run.empty((2, channels), dtype),
    )
    run("norm_gradient", blocks, *shape, dy, x, gamma, beta, mean, inv_std, None, relu, dx, dtype=dtype)
    cpu = np.empty((2, channels), dtype)
    _native.norm_backward(dy, x, (gamma, beta), (*saved, False), relu, (expected_dx, *cpu))
    assert same(dx, expected_dx)

    run("norm_products", blocks, *shape, dy, x, gamma, beta, mean, inv_std, relu, partial, dtype=dtype)
    run("norm_slopes", per_channel, *shape, partial, gamma, inv_std, dgamma, dbeta, slope, dtype=dtype)
    dz = np.where(y > 0, dy, 0) if relu else dy
    normal = (x - mean[:, None]) * inv_std[:, None]
    assert (abs(dbeta - dz.sum((0, 2), dtype=float)) <= bound(dtype, dz)).all()
    assert (abs(dgamma - (dz * normal).sum((0, 2), dtype=float)) <= bound(dtype, dz * normal)).all()
    run("norm_gradient", blocks, *shape, dy, x, gamma, beta, mean, inv_std, slope, relu, dx, dtype=dtype)
    scale = inv_std if gamma is None else gamma * inv_std
    exact_dx = scale[:, None].astype(float) * (
        dz - (dbeta[:, None] + normal.astype(float) * dgamma[:, None]) / count
    )
    scales = abs(scale[:, None]) * (abs(dz) + (abs(dbeta[:, None]) + abs(normal * dgamma[:, None])) / count)
    assert (abs(dx - exact_dx) <= 16 * eps * scales).all()


@pytest.mark.parametrize("shape", [(200, 3, 1), (2, 2, 4200)], ids=str)
def test_statistics_of_large_means_and_of_what_overflows(run, cuda, shape, rng):
    x = rng.normal(1e4, 1, size=shape).astype(np.float32)
    x[0, 0, 0] = -1e4
    x[:, 1] *= 1e30  # squares are beyond float32
    blocks, sums = norm_plan(cuda, shape)
    partial, mean, inv_std = run.empty(2 * sums, float), run.empty(shape[1], "f4"), run.empty(shape[1], "f4")
    run("norm_moments", blocks, *shape, x, partial, dtype=np.float32)
    run(
        "norm_statistics",
        1,
        *shape,
        x,
        partial,
        0.0,
        None,
        0.0,
        False,
        None,
        None,
        mean,
        inv_std,
        dtype=np.float32,
    )
    wide = x.astype(float)
    np.testing.assert_allclose(mean, wide.mean((0, 2)), rtol=1e-6)
    np.testing.assert_allclose(inv_std, 1 / wide.std((0, 2)), rtol=1e-5)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (9, 31), (140, 33), (8, 1000)], ids=str)
def test_layer_norm(run, cuda, dtype, shape, affine, rng):
    rows, cols = shape
    x, dy = rng.normal(100, 2, size=shape).astype(dtype), rng.normal(size=shape).astype(dtype)
    gamma, beta = rng.normal(size=(2, cols)).astype(dtype) if affine else (None, None)
    y, mean, inv_std = run.empty(shape, dtype), run.empty(rows, dtype), run.empty(rows, dtype)
    run("layer_norm", blocks_of(rows, 8), *shape, x, gamma, beta, 1e-5, y, mean, inv_std, dtype=dtype)
    wide, eps = x.astype(float), np.finfo(dtype).eps
    spread, variance = np.ptp(wide, 1), wide.var(1)
    assert (abs(mean - wide.mean(1)) <= LANE * eps * spread + eps * 110).all()
    limit = 1 / np.sqrt(variance + 1e-5)
    assert (abs(inv_std - limit) <= limit * (LANE * eps * spread**2 / (variance + 1e-5) + 2 * eps)).all()
    g, b = (gamma, beta) if affine else (np.ones(cols, dtype), np.zeros(cols, dtype))
    normal = (x - mean[:, None]) * inv_std[:, None]
    assert same(y, normal * g + b)

    dx = run.empty(shape, dtype)
    run("layer_norm_gradient", blocks_of(rows, 8), *shape, dy, x, gamma, mean, inv_std, dx, dtype=dtype)
    dz = dy.astype(float) * g
    means = [(dz * other).mean(1, keepdims=True) for other in (1, normal)]
    sizes = abs(dz) + abs(dz).mean(1, keepdims=True) + abs(normal) * abs(dz * normal).mean(1, keepdims=True)
    exact_dx = inv_std[:, None] * (dz - means[0] - normal * means[1])
    assert (abs(dx - exact_dx) <= LANE * eps * inv_std[:, None] * sizes).all()

    parts = blocks_of(rows, cuda.part_rows)
    partial, dgamma, dbeta = (
        run.empty((2, parts, cols), float),
        run.empty(cols, dtype),
        run.empty(cols, dtype),
    )
    run(
        "layer_norm_products", parts * blocks_of(cols, 32), *shape, dy, x, mean, inv_std, partial, dtype=dtype
    )
    for part, out, terms in ((partial[0], dgamma, dy * normal), (partial[1], dbeta, dy)):
        run("sum_parts", blocks_of(cols, cuda.threads), parts, cols, part, out, dtype=dtype)
        allowed = LANE * eps * abs(terms).sum(0, dtype=float)
        assert (abs(out - terms.sum(0, dtype=float)) <= allowed).all()
