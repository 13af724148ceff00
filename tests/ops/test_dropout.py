"""Dropout and Gaussian noise: the generator's published answers, masks, layers, saving and resuming."""

import copy
import math

import numpy as np
import pytest
from oracles import layers as oracles
from support import backends

import pyoptim as po
from pyoptim import nn, ops
from pyoptim.formulas.random import philox

# Random123 1.14, tests/kat_vectors: philox4x32 10
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN, ids=["zeros", "ones", "pi"])
def test_philox_gives_the_published_answers(counter, key, words):
    assert philox(np.array(counter, np.uint32)[:, None], tuple(key))[:, 0].tolist() == words
    native = pytest.importorskip("pyoptim.runtime._native")
    assert native.philox(counter, key) == words


def by_hand(seed, step, p, n):
    """Which elements are dropped: element 64 g + 16 j + l has word j of the counter 16 g + l."""
    dropped = np.empty(n, bool)
    for i in range(n):
        c = i // 64 * 16 + i % 16
        counter = np.array([c & 0xFFFFFFFF, c >> 32, step & 0xFFFFFFFF, step >> 32], np.uint32)
        word = philox(counter[:, None], (seed & 0xFFFFFFFF, seed >> 32))[i % 64 // 16, 0]
        dropped[i] = word / 2**32 < p
    return dropped


SEED, STEP = 0x123456789ABCDEF0, 0xFEDCBA9876543210


@pytest.mark.parametrize("n", [0, 1, 15, 63, 64, 65, 1000])
def test_masks(backend, dtype, n):
    x = np.arange(1, n + 1).astype(dtype)
    y = ops.dropout_forward(x, 0.3, SEED, STEP)
    expected = np.where(by_hand(SEED, STEP, 0.3, n), 0, x * dtype(1 / (1 - 0.3)))
    assert np.array_equal(y, expected.astype(dtype))
    assert np.array_equal(ops.dropout_backward(x, 0.3, SEED, STEP), y)


def test_each_stream_is_another(backend):
    x = np.ones(4096)
    masks = [ops.dropout_forward(x, 0.5, seed, step) for seed, step in
             [(0, 0), (0, 1), (1, 0), (1 << 32, 0), (0, 1 << 32)]]  # fmt: skip
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert 0.4 < (a == b).mean() < 0.6


@pytest.mark.parametrize("p", [0.0, 1e-3, 0.1, 0.5, 0.9, 1 - 1e-12])
def test_the_share_that_is_dropped(backend, p):
    n = 100_003
    y = ops.dropout_forward(np.ones(n), p, 7, 0)
    assert abs((y == 0).mean() - p) <= 5 * math.sqrt(max(p * (1 - p), 1e-9) / n)
    assert np.isin(y, [0, 1 / (1 - p)]).all()


def test_noise_is_normal(backend, dtype):
    n = 200_003
    x = np.full(n, 3, dtype)
    z = (ops.gaussian_noise(x, 2.0, 5, 1).astype(float) - 3) / 2
    assert abs(z.mean()) < 5 / math.sqrt(n)
    assert abs(z.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / n)
    share = np.array([(np.abs(z) < k).mean() for k in (0.5, 1, 2, 3)])
    exact = [math.erf(k / math.sqrt(2)) for k in (0.5, 1, 2, 3)]
    np.testing.assert_allclose(share, exact, atol=5 * 0.5 / math.sqrt(n))
    for lag in (1, 16, 32, 64):
        assert abs((z[:-lag] * z[lag:]).mean()) < 5 / math.sqrt(n)
    assert np.array_equal(ops.gaussian_noise(x, 0.0, 5, 1), x)


def test_noise_agrees_between_backends(backend, dtype):
    x = np.zeros(10_001, dtype)
    y = ops.gaussian_noise(x, 1.0, SEED, STEP)
    with po.use_backend("numpy"):
        np.testing.assert_allclose(y, ops.gaussian_noise(x, 1.0, SEED, STEP),
                                   rtol=np.finfo(dtype).eps, atol=1e-13)  # fmt: skip


def test_same_bits_for_every_instruction_set_and_number_of_threads(dtype):
    x = np.random.default_rng(0).normal(size=300_007).astype(dtype)
    for function in (ops.dropout_forward, ops.gaussian_noise):
        results = []
        for e in backends.LIVE:
            if e.startswith("native"):
                for threads in (1, 2, 3):
                    with backends.running_on(e), backends.use_threads(threads):
                        results.append(function(x, 0.4, 11, 12))
        assert all(np.array_equal(results[0], other) for other in results[1:])


def test_nan_passes_where_it_is_kept(backend):
    x = np.full(1000, np.nan)
    dropped = by_hand(1, 2, 0.5, 1000)
    assert np.array_equal(np.isnan(ops.dropout_forward(x, 0.5, 1, 2)), ~dropped)


def model(dtype=np.float32):
    layers = nn.Dense(6, 8), nn.Dropout(0.4), nn.ReLU(), nn.GaussianNoise(0.3), nn.Dense(8, 3)
    return nn.Sequential(*layers, seed=4, dtype=dtype)


def test_layers_by_central_differences(backend):
    m = model(np.float64)
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(5, 6)), rng.normal(size=(5, 3))
    start = m.state_dict()

    def loss():
        for name in ("1.step", "3.step"):
            m._named("parameters", "buffers")[name][...] = start[name]
        return float((m(x) * dy).sum())

    loss()
    m.backward(dy)
    gradient = m.flat_gradients.copy()
    numeric = oracles.numerical_gradient(loss, m.flat_parameters)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-8)


