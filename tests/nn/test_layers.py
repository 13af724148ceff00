"""Layer and loss kernels: float64 oracles, central differences, PyTorch, on every backend."""

import numpy as np
import pytest
from oracles import layers as oracles
from support import kinds

import pyoptim as po
from pyoptim import nn, ops

EPS = {np.float32: 2.0**-24, np.float64: 2.0**-53}
# Sizes that straddle vectors, tiles and blocks of the packed product.
DENSE_SHAPES = [  # (batch, in, out)
    (1, 1, 1),
    (1, 784, 256),
    (1, 1023, 9),
    (2, 3, 5),
    (3, 16, 8),
    (4, 15, 7),
    (5, 17, 9),
    (10, 128, 10),
    (12, 256, 32),
    (13, 257, 33),
    (47, 31, 49),
    (48, 32, 48),
    (49, 33, 47),
    (128, 64, 10),
    (65, 31, 129),
    (1025, 18, 14),
    (14, 63, 1025),
    (1024, 5, 1024),
    (50, 1, 1),  # a single input
    (1025, 1, 33),
    (1, 601, 701),  # a weight larger than a cache, and few rows
    (51, 1024, 530),  # rows a multiple of a page apart
    (530, 300, 1024),
    (61, 1537, 1111),  # several passes over the inputs, several blocks of outputs
    (200, 2048, 65),
]
NORM_SHAPES = [(2, 1), (5, 3), (33, 64), (32, 65), (128, 130), (3, 4, 5), (2, 3, 16), (4, 2, 3, 17)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def product_bound(x, w, terms, dtype):
    """|computed - exact| <= gamma_k sum |x||w| for any order of summation (Higham 2002, 3.1)."""
    k = terms + 2  # the bias and the rounding of the result
    return k * EPS[dtype] / (1 - k * EPS[dtype]) * (np.abs(x) @ np.abs(w)) + np.finfo(dtype).tiny


@pytest.mark.parametrize("shape", DENSE_SHAPES, ids=str)
def test_dense_forward(backend, dtype, shape, rng):
    n, i, o = shape
    x, w, b = (rng.normal(size=s).astype(dtype) for s in ((n, i), (o, i), (o,)))
    exact = oracles.dense(*(a.astype(np.float64) for a in (x, w, b)))
    bound = product_bound(
        np.c_[x, np.ones(n)].astype(np.float64), np.r_[w.T, b[None]].astype(np.float64), i, dtype
    )
    assert (np.abs(ops.dense_forward(x, w, b) - exact) <= bound).all()
    without = oracles.dense(x.astype(np.float64), w.astype(np.float64), None)
    assert (np.abs(ops.dense_forward(x, w) - without) <= bound).all()


@pytest.mark.parametrize("shape", DENSE_SHAPES, ids=str)
def test_dense_backward(backend, dtype, shape, rng):
    n, i, o = shape
    x, w, dy = (rng.normal(size=s).astype(dtype) for s in ((n, i), (o, i), (n, o)))
    dx, dw, db = ops.dense_backward(dy, x, w)
    x64, w64, dy64 = (a.astype(np.float64) for a in (x, w, dy))
    assert (np.abs(dx - dy64 @ w64) <= product_bound(dy64, w64, o, dtype)).all()
    assert (np.abs(dw - dy64.T @ x64) <= product_bound(dy64.T, x64, n, dtype)).all()
    assert (np.abs(db - dy64.sum(0)) <= product_bound(np.ones((1, n)), dy64, n, dtype)[0]).all()


@pytest.mark.parametrize("n", [1, 2, 13, 50])
@pytest.mark.parametrize("i", [1, 5, 16, 19, 33])
def test_dense_keeps_nan_and_infinity_where_they_are(backend, dtype, n, i, rng):
    """Each result has the terms it should, 0 * NaN and 0 * infinity included, and no neighbour's."""
    o = 11
    x, w, dy = (rng.integers(-3, 4, size=s).astype(dtype) for s in ((n, i), (o, i), (n, o)))
    x[-1, -1], w[3, 0], w[7, -1], dy[0, 2] = np.inf, np.nan, -np.inf, np.nan
    with np.errstate(invalid="ignore"):
        x64, w64, dy64 = (a.astype(np.float64) for a in (x, w, dy))
        exact = (x64[:, None] * w64).sum(2)
        dx, dw = (dy64[:, :, None] * w64).sum(1), (dy64.T[:, :, None] * x64).sum(1)
        np.testing.assert_array_equal(ops.dense_forward(x, w), exact)
        np.testing.assert_array_equal(ops.dense_forward(x, w, None, "relu"), np.maximum(exact, 0))
        found = ops.dense_backward(dy, x, w)
    np.testing.assert_array_equal(found[0], dx)
    np.testing.assert_array_equal(found[1], dw)
    np.testing.assert_array_equal(found[2], dy64.sum(0))


@pytest.mark.parametrize("activation", [None, *ops.ACTIVATIONS])
@pytest.mark.parametrize("shape", [(1, 20, 30), (70, 20, 130)], ids=str)
def test_dense_is_its_parts(backend, dtype, activation, shape, rng):
    """The activation, its derivative and the bias's gradient are the same bits alone."""
    n, i, o = shape
    x, w, b, dy = (rng.normal(size=s).astype(dtype) for s in ((n, i), (o, i), (o,), (n, o)))
    z, y = ops.dense_forward(x, w, b), ops.dense_forward(x, w, b, activation)
    dz = dy
    if activation is not None:
        np.testing.assert_array_equal(y, ops.activation_forward(z, activation))
        dz = ops.activation_backward(dy, y, activation)
    for fused, apart in zip(
        ops.dense_backward(dy, x, w, y, activation), ops.dense_backward(dz, x, w), strict=True
    ):
        np.testing.assert_array_equal(fused, apart)


@pytest.mark.parametrize("activation", [None, *ops.ACTIVATIONS])
def test_dense_gradients_by_central_differences(backend, activation, rng):
    x, w, b, dy = (rng.normal(size=s) for s in ((5, 7), (4, 7), (4,), (5, 4)))

    def loss():
        return float((ops.dense_forward(x, w, b, activation) * dy).sum())

    y = ops.dense_forward(x, w, b, activation)
    np.testing.assert_allclose(y, oracles.dense(x, w, b, activation), rtol=1e-12)
    for array, gradient in zip((x, w, b), ops.dense_backward(dy, x, w, y, activation), strict=True):
        np.testing.assert_allclose(gradient, oracles.numerical_gradient(loss, array), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shape", NORM_SHAPES, ids=str)
def test_batch_norm_forward(backend, dtype, shape, rng):
    c = shape[1]
    x = rng.normal(3, 2, size=shape).astype(dtype)
    gamma, beta = rng.normal(size=c).astype(dtype), rng.normal(size=c).astype(dtype)
    mean, var = np.full(c, 0.5, dtype), np.full(c, 2.0, dtype)
    y, _ = ops.batch_norm_forward(x, gamma, beta, mean, var, momentum=0.3)
    x64 = x.astype(np.float64)
    exact = oracles.batch_norm(x64, gamma.astype(np.float64), beta.astype(np.float64), 1e-5)
    tolerance = 64 * EPS[dtype]
    np.testing.assert_allclose(y, exact, rtol=tolerance, atol=tolerance * 8)
    axes = (0, *range(2, x.ndim))
    np.testing.assert_allclose(mean, 0.7 * 0.5 + 0.3 * x64.mean(axes), rtol=tolerance)
    np.testing.assert_allclose(var, 0.7 * 2 + 0.3 * x64.var(axes, ddof=1), rtol=tolerance)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(6, 3), (3, 2, 5), (2, 3, 2, 17)], ids=str)
