"""Sharpness-aware steps: the textbook's, optax's, and the same bits from the engine and the generic loop."""

import pickle

import numpy as np
import pytest
from support.optimizers import OPTIMIZERS

import pyoptim as po
from pyoptim import nn

A = np.diag([4.0, 1.0, 0.25]) + 0.1


def slope(p):
    """The gradient of p' A p / 2, summed over the columns of p."""
    return A @ p


def uphill(p, rho, adaptive=False):
    g = slope(p)
    s = np.abs(p) + 0.01 if adaptive else 1.0
    return p + rho * s * s * g / np.linalg.norm(s * g)


# ---- optimizer.ascended ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_steps_by_the_gradient_uphill(name):
    p = np.random.default_rng(0).normal(size=(3, 2))
    q = p.copy()
    sam, plain = OPTIMIZERS[name](p, lr=0.01), OPTIMIZERS[name](q, lr=0.01)
    for _ in range(4):
        with sam.ascended(slope(p), rho=0.2):
            np.testing.assert_allclose(p, uphill(q, 0.2), rtol=1e-14)
            g = slope(p)
        np.testing.assert_array_equal(p, q)
        sam.step(g)
        plain.step(slope(uphill(q, 0.2)))
        np.testing.assert_allclose(p, q, rtol=1e-12, atol=1e-14)
        p[...] = q


@pytest.mark.parametrize("adaptive", [False, True])
def test_all_arrays_are_one_vector(backend, adaptive):
    p = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    flat = p.copy()
    parts = {"a": p[:, 0].copy(), "b": p[:, 1].copy()}
    optimizer = po.SGD(parts)
    g = slope(p).astype(np.float32)
    with optimizer.ascended({"a": g[:, 0], "b": g[:, 1]}, 0.5, adaptive):
        expected = uphill(flat.astype(np.float64), 0.5, adaptive)
        np.testing.assert_allclose(np.stack([parts["a"], parts["b"]], axis=1), expected, rtol=1e-5)
    np.testing.assert_array_equal(parts["a"], flat[:, 0])


def test_fewer_bits_and_strides():
    wide = np.zeros((3, 4), np.float16)
    wide[:, ::2] = 1
    p = wide[:, ::2]
    optimizer = po.SGD([p])
    with optimizer.ascended([np.full((3, 2), 2, np.float16)], rho=6**0.5):
        np.testing.assert_array_equal(p, np.full((3, 2), 2, np.float16))
    np.testing.assert_array_equal(p, np.ones((3, 2), np.float16))


def test_it_is_optax_s():
    optax = pytest.importorskip("optax")
    jax = pytest.importorskip("jax")
    p = np.random.default_rng(0).normal(size=3).astype(np.float32)
    theirs = jax.numpy.array(p)
    away = optax.chain(optax.contrib.normalize(), optax.sgd(0.3))
    rule = optax.contrib.sam(optax.sgd(0.1, momentum=0.9), away, sync_period=2)
    state = rule.init(theirs)
    optimizer = po.SGD(p, lr=0.1, momentum=0.9)
    for _ in range(5):
        for _ in range(2):
            updates, state = rule.update(A.astype(np.float32) @ theirs, state, theirs)
            theirs = optax.apply_updates(theirs, updates)
        with optimizer.ascended((A @ p).astype(np.float32), rho=0.3):
            g = (A @ p).astype(np.float32)
        optimizer.step(g)
        np.testing.assert_allclose(p, np.asarray(theirs), rtol=1e-5, atol=1e-6)


def test_gradients_of_0_move_nothing():
    p = np.ones(3)
    with po.SGD(p).ascended(np.zeros(3)):
        np.testing.assert_array_equal(p, np.ones(3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e-42, 1e-40, 1e-20, 1e-13, 2e-12])
def test_gradients_that_are_hardly_any_move_no_further_than_rho(backend, dtype, size):
    p = np.ones(2, dtype)
    with po.SGD(p, lr=0.1).ascended(np.array([size, 0], dtype), rho=0.5):
        np.testing.assert_allclose(p, [1 + 0.5 * min(1, size / 1e-12), 1], 1e-6)


@pytest.mark.parametrize("engine", ["auto", "python"])
def test_a_network_that_is_sure_stays_finite(engine):
    """The loss of a logit of -95 is 0, but its gradient in float32 is not quite."""
    model = nn.Sequential(nn.Dense(3, 1), seed=0)
    model.layers[0].parameters["bias"][...] = -95
    optimizer = po.SGD(model.parameters(), lr=0.1)
    trainer = po.Trainer(model, nn.BinaryCrossEntropy(), optimizer, sharpness_aware=0.05)
    x = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)
    trainer.fit(x, np.zeros((8, 1)), batch_size=2, engine=engine, verbose=False)
    assert np.isfinite(model.flat_parameters).all()


