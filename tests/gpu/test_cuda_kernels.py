"""The CUDA kernels, compiled for the host and run by the emulator in tests/cuda: results, not speed.

Elementwise ones must have the bits of the compiled CPU kernels; sums are held against float64, within what
rounding allows: for a sum of terms t in precision u, by lanes of n terms, n u times the sum of abs(t).
"""

import math

import emulated
import launcher
import numpy as np
import pytest
from launcher import addresses, blocks_of, tables
from oracles import losses as loss_oracles

from pyoptim.backends import StepGroup
from pyoptim.backends.gpu import constants
from pyoptim.backends.gpu import packed as packed_steps
from pyoptim.backends.gpu.constants import POSITION
from pyoptim.backends.gpu.packed import ARRAYS
from pyoptim.backends.gpu.steps import chunks_of
from pyoptim.formulas import storage
from pyoptim.formulas.losses import POINTWISE
from pyoptim.formulas.norms import NormOptions
from pyoptim.formulas.rules import RULES, Common
from pyoptim.runtime import dtypes

native = pytest.importorskip("pyoptim.backends.native", reason="what is compared with", exc_type=ImportError)
from pyoptim.runtime import _native  # noqa: E402

if reason := emulated.why_not():
    pytest.skip(reason, allow_module_level=True)

KEEPS_INPUT = _native.activation_kinds()
KINDS = list(KEEPS_INPUT)  # as the enumeration has them
LANE = 32  # terms that a thread adds in the arrays' own precision, at most (see the shapes below)
SIZES = [0, 1, 3, 255, 256, 1023, 1025, 4095, 4096, 4097, 9000]


@pytest.fixture
def run(cuda):
    launch = launcher.Launcher(cuda)
    yield launch
    launch.check()


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def position(**values):
    """Where a training is."""
    made = np.zeros(1, POSITION)
    for name, value in values.items():
        made[name] = value
    return made


def same(a, b):
    """Equal bits; NaN is NaN."""
    assert a.dtype == b.dtype
    bits = np.uint32 if a.dtype == np.float32 else np.uint64
    return bool(((a.view(bits) == b.view(bits)) | (np.isnan(a) & np.isnan(b))).all())


def special(rng, n, dtype):
    """Values of all sizes, some of them special."""
    x = (rng.normal(size=n) * 10 ** rng.uniform(-6, 3, size=n)).astype(dtype)
    some = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40, -1e-40, 88.8, -104.5, 710.0, -745.5, 3.0, -3.0]
    x[: len(some)] = some[:n]
    return x


# ---- optimizer steps -------------------------------------------------------------------------------


def coefficients(rng, rule):
    row = rng.uniform(0.4, 0.9, len(Common._fields) + len(rule.coefficients._fields))
    if "smallest" in rule.coefficients._fields:
        row[-2:] = 0.1, 2.0
    return tuple(row)


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
    run(kernel, len(chunks), table, chunks, grads, *given)
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
    run("total<double>", 1, partial.size, partial, 1.0, None, total)
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
                 launcher.CHUNKS)
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
    run("total<double>", 1, blocks, partial, 1.0, None, total)
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
    return table, np.array(blocks, launcher.CHUNKS), np.cumsum([0, *counts])


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
    run(f"step<rule_named::{name}, {kind}>", len(chunks), of_arrays, chunks, grads, own, nothing)

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
    table = np.zeros(len(counts), launcher.ARRAYS)
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
        return np.array([(i, k) for i, n in enumerate(counts) for k in range(n)], launcher.CHUNKS)

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


# ---- what is kept in fewer bits --------------------------------------------------------------------


def stored(run, values, kind, offset):
    """A float32 vector as it is kept, and the same on the device."""
    if kind in ("signed8", "unsigned8"):
        blocks = blocks_of(values.size, storage.BLOCK)
        packed = storage.Packed(kind, np.zeros(values.size, np.uint8), np.zeros(blocks, np.float32))
    else:
        dtype = dtypes.bfloat16() if kind == "bfloat16" else np.dtype(kind)
        packed = storage.Packed(kind, np.zeros(values.size, dtype))
    storage.encode(packed, values.astype(np.float32), 1, True)
    scale = None if packed.scale is None else run.array(packed.scale)
    return packed, storage.Packed(kind, run.array(packed.data, offset=offset), scale)