def test_batch_norm_gradients_by_central_differences(backend, shape, affine, training, rng):
    c = shape[1]
    x, dy = rng.normal(1, 2, size=shape), rng.normal(size=shape)
    gamma, beta = (rng.normal(size=c), rng.normal(size=c)) if affine else (None, None)

    def forward():
        running = (np.zeros(c), np.ones(c))
        return ops.batch_norm_forward(x, gamma, beta, *running, training=training)

    def loss():
        return float((forward()[0] * dy).sum())

    dx, dgamma, dbeta = ops.batch_norm_backward(dy, x, gamma, forward()[1])
    pairs = [(x, dx), (gamma, dgamma), (beta, dbeta)] if affine else [(x, dx)]
    for array, gradient in pairs:
        np.testing.assert_allclose(
            gradient, oracles.numerical_gradient(loss, array, 1e-5), rtol=1e-5, atol=1e-7
        )


def test_variance_of_a_large_mean(backend, rng):
    """Mean 1e4 and std 1 in float32: squares lose all digits, differences do not."""
    x = rng.normal(1e4, 1, size=(4096, 5)).astype(np.float32)
    mean, var = np.zeros(5, np.float32), np.ones(5, np.float32)
    ops.batch_norm_forward(x, None, None, mean, var, momentum=1.0, unbiased=False)
    np.testing.assert_allclose(var, x.astype(np.float64).var(0), rtol=1e-3)


