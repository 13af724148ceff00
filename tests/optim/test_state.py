"""Optimizers and models on disk: the same bits after resuming, and nothing taken from a bad file."""

import json
import os
import stat
import sys

import numpy as np
import pytest
from oracles.optimizers import CASES, case_id
from support.optimizers import assert_same_bits, make, snapshot, states, type_of

import pyoptim as po
from pyoptim import nn, schedules
from pyoptim.runtime import files

SHAPES = [(3, 4), (40, 20)]


def gradients(dtype, steps):
    rng = np.random.default_rng(5)
    return [[rng.normal(size=shape).astype(dtype) for shape in SHAPES] for _ in range(steps)]


def first_values(dtype):
    return [np.linspace(-1, 1, np.prod(shape)).reshape(shape).astype(dtype) for shape in SHAPES]


def assert_resumes(new, dtype, path, before=4, after=4):
    """An optimizer made by ``new`` and loaded in the middle goes on as if nothing had been."""
    straight, params = first_values(dtype), first_values(dtype)
    optimizer, first = new(straight), new(params)
    steps = gradients(dtype, before + after)
    for i, grads in enumerate(steps):
        optimizer.step(grads)
        if i < before:
            first.step(grads)
    first.save(path)
    resumed = new(params)
    resumed.load(path)
    for grads in steps[before:]:
        resumed.step(grads)
    for p, q in zip(params, straight, strict=True):
        assert p.tobytes() == q.tobytes()
    assert snapshot(resumed) == snapshot(optimizer)
    assert not np.array_equal(params[0], first_values(dtype)[0])
    assert os.listdir(path.parent) == [path.name]  # nothing temporary is left


@pytest.fixture
def path(tmp_path):
    return tmp_path / "optimizer.safetensors"


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_resumes_with_the_same_bits(case, path, dtype):
    name, options = case
    if callable(options.get("lr")):  # a function cannot be saved, a schedule of ours can
        case = name, {**options, "lr": schedules.InverseTime(0.1, 0.5)}
    assert_resumes(lambda params: make(case, params), dtype, path)


@pytest.mark.parametrize("cls", [po.Adam, po.SGD, po.RMSprop, po.Rprop])
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("rounding", ["master", "stochastic"])
@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "int8"])
def test_packed_states_resume(cls, kind, rounding, state_dtype, path):
    if state_dtype == "bfloat16":
        type_of("bfloat16")
    options = {po.SGD: {"momentum": 0.9}, po.RMSprop: {"centered": True, "momentum": 0.9}}.get(cls, {})
    fixed = {"rounding": rounding, "state_dtype": state_dtype, "seed": 3, "lr": 0.1}
    assert_resumes(lambda params: cls(params, **options, **fixed), type_of(kind), path)


@pytest.mark.parametrize("kind", ["float32", "float64", "float16"])
@pytest.mark.parametrize("before", [1, 2, 3, 5])
def test_an_accumulation_resumes_in_the_middle(kind, before, path):
    """Three gradients a step, saved after each number of them; nothing of it is lost in state_dict either."""
    dtype = type_of(kind)
    assert_resumes(lambda params: po.Adam(params, accumulate=3), dtype, path, before=before, after=9 - before)


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_the_randomness_is_saved(rounding, path):
    """An optimizer made with another seed and rounding goes on as the one that was saved."""

    def new(params, **options):
        return po.Adam(params, lr=0.01, **options)

    arrays, others = first_values("f2"), first_values("f2")
    optimizer = new(arrays, seed=7, rounding=rounding)
    other = new(others, seed=1, rounding="stochastic" if rounding == "nearest" else "nearest")
    all_grads = gradients("f2", 6)
    for g in all_grads[:3]:
        optimizer.step(g)
    optimizer.save(path)
    other.load(path)
    assert (other.seed, other.rounding) == (7, rounding)
    for p, q in zip(arrays, others, strict=True):
        q[...] = p
    for g in all_grads[3:]:
        optimizer.step(g)
        other.step(g)
    assert snapshot(other) == snapshot(optimizer)
    change_description(path, lambda d, h: [d.pop(name) for name in ("seed", "rounding")] and None)
    other.load(path)  # as written before they were
    assert (other.seed, other.rounding) == (7, rounding)
    refused(po.Adam(first_values("f2")), path, "expected .*master")