def test_training_is_random_and_evaluation_is_not(backend):
    m = model()
    x = np.ones((7, 6), np.float32)
    assert not np.array_equal(m(x), m(x))
    assert m.layers[1].buffers["step"] == 2
    m.eval()
    plain = nn.Sequential(nn.Dense(6, 8), nn.ReLU(), nn.Dense(8, 3))
    plain.flat_parameters[...] = m.flat_parameters
    assert np.array_equal(m(x), plain(x))
    assert m.layers[1].buffers["step"] == 2
    dy = np.ones((7, 3), np.float32)
    plain.backward(dy)
    m.backward(dy)
    assert np.array_equal(m.flat_gradients, plain.flat_gradients)


def test_seeds_differ_between_layers_and_come_from_the_models():
    twice = [nn.Sequential(nn.Dropout(), nn.Dropout(), seed=seed) for seed in (1, 1, 2)]
    seeds = [[int(layer.buffers["seed"]) for layer in m.layers] for m in twice]
    assert seeds[0] == seeds[1] != seeds[2]
    assert seeds[0][0] != seeds[0][1]


def test_what_is_saved_or_copied_goes_on_alike(tmp_path):
    m = model()
    x = np.ones((7, 6), np.float32)
    m(x)
    m.save(tmp_path / "m")
    others = [nn.Sequential.load(tmp_path / "m").train(), copy.deepcopy(m)]
    y = m(x)
    for other in others:
        assert repr(other) == repr(m)
        assert np.array_equal(other(x), y)
        assert not np.array_equal(other(x), y)


A = np.zeros
BAD_CALLS = [
    (lambda: ops.dropout_forward(A(3), 1, 0, 0), ValueError, "p is 1, expected a drop probability"),
    (lambda: ops.dropout_forward(A(3), -0.1, 0, 0), ValueError, r"p is -0\.1"),
    (lambda: ops.dropout_forward(A(3), "0.5", 0, 0), ValueError, r"p is '0\.5'"),
    (lambda: ops.dropout_forward(A(3), 0.5, -1, 0), ValueError, "seed is -1"),
    (lambda: ops.dropout_forward(A(3), 0.5, 0, 2**64), ValueError, "step is"),
    (lambda: ops.dropout_forward(A(3), 0.5, 0.5, 0), ValueError, r"seed is 0\.5"),
    (lambda: ops.dropout_forward(A(3, int), 0.5, 0, 0), TypeError, "x has dtype int64"),
    (lambda: ops.dropout_backward([1.0], 0.5, 0, 0), TypeError, "dy is a list"),
    (lambda: ops.gaussian_noise(A(3), -1, 0, 0), ValueError, "std is -1"),
    (lambda: ops.gaussian_noise(A(3, int), 1, 0, 0), TypeError, "x has dtype int64"),
    (lambda: nn.Dropout(1.0), ValueError, r"p is 1\.0"),
    (lambda: nn.GaussianNoise(np.inf), ValueError, "std is inf"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS, ids=[m for _, _, m in BAD_CALLS])
def test_bad_input(backend, call, error, message):
    with pytest.raises(error, match=message):
        call()