@pytest.mark.parametrize("kind", ops.ACTIVATIONS)
def test_activations_propagate_nan_and_saturate(backend, kind):
    limits = {"relu": (0, np.inf), "sigmoid": (0, 1), "tanh": (-1, 1)}[kind]
    y = ops.activation_forward(np.array([np.nan, -np.inf, np.inf], np.float32), kind)
    assert np.isnan(y[0])
    assert tuple(y[1:]) == limits


@pytest.mark.parametrize(("n", "classes"), [(1, 1), (1, 10), (63, 3), (64, 10), (65, 17), (300, 1000)])
def test_softmax_cross_entropy(backend, dtype, n, classes, rng):
    logits = rng.normal(0, 3, size=(n, classes)).astype(dtype)
    labels = rng.integers(0, classes, n)
    loss, gradient = ops.softmax_cross_entropy(logits, labels)
    np.testing.assert_allclose(
        loss, oracles.cross_entropy(logits.astype(np.float64), labels), rtol=1e2 * EPS[dtype], atol=EPS[dtype]
    )
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum(1, keepdims=True)
    expected = (probabilities - np.eye(classes)[labels]) / n
    np.testing.assert_allclose(gradient, expected, atol=8 * EPS[dtype] / n, rtol=1e2 * EPS[dtype])


def test_cross_entropy_of_extreme_logits(backend, dtype):
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]], dtype)
    loss, gradient = ops.softmax_cross_entropy(logits, np.array([0, 0]))
    assert loss == 1e4
    assert gradient.tolist() == [[0, 0], [-0.5, 0.5]]


def test_loss_gradients_by_central_differences(backend, rng):
    logits, labels = rng.normal(size=(5, 4)), np.array([0, 3, 1, 2, 2])
    _, gradient = ops.softmax_cross_entropy(logits, labels)
    numeric = oracles.numerical_gradient(lambda: ops.softmax_cross_entropy(logits, labels)[0], logits)
    np.testing.assert_allclose(gradient, numeric, atol=1e-8)
    prediction, target = rng.normal(size=(5, 4)), rng.normal(size=(5, 4))
    loss, gradient = ops.pointwise_loss(prediction, target)
    assert loss == pytest.approx(((prediction - target) ** 2).mean(), rel=1e-14)
    numeric = oracles.numerical_gradient(lambda: ops.pointwise_loss(prediction, target)[0], prediction)
    np.testing.assert_allclose(gradient, numeric, atol=1e-8)


