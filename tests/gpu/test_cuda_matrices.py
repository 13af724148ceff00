"""The CUDA kernels of matrix products and column sums, within what rounding allows.

Kernels are compiled for the host and run by the emulator in tests/gpu/emulator: results, not speed.
"""

import numpy as np
import pytest
from support.launcher import blocks_of

from pyoptim.backends.gpu import products

pytest.importorskip("pyoptim.runtime._native", reason="what is compared with", exc_type=ImportError)


@pytest.mark.parametrize("shape", [(1, 1), (7, 31), (128, 33), (300, 64), (0, 3)], ids=str)
def test_column_sums(run, cuda, dtype, shape, rng):
    rows, cols = shape
    x, eps = rng.normal(size=shape).astype(dtype), np.finfo(dtype).eps
    exact, allowed = x.sum(0, dtype=float), np.finfo(dtype).eps * abs(x).sum(0, dtype=float)
    out = run.empty(cols, dtype)
    run("column_sum", blocks_of(cols, 32), rows, cols, x, None, None, out, dtype=dtype)
    assert (abs(out - exact) <= allowed + eps * abs(exact)).all()
    y = np.maximum(rng.normal(size=shape), 0).astype(dtype)
    of_relu = run.empty(cols, dtype)
    run("column_sum", blocks_of(cols, 32), rows, cols, x, y, None, of_relu, dtype=dtype)
    dz = np.where(y > 0, x, dtype(0))
    run("column_sum", blocks_of(cols, 32), rows, cols, dz, None, None, out, dtype=dtype)
    np.testing.assert_array_equal(of_relu, out)
    parts = blocks_of(rows, cuda.part_rows)
    partial, out = run.empty((parts, cols), float), run.empty(cols, dtype)
    run("column_sum", parts * blocks_of(cols, 32), rows, cols, x, None, partial, None, dtype=dtype)
    run("sum_parts", blocks_of(cols, cuda.threads), parts, cols, partial, out, dtype=dtype)
    assert (abs(out - exact) <= allowed + eps * abs(exact)).all()


# Parts of tiles, and of slices; with 1 to 3 turns of a block's warps, one to many blocks for a tile.
SHAPES = [(1, 1, 1), (33, 31, 65), (5, 70, 32), (64, 32, 0), (3, 33, 200), (32, 32, 64), (40, 8, 1001)]


@pytest.mark.parametrize("a_transposed", [True, False])
@pytest.mark.parametrize("b_transposed", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("splits", [None, 1, 3])
def test_products(run, cuda, dtype, shape, splits, a_transposed, b_transposed, rng):
    m, n, k = shape
    a, b = rng.normal(size=(m, k)).astype(dtype), rng.normal(size=(k, n)).astype(dtype)
    bias = rng.normal(size=n).astype(dtype)
    stored_a = run.array(a.T if a_transposed else a, offset=int(rng.integers(3)))
    stored_b = run.array(b.T if b_transposed else b, offset=int(rng.integers(3)))
    a_strides, b_strides = (1, m) if a_transposed else (k, 1), (1, k) if b_transposed else (n, 1)
    y, splits = run.empty((m, n), dtype), splits or products.splits_of(*shape)
    tiles = blocks_of(m, cuda.tile) * blocks_of(n, cuda.tile)
    partial = run.empty(splits * tiles * cuda.tile**2, dtype) if splits > 1 else None
    arrived, results = run.array(np.zeros(tiles, np.uint32)), []
    for with_bias, relu in ((None, False), (bias, True), (bias, True)):
        run("product", tiles * splits, m, n, k, stored_a, None, *a_strides, stored_b, *b_strides, with_bias,
            relu, splits, partial, arrived, y, dtype=dtype)  # fmt: skip
        exact = a.astype(float) @ b + (0 if with_bias is None else with_bias)
        allowed = (k + 2) * np.finfo(dtype).eps * (abs(a).astype(float) @ abs(b) + abs(bias))
        assert (abs(y - (np.maximum(exact, 0) if relu else exact)) <= allowed).all()
        assert not arrived.any()
        results.append(y.copy())
    np.testing.assert_array_equal(results[1], results[2])  # in whatever order blocks and threads ran


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("shape", [(33, 31, 65), (40, 8, 128)], ids=str)
def test_products_of_a_gradient_through_relu(run, cuda, dtype, shape, transposed, rng):
    """The bits are those of the product of what ReLU's gradient would be in memory."""
    m, n, k = shape
    dy, y, b = rng.normal(size=(m, k)), np.maximum(rng.normal(size=(m, k)), 0), rng.normal(size=(k, n))
    dz, results = np.where(y > 0, dy, 0), []
    strides, tiles = (1, m) if transposed else (k, 1), blocks_of(m, cuda.tile) * blocks_of(n, cuda.tile)
    for a, through in ((dz, None), (dy, y)):
        stored = [
            None if of is None else run.array(of.T if transposed else of, dtype, offset=at)
            for of, at in ((a, 0), (through, int(rng.integers(2))))
        ]
        result = run.empty((m, n), dtype)
        run("product", tiles, m, n, k, *stored, *strides, run.array(b, dtype), n, 1, None, False, 1, None,
            None, result, dtype=dtype)  # fmt: skip
        results.append(result)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    ("shape", "splits"),
    [((1, 1, 0), 1), ((1, 1, 128), 1), ((1, 1, 256), 1), ((1, 1, 257), 3), ((128, 256, 784), 7),
     ((256, 784, 128), 1), ((32, 32, 10**6), 64), ((512, 512, 10**6), 1), ((362, 512, 10**6), 1),
     ((256, 512, 10**6), 2)],
)  # fmt: skip
def test_how_many_blocks_share_a_tile(shape, splits):
    assert products.splits_of(*shape) == splits
    tiles = blocks_of(shape[0], 32) * blocks_of(shape[1], 32)
    assert splits == 1 or tiles * splits <= 256  # and tiles <= 128, for which there are counters
