"""Options that come to need another rule in the midst of training: what lacks is made, and it goes on."""

import copy
import pickle

import numpy as np
import pytest
from support.optimizers import OPTIMIZERS, assert_same_bits

import pyoptim as po
from pyoptim.formulas.rules import RULES

# The class, and the changes after every three steps.
CHANGES = {
    "momentum": ("SGD", [{"momentum": 0.9}, {"momentum": 0.0}, {"momentum": 0.5, "nesterov": True}]),
    "dampening": ("SGD", [{"momentum": 0.9, "dampening": 0.5}, {"momentum": 0.0}, {"momentum": 0.5}]),
    "nesterov": ("SGD", [{"nesterov": True}, {"momentum": 0.9}, {"dampening": 0.5}, {"momentum": 0.0}]),
    "centered": ("RMSprop", [{"centered": True}, {"momentum": 0.9}, {"centered": False}, {"momentum": 0.0}]),
    "amsgrad": ("Adam", [{"amsgrad": True}, {"amsgrad": False}, {"amsgrad": True}]),
}
every_change = pytest.mark.parametrize("change", CHANGES)
SHAPES = [(), (1,), (17,), (5, 7)]


def values(seed):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=shape), np.float32) for shape in SHAPES]


def trained(change, with_options, **options):
    """The parameters after all changes, with ``with_options`` called after each."""
    name, changes = CHANGES[change]
    params = values(0)
    optimizer = OPTIMIZERS[name](params, lr=0.1, **options)
    for k in range(3 * len(changes) + 3):
        if k and k % 3 == 0:
            optimizer.param_groups[0].update(changes[k // 3 - 1])
            optimizer = with_options(optimizer)
        optimizer.step(values(k + 1))
    return optimizer


def assert_same_optimizers(a, b):
    for x, y in zip(a.named_parameters().values(), b.named_parameters().values(), strict=True):
        assert_same_bits(x, y)
    for x, y in zip(a.state_dict()["state"].values(), b.state_dict()["state"].values(), strict=True):
        assert x.keys() == y.keys()
        for name, value in x.items():
            assert np.array_equal(value, y[name])


@every_change
@pytest.mark.parametrize(
    "options", [{}, {"accumulate": 1, "max_grad_norm": 1.0}, {"state_dtype": "int8"}], ids=str
)
def test_all_backends_do_the_same(backend, change, options):
    with po.use_backend("numpy"):
        expected = trained(change, lambda optimizer: optimizer, **options)
    assert_same_optimizers(trained(change, lambda optimizer: optimizer, **options), expected)


@pytest.mark.parametrize("change", ["momentum", "dampening", "nesterov"])
def test_sgd_takes_torchs_path(change):
    torch = pytest.importorskip("torch")
    name, changes = CHANGES[change]
    tensors = [torch.tensor(p) for p in values(0)]
    theirs = getattr(torch.optim, name)(tensors, lr=0.1)
    for k in range(3 * len(changes) + 3):
        if k and k % 3 == 0:
            theirs.param_groups[0].update(changes[k // 3 - 1])
        for t, g in zip(tensors, values(k + 1), strict=True):
            t.grad = torch.tensor(g)
        theirs.step()
    ours = trained(change, lambda optimizer: optimizer)
    for p, t in zip(ours.named_parameters().values(), tensors, strict=True):
        np.testing.assert_allclose(p, t.numpy(), rtol=1e-5, atol=1e-6)


@every_change
@pytest.mark.parametrize("how", ["state_dict", "file", "pickle"])
def test_states_that_are_not_in_use_are_saved(change, how, tmp_path):
    def resumed(optimizer):
        if how == "pickle":
            return pickle.loads(pickle.dumps(optimizer))
        other = type(optimizer)(copy.deepcopy(optimizer.param_groups[0]["params"]), lr=0.1)
        if how == "file":
            optimizer.save(tmp_path / "o.safetensors")
            other.load(tmp_path / "o.safetensors")
        else:
            other.load_state_dict(optimizer.state_dict())
        return other

    def stepped(optimizer):
        optimizer.step(values(99))
        return optimizer

    expected = trained(change, stepped)
    assert_same_optimizers(trained(change, lambda optimizer: resumed(stepped(optimizer))), expected)


def test_a_state_brings_the_options_that_need_it():
    rich = po.SGD(values(0), momentum=0.9)
    rich.step(values(1))
    poor = po.SGD(values(0))
    poor.step(values(1))
    saved = poor.state_dict()
    poor.load_state_dict(rich.state_dict())
    assert poor.param_groups[0]["momentum"] == 0.9
    rich.load_state_dict(saved)
    assert sorted(rich.state_dict()["state"][0]) == ["step"]


def test_lookahead_after_momentum_was_turned_on():
    p = np.ones(3)
    optimizer = po.SGD(p, velocity="classical")
    optimizer.step(np.ones(3))
    optimizer.param_groups[0]["momentum"] = 0.9
    before = p.copy()
    with optimizer.lookahead():
        assert_same_bits(p, before)


def test_a_group_that_the_user_put_there():
    p = np.ones(3)
    optimizer = po.SGD([p])
    optimizer.step([np.ones(3)])
    optimizer.param_groups[0] = {**optimizer.param_groups[0], "momentum": 0.9}
    optimizer.step([np.ones(3)])
    assert sorted(optimizer.state_dict()["state"][0]) == ["momentum_buffer", "step"]


@pytest.mark.parametrize("engine", ["native", "python"])
def test_a_callback_turns_momentum_on(engine):
    if engine == "native":
        pytest.importorskip("pyoptim.runtime._native")

    class TurnOn(po.callbacks.Callback):
        def on_epoch_begin(self, epoch):
            self.trainer.optimizer.param_groups[0].update(momentum=0.9 * (epoch % 2), dampening=0.5)

    def trained_by(engine):
        model = po.nn.Sequential(po.nn.Dense(3, 2), seed=0)
        optimizer = po.SGD(model.parameters(), lr=0.1)
        x = np.random.default_rng(0).normal(size=(12, 3)).astype(model.dtype)
        po.Trainer(model, po.nn.MSE(), optimizer).fit(
            x, x[:, :2], epochs=5, batch_size=4, shuffle=False, callbacks=[TurnOn()], engine=engine, verbose=0
        )
        return optimizer

    assert_same_optimizers(trained_by(engine), trained_by("python"))


def test_every_class_knows_the_rules_that_it_may_choose():
    from oracles.optimizers import CASES

    for name, options in CASES:
        optimizer = OPTIMIZERS[name]([np.ones((2, 2))], **options)
        assert optimizer._rules[0] == RULES[optimizer._rules[0].name]
        assert optimizer._rules[0].name in optimizer._rule_names


def changed_after_a_step(**options):
    p = np.ones(3, np.float32)
    optimizer = po.SGD(p, lr=0.1, **options)
    optimizer.step(np.ones_like(p))
    optimizer.param_groups[0].update(momentum=0.9, dampening=0.5)
    return p, optimizer


def test_a_state_saved_before_the_step_that_needs_more_can_be_loaded(tmp_path):
    p, optimizer = changed_after_a_step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.save(tmp_path / "state")
    q = p.copy()
    other = po.SGD(q, lr=0.1)
    other.load(tmp_path / "state")
    assert other.param_groups[0]["momentum"] == 0.9
    optimizer.step(np.ones_like(p))
    other.step(np.ones_like(q))
    np.testing.assert_array_equal(p, q)


def test_a_refused_gradient_leaves_the_first_step_of_a_rule_to_come(backend):
    p, optimizer = changed_after_a_step()
    q, other = changed_after_a_step()
    with pytest.raises(ValueError, match="shape"):
        optimizer.step(np.ones(4, np.float32))
    for _ in range(2):
        optimizer.step(np.ones_like(p))
        other.step(np.ones_like(q))
    np.testing.assert_array_equal(p, q)


def test_copies_know_when_a_rule_began():
    p, optimizer = changed_after_a_step(nonfinite="skip")
    optimizer.step(np.full_like(p, np.nan))
    q, other = copy.deepcopy((p, optimizer))
    optimizer.step(np.ones_like(p))
    other.step(np.ones_like(q))
    np.testing.assert_array_equal(p, q)


def test_groups_that_users_put_there_are_copied_with_their_arrays():
    p = np.ones(3, np.float32)
    optimizer = po.SGD(p, lr=0.1)
    optimizer.param_groups[0] = dict(optimizer.param_groups[0], lr=0.2)
    q, other = copy.deepcopy((p, optimizer))
    other.step(np.ones_like(q))
    np.testing.assert_array_equal(q, np.full(3, 0.8, np.float32))