def run_everything(dtype):
    """Every kernel on sizes that several threads share."""
    rng = np.random.default_rng(1)
    x, w, b, dy = (rng.normal(size=s).astype(dtype) for s in ((301, 130), (257, 130), (257,), (301, 257)))
    y = ops.dense_forward(x, w, b, "tanh")
    images, dimages = (rng.normal(size=(64, 6, 9, 9)).astype(dtype) for _ in range(2))
    normalised, saved = ops.batch_norm_forward(images, None, None, None, None)
    rows, saved_rows = ops.batch_norm_forward(dy, None, None, None, None)
    loss, gradient = ops.softmax_cross_entropy(dy, np.arange(301) % 257)
    dense = [y, *ops.dense_backward(dy, x, w, y, "tanh")]
    for n, i, o in (1, 784, 256), (10, 784, 256), (600, 100, 10), (3, 70, 3000):
        x2, w2, dy2 = (rng.normal(size=s).astype(dtype) for s in ((n, i), (o, i), (n, o)))
        y2 = ops.dense_forward(x2, w2, None, "relu")
        dense += [y2, *ops.dense_backward(dy2, x2, w2, y2, "relu")]
    return [
        *dense,
        normalised,
        *ops.batch_norm_backward(dimages, images, None, saved),
        rows,
        *ops.batch_norm_backward(y, dy, None, saved_rows),
        np.array(loss),
        gradient,
        np.array(ops.pointwise_loss(dy, y)[0]),
        ops.activation_forward(dy, "sigmoid"),
    ]


def test_same_bits_for_every_number_of_threads(backend, dtype):
    before = po.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3, 7):
            po.set_num_threads(n)
            results.append(run_everything(dtype))
    finally:
        po.set_num_threads(before)
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("shape", [(61, 1537, 1111), (200, 2048, 65), (40, 1024, 700)], ids=str)
def test_wide_layers_have_the_same_bits_for_every_number_of_threads(dtype, shape, rng):
    """Threads that copy columns of their own, and threads that share a copy, sum in the same order."""
    n, i, o = shape
    x, w, b = (rng.normal(size=s).astype(dtype) for s in ((n, i), (o, i), (o,)))
    results = []
    for threads in (1, 2, 3, 7):
        with po.num_threads(threads):
            results.append(ops.dense_forward(x, w, b, "tanh"))
    for other in results[1:]:
        assert np.array_equal(results[0], other)


def test_strided_inputs_give_the_same_bits(backend, dtype, rng):
    x, w, dy = (rng.normal(size=s).astype(dtype) for s in ((9, 20), (6, 20), (9, 6)))

    def awkward(a):
        wide = np.zeros((a.shape[0] * 2, a.shape[1] * 3), dtype)
        wide[::2, ::3] = a
        return wide[::2, ::3]

    for a, b in zip(
        ops.dense_backward(dy, x, w),
        ops.dense_backward(awkward(dy), awkward(x), np.asfortranarray(w)),
        strict=True,
    ):
        assert np.array_equal(a, b)
    y, saved = ops.batch_norm_forward(x, None, None, None, None)
    y2, saved2 = ops.batch_norm_forward(awkward(x), None, None, None, None)
    assert np.array_equal(y, y2)
    assert np.array_equal(saved.inv_std, saved2.inv_std)


def test_empty_batches(backend, dtype):
    x, w = np.empty((0, 3), dtype), np.ones((2, 3), dtype)
    assert ops.dense_forward(x, w, np.ones(2, dtype)).shape == (0, 2)
    dx, dw, db = ops.dense_backward(np.empty((0, 2), dtype), x, w)
    assert dx.shape == (0, 3)
    assert not dw.any()
    assert not db.any()
    no_inputs = ops.dense_forward(
        np.empty((2, 0), dtype), np.empty((3, 0), dtype), np.arange(3).astype(dtype)
    )
    assert no_inputs.tolist() == [[0, 1, 2]] * 2


