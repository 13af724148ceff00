"""Outputs in evaluation mode: what compiled code computes in blocks is what the layers compute one by one."""

import copy
import pickle
import signal
import threading
import types

import numpy as np
import pytest
from support import kinds
from support.backends import running_on

import pyoptim as po
from pyoptim import nn
from pyoptim.nn import prediction

pytestmark = pytest.mark.skipif("native" not in po.available_backends(), reason="needs compiled kernels")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def with_statistics(model, rng):
    """The model with values that no layer begins with."""
    for name, value in model._named("parameters", "buffers").items():
        if value.dtype.kind == "f":
            value[...] = (
                rng.uniform(0.5, 2, value.shape) if "var" in name else rng.normal(0, 0.3, value.shape)
            )
    return model.eval()


def by_layers(model, x):
    """The outputs of the layers one by one."""
    for layer in model.layers:
        x = layer.forward(x, False)
    return x


def residual():
    return nn.Residual(
        [nn.Dense(8, 24), nn.Residual([nn.Tanh(), nn.BatchNorm(24)]), nn.Dropout(0.5), nn.Dense(24, 8)]
    )


NETS = {
    "dense": lambda: [nn.Dense(13, 33, activation="relu"), nn.Dense(33, 7, bias=False, activation="tanh")],
    "long rows": lambda: [nn.Dense(1100, 70, activation="sigmoid"), nn.Dense(70, 3)],
    "norms": lambda: [
        nn.Rescale(0.5, 0.1), nn.Dense(13, 70), nn.BatchNorm(70, activation="relu"), nn.Dropout(0.3),
        nn.Dense(70, 9), nn.BatchNorm(9, affine=False), nn.LayerNorm(9, affine=False), nn.Dense(9, 2),
    ],
    "residual": lambda: [
        nn.Residual([nn.GELU(), residual()]), residual(), nn.Dense(8, 3), nn.GaussianNoise(),
    ],
    "nested": lambda: [nn.Dense(8, 8), nn.Residual([residual(), nn.ReLU()]), nn.Softmax()],
    "last": lambda: [nn.Dense(5, 4), nn.Residual([nn.Dropout(0.1), nn.Dense(4, 4), nn.Dropout(0.1)])],
    "channels": lambda: [nn.BatchNorm(3), nn.Flatten(), nn.Dense(3 * 5 * 5, 4)],
    "wide channels": lambda: [nn.BatchNorm(3), nn.LayerNorm((17,)), nn.Flatten(), nn.Dense(3 * 17, 4)],
    "its own": lambda: [nn.Dense(6, 5), nn.BatchNorm(5, track_running_stats=False), nn.LayerNorm(5)],
}  # fmt: skip
SHAPES = {"long rows": (1100,), "residual": (8,), "nested": (8,), "last": (5,), "channels": (3, 5, 5),
          "wide channels": (3, 17), "its own": (6,)}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NETS)
def test_blocks_have_the_bits_of_layers(name, dtype, backend, rng):
    model = with_statistics(nn.Sequential(*NETS[name](), seed=0, dtype=dtype), rng)
    trainer = po.Trainer(model, nn.MSE(), po.SGD(model.parameters()))
    for n in (2, 1, 5, 31, 95, 96, 97, 200, 1024, 1500):
        if n == 1 and name == "its own":  # has no statistics
            continue
        x = rng.normal(size=(n, *SHAPES.get(name, (13,)))).astype(dtype)
        expected = by_layers(model, x)
        for threads in (1, 2, 3):
            with po.num_threads(threads):
                assert np.array_equal(model(x), expected), (n, threads)
                assert np.array_equal(trainer.predict(x), expected), (n, threads)
    assert bool(model._predictors) == backend.startswith("native")  # else nothing of the above was tested


@pytest.mark.parametrize("layer", [*kinds.LAYERS, *kinds.activations()], ids=str)
def test_every_layer_is_predicted_by_compiled_code(layer, rng):
    layer = kinds.layer(layer) if isinstance(layer, str) else layer
    model = with_statistics(nn.Sequential(layer, nn.Flatten(), nn.Dense(8, 8), seed=0), rng)
    if type(layer) is nn.Dense:
        model = with_statistics(nn.Sequential(nn.Dense(8, 5), nn.Identity(), seed=0), rng)
    for n in (1, 200):
        x = rng.normal(size=(n, 8)).astype(np.float32)
        assert np.array_equal(model(x), by_layers(model, x))
    assert model._predictors


