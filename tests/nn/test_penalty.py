"""Penalties and noise on weights: the kernels, what they count, and the engine against the generic loop."""

import itertools
import math

import numpy as np
import pytest
from support import backends

import pyoptim as po
from pyoptim import nn
from pyoptim.runtime import dispatch

FACTORS = [(0.3, 0.2), (0.3, 0.0), (0.0, 0.2)]
# Around lanes (32), blocks of sums (16384), and what several threads share.
SIZES = [0, 1, 31, 32, 33, 1000, 16383, 16384, 16385, 140_001]
native_only = pytest.mark.skipif(backends.why_not("native") is not None, reason="of the native backend")


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def bits(x):
    return x.view(np.uint32 if x.dtype == np.float32 else np.uint64)


def assert_same_bits(a, b):
    """NaN is NaN."""
    assert a.dtype == b.dtype
    assert ((bits(a) == bits(b)) | (np.isnan(a) & np.isnan(b))).all()


def special(rng, n, dtype):
    x = (rng.normal(size=n) * 10 ** rng.uniform(-6, 3, size=n)).astype(dtype)
    some = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40, -1e-40, np.finfo(dtype).max]
    x[: len(some)] = some[:n]
    return x


def exact(w, l2, l1):
    """The penalty and its gradient in double."""
    w = [float(v) for v in w]
    value = l2 / 2 * math.fsum(v * v for v in w) + l1 * math.fsum(map(abs, w))
    return value, np.array([l2 * v + l1 * ((v > 0) - (v < 0)) for v in w])


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("l2", "l1"), FACTORS)
def test_runs_against_an_oracle(backend, dtype, n, l2, l1, rng):
    w, before = rng.normal(size=n + 60).astype(dtype), rng.normal(size=n + 60).astype(dtype)
    g, runs = before.copy(), [(3, 3 + n), (n + 10, n + 51)]
    value = dispatch.current().penalty(w, g, runs, l2, l1)
    parts = [exact(w[begin:end], l2, l1) for begin, end in runs]
    # An element's square is exact in double or rounded, and 32 lanes add up to n/32 of them.
    assert value == pytest.approx(sum(part for part, _ in parts), rel=(n + 100) * 2.0**-53, abs=0)
    added = np.zeros(n + 60)
    for (begin, end), (_, gradient) in zip(runs, parts, strict=True):
        added[begin:end] = gradient
    assert np.array_equal(g[added == 0], before[added == 0])
    room = 4 * np.finfo(dtype).eps * (abs(before) + abs(added))
    assert (abs(g - (before.astype(float) + added)) <= room).all()


@pytest.mark.parametrize(("l2", "l1"), [*FACTORS, (0.0, 0.0), (1e-50, 1e300)])
def test_gradients_have_the_bits_of_these_expressions(backend, dtype, l2, l1, rng):
    w, g = special(rng, 5001, dtype), special(rng, 5001, dtype)[::-1].copy()
    g[:6] = -0.0
    with np.errstate(all="ignore"):
        expected = g.copy()
        if l2:
            expected += dtype(l2) * w
        if l1:
            expected += dtype(l1) * np.sign(w)
    dispatch.current().penalty(w, g, [(0, 5001)], l2, l1)
    assert_same_bits(g, expected)
    assert np.isnan(g[4]) == (l2 > 0 or l1 > 0)  # where the weight is NaN


@pytest.mark.parametrize(("l2", "l1"), FACTORS)
def test_what_is_not_finite(backend, dtype, l2, l1, rng):
    for bad, expected in ((math.nan, math.isnan), (math.inf, math.isinf), (-math.inf, math.isinf)):
        w, g = rng.normal(size=70).astype(dtype), np.zeros(70, dtype)
        w[40] = bad
        value = dispatch.current().penalty(w, g, [(0, 70)], l2, l1)
        assert expected(value)
        assert np.isfinite(np.delete(g, 40)).all()
        assert np.isfinite(g[40]) == (math.isinf(bad) and l2 == 0)


@native_only
def test_threads_and_instruction_sets_change_no_bit(dtype, rng):
    w, before = rng.normal(size=200_003).astype(dtype), rng.normal(size=200_003).astype(dtype)
    results = []
    for backend, threads in itertools.product(backends.LIVE, (1, 2, 3)):
        if backend.startswith("native"):
            with backends.running_on(backend), backends.use_threads(threads):
                g = before.copy()
                value = dispatch.current().penalty(w, g, [(1, 200_000), (200_000, 200_003)], 0.3, 0.2)
                results.append((value, g))
    for value, g in results[1:]:
        assert value == results[0][0]
        assert np.array_equal(g, results[0][1])


