"""Steps of one native call: what a user changes in between is seen at once, as by the longer way."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
from oracles import optimizers as oracles

import pyoptim as po
from pyoptim.backends import reference
from pyoptim.optim import elementwise

pytest.importorskip("pyoptim.runtime._native")
CASES = [case for case in oracles.CASES if case[0] in elementwise.__all__]


@pytest.fixture(autouse=True)
def native():
    with po.use_backend("native"):
        yield


def longer(name):
    """A class of the same optimizer whose steps take the longer way, as those of a user's subclass do."""
    return type(name, (getattr(po, name),), {})


class Pair:
    """An optimizer with quick steps and one without, to which the same happens."""

    def __init__(self, name="Adam", options=None, dtype=np.float32, size=1000, seed=0):
        self.rng = np.random.default_rng(seed)
        start = self.rng.normal(size=size).astype(dtype)
        self.optimizers = [cls(start.copy(), **(options or {})) for cls in (getattr(po, name), longer(name))]

    @property
    def quick(self):
        return self.optimizers[0]

    def both(self, change):
        return [change(optimizer) for optimizer in self.optimizers]

    def step(self, steps=3):
        for _ in range(steps):
            p = self.quick._params[0]
            g = self.rng.normal(size=p.shape).astype(p.dtype)
            self.both(lambda o, g=g: o.step(g))
            self.check()

    def check(self):
        one, other = (o.state_dict() for o in self.optimizers)
        np.testing.assert_array_equal(*(o._params[0] for o in self.optimizers), strict=True)
        for name, value in one["state"][0].items():
            np.testing.assert_array_equal(value, other["state"][0][name], err_msg=name)
            assert type(value) is type(other["state"][0][name])


def group_of(optimizer):
    return optimizer.param_groups[0]


@pytest.mark.parametrize("size", [0, 1, 63, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "options"), CASES, ids=map(oracles.case_id, CASES))
def test_every_optimizer_steps_as_by_the_longer_way(name, options, dtype, size):
    pair = Pair(name, options, dtype, size)
    pair.step(8)
    assert pair.quick._advance
    assert not pair.optimizers[1]._advance


