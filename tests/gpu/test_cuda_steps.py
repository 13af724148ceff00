"""The CUDA kernels of optimizer steps have the bits of the CPU's; sums are within what rounding allows.

Kernels are compiled for the host and run by the emulator in tests/gpu/emulator: results, not speed.
"""

import math

import numpy as np
import pytest
from support.launcher import (
    ARRAYS,
    CHUNKS,
    SIZES,
    addresses,
    blocks_of,
    coefficients,
    position,
    same,
    special,
    tables,
)

from pyoptim.backends import StepGroup
from pyoptim.formulas.rules import RULES

native = pytest.importorskip("pyoptim.backends.native", reason="what is compared with", exc_type=ImportError)


@pytest.mark.parametrize("name", list(RULES))
@pytest.mark.parametrize("by_value", [True, False])
def test_a_step_of_many_arrays_has_the_cpu_s_bits(run, cuda, dtype, name, by_value, rng):
    rule = RULES[name]
    # Aligned; all unaligned alike; and each otherwise, where single elements must do.
    places = [(0, 0), (1, 1), (0, 1), (2, 0)]
    groups, expected = [], []
    for row in range(2):
        for size, (at, states_at) in zip(SIZES, places * 3, strict=False):
            param, grad = special(rng, size, dtype), special(rng, size, dtype)
            states = [abs(special(rng, size, dtype)) for _ in rule.states]
            groups.append((row, run.array(param, offset=at), run.array(grad, offset=at),
                           [run.array(state, offset=states_at) for state in states]))  # fmt: skip
            expected.append((param, grad, states))
    rows = [coefficients(rng, rule) for _ in range(2)]
    values = np.zeros((cuda.step_rows, cuda.row_length), dtype)
    for i, row in enumerate(rows):
        values[i, : len(row)] = row
    table, chunks = tables(cuda, [(param, states, row) for row, param, _, states in groups])
    assert len(chunks) == 2 * sum(blocks_of(size, cuda.chunk) for size in SIZES)
    grads = addresses([grad for _, _, grad, _ in groups])
    given = (None, values.tobytes()) if by_value else (values, bytes(values.nbytes))
    kernel = f"step<rule_named::{name}, {'float' if dtype == np.float32 else 'double'}>"
    parts = int(rng.choice([1, 2, 4]))
    run(kernel, parts * len(chunks), parts, table, chunks, grads, *given)
    half = len(expected) // 2
    stepper = native.Stepper(
        [StepGroup(rule, [p for p, _, _ in part], [s for _, _, s in part])
         for part in (expected[:half], expected[half:])]
    )  # fmt: skip
    assert stepper.step([grad for _, grad, _ in expected], rows)
    for (_, param, _, states), (cpu_param, _, cpu_states) in zip(groups, expected, strict=True):
        assert same(param, cpu_param)
        for state, cpu_state in zip(states, cpu_states, strict=True):
            assert same(state, cpu_state)


def test_norm_and_clipping_without_the_host(run, cuda, dtype, rng):
    grads = [run.array(rng.normal(size=size).astype(dtype)) for size in SIZES]
    table, chunks = tables(cuda, [(grad, [], 0) for grad in grads])
    where, partial = addresses(grads), run.empty(len(chunks), float)
    run("sum_of_squares", len(chunks), table, chunks, where, partial, dtype=dtype)
    total, factor = run.empty(1, float), run.empty(1, float)
    run("total_squares<double>", 1, partial.size, partial, 1.0, total)
    exact = math.fsum(float(v) ** 2 for grad in grads for v in grad)
    assert abs(total[0] - exact) <= 64 * np.finfo(float).eps * exact
    run("clip_factor<double>", 1, total, 2.0, factor)
    assert factor[0] == 2.0 / (math.sqrt(total[0]) + 1e-6)

    rows, out = rng.normal(size=(3, cuda.row_length)), run.empty((3, cuda.row_length), dtype)
    run("scale_rows", 1, 3, rows, None, factor, out, dtype=dtype)
    scaled = rows.copy()
    scaled[:, 0] *= factor[0]
    assert same(out, scaled.astype(dtype))
    run("scale_rows", 1, 3, rows, None, None, out, dtype=dtype)
    assert same(out, rows.astype(dtype))
    steps = rng.normal(size=(4, 3, cuda.row_length))
    run("scale_rows", 1, 3, steps, position(row=2), None, out, dtype=dtype)
    assert same(out, steps[2].astype(dtype))

    before = [grad.copy() for grad in grads]
    run("scale", len(chunks), table, chunks, where, factor, dtype=dtype)
    for grad, was in zip(grads, before, strict=True):
        assert same(grad, was * dtype(factor[0]))
    for norm, expected in ((0.0, 1.0), (math.nan, math.nan)):
        run("clip_factor<double>", 1, np.array([norm]), 2.0, factor)
        assert same(factor, np.array([expected]))