def test_bytes_and_other_types(rng):
    model = nn.Sequential(nn.Rescale(), nn.Dense(30, 4), seed=0).eval()
    trainer = po.Trainer(model, nn.CrossEntropy(), po.SGD(model.parameters()))
    for n in (1, 300):
        x = rng.integers(0, 256, (n, 30))
        expected = by_layers(model, x.astype(np.float32))
        for given in (
            x.astype(np.uint8),
            x,
            x.astype(np.float64),
            x.astype(">f4"),
            x.astype(np.uint8).tolist(),
        ):
            assert np.array_equal(trainer.predict(given), expected)
            assert np.array_equal(model(given), expected)
        assert np.array_equal(
            model(np.asfortranarray(x)[:, ::-1]), by_layers(model, x.astype(np.float32)[:, ::-1].copy())
        )
    assert model(np.empty((0, 30))).shape == (0, 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 95, 640, 999])
def test_what_is_not_finite_is_refused_wherever_it_is(bad, at, rng):
    model = nn.Sequential(nn.Dense(30, 4, activation="relu"), seed=0)
    trainer = po.Trainer(model, nn.CrossEntropy(), po.SGD(model.parameters()))
    x = rng.normal(size=(1000, 30)).astype(np.float32)
    x[at, 29] = bad
    for wrong in (x, x[at : at + 1]):
        row = at if len(wrong) > 1 else 0
        with pytest.raises(ValueError, match=rf"x\[{row}, 29\] is .*, expected finite values"):
            trainer.predict(wrong)
        with pytest.raises(ValueError, match=rf"x\[{row}, 29\] is .*, expected finite values"):
            model.eval()(wrong)
    x[at, 29] = np.finfo(np.float32).max  # finite, though sums of it are not
    trainer.predict(x)


def test_shapes_are_checked_as_before(rng):
    model = nn.Sequential(nn.Dense(3, 4), seed=0).eval()
    for x, kind, match in (
        (np.zeros((2, 4)), ValueError, r"x has shape \(2, 4\).*expected \(3,\)"),
        (np.zeros(3), ValueError, r"x has shape \(3,\), expected \(batch, features\)"),
        (np.array([["a", "b", "c"]]), TypeError, "x has dtype"),
    ):
        for _ in range(2):  # without and with a compiled form that was kept
            with pytest.raises(kind, match=match):
                model(x)
            model(np.zeros((1, 3)))


def test_input_that_is_not_aligned(rng):
    x = rng.normal(size=(5, 3)).astype(np.float32)
    odd = np.frombuffer(b"-" + x.tobytes(), np.float32, offset=1).reshape(x.shape)
    model = nn.Sequential(nn.Dense(3, 2), seed=0).eval()
    assert np.array_equal(model(odd), model(x))


def changes():
    """Ways to change a model between two predictions."""

    def weight(model):
        model.layers[0].parameters["weight"][1, 2] += 1

    def flat(model):
        model.flat_parameters *= 0.5

    def statistic(model):
        model.layers[1].buffers["running_var"][2] = 7

    def option(model):
        model.layers[0].activation = "relu"

    def inner_option(model):
        model.layers[2].block[0].activation = "tanh"

    def another_weight(model):
        model.layers[0].parameters["weight"] = model.layers[0].parameters["weight"] * 2

    def another_buffer(model):
        model.layers[1].buffers["running_mean"] = model.layers[1].buffers["running_mean"] + 1

    def another_layer(model):
        model.layers = (*model.layers[:3], nn.Tanh())

    def fewer_layers(model):
        model.layers = model.layers[:2]

    def another_kind_of_number(model):
        model.layers[1].eps = np.float32(0.5)

    def a_function(model):
        model.layers[3].forward = lambda x, training: x + 1

    def loaded(model):
        model.load_state_dict({name: np.array(value * 2) for name, value in model.state_dict().items()})

    def read_only(model):
        model.flat_parameters.flags.writeable = False

    return [value for value in locals().values() if callable(value)]


