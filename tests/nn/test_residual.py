"""Residual layers: their definition, central differences, PyTorch, the compiled engine, files."""

import copy
import json
import pickle

import numpy as np
import pytest
from oracles import layers as oracles
from support.backends import use_threads

import pyoptim as po
from pyoptim import nn
from pyoptim.runtime import files

native = pytest.mark.skipif(
    po.runtime.dispatch.current().name != "native", reason="runs on the native backend"
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def nested(norm=True, dtype=np.float64, features=6):
    """Blocks in blocks, with everything that keeps something between the passes."""
    norms = [[nn.BatchNorm(features)] if norm else [] for _ in range(2)]
    inner = nn.Residual([*norms[0], nn.Dense(features, 4, activation="tanh"), nn.Dense(4, features)])
    outer = [*norms[1], nn.Sigmoid(), nn.Dense(features, features, bias=False), inner, nn.LayerNorm(features)]
    return nn.Sequential(
        nn.Dense(5, features), nn.Residual(outer), nn.Residual(nn.Tanh()), nn.Dense(features, 3),
        seed=1, dtype=dtype,
    )  # fmt: skip


def test_the_output_is_the_input_and_what_the_block_makes_of_it(backend, rng):
    block = [nn.Dense(7, 9, activation="relu"), nn.Dense(9, 7)]
    model = nn.Sequential(nn.Residual(block), dtype=np.float64, seed=0)
    x, dy = rng.normal(size=(2, 11, 7))
    (w1, b1), (w2, b2) = ((layer.parameters["weight"], layer.parameters["bias"]) for layer in block)
    b1[...], b2[...] = rng.normal(size=9), rng.normal(size=7)
    hidden = oracles.dense(x, w1, b1, "relu")
    np.testing.assert_allclose(model(x), x + oracles.dense(hidden, w2, b2), rtol=1e-12, atol=1e-12)
    dhidden = (dy @ w2) * (hidden > 0)
    np.testing.assert_allclose(model.backward(dy, need_dx=True), dy + dhidden @ w1, rtol=1e-12, atol=1e-12)
    expected = {
        "0.block.0.weight": dhidden.T @ x,
        "0.block.0.bias": dhidden.sum(0),
        "0.block.1.weight": dy.T @ hidden,
        "0.block.1.bias": dy.sum(0),
    }
    assert list(model.gradients()) == list(expected)
    for name, gradient in model.gradients().items():
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("need_dx", [False, True])
def test_gradients_by_central_differences(backend, need_dx, rng):
    model = nested()
    x, dy = rng.normal(size=(8, 5)), rng.normal(size=(8, 3))

    def loss():
        return float((model.train()(x) * dy).sum())

    loss()
    dx = model.backward(dy, need_dx)
    gradients = {name: g.copy() for name, g in model.gradients().items()}
    for name, p in model.parameters().items():
        expected = oracles.numerical_gradient(loss, p)
        np.testing.assert_allclose(gradients[name], expected, rtol=1e-5, atol=1e-7, err_msg=name)
        assert np.abs(gradients[name]).max() > 1e-4
    if need_dx:
        np.testing.assert_allclose(dx, oracles.numerical_gradient(loss, x), rtol=1e-5, atol=1e-7)


def test_pytorch_trains_alike_under_the_same_names(backend, rng):
    torch = pytest.importorskip("torch")

    class Residual(torch.nn.Module):
        def __init__(self, *layers):
            super().__init__()
            self.block = torch.nn.Sequential(*layers)

        def forward(self, x):
            return x + self.block(x)

    inner = Residual(torch.nn.Linear(6, 6), torch.nn.Tanh())
    theirs = torch.nn.Sequential(
        torch.nn.Linear(5, 6),
        Residual(torch.nn.BatchNorm1d(6), torch.nn.ReLU(), torch.nn.Linear(6, 6), inner),
        torch.nn.Linear(6, 3),
    ).double()
    block = [nn.BatchNorm(6), nn.ReLU(), nn.Dense(6, 6), nn.Residual([nn.Dense(6, 6), nn.Tanh()])]
    ours = nn.Sequential(nn.Dense(5, 6), nn.Residual(block), nn.Dense(6, 3), dtype=np.float64)
    ours.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    x, y = rng.normal(size=(20, 5)), rng.integers(0, 3, 20)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    mine = po.SGD(ours.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(theirs(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
        _, dy = nn.CrossEntropy()(ours(x), y)
        ours.backward(dy)
        mine.step(ours.gradients())
    for name, value in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[name], value.numpy(), rtol=1e-9, atol=1e-12)
    expected = theirs.eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(ours.eval()(x), expected, rtol=1e-9, atol=1e-12)


def chains():
    """Models of 12 inputs, by what is special about where their blocks begin and end."""
    return {
        "first": [nn.Residual([nn.Dense(12, 5, activation="relu"), nn.Dense(5, 12)]), nn.Dense(12, 3)],
        "last": [nn.Dense(12, 3), nn.Residual([nn.Tanh(), nn.Dense(3, 3)])],
        "one after another": [
            nn.Dense(12, 8), nn.Residual(nn.Dense(8, 8)), nn.Residual([nn.ReLU(), nn.Dense(8, 8)]),
            nn.Dense(8, 3),
        ],
        "begin together": [
            nn.Dense(12, 8),
            nn.Residual([nn.Residual([nn.Residual(nn.Dense(8, 8)), nn.ReLU()]), nn.Dense(8, 8)]),
            nn.Dense(8, 3),
        ],
        "end together": [
            nn.Dense(12, 8),
            nn.Residual([nn.Dense(8, 8), nn.Residual([nn.Tanh(), nn.Residual(nn.Dense(8, 8))])]),
            nn.Dense(8, 3),
        ],
        "nothing compiled inside": [nn.Dense(12, 8), nn.Residual(nn.Flatten()), nn.Dense(8, 3)],
        "no parameters before": [
            nn.Residual(nn.Tanh()), nn.Rescale(0.5), nn.Residual(nn.Rescale(2)), nn.Dense(12, 3),
        ],
        "random": [
            nn.Dense(12, 8), nn.Residual([nn.Dropout(0.3), nn.Dense(8, 8), nn.GaussianNoise(0.1)]),
            nn.Residual(nn.Dropout(0.5)), nn.Dense(8, 3),
        ],
        "norms": [
            nn.Dense(12, 8),
            nn.Residual([nn.BatchNorm(8, activation="relu"), nn.Dense(8, 8), nn.Residual([nn.LayerNorm(8),
                        nn.Dense(8, 8)]), nn.BatchNorm(8, affine=False, momentum=None)]),
            nn.BatchNorm(8, track_running_stats=False), nn.Dense(8, 3),
        ],
    }  # fmt: skip


def trained(engine, layers, dtype, rng, batch_size=8, make=po.Adam, **fit):
    x, y = rng.normal(size=(50, 12)).astype(dtype), rng.integers(0, 3, 50)
    model = nn.Sequential(*layers, seed=1, dtype=dtype)
    trainer = po.Trainer(model, nn.CrossEntropy(), make(model.parameters(), lr=0.02), seed=3)
    fit = {"epochs": 2, "batch_size": batch_size, "verbose": False, **fit}
    history = trainer.fit(x, y, engine=engine, **fit)
    assert history.path == engine
    return {**model.state_dict(), "loss": np.array(history["loss"]), "outputs": trainer.predict(x)}


@native
@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("kind", chains())
def test_the_engine_gives_the_bits_of_the_generic_loop(kind, batch_size, dtype):
    if kind == "norms" and batch_size == 1:
        pytest.skip("a batch of 1 has no statistics")
    expected = trained("python", chains()[kind], dtype, np.random.default_rng(0), batch_size)
    for threads in (1, 2, 3):
        with use_threads(threads):
            found = trained("native", chains()[kind], dtype, np.random.default_rng(0), batch_size)
        for name, value in expected.items():
            assert np.array_equal(found[name], value), (name, threads)
    model = nn.Sequential(*chains()[kind], seed=1, dtype=dtype)
    assert not np.array_equal(
        expected[next(iter(model.parameters()))], next(iter(model.parameters().values()))
    )


@native
def test_threads_share_large_sums():
    def layers():
        return [nn.Dense(12, 2048), nn.Residual(nn.Tanh()), nn.Residual([nn.ReLU()]), nn.Dense(2048, 3)]

    expected = trained("python", layers(), np.float32, np.random.default_rng(0), 50)
    with use_threads(3):
        found = trained("native", layers(), np.float32, np.random.default_rng(0), 50)
    assert all(np.array_equal(found[name], value) for name, value in expected.items())


@native
def test_hogwild_takes_blocks():
    kind = "begin together"
    with use_threads(1):
        runs = [
            trained(
                "native", chains()[kind], np.float32, np.random.default_rng(0), 4, po.SGD, parallel=parallel
            )
            for parallel in (None, "hogwild")
        ]
    assert all(np.array_equal(value, runs[1][name]) for name, value in runs[0].items() if name != "loss")
    layers = [nn.Dense(12, 8), nn.Residual(nn.BatchNorm(8)), nn.Dense(8, 3)]
    with pytest.raises(ValueError, match=r"layers\[1\]\.block\[0\] is a BatchNorm"):
        trained("native", layers, np.float32, np.random.default_rng(0), 4, po.SGD, parallel="hogwild")


@native
def test_what_is_not_compiled_is_named():
    class Own(nn.ReLU):
        pass

    class OwnResidual(nn.Residual):
        pass

    for inner, name in (nn.Residual([nn.Tanh(), Own()]), r"layers\[0\]\.block\[1\] is a Own"), (
        OwnResidual(nn.Tanh()), r"layers\[0\] is a OwnResidual",
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            trained("native", [inner, nn.Dense(12, 3)], np.float32, np.random.default_rng(0))


def test_evaluation_takes_running_statistics_and_drops_nothing(rng):
    block = [nn.BatchNorm(4), nn.Dropout(0.5)]
    model = nn.Sequential(nn.Residual(block), seed=0, dtype=np.float64)
    x = rng.normal(1, 2, size=(30, 4))
    assert not np.array_equal(model(x), model(x))  # another mask
    before = model.state_dict()
    assert before["0.block.0.num_batches_tracked"] == before["0.block.1.step"] == 2
    mean, var = before["0.block.0.running_mean"], before["0.block.0.running_var"]
    np.testing.assert_allclose(model.eval()(x), x + (x - mean) / np.sqrt(var + 1e-5), rtol=1e-12, atol=1e-12)
    assert all(np.array_equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_sequential_gives_its_layers_away(dtype):
    inner = nn.Sequential(nn.Dense(4, 4), nn.Tanh(), seed=5)
    model = nn.Sequential(nn.Dense(4, 4), nn.Residual(inner), seed=0, dtype=dtype)
    other = nn.Sequential(nn.Dense(4, 4), nn.Residual([nn.Dense(4, 4), nn.Tanh()]), seed=0, dtype=dtype)
    assert np.array_equal(model.flat_parameters, other.flat_parameters)  # of the model's seed
    assert inner.dtype == dtype
    assert inner.flat_parameters.size == 20
    assert np.shares_memory(inner.flat_parameters, model.flat_parameters)
    for take in (nn.Residual, lambda again: nn.Sequential(*again.layers)):
        with pytest.raises(ValueError, match="already belongs to a model"):
            take(inner)
    x = np.ones((3, 4), dtype)
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(made(x), model(x))
        made.flat_parameters[...] = 0
        assert np.array_equal(made(x), np.zeros((3, 4)))
    assert model(x).any()


def test_blocks_that_cannot_be():
    with pytest.raises(TypeError, match="block is a int, expected a Layer, a Sequential or a sequence"):
        nn.Residual(5)
    with pytest.raises(TypeError, match=r"block\[1\] is a str, expected a Layer"):
        nn.Residual([nn.ReLU(), "relu"])
    with pytest.raises(ValueError, match="block is empty, expected at least one layer"):
        nn.Residual([])
    layer = nn.Tanh()
    with pytest.raises(ValueError, match=r"block\[1\] .* already belongs"):
        nn.Residual([layer, layer])
    nn.Residual(layer)
    for take in (nn.Residual, nn.Sequential):
        with pytest.raises(ValueError, match="already belongs"):
            take(layer)
    model = nn.Sequential(nn.Residual([nn.Dense(4, 8), nn.ReLU(), nn.Dense(8, 3)]))
    with pytest.raises(
        ValueError, match=r"x has shape \(2, 4\): the block of Residual.* makes \(3,\) of \(4,\)"
    ):
        model(np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"Dense\(in_features=4.* has an input of shape \(5,\)"):
        model(np.ones((2, 5)))


def test_a_file_keeps_blocks(tmp_path, rng):
    model = nested()
    x = rng.normal(size=(8, 5))
    model(x)
    model.save(tmp_path / "model")
    again = nn.Sequential.load(tmp_path / "model")
    assert repr(again) == repr(model)
    assert np.array_equal(again(x), model.eval()(x))
    state = model.state_dict()
    assert all(np.array_equal(value, state[name]) for name, value in again.state_dict().items())
    assert "1.block.3.block.1.weight" in state

    class Own(nn.ReLU):
        pass

    with pytest.raises(ValueError, match=r"layers\[0\]\.block\[0\] is a Own"):
        nn.Sequential(nn.Residual(Own())).save(tmp_path / "own")
    for block in (
        5,
        [],
        [5],
        [{"type": "Residual"}],
        [{"type": "Dense", "in_features": 6, "out_features": 7}],
        None,
    ):
        described = {"type": "Residual", "block": block}
        description = {"format": "pyoptim-model-1", "dtype": "float64", "layers": [described]}
        files.write(tmp_path / "bad", json.loads(json.dumps(description)), {})
        with pytest.raises(ValueError, match="does not describe a model"):
            nn.Sequential.load(tmp_path / "bad")


def test_the_trainer_looks_into_blocks(rng):
    model = nn.Sequential(nn.Dense(4, 4), nn.Residual([nn.Tanh(), nn.BatchNorm(4)]), seed=0)
    x, y = rng.normal(size=(5, 4)), rng.integers(0, 4, 5)
    trainer = po.Trainer(model, nn.CrossEntropy(), po.SGD(model.parameters()))
    with pytest.raises(ValueError, match=r"batch_size 2 makes a batch of 1 of 5 .*BatchNorm"):
        trainer.fit(x, y, batch_size=2, verbose=False)
    block = nn.Residual(nn.BatchNorm(4, track_running_stats=False, affine=False))
    model = nn.Sequential(block, nn.Dense(4, 2), seed=0, dtype=np.float64)
    trainer = po.Trainer(model, nn.CrossEntropy(), po.SGD(model.parameters()))
    x = rng.normal(size=(3000, 4))  # evaluated as a whole, since it is normalised by its own statistics
    assert np.array_equal(trainer.predict(x), model.eval()(x))


def test_penalties_reach_into_blocks():
    model = nn.Sequential(nn.Residual([nn.Dense(2, 2), nn.BatchNorm(2)]), seed=0, dtype=np.float64)
    weight = model.parameters()["0.block.0.weight"]
    value = nn.Penalty(l2=3.0).add(model)
    assert value == pytest.approx(1.5 * (weight**2).sum(), rel=1e-12)
    assert np.array_equal(model.gradients()["0.block.0.weight"], 3 * weight)
    assert not model.gradients()["0.block.1.weight"].any()


def test_summary_lists_blocks():
    lines = nested().summary().splitlines()[1:]
    names = [line.split()[0] for line in lines[:-1]]
    assert names[:4] == ["0", "1", "1.block.0", "1.block.1"]
    assert "1.block.3.block.0" in names
    assert len({line.rstrip()[-1] for line in lines} - set("0123456789")) == 0
    assert lines[1].split()[:2] == ["1", "Residual"]
    assert lines[1].split()[-1] == "130"
    assert lines[-1].split() == ["parameters", "187"]
