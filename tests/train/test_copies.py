"""What is copied or pickled together stays together: models, optimizers, averages, trainers, callbacks."""

import copy
import io
import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest

import pyoptim as po
from pyoptim import nn


def pickled(protocol):
    return lambda x: pickle.loads(pickle.dumps(x, protocol))


def by_joblib(x):
    joblib = pytest.importorskip("joblib")
    file = io.BytesIO()
    joblib.dump(x, file)
    file.seek(0)
    return joblib.load(file)


WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle 2": pickled(2),
    "pickle 4": pickled(4),
    "pickle 5": pickled(5),
    "multiprocessing": lambda x: pickle.loads(ForkingPickler.dumps(x)),
    "joblib": by_joblib,
    "twice": lambda x: copy.deepcopy(pickled(5)(x)),
}
every_way = pytest.mark.parametrize("copied", WAYS.values(), ids=WAYS)


def small_model():
    block = nn.Sequential(nn.Dense(4, 4), nn.ReLU())
    return nn.Sequential(nn.Dense(3, 4), nn.BatchNorm(4), nn.Residual(block), nn.Dense(4, 2), seed=0)


STRUCTURES = {
    "names": lambda m: m.parameters(),
    "list": lambda m: list(m.parameters().values()),
    "groups": lambda m: [{"params": [p]} for p in m.parameters().values()],
    "one vector": lambda m: m.flat_parameters,
    "pieces of it": lambda m: [m.flat_parameters[:7], m.flat_parameters[7:]],
    "strided": lambda m: [m.flat_parameters[::2], m.flat_parameters[1::2]],
    "transposed": lambda m: [p.T for p in m.parameters().values()],
}


def ones(optimizer):
    return optimizer.structured([np.ones(p.shape, p.dtype) for p in optimizer.named_parameters().values()])


class Holder:
    """Somebody's object with a model somewhere in it."""

    def __init__(self, **parts):
        self.parts = parts


CONTAINERS = {
    "model first": (lambda m, o: (m, o), lambda c: c),
    "optimizer first": (lambda m, o: [o, m], lambda c: c[::-1]),
    "dict": (lambda m, o: {"o": {"o": o}, "m": m}, lambda c: (c["m"], c["o"]["o"])),
    "object": (lambda m, o: Holder(o=o, m=[m]), lambda c: (c.parts["m"][0], c.parts["o"])),
}


@every_way
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("container", CONTAINERS)
def test_an_optimizer_goes_on_with_the_model_it_was_copied_with(copied, structure, container):
    pack, unpack = CONTAINERS[container]
    model = small_model()
    optimizer = po.Adam(STRUCTURES[structure](model), lr=0.1)
    optimizer.step(ones(optimizer))
    other, again = unpack(copied(pack(model, optimizer)))
    assert other.flat_parameters.ctypes.data % 64 == 0
    before = model.flat_parameters.copy()
    again.step(ones(again))
    assert np.array_equal(model.flat_parameters, before)
    assert not (other.flat_parameters == before).any()
    assert all(np.shares_memory(p, other.flat_parameters) for p in other.parameters().values())
    optimizer.step(ones(optimizer))
    assert np.array_equal(model.flat_parameters, other.flat_parameters)


@every_way
def test_a_trainer_and_its_copy_train_alike(copied):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), rng.integers(0, 2, 40)
    model = small_model()
    optimizer = po.Adam(model.parameters(), lr=po.schedules.Cosine(0.1, 100))
    po.averages.EMA(optimizer, 0.5)
    trainer = po.Trainer(model, nn.CrossEntropy(), optimizer, seed=3)
    callback = po.callbacks.EarlyStopping("loss", patience=5, restore_best_weights=True)
    options = {"batch_size": 8, "verbose": False}
    trainer.fit(x, y, callbacks=[callback], **options)
    other, callback = copied((trainer, callback))
    assert callback.trainer is other
    histories = [t.fit(x, y, epochs=2, **options) for t in (trainer, other)]
    assert histories[0]["loss"] == histories[1]["loss"]
    assert np.array_equal(trainer.model.flat_parameters, other.model.flat_parameters)
    assert not np.shares_memory(trainer.model.flat_parameters, other.model.flat_parameters)
    with other.optimizer.average.applied():
        assert not np.array_equal(trainer.model.flat_parameters, other.model.flat_parameters)
    assert other.partial_fit(x, y) == trainer.partial_fit(x, y)