class Counted:
    """A learning rate of the user's own, which counts how often it is asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self, k):
        self.calls += 1
        return 0.1 / (1 + k)


class Meddling:
    """A learning rate that changes the group that it is asked for."""

    def __init__(self, group):
        self.group = group

    def __call__(self, k):
        self.group["weight_decay"] = 0.1 * k
        if k == 5:
            self.group["lr"] = 0.3
        return 0.01


CHANGES = {
    "a rate": lambda o: group_of(o).update(lr=0.05),
    "an integer rate": lambda o: group_of(o).update(lr=1),
    "a rate of 0": lambda o: group_of(o).update(lr=0.0),
    "a rate of NumPy": lambda o: group_of(o).update(lr=np.float32(0.05)),
    "an item": lambda o: group_of(o).__setitem__("weight_decay", 0.25),
    "several": lambda o: group_of(o).update(betas=[0.5, 0.75], eps=1e-3, decoupled_weight_decay=True),
    "integers": lambda o: group_of(o).update(betas=(0, 0), weight_decay=2),
    "an operator": lambda o: group_of(o).__ior__({"maximize": True}),
    "flags": lambda o: group_of(o).update(eps_hat=True, bias_correction=np.False_),
    "behind its back": lambda o: dict.__setitem__(group_of(o), "weight_decay", 0.5),
    "a list behind its back": lambda o: dict.__setitem__(group_of(o), "betas", [0.5, 0.5]),
    "another dict": lambda o: o.param_groups.__setitem__(0, {**group_of(o), "lr": 0.5}),
    "another list": lambda o: setattr(o, "param_groups", [{**group_of(o), "lr": 0.5}]),
    "a schedule": lambda o: group_of(o).update(lr=po.schedules.Cosine(0.1, steps=7)),
    "a function": lambda o: group_of(o).update(lr=Counted()),
    "a meddling function": lambda o: group_of(o).update(lr=Meddling(group_of(o))),
    "accumulate": lambda o: setattr(o, "accumulate", 2),
    "clipping": lambda o: setattr(o, "max_grad_norm", 0.1),
    "nonfinite": lambda o: setattr(o, "nonfinite", "skip"),
    "an average": lambda o: o.__dict__.setdefault("kept", po.averages.EMA(o)),
    "values": lambda o: o._params[0].fill(0.5),
    "states": lambda o: o._states[0][0]["exp_avg"].fill(0.5),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_in_force_in_the_next_step(change):
    pair = Pair("Adam", {"lr": 0.01, "weight_decay": 0.01})
    pair.step()
    assert pair.quick._advance
    pair.both(change)
    pair.step(6)
    pair.both(lambda o: (setattr(o, "accumulate", 1), setattr(o, "max_grad_norm", None)))
    pair.both(lambda o: (setattr(o, "nonfinite", "ignore"), dict.__setitem__(group_of(o), "lr", 0.02)))
    pair.step()


def test_options_of_each_kind_can_be_changed():
    pair = Pair("SGD", {"momentum": 0.9})
    for options in ({"velocity": "classical"}, {"dampening": -0.5}, {"momentum": 0.5}, {"velocity": "torch"}):
        pair.step(2)
        pair.both(lambda o, new=options: group_of(o).update(new))
    pair.step(2)
    pair = Pair("NAdam", {"momentum_decay": None})
    for decay in (4e-3, None, 0, 0.5):
        pair.step(2)
        pair.both(lambda o, decay=decay: group_of(o).update(momentum_decay=decay))
    pair.step(2)


def test_schedules_of_epochs():
    pair = Pair("SGD", {"lr": po.schedules.Cosine(0.1, steps=5, unit="epoch")})
    for epoch in range(3):
        pair.both(lambda o, epoch=epoch: setattr(o, "epoch", epoch))
        pair.step(2)


def test_a_function_is_asked_once_a_step():
    rate = Counted()
    p = np.ones(1000, np.float32)
    optimizer = po.Adam(p, lr=rate)
    g = np.ones(2000, np.float32)
    for grads in (g[:1000], g[:1000], g[::2], g[::2], g[1000:]):
        optimizer.step(grads)
    assert rate.calls == 5


@pytest.mark.parametrize("option", [{"dampening": -1}, {"weight_decay": 2**31}, {"dampening": 2**40}])
def test_a_function_is_asked_once_a_step_beside_other_groups(option):
    rate = Counted()
    groups = [{"params": [np.ones(3)], "lr": rate}, {"params": [np.ones(3)], **option}]
    optimizer = po.SGD(groups, lr=0.1, momentum=0.9)
    for _ in range(4):
        optimizer.step([[np.ones(3)], [np.ones(3)]])
    assert rate.calls == 4


def test_the_users_list_may_change_during_a_step():
    params = [np.ones(3), np.ones(3)]
    grads = [np.ones(3), np.ones(3)]

    def rate(k):
        grads.clear()
        return 0.5

    optimizer = po.SGD(params, lr=0.5)
    optimizer.step(grads)
    optimizer.param_groups[0]["lr"] = rate
    optimizer.step(grads)
    assert grads == []
    assert [p.tolist() for p in params] == [[0.0] * 3] * 2


class Owner:
    """Something that an optimizer's learning rate leads to, and that leads to the optimizer."""

    def __init__(self):
        self.optimizer = po.Adam(np.ones(3), lr=self.rate)

    def rate(self, k):
        return 0.1


def test_an_optimizer_whose_rate_leads_back_to_it_is_freed():
    owner = Owner()
    for _ in range(3):
        owner.optimizer.step(np.ones(3))
    assert owner.optimizer._advance
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None


def test_states_that_are_loaded_are_in_force():
    pair = Pair("NAdam")
    pair.step()
    saved = pair.both(lambda o: o.state_dict())
    pair.step()
    for optimizer, state in zip(pair.optimizers, saved, strict=True):
        optimizer.load_state_dict(state)
    pair.step()
    pair.both(lambda o: setattr(o, "accumulate", 3))
    pair.step(2)
    saved = pair.both(lambda o: o.state_dict())
    fresh = Pair("NAdam")
    fresh.both(lambda o: setattr(o, "accumulate", 3))
    fresh.step(4)
    for optimizer, state in zip(fresh.optimizers, saved, strict=True):
        optimizer.load_state_dict(state)
    fresh.step(2)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_count_for_themselves(copied):
    p, g = np.ones(10), np.ones(10)
    optimizer = po.NAdam(p)
    for _ in range(3):
        optimizer.step(g)
    other = copied(optimizer)
    optimizer.step(g)
    assert other.state_dict()["state"][0]["step"] == 3
    for _ in range(3):
        other.step(g)
    group_of(other)["lr"] = 0.5
    other.step(g)
    assert optimizer.state_dict()["state"][0]["step"] == 4
    assert other.state_dict()["state"][0]["step"] == 7