def test_native_penalty_refuses_what_would_leave_memory():
    native = pytest.importorskip("pyoptim.runtime._native")
    w, g = np.zeros(4), np.zeros(4)
    for runs in ([(0, 5)], [(3, 2)]):
        with pytest.raises(ValueError, match="runs of parameters"):
            native.penalty(w, g, runs, 1.0, 0.0)
    with pytest.raises(ValueError, match="gradients as parameters"):
        native.penalty(w, g[:3], [(0, 2)], 1.0, 0.0)


# ---- models ----------------------------------------------------------------------------------------


def every_kind(dtype=np.float64):
    model = nn.Sequential(
        nn.Dense(4, 6),
        nn.BatchNorm(6),
        nn.Residual([nn.Dense(6, 6, bias=False), nn.Tanh(), nn.Dense(6, 6)]),
        nn.LayerNorm(6),
        nn.Dense(6, 3),
        seed=0,
        dtype=dtype,
    )
    model.flat_parameters += 0.07  # biases are not 0, and no weight is
    return model


COUNTED = {
    (False, False): {"0.weight", "2.block.0.weight", "2.block.2.weight", "3.weight", "4.weight"},
    (True, False): {"0.bias", "2.block.2.bias", "3.bias", "4.bias"},
    (False, True): {"1.weight", "1.bias"},
}
COUNTED = {flags: COUNTED[False, False] | names for flags, names in COUNTED.items()}
COUNTED[True, True] = set.union(*COUNTED.values())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("biases", "batch_norm"), COUNTED)
def test_what_is_counted_by_finite_differences(backend, biases, batch_norm, frozen):
    model, penalty = every_kind(), nn.Penalty(0.3, 0.2, biases=biases, batch_norm=batch_norm)
    model.layers[0].trainable = not frozen
    model.flat_gradients[...] = 0
    penalty.add(model)
    got = model.flat_gradients.copy()
    wanted, w = np.empty_like(got), model.flat_parameters
    for i in range(w.size):
        here, values = w[i], []
        for step in (1e-6, -1e-6):
            w[i] = here + step
            values.append(penalty.add(model))
        w[i], wanted[i] = here, (values[0] - values[1]) / 2e-6
    np.testing.assert_allclose(got, wanted, atol=1e-7)
    counted = {name for name in COUNTED[biases, batch_norm] if not (frozen and name.startswith("0."))}
    model.flat_gradients[...] = got
    for name, gradient in model.gradients().items():
        assert (gradient != 0).all() if name in counted else not gradient.any()
    value, _ = exact(np.concatenate([model.parameters()[name].ravel() for name in counted]), 0.3, 0.2)
    assert penalty.add(model) == pytest.approx(value, rel=1e-13)


def train(how, batch_size, dtype=np.float64, model=None, weight_noise=0.0, penalty=None, **options):
    data = np.random.default_rng(3)
    x, y = data.normal(size=(26, 4)).astype(dtype), data.integers(0, 3, 26)
    model = model or every_kind(dtype)
    optimizer = po.Adam(model.parameters(), lr=0.01, **options)
    trainer = po.Trainer(model, nn.CrossEntropy(), optimizer, seed=5, penalty=penalty)
    history = trainer.fit(
        x, y, epochs=3, batch_size=batch_size, engine=how, weight_noise=weight_noise, verbose=False
    )
    assert history.path == how
    return history, model


def plain(dtype=np.float64):
    """Without statistics of a batch, which may then be of 1."""
    return nn.Sequential(nn.Dense(4, 9, activation="relu"), nn.Dense(9, 3), seed=0, dtype=dtype)


def frozen():
    model = every_kind()
    model.layers[0].trainable = False
    return model


@native_only
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 8, 26])
@pytest.mark.parametrize("weight_noise", [0.0, 0.05])
@pytest.mark.parametrize(
    "penalty", [None, nn.Penalty(0.1), nn.Penalty(0.1, 0.01), nn.Penalty(0.0, 0.01, biases=True)]
)
def test_the_engine_has_the_bits_of_the_generic_loop(dtype, batch_size, weight_noise, penalty):
    both = [
        train(how, batch_size, dtype, plain(dtype), weight_noise, penalty) for how in ("native", "python")
    ]
    (a, one), (b, other) = both
    assert np.array_equal(one.flat_parameters, other.flat_parameters)
    assert (a["loss"], a["accuracy"]) == (b["loss"], b["accuracy"])
    if weight_noise or penalty:
        c, without = train("native", batch_size, dtype, plain(dtype))
        assert a["loss"] != c["loss"]
        assert not np.array_equal(one.flat_parameters, without.flat_parameters)


