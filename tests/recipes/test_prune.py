"""Pruned weights are the smallest, stay 0 in every training, and dead units go without a trace."""

import copy
import pickle

import numpy as np
import pytest

import pyoptim as po
from pyoptim import nn


def data(n=60):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 8)).astype(np.float32), rng.integers(0, 3, n)


def made(*, norm=False, seed=0, dtype=np.float32):
    layers = [nn.Dense(8, 12), *([nn.BatchNorm(12)] if norm else []), nn.Sigmoid()]
    return nn.Sequential(
        *layers, nn.Dense(12, 10, activation="relu"), nn.Dense(10, 3), seed=seed, dtype=dtype
    )


def weights(model):
    return {name: p.copy() for name, p in model.parameters().items() if p.ndim == 2}


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.77, 1.0])
def test_the_smallest_weights_go(share, per_layer):
    model = made()
    before, biases = weights(model), {n: p.copy() for n, p in model.parameters().items() if p.ndim == 1}
    kept = po.recipes.prune(model, share, per_layer)
    after = weights(model)
    groups = [[name] for name in before] if per_layer else [list(before)]
    for names in groups:
        old, new = (np.concatenate([of[n].ravel() for n in names]) for of in (before, after))
        gone = round(share * old.size)
        assert (new == 0).sum() == gone
        order = np.sort(np.abs(old))
        assert gone == 0 or np.abs(old[new == 0]).max() == order[gone - 1]
        assert (new[new != 0] == old[new != 0]).all()
    assert set(kept) == set(before)
    for name, mask in kept.items():
        assert mask.dtype == bool
        assert (mask == (after[name] != 0)).all()
    for name, bias in biases.items():
        assert (model.parameters()[name] == bias).all()


@pytest.mark.parametrize("how", ["auto", "python", "partial", "copied", "sam"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zeros_hold_through_training(backend, how, dtype):
    x, y = data()
    model = made(norm=True, dtype=dtype)
    optimizer = po.Adam(model.parameters(), lr=0.01, weight_decay=0.1)
    trainer = po.Trainer(model, nn.CrossEntropy(), optimizer, seed=0)
    trainer.fit(x, y, epochs=1, verbose=False)  # so that momentum would move what is pruned
    kept = po.recipes.prune(model, 0.6)
    before = weights(model)
    if how == "copied":
        trainer = copy.deepcopy(pickle.loads(pickle.dumps(trainer)))
        model = trainer.model
    trainer.sharpness_aware = 0.05 if how == "sam" else 0.0
    if how == "partial":
        trainer.partial_fit(x, y)
    else:
        history = trainer.fit(
            x, y, epochs=2, batch_size=16, verbose=False, engine="python" if how == "python" else "auto"
        )
        assert history.path == ("native" if "native" in backend and how != "python" else "python")
    for name, weight in weights(model).items():
        assert (weight[~kept[name]] == 0).all()
        assert (weight[kept[name]] != before[name][kept[name]]).all()


def test_the_compiled_engine_has_the_bits_of_the_generic_loop():
    if po.available_backends()[0] != "native":
        pytest.skip("without the compiled kernels")
    x, y = data()
    found = []
    for engine in ("native", "python"):
        model = made()
        po.recipes.prune(model, 0.5)
        trainer = po.Trainer(model, nn.CrossEntropy(), po.Adam(model.parameters()), seed=0)
        trainer.fit(x, y, epochs=3, batch_size=16, verbose=False, engine=engine)
        found.append(model.flat_parameters.copy())
    assert (found[0] == found[1]).all()


def test_shares_grow_and_0_lets_all_train_again():
    x, y = data()
    model = made()
    po.recipes.prune(model, 0.5)
    first = model.parameters()["0.weight"] == 0
    po.recipes.prune(model, 0.8)
    assert (model.parameters()["0.weight"][first] == 0).all()
    po.recipes.prune(model, 0.0)
    trainer = po.Trainer(model, nn.CrossEntropy(), po.Adam(model.parameters()), seed=0)
    trainer.fit(x, y, verbose=False)
    zeros = [(weight == 0).mean() for weight in weights(model).values()]
    assert max(zeros) < 0.5  # what dead ReLUs leave


def test_frozen_layers_and_other_arrays_stay():
    model = made(norm=True)
    model.layers[0].trainable = False
    frozen = model.state_dict()["0.weight"]
    kept = po.recipes.prune(model, 0.9)
    assert set(kept) == {"3.weight", "4.weight"}
    assert (model.state_dict()["0.weight"] == frozen).all()
    for layer in model.layers:
        layer.trainable = False
    with pytest.raises(ValueError, match="model has no Dense layer"):
        po.recipes.prune(model, 0.5)


def test_what_cannot_hold_zeros_refuses():
    x, y = data()
    model = made()
    po.recipes.prune(model, 0.5)
    with pytest.raises(ValueError, match="model was pruned"):
        po.Objective(model, nn.CrossEntropy(), x, y)
    if po.available_backends()[0] == "native":
        trainer = po.Trainer(model, nn.CrossEntropy(), po.SGD(model.parameters()))
        with pytest.raises(ValueError, match="model was pruned"):
            trainer.fit(x, y, batch_size=8, parallel="hogwild", verbose=False)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_units_that_are_pruned_can_be_removed(norm, share):
    x, y = data()
    model = made(norm=norm)
    trainer = po.Trainer(model, nn.CrossEntropy(), po.Adam(model.parameters()), seed=0)
    trainer.fit(x, y, epochs=2, verbose=False)
    before = weights(model)
    po.recipes.prune(model, share, per_layer=True, units=True)
    rms = np.sqrt((before["0.weight"].astype(float) ** 2).mean(axis=1))
    dead = ~weights(model)["0.weight"].any(axis=1)
    assert dead.sum() == round(share * 12)
    assert set(np.flatnonzero(dead)) == set(np.argsort(rms)[: dead.sum()])
    trainer.fit(x, y, epochs=2, verbose=False)
    assert (~weights(model)["0.weight"].any(axis=1) == dead).all()
    small = po.recipes.shrink(model)
    sizes = [layer.out_features for layer in small.layers if isinstance(layer, nn.Dense)]
    assert sizes == [max(1, 12 - round(share * 12)), max(1, 10 - round(share * 10)), 3]
    np.testing.assert_allclose(small(x), model.eval()(x), rtol=1e-4, atol=1e-5)


def test_shrinking_follows_units_that_lose_their_readers():
    model = nn.Sequential(nn.Dense(4, 6, bias=False), nn.Tanh(), nn.Dense(6, 5, bias=False), nn.ReLU(),
                          nn.Dense(5, 2, bias=False), seed=0)  # fmt: skip
    p = model.parameters()
    p["4.weight"][:, 1:] = 0  # so one unit of the second layer is read,
    p["2.weight"][0, 3:] = 0  # which reads three of the first
    small = po.recipes.shrink(model)
    assert [layer.out_features for layer in small.layers[::2]] == [3, 1, 2]
    x = data()[0][:, :4]
    np.testing.assert_allclose(small(x), model.eval()(x), rtol=1e-5, atol=1e-6)
    untouched = nn.Sequential(nn.Dense(4, 6), nn.LayerNorm(6), nn.Dense(6, 2), seed=0)
    untouched.parameters()["0.weight"][2] = 0
    assert po.recipes.shrink(untouched).layers[0].out_features == 6  # a norm over units needs all of them