def assert_kept_alike(a, b):
    if a.scale is not None:
        assert same(a.scale, b.scale)
    assert same(storage.decode(a), storage.decode(b))


def entry(packed):
    scale = 0 if packed.scale is None else packed.scale.ctypes.data
    return packed.data.ctypes.data, scale, packed_steps.KINDS.index(packed.kind)


def packed_table(entries):
    table, position = np.zeros(len(entries), ARRAYS), 0
    for at, (param, grad, master, states, row) in zip(table, entries, strict=True):
        at["param"], at["grad"], at["size"], at["row"] = entry(param), entry(grad), param.data.size, row
        at["state"][: len(states)] = [entry(state) for state in states]
        at["master"] = 0 if master is None else master.ctypes.data
        at["position"] = position
        position += param.data.size
    return table, chunks_of(table["size"], constants.CHUNK)


PACKED_SIZES = [0, 1, 31, 255, 256, 257, 4095, 4096, 4097, 9000]


@pytest.mark.parametrize("name", list(RULES))
@pytest.mark.parametrize(
    ("kind", "state_kinds", "mastered", "stochastic"),
    [
        ("float32", ("signed8", "unsigned8"), False, False),
        ("float16", ("signed8", "bfloat16"), False, True),
        ("float16", ("float32", "unsigned8"), True, False),
        ("bfloat16", ("bfloat16", "float32"), False, False),
        ("bfloat16", ("unsigned8", "signed8"), True, True),
    ],
    ids=str,
)
def test_packed_steps_have_the_cpu_s_bits(run, cuda, name, kind, state_kinds, mastered, stochastic, rng):
    pytest.importorskip("ml_dtypes")
    rule, key = RULES[name], 0xFEDCBA98
    cpu, own, grads = [], [], []
    for i, size in enumerate(PACKED_SIZES):
        values = [special(rng, size, np.float32) for _ in range(2 + len(rule.states))]
        if size == 4095:
            values = [rng.normal(size=size) for _ in values]  # scales that are not NaN
        param, own_param = stored(run, values[0], kind, i % 3)
        grad, own_grad = stored(run, values[1], kind, i % 2)
        pairs = [stored(run, abs(v), state_kinds[k % 2], k) for k, v in enumerate(values[2:])]
        master = values[0].astype(np.float32) if mastered else None
        own_master = run.array(master) if mastered else None
        cpu.append(storage.PackedArray(i % 2, param, master, [state for state, _ in pairs]))
        own.append((own_param, own_grad, own_master, [state for _, state in pairs], i % 2))
        grads.append((grad.data, own_grad.data))
    rows = [coefficients(rng, rule) for _ in range(2)]
    values = np.zeros((cuda.step_rows, cuda.row_length), np.float32)
    for i, row in enumerate(rows):
        values[i, : len(row)] = row
    table, chunks = packed_table(own)
    run(f"packed_step<rule_named::{name}, float>", len(chunks), table, chunks,
        addresses([grad for _, grad in grads]), None, values.tobytes(), key, stochastic)  # fmt: skip
    assert native.PackedStepper([rule, rule], cpu).step([grad for grad, _ in grads], rows, key, stochastic)
    for (param, _, master, states, _), expected in zip(own, cpu, strict=True):
        assert_kept_alike(param, expected.param)
        assert master is None or same(master, expected.master)
        for state, expected_state in zip(states, expected.states, strict=True):
            assert_kept_alike(state, expected_state)


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "signed8", "unsigned8"])
def test_sums_of_squares_of_what_is_packed(run, kind, rng):
    pytest.importorskip("ml_dtypes")
    values = [stored(run, abs(rng.normal(size=size)), kind, i % 3) for i, size in enumerate(PACKED_SIZES)]
    table, chunks = packed_table([(own, own, None, [], 0) for _, own in values])
    partial = run.empty(len(chunks), float)
    where = addresses([own.data for _, own in values])
    run("packed_sum_of_squares", len(chunks), table, chunks, where, partial, dtype=np.float32)
    exact = math.fsum(float(v) ** 2 for packed, _ in values for v in storage.decode(packed))
    assert abs(partial.sum() - exact) <= 64 * np.finfo(float).eps * exact


