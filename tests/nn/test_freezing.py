"""Frozen layers: what does not learn does not move, costs no gradient, and the rest learns as it would."""

import json

import numpy as np
import pytest
from oracles import layers as oracles
from support.backends import use_threads
from support.hostile import Parts

import pyoptim as po
from pyoptim import nn

PATHS = ["python", pytest.param("native", marks=pytest.mark.skipif(
    po.runtime.dispatch.current().name != "native", reason="runs on the native backend"))]  # fmt: skip
native = PATHS[1].marks[0]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def data(dtype=np.float32, n=50, features=6):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, features)).astype(dtype), rng.integers(0, 3, n)


def make(dtype=np.float32, norm=True):
    norms = [nn.BatchNorm(8), nn.LayerNorm(8)] if norm else [nn.ReLU(), nn.Tanh()]
    return nn.Sequential(
        nn.Dense(6, 8, activation="tanh"), norms[0], nn.Dense(8, 8, activation="relu"), norms[1],
        nn.Residual([nn.Dense(8, 8), nn.Tanh(), nn.Dense(8, 8, bias=False)]), nn.Dense(8, 3),
        seed=1, dtype=dtype,
    )  # fmt: skip


def freeze(model, which):
    """By the names of `leaves`: "0." or "4.block.2."."""
    leaves = model.leaves()
    for name in which:
        leaves[name].trainable = False


OPTIMIZERS = {
    "SGD": {"momentum": 0.9, "weight_decay": 0.1},
    "Adam": {"weight_decay": 0.1},
    "AdamW": {"max_grad_norm": 0.3},
    "Lion": {"weight_decay": 0.1},
    "LAMB": {"weight_decay": 0.1},
}
FROZEN = [
    ("0.",),
    ("0.", "1.", "2."),
    ("2.", "3."),
    ("5.",),
    ("4.block.0.",),
    ("1.", "4.block.0.", "4.block.2."),
]


