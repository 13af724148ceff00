"""The CUDA kernels of 16-bit parameters and 16- and 8-bit states have the bits of the CPU's.

Kernels are compiled for the host and run by the emulator in tests/gpu/emulator: results, not speed.
"""

import math

import numpy as np
import pytest
from support.launcher import addresses, blocks_of, coefficients, same, special

from pyoptim.backends.gpu import constants
from pyoptim.backends.gpu import packed as packed_steps
from pyoptim.backends.gpu.packed import ARRAYS
from pyoptim.backends.gpu.steps import chunks_of
from pyoptim.formulas import storage
from pyoptim.formulas.rules import RULES
from pyoptim.runtime import dtypes

native = pytest.importorskip("pyoptim.backends.native", reason="what is compared with", exc_type=ImportError)


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
    return packed.data.ctypes.data, scale, packed_steps.STORAGE_NAMES.index(packed.kind)


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
            kinds = [packed_steps.STORAGE_NAMES.index(name) for name in (source, to)]
            run("convert", blocks_of(size, cuda.chunk), size, kinds[0], own.data, kinds[1], made.data, scale,
                dtype=np.float32)  # fmt: skip
            with np.errstate(all="ignore"):
                storage.encode(expected, storage.decode(packed) * np.float32(scale), 0, False)
            assert_kept_alike(made, expected)
