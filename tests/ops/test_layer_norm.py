"""LayerNorm against an oracle, PyTorch, central differences and itself."""

import numpy as np
import pytest
from oracles import layers as oracles
from support.backends import use_threads

import pyoptim as po
from pyoptim import ops

TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12}
# Rows with and without a rest of lanes, several blocks of rows and of columns, one and more dimensions.
CASES = [((3, 1), 1), ((2, 15), 1), ((33, 17), 1), ((70, 130), 1), ((3, 5, 4), 2), ((2, 1300), 1),
         ((2, 70, 3), 1), ((4, 3, 2, 5), 3)]  # fmt: skip


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def arrays(rng, shape, dims, dtype, mean=2):
    features = shape[len(shape) - dims :]
    x, dy = rng.normal(mean, 3, size=shape).astype(dtype), rng.normal(size=shape).astype(dtype)
    return (features, x, dy, *rng.normal(size=(2, *features)).astype(dtype))


@pytest.mark.parametrize(("shape", "dims"), CASES, ids=str)
def test_forward(backend, dtype, shape, dims, rng):
    features, x, _, gamma, beta = arrays(rng, shape, dims, dtype)
    y, saved = ops.layer_norm_forward(x, features, gamma, beta)
    exact = oracles.layer_norm(x.astype(np.float64), gamma.astype(np.float64), beta.astype(np.float64), 1e-5)
    np.testing.assert_allclose(y, exact, rtol=TOLERANCE[dtype], atol=10 * TOLERANCE[dtype])
    axes = tuple(range(len(shape) - dims, len(shape)))
    np.testing.assert_allclose(saved.mean, x.mean(axes, np.float64).ravel(), rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("shape", "dims"), CASES, ids=str)
def test_against_torch(backend, dtype, shape, dims, affine, rng):
    torch = pytest.importorskip("torch")
    features, x, dy, gamma, beta = arrays(rng, shape, dims, dtype)
    layer = po.nn.LayerNorm(features, 1e-3, affine)
    model = po.nn.Sequential(layer, dtype=dtype)
    theirs = torch.nn.LayerNorm(features, 1e-3, affine, dtype=torch.float64)
    if affine:
        layer.parameters["weight"][...], layer.parameters["bias"][...] = gamma, beta
        with torch.no_grad():
            theirs.weight.copy_(torch.tensor(gamma))
            theirs.bias.copy_(torch.tensor(beta))
    tx = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    ty = theirs(tx)
    ty.backward(torch.tensor(dy, dtype=torch.float64))
    t = TOLERANCE[dtype]
    np.testing.assert_allclose(model(x), ty.detach().numpy(), rtol=t, atol=10 * t)
    np.testing.assert_allclose(model.backward(dy, True), tx.grad.numpy(), rtol=t, atol=100 * t)
    if affine:
        for ours, exact in (("weight", theirs.weight), ("bias", theirs.bias)):
            np.testing.assert_allclose(layer.gradients[ours], exact.grad.numpy(), rtol=10 * t, atol=100 * t)


@pytest.mark.parametrize("affine", [True, False])
def test_gradients_by_central_differences(backend, affine, rng):
    features, x, dy, gamma, beta = arrays(rng, (3, 2, 3), 2, np.float64)
    if not affine:
        gamma = beta = None

    def loss():
        return float((ops.layer_norm_forward(x, features, gamma, beta)[0] * dy).sum())

    saved = ops.layer_norm_forward(x, features, gamma, beta)[1]
    ours = ops.layer_norm_backward(dy, x, features, gamma, saved)
    for array, gradient in zip((x, gamma, beta), ours, strict=True):
        if array is not None:
            numeric = oracles.numerical_gradient(loss, array)
            np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-6)


