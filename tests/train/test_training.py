"""Models, the training loop, saved models and the command line."""

import copy
import json
import pickle

import numpy as np
import pytest
from oracles import layers as oracles

import pyoptim as po
from pyoptim import nn
from pyoptim.config import _show


def small_model(dtype=np.float64, seed=0):
    return nn.Sequential(
        nn.Dense(4, 6, init="he"),
        nn.BatchNorm(6),
        nn.ReLU(),
        nn.Dense(6, 5, bias=False),
        nn.Sigmoid(),
        nn.Dense(5, 5, activation="tanh"),
        nn.Tanh(),
        nn.Dense(5, 3),
        seed=seed,
        dtype=dtype,
    )


def digits(n=600):
    data = po.datasets.load("digits", flatten=True, normalize=True)
    return data.x_train[:n], data.y_train[:n]


def test_worked_example(backend):
    """A linear unit on (n6, n7), squared error averaged over three examples."""
    x = np.array([[0.69657858, 0.51114952], [0.859582, 0.56898564], [0.543156, 0.90834304]])
    target = np.array([7.0, 12.0, 40.0])
    layer = nn.Dense(2, 1)
    model = nn.Sequential(layer, dtype=np.float64)
    layer.parameters["weight"][...] = [[0.5989, 0.361]]
    layer.parameters["bias"][...] = -0.3608
    predictions = model(x)
    np.testing.assert_allclose(predictions[:, 0], [0.24090589, 0.35940748, 0.29240797], atol=5e-9)
    _, gradient = nn.MSE()(predictions, target)
    model.backward(gradient)
    assert layer.gradients["weight"][0, 0] == pytest.approx(-24.188, abs=5e-4)
    assert layer.gradients["bias"][0] == pytest.approx(-38.738, abs=5e-4)
    np.testing.assert_allclose(3 * gradient[:, 0] * x[:, 0], [-9.41648, -20.01209, -43.13483], atol=5e-6)


@pytest.mark.parametrize("loss", [nn.CrossEntropy(), nn.MSE()], ids=repr)
def test_gradients_of_a_whole_model(backend, loss):
    model, rng = small_model(), np.random.default_rng(0)
    x = rng.normal(size=(7, 4))
    target = rng.integers(0, 3, 7) if loss.classification else rng.normal(size=(7, 3))
    _, doutput = loss(model(x), target)
    dx = model.backward(doutput, need_dx=True)
    analytic = model.flat_gradients.copy()
    numeric = oracles.numerical_gradient(lambda: loss(model(x), target)[0], model.flat_parameters)
    np.testing.assert_allclose(analytic, numeric, rtol=1e-5, atol=1e-8)
    assert np.abs(analytic).max() > 1e-3
    np.testing.assert_allclose(
        dx, oracles.numerical_gradient(lambda: loss(model(x), target)[0], x), rtol=1e-5, atol=1e-8
    )


def test_parameters_are_views_of_one_buffer():
    model = small_model()
    model.flat_parameters[...] = np.arange(model.flat_parameters.size)
    assert np.array_equal(
        np.concatenate([p.ravel() for p in model.parameters().values()]), model.flat_parameters
    )
    assert list(model.parameters())[:4] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert model.flat_parameters.ctypes.data % 64 == 0
    assert all(np.shares_memory(g, model.flat_gradients) for g in model.gradients().values())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copied_model_is_whole(copied):
    model = small_model()
    other = copied(model)
    other.flat_parameters[...] = 3
    assert all((p == 3).all() for p in other.parameters().values())
    assert not (model.flat_parameters == 3).all()


def test_layers_belong_to_one_model():
    layer = nn.Dense(2, 2)
    nn.Sequential(layer)
    with pytest.raises(ValueError, match="already belongs"):
        nn.Sequential(layer)
    relu = nn.ReLU()
    nn.Sequential(relu)
    with pytest.raises(ValueError, match="already belongs"):
        nn.Sequential(relu)
    twice = nn.ReLU()
    with pytest.raises(ValueError, match="already belongs"):
        nn.Sequential(twice, twice)


@pytest.mark.parametrize(
    ("init", "std"),
    [("glorot", (2 / 500) ** 0.5), ("he", (2 / 300) ** 0.5), ("normal", 0.01), (nn.Normal(0.5), 0.5)],
)
def test_initialisers(init, std):
    layer = nn.Dense(300, 200, init=init)
    nn.Sequential(layer, seed=1)
    weight = layer.parameters["weight"]
    assert weight.std() == pytest.approx(std, rel=0.02)
    assert abs(weight.mean()) < 5 * std / weight.size**0.5
    assert not layer.parameters["bias"].any()
    if init == "glorot":
        assert np.abs(weight).max() <= (6 / 500) ** 0.5


