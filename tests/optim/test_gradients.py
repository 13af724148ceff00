"""Norms and clipping of gradients, and averages of weights."""

import copy
import pickle

import numpy as np
import pytest

import pyoptim as po
from pyoptim import averages, gradients, nn


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 16384, 16385, 100_003])
def test_global_norm(backend, dtype, n):
    x = np.random.default_rng(n).normal(size=n).astype(dtype)
    exact = np.linalg.norm(x.astype(np.float64))
    assert gradients.global_norm(x) == pytest.approx(exact, rel=1e-12)
    assert gradients.global_norm({"a": x, "b": x[::-2]}) == pytest.approx(
        np.hypot(exact, np.linalg.norm(x[::-2].astype(np.float64))), rel=1e-12
    )


def test_the_norm_is_the_same_for_every_number_of_threads(backend):
    x = np.random.default_rng(0).normal(size=300_001)
    before, norms = po.get_num_threads(), set()
    try:
        for threads in (1, 2, 3):
            po.set_num_threads(threads)
            norms.add(gradients.global_norm(x))
    finally:
        po.set_num_threads(before)
    assert len(norms) == 1


def test_clip_grad_norm_is_torchs(backend, dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for scale in (0.01, 10.0):
        grads = [(scale * rng.normal(size=s)).astype(dtype) for s in ((5, 3), (7,))]
        theirs = [torch.zeros(g.shape, dtype=torch.tensor(g).dtype, requires_grad=True) for g in grads]
        for t, g in zip(theirs, grads, strict=True):
            t.grad = torch.tensor(g.copy())
        expected = torch.nn.utils.clip_grad_norm_(theirs, 1.5)
        norm = gradients.clip_grad_norm_(grads, 1.5)
        assert norm == pytest.approx(float(expected), rel=1e-6)
        for g, t in zip(grads, theirs, strict=True):
            np.testing.assert_allclose(g, t.grad.numpy(), rtol=1e-6)
    assert gradients.global_norm(grads) == pytest.approx(1.5, rel=1e-5)


def test_clip_grad_value():
    g = np.array([-3.0, -1.0, np.nan, 0.5, np.inf])
    gradients.clip_grad_value_([g], 1.0)
    np.testing.assert_array_equal(g, [-1.0, -1.0, np.nan, 0.5, 1.0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda g: gradients.clip_grad_norm_(g, 0), ValueError, "max_norm is 0"),
        (lambda g: gradients.clip_grad_norm_([g, np.array([np.inf])], 1), ValueError, "norm of grads is inf"),
        (lambda g: gradients.clip_grad_norm_([g, [1.0]], 1), TypeError, r"grads\[1\] is a list"),
        (
            lambda g: gradients.clip_grad_norm_({"a": g, "b": np.ones(2, int)}, 1),
            TypeError,
            r"\['b'\] has dtype",
        ),
        (lambda g: gradients.clip_grad_value_([g, np.broadcast_to(3.0, 2)], 1), ValueError, "read-only"),
        (lambda g: gradients.clip_grad_value_(g, np.nan), ValueError, "clip_value is nan"),
        (lambda g: averages.EMA(g, decay=1.0), ValueError, r"decay is 1\.0"),
        (lambda g: averages.EMA([g, g]), ValueError, "overlaps"),
        (lambda g: averages.SWA(g.astype(int)), TypeError, "dtype int64"),
        (lambda g: gradients.clip_grad_norm_([g, g], 1), ValueError, r"grads\[1\] overlaps grads\[0\]"),
        (lambda g: gradients.clip_grad_norm_({"a": g[1:], "b": g}, 1), ValueError, r"overlaps grads\["),
    ],
)
def test_bad_input_changes_nothing(call, error, message):
    g = np.full(3, 5.0)
    with pytest.raises(error, match=message):
        call(g)
    assert (g == 5).all()