@pytest.mark.parametrize("change", changes(), ids=lambda change: change.__name__)
@pytest.mark.parametrize("n", [2, 150])
def test_changes_of_a_model_are_seen(n, change, rng):
    layers = nn.Dense(6, 6), nn.BatchNorm(6), nn.Residual(nn.Dense(6, 6)), nn.ReLU()
    model = with_statistics(nn.Sequential(*layers, seed=0), rng)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    before = model(x)
    change(model)
    after = model(x)
    assert np.array_equal(after, by_layers(model, x))
    assert np.array_equal(before, after) == (change.__name__ == "read_only")


def test_statistics_take_more_than_one_row(backend):
    model = nn.Sequential(nn.Dense(4, 3), nn.BatchNorm(3, track_running_stats=False), seed=0).eval()
    assert np.isfinite(model(np.ones((2, 4)))).all()
    for rows in (0, 1):
        with pytest.raises(ValueError, match="values per channel"):
            model(np.ones((rows, 4)))
    trainer = po.Trainer(model, nn.MSE(), po.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="values per channel"):
        trainer.predict(np.ones((1, 4)))


def test_backward_after_an_evaluation(rng, backend):
    layers = nn.Dense(9, 70, activation="relu"), nn.BatchNorm(70), nn.Dropout(0.5), nn.Dense(70, 3)
    model = with_statistics(nn.Sequential(*layers, seed=0), rng)
    for x in (rng.normal(size=(80, 9)).astype(np.float32), rng.integers(0, 9, (80, 9)).astype(np.uint8)):
        dy = rng.normal(size=(80, 3)).astype(np.float32)
        model._forward(x.astype(np.float32))
        expected, gradients = model.backward(dy, need_dx=True), model.flat_gradients.copy()
        model.flat_gradients[...] = 0
        model(x)
        model.train()  # the pass was in evaluation, whatever comes after it
        assert np.array_equal(model.backward(dy, need_dx=True), expected)
        assert np.array_equal(model.backward(dy, need_dx=True), expected)
        assert np.array_equal(model.flat_gradients, gradients)
        model.eval()
        with pytest.raises(ValueError, match="dy has shape"):
            model.backward(dy[1:])


def test_copies_predict_for_themselves(rng):
    model = nn.Sequential(nn.Dense(4, 4), seed=0).eval()
    x = rng.normal(size=(3, 4)).astype(np.float32)
    y = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.flat_parameters *= 2
        assert np.array_equal(other(x), by_layers(other, x))
        assert np.array_equal(other.backward(np.ones_like(y), True), other.backward(np.ones_like(y), True))
    assert np.array_equal(model(x), y)
    with running_on("numpy"):
        np.testing.assert_allclose(model(x), y, rtol=1e-5)