@pytest.mark.parametrize("batch_size", [1, 32, None])
def test_training_learns_digits(backend, batch_size):
    x, y = digits(200 if batch_size == 1 else 600)
    model = nn.Sequential(nn.Dense(64, 32, activation="relu", init="he"), nn.Dense(32, 10), seed=0)
    trainer = po.Trainer(model, nn.CrossEntropy(), po.Adam(model.parameters(), lr=3e-3), seed=0)
    before = trainer.evaluate(x, y)["accuracy"]
    history = trainer.fit(x, y, epochs=100 if batch_size is None else 8, batch_size=batch_size, verbose=False)
    assert before < 0.3
    assert history["accuracy"][-1] > 0.9
    assert history["loss"][-1] < history["loss"][0] / 3
    assert trainer.evaluate(x, y)["accuracy"] == np.mean(trainer.predict(x).argmax(1) == y)


def test_training_is_reproducible_for_every_number_of_threads(backend):
    x, y = digits()
    before, results = po.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            po.set_num_threads(threads)
            model = nn.Sequential(nn.Dense(64, 50), nn.BatchNorm(50), nn.Tanh(), nn.Dense(50, 10), seed=3)
            trainer = po.Trainer(model, nn.CrossEntropy(), po.AdamW(model.parameters()), seed=4)
            history = trainer.fit(x, y, epochs=2, validation_data=(x, y), verbose=False)
            del history["seconds"]
            results.append((history, model.state_dict()))
    finally:
        po.set_num_threads(before)
    for history, state in results[1:]:
        assert history == results[0][0]
        assert all(np.array_equal(value, results[0][1][name]) for name, value in state.items())


def test_an_epoch_visits_every_example_once():
    from pyoptim.train.data import Data

    data = Data(np.arange(10.0)[:, None], np.arange(10))
    rng = np.random.default_rng(0)
    epochs = [list(data.batches(3, data.x.dtype, rng.permutation(10))) for _ in range(2)]
    assert [len(b) for b, _, _ in epochs[0]] == [3, 3, 3, 1]
    orders = [np.concatenate([t for _, t, _ in epoch]) for epoch in epochs]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert list(orders[0]) != list(orders[1])
    assert all((b[:, 0] == t).all() for epoch in epochs for b, t, _ in epoch)


def test_a_trained_model_survives_saving(backend, tmp_path):
    x, y = digits()
    model = nn.Sequential(
        nn.Dense(64, 20), nn.BatchNorm(20, momentum=None), nn.ReLU(), nn.Dense(20, 10), seed=0
    )
    po.Trainer(model, nn.CrossEntropy(), po.SGD(model.parameters(), lr=0.1)).fit(x, y, verbose=False)
    path = tmp_path / "model.safetensors"
    model.save(path)
    loaded = nn.Sequential.load(path)
    assert repr(loaded) == repr(model)
    assert np.array_equal(loaded(x), model(x))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]  # nothing temporary is left


def test_damaged_files_are_refused(tmp_path):
    path, damaged = tmp_path / "model.safetensors", tmp_path / "damaged.safetensors"
    small_model().save(path)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for length in [*range(0, header, 7), header, header + 1, len(content) - 1]:
        damaged.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"damaged\.safetensors"):
            nn.Sequential.load(damaged)
    damaged.write_bytes(content.replace(b'\\"ReLU\\"', b'\\"Loss\\"'))
    with pytest.raises(ValueError, match=r"damaged\.safetensors is damaged"):
        nn.Sequential.load(damaged)


def test_a_failed_save_keeps_the_old_file(tmp_path):
    class Mine(nn.ReLU):
        pass

    path = tmp_path / "model.safetensors"
    small_model().save(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"layers\[0\] is a Mine"):
        nn.Sequential(Mine()).save(path)
    assert path.read_bytes() == before


def test_state_of_another_model_is_refused():
    model, other = small_model(), nn.Sequential(nn.Dense(4, 6), dtype=np.float64)
    state = model.state_dict()
    with pytest.raises(ValueError, match="missing"):
        model.load_state_dict(other.state_dict())
    wrong = {**state, "7.bias": np.zeros(4)}
    with pytest.raises(ValueError, match=r"state\['7.bias'\] has shape \(4,\), expected \(3,\)"):
        model.load_state_dict(wrong)
    assert all(np.array_equal(value, state[name]) for name, value in model.state_dict().items())