def test_what_is_refused():
    p = np.ones(3)
    optimizer = po.Adam(p)
    optimizer.step(np.ones(3))
    optimizer.step(np.ones(3))
    kept = p.copy()
    with pytest.raises(RuntimeError, match="step inside ascended"), optimizer.ascended(np.ones(3)):
        optimizer.step(np.ones(3))
    np.testing.assert_array_equal(p, kept)
    again = optimizer.ascended(np.ones(3))
    with optimizer.ascended(np.ones(3)), pytest.raises(RuntimeError, match="ascended inside"), again:
        pass
    optimizer.step(np.ones(3))
    assert (p < kept).all()
    with pytest.raises(ValueError, match="maximize=False"), po.SGD(p, maximize=True).ascended(np.ones(3)):
        pass
    with pytest.raises(ValueError, match="rho is 0"), optimizer.ascended(np.ones(3), rho=0):
        pass
    with pytest.raises(ValueError, match="shape"), optimizer.ascended(np.ones(4)):
        pass


# ---- Trainer(sharpness_aware=) -----------------------------------------------------------------------------


def model_of(dtype=np.float32, random=True):
    noise = [nn.Dropout(0.3), nn.GaussianNoise(0.1)] if random else []
    block = nn.Residual([nn.Dense(7, 7), nn.BatchNorm(7), nn.Tanh()])
    layers = [nn.Dense(6, 7), *noise, block, nn.LayerNorm(7), nn.Dense(7, 3)]
    return nn.Sequential(*layers, seed=1, dtype=dtype)


def data(n=22):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 6)), rng.integers(0, 3, n)


def run(engine, make=po.Adam, rho=0.1, model=None, penalty=None, options=None, x=None, **fit):
    model = model or model_of()
    optimizer = make(model.parameters(), lr=0.01, **(options or {}))
    trainer = po.Trainer(model, nn.CrossEntropy(), optimizer, seed=3, penalty=penalty, sharpness_aware=rho)
    examples, y = data()
    examples = examples if x is None else x
    history = trainer.fit(examples, y, engine=engine, verbose=False, **{"epochs": 2, "batch_size": 5, **fit})
    del history["seconds"]
    return dict(history), model.state_dict(), history.path


CASES = {
    "plain": {},
    "momentum": {"make": po.SGD, "options": {"momentum": 0.9}},
    "lion": {"make": po.Lion},
    "float64": {"dtype": np.float64},
    "clipped": {"options": {"max_grad_norm": 0.1}},
    "penalty": {"penalty": nn.Penalty(l2=0.1, l1=0.01)},
    "weight noise": {"weight_noise": 0.1},
    "both": {"penalty": nn.Penalty(l2=0.1), "weight_noise": 0.1, "options": {"max_grad_norm": 0.1}},
    "small batches": {"batch_size": 2},
    "one by one": {"batch_size": 1, "norm": False},
    "weights": {"sample_weight": np.arange(22.0)},
    "frozen": {"frozen": True},
    "skip": {"options": {"nonfinite": "skip"}, "broken": True},
}