@pytest.mark.parametrize("source", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("to", ["float32", "float16", "bfloat16"])
def test_conversions(run, cuda, source, to, rng):
    pytest.importorskip("ml_dtypes")
    for i, size in enumerate(PACKED_SIZES):
        packed, own = stored(run, special(rng, size, np.float32), source, i % 3)
        expected, made = stored(run, np.zeros(size), to, (i + 1) % 3)
        for scale in (1.0, 1 / 3):
            run("convert", blocks_of(size, cuda.chunk), size, packed_steps.KINDS.index(source), own.data,
                packed_steps.KINDS.index(to), made.data, scale, dtype=np.float32)  # fmt: skip
            with np.errstate(all="ignore"):
                storage.encode(expected, storage.decode(packed) * np.float32(scale), 0, False)
            assert_kept_alike(made, expected)


# ---- elementwise -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_activations_have_the_cpu_s_bits(run, cuda, dtype, kind, rng):
    index = KINDS.index(kind)
    for n, (x_at, y_at) in zip(SIZES, [(0, 0), (1, 1), (0, 1)] * 4, strict=False):
        x, dy, blocks = special(rng, n, dtype), rng.normal(size=n).astype(dtype), blocks_of(n, cuda.elements)
        y, expected = run.empty(n, dtype, y_at), np.empty_like(x)
        run("activation_forward", blocks, index, 0.75, 1.5, n, run.array(x, offset=x_at), y,
            dtype=dtype)  # fmt: skip
        _native.activation_forward(kind, x, expected, 0.75, 1.5)
        assert same(y, expected)
        kept = x if KEEPS_INPUT[kind] else expected
        dx, expected_dx = run.empty(n, dtype, y_at), np.empty_like(x)
        run("activation_backward", blocks, index, 0.75, 1.5, n, run.array(dy, offset=x_at),
            run.array(kept, offset=y_at), dx, dtype=dtype)  # fmt: skip
        _native.activation_backward(kind, dy, kept, expected_dx, 0.75, 1.5)
        assert same(dx, expected_dx)


@pytest.mark.parametrize("shape", [(3, 1), (7, 300), (70, 129), (0, 4)])
def test_bias_and_activation(run, cuda, dtype, shape, rng):
    z, bias = rng.normal(size=shape).astype(dtype), rng.normal(size=shape[1]).astype(dtype)
    for kind in ("identity", "relu", "gelu"):
        y, expected = run.array(z), np.empty_like(z)
        run("bias_activation", blocks_of(z.size, cuda.elements), KINDS.index(kind), 0.0, 0.0, z.size,
            shape[1], bias, y, dtype=dtype)  # fmt: skip
        _native.activation_forward(kind, z + bias, expected)
        assert same(y, expected)


@pytest.mark.parametrize("n", [0, 1, 15, 63, 64, 65, 1023, 1024, 1025, 3000])
def test_dropout_and_noise_have_the_cpu_s_numbers(run, cuda, dtype, n, rng):
    seed, step = 0x123456789ABCDEF0, 0xFEDCBA9876543210
    x = rng.normal(size=n).astype(dtype)
    blocks = blocks_of(blocks_of(n, 64) * 16, cuda.threads)
    y, expected = run.empty(n, dtype), np.empty_like(x)
    threshold = min(round(0.3 * 2**32), 2**32 - 1)
    for at, now in ((None, step), (position(steps=3), step + 3), (position(steps=-2), step - 2)):
        run("dropout", blocks, seed, step, at, n, threshold, 1 / (1 - 0.3), x, y, dtype=dtype)
        _native.dropout(x, 0.3, seed, now, expected)
        assert same(y, expected)
        run("gaussian_noise", blocks, seed, step, at, n, 0.25, x, y, dtype=dtype)
        _native.gaussian_noise(x, 0.25, seed, now, expected)
        assert same(y, expected)


@pytest.mark.parametrize("n", SIZES)
def test_add_and_affine(run, cuda, dtype, n, rng):
    a, b, y = (run.array(special(rng, n, dtype)) for _ in range(3))
    run("add", blocks_of(n, cuda.elements), n, a, b, y, dtype=dtype)
    with np.errstate(all="ignore"):
        assert same(y, a + b)
        run("affine", blocks_of(n, cuda.elements), n, 0.3, -1.25, a, y, dtype=dtype)
        assert same(y, a * dtype(0.3) + dtype(-1.25))
        run("affine", blocks_of(n, cuda.elements), n, 0.3, -0.0, a, y, dtype=dtype)
        assert same(y, a * dtype(0.3))


# ---- training --------------------------------------------------------------------------------------


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
def test_what_is_classified_right_is_counted_as_numpy_s_argmax_does(run, dtype, classes, rng):
    output, shares = rng.integers(0, 4, (2, 50, classes)).astype(dtype)  # many are equal
    output[::5, rng.integers(0, classes, 10)] = math.nan
    output[::7] = -math.inf
    labels, at = rng.integers(0, classes, 50), position(right=5)
    run("count_right", blocks_of(50, 8), 50, classes, output, labels, None, at, dtype=dtype)
    assert at["right"] == 5 + (output.argmax(1) == labels).sum()
    run("count_right", blocks_of(50, 8), 50, classes, output, None, shares, at, dtype=dtype)
    assert (
        at["right"] == 5 + (output.argmax(1) == labels).sum() + (output.argmax(1) == shares.argmax(1)).sum()
    )


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
    at = position(steps=3, example=64, row=1, loss=0.1, right=7)
    run("finish_step<double>", 1, 32, np.array([1 / 3]), at)
    assert at.tolist() == [(4, 96, 2, 0.1 + 1 / 3 * 32, 7)]


# ---- graphs ----------------------------------------------------------------------------------------


def finish_step(cuda, batch, loss, at, stream):
    cuda.launch("finish_step<double>", 1, (batch, loss.ctypes.data, at.ctypes.data), stream)


def test_a_graph_is_what_was_launched_and_runs_when_it_is_launched(cuda):
    at, loss = position(), np.array([2.0])
    stream = cuda.Stream()
    cuda.begin_capture(stream.address)
    finish_step(cuda, 10, loss, at, stream.address)
    cuda.fill(loss.ctypes.data, 0, 8, stream.address)
    memory, copied = cuda.Memory(8), cuda.Memory(8)  # relaxed: memory may be taken
    cuda.copy(copied.address, memory.address, 8, stream.address)
    finish_step(cuda, 1, loss, at, 0)  # elsewhere work goes on
    assert at["example"] == 1
    graph = cuda.Graph(stream.address)
    assert (at["example"], loss[0]) == (1, 2.0)
    graph.launch(0)
    assert (at["example"], at["loss"], loss[0]) == (11, 22.0, 0.0)
    graph.launch(stream.address)
    assert (at["example"], at["loss"]) == (21, 22.0)


def test_streams_of_a_capture_are_in_any_order_that_events_allow(cuda):
    main, side, event, joined = cuda.Stream(), cuda.Stream(), cuda.Event(), cuda.Event()
    first, both = np.zeros(8, np.uint8), np.zeros(8, np.uint8)
    value = first.ctypes.data
    cuda.begin_capture(main.address)
    cuda.fill(value, 1, 8, main.address)
    event.record(main.address)
    event.hold(side.address)
    cuda.fill(value, 2, 8, side.address)  # beside the next
    cuda.fill(value, 3, 8, main.address)
    joined.record(side.address)
    with pytest.raises(RuntimeError, match="uncaptured work"):
        joined.hold(0)  # the default stream
    joined.hold(main.address)
    cuda.fill(both.ctypes.data, 4, 8, main.address)
    graph = cuda.Graph(main.address)
    assert not first.any()
    seen = set()
    for _ in range(40):
        graph.launch(0)
        seen.add(int(first[0]))
    assert (seen, set(both)) == ({2, 3}, {4})


def test_a_capture_ends_with_all_its_streams_joined(cuda):
    main, side, event, host = cuda.Stream(), cuda.Stream(), cuda.Event(), np.zeros(8, np.uint8)
    cuda.begin_capture(main.address)
    event.record(main.address)
    event.hold(side.address)
    cuda.fill(host.ctypes.data, 1, 8, side.address)
    with pytest.raises(RuntimeError, match="not ended in the same stream"):
        cuda.Graph(side.address)
    with pytest.raises(RuntimeError, match="unjoined"):
        cuda.Graph(main.address)
    cuda.fill(host.ctypes.data, 2, 8, side.address)  # both streams are as before
    assert set(host) == {2}
    with pytest.raises(RuntimeError, match="event last recorded in a capturing stream"):
        event.hold(side.address)


@pytest.mark.parametrize("what", ["synchronize", "copy", "hold"])
def test_a_capture_refuses_what_a_gpu_s_does(cuda, what):
    stream, event, host, memory = cuda.Stream(), cuda.Event(), np.zeros(1), cuda.Memory(8)
    event.record(0)
    cuda.begin_capture(stream.address)
    refused = {
        "synchronize": lambda: cuda.synchronize(stream.address),
        "copy": lambda: cuda.copy(memory.address, host.ctypes.data, 8, stream.address),
        "hold": lambda: event.hold(stream.address),
    }
    with pytest.raises(RuntimeError, match="captur"):
        refused[what]()
    with pytest.raises(RuntimeError, match="previous error during capture"):
        cuda.Graph(stream.address)
    cuda.begin_capture(stream.address)  # the stream is as before
    cuda.Graph(stream.address).launch(stream.address)


def test_the_default_stream_cannot_capture(cuda):
    for stream in (0, 1):
        with pytest.raises(RuntimeError, match="capturing"):
            cuda.begin_capture(stream)
        assert not cuda.is_capturing(stream)


def test_which_stream_captures(cuda):
    one, other = cuda.Stream(), cuda.Stream()
    cuda.begin_capture(one.address)
    assert [cuda.is_capturing(stream.address) for stream in (one, other)] == [True, False]
    cuda.Graph(one.address)
    assert not cuda.is_capturing(one.address)
    with pytest.raises(RuntimeError, match="present state"):
        cuda.Graph(one.address)


def test_streams_and_events_belong_to_a_device(cuda, monkeypatch):
    monkeypatch.setenv("PYOPTIM_EMULATED_DEVICES", "2")
    with pytest.raises(RuntimeError, match="invalid device"):
        cuda.set_device(2)
    here = cuda.Event(), cuda.Stream()
    cuda.set_device(1)
    try:
        there = cuda.Event(), cuda.Stream()
        assert cuda.get_device() == 1
        for event, stream in ((here[0], there[1]), (there[0], here[1]), (here[0], 1)):
            with pytest.raises(RuntimeError, match="invalid resource handle"):
                event.record(getattr(stream, "address", stream))
        there[0].record(1)
        there[0].hold(here[1].address)  # a stream may wait for another device
    finally:
        cuda.set_device(0)
    here[0].record(1)


RACE = """
#include "emulator.hpp"
#include <cstdio>
__shared__ int shared;
__global__ void say(int value, int* out) {
    if (threadIdx.x == 0) shared = value;
    BARRIER
    out[blockIdx.x * 256 + threadIdx.x] = shared;
}
__global__ void last(int* out) { *out = int(blockIdx.x); }
int main() {
    static int out[3 * 256];
    int wrong = 0, blocks = 0;
    for (int value = 1; value <= 3; ++value) {
        int* at = out;
        void* arguments[] = {&value, &at};
        emulator::Call<&say>::run_all(3, arguments);
        for (int x : out) wrong += x != value;
        emulator::Call<&last>::run_all(3, arguments + 1);
        blocks |= 1 << out[0];
    }
    std::printf("%d %d", wrong != 0, blocks);
}
"""


@pytest.mark.parametrize(("barrier", "wrong"), [("__syncthreads();", "0"), ("", "1")])
def test_the_emulator_s_order_is_not_to_be_relied_on(barrier, wrong, tmp_path):
    """Threads that miss a barrier, and blocks that overwrite each other, give other results by and by."""
    if reason := emulated.why_not():
        pytest.skip(reason)
    (tmp_path / "race.cpp").write_text(RACE.replace("BARRIER", barrier))
    folder = emulated.HERE
    emulated.run(
        emulated.compiler(), "-std=c++17", f"-I{folder}", tmp_path / "race.cpp", "-o", tmp_path / "race"
    )
    differ, blocks = emulated.run(tmp_path / "race").split()
    assert differ == wrong
    assert int(blocks) & (int(blocks) - 1)  # more than one block was the last


# ---- normalisation ---------------------------------------------------------------------------------


def norm_plan(cuda, shape):
    """Blocks, and partial sums, of norm_kernels.cuh."""
    batch, channels, space = shape
    if space < 256:
        parts, cols = blocks_of(batch, cuda.part_rows), channels * space
        return parts * blocks_of(cols, 32), parts * cols
    blocks = batch * channels * blocks_of(space, cuda.chunk)
    return blocks, blocks


# Columns with and without a rest, several parts; short and long runs, several slices.
NORM_SHAPES = [(2, 1, 1), (128, 32, 1), (129, 33, 1), (300, 5, 1), (40, 3, 7), (9, 2, 255), (3, 4, 256),
               (2, 3, 4097), (1, 2, 9000)]  # fmt: skip


def bound(dtype, terms, n=LANE):
    return n * np.finfo(dtype).eps * np.abs(terms).sum((0, 2), dtype=float)


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


# ---- matrices --------------------------------------------------------------------------------------


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


# ---- losses ----------------------------------------------------------------------------------------


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


# ---- the bindings ----------------------------------------------------------------------------------


def test_arguments_are_checked(cuda):
    with pytest.raises(ValueError, match="no kernel named 'sum'"):
        cuda.launch("sum", 1, (), 0)
    with pytest.raises(TypeError, match="total<double> takes 5 arguments, 1 were given"):
        cuda.launch("total<double>", 1, (1,), 0)
    with pytest.raises(TypeError, match="argument 1 of total<double> is 'x', expected an address or None"):
        cuda.launch("total<double>", 1, (1, "x", 1.0, None, 0), 0)
    with pytest.raises(TypeError, match=r"argument 0 of total<double> is 1\.5, expected an int"):
        cuda.launch("total<double>", 1, (1.5, 0, 1.0, None, 0), 0)
    with pytest.raises(TypeError, match="argument 2 of total<double> is None, expected a float"):
        cuda.launch("total<double>", 1, (1, 0, None, None, 0), 0)
    with pytest.raises(
        ValueError, match="argument 4 of step<rule_named::sgd, float> has 3 bytes, expected 512"
    ):
        cuda.launch("step<rule_named::sgd, float>", 1, (0, 0, 0, 0, b"abc"), 0)
    with pytest.raises(ValueError, match="blocks is -1"):
        cuda.launch("total<double>", -1, (0, 0, 1.0, None, 0), 0)


def test_every_rule_has_its_kernels(cuda):
    steps = {name for name in cuda.kernels() if name.startswith("step<")}
    assert steps == {f"step<rule_named::{rule}, {t}>" for rule in RULES for t in ("float", "double")}
    packed = {name for name in cuda.kernels() if name.startswith("packed_step<")}
    assert packed == {f"packed_step<rule_named::{rule}, float>" for rule in RULES}


def test_constants_of_storage(cuda):
    assert cuda.scale_block == storage.BLOCK
    assert ARRAYS.itemsize == 176


def test_memory_and_copies(cuda):
    x, y = np.arange(5.0), np.zeros(5)
    memory = cuda.Memory(x.nbytes)
    assert memory.bytes == x.nbytes
    cuda.copy(memory.address, x.ctypes.data, x.nbytes, 0)
    cuda.copy(y.ctypes.data, memory.address, x.nbytes, 0)
    cuda.synchronize(0)
    assert same(x, y)
    cuda.fill(memory.address, 0, x.nbytes, 0)
    cuda.copy(y.ctypes.data, memory.address, x.nbytes, 0)
    assert not y.any()


def test_without_a_device(cuda, monkeypatch, run_python):
    code = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("_cuda", {cuda.__file__!r})
cuda = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cuda)
print(cuda.device_count(), cuda.why_not())
def launch():
    cuda.launch("total<double>", 0, (0, 0, 1.0, 0, 0), 0)
for call in (lambda: cuda.Memory(8), cuda.Stream, launch):
    try:
        call()
    except RuntimeError as error:
        print(error)
"""
    out = run_python(code, PYOPTIM_EMULATED_DEVICES="0").stdout.splitlines()
    assert out[0] == "0 no CUDA-capable device is detected"
    assert out[1:] == ["no CUDA device can be used: no CUDA-capable device is detected"] * 3