def test_same_bits_for_every_number_of_threads(backend, dtype, rng):
    _, x, dy, gamma, beta = arrays(rng, (4099, 70), 1, dtype)
    results = []
    for n in (1, 2, 3):
        with use_threads(n):
            y, saved = ops.layer_norm_forward(x, 70, gamma, beta)
            results.append([y, *ops.layer_norm_backward(dy, x, 70, gamma, saved)])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_large_mean_and_large_values(backend, rng):
    x = rng.normal(1e4, 1, size=(5, 300)).astype(np.float32)
    y, _ = ops.layer_norm_forward(x, 300, eps=0.0)
    x64 = x.astype(np.float64)
    # The mean is rounded to float32, half a unit in the last place of 1e4.
    exact = (x64 - x64.mean(1, keepdims=True)) / x64.std(1, keepdims=True)
    np.testing.assert_allclose(y, exact, atol=6e-4)
    small = rng.normal(size=(5, 300)).astype(np.float32)
    huge, _ = ops.layer_norm_forward(small * np.float32(2.0**100), 300, eps=0.0)
    np.testing.assert_allclose(huge, ops.layer_norm_forward(small, 300, eps=0.0)[0], rtol=1e-4, atol=1e-5)


def test_what_is_not_finite_stays_in_its_row(backend, rng):
    x = rng.normal(size=(4, 40)).astype(np.float32)
    clean, _ = ops.layer_norm_forward(x, 40)
    x[1, 0], x[3, 39] = np.nan, np.inf
    y, _ = ops.layer_norm_forward(x, 40)
    assert np.isnan(y[1::2]).all()
    assert np.array_equal(y[::2], clean[::2])


def test_no_rows_and_strided_memory(backend, dtype, rng):
    y, saved = ops.layer_norm_forward(np.empty((0, 3), dtype), 3)
    _, dgamma, dbeta = ops.layer_norm_backward(y, y, 3, None, saved)
    assert y.shape == (0, 3)
    assert not dgamma.any()
    assert not dbeta.any()
    _, x, dy, gamma, _ = arrays(rng, (6, 20), 1, dtype)
    results = []
    for a in (x, np.asfortranarray(x)):
        y, saved = ops.layer_norm_forward(a, 20, gamma)
        results.append([y, *ops.layer_norm_backward(dy[::-1], a, 20, gamma, saved)])
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


X = np.ones((2, 3))
BAD_CALLS = [
    (lambda: ops.layer_norm_forward(X, 2), ValueError, r"x has shape \(2, 3\), expected \(..., 2\)"),
    (lambda: ops.layer_norm_forward(X, (1, 2, 3)), ValueError, r"x has shape \(2, 3\)"),
    (lambda: ops.layer_norm_forward(X, 0), ValueError, "features is 0"),
    (lambda: ops.layer_norm_forward(X, ()), ValueError, "at least one dimension"),
    (lambda: ops.layer_norm_forward(X, 3, np.ones(2)), ValueError, "gamma has shape"),
    (lambda: ops.layer_norm_forward(X, 3, None, np.ones(3, "f4")), TypeError, "beta has dtype float32"),
    (lambda: ops.layer_norm_forward(X, 3, eps=-1), ValueError, "eps is -1"),
    (lambda: ops.layer_norm_backward(X, X, 3, None, (X, X)), TypeError, "saved is a tuple"),
    (lambda: ops.layer_norm_backward(X, X, 3, None, ops.SavedLayerNorm(X, X)), ValueError, "saved.mean"),
    (lambda: ops.layer_norm_backward(X[:1], X, 3, None, None), ValueError, "dy has shape"),
    (lambda: po.nn.LayerNorm(2.5), ValueError, "features is 2.5"),
    (lambda: po.nn.LayerNorm(3, eps=np.nan), ValueError, "eps is nan"),
    (lambda: po.nn.LayerNorm((2, 3)).output_shape((3,)), ValueError, r"expected \(..., 2, 3\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS, ids=[m for _, _, m in BAD_CALLS])
def test_bad_input(backend, call, error, message):
    with pytest.raises(error, match=message):
        call()