@native_only
@pytest.mark.parametrize("make", [every_kind, frozen])
@pytest.mark.parametrize("options", [{"max_grad_norm": 0.1}, {"nonfinite": "skip"}, {}])
def test_every_layer_and_clipping_in_the_engine(make, options):
    penalty = nn.Penalty(0.5, 0.1, biases=True, batch_norm=True)
    start, results = make().flat_parameters.copy(), []
    for how in ("native", "python"):
        history, model = train(how, 8, model=make(), weight_noise=0.02, penalty=penalty, **options)
        results.append((history["loss"], model.state_dict()))
        still = np.array_equal(start[:30], model.flat_parameters[:30])  # of the first layer
        assert still == (make is frozen)
    assert results[0][0] == results[1][0]
    for name, value in results[0][1].items():
        assert np.array_equal(value, results[1][1][name]), name


@native_only
def test_a_weight_that_is_nan_ends_a_run_that_looks_for_it():
    for how in ("native", "python"):
        model = plain()
        model.flat_parameters[-4] = math.nan  # of the last layer's weights
        before = model.flat_parameters.copy()
        with pytest.raises(ValueError, match=r"grads\['0\.weight'\] holds NaN"):
            train(how, 8, model=model, weight_noise=0.1, penalty=nn.Penalty(0.1), nonfinite="raise")
        assert np.array_equal(model.flat_parameters, before, equal_nan=True)  # the noise is off them


@native_only
def test_penalties_may_change_between_epochs():
    class Changes(po.callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            self.trainer.penalty = [nn.Penalty(0.5), nn.Penalty(0.0, 0.3, biases=True), None][epoch]

    results = []
    for how in ("native", "python"):
        model, data = plain(), np.random.default_rng(3)
        trainer = po.Trainer(model, nn.MSE(), po.SGD(model.parameters(), lr=0.1), seed=5)
        x, y = data.normal(size=(9, 4)), data.normal(size=(9, 3))
        changes = [Changes()]
        history = trainer.fit(x, y, epochs=3, batch_size=4, engine=how, callbacks=changes, verbose=False)
        results.append((history["loss"], model.flat_parameters))
    assert results[0][0] == results[1][0]
    assert np.array_equal(results[0][1], results[1][1])
    assert results[0][0][1] > results[0][0][0]


def test_partial_fit_counts_the_penalty(backend):
    x, y = np.ones((4, 4)), np.zeros((4, 3))
    values = []
    for penalty in (None, nn.Penalty(0.3, 0.2)):
        model = plain()
        trainer = po.Trainer(model, nn.MSE(), po.SGD(model.parameters(), lr=0.1), penalty=penalty)
        values.append(trainer.partial_fit(x, y))
    weights = [w.ravel() for name, w in plain().parameters().items() if "weight" in name]
    assert values[1] - values[0] == pytest.approx(exact(np.concatenate(weights), 0.3, 0.2)[0], rel=1e-12)


# ---- noise -----------------------------------------------------------------------------------------


class Sees(nn.Loss):
    """What the weights are while a gradient is taken: the inputs are the unit matrix."""

    def __init__(self):
        self.weights = []

    def check_target(self, name, target, batch, shape, dtype):
        return np.asarray(target, dtype)

    def compute(self, output, target, gradient):
        self.weights.append(output.T.copy())
        if gradient is not None:
            gradient[...] = 1
        return 0.0


def test_noise_is_normal_anew_for_each_batch_and_off_afterwards(backend):
    loss, model = Sees(), nn.Sequential(nn.Dense(40, 50, bias=False), seed=0, dtype=np.float64)
    start, x = model.flat_parameters.copy(), np.tile(np.eye(40), (2, 1))
    trainer = po.Trainer(model, loss, po.SGD(model.parameters(), lr=0.0), seed=0)
    trainer.fit(x, np.zeros((80, 1)), epochs=3, batch_size=40, weight_noise=0.5, shuffle=False, verbose=False)
    assert np.array_equal(model.flat_parameters, start)
    noise = np.array(loss.weights).reshape(6, 2000) - start
    assert np.array_equal(np.cov(noise) > 0.1, np.eye(6) == 1)
    assert abs(noise.mean()) < 4 * 0.5 / math.sqrt(noise.size)
    assert abs(noise.std() / 0.5 - 1) < 4 / math.sqrt(2 * noise.size)


def test_noise_is_a_function_of_the_trainer_s_seed(backend):
    def run(seed, order):
        loss, model = Sees(), nn.Sequential(nn.Dense(5, 4, bias=False), seed=0)
        trainer = po.Trainer(model, loss, po.SGD(model.parameters(), lr=0.0), seed=seed)
        trainer.fit(np.eye(5), np.zeros(5), epochs=2, weight_noise=1, shuffle=order, verbose=False)
        return np.array([w if order is False else np.sort(w) for w in loss.weights])

    assert np.array_equal(run(1, False), run(1, False))
    assert np.array_equal(run(1, True), run(1, True))
    assert not np.array_equal(run(1, False), run(2, False))