AVERAGES = {"EMA": lambda optimizer: po.averages.EMA(optimizer, 0.5), "SWA": po.averages.SWA}


@pytest.mark.parametrize("kind", AVERAGES)
@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_an_average_is_saved_with_its_optimizer(kind, dtype, path):
    optimizer, other = po.Adam(first_values(dtype), lr=0.1), po.Adam(first_values(dtype), lr=0.1)
    average, again = AVERAGES[kind](optimizer), AVERAGES[kind](other)
    for g in gradients(dtype, 3):
        optimizer.step(g)
    optimizer.save(path)
    other.load(path)
    assert again.count == average.count == 3
    for a, b in zip(average.averages, again.averages, strict=True):
        assert_same_bits(a, b)
    assert snapshot(other)[0] == snapshot(optimizer)[0]

    # What does not fit changes neither.
    before = [a.copy() for a in again.averages]
    strangers = po.Adam(first_values(dtype))
    refused(strangers, path, f"saved with the average {kind}, but what follows this one is None")
    wrong = po.averages.SWA if kind == "EMA" else po.averages.EMA
    wrong(strangers)
    refused(strangers, path, f"saved with the average {kind}, but .*{wrong.__name__}")
    for change in (
        lambda d, h: d["average"].__setitem__(1, -1),
        lambda d, h: d.update(average=[kind]),
        lambda d, h: d.update(average=kind),
        lambda d, h: renamed(h, "average.0", "average.5"),
        lambda d, h: d["scalars"][0].update(step=-1),
    ):
        optimizer.save(path)
        change_description(path, change)
        refused(other, path, "does not fit this Adam")
        assert again.count == 3
        assert all(np.array_equal(a, b) for a, b in zip(before, again.averages, strict=True))

    # One that was saved without it is of other steps, unless it has none yet. Old files do not say.
    po.Adam(first_values(dtype)).save(path)
    refused(other, path, f"saved without an average, but .*{kind}")
    assert again.count == 3
    fresh = po.Adam(first_values(dtype))
    AVERAGES[kind](fresh)
    fresh.load(path)
    change_description(path, lambda d, h: d.pop("average", None))
    other.load(path)
    assert again.count == 3


SCHEDULES = [
    schedules.Cosine(0.1, steps=5, restarts=True),
    schedules.WarmUp(schedules.Joined([schedules.Constant(0.1), schedules.Linear(0.1, 0.0, 4)], [2]), 3),
    schedules.Piecewise((2, 4), (0.1, 0.2, 0.3)),
    schedules.Chained((schedules.Constant(0.1), schedules.Exponential(1.0, 0.5))),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_schedules_and_groups_are_saved(schedule, path):
    def new(params):
        return po.Adam(
            [{"params": params[0], "lr": 0.5, "betas": (0.8, 0.9)}, {"params": params[1:]}], lr=0.1
        )

    first, other = new(first_values("f4")), new(first_values("f4"))
    first.param_groups[1]["lr"] = schedule
    first.param_groups[0]["weight_decay"] = np.float32(0.1)
    first.epoch, first.skipped = 7, 2
    grads = gradients("f4", 1)[0]
    for _ in range(3):
        first.step([grads[0], grads[1:]])
    first.save(path)
    other.load(path)
    assert snapshot(other)[0] == snapshot(first)[0]
    assert other.param_groups[1]["lr"] == schedule
    assert (other.epoch, other.skipped) == (7, 2)


def test_the_same_state_is_the_same_bytes(path, tmp_path):
    for i in range(5):
        optimizer = po.Adam(first_values("f4"), lr=schedules.Cosine(0.1, 5))
        optimizer.step(gradients("f4", 1)[0])
        optimizer.save(tmp_path / str(i))
    assert len({(tmp_path / str(i)).read_bytes() for i in range(5)}) == 1
    nn.Sequential(nn.Dense(3, 4), nn.BatchNorm(4), seed=0).save(path)
    nn.Sequential(nn.Dense(3, 4), nn.BatchNorm(4), seed=0).save(tmp_path / "again")
    assert path.read_bytes() == (tmp_path / "again").read_bytes()


# ---- files that are not what they should be ----------------------------------------------------------


def saved_adam(path, **options):
    optimizer = po.Adam(first_values("f4"), **options)
    for grads in gradients("f4", 3):
        optimizer.step(grads)
    optimizer.save(path)
    return optimizer


def refused(optimizer, path, match):
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=match) as caught:
        optimizer.load(path)
    assert str(path) in str(caught.value)
    assert snapshot(optimizer) == before


