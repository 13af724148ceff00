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
    assert sorted(optimizer.state_dict()["state"][0]) == ["begun", "momentum_buffer", "step"]


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


def loaded(optimizer, tmp_path):
    q = optimizer.named_parameters()["params"].copy()
    other = po.SGD(q, lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    return q, other


def loaded_from_a_file(optimizer, tmp_path):
    optimizer.save(tmp_path / "state")
    q = optimizer.named_parameters()["params"].copy()
    other = po.SGD(q, lr=0.1)
    other.load(tmp_path / "state")
    assert other.param_groups[0]["momentum"] == 0.9
    return q, other


def by_way_of_torch(optimizer, tmp_path):
    pytest.importorskip("torch")
    saved = po.torch.state_dict(optimizer)
    assert not saved["state"]  # PyTorch's SGD keeps a buffer from its first momentum on
    saved["state"][0] = {"step": 1}  # as `po.torch.Optimizer` writes it
    q = optimizer.named_parameters()["params"].copy()
    other = po.SGD(q, lr=0.1)
    po.torch.load_state_dict(other, saved)
    return q, other


def itself(optimizer, tmp_path):
    optimizer.load_state_dict(optimizer.state_dict())
    return optimizer.named_parameters()["params"], optimizer


def after_a_refused_gradient(optimizer, tmp_path):
    p = optimizer.named_parameters()["params"]
    with pytest.raises(ValueError, match="shape"):
        optimizer.step(np.ones(4, np.float32))
    return p, optimizer


def after_a_skipped_gradient(optimizer, tmp_path):
    p, optimizer.nonfinite = optimizer.named_parameters()["params"], "skip"
    optimizer.step(np.full_like(p, np.nan))
    return p, optimizer


def with_a_dict_of_the_user_s(optimizer, tmp_path):
    optimizer.state_dict()
    optimizer.param_groups[0] = dict(optimizer.param_groups[0])
    return optimizer.named_parameters()["params"], optimizer


def copied(optimizer, tmp_path):
    optimizer.state_dict()
    return copy.deepcopy((optimizer.named_parameters()["params"], optimizer))


def pickled(optimizer, tmp_path):
    optimizer.state_dict()
    return pickle.loads(pickle.dumps((optimizer.named_parameters()["params"], optimizer)))


DOORS = [
    itself, loaded, loaded_from_a_file, by_way_of_torch, after_a_refused_gradient, after_a_skipped_gradient,
    with_a_dict_of_the_user_s, copied, pickled,
]  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_the_first_momentum_is_the_gradient_behind_every_door(backend, door, tmp_path):
    for times in (1, 2):
        p, optimizer = changed_after_a_step()
        for _ in range(times):
            p, optimizer = door(optimizer, tmp_path)
        for _ in range(2):
            optimizer.step(np.ones_like(p))
        np.testing.assert_allclose(p, 1 - 0.1 * (1 + 1 + (0.9 + 0.5)), rtol=1e-6)


@pytest.mark.parametrize("plan", ["off off off on on", "on: load off on on", "on: refused off off on on"])
def test_momentum_begins_with_its_first_step(backend, plan):
    """Not where it was only chosen: a rule that took no step has yet to begin."""
    w, lr, mu, damping = np.ones(3), 0.1, 0.9, 0.5
    optimizer = po.SGD(w, lr=lr, momentum=mu, dampening=damping)  # on, but turned off before its first step
    group, expected, buffer = optimizer.param_groups[0], np.ones(3), None
    first, _, words = plan.rpartition(": ")
    if first:
        group["momentum"] = 0.0
        optimizer.step(np.ones(3))
        expected -= lr
        group["momentum"] = mu
    for t, word in enumerate(words.split(), 1):
        if word == "load":
            optimizer.load_state_dict(optimizer.state_dict())
            continue
        if word == "refused":
            with pytest.raises(ValueError, match="shape"):
                optimizer.step(np.ones(4))
            continue
        group["momentum"] = mu if word == "on" else 0.0
        g = np.full(3, t + 1.0)
        optimizer.step(g)
        if word == "on":
            buffer = g if buffer is None else mu * buffer + (1 - damping) * g
        expected -= lr * (buffer if word == "on" else g)
    np.testing.assert_allclose(w, expected, 1e-12)


@pytest.mark.parametrize("begun", [0, 0.5, -1, 3, "2", None])
def test_a_beginning_that_cannot_be_is_refused(begun):
    p, optimizer = changed_after_a_step()
    saved = optimizer.state_dict()
    assert saved["state"][0]["begun"] == 2
    saved["state"][0]["begun"] = begun
    with pytest.raises(ValueError, match="begun"):
        optimizer.load_state_dict(saved)
    always = po.Adam(p)
    saved = always.state_dict()
    saved["state"][0]["begun"] = 1
    with pytest.raises(ValueError, match=r"has \['begun', 'exp_avg', .* expected \['exp_avg'"):
        always.load_state_dict(saved)


def test_what_began_with_the_first_step_is_saved_as_ever():
    optimizer = po.SGD(np.ones(3))
    optimizer.param_groups[0].update(momentum=0.9)
    assert optimizer.state_dict()["state"][0].keys() == {"step", "momentum_buffer"}


class Interrupt(Exception):
    pass


class TurnOnAtTheEnd(po.callbacks.Callback):
    def __init__(self, last):
        self.last = last

    def on_epoch_begin(self, epoch):
        if epoch > self.last:
            raise Interrupt

    def on_epoch_end(self, epoch, logs):
        self.trainer.optimizer.param_groups[0].update(momentum=0.9, dampening=0.5)


@pytest.mark.parametrize("way", ["native", "hogwild", "checkpoint"])
def test_trainings_know_when_a_rule_began(way, tmp_path):
    if way != "checkpoint":
        pytest.importorskip("pyoptim.runtime._native")
    x = np.random.default_rng(0).normal(size=(8, 3))

    def trained_by(last=3, **options):
        model = po.nn.Sequential(po.nn.Dense(3, 2), seed=0)
        optimizer = po.SGD(model.parameters(), lr=0.1)
        options |= {"batch_size": 4, "shuffle": False, "callbacks": [TurnOnAtTheEnd(last)], "verbose": 0}
        po.Trainer(model, po.nn.MSE(), optimizer).fit(
            x.astype(model.dtype), x[:, :2].astype(model.dtype), epochs=3, **options
        )
        return optimizer

    expected = trained_by(engine="python")
    if way == "checkpoint":
        options = {"checkpoint": tmp_path / "run", "checkpoint_every": 0}
        with pytest.raises(Interrupt):
            trained_by(0, **options)
        assert_same_optimizers(trained_by(**options), expected)
    else:
        threads = po.get_num_threads()
        po.set_num_threads(1)
        try:
            options = {"parallel": "hogwild"} if way == "hogwild" else {}
            assert_same_optimizers(trained_by(engine="native", **options), expected)
        finally:
            po.set_num_threads(threads)


def test_groups_that_users_put_there_are_copied_with_their_arrays():
    p = np.ones(3, np.float32)
    optimizer = po.SGD(p, lr=0.1)
    optimizer.param_groups[0] = dict(optimizer.param_groups[0], lr=0.2)
    q, other = copy.deepcopy((p, optimizer))
    other.step(np.ones_like(q))
    np.testing.assert_array_equal(q, np.full(3, 0.8, np.float32))
