"""The compiled engine gives the bits of the generic loop, says when it runs, and stops when told to."""

import copy
import signal

import numpy as np
import pytest

import pyoptim as po
from pyoptim import nn, schedules

pytest.importorskip("pyoptim._native")
pytestmark = pytest.mark.skipif(po.backends.current().name != "native", reason="runs on the native backend")


def make_model(dtype=np.float32, norm=True):
    return nn.Sequential(
        nn.Flatten(),
        nn.Rescale(0.5, -0.25),
        nn.Dense(12, 9, activation="relu", init="he"),
        *([nn.BatchNorm(9), nn.Sigmoid(), nn.Dense(9, 7, bias=False)] if norm else [nn.Dense(9, 7)]),
        *([nn.BatchNorm(7, affine=False, momentum=None), nn.Tanh()] if norm else [nn.ReLU()]),
        *([nn.Dense(7, 7, activation="tanh"), nn.BatchNorm(7, track_running_stats=False)] if norm else []),
        *([nn.LayerNorm(7), nn.Dense(7, 7), nn.BatchNorm(7, activation="relu")] if norm else []),
        *([nn.LayerNorm(7, affine=False)] if norm else []),
        nn.Dense(7, 3),
        seed=1,
        dtype=dtype,
    )


def data(loss, n=50):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (n, 3, 4)).astype(np.uint8)
    y = rng.integers(0, 3, n) if loss.classification else rng.normal(size=(n, 3))
    return x, y


def train(engine, make_optimizer, *, loss=None, dtype=np.float32, norm=True, epochs=2, x=None, **fit):
    loss = loss or nn.CrossEntropy()
    model = make_model(dtype, norm)
    optimizer = make_optimizer(model)
    trainer = po.Trainer(model, loss, optimizer, seed=3)
    bytes_, y = data(loss)
    x = bytes_ if x is None else x
    history = trainer.fit(x, y, epochs=epochs, verbose=False, engine=engine, **{"batch_size": 8, **fit})
    assert history.path == engine
    del history["seconds"]
    return dict(history), model.state_dict(), optimizer.state_dict(), optimizer.skipped


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, tuple | list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, np.ndarray):
        assert np.array_equal(a, b)
    else:
        assert a == b


def both(*args, **kwargs):
    native, generic = train("native", *args, **kwargs), train("python", *args, **kwargs)
    assert_same(native, generic)
    return native


def adam(model):
    return po.Adam(model.parameters(), lr=1e-2)