def bad_fits():
    x, y = np.zeros((10, 4)), np.zeros(10, int)
    nan, inf = x.copy(), x.copy()
    nan[3, 2], inf[0, 1] = np.nan, np.inf
    return [
        (nan, y, {}, ValueError, r"x\[3, 2\] is nan"),
        (inf, y, {}, ValueError, r"x\[0, 1\] is inf"),
        (x[:, :3], y, {}, ValueError, r"x has shape \(10, 3\).*expected \(4,\)"),
        (x[0], y, {}, ValueError, "x has shape"),
        (x[:0], y[:0], {}, ValueError, "x is empty"),
        (x, y[:9], {}, ValueError, "y has 9 targets, expected 10"),
        (x, np.full(10, 3), {}, ValueError, r"y\[0\] is 3, expected a class in \[0, 3\)"),
        (x, y.astype(float), {}, TypeError, "y has dtype float64"),
        (x.astype(complex), y, {}, TypeError, "x has dtype complex"),
        (x.astype("U8"), y, {}, TypeError, "x has dtype <U8"),
        (x, y, {"epochs": 0}, ValueError, "epochs is 0"),
        (x, y, {"batch_size": 0}, ValueError, "batch_size is 0"),
        (x, y, {"batch_size": 2.5}, ValueError, r"batch_size is 2\.5"),
        (x, y, {"batch_size": 1}, ValueError, "BatchNorm"),
        (x, y, {"batch_size": 3}, ValueError, "makes a batch of 1"),
        (x, y, {"validation_data": (nan, y)}, ValueError, r"validation_data\[0\]\[3, 2\] is nan"),
    ]


@pytest.mark.parametrize(
    ("x", "y", "options", "error", "message"), bad_fits(), ids=[b[-1] for b in bad_fits()]
)
def test_bad_data_changes_nothing(x, y, options, error, message):
    model = small_model()
    trainer = po.Trainer(model, nn.CrossEntropy(), po.Adam(model.parameters()))
    before = model.state_dict()
    with pytest.raises(error, match=message):
        trainer.fit(x, y, verbose=False, **options)
    assert all(np.array_equal(value, before[name]) for name, value in model.state_dict().items())


def test_trainer_refuses_what_does_not_belong_together():
    model, other = small_model(), small_model()
    with pytest.raises(ValueError, match="optimizer updates other arrays"):
        po.Trainer(model, nn.CrossEntropy(), po.Adam(other.parameters()))
    with pytest.raises(TypeError, match="loss is a str"):
        po.Trainer(model, "mse", po.Adam(model.parameters()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Dense(0, 3), "in_features is 0"),
        (lambda: nn.Dense(3, 2.0), r"out_features is 2\.0"),
        (lambda: nn.Dense(3, 2, activation="gelu?"), "activation is"),
        (lambda: nn.Dense(3, 2, init="xavier?"), "init is 'xavier"),
        (lambda: nn.BatchNorm(3, momentum=1.5), r"momentum is 1\.5"),
        (lambda: nn.BatchNorm(3, running_var="keras"), "running_var is 'keras'"),
        (lambda: nn.Sequential(), "at least one layer"),
    ],
)
def test_bad_layers(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_train_command(run_pyoptim, tmp_path):
    done = run_pyoptim("train", "--plot", "curves.png", "--seed", "1")
    assert done.returncode == 0, done.stderr
    accuracy = float(done.stdout.split("test accuracy ")[1].split("%")[0])
    assert accuracy >= 97
    assert "examples/s" in done.stderr  # the progress bar
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    data = po.datasets.load("digits", flatten=True, normalize=True)
    model = nn.Sequential.load(tmp_path / "digits.safetensors")
    assert np.mean(model(data.x_test).argmax(1) == data.y_test) * 100 == pytest.approx(accuracy, abs=0.01)


def test_train_options(run_pyoptim, tmp_path):
    options = (
        "--epochs 2 --batch-size full --lr 0.5 --schedule constant --optimizer sgd --hidden 8,8 "
        "--backend numpy --threads 1"
    )
    done = run_pyoptim("train", *options.split(), "--save", "m.safetensors")
    assert done.returncode == 0, done.stderr
    assert "64-8-8-10" in done.stdout
    assert "SGD(lr=0.5" in done.stdout
    assert "numpy backend, 1 threads" in done.stdout
    assert nn.Sequential.load(tmp_path / "m.safetensors").layers[1].out_features == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nonsense"], "nonsense"),
        (["train", "--optimizer", "adamm"], "--optimizer is 'adamm'"),
        (["train", "--backend", "fortran"], "backend name is 'fortran'"),
        (["train", "--batch-size", "0"], "not a positive integer"),
        (["train", "--epochs", "0"], "not a positive integer"),
        (["train", "--plot", "x.nonsense"], "nonsense"),
        (["train", "--save", "no/such/folder/m"], "no/such/folder"),
        (["train", "--save", "."], "exists and is no file"),
        (["frobnicate"], "invalid choice"),
    ],
)
def test_bad_commands(run_pyoptim, arguments, message):
    done = run_pyoptim(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_info_command(run_pyoptim):
    done = run_pyoptim("info")
    assert done.returncode == 0, done.stderr
    config = po.show_config()
    for name in ("backend", "instruction_set", "threads"):
        assert _show(config[name]) in done.stdout
    assert json.dumps(config)  # plain data


def test_mnist_reaches_its_accuracy(run_pyoptim):
    try:
        po.datasets.load("mnist")
    except po.datasets.DatasetError as error:
        pytest.skip(f"MNIST is not here: {error}")
    done = run_pyoptim("train", "mnist", "--batch-size", "128", "--epochs", "5", "--schedule", "cosine")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split("test accuracy ")[1].split("%")[0]) >= 97.5
