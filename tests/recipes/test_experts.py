"""Mixtures of experts: the formula, its gradient, and experts of which only one computes."""

import copy

import numpy as np
import pytest

import pyoptim as po
from pyoptim import nn


def made(mix, *, dtype=np.float64, norm=False, seed=0):
    def network(outputs, seed):
        layers = [nn.Dense(5, 4), *([nn.BatchNorm(4)] if norm else []), nn.Tanh()]
        return nn.Sequential(*layers, nn.Dense(4, outputs), seed=seed, dtype=dtype)

    return po.recipes.MixtureOfExperts([network(3, seed + i) for i in range(3)], network(3, seed + 9), mix)


def data(n=40):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 5)), rng.integers(0, 3, n)


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("mix", ["probabilities", "outputs"])
def test_the_formula(backend, mix):
    moe, (x, _) = made(mix), data()
    outputs = [expert(x) for expert in moe.experts]  # which go on predicting by themselves
    gates = softmax(moe.gater(x))
    if mix == "outputs":
        soft = sum(gates[:, [i]] * output for i, output in enumerate(outputs))
        rows = outputs
    else:
        soft = np.log(sum(gates[:, [i]] * softmax(output) for i, output in enumerate(outputs)))
        rows = [np.log(softmax(output)) for output in outputs]
    hard = np.array([rows[gates[i].argmax()][i] for i in range(len(x))])
    np.testing.assert_allclose(moe.gates(x), gates, rtol=1e-12)
    np.testing.assert_allclose(moe.predict(x), soft, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(moe.predict(x, hard=True), hard, rtol=1e-10, atol=1e-12)
    assert len(set(gates.argmax(axis=1))) > 1
    assert moe.predict(x[:0], hard=True).shape == (0, 3)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("mix", ["probabilities", "outputs"])
def test_gradients_are_finite_differences(mix, norm):
    moe, (x, y) = made(mix, norm=norm), data(8)
    loss, model = nn.CrossEntropy(), moe.model.train()
    _, dy = loss(model(x), y)
    dx = model.backward(dy, need_dx=True)
    for array, gradient in ((model.flat_parameters, model.flat_gradients.copy()), (x, dx)):
        flat, found = array.reshape(-1), gradient.reshape(-1)
        for i in np.random.default_rng(0).choice(flat.size, 40, replace=False):
            was, values = flat[i], []
            for step in (1e-5, -1e-5):
                flat[i] = was + step
                values.append(loss(model(x), y)[0])
            flat[i] = was
            assert found[i] == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-9)


def test_a_trainer_trains_all(backend):
    x, _ = data(300)
    y = np.where(x[:, 0] > 0, x[:, 1:4].argmax(axis=1), x[:, 1:4].argmin(axis=1))  # two experts would do
    moe = made("probabilities", dtype=np.float32, norm=True)
    before = moe.model.state_dict()
    trainer = po.Trainer(moe.model, nn.CrossEntropy(), po.Adam(moe.model.parameters(), lr=0.02), seed=0)
    trainer.fit(x, y, epochs=25, batch_size=30, verbose=False)
    hard = (moe.predict(x, hard=True).argmax(axis=1) == y).mean()
    assert trainer.evaluate(x, y)["accuracy"] > 0.85
    assert hard > 0.75
    assert all((before[name] != value).any() for name, value in moe.model.state_dict().items())
    assert (moe.experts[1].state_dict()["0.weight"] == moe.model.state_dict()["0.experts.1.0.weight"]).all()


def test_experts_keep_what_they_have_learned_and_may_be_frozen():
    x, y = data()
    experts = [nn.Sequential(nn.Dense(5, 3), seed=i) for i in range(2)]
    before = [expert(x) for expert in experts]
    moe = po.recipes.MixtureOfExperts(experts, nn.Sequential(nn.Dense(5, 2), seed=2))
    assert all((expert(x) == output).all() for expert, output in zip(experts, before, strict=True))
    for expert in experts:
        expert.layers[0].trainable = False
    trainer = po.Trainer(moe.model, nn.CrossEntropy(), po.Adam(moe.model.parameters()), seed=0)
    gates = moe.gates(x)
    trainer.fit(x, y, verbose=False)
    assert all((expert(x) == output).all() for expert, output in zip(experts, before, strict=True))
    assert (moe.gates(x) != gates).any()
    other = copy.deepcopy(moe)
    assert (other.predict(x) == moe.predict(x)).all()
    other.experts[0].flat_parameters[...] = 0
    assert (other.predict(x) != moe.predict(x)).any()


