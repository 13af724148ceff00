"""Saved state is matched by the names of parameters where there are names, and by their places where not."""

import copy
import json

import numpy as np
import pytest

import pyoptim as po
from pyoptim import nn
from pyoptim.runtime import files

START = {"w": -1.0, "v": 100.0, "u": 10.0}  # of one shape, so that only names tell them apart


def momentum(structure, **options):
    return po.SGD(structure, lr=1.0, momentum=0.9, **options)


def arrays(names):
    return {name: np.full(3, START[name]) for name in names}


def by_state_dict(old, new, path):
    new.load_state_dict(old.state_dict())


def by_file(old, new, path):
    old.save(path)
    new.load(path)


def by_json(old, new, path):
    """As a user may keep it: plain lists, and copies of everything."""
    saved = copy.deepcopy(old.state_dict())
    saved["param_groups"] = json.loads(json.dumps(saved["param_groups"]))
    new.load_state_dict(saved)


every_way = pytest.mark.parametrize("moved", [by_state_dict, by_file, by_json])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "optimizer.safetensors"


def gradients(names):
    return {name: np.full(3, START[name] / 7) for name in names}


@every_way
@pytest.mark.parametrize("order", ["wvu", "vwu", "uvw"])
@pytest.mark.parametrize(
    "options", [{}, {"accumulate": 2}, {"rounding": "nearest", "state_dtype": "bfloat16"}]
)
def test_names_in_another_order(moved, path, order, options):
    kind = np.float32 if "state_dtype" in options else np.float64
    p, q = ({n: a.astype(kind) for n, a in arrays(names).items()} for names in ("wvu", order))
    old, new = momentum(p, **options), momentum(q, **options)
    ema, again = po.averages.EMA(old, 0.5), po.averages.EMA(new, 0.5)
    g = {n: a.astype(kind) for n, a in gradients("wvu").items()}
    for _ in range(3):
        old.step(g)
    moved(old, new, path)
    if moved is not by_file:
        again.load_state_dict(ema.state_dict())
    for n in p:
        q[n][...] = p[n]
    for optimizer in (old, new):
        optimizer.step(g)
    averages = dict(zip(order, again.averages, strict=True))
    for n, average in zip("wvu", ema.averages, strict=True):
        assert np.array_equal(q[n], p[n])
        assert np.array_equal(averages[n], average)


def groups(*names, decay=None):
    return [{"params": arrays(n), **({"weight_decay": ord(n[0])} if decay else {})} for n in names]


@every_way
@pytest.mark.parametrize("others", [("w", "vu"), ("vu", "w"), ("uv", "w"), ("w", "uv")])
def test_groups_in_another_order(moved, path, others):
    """Each takes its own hyperparameters along."""
    old, new = momentum(groups("w", "vu", decay=True)), momentum(groups(*others))
    old.step([gradients(n) for n in ("w", "vu")])
    moved(old, new, path)
    for group, names in zip(new.param_groups, others, strict=True):
        assert group["weight_decay"] == ord("w" if names == "w" else "v")
    buffers = {
        n: s["momentum_buffer"] for n, s in zip("wvu", old.state_dict()["state"].values(), strict=True)
    }
    mine = zip("".join(others), new.state_dict()["state"].values(), strict=True)
    assert all(np.array_equal(buffers[n], s["momentum_buffer"]) for n, s in mine)


@every_way
def test_groups_of_the_same_names_keep_their_places(moved, path):
    old, new = (momentum([*groups("wv", "wv"), {"params": [np.zeros(3)]}]) for _ in range(2))
    for i, group in enumerate(old.param_groups):
        group["lr"] = float(i)
    moved(old, new, path)
    assert [group["lr"] for group in new.param_groups] == [0, 1, 2]


@every_way
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (arrays("wv"), arrays("wu"), r"is of the parameters \['w', 'v'\], expected \['w', 'u'\]"),
        (arrays("wv"), arrays("wvu"), r"is of the parameters \['w', 'v'\], expected \['w', 'v', 'u'\]"),
        (groups("w", "vu"), groups("wv", "u"), r"is of the parameters \['w'\], expected \['w', 'v'\]"),
    ],
)
def test_other_names_are_refused(moved, path, old, new, message):
    """Both are named, and nothing is changed."""
    old, new = momentum(old), momentum(new)
    before = new.state_dict()
    with pytest.raises(ValueError, match=message):
        moved(old, new, path)
    assert str(new.state_dict()) == str(before)