@every_way
@pytest.mark.parametrize("of", [lambda m, o: m.parameters(), lambda m, o: o], ids=["parameters", "optimizer"])
def test_an_average_goes_on_with_what_it_was_copied_with(copied, of):
    model = small_model()
    optimizer = po.SGD(model.parameters(), lr=0.1)
    swa = po.averages.SWA(of(model, optimizer))
    swa.update()
    average, other, again = copied((swa, model, optimizer))
    again.step(ones(again))
    if again.average is None:
        average.update()
    else:
        assert again.average is average
    moved = other.flat_parameters.copy()
    expected = (moved + model.flat_parameters) / 2
    with average.applied():
        np.testing.assert_allclose(other.flat_parameters, expected, rtol=1e-6, atol=1e-7)
    assert np.array_equal(other.flat_parameters, moved)


@every_way
def test_what_was_copied_without_its_model_refuses(copied):
    model = small_model()
    optimizer = po.SGD(model.parameters(), momentum=0.9, velocity="classical")
    averages = [po.averages.EMA(model.parameters()), po.averages.SWA(model.parameters())]
    alone, ema, swa = copied(optimizer), *map(copied, averages)
    before = [p.copy() for p in alone.named_parameters().values()]

    def apply(average):
        with average.applied():
            pass

    def look_ahead():
        with alone.lookahead():
            pass

    uses = {
        "step": lambda: alone.step(ones(alone)),
        "lookahead": look_ahead,
        "a new optimizer": lambda: po.SGD(alone.param_groups).step([[*ones(alone).values()]]),
        "a new average": lambda: po.averages.EMA(alone),
        "update": ema.update,
        "first update": swa.update,
        "applied": lambda: apply(ema),
    }
    for use in uses.values():
        with pytest.raises(ValueError, match=r"is a copy of a model's .* no model has: copy or pickle"):
            use()
    for accumulate, nonfinite in (2, "ignore"), (2, "skip"), (1, "skip"):
        alone.accumulate, alone.nonfinite = accumulate, nonfinite
        with pytest.raises(ValueError, match="no model has"):
            alone.step(ones(alone))
    assert all(map(np.array_equal, before, alone.named_parameters().values()))
    assert alone.average is None
    assert alone.state_dict()["accumulated"]["count"] == 0
    optimizer.load_state_dict(alone.state_dict())  # what it holds can be used
    averages[0].load_state_dict(ema.state_dict())
    optimizer.step(ones(optimizer))


@pytest.mark.parametrize("copied", [WAYS["deepcopy"], WAYS["pickle 2"], WAYS["pickle 5"]])
def test_arrays_of_the_user_s_own_stay_too(copied, tmp_path):
    given = {
        "plain": np.zeros((2, 3)),
        "view": np.zeros(8)[2:5],
        "strided": np.zeros((4, 4)).T[::2],
        "file": np.memmap(tmp_path / "p", np.float64, "w+", shape=(5,)),
        "16 bits": np.zeros(3, np.float32),
    }
    optimizer = po.SGD(given, lr=1.0)
    for arrays, again in (copied((given, optimizer)), copied((optimizer, given))[::-1]):
        again.step(ones(again))
        assert all((p == -1).all() for p in arrays.values())
    assert all((p == 0).all() for p in given.values())
    alone = copied(optimizer)
    alone.step(ones(alone))
    assert all((p == -1).all() for p in alone.param_groups[0]["params"])


@pytest.mark.parametrize("copied", [WAYS["deepcopy"], WAYS["pickle 2"], WAYS["pickle 5"]])
def test_tensors_stay_too(copied):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    mixed = [*net.parameters(), np.zeros(3, np.float32)]
    optimizer = po.SGD([{"params": mixed[:2]}, {"params": mixed[2:]}], lr=1.0)
    ema = po.averages.EMA(dict(net.named_parameters()))
    other, again, average = copied((net, optimizer, ema))
    version = [p._version for p in other.parameters()]
    again.step(ones(again))
    for p, q, was in zip(net.parameters(), other.parameters(), version, strict=True):
        assert torch.equal(p - 1, q)
        assert q._version > was
    average.update()
    assert not np.array_equal(average.averages[0], ema.averages[0])
    assert copied(again).named_parameters().keys() == optimizer.named_parameters().keys()


def test_a_shallow_copy_steps_the_same_model():
    model = small_model()
    optimizer = po.SGD(model.parameters(), lr=1.0)
    before = model.flat_parameters.copy()
    copy.copy(optimizer).step(ones(optimizer))
    optimizer.step(ones(optimizer))
    assert np.array_equal(model.flat_parameters, before - 1 - 1)


def test_a_user_s_group_is_still_the_optimizer_s():
    optimizer = po.SGD(np.zeros(3))
    group, again = copy.deepcopy((optimizer.param_groups[0], optimizer))
    assert again.param_groups[0] is group