def test_pruned_experts_stay_pruned():
    x, y = data()
    moe_of = po.recipes.MixtureOfExperts
    experts = [nn.Sequential(nn.Dense(5, 3), seed=i) for i in range(2)]
    (kept,) = po.recipes.prune(experts[1], 0.5).values()
    moe = moe_of(experts, nn.Sequential(nn.Dense(5, 2), seed=2))
    po.Trainer(moe.model, nn.CrossEntropy(), po.Adam(moe.model.parameters())).fit(x, y, verbose=False)
    assert ((experts[1].state_dict()["0.weight"] != 0) == kept).all()
    assert experts[0].state_dict()["0.weight"].all()


def test_only_the_chosen_expert_computes(monkeypatch):
    moe, (x, _) = made("outputs"), data()
    chosen, seen = moe.gates(x).argmax(axis=1), []
    from pyoptim.recipes import _experts

    real = _experts.evaluation.predict
    monkeypatch.setattr(
        _experts.evaluation, "predict", lambda model, x: seen.append((model, len(x))) or real(model, x)
    )
    moe.predict(x, hard=True)
    counts = np.bincount(chosen, minlength=3)
    assert seen == [(moe.gater, 40), *((e, n) for e, n in zip(moe.experts, counts, strict=True) if n)]


def test_a_mixture_is_frozen_and_thawed_as_one_layer():
    moe, (x, y) = made("outputs"), data()
    layer = moe.model.layers[0]
    layer.trainable = False
    assert not layer.trainable
    assert not any(leaf.trainable for leaf in layer.leaves().values())
    assert moe.model.parameters() == {}
    layer.trainable = True
    assert all(leaf.trainable for leaf in layer.leaves().values())
    before = moe.model.flat_parameters.copy()
    po.Trainer(moe.model, nn.CrossEntropy(), po.SGD(moe.model.parameters(), lr=0.1)).fit(x, y, verbose=False)
    assert (moe.model.flat_parameters != before).mean() > 0.9
    assert repr(moe).startswith("MixtureOfExperts([Sequential(")


def test_what_is_refused():
    def network(outputs, inputs=5, **more):
        return nn.Sequential(nn.Dense(inputs, outputs), seed=0, **more)

    mixture = po.recipes.MixtureOfExperts
    with pytest.raises(TypeError, match="experts is"):
        mixture([network(3)], network(1))
    with pytest.raises(ValueError, match=r"gater .*expected float32"):
        mixture([network(3), network(3)], network(2, dtype=np.float64))
    twice = network(3)
    with pytest.raises(ValueError, match=r"experts\[1\] .* already belongs"):
        mixture([twice, twice], network(2))
    with pytest.raises(ValueError, match="mix is"):
        mixture([network(3), network(3)], network(2), mix="sum")
    for experts, gater, message in (
        ([network(3), network(4)], network(2), "experts have outputs"),
        ([network(3), network(3)], network(3), "gater has outputs"),
    ):
        with pytest.raises(ValueError, match=message):
            mixture(experts, gater).predict(np.zeros((2, 5)))


def test_shapes_that_do_not_fit_leave_the_experts_free():
    experts = [nn.Sequential(nn.Dense(5, 3), seed=seed) for seed in (0, 1)]
    for gater in (nn.Sequential(nn.Dense(5, 3)), nn.Sequential(nn.Dense(4, 2))):
        with pytest.raises(ValueError, match=r"gater has outputs|expected"):
            po.recipes.MixtureOfExperts(experts, gater)
    with pytest.raises(ValueError, match="experts have outputs"):
        po.recipes.MixtureOfExperts(
            [experts[0], nn.Sequential(nn.Dense(5, 4))], nn.Sequential(nn.Dense(5, 2))
        )
    moe = po.recipes.MixtureOfExperts(experts, nn.Sequential(nn.Dense(5, 2), seed=2))
    with pytest.raises(ValueError, match="belongs to another model"):
        po.recipes.prune(experts[0], 0.5)
    with pytest.raises(ValueError, match="no hidden Dense layer"):
        po.recipes.prune(moe.model, 0.5, units=True)


def test_classes_that_no_expert_thinks_possible():
    """Logarithms of 0 are minus infinity, and gradients stay finite."""
    experts = [nn.Sequential(nn.Dense(5, 3), seed=seed) for seed in (0, 1)]
    for expert in experts:
        expert.parameters()["0.bias"][...] = [3e38, -3e38, 0]
    model = po.recipes.MixtureOfExperts(experts, nn.Sequential(nn.Dense(5, 2), seed=2)).model
    x = data(6)[0].astype(np.float32)
    y = model.train()(x)
    assert np.isneginf(y[:, 1]).all()
    assert np.isfinite(y[:, 0]).all()
    model.backward(np.ones_like(y))
    assert np.isfinite(model.flat_gradients).all()