@pytest.mark.parametrize("name", CASES)
def test_the_engine_has_the_bits_of_the_generic_loop(name):
    pytest.importorskip("pyoptim.runtime._native")
    case = dict(CASES[name])
    dtype, frozen, broken = case.pop("dtype", np.float32), case.pop("frozen", 0), case.pop("broken", 0)
    norm, results = case.pop("norm", True), []
    for engine in ("native", "python"):
        model = model_of(dtype) if norm else nn.Sequential(nn.Dense(6, 4), nn.Dense(4, 3), seed=0)
        if frozen:
            model.layers[0].trainable = False
        x = data()[0]
        if broken:
            x[7] = 1e38
        with np.errstate(all="ignore"):
            results.append(run(engine, model=model, x=x, **case))
    (native, a, path), (generic, b, _) = results
    assert path == "native"
    assert native == generic
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_a_step_is_the_formula():
    """One step of gradient descent on the full batch, in float64."""
    x, y = data()
    model = model_of(np.float64, random=False)
    loss, penalty = nn.CrossEntropy(), nn.Penalty(l2=0.1)
    start = model.flat_parameters.copy()
    norm = model.layers[1].block[1]

    def gradient(p):
        model.flat_parameters[...] = p
        model.train()
        model.backward(loss(model(x), y)[1])
        penalty.add(model)
        return model.flat_gradients.copy()

    kept = model.state_dict()
    g = gradient(start)
    first = {name: value.copy() for name, value in norm.buffers.items()}
    expected = start - 0.01 * gradient(start + 0.3 * g / np.linalg.norm(g))
    model.load_state_dict(kept)
    trainer = po.Trainer(
        model, loss, po.SGD(model.parameters(), lr=0.01), penalty=penalty, sharpness_aware=0.3
    )
    history = trainer.fit(x, y, batch_size=None, shuffle=False, verbose=False)
    np.testing.assert_allclose(model.flat_parameters, expected, rtol=1e-12, atol=1e-14)
    for name, value in first.items():  # the second pass leaves no trace
        np.testing.assert_allclose(norm.buffers[name], value, rtol=1e-13)
    plain = po.Trainer(model, loss, po.SGD(model.parameters(), lr=0.01), penalty=penalty)
    model.load_state_dict(kept)
    assert history["loss"] == plain.fit(x, y, batch_size=None, shuffle=False, verbose=False)["loss"]


def test_averages_and_accumulation_take_the_generic_loop():
    model = model_of(random=False)
    optimizer = po.SGD(model.parameters(), lr=0.1, accumulate=2)
    average = po.averages.EMA(optimizer, 0.5)
    trainer = po.Trainer(model, nn.CrossEntropy(), optimizer, sharpness_aware=0.1)
    x, y = data(8)
    start = model.flat_parameters.copy()
    history = trainer.fit(x, y, batch_size=4, shuffle=False, verbose=False)
    assert history.path == "python"
    assert average.count == 1
    moved = model.flat_parameters - start
    assert (moved != 0).any()
    followed = np.concatenate([a.reshape(-1) for a in average.averages])
    np.testing.assert_allclose(followed, start + 0.5 * moved, atol=1e-6)


@pytest.mark.parametrize("engine", ["auto", "python"])
def test_a_resume_has_the_same_bits(tmp_path, engine):
    path = tmp_path / "training"

    def trainer(rho=0.1):
        model = model_of()
        optimizer = po.Adam(model.parameters(), lr=0.01)
        return po.Trainer(model, nn.CrossEntropy(), optimizer, seed=3, sharpness_aware=rho)

    x, y = data()
    options = {"batch_size": 5, "verbose": False, "engine": engine}
    whole, first, second = trainer(), trainer(), trainer()
    whole.fit(x, y, epochs=3, **options)
    first.fit(x, y, epochs=1, checkpoint=path, **options)
    second.fit(x, y, epochs=3, checkpoint=path, **options)
    for name, value in whole.model.state_dict().items():
        np.testing.assert_array_equal(second.model.state_dict()[name], value)
    with pytest.raises(ValueError, match="sharpness_aware"):
        trainer(0.2).fit(x, y, epochs=4, checkpoint=path, **options)


def test_what_a_trainer_refuses():
    x, y = data()
    model = nn.Sequential(nn.Dense(6, 3), seed=0)
    parts = model, nn.CrossEntropy(), po.SGD(model.parameters())
    with pytest.raises(ValueError, match="sharpness_aware is -1, expected a finite number >= 0"):
        po.Trainer(*parts, sharpness_aware=-1)
    trainer = po.Trainer(*parts, sharpness_aware=0.1)
    for rho in (-0.3, np.nan, "x"):
        with pytest.raises((TypeError, ValueError), match="sharpness_aware is"):
            trainer.sharpness_aware = rho
    if po.runtime.dispatch.current().name == "native":
        with pytest.raises(ValueError, match=r"sharpness_aware is 0\.1, expected 0"):
            trainer.fit(x, y, batch_size=4, parallel="hogwild", verbose=False)
    trainer.optimizer.param_groups[0]["maximize"] = True
    with pytest.raises(ValueError, match="sharpness_aware moves uphill"):
        trainer.fit(x, y, verbose=False)


def test_trainers_of_earlier_versions():
    model = nn.Sequential(nn.Dense(6, 3), seed=0)
    trainer = po.Trainer(model, nn.CrossEntropy(), po.SGD(model.parameters()))
    del trainer._sharpness_aware
    again = pickle.loads(pickle.dumps(trainer))
    again.fit(*data(), verbose=False)
    assert again.sharpness_aware == 0
