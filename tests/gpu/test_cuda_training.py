"""The CUDA kernels of a training step: batches, counts of right answers, penalties, the position.

Kernels are compiled for the host and run by the emulator in tests/gpu/emulator: results, not speed.
"""

import math

import numpy as np
import pytest
from support.launcher import SIZES, blocks_of, position, same, special

native = pytest.importorskip("pyoptim.backends.native", reason="what is compared with", exc_type=ImportError)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("cols", [1, 3, 256, 1000])
def test_batches_are_gathered(run, dtype, cols, ordered, rng):
    order = rng.permutation(40) if ordered else np.arange(40)
    x, pixels = rng.normal(size=(40, cols)).astype(dtype), rng.integers(0, 256, (40, cols)).astype(np.uint8)
    labels, out = rng.integers(-(2**62), 2**62, 40), run.empty((7, cols), dtype)
    for at, first in ((position(example=30), 30), (None, 0)):

        def where(array, at=at):  # in a captured step, where its address lies
            return array if at is None or array is None else np.array([array.ctypes.data], np.uint64)

        rows, by = order[first : first + 7], where(order) if ordered else None
        run("gather_rows", 7, at, by, cols, where(x), None, out, dtype=dtype)
        assert same(out, x[rows])
        run("gather_rows", 7, at, by, cols, None, where(pixels), out, dtype=dtype)
        assert same(out, pixels[rows].astype(dtype))
        chosen = run.empty(7, np.int64)
        run("gather_rows<long long>", 7, at, by, 1, where(labels), None, chosen)
        assert (chosen == labels[rows]).all()


@pytest.mark.parametrize("classes", [1, 2, 31, 33, 100])
def test_what_is_classified_right_is_counted(run, dtype, classes, rng):
    output, shares = rng.integers(0, 4, (2, 50, classes)).astype(dtype)  # many are equal
    output[::5, rng.integers(0, classes, 10)] = math.nan
    output[::7] = -math.inf
    labels, at = rng.integers(0, classes, 50), position(right=5)
    output[1::7, 0] = math.inf
    for first, share in enumerate((math.inf, -math.inf, math.nan)):
        shares[first::9, rng.integers(0, classes, 2)] = share
    found = np.where(np.isfinite(output.max(1)), output.argmax(1), -1)  # what has no softmax is never right
    run("count_right", blocks_of(50, 8), 50, classes, output, labels, None, at, dtype=dtype)
    assert at["right"] == 5 + (found == labels).sum()
    run("count_right", blocks_of(50, 8), 50, classes, output, None, shares, at, dtype=dtype)
    assert at["right"] == 5 + (found == labels).sum() + (found == shares.argmax(1)).sum()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("l2", "l1"), [(0.3, 0.2), (0.3, 0.0), (0.0, 0.2)])
def test_a_penalty_has_the_cpu_s_bits(run, cuda, dtype, n, l2, l1, rng):
    blocks = blocks_of(n, cuda.chunk)
    w, g, partial = run.array(special(rng, n, dtype), offset=1), run.empty(n, dtype), run.empty(blocks, float)
    g[...] = special(rng, n, dtype)[::-1]
    expected = g.copy()
    native.penalty(w.copy(), expected, [(0, n)], l2, l1)
    run("penalty", blocks, n, l2, l1, w, g, partial, dtype=dtype)
    assert same(g, expected)
    w[...] = rng.normal(size=n)
    run("penalty", blocks, n, l2, l1, w, g, partial, dtype=dtype)
    exact = math.fsum(l2 / 2 * float(v) ** 2 + l1 * abs(float(v)) for v in w)
    assert abs(partial.sum() - exact) <= 64 * np.finfo(float).eps * exact


def test_a_step_moves_the_position_on(run):
    for divisor, by in ((None, 32), (np.array([2.5]), 2.5)):
        at = position(steps=3, example=64, row=1, loss=0.1, divisor=0.7, right=7)
        run("finish_step<double>", 1, 32, divisor, np.array([1 / 3]), at)
        assert at.tolist() == [(4, 96, 2, 0.1 + 1 / 3 * by, 0.7 + by, 7)]
