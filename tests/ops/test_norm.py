"""BatchNorm with a fused ReLU, in every layout, against PyTorch, oracles and itself."""

import numpy as np
import pytest
from oracles import layers as oracles
from support.backends import use_threads

import pyoptim as po
from pyoptim import ops

TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12}
# Columns with and without a rest, several parts of rows, short and long runs of a channel.
SHAPES = [
    (2, 1), (3, 15), (17, 16), (33, 17), (4099, 70), (70, 5, 7), (65, 3, 40), (3, 4, 17), (5, 2, 15, 70),
    (2, 3, 1025), (1000, 3), (97, 10), (64, 1), (60, 2, 3),
]  # fmt: skip


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_torch(backend, dtype, shape, affine, training, activation, rng):
    torch = pytest.importorskip("torch")
    c = shape[1]
    x, dy = rng.normal(2, 3, size=shape).astype(dtype), rng.normal(size=shape).astype(dtype)
    gamma, beta = rng.normal(size=(2, c)) if affine else (None, None)
    gamma, beta = (None if a is None else a.astype(dtype) for a in (gamma, beta))
    mean, var = rng.normal(size=c).astype(dtype), rng.uniform(1, 2, size=c).astype(dtype)
    exact = [None if a is None else torch.tensor(a, dtype=torch.float64) for a in (x, gamma, beta, mean, var)]
    for tensor in exact[:3]:
        if tensor is not None:
            tensor.requires_grad_()
    z = torch.nn.functional.batch_norm(exact[0], *exact[3:], *exact[1:3], training, 0.3)
    ty = z if activation is None else torch.relu(z)
    unsure = np.abs(z.detach().numpy()) < 1e-4  # rounding decides whether ReLU lets these through
    dy[unsure] = 0
    ty.backward(torch.tensor(dy, dtype=torch.float64))
    y, saved = ops.batch_norm_forward(x, gamma, beta, mean, var, training, 0.3, activation=activation)
    dx, dgamma, dbeta = ops.batch_norm_backward(dy, x, gamma, saved, beta, activation)
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(y, ty.detach().numpy(), rtol=tolerance, atol=10 * tolerance)
    np.testing.assert_allclose(mean, exact[3].numpy(), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(var, exact[4].numpy(), rtol=tolerance)
    np.testing.assert_allclose(dx, exact[0].grad.numpy(), rtol=tolerance, atol=100 * tolerance)
    if affine:
        size = np.sqrt(x.size // c)
        for ours, theirs in ((dgamma, exact[1]), (dbeta, exact[2])):
            np.testing.assert_allclose(
                ours, theirs.grad.numpy(), rtol=10 * tolerance, atol=10 * size * tolerance
            )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(7, 3), (4, 3, 17)], ids=str)
def test_fused_relu_by_central_differences(backend, shape, training, rng):
    c = shape[1]
    x, dy, gamma, beta = (rng.normal(size=s) for s in (shape, shape, (c,), (c,)))

    def forward():
        running = (np.zeros(c), np.ones(c))
        return ops.batch_norm_forward(x, gamma, beta, *running, training=training, activation="relu")

    y, saved = forward()
    assert (y == 0).any()
    ours = ops.batch_norm_backward(dy, x, gamma, saved, beta, "relu")
    for array, gradient in zip((x, gamma, beta), ours, strict=True):
        numeric = oracles.numerical_gradient(lambda: float((forward()[0] * dy).sum()), array)
        np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(4096, 5), (64, 3, 8, 8), (4, 3, 64, 64)], ids=str)
def test_variance_of_a_large_mean(backend, shape, rng):
    x = rng.normal(1e4, 1, size=shape).astype(np.float32)
    x[0, 0] = -1e4  # what a block begins with need not be like the rest
    mean, var = np.zeros(shape[1], np.float32), np.ones(shape[1], np.float32)
    ops.batch_norm_forward(x, None, None, mean, var, momentum=1.0, unbiased=False)
    axes = (0, *range(2, x.ndim))
    np.testing.assert_allclose(var, x.astype(np.float64).var(axes), rtol=1e-4)
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(axes), rtol=1e-6)


@pytest.mark.parametrize("shape", [(40, 3), (40, 3, 4), (4, 3, 100)], ids=str)
def test_what_is_not_finite_stays_in_its_channel(backend, shape, rng):
    x = rng.normal(size=shape).astype(np.float32)
    clean, _ = ops.batch_norm_forward(x[:, 2:], None, None, None, None, activation="relu")
    x[1, 0], x[3, 1] = np.nan, np.inf
    y, _ = ops.batch_norm_forward(x, None, None, None, None, activation="relu")
    assert np.isnan(y[:, :2]).all()
    np.testing.assert_allclose(y[:, 2:], clean, rtol=1e-6)


def test_squares_beyond_float32(backend, rng):
    x = rng.normal(size=(50, 3)).astype(np.float32)
    y, _ = ops.batch_norm_forward(x, None, None, None, None, eps=0.0)
    huge, _ = ops.batch_norm_forward(x * np.float32(2.0**100), None, None, None, None, eps=0.0)
    np.testing.assert_allclose(huge, y, rtol=1e-4, atol=1e-5)


def layouts(a):
    """The same values channels-last, and with strides that nobody reads as they lie."""
    wide = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
    wide[..., ::2] = a
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1), wide[..., ::2]


