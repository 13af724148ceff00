"""The CUDA kernels of matrix products and column sums, within what rounding allows.

Kernels are compiled for the host and run by the emulator in tests/gpu/emulator: results, not speed.
"""

import numpy as np
import pytest
from support.launcher import blocks_of

pytest.importorskip("pyoptim.runtime._native", reason="what is compared with", exc_type=ImportError)


@pytest.mark.parametrize("shape", [(1, 1), (7, 31), (128, 33), (300, 64), (0, 3)], ids=str)
def test_column_sums(run, cuda, dtype, shape, rng):
    rows, cols = shape
    x, eps = rng.normal(size=shape).astype(dtype), np.finfo(dtype).eps
    exact, allowed = x.sum(0, dtype=float), np.finfo(dtype).eps * abs(x).sum(0, dtype=float)
    out = run.empty(cols, dtype)
    run("column_sum", blocks_of(cols, 32), rows, cols, x, None, out, dtype=dtype)
    assert (abs(out - exact) <= allowed + eps * abs(exact)).all()
    parts = blocks_of(rows, cuda.part_rows)
    partial, out = run.empty((parts, cols), float), run.empty(cols, dtype)
    run("column_sum", parts * blocks_of(cols, 32), rows, cols, x, partial, None, dtype=dtype)
    run("sum_parts", blocks_of(cols, cuda.threads), parts, cols, partial, out, dtype=dtype)
    assert (abs(out - exact) <= allowed + eps * abs(exact)).all()


@pytest.mark.parametrize("a_transposed", [True, False])
@pytest.mark.parametrize("b_transposed", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 1), (33, 31, 65), (5, 70, 32), (64, 32, 0)], ids=str)
def test_products(run, dtype, shape, a_transposed, b_transposed, rng):
    m, n, k = shape
    a, b = rng.normal(size=(m, k)).astype(dtype), rng.normal(size=(k, n)).astype(dtype)
    bias = rng.normal(size=n).astype(dtype)
    stored_a = run.array(a.T if a_transposed else a)
    stored_b = run.array(b.T if b_transposed else b)
    a_strides, b_strides = (1, m) if a_transposed else (k, 1), (1, k) if b_transposed else (n, 1)
    y = run.empty((m, n), dtype)
    for with_bias, relu in ((None, False), (bias, True)):
        run("product", blocks_of(m, 32) * blocks_of(n, 32), m, n, k, stored_a, *a_strides, stored_b,
            *b_strides, with_bias, relu, y, dtype=dtype)  # fmt: skip
        exact = a.astype(float) @ b + (0 if with_bias is None else with_bias)
        allowed = (k + 2) * np.finfo(dtype).eps * (abs(a).astype(float) @ abs(b) + abs(bias))
        assert (abs(y - (np.maximum(exact, 0) if relu else exact)) <= allowed).all()