def test_several_threads_predict_with_one_model(rng):
    model = nn.Sequential(nn.Dense(50, 60, activation="relu"), nn.Dense(60, 5), seed=0).eval()
    inputs = [rng.normal(size=(100 * i + 1, 50)).astype(np.float32) for i in range(4)]
    expected = [by_layers(model, x) for x in inputs]
    wrong = []

    def predict(x, y):
        wrong.extend(i for i in range(50) if not np.array_equal(model(x), y))

    threads = [threading.Thread(target=predict, args=pair) for pair in zip(inputs, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that signals")
def test_a_long_prediction_is_interrupted(monkeypatch, rng):
    def empty(shape, dtype):
        made.append(np.full(shape, np.nan, dtype))
        return made[-1]

    def interrupt(*_):
        raise KeyboardInterrupt

    made = []
    monkeypatch.setattr(prediction, "np", types.SimpleNamespace(empty=empty, float32=np.float32))
    model = nn.Sequential(nn.Dense(500, 2000), nn.Dense(2000, 2000), nn.Dense(2000, 1), seed=0).eval()
    x = np.ones((20_000, 500), np.float32)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        model(x[:1])
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(KeyboardInterrupt):
            model(x)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert np.isnan(made[-1][-1]).all()  # not computed any more
    assert np.array_equal(model(x[:1]), by_layers(model, x[:1]))


def test_a_batch_in_pieces_has_the_bits_of_the_whole(rng):
    # So large that signals are served within the batch, of which few examples are left then.
    model = nn.Sequential(nn.Dense(1500, 1500), nn.Dense(1500, 40), seed=0).eval()
    x = rng.normal(size=(1070, 1500)).astype(np.float32)
    assert np.array_equal(model(x), by_layers(model, x))


# Folding.


def oracle(model, x):
    """Outputs in float64, and bounds of what is summed for each."""
    size = np.abs(x)
    for layer in model.layers:
        p = {name: a.astype(np.float64) for name, a in {**layer.parameters, **layer.buffers}.items()}
        if isinstance(layer, nn.Dense):
            bias = p.get("bias", 0.0)
            x, size = x @ p["weight"].T + bias, size @ np.abs(p["weight"]).T + np.abs(bias)
        elif isinstance(layer, nn.BatchNorm):
            scale = p.get("weight", 1.0) / np.sqrt(p["running_var"] + layer.eps)
            shift = p.get("bias", 0.0)
            x = (x - p["running_mean"]) * scale + shift
            size = (size + np.abs(p["running_mean"])) * np.abs(scale) + np.abs(shift)
        if getattr(layer, "activation", None) == "relu" or isinstance(layer, nn.ReLU):
            x = np.maximum(x, 0)
    return x, size


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 300])
def test_a_folded_model_predicts_the_same(dtype, n, rng):
    layers = (
        nn.Dense(40, 65, bias=False), nn.BatchNorm(65, eps=0.1, activation="relu"), nn.Dense(65, 20),
        nn.BatchNorm(20, affine=False), nn.ReLU(), nn.Dense(20, 7, activation="relu"), nn.BatchNorm(7),
        nn.Dense(7, 3),
    )  # fmt: skip
    model = with_statistics(nn.Sequential(*layers, seed=0, dtype=dtype), rng)
    folded = model.folded()
    kept = [type(layer).__name__ for layer in folded.layers]
    assert kept == ["Dense", "Dense", "ReLU", "Dense", "BatchNorm", "Dense"]
    assert folded.dtype == dtype
    assert not folded.training
    x = rng.normal(size=(n, 40)).astype(dtype)
    expected, size = oracle(model, x.astype(np.float64))
    bound = 4 * (40 + 65 + 20 + 7) * np.finfo(dtype).eps / 2 * size
    for y in (model(x), folded(x)):
        assert y.dtype == dtype
        assert (np.abs(y - expected) <= bound).all()
    trainer = po.Trainer(model, nn.MSE(), po.SGD(model.parameters()))
    model.train()
    assert np.array_equal(trainer.predict(x, fold=True), folded(x))
    assert not model.training
    # The weights are those of float64, rounded once.
    norm = model.layers[1]
    scale = norm.parameters["weight"].astype(np.float64) / np.sqrt(
        norm.buffers["running_var"].astype(np.float64) + 0.1
    )
    exact = model.layers[0].parameters["weight"].astype(np.float64) * scale[:, None]
    assert np.array_equal(folded.layers[0].parameters["weight"], exact.astype(dtype))


def test_what_cannot_be_folded_is_kept(rng):
    layers = (
        nn.BatchNorm(6), nn.Dense(6, 6, activation="tanh"), nn.BatchNorm(6), nn.Dense(6, 6), nn.ReLU(),
        nn.BatchNorm(6), nn.Dense(6, 6),
        nn.Residual([nn.BatchNorm(6), nn.Dense(6, 6), nn.BatchNorm(6), nn.BatchNorm(6)]),
        nn.BatchNorm(6), nn.Dense(6, 6), nn.BatchNorm(6, track_running_stats=False), nn.Dropout(0.5),
    )  # fmt: skip
    model = with_statistics(nn.Sequential(*layers, seed=0, dtype=np.float64), rng)
    model.layers[3].trainable = False
    folded = model.folded()
    assert [type(layer) for layer in folded.layers] == [type(layer) for layer in layers]
    assert [type(layer).__name__ for layer in folded.layers[7].block] == ["BatchNorm", "Dense", "BatchNorm"]
    assert [layer.trainable for layer in folded.layers] == [layer.trainable for layer in layers]
    x = rng.normal(size=(9, 6))
    np.testing.assert_allclose(folded(x), model(x), rtol=1e-12, atol=1e-12)
    folded.flat_parameters[...] = 0  # memory of its own
    assert model.flat_parameters.any()


def test_a_users_layer_is_not_folded():
    class Own(nn.Layer):
        pass

    with pytest.raises(ValueError, match=r"layers\[1\] is a Own"):
        nn.Sequential(nn.Dense(2, 2), Own()).folded()