@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (3, 17, 9)], ids=str)
def test_layouts(backend, dtype, shape, rng):
    x, dy = rng.normal(size=shape).astype(dtype), rng.normal(size=shape).astype(dtype)
    gamma, beta = np.linspace(1, 2, 2 * shape[1]).astype(dtype)[::2], np.zeros(shape[1], dtype)
    y, saved = ops.batch_norm_forward(x, gamma, beta, None, None, activation="relu")
    expected = [y, *ops.batch_norm_backward(dy, x, gamma, saved, beta, "relu")]
    last, strided = layouts(x)
    for way, view in (("last", last), ("strided", strided)):
        for gradient in (dy, *layouts(dy)):
            y, saved = ops.batch_norm_forward(view, gamma, beta, None, None, activation="relu")
            got = [y, *ops.batch_norm_backward(gradient, view, gamma, saved, beta, "relu")]
            for ours, theirs in zip(got, expected, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=20 * TOLERANCE[dtype])
            if way == "last":
                assert got[0].strides == view.strides == got[1].strides


def test_running_statistics_need_not_be_contiguous(backend, rng):
    x = rng.normal(3, 2, size=(9, 4))
    both = np.zeros((4, 2))
    ops.batch_norm_forward(x, None, None, both[:, 0], both[:, 1], momentum=1.0)
    np.testing.assert_allclose(both, np.c_[x.mean(0), x.var(0, ddof=1)])


@pytest.mark.parametrize("activation", [None, "relu"])
def test_same_bits_for_every_number_of_threads(backend, dtype, activation, rng):
    for shape in ((4099, 70), (130, 70, 5, 5), (33, 9, 31, 30)):
        x, dy = rng.normal(size=shape).astype(dtype), rng.normal(size=shape).astype(dtype)
        results = []
        for n in (1, 2, 3):
            with use_threads(n):
                y, saved = ops.batch_norm_forward(x, None, None, None, None, activation=activation)
                results.append([y, *ops.batch_norm_backward(dy, x, None, saved, None, activation)])
        for other in results[1:]:
            assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("other", ["x", "gamma", "beta", "running_var"])
def test_overlap_with_what_is_updated(backend, other):
    arrays = {"x": np.ones((3, 4)), "gamma": np.ones(4), "beta": np.ones(4), "running_var": np.ones(4)}
    arrays["running_mean"] = arrays[other].reshape(-1)[:4]
    with pytest.raises(ValueError, match="overlaps"):
        ops.batch_norm_forward(**arrays)
    ops.batch_norm_forward(**arrays, training=False)  # nothing is written


def test_an_unknown_activation(backend):
    for call in (
        lambda: ops.batch_norm_forward(np.ones((2, 3)), None, None, None, None, activation="tanh"),
        lambda: po.nn.BatchNorm(3, activation="tanh"),
    ):
        with pytest.raises(ValueError, match="activation is 'tanh'"):
            call()


def test_layer_with_relu_is_the_two_layers(backend, dtype, rng):
    x, dy = rng.normal(size=(9, 5)).astype(dtype), rng.normal(size=(9, 5)).astype(dtype)
    fused = po.nn.Sequential(po.nn.BatchNorm(5, activation="relu"), dtype=dtype)
    apart = po.nn.Sequential(po.nn.BatchNorm(5), po.nn.ReLU(), dtype=dtype)
    assert np.array_equal(fused(x), apart(x))
    assert np.array_equal(fused.backward(dy, True), apart.backward(dy, True))
    assert np.array_equal(fused.flat_gradients, apart.flat_gradients)


def test_evaluation_by_the_batchs_statistics_takes_all_examples_at_once(backend, rng):
    model = po.nn.Sequential(po.nn.BatchNorm(3, track_running_stats=False), po.nn.Dense(3, 2), seed=0)
    trainer = po.Trainer(model, po.nn.CrossEntropy(), po.SGD(model.parameters()))
    x = rng.normal(size=(1025, 3)).astype(np.float32)
    assert np.array_equal(trainer.predict(x), model.eval()(x))
    assert np.isfinite(trainer.evaluate(x, np.zeros(1025, int))["loss"])


def at_offset(a, offset):
    """The same values, that many bytes beyond a cache line."""
    raw = np.zeros(a.nbytes + 128, np.uint8)
    begin = -raw.ctypes.data % 64 + offset
    view = raw[begin : begin + a.nbytes].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


@pytest.mark.parametrize("shape", [(40, 3), (40, 33), (3, 4, 70)], ids=str)
def test_alignment_changes_nothing(backend, dtype, shape, rng):
    values = [rng.normal(size=s).astype(dtype) for s in (shape, shape, shape[1:2], shape[1:2])]
    results = []
    for offset in (0, 8, 3):  # whole elements, and bytes
        x, dy, gamma, beta = (at_offset(a, offset) for a in values)
        mean, var = at_offset(np.zeros_like(gamma), offset), at_offset(np.ones_like(gamma), offset)
        y, saved = ops.batch_norm_forward(x, gamma, beta, mean, var, activation="relu")
        results.append([y, mean, var, *ops.batch_norm_backward(dy, x, gamma, saved, beta, "relu")])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_an_infinite_eps_is_refused():
    x, gamma = np.ones((4, 3), np.float32), np.ones(3, np.float32)
    with pytest.raises(ValueError, match="eps is inf, expected a finite number >= 0"):
        ops.batch_norm_forward(x, gamma, None, None, None, eps=np.inf)
    with pytest.raises(ValueError, match="eps is inf, expected a finite number >= 0"):
        ops.layer_norm_forward(x, 3, gamma, eps=np.inf)