def test_averages(backend, dtype):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(30, 4, 6)).astype(dtype)
    p, odd = points[0].copy(), np.zeros((8, 12), dtype)[::2, ::2]
    ema, warm, swa = averages.EMA([p, odd], 0.9), averages.EMA(p, 0.9, warm_up=True), averages.SWA({"w": p})
    exact = warm_exact = points[0].astype(np.float64)
    for i, point in enumerate(points[1:]):
        p[...] = odd[...] = point
        for average in (ema, warm, swa):
            average.update()
        exact = 0.9 * exact + 0.1 * point
        decay = min(0.9, (1 + i) / (10 + i))
        warm_exact = decay * warm_exact + (1 - decay) * point
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == np.float32 else {"rtol": 1e-12, "atol": 1e-14}
    np.testing.assert_allclose(ema.averages[0], exact, **tolerance)
    np.testing.assert_allclose(warm.averages[0], warm_exact, **tolerance)
    np.testing.assert_allclose(swa.averages[0], points[1:].astype(np.float64).mean(0), **tolerance)
    with ema.applied():
        assert np.array_equal(p, ema.averages[0])
        assert np.array_equal(odd, ema.averages[1])
    assert np.array_equal(p, points[-1])
    assert swa.count == len(points) - 1


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("rounding", ["master", "stochastic"])
def test_16_bit_parameters_are_averaged_in_float32(backend, kind, rounding):
    dtype = np.float16 if kind == "float16" else pytest.importorskip("ml_dtypes").bfloat16
    params = [np.linspace(1, 2, 7).astype(dtype), np.ones((4, 6), dtype)[::2, ::3]]
    optimizer = po.Adam(params, lr=0.1, rounding=rounding)
    ema, swa, points = averages.EMA(optimizer, 0.5), averages.SWA(params), []
    exact = [p.astype(np.float32) for p in params]
    for _ in range(4):
        optimizer.step([np.ones(p.shape, dtype) for p in params])
        swa.update()
        points.append([p.astype(np.float32) for p in params])
        exact = [0.5 * a + 0.5 * p for a, p in zip(exact, points[-1], strict=True)]
    assert ema.count == swa.count == 4
    for i, p in enumerate(params):
        assert ema.averages[i].dtype == swa.averages[i].dtype == np.float32
        np.testing.assert_allclose(ema.averages[i], exact[i], rtol=1e-6)
        np.testing.assert_allclose(swa.averages[i], np.mean([point[i] for point in points], 0), rtol=1e-6)
        with ema.applied():
            assert np.array_equal(p, ema.averages[i].astype(dtype))
        assert np.array_equal(p.astype(np.float32), points[-1][i])


def test_averages_are_the_same_bits_on_every_engine():
    results = []
    for name in po.available_backends():
        with po.use_backend(name):
            p = np.random.default_rng(0).normal(size=1003).astype(np.float32)
            ema = averages.EMA(p, 0.99)
            for _ in range(5):
                p *= np.float32(1.1)
                ema.update()
            results.append(ema.averages[0])
    assert all(np.array_equal(r, results[0]) for r in results)


def small_parameters(dtype):
    rng = np.random.default_rng(0)
    shapes = {"a": (1,), "b": (0, 3), "c": (257, 33), "d": (40_001,)}
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("make", [po.Adam, po.SGD, po.LARS, po.LAMB])
@pytest.mark.parametrize("average", [averages.EMA, averages.SWA])
def test_an_average_of_an_optimizer_follows_its_steps(backend, dtype, make, average):
    params = small_parameters(dtype)
    followed, alone = ({k: p.copy() for k, p in params.items()} for _ in range(2))
    optimizer, other = make(followed, lr=0.1), make(alone, lr=0.1)
    fused, separate = average(optimizer), average(alone)
    for _ in range(4):
        optimizer.step(params)
        other.step(params)
        separate.update()
    assert fused.count == separate.count == 4
    for name, a, b in zip(params, fused.averages, separate.averages, strict=True):
        assert np.array_equal(a, b)
        assert np.array_equal(followed[name], alone[name])


def test_an_average_follows_strided_parameters_and_skips_with_the_step(backend):
    base = np.ones((6, 8), np.float32)
    optimizer = po.SGD([base[::2, ::2]], lr=1.0, nonfinite="skip")
    ema = averages.EMA(optimizer, 0.5)
    optimizer.step([np.ones((3, 4), np.float32)])
    assert (ema.averages[0] == 0.5).all()
    optimizer.step([np.full((3, 4), np.nan, np.float32)])
    assert ema.count == 1
    with pytest.raises(ValueError, match="shape"):
        optimizer.step([np.ones(3, np.float32)])
    assert ema.count == 1
    with pytest.raises(ValueError, match="already carries"):
        averages.SWA(optimizer)


def test_an_average_is_resumed_and_copied():
    p = np.arange(5.0)
    optimizer = po.Adam(p)
    swa = averages.SWA(optimizer)
    for _ in range(3):
        optimizer.step(np.ones(5))
    kept, twin = swa.state_dict(), copy.deepcopy(optimizer)
    later = averages.SWA(p)
    later.load_state_dict(kept)
    optimizer.step(np.ones(5))
    twin.step(np.ones(5))
    later.update()
    assert np.array_equal(later.averages[0], swa.averages[0])
    assert np.array_equal(twin.average.averages[0], swa.averages[0])
    for wrong in (
        {},
        {**kept, "count": -1},
        {**kept, "averages": []},
        {**kept, "averages": 3},
        {**kept, "averages": [np.ones(4)]},
    ):
        with pytest.raises(ValueError, match="state_dict"):
            later.load_state_dict(wrong)
    assert later.count == 4