@pytest.mark.parametrize("which", FROZEN, ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("path", PATHS)
def test_what_is_frozen_stays_bit_for_bit_and_the_rest_moves(path, name, which):
    x, y = data()
    model = make()
    nn.CrossEntropy()(model(x), y)  # running statistics of something
    before = model.state_dict()
    freeze(model, which)
    optimizer = getattr(po, name)(model.parameters(), lr=0.01, **OPTIMIZERS[name])
    trainer = po.Trainer(model, nn.CrossEntropy(), optimizer, seed=0)
    engine = "python" if name == "LAMB" else path
    trainer.fit(x, y, epochs=3, batch_size=8, verbose=False, engine=engine)
    for key, value in model.state_dict().items():
        frozen = key.startswith(which)
        assert np.array_equal(value, before[key]) == frozen, key


def run(engine, which, dtype, batch_size, name="Adam", norm=True, **fit):
    x, y = data(dtype)
    model = make(dtype, norm)
    freeze(model, which)
    optimizer = getattr(po, name)(model.parameters(), lr=0.01, **OPTIMIZERS[name])
    trainer = po.Trainer(model, nn.CrossEntropy(), optimizer, seed=0)
    model.flat_gradients[...] = 7
    history = trainer.fit(x, y, epochs=2, batch_size=batch_size, verbose=False, engine=engine, **fit)
    assert history.path == engine
    for prefix, layer in model.leaves().items():  # no gradient is computed
        for gradient in layer.gradients.values():
            assert (gradient == 7).all() == (prefix in which)
    return {**model.state_dict(), "loss": np.array(history["loss"])}, optimizer.state_dict()["state"]


@native
@pytest.mark.parametrize("which", FROZEN, ids=str)
@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_the_engine_gives_the_bits_of_the_generic_loop(name, batch_size, which, dtype):
    norm = batch_size > 1
    (expected, states), (found, found_states) = (
        run(engine, which, dtype, batch_size, name, norm) for engine in ("python", "native")
    )
    assert all(np.array_equal(found[key], value) for key, value in expected.items())
    assert all(np.array_equal(found_states[i][key], states[i][key]) for i in states for key in states[i])


@native
@pytest.mark.parametrize("which", [("0.",), ("2.",), ("4.block.0.", "5.")], ids=str)
def test_hogwild_on_one_thread_is_the_serial_run(which):
    with use_threads(1):
        expected, _ = run("native", which, np.float32, 4, "SGD", norm=False)
        x, y = data()
        model = make(norm=False)
        freeze(model, which)
        optimizer = po.SGD(model.parameters(), lr=0.01, **OPTIMIZERS["SGD"])
        trainer = po.Trainer(model, nn.CrossEntropy(), optimizer, seed=0)
        trainer.fit(x, y, epochs=2, batch_size=4, verbose=False, parallel="hogwild")
    assert all(np.array_equal(expected[name], value) for name, value in model.state_dict().items())
    with use_threads(2):
        trainer.fit(x, y, epochs=1, batch_size=4, verbose=False, parallel="hogwild")
    for name, value in make(norm=False).state_dict().items():
        assert np.array_equal(model.state_dict()[name], value) == name.startswith(which)


@pytest.mark.parametrize("path", PATHS)
def test_layers_on_a_frozen_one_learn_as_on_its_outputs(path, dtype):
    """As a model of the other layers, trained on what the frozen ones make of the data: the same bits."""
    x, y = data(dtype)

    def bottom():
        return [nn.Dense(6, 9, activation="relu"), nn.BatchNorm(9), nn.Residual(nn.Dense(9, 9))]

    def top():
        return [nn.Dense(9, 8), nn.Tanh(), nn.Dense(8, 3)]

    below = nn.Sequential(*bottom(), seed=0, dtype=dtype)
    below(x)
    features = below.eval()(x)
    above = nn.Sequential(*top(), seed=1, dtype=dtype)
    whole = nn.Sequential(*bottom(), *top(), dtype=dtype)
    shifted = {f"{int(name[0]) + 3}{name[1:]}": value for name, value in above.state_dict().items()}
    whole.load_state_dict({**below.state_dict(), **shifted})
    for layer in whole.layers[:3]:
        layer.trainable = False
    for model, inputs in ((whole, x), (above, features)):
        optimizer = po.Adam(model.parameters(), lr=0.01, weight_decay=0.01, max_grad_norm=0.5)
        trainer = po.Trainer(model, nn.CrossEntropy(), optimizer, seed=0)
        trainer.fit(inputs, y, epochs=3, batch_size=8, verbose=False, engine=path)
    assert (above.flat_parameters != nn.Sequential(*top(), seed=1, dtype=dtype).flat_parameters).any()
    found = whole.flat_parameters[-above.flat_parameters.size :]
    if po.runtime.dispatch.current().name == "native":
        assert np.array_equal(found, above.flat_parameters)
    else:  # a BLAS may sum in another order where arrays lie otherwise
        np.testing.assert_allclose(found, above.flat_parameters, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("which", FROZEN, ids=str)
def test_gradients_before_and_behind_frozen_layers_by_central_differences(backend, which, rng):
    model = make(np.float64)
    x, dy = rng.normal(size=(9, 6)), rng.normal(size=(9, 3))
    model(x)
    freeze(model, which)

    def loss():
        return float((model.train()(x) * dy).sum())

    loss()
    dx = model.backward(dy, need_dx=True)
    gradients = {name: g.copy() for name, g in model.gradients().items()}
    assert not any(name.startswith(which) for name in gradients)
    assert len(gradients) == sum(not n.startswith(which) for n in make(np.float64).parameters())
    for name, p in model.parameters().items():
        expected = oracles.numerical_gradient(loss, p)
        np.testing.assert_allclose(gradients[name], expected, rtol=1e-5, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(dx, oracles.numerical_gradient(loss, x), rtol=1e-5, atol=1e-7)
    loss()
    model.backward(dy)  # down to the first layer that learns
    for name, gradient in model.gradients().items():
        assert np.array_equal(gradient, gradients[name])


def test_backward_stops_at_the_first_layer_that_learns():
    seen = []

    class Spy(nn.Tanh):
        def backward(self, dy, need_dx=True):
            seen.append((self.label, need_dx))
            return super().backward(dy, need_dx)

    spies = [Spy() for _ in range(4)]
    for i, spy in enumerate(spies):
        spy.label = i
    block = nn.Residual([spies[1], nn.Dense(4, 4), spies[2], nn.Dense(4, 4)])
    model = nn.Sequential(nn.Dense(4, 4), spies[0], block, spies[3], nn.Dense(4, 3), seed=0)

    def backward():
        seen.clear()
        model(np.ones((2, 4)))
        model.backward(np.ones((2, 3), np.float32))
        return seen

    assert backward() == [(3, True), (2, True), (1, True), (0, True)]
    model.layers[0].trainable = False
    assert backward() == [(3, True), (2, True)]
    block.block[1].trainable = False
    assert backward() == [(3, True)]
    block.trainable = False
    assert not block.block[3].trainable
    assert backward() == []


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_frozen_batch_norm_takes_its_running_statistics(backend, affine, activation, rng):
    layer = nn.BatchNorm(4, affine=affine, activation=activation)
    model = nn.Sequential(layer, seed=0, dtype=np.float64)
    for _ in range(3):
        model(rng.normal(2, 3, size=(20, 4)))
    layer.trainable = False
    before = model.state_dict()
    x = rng.normal(size=(1, 4))  # a batch of one has no statistics
    mean, var = before["0.running_mean"], before["0.running_var"]
    expected = (x - mean) / np.sqrt(var + layer.eps)
    np.testing.assert_allclose(model.train()(x), oracles.ACTIVATIONS[activation](expected), rtol=1e-12)
    assert np.array_equal(model.eval()(x), model.train()(x))
    assert all(np.array_equal(value, before[name]) for name, value in model.state_dict().items())
    layer.trainable = True
    model(rng.normal(size=(2, 4)))
    assert model.state_dict()["0.num_batches_tracked"] == 4


def test_a_frozen_batch_norm_without_running_statistics_takes_the_batch_s(backend, rng):
    layer = nn.BatchNorm(4, track_running_stats=False)
    model = nn.Sequential(layer, dtype=np.float64)
    x = rng.normal(2, 3, size=(20, 4))
    free = model(x)
    layer.trainable = False
    assert np.array_equal(model(x), free)


@native
def test_frozen_batch_norm_trains_by_single_examples_in_both_loops():
    x, y = data()
    results = []
    for engine in ("python", "native"):
        model = make(norm=True)
        model(x)
        model.layers[1].trainable = False
        trainer = po.Trainer(model, nn.CrossEntropy(), po.SGD(model.parameters(), lr=0.01), seed=0)
        trainer.fit(x, y, batch_size=1, verbose=False, engine=engine)
        results.append(model.state_dict())
    assert all(np.array_equal(value, results[1][name]) for name, value in results[0].items())
    assert results[0]["1.num_batches_tracked"] == 1


def test_pytorch_trains_alike(backend, rng):
    """Where its frozen modules have no requires_grad, and its batch norm stands in evaluation."""
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Tanh(), torch.nn.Linear(8, 8),
        torch.nn.ReLU(), torch.nn.Linear(8, 3),
    ).double()  # fmt: skip
    ours = nn.Sequential(
        nn.Dense(6, 8),
        nn.BatchNorm(8),
        nn.Tanh(),
        nn.Dense(8, 8),
        nn.ReLU(),
        nn.Dense(8, 3),
        dtype=np.float64,
    )
    x, y = data(np.float64)
    theirs(torch.from_numpy(x))
    ours.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    before = ours.state_dict()
    for i in (1, 3):
        theirs[i].requires_grad_(False)
        ours.layers[i].trainable = False
    theirs[1].eval()
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=0.01)
    mine = po.AdamW(ours.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(theirs(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
        _, dy = nn.CrossEntropy()(ours(x), y)
        ours.backward(dy)
        mine.step(ours.gradients())
    for name, value in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[name], value.numpy(), rtol=1e-9, atol=1e-12)
        assert np.array_equal(ours.state_dict()[name], before[name]) == name.startswith(("1.", "3."))


def test_an_optimizer_is_for_the_layers_that_learn_when_it_is_made():
    x, y = data()
    model = make()
    whole, flat = po.Adam(model.parameters()), po.Adam(model.flat_parameters)
    trainers = [po.Trainer(model, nn.CrossEntropy(), optimizer) for optimizer in (whole, flat)]
    _, dy = nn.CrossEntropy()(model(x), y)
    model.backward(dy)
    before = model.state_dict()
    model.layers[2].trainable = False
    part = po.Adam(model.parameters())
    for trainer in trainers:
        for train in (trainer.fit, trainer.partial_fit):
            with pytest.raises(ValueError, match=r"optimizer updates '2\.weight', which is frozen"):
                train(x, y)
    with pytest.raises(ValueError, match=r"updates '2\.weight', which is frozen"):
        po.Trainer(model, nn.CrossEntropy(), flat)
    with pytest.raises(ValueError, match="grads has the names"):
        whole.step(model.gradients())
    trainer = po.Trainer(model, nn.CrossEntropy(), part)
    model.layers[2].trainable = True
    for train in (trainer.fit, trainer.partial_fit):
        with pytest.raises(ValueError, match=r"optimizer does not update '2\.weight'.* thawed"):
            train(x, y)
    with pytest.raises(ValueError, match="grads has the names"):
        part.step(model.gradients())
    assert all(np.array_equal(value, before[name]) for name, value in model.state_dict().items())
    assert int(part.state_dict()["state"][0]["step"]) == 0
    trainers[0].fit(x, y, verbose=False)  # as it was made


@pytest.mark.parametrize("path", PATHS)
def test_layers_thaw_one_after_the_other_in_one_training(path):
    x, y = data()
    model = make()
    before = model.state_dict()
    for layer in model.layers[:-1]:
        layer.trainable = False

    class Thaw(po.callbacks.Callback):
        with_new_optimizer = True

        def on_epoch_begin(self, epoch):
            if epoch == 1:
                model.layers[2].trainable = True
                if self.with_new_optimizer:
                    assert np.array_equal(model.state_dict()["2.weight"], before["2.weight"])
                    self.trainer.optimizer = po.Adam(model.parameters(), lr=0.01)
                    self.trainer.optimizer.epoch = 1

    trainer = po.Trainer(model, nn.CrossEntropy(), po.SGD(model.parameters(), lr=0.01), seed=0)
    trainer.fit(x, y, epochs=3, batch_size=8, verbose=False, callbacks=[Thaw()], engine=path)
    for name, value in model.state_dict().items():
        assert np.array_equal(value, before[name]) == (not name.startswith(("2.", "5."))), name
    model.layers[2].trainable = Thaw.with_new_optimizer = False
    trainer = po.Trainer(model, nn.CrossEntropy(), po.SGD(model.parameters()), seed=0)
    with pytest.raises(ValueError, match="thawed"):
        trainer.fit(x, y, epochs=3, verbose=False, callbacks=[Thaw()], engine=path)


@pytest.mark.parametrize("path", PATHS)
def test_transfer_of_the_first_layers_to_another_task(path, tmp_path):
    """Yosinski et al. 2014: copy k layers, freeze, train the rest; then thaw and go on."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(6, 8))
    kinds = rng.integers(0, 6, 600)
    x = (centers[kinds] + 0.3 * rng.normal(size=(600, 8))).astype(np.float32)

    def fit(model, y, epochs):
        optimizer = po.AdamW(model.parameters(), lr=0.01)
        trainer = po.Trainer(model, nn.CrossEntropy(), optimizer, seed=0)
        trainer.fit(x, y, epochs=epochs, batch_size=16, verbose=False, engine=path)
        return trainer.evaluate(x, y)["accuracy"]

    def network(classes, seed):
        return nn.Sequential(
            nn.Dense(8, 16, activation="relu"), nn.BatchNorm(16), nn.Residual(nn.Dense(16, 16)),
            nn.Dense(16, classes), seed=seed,
        )  # fmt: skip

    source = network(6, 0)
    assert fit(source, kinds, 5) > 0.95
    source.save(tmp_path / "source")

    target, k = network(2, 1), 3
    loaded = nn.Sequential.load(tmp_path / "source").state_dict()
    copied = {name: value for name, value in loaded.items() if int(name.split(".")[0]) < k}
    target.load_state_dict({**target.state_dict(), **copied})
    for layer in target.layers[:k]:
        layer.trainable = False
    assert list(target.parameters()) == ["3.weight", "3.bias"]
    assert fit(target, kinds % 2, 10) > 0.9
    state = target.state_dict()
    assert all(np.array_equal(state[name], value) for name, value in copied.items())

    for layer in target.layers:
        layer.trainable = True
    assert fit(target, kinds % 2, 5) > 0.95
    state = target.state_dict()
    assert not any(np.array_equal(state[name], value) for name, value in copied.items())


@pytest.mark.parametrize("path", PATHS)
def test_training_resumes(path, tmp_path):
    x, y = data()

    def fit(epochs, which, file):
        model = make()
        freeze(model, which)
        optimizer = po.Adam(model.parameters(), lr=0.01)
        trainer = po.Trainer(model, nn.CrossEntropy(), optimizer, seed=0)
        trainer.fit(x, y, epochs=epochs, batch_size=8, verbose=False, engine=path, checkpoint=tmp_path / file)
        return model.state_dict()

    expected = fit(4, ("2.",), "whole")
    fit(2, ("2.",), "parts")
    for other in ((), ("0.",), ("4.block.0.",)):
        with pytest.raises(ValueError, match=r"does not fit this training: .*frozen"):
            fit(4, other, "parts")
    resumed = fit(4, ("2.",), "parts")
    assert all(np.array_equal(value, resumed[name]) for name, value in expected.items())


def test_files_keep_what_is_frozen_and_state_dicts_do_not(tmp_path):
    model = make()
    freeze(model, ("1.", "4.block.2."))
    model.save(tmp_path / "model")
    loaded = nn.Sequential.load(tmp_path / "model")
    assert list(loaded.parameters()) == list(model.parameters())
    frozen = [name for name, layer in loaded.leaves().items() if not layer.trainable]
    assert frozen == ["1.", "4.block.2."]
    other = make()
    other.load_state_dict(model.state_dict())
    assert all(layer.trainable for layer in other.leaves().values())
    assert set(model.state_dict()) == set(other.state_dict())
    parts = Parts((tmp_path / "model").read_bytes())
    words = json.dumps(parts.description)
    parts.description = json.loads(words.replace('"trainable": false', '"trainable": 0'))
    assert json.dumps(parts.description) != words
    (tmp_path / "bad").write_bytes(parts.joined())
    with pytest.raises(ValueError, match="trainable is 0, expected True or False"):
        nn.Sequential.load(tmp_path / "bad")


def test_a_model_that_is_frozen_as_a_whole():
    x, y = data()
    model = make(norm=False)
    for layer in model.layers:
        layer.trainable = False
    before = model.flat_parameters.copy()
    assert model.parameters() == model.gradients() == {}
    trainer = po.Trainer(model, nn.CrossEntropy(), po.SGD(model.parameters()))
    history = trainer.fit(x, y, verbose=False)
    assert po.runtime.dispatch.current().name != "native" or "all are frozen" in history.reason
    assert np.isfinite(history["loss"]).all()
    assert np.array_equal(model.flat_parameters, before)


def test_penalties_are_of_what_learns():
    model = nn.Sequential(nn.Dense(2, 2), nn.Dense(2, 2), seed=0, dtype=np.float64)
    model.layers[0].trainable = False
    weight = model.parameters()["1.weight"]
    assert nn.Penalty(l2=2.0).add(model) == pytest.approx((weight**2).sum(), rel=1e-12)
    assert not model.layers[0].gradients["weight"].any()


def test_trainable_is_a_flag():
    layer = nn.Dense(2, 2)
    for value in (0, None, "no"):
        with pytest.raises(TypeError, match=r"trainable is .*, expected True or False"):
            layer.trainable = value
    assert layer.trainable
    layer.trainable = np.False_
    assert layer.trainable is False
    block = nn.Residual([nn.ReLU(), layer])
    assert block.trainable
    block.trainable = False
    assert not block.block[0].trainable


def test_summary_tells_what_is_frozen():
    model = make()
    assert "frozen" not in model.summary()
    assert model.summary().splitlines()[-1].split()[0] == "parameters"
    freeze(model, ("0.", "4.block.0."))
    lines = model.summary().splitlines()
    assert [line.split()[0] for line in lines if line.endswith("frozen")] == ["0", "4.block.0"]
    assert lines[-1].split() == ["of", "them", "trainable", str(model.flat_parameters.size - 56 - 72)]