def test_another_backend_makes_the_step_that_it_is_asked_for(monkeypatch):
    pair = Pair()
    pair.step()
    calls = []
    with po.use_backend("numpy"):
        step = reference.Stepper.step
        monkeypatch.setattr(reference.Stepper, "step", lambda *a: calls.append(1) or step(*a))
        pair.step(2)
    assert len(calls) == 4
    pair.step(2)
    assert len(calls) == 4


def test_numbers_of_threads():
    pair = Pair(size=200_000)
    pair.step(2)
    with po.num_threads(1):
        pair.step(2)
    pair.step(2)


def unchanged_by(optimizer, error, match, grads):
    before = optimizer._params[0].copy(), optimizer.state_dict()
    with pytest.raises(error, match=match):
        optimizer.step(grads)
    np.testing.assert_array_equal(optimizer._params[0], before[0])
    assert optimizer.state_dict()["state"][0]["step"] == before[1]["state"][0]["step"]


def test_mistakes_are_told_as_before():
    p, g = np.ones(10, np.float32), np.ones(10, np.float32)
    optimizer = po.Adam(p)
    for _ in range(3):
        optimizer.step(g)
    unchanged_by(optimizer, TypeError, "grads has dtype float64", np.ones(10))
    unchanged_by(optimizer, ValueError, r"grads has shape \(9,\)", g[:9])
    unchanged_by(optimizer, ValueError, "grads overlaps a parameter", p)
    unchanged_by(optimizer, TypeError, "grads is a int", 3)
    group_of(optimizer)["lr"] = lambda k: -1.0
    unchanged_by(optimizer, ValueError, "lr is -1.0 at step 4", g)
    group_of(optimizer)["lr"] = lambda k: {}[k]
    unchanged_by(optimizer, KeyError, "3", g)
    group_of(optimizer)["lr"] = 0.1
    dict.__setitem__(group_of(optimizer), "eps", None)
    unchanged_by(optimizer, TypeError, "NoneType", g)
    group_of(optimizer)["eps"] = 1e-8
    p.flags.writeable = False
    unchanged_by(optimizer, ValueError, "params is read-only", g)
    p.flags.writeable = True
    optimizer.step(g)
    p.resize(5, refcheck=False)
    with pytest.raises(ValueError, match="params has been resized"):
        optimizer.step(g)


def test_options_that_do_not_go_together():
    optimizer = po.SGD(np.ones(3), momentum=0.9, nesterov=True)
    for _ in range(2):
        optimizer.step(np.ones(3))
    assert optimizer._advance
    group_of(optimizer)["momentum"] = 0.0  # as a schedule may
    optimizer.step(np.ones(3))
    assert optimizer._rules[0].name == "sgd"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"lambd": -0.5, "lr": 1.0}, ValueError),  # at step 3
        ({"lambd": 10.0, "lr": 10.0, "alpha": 150.0}, OverflowError),
        ({"lambd": 10.0, "lr": 10.0, "alpha": -150.0}, ZeroDivisionError),
    ],
)
def test_rates_that_cannot_be_computed(options, error):
    optimizer = po.ASGD(np.ones(3), **options)
    optimizer.step(np.ones(3))
    optimizer.step(np.ones(3))
    with pytest.raises(error):
        optimizer.step(np.ones(3))


def test_no_step_inside_lookahead():
    pair = Pair("SGD", {"momentum": 0.9, "velocity": "classical"})
    for _ in range(3):
        pair.step(2)
        for optimizer in pair.optimizers:
            with optimizer.lookahead(), pytest.raises(RuntimeError, match="step inside lookahead"):
                optimizer.step(np.ones(1000, np.float32))
        pair.check()
    pair.step(2)


def test_groups_dictionaries_and_types():
    rng = np.random.default_rng(0)
    arrays = {"w": rng.normal(size=(3, 4)), "b": rng.normal(size=4).astype(np.float32)}
    made = []
    for cls in (po.RMSprop, longer("RMSprop")):
        own = {name: a.copy() for name, a in arrays.items()}
        groups = [{"params": own, "lr": 0.1}, {"params": [np.ones(5), np.ones(0)], "weight_decay": 0.1}]
        made.append((own, groups, cls(groups)))
    for k in range(6):
        grads = {name: rng.normal(size=a.shape).astype(a.dtype) for name, a in arrays.items()}
        for *_, optimizer in made:
            optimizer.step([grads, [np.full(5, 0.5), np.ones(0)]])
            optimizer.param_groups[k % 2]["alpha"] = 0.9 - 0.1 * k
    assert made[0][2]._advance
    for one, other in zip(made[0][2]._params, made[1][2]._params, strict=True):
        np.testing.assert_array_equal(one, other)