def muon_expected(x, turns, polynomial, divisor):
    """Of a wide matrix, in double."""
    a, b, c = polynomial
    x = x.astype(float) / divisor
    for _ in range(turns):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x


@pytest.mark.parametrize("planned", [False, True])
def test_muon(run, cuda, dtype, planned, rng):
    """Matrices of all kinds at once, of two groups with 2 and 3 iterations."""
    shapes = [(5, 3), (33, 70), (1, 1), (0, 4), (64, 64), (70, 33), (90, 100)]
    polynomial, wide = (2.0, -1.5, 0.5), np.zeros((2, cuda.row_length))
    # Common's, four of the momentum's rule, then muon.hpp's: lr, like_adamw, steps, eps and the polynomial.
    wide[0, :14] = 1, 0, 0.5, 0, 0, 0, 0, 0.25, 0, 2, 1e-7, *polynomial
    wide[1, :14] = 1, 0, 0.75, 0, 0, 0, 0, 0.125, 1, 3, 100, *polynomial
    steps = np.concatenate([np.zeros_like(wide), wide]) if planned else wide
    x = [run.array(rng.normal(size=shape).astype(dtype), offset=i % 2) for i, shape in enumerate(shapes)]
    start = [a.copy() for a in x]
    table, chunks = tables(cuda, [(a, [], i % 2) for i, a in enumerate(x)])
    small = [min(shape) for shape in shapes]
    following = [run.empty(shape, dtype) for shape in shapes]
    gram, update = ([run.empty((n, n), dtype) for n in small] for _ in range(2))
    kinds = np.dtype([(n, "u8") for n in ("x", "next", "gram", "update")] + [("rows", "i8"), ("cols", "i8")])
    there = (addresses(part) for part in (x, following, gram, update))
    matrices = np.array([(*at, *shape) for *at, shape in zip(*there, shapes, strict=True)], kinds)
    squares, own = run.empty(len(chunks), float), run.empty((len(shapes), cuda.row_length), dtype)
    begins = np.searchsorted(chunks["array"], np.arange(len(shapes) + 1)).astype(np.int64)
    run("sum_of_squares", len(chunks), table, chunks, addresses(x), squares, dtype=dtype)
    at = position(row=1) if planned else None
    run("muon_rows", len(shapes), 2, table, matrices, begins, squares, steps, at, own, dtype=dtype)
    run("muon_normalize", len(chunks), table, chunks, own, dtype=dtype)
    tiles = [
        np.array([(i, k) for i, (m, n) in enumerate(of) for k in range(blocks_of(m, 32) * blocks_of(n, 32))],
                 CHUNKS)
        for of in (list(zip(small, small, strict=True)), shapes)
    ]  # fmt: skip
    for turn in range(3):
        for part in range(3):
            of = tiles[part // 2]
            run("muon_product", len(of), part, turn, matrices, of, own, dtype=dtype)
    for i, (rows, cols) in enumerate(shapes):
        norm, turns = np.linalg.norm(start[i].astype(float)), 2 + i % 2
        divisor = max(norm, (1e-7, 100)[i % 2])
        rate = 0.125 * 0.2 * math.sqrt(max(rows, cols)) if i % 2 else 0.25 * math.sqrt(max(1, rows / cols))
        keep = (0.5, 0.75)[i % 2]
        expected_row = [-1, 0, keep, rate, *polynomial, divisor, turns]
        np.testing.assert_allclose(own[i, :9], np.array(expected_row, dtype), rtol=4 * np.finfo(dtype).eps)
        wide_one = start[i] if rows <= cols else start[i].T
        expected = muon_expected(wide_one, turns, polynomial, divisor)
        result = (x, following)[turns % 2][i]
        allowed = 100 * max(rows, cols) * np.finfo(dtype).eps
        np.testing.assert_allclose(result, expected if rows <= cols else expected.T, rtol=0, atol=allowed)


@pytest.mark.parametrize("n", SIZES)
def test_sum_of_squares_of_one_array(run, cuda, dtype, n, rng):
    x = run.array(rng.normal(size=n).astype(dtype), offset=1)
    blocks = blocks_of(n, cuda.chunk)
    partial, total = run.empty(blocks, float), run.empty(1, float)
    run("chunk_squares", blocks, n, x, partial, dtype=dtype)
    run("total_squares<double>", 1, blocks, partial, 1.0, total)
    exact = math.fsum(float(v) ** 2 for v in x)
    assert abs(total[0] - exact) <= 64 * np.finfo(float).eps * exact


@pytest.mark.parametrize("n", SIZES)
def test_muon_blend(run, cuda, dtype, n, rng):
    x, y = run.array(rng.normal(size=n).astype(dtype), offset=1), rng.normal(size=n).astype(dtype)
    blocks, was, factors = blocks_of(n, cuda.chunk), x.copy(), np.array([0.3, -1.7], dtype)
    run("muon_blend", blocks, n, factors, x, factors[1:], y, dtype=dtype)
    assert same(x, factors[0] * was + factors[1] * y)
    x[...] = was
    run("muon_blend", blocks, n, factors, x, None, y, dtype=dtype)
    assert same(x, factors[0] * was + y)


def trust_tables(cuda, run, arrays):
    """As `tables`, with chunks for the sums and where those of each array begin."""
    table, _ = tables(cuda, arrays)
    counts = [blocks_of(param.size, cuda.sum_block) for param, _, _ in arrays]
    blocks = [(i, chunk) for i, count in enumerate(counts) for chunk in range(count)]
    return table, np.array(blocks, CHUNKS), np.cumsum([0, *counts])


TRUST_SIZES = [0, 1, 31, 33, 2047, 2049, 16383, 16384, 16385, 40000]


@pytest.mark.parametrize("directed", [True, False])
@pytest.mark.parametrize("special_values", [True, False])
def test_steps_by_norms_have_the_cpu_s_bits(run, cuda, dtype, directed, special_values, rng):
    rule = RULES["adam" if directed else "momentum"]
    kind = "float" if dtype == np.float32 else "double"
    kept, groups = [], [([], [], []), ([], [], [])]
    for row in range(2):
        for i, size in enumerate(TRUST_SIZES):
            values = [special(rng, size, dtype) if special_values else rng.normal(size=size).astype(dtype)
                      for _ in range(2 + len(rule.states))]  # fmt: skip
            if size == 33:
                values[row][...] = 0  # a norm of 0
            param, grad, *states = values[0], values[1], *map(abs, values[2:])
            kept.append((run.array(param, offset=i % 3), row, run.array(grad, offset=i % 2),
                         [run.array(s) for s in states]))  # fmt: skip
            for part, value in zip(groups[row], (param, grad, states), strict=True):
                part.append(value)
    rows = [coefficients(rng, rule) for _ in range(2)]
    trusts = [(0.1, 0.0, 1.5, 0.2, 1e-8), (0.2, 0.3, 0.5, 1.0, 1e-3)]
    factor = 0.625  # exact, so that it may be multiplied here
    arrays = [(param, states, row) for param, row, _, states in kept]
    table, blocks, begins = trust_tables(cuda, run, arrays)
    of_arrays, chunks = tables(cuda, [(param, states, i) for i, (param, states, _) in enumerate(arrays)])
    grads = addresses([grad for _, _, grad, _ in kept])
    squares, own = run.empty((len(blocks), 2), float), run.empty((len(arrays), cuda.row_length), dtype)
    wide = np.zeros((2, cuda.row_length))
    for i, row in enumerate(rows):
        wide[i, : len(row)] = row
    scale, trust = np.array([factor]), np.array(trusts)
    if directed:
        scaled = run.empty((2, cuda.row_length), dtype)
        run("scale_rows", 1, 2, wide, None, scale, scaled, dtype=dtype)
        along = [run.empty(param.shape, dtype, i % 2) for i, (param, *_) in enumerate(kept)]
        run("lamb_direction", len(blocks), table, blocks, grads, scaled, trust, addresses(along), squares,
            dtype=dtype)  # fmt: skip
        grads = addresses(along)
    else:
        run("lars_squares", len(blocks), table, blocks, grads, squares, dtype=dtype)
    run("trust_rows", len(arrays), directed, table, begins, squares, wide, trust, scale, own, dtype=dtype)
    nothing = bytes(cuda.step_rows * cuda.row_length * np.dtype(dtype).itemsize)
    name = "sgd" if directed else "momentum"
    run(f"step<rule_named::{name}, {kind}>", 2 * len(chunks), 2, of_arrays, chunks, grads, own, nothing)

    stepper = native.TrustStepper([StepGroup(rule, part[0], part[2]) for part in groups], directed)
    turned = [(row[0] * factor, *row[1:]) for row in rows]
    scaled_trusts = [(t[0], t[1], t[2] * factor, *t[3:]) for t in trusts]
    assert stepper.step([g for part in groups for g in part[1]], turned, scaled_trusts)
    expected = [(p, s) for part in groups for p, s in zip(part[0], part[2], strict=True)]
    for (param, _, _, states), (cpu_param, cpu_states) in zip(kept, expected, strict=True):
        assert same(param, cpu_param)
        for state, cpu_state in zip(states, cpu_states, strict=True):
            assert same(state, cpu_state)


def test_rates_of_an_array_of_many_blocks(run, cuda, rng):
    """More sums than a block has threads, added in order."""
    counts = [255, 256, 257, 0, 700]
    begins, squares = np.cumsum([0, *counts]), rng.uniform(size=(sum(counts), 2))
    table = np.zeros(len(counts), ARRAYS)
    own, rows = run.empty((len(counts), cuda.row_length), float), np.ones((1, cuda.row_length))
    trust = np.array([(0.5, 0.25, 1.0, 0.125, 0.0)])
    run("trust_rows", len(counts), True, table, begins, squares, rows, trust, None, own, dtype=np.float64)
    for i, (begin, count) in enumerate(zip(begins, counts, strict=False)):
        p, q = 0.0, 0.0
        for a, b in squares[begin : begin + count]:
            p, q = p + a, q + b
        rate = 0.5 * math.sqrt(p) / math.sqrt(q) if count else 0.5
        assert own[i, :4].tolist() == [-1, 0, 1, rate]


# Columns and rows with and without a rest; several parts of rows; stacks; vectors; empty ones.
ADAFACTOR_SHAPES = [
    (1, 1, 1), 4097, (1, 9, 33), (1, 0, 3), (1, 129, 5), (0, 2, 2), (1, 300, 70), (40, 3, 3), 1, (2, 128, 31),
    255, 0, 9000,
]  # fmt: skip


FACTORED = np.dtype([(name, "i8") for name in ("batch", "rows", "cols", "columns", "means", "sums")])


@pytest.mark.parametrize("threshold", [0.1, 1e9])  # clipped or not
def test_adafactor(run, cuda, dtype, threshold, rng):
    """All of them at once, of two groups."""
    eps, rows = (1e-3, float(np.finfo(dtype).eps)), np.zeros((2, cuda.row_length))
    rows[0, :8] = -1.5, 0, 0.75, 0.5, 0.25, 1e-3, 0.25, threshold
    rows[1, :8] = 0.5, 0, 1.0, 2.0, 0.125, -1, 2.0, threshold
    shapes, arrays, grads, end = np.zeros(len(ADAFACTOR_SHAPES), FACTORED), [], [], 0
    for i, shape in enumerate(ADAFACTOR_SHAPES):
        batch, height, width = (0, 0, 0) if isinstance(shape, int) else shape
        param, grad = (run.array(rng.normal(size=shape).astype(dtype), offset=i % 2) for _ in range(2))
        of = [shape] if batch == 0 else [(batch, height), (batch, width)]
        states = [run.array(rng.uniform(1, 2, size=n).astype(dtype)) for n in of]
        columns = end + 2 * blocks_of(param.size, cuda.chunk)
        means = columns + batch * width * blocks_of(height, cuda.part_rows)
        shapes[i] = batch, height, width, columns, means, end
        end = means + batch
        arrays.append((param, states, i % 2))
        grads.append(grad)
    before = [(p.copy(), [s.copy() for s in states]) for p, states, _ in arrays]
    shared = run.empty(end, float)
    table, chunks = tables(cuda, arrays)
    where = [table, shapes, addresses(grads), rows, shared]
    bound = np.array([a.ctypes.data for a in where], np.uint64).tobytes()

    def of_work(work, length):
        counts = [blocks_of(n, length) * (p.size > 0) for n, (p, _, _) in zip(work, arrays, strict=True)]
        return np.array([(i, k) for i, n in enumerate(counts) for k in range(n)], CHUNKS)

    batch, height, width = shapes["batch"], shapes["rows"], shapes["cols"]
    for kernel, work, length in (
        ("adafactor_rows", batch * height, 8),
        ("adafactor_columns", batch * width * blocks_of(height, cuda.part_rows), cuda.threads),
        ("adafactor_col_var", batch * width, cuda.threads),
        ("adafactor_means", batch, 8),
    ):
        own = of_work(work, length)
        run(kernel, len(own), bound, own, dtype=dtype)
    run("adafactor_squares", len(chunks), bound, chunks, dtype=dtype)
    run("adafactor_rates", len(arrays), bound, dtype=dtype)
    run("adafactor_step", len(chunks), bound, chunks, dtype=dtype)

    for i, (param, states, group) in enumerate(arrays):
        scale, _, keep, largest, fresh, _, smallest, _ = rows[group, :8]
        p, old = before[i][0].astype(float), [s.astype(float) for s in before[i][1]]
        exact, close = -scale * grads[i].astype(float), {"rtol": 8 * np.finfo(dtype).eps}
        if p.size == 0:
            for state, was in zip(states, old, strict=True):
                assert same(state, was.astype(dtype))
            continue
        if p.ndim == 1:
            new = [(1 - fresh) * old[0] + fresh * exact**2]
            variance = new[0]
        else:
            new = [
                (1 - fresh) * s + fresh * (exact**2).mean(axis) for s, axis in zip(old, (2, 1), strict=True)
            ]
            mean = np.maximum(new[0].mean(1), eps[group])
            variance = new[0][:, :, None] * new[1][:, None] / mean[:, None, None]
        for state, expected in zip(states, new, strict=True):
            np.testing.assert_allclose(state, expected, **close)
        u = exact / np.sqrt(np.maximum(variance, eps[group] ** 2))
        size, length = np.sqrt((p**2).mean()), np.sqrt((u**2).mean())
        rate = largest * max(size, smallest) / max(length / threshold, 1)
        allowed = 16 * np.finfo(dtype).eps * (abs(p) + abs(rate * u))
        assert (abs(param - (keep * p + rate * u)) <= allowed).all(), ADAFACTOR_SHAPES[i]