@every_way
def test_without_names_places_count(moved, path):
    named, listed = arrays("wv"), list(arrays("vw").values())
    for p, q in ((named, listed), (listed, named), (listed, list(arrays("wv").values()))):
        old, new = momentum(p), momentum(q)
        old.step([np.ones(3), np.full(3, 2.0)] if p is listed else {"w": np.ones(3), "v": np.full(3, 2.0)})
        moved(old, new, path)
        kept = [s["momentum_buffer"][0] for s in new.state_dict()["state"].values()]
        assert kept == [1, 2]


def test_a_file_without_names_is_as_before(path):
    """Versions that wrote none."""
    old, new = momentum(arrays("wv")), momentum(arrays("vw"))
    old.step({"w": np.ones(3), "v": np.full(3, 2.0)})
    old.save(path)
    description, tensors = files.read(path, "pyoptim-optimizer-1")
    assert description["param_groups"][0].pop("param_names") == ["w", "v"]
    files.write(path, description, tensors)
    new.load(path)
    assert new.state_dict()["state"][0]["momentum_buffer"][0] == 1


def test_numbers_as_names(path):
    p, q = {0: np.zeros(3), 1: np.zeros(3)}, {1: np.zeros(3), 0: np.zeros(3)}
    for first, second in ((p, q), (q, p), ([p[0], p[1]], q)):
        old, new = momentum(first), momentum(second)
        g = {0: np.ones(3), 1: np.full(3, 2.0)}
        old.step([g[0], g[1]] if isinstance(first, list) else g)
        by_file(old, new, path)
        kept = {
            n: s["momentum_buffer"][0]
            for n, s in zip(second, new.state_dict()["state"].values(), strict=True)
        }
        assert kept == {0: 1, 1: 2}


@pytest.mark.parametrize("names", [["w"], "wv", ["w", "w"], 3])
def test_names_that_cannot_be(names):
    optimizer = momentum(arrays("wv"))
    saved = optimizer.state_dict()
    saved["param_groups"][0]["param_names"] = names
    with pytest.raises(ValueError, match=r"'param_names'\] is .*expected 2 different names"):
        optimizer.load_state_dict(saved)


def test_averages_find_theirs():
    p, q = arrays("wv"), arrays("vw")
    old, new = po.averages.SWA(p), po.averages.SWA(q)
    old.update()
    new.load_state_dict(old.state_dict())
    assert [a[0] for a in new.averages] == [START["v"], START["w"]]
    new.load_state_dict({"count": 1, "averages": old.averages})  # without names, by their places
    assert [a[0] for a in new.averages] == [START["w"], START["v"]]
    for wrong in (["w"], "wv", 3):
        with pytest.raises(ValueError, match=r"state_dict\['names'\] is .*expected 2 names"):
            new.load_state_dict({**old.state_dict(), "names": wrong})
    with pytest.raises(ValueError, match=r"of the parameters \['w', 'v'\], expected \['w', 'u'\]"):
        po.averages.SWA(arrays("wu")).load_state_dict(old.state_dict())


def test_a_training_goes_on_with_parameters_in_another_order(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)), rng.integers(0, 3, 20)
    finals = []
    for turned in (False, True):
        path = tmp_path / f"{turned}.safetensors"
        for epochs in (2, 4):
            model = nn.Sequential(nn.Dense(3, 3), nn.Dense(3, 3), seed=0)
            items = list(model.parameters().items())
            optimizer = po.Adam(dict(items[::-1] if turned and epochs == 4 else items), lr=0.1)
            po.averages.EMA(optimizer, 0.5)
            trainer = po.Trainer(model, nn.CrossEntropy(), optimizer, seed=1)
            trainer.fit(x, y, epochs=epochs, batch_size=5, checkpoint=path, verbose=False)
        with optimizer.average.applied():
            finals.append(model.flat_parameters.copy())
    assert np.array_equal(*finals)


def test_pytorch_s_names():
    torch = pytest.importorskip("torch")
    tensors = {n: torch.full((3,), v, dtype=torch.float64) for n, v in START.items()}
    try:
        theirs = torch.optim.SGD(list(tensors.items()), lr=1.0, momentum=0.9)
    except TypeError:
        pytest.skip("this PyTorch's optimizers know no names")
    for name, tensor in tensors.items():
        tensor.grad = torch.full_like(tensor, START[name])
    theirs.step()
    ours = momentum(arrays("uwv"))
    po.torch.load_state_dict(ours, theirs.state_dict())
    kept = [s["momentum_buffer"][0] for s in ours.state_dict()["state"].values()]
    assert kept == [START[n] for n in "uwv"]