def test_truncated_files_change_nothing(path, tmp_path):
    saved_adam(path)
    damaged = tmp_path / "damaged.safetensors"
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    optimizer = po.Adam(first_values("f4"))
    optimizer.step(gradients("f4", 1)[0])
    for length in [*range(header + 2), *range(header + 2, len(content), 97), len(content) - 1]:
        damaged.write_bytes(content[:length])
        refused(optimizer, damaged, "is not a complete safetensors file")
    damaged.write_bytes(content + b"\0")
    refused(optimizer, damaged, "is not a complete safetensors file")


def change_description(path, change):
    """Rewrite the JSON in the metadata; the file is then as one from before there were checksums."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    described = json.loads(header["__metadata__"]["pyoptim"])
    del described["checksum"]
    described = change(described, header) or described
    if "__metadata__" in header:
        header["__metadata__"] = {"pyoptim": json.dumps(described)}
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[end:])


def renamed(header, old, new):
    header[new] = header.pop(old)


DESCRIPTIONS = {
    "not a mapping": (lambda d, h: [1], "was not written by pyoptim"),
    "no metadata": (lambda d, h: h.pop("__metadata__") and None, "was not written by pyoptim"),
    "format": (lambda d, h: d.update(format="pyoptim-model-1"), "has the format 'pyoptim-model-1'"),
    "type": (lambda d, h: d.update(type="SGD"), "state of 'SGD'"),
    "no groups": (lambda d, h: d.pop("param_groups") and None, "does not fit this Adam"),
    "groups of numbers": (lambda d, h: d.update(param_groups=[1]), "does not fit this Adam"),
    "two groups": (lambda d, h: d["param_groups"].append({}), "2 parameter groups"),
    "params twice": (lambda d, h: d["param_groups"][0].update(params=[0, 0]), "expected each once"),
    "params in a string": (lambda d, h: d["param_groups"][0].update(params="01"), "does not fit this Adam"),
    "lr": (lambda d, h: d["param_groups"][0].update(lr="x"), "lr is 'x'"),
    "huge lr": (lambda d, h: d["param_groups"][0].update(lr=10**400), "does not fit this Adam"),
    "schedule": (lambda d, h: d["param_groups"][0].update(lr={"schedule": "os"}), "'os' is no schedule"),
    "schedule's field": (
        lambda d, h: d["param_groups"][0].update(lr={"schedule": "Step", "lr": 1}),
        "does not fit this Adam",
    ),
    "no scalars": (lambda d, h: d.update(scalars=None), "does not fit this Adam"),
    "steps": (lambda d, h: d["scalars"][0].update(step=-1), "step"),
    "huge step": (lambda d, h: d["scalars"][0].update(step=10**400), "does not fit this Adam"),
    "epoch": (lambda d, h: d.update(epoch="3"), "epoch"),
    "skipped": (lambda d, h: d.update(skipped=-3), "skipped"),
    "accumulated": (lambda d, h: d.update(accumulated=1), "fewer than accumulate=1"),
    "name of a tensor": (lambda d, h: renamed(h, "0.exp_avg", "0.other"), "other"),
    "owner of a tensor": (lambda d, h: renamed(h, "0.exp_avg", "7.exp_avg"), "does not fit this Adam"),
    "sums without a count": (lambda d, h: renamed(h, "0.exp_avg", "accumulated.0"), "does not fit this Adam"),
    "dtype": (lambda d, h: h["0.exp_avg"].update(dtype="I32"), "'0.exp_avg' has dtype I32"),
    "shape": (lambda d, h: h["0.exp_avg"].update(shape=[4, 3]), "has shape"),
    "huge shape": (lambda d, h: h["0.exp_avg"].update(shape=[2**62, 2**62]), "not a complete safetensors"),
    "empty shape": (
        lambda d, h: h["0.exp_avg"].update(shape=[0, 2**62], data_offsets=[0, 0]),
        "safetensors",
    ),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_descriptions_that_make_no_sense_change_nothing(name, path):
    change, match = DESCRIPTIONS[name]
    saved_adam(path)
    change_description(path, change)
    optimizer = po.Adam(first_values("f4"))
    optimizer.step(gradients("f4", 1)[0])
    refused(optimizer, path, match)


def test_states_of_other_shapes_and_options_are_refused(path):
    saved_adam(path)
    refused(po.Adam(np.ones(3, np.float32)), path, "of the parameters")
    refused(po.Adam(first_values("f8")), path, "dtype float32, expected float64")
    refused(po.AMSGrad(first_values("f4")), path, "state of 'Adam'")
    refused(po.Adam(first_values("f4"), state_dtype="int8"), path, "exp_avg")
    refused(po.Adam([first_values("f4")[1], first_values("f4")[0]]), path, "has shape")


def test_sums_that_do_not_fit_are_refused():
    params = first_values("f4")
    optimizer = po.Adam(params, accumulate=3)
    optimizer.step(gradients("f4", 1)[0])
    saved = optimizer.state_dict()
    for change, match in (
        ({"count": 3}, "fewer than accumulate=3"),
        ({"count": 0}, "2 sums of 0 gradients"),
        ({"sums": saved["accumulated"]["sums"][:1]}, "1 sums of 1 gradients"),
        ({"sums": saved["accumulated"]["sums"][::-1]}, r"\['sums'\]\[0\] has shape"),
        ({"count": True}, "expected an integer"),
    ):
        before = snapshot(optimizer)
        with pytest.raises(ValueError, match=match):
            optimizer.load_state_dict({**saved, "accumulated": {**saved["accumulated"], **change}})
        assert snapshot(optimizer) == before


def test_what_cannot_be_saved_leaves_the_old_file(path):
    optimizer = saved_adam(path)
    before = path.read_bytes()
    for lr in (lambda k: 0.1, schedules.WarmUp(lambda k: 0.1, 3)):
        optimizer.param_groups[0]["lr"] = lr
        with pytest.raises(ValueError, match=r"lr holds .* cannot be saved"):
            optimizer.save(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


# ---- where files may be --------------------------------------------------------------------------------


def model():
    return nn.Sequential(nn.Dense(3, 4), nn.BatchNorm(4), seed=0)


SAVED = {"model": model, "optimizer": lambda: po.Adam(first_values("f4"))}


@pytest.mark.parametrize("kind", SAVED)
def test_targets_that_are_no_regular_files(kind, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    saved = SAVED[kind]()
    for target, match in ((tmp_path, "is a directory"), (pipe, "pipe"), (os.devnull, "is a device")):
        for call in (saved.save, saved.load):
            with pytest.raises(ValueError, match=match) as caught:
                call(target)
            assert str(target) in str(caught.value)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    missing = tmp_path / "missing" / "file"
    for call in (saved.save, saved.load):
        with pytest.raises(FileNotFoundError) as caught:
            call(missing)
        assert caught.value.filename == str(missing) or caught.value.filename == missing
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_failed_write_names_the_target_and_leaves_it(path, monkeypatch):
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        files.write_atomically(path, b"new")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]


def test_a_link_stays_a_link(path, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(path)
    optimizer = po.Adam(first_values("f4"))
    optimizer.save(link)
    assert link.is_symlink()
    optimizer.load(path)


# ---- models ------------------------------------------------------------------------------------------


MODELS = {
    "bfloat16": (lambda d, h: h["0.weight"].update(dtype="BF16", shape=[8, 3]), "0.weight"),
    "unknown dtype": (lambda d, h: h["0.weight"].update(dtype="F8_E4M3", shape=[16, 3]), "F8_E4M3"),
    "dtype": (lambda d, h: d.update(dtype="float16"), "its dtype is 'float16'"),
    "dtype with a shape": (lambda d, h: d.update(dtype="(1000000000,)f4"), "its dtype is"),
    "huge layer": (lambda d, h: d["layers"][0].update(in_features=10**12), "'0.weight' is of shape"),
    "huge number": (lambda d, h: d["layers"][0].update(in_features=10**400), "'0.weight' is of shape"),
    "huge buffers": (
        lambda d, h: d["layers"][1].update(affine=False, features=10**12),
        "1000000000000 features",
    ),
    "another layer": (
        lambda d, h: d["layers"].append({"type": "Dense", "in_features": 10**7, "out_features": 10**7}),
        "'2.weight' is missing",
    ),
    "layers": (lambda d, h: d.update(layers={"a": 1}), "does not describe a model"),
    "number of layers": (lambda d, h: d.update(layers=3), "does not describe a model"),
    "no layers": (lambda d, h: d.update(layers=[]), "does not describe a model"),
    "no type": (lambda d, h: d["layers"][0].pop("type") and None, "does not describe a model"),
    "no layer": (lambda d, h: d["layers"][0].update(type="Sequential"), "'Sequential' is no layer"),
    "a module": (lambda d, h: d["layers"][0].update(type="layers"), "'layers' is no layer"),
    "type of an argument": (lambda d, h: d["layers"][0].update(in_features="3"), "does not describe a model"),
    "of an optimizer": (lambda d, h: d.update(format="pyoptim-optimizer-1"), "expected 'pyoptim-model-1'"),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_make_no_sense(name, path):
    change, match = MODELS[name]
    if name == "bfloat16":
        type_of("bfloat16")
    model().save(path)
    change_description(path, change)
    with pytest.raises(ValueError, match=match) as caught:
        nn.Sequential.load(path)
    assert str(path) in str(caught.value)


def test_bfloat16_without_ml_dtypes_is_a_clear_error(path, monkeypatch):
    model().save(path)
    change_description(path, MODELS["bfloat16"][0])
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ValueError, match=r"0\.weight.*ml_dtypes"):
        nn.Sequential.load(path)


def test_deep_nesting_is_a_clear_error(path):
    nested = "[" * 100_000 + "]" * 100_000
    header = json.dumps({"__metadata__": {"pyoptim": nested}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="was not written by pyoptim"):
        nn.Sequential.load(path)
    refused(po.Adam(np.ones(3)), path, "was not written by pyoptim")


def test_states_are_not_shared_with_the_file(path):
    """What was loaded is the optimizer's own memory, writeable and where it was."""
    optimizer = saved_adam(path)
    other = po.Adam(first_values("f4"))
    arrays = [array for group in other._states for state in group for array in state.values()]
    other.load(path)
    now = [array for group in other._states for state in group for array in state.values()]
    assert all(a is b for a, b in zip(arrays, now, strict=True))
    for key, value in states(optimizer).items():
        assert_same_bits(states(other)[key], value)