F32 = np.float32
A = np.zeros
BAD_CALLS = [
    (lambda: ops.dense_forward(A((2, 3)), A((4, 5))), ValueError, "weight has shape"),
    (lambda: ops.dense_forward(A((2, 3), F32), A((4, 3))), TypeError, "weight has dtype float64"),
    (lambda: ops.dense_forward([[1.0]], A((4, 3))), TypeError, "x is a list"),
    (lambda: ops.dense_forward(A((2, 3), int), A((4, 3))), TypeError, "x has dtype int64"),
    (lambda: ops.dense_forward(A(3), A((4, 3))), ValueError, "x has 1 dimensions"),
    (lambda: ops.dense_forward(A((2, 3)), A((4, 3)), A(3)), ValueError, "bias has shape"),
    (lambda: ops.dense_forward(A((2, 3)), A((4, 3)), activation="gelu?"), ValueError, "activation is"),
    (lambda: ops.dense_backward(A((2, 3)), A((2, 3)), A((4, 3))), ValueError, "dy has shape"),
    (lambda: ops.dense_backward(A((2, 4)), A((2, 3)), A((4, 3)), None, "relu"), ValueError, "y is None"),
    (lambda: ops.batch_norm_forward(A(3), None, None, None, None), ValueError, "x has shape"),
    (lambda: ops.batch_norm_forward(A((1, 3)), None, None, None, None), ValueError, "x has 1 values"),
    (lambda: ops.batch_norm_forward(A((0, 3)), None, None, None, None), ValueError, "x has 0 values"),
    (lambda: ops.batch_norm_forward(A((2, 3)), A(2), None, None, None), ValueError, "gamma has shape"),
    (lambda: ops.batch_norm_forward(A((2, 3)), None, None, A(3), None), ValueError, "expected both"),
    (lambda: ops.batch_norm_forward(A((2, 3)), None, None, A(3), A(3), momentum=2), ValueError, "momentum"),
    (lambda: ops.batch_norm_forward(A((2, 3)), None, None, A(3), A(3), eps=np.nan), ValueError, "eps is"),
    (lambda: ops.batch_norm_backward(A((2, 3)), A((2, 3)), None, (1, 2)), TypeError, "saved is a tuple"),
    (lambda: ops.softmax_cross_entropy(A((2, 3)), np.array([0, 3])), ValueError, r"labels\[1\] is 3"),
    (lambda: ops.softmax_cross_entropy(A((2, 3)), np.array([-1, 0])), ValueError, r"labels\[0\] is -1"),
    (lambda: ops.softmax_cross_entropy(A((2, 3)), np.array([0.0, 1])), TypeError, "labels has dtype"),
    (lambda: ops.softmax_cross_entropy(A((2, 3)), np.array([0])), ValueError, "labels has shape"),
    (lambda: ops.softmax_cross_entropy(A((0, 3)), A(0, int)), ValueError, "labels is empty"),
    (lambda: ops.softmax_cross_entropy(A((2, 0)), A(2, int)), ValueError, r"labels\[0\] is 0"),
    (lambda: ops.pointwise_loss(A((2, 3)), A((2, 1))), ValueError, "target has shape"),
    (lambda: ops.pointwise_loss(A(0), A(0)), ValueError, "prediction is empty"),
    (lambda: ops.activation_forward(A(3), "swish?"), ValueError, "activation is"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS, ids=[m for _, _, m in BAD_CALLS])
def test_bad_input(backend, call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_refused_batch_norm_leaves_running_statistics(backend):
    mean, var = np.zeros(3), np.ones(3)
    var.flags.writeable = False
    with pytest.raises(ValueError, match="running_var is read-only"):
        ops.batch_norm_forward(np.ones((2, 3)), None, None, mean, var)
    assert not mean.any()


@pytest.mark.parametrize("shape", [(128, 784, 256), (1, 64, 10), (33, 17, 65)], ids=str)
def test_dense_against_torch(backend, shape, rng):
    torch = pytest.importorskip("torch")
    n, i, o = shape
    x, w, b, dy = (rng.normal(size=s).astype(np.float32) for s in ((n, i), (o, i), (o,), (n, o)))
    tx, tw, tb = (torch.tensor(a, requires_grad=True) for a in (x, w, b))
    ty = torch.relu(torch.nn.functional.linear(tx, tw, tb))
    ty.backward(torch.tensor(dy))
    y = ops.dense_forward(x, w, b, "relu")
    np.testing.assert_allclose(y, ty.detach().numpy(), rtol=1e-5, atol=1e-4)
    ours = ops.dense_backward(dy, x, w, y, "relu")
    for mine, theirs in zip(ours, (tx.grad, tw.grad, tb.grad), strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("shape", [(16, 5), (4, 3, 7, 6)], ids=str)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_layer_against_torch(backend, shape, momentum, rng):
    torch = pytest.importorskip("torch")
    c = shape[1]
    layer = po.nn.BatchNorm(c, momentum=momentum)
    model = po.nn.Sequential(layer, dtype=np.float64)
    theirs = (torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d)(
        c, momentum=momentum, dtype=torch.float64
    )
    for _ in range(3):
        x, dy = rng.normal(2, 3, size=shape), rng.normal(size=shape)
        tx = torch.tensor(x, requires_grad=True)
        ty = theirs(tx)
        theirs.zero_grad()
        ty.backward(torch.tensor(dy))
        np.testing.assert_allclose(model(x), ty.detach().numpy(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(model.backward(dy, need_dx=True), tx.grad.numpy(), rtol=1e-8, atol=1e-11)
        for name in ("weight", "bias"):
            np.testing.assert_allclose(
                layer.gradients[name], getattr(theirs, name).grad.numpy(), rtol=1e-9, atol=1e-11
            )
    for name, value in layer.buffers.items():
        np.testing.assert_allclose(value, getattr(theirs, name).numpy(), rtol=1e-12)
    x = rng.normal(size=shape)
    model.eval()
    theirs.eval()
    np.testing.assert_allclose(model(x), theirs(torch.tensor(x)).detach().numpy(), rtol=1e-9, atol=1e-12)


def test_every_layer_is_public_and_has_an_oracle():
    bases = {"Activation", "_Affine", "_Random"}
    elementwise = {kind.__name__ for kind in nn.activations.ELEMENTWISE}
    assert set(nn.Layer.kinds) - bases == elementwise | {*kinds.LAYERS, "Residual"}
    assert set(nn.Layer.kinds) - bases <= set(nn.__all__)


def random_layer(name, dtype, rng):
    """A model in evaluation of this one layer, and the layer's arrays, which hold positive numbers."""
    model = nn.Sequential(kinds.layer(name), dtype=dtype).eval()
    arrays = {**model.layers[0].parameters, **model.layers[0].buffers}
    for array in arrays.values():
        if array.dtype == dtype:
            array[...] = rng.uniform(0.5, 1.5, array.shape)
    return model, arrays


@pytest.mark.parametrize("name", kinds.LAYERS)
def test_every_layer(backend, dtype, name, rng):
    model, arrays = random_layer(name, dtype, rng)
    x = rng.normal(size=(5, 8)).astype(dtype)
    wide = {key: array.astype(np.float64) for key, array in arrays.items()}
    exact = oracles.LAYERS[name][1](x.astype(np.float64), wide)
    np.testing.assert_allclose(model(x), exact, rtol=64 * EPS[dtype], atol=64 * EPS[dtype])


@pytest.mark.parametrize("name", kinds.LAYERS)
def test_every_layer_by_central_differences(backend, name, rng):
    model, _ = random_layer(name, np.float64, rng)
    x, dy = rng.normal(size=(2, 5, 8))
    model(x)
    (layer,), dx = model.layers, model.backward(dy, need_dx=True)
    gradients = {key: gradient.copy() for key, gradient in layer.gradients.items()}
    for array, gradient in [(x, dx), *((layer.parameters[key], gradients[key]) for key in gradients)]:
        numeric = oracles.numerical_gradient(lambda: float((model(x) * dy).sum()), array)
        np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-8)
