"""The elementwise CUDA kernels of layers have the bits of the CPU's.

Kernels are compiled for the host and run by the emulator in tests/gpu/emulator: results, not speed.
"""

import numpy as np
import pytest
from support.launcher import SIZES, blocks_of, position, same, special

pytest.importorskip("pyoptim.runtime._native", reason="what is compared with", exc_type=ImportError)
from pyoptim.runtime import _native

KEEPS_INPUT = _native.activation_kinds()


KINDS = list(KEEPS_INPUT)  # as the enumeration has them


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
