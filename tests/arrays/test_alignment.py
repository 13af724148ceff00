"""Where arrays lie in memory changes speed only."""

import numpy as np
import pytest

import pyoptim as po


def vector_at(offset, values):
    """A copy of the values that begins so many bytes into a cache line."""
    raw = np.empty(values.nbytes + 128, np.uint8)
    begin = -raw.ctypes.data % 64 + offset
    out = raw[begin : begin + values.nbytes].view(values.dtype)
    out[...] = values
    return out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [5, 16_384, 40_001, 100_003])
def test_results_do_not_depend_on_alignment(dtype, size):
    rng = np.random.default_rng(0)
    start, gradient = rng.normal(size=(2, size)).astype(dtype)
    results = []
    for of_param, of_grad in ((0, 0), (16, 16), (40, 8), (56, 0)):
        p, g = vector_at(of_param, start), vector_at(of_grad, gradient)
        optimizer = po.Adam(p, weight_decay=0.1)
        for _ in range(3):
            optimizer.step(g)
        results.append(p)
    for p in results[1:]:
        np.testing.assert_array_equal(p, results[0])


def test_states_lie_on_cache_lines_as_their_parameters_do():
    params = [vector_at(offset, np.ones(100, np.float32)) for offset in (16, 0, 60)]
    params.append(vector_at(24, np.ones(100)))
    for p, state in zip(params, po.Adam(params)._states[0], strict=True):
        for array in state.values():
            assert array.ctypes.data % 64 == p.ctypes.data % 64


def test_states_of_consecutive_parameters_are_consecutive():
    buffer = np.zeros(100, np.float32)
    states = po.Adam([buffer[:7], buffer[7:30], buffer[30:]])._states[0]
    for name in ("exp_avg", "exp_avg_sq"):
        begins = [state[name].ctypes.data for state in states]
        assert [b - begins[0] for b in begins] == [0, 7 * 4, 30 * 4]


def test_dense_layers_do_not_depend_on_alignment(backend):
    rng = np.random.default_rng(0)
    shapes = (50, 37), (21, 37), (21,), (50, 21)
    values = [rng.normal(size=s).astype(np.float32) for s in shapes]
    results = []
    for offset in (0, 4, 20, 60):
        x, w, b, dy = (vector_at(offset, v.ravel()).reshape(v.shape) for v in values)
        y = po.ops.dense_forward(x, w, b, "relu")
        results.append([y, *po.ops.dense_backward(dy, x, w, y, "relu")])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