@pytest.mark.parametrize("overlap", [lambda p: p[0], lambda p: p[1], lambda p: p[1][:0:-1], lambda p: p[2]])
def test_a_gradient_that_is_a_parameter_is_found_among_many(backend, overlap):
    base = np.zeros((4, 6))
    params = [np.zeros(6), base[:2].reshape(-1)[:7], base[3, ::2], *(np.zeros(3) for _ in range(50))]
    optimizer = po.SGD(params, max_grad_norm=1.0)
    wrong = overlap(params)
    i = next(i for i, p in enumerate(params) if p.shape == wrong.shape) if wrong.size != 6 else 0
    grads = [np.ones(p.shape) for p in params]
    grads[i] = wrong
    with pytest.raises(ValueError, match="overlaps"):
        optimizer.step(grads)
    optimizer.step([*(np.ones(p.shape) for p in params[:2]), base[3, 1::2], *grads[3:]])  # between, not on


def test_clipping_of_many_arrays_is_that_of_one(backend, dtype):
    params = small_parameters(dtype)
    grads = {k: 3 * p for k, p in params.items()}
    norm = gradients.global_norm(grads)
    clipped, scaled = ({k: p.copy() for k, p in params.items()} for _ in range(2))
    po.SGD(clipped, lr=0.1, max_grad_norm=1.0).step(grads)
    po.SGD(scaled, lr=0.1).step({k: g * g.dtype.type(1.0 / (norm + 1e-6)) for k, g in grads.items()})
    for k in params:
        np.testing.assert_array_equal(clipped[k], scaled[k])


def test_a_refused_average_leaves_the_optimizer_as_it_was():
    optimizer = po.Adam([np.ones(3)])
    for wrong in (2, "0.9"):
        with pytest.raises(ValueError, match="decay is"):
            averages.EMA(optimizer, decay=wrong)
    averages.EMA(optimizer)
    optimizer.step([np.ones(3)])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_find_overlaps_too(backend, copied):
    optimizer = copied(po.SGD([np.ones(3)], momentum=0.9))
    ema = averages.EMA(optimizer)
    for overlapping in (optimizer.param_groups[0]["params"][0], ema.averages[0]):
        with pytest.raises(ValueError, match="overlaps"):
            optimizer.step([overlapping])


def test_a_gradient_that_is_nan_does_not_switch_clipping_off(backend):
    a, b = np.zeros(2), np.zeros(2)
    po.SGD([a, b], lr=1.0, max_grad_norm=1.0).step([np.array([np.nan, 1]), np.full(2, 1e6)])
    assert np.isnan(a).all()
    assert np.isnan(b).all()  # as torch.nn.utils.clip_grad_norm_


def test_lookahead_and_averages_that_are_refused_move_nothing():
    p, q = np.ones(2), np.ones(2)
    optimizer = po.SGD([p, q], lr=0.1, momentum=0.9, velocity="classical")
    ema = averages.EMA([p, q])
    optimizer.step([np.ones(2), np.ones(2)])
    before = p.copy()
    q.flags.writeable = False
    for refused in (optimizer.lookahead(), ema.applied()):
        with pytest.raises(ValueError, match="read-only"):
            refused.__enter__()
        assert np.array_equal(p, before)
    q.flags.writeable = True
    with optimizer.lookahead(), pytest.raises(RuntimeError, match="already stand"):
        optimizer.lookahead().__enter__()
    assert po.schedules.Cyclic(0.1, 1.0, half_cycle=1, mode="triangular2")(2101) == 0.1


def test_statistics_for_averaged_weights(backend):
    x = np.random.default_rng(0).normal(2, 3, size=(120, 6))
    layers = nn.BatchNorm(6), nn.Dense(6, 2), nn.BatchNorm(2, momentum=None)
    model = nn.Sequential(*layers, seed=0, dtype=np.float64)
    first, _, last = layers
    model(x + 1)
    averages.update_bn(model, x, 40)
    np.testing.assert_allclose(first.buffers["running_mean"], x.mean(axis=0))
    variances = x.reshape(3, 40, 6).var(axis=1, ddof=1)
    np.testing.assert_allclose(first.buffers["running_var"], variances.mean(axis=0))
    assert (first.momentum, last.momentum, model.training) == (0.1, None, False)
    kept = first.buffers["running_mean"].copy()
    first.trainable = False
    averages.update_bn(model, x[:41] + 1, 40)  # no batch of one example, which has no variance
    np.testing.assert_array_equal(first.buffers["running_mean"], kept)
    assert last.buffers["num_batches_tracked"] == 2
    averages.update_bn(nn.Sequential(nn.Dense(6, 2)), x)  # nothing to do
    with pytest.raises(ValueError, match="x is empty"):
        averages.update_bn(model, x[:0])