OPTIMIZERS = {
    "SGD": {},
    "momentum": {"momentum": 0.9, "dampening": 0.1},
    "nesterov": {"momentum": 0.9, "nesterov": True, "velocity": "classical"},
    "Adagrad": {"initial_accumulator_value": 0.1},
    "RMSprop": {"centered": True, "momentum": 0.5},
    "Adadelta": {},
    "Adam": {"weight_decay": 0.1, "maximize": False},
    "AdamW": {},
    "AMSGrad": {"amsgrad_max": "corrected"},
    "Adamax": {},
    "NAdam": {},
    "RAdam": {},
    "Lion": {},
    "Rprop": {},
    "ASGD": {"t0": 3},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_gives_the_bits_of_the_generic_loop(name, dtype):
    kind = getattr(po, name, po.SGD)
    _, state, _, _ = both(lambda m: kind(m.parameters(), **OPTIMIZERS[name]), dtype=dtype)
    assert (state["2.weight"] != make_model(dtype).state_dict()["2.weight"]).any()


@pytest.mark.parametrize("batch_size", [1, 8, 50, None])
@pytest.mark.parametrize("loss", [nn.CrossEntropy(), nn.MSE()], ids=repr)
def test_batches_and_losses(batch_size, loss):
    history, *_ = both(adam, batch_size=batch_size, loss=loss, norm=batch_size != 1, epochs=3)
    assert history["loss"][-1] < history["loss"][0]
    both(adam, batch_size=batch_size, loss=loss, norm=batch_size != 1, shuffle=False)


def test_bytes_are_trained_on_as_the_same_floats(dtype):
    x = data(nn.CrossEntropy())[0]
    assert_same(both(adam, dtype=dtype), both(adam, dtype=dtype, x=x.astype(dtype)))


ACTIVATIONS = [
    nn.Identity(), nn.ReLU(), nn.Sigmoid(), nn.Tanh(), nn.LeakyReLU(0.2), nn.ELU(0.7), nn.SELU(), nn.GELU(),
    nn.GELU("tanh"), nn.SiLU(), nn.Softplus(2), nn.Hardtanh(-0.5, 2), nn.Hardsigmoid(), nn.Hardswish(),
]  # fmt: skip


def test_every_activation_and_noise(dtype):
    """Each between dense layers, first in the chain too: those that keep their input read the batch's."""
    assert {type(layer) for layer in ACTIVATIONS} == set(nn.activations.ELEMENTWISE)
    x, y = data(nn.CrossEntropy())
    x = (x.reshape(len(x), -1) / 100 - 1).astype(dtype)
    for chosen in ACTIVATIONS:
        results = []
        for engine in ("native", "python"):
            made = [copy.deepcopy(chosen) for _ in range(3)]
            layers = [made[0], nn.Dense(12, 9), made[1], nn.Dropout(0.3), nn.BatchNorm(9), nn.Dense(9, 8),
                      nn.GaussianNoise(0.2), made[2], nn.Dropout(0.5), nn.Dense(8, 3)]  # fmt: skip
            model = nn.Sequential(*layers, seed=1, dtype=dtype)
            trainer = po.Trainer(model, nn.CrossEntropy(), adam(model), seed=3)
            history = trainer.fit(x, y, epochs=2, batch_size=8, engine=engine, verbose=False)
            results.append((history["loss"], model.state_dict(), trainer.predict(x)))
        assert_same(*results)
        assert results[0][1]["3.step"] == results[0][1]["6.step"] == 14


def test_instruction_sets_and_threads(engine):
    if not engine.startswith("native"):
        pytest.skip("of the native backend")
    before, results = po.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            po.set_num_threads(threads)
            results.append(both(adam))
    finally:
        po.set_num_threads(before)
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


@pytest.mark.parametrize(
    "lr",
    [
        schedules.WarmUp(schedules.Cosine(1e-2, steps=12), steps=4),
        schedules.Exponential(1e-2, 0.5, unit="epoch"),
        lambda step: 0.1 / (1 + step),
    ],
    ids=["steps", "epochs", "own"],
)
def test_schedules(lr):
    both(lambda m: po.Adam(m.parameters(), lr=lr))


def test_groups_lists_and_the_flat_vector_train_alike():
    def grouped(model):
        named = model.parameters()
        weights = {name: p for name, p in named.items() if "weight" in name}
        return po.SGD([
            {"params": weights, "weight_decay": 0.1, "momentum": 0.9},
            {"params": [p for name, p in named.items() if name not in weights], "lr": 0.1},
        ])  # fmt: skip

    both(grouped)
    results = [
        both(lambda m, structure=structure: po.Adam(structure(m)))[1]
        for structure in (
            lambda m: m.flat_parameters,
            lambda m: m.parameters(),
            lambda m: list(reversed(m.parameters().values())),
        )
    ]
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


def test_optimizers_of_other_arrays_are_refused():
    model = make_model()
    parameters = model.parameters()
    with pytest.raises(ValueError, match="not the model's"):
        po.Trainer(model, nn.CrossEntropy(), po.SGD(make_model().parameters()))
    with pytest.raises(ValueError, match=r"does not update '2\.bias'"):
        po.Trainer(
            model,
            nn.CrossEntropy(),
            po.SGD({name: p for name, p in parameters.items() if name != "2.bias"}),
        )
    with pytest.raises(ValueError, match="not the model's"):
        po.Trainer(model, nn.CrossEntropy(), po.SGD([*parameters.values(), np.ones(3, np.float32)]))
    with pytest.raises(ValueError, match="not the model's"):
        po.Trainer(model, nn.CrossEntropy(), po.SGD([parameters["2.weight"].T]))


@pytest.mark.parametrize("limit", [1e-3, 0.5, 1e6])
def test_clipping(limit):
    clipped = both(lambda m: po.SGD(m.parameters(), lr=0.1, max_grad_norm=limit))
    free = both(lambda m: po.SGD(m.parameters(), lr=0.1))
    assert np.array_equal(clipped[1]["2.weight"], free[1]["2.weight"]) == (limit == 1e6)


@pytest.mark.parametrize("limit", [None, 1.0])
def test_gradients_that_are_not_finite(limit):
    """Targets of 1e30 overflow the gradient in float32."""
    x, y = data(nn.MSE())
    y[20:24] = 1e38

    def run(engine, nonfinite):
        model = make_model(norm=False)
        model.flat_parameters *= 30
        optimizer = po.Adam(model.flat_parameters, nonfinite=nonfinite, max_grad_norm=limit)
        trainer = po.Trainer(model, nn.MSE(), optimizer, seed=0)
        message = None
        with np.errstate(all="ignore"):
            try:
                trainer.fit(x, y, batch_size=4, epochs=1, shuffle=False, verbose=False, engine=engine)
            except ValueError as error:
                message = str(error)
        return model.state_dict(), optimizer.state_dict(), optimizer.skipped, message

    for nonfinite in ("ignore", "skip", "raise"):
        native, generic = run("native", nonfinite), run("python", nonfinite)
        assert native[2:] == generic[2:]
        for name, value in native[0].items():
            assert np.array_equal(value, generic[0][name], equal_nan=True)
        assert native[1]["state"][0]["step"] == generic[1]["state"][0]["step"]
        assert native[2] == (nonfinite == "skip")
        assert (native[3] is not None) == (nonfinite == "raise")
    assert native[1]["state"][0]["step"] == 5


def test_the_path_that_ran_is_told():
    class Own(nn.ReLU):
        pass

    x, y = np.ones((4, 2), np.float32), np.zeros(4, int)

    def fit(engine="auto", layer=None, loss=None, make=po.SGD, **options):
        model = nn.Sequential(nn.Dense(2, 2), layer or nn.ReLU())
        trainer = po.Trainer(model, loss or nn.CrossEntropy(), make(model.parameters(), **options))
        return trainer.fit(x, y, verbose=False, engine=engine)

    assert (fit().path, fit().reason) == ("native", None)
    assert fit("python").path == "python"
    for reason, case in {
        r"layers\[1\] is a Own": {"layer": Own()},
        "LAMB is no elementwise": {"make": po.LAMB},
        "accumulates": {"accumulate": 2},
        "fewer bits": {"state_dtype": "bfloat16"},
    }.items():
        layer = case.get("layer")
        history = fit(**case)
        assert history.path == "python"
        with pytest.raises(ValueError, match=f"engine is 'native', but .*{reason}"):
            fit("native", **{**case, **({"layer": type(layer)()} if layer else {})})
    history = fit(lr=lambda step: 0.1)
    assert history.path == "python"
    assert "function of your own" in history.reason
    with po.use_backend("numpy"):
        assert "numpy backend" in fit().reason
    with pytest.raises(ValueError, match="engine is 'fast'"):
        fit("fast")


def test_interrupted_training_leaves_a_model_that_goes_on():
    """A signal in the middle: model, step count and states are those of so many whole steps."""

    class Interrupt(Exception):
        pass

    def interrupt(*_):
        raise Interrupt

    x, y = data(nn.CrossEntropy(), 2000)
    x = x.astype(np.float32)
    model = make_model(norm=False)
    optimizer = adam(model)
    trainer = po.Trainer(model, nn.CrossEntropy(), optimizer)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Interrupt):
            trainer.fit(x, y, epochs=10**6, batch_size=1, shuffle=False, verbose=False)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    steps = int(optimizer.state_dict()["state"][0]["step"])
    assert steps > 0
    assert not model.training
    other = make_model(norm=False)
    by_hand = adam(other)
    for i in range(steps):
        _, dy = nn.CrossEntropy()(other(x[i % 2000 : i % 2000 + 1]), y[i % 2000 : i % 2000 + 1])
        other.backward(dy)
        by_hand.step(other.gradients())
    assert np.array_equal(model.flat_parameters, other.flat_parameters)
