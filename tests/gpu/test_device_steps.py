"""Steps of optimizers on arrays in a GPU's memory: the CPU's bits, few launches, no waiting."""

import sys
import types

import numpy as np
import pytest
from oracles import optimizers as oracles
from support import doubles
from support.device import (
    ELEMENTWISE,
    TRUSTING,
    arrays,
    assert_orthogonal_alike,
    assert_same,
    cpu_step,
    like,
    states,
    there,
)
from support.doubles import There
from support.optimizers import OPTIMIZERS

import pyoptim as po
from pyoptim.arrays import gpu_checks, gpu_views
from pyoptim.arrays.gpu import DeviceArray
from pyoptim.backends.gpu import constants
from pyoptim.backends.gpu.steps import coefficient_rows, tables


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, options) for name in ELEMENTWISE for options in oracles.ORACLES[name][2]],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "defaults",
)
def test_every_optimizer_has_the_cpu_s_bits(gpu, name, options, rng):
    here = arrays(rng, (np.float32, np.float64), [(5,), (4097,)])
    copies = [p.copy() for p in here]
    cpu, own = ELEMENTWISE[name](here, **options), ELEMENTWISE[name](there(copies), **options)
    for _ in range(3):
        grads = like(rng, here)
        cpu_step(cpu, grads)
        own.step(there(grads))
        assert_same(copies, here)
    assert_same(states(own), states(cpu))


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("dtypes", [(np.float32, np.float64), (np.float16, np.float32)])
def test_ascents(gpu, adaptive, dtypes, rng):
    """The norm is summed in another order than the processor's."""
    here = arrays(rng, dtypes, [(5,), (4097,)])
    copies, grads = [p.copy() for p in here], like(rng, here)
    cpu, own = po.SGD(here), po.SGD(there(copies))
    with po.use_backend("numpy"):
        ascent = cpu.ascended(grads, 5.0, adaptive)
        with ascent:
            expected = [p.copy() for p in here]
    with own.ascended(there(grads), 5.0, adaptive):
        for a, b, p in zip(copies, expected, here, strict=True):
            eps = np.finfo(a.dtype).eps
            np.testing.assert_allclose(a, b, rtol=4 * eps, atol=4 * eps)
            assert (a != p).any()
    assert_same(copies, here)


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
@pytest.mark.parametrize(
    ("name", "options"),
    [(name, options) for name in TRUSTING for options in oracles.ORACLES[name][2]],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "defaults",
)
def test_steps_by_norms_have_the_bits_of_the_compiled_kernels(gpu, name, options, max_grad_norm, rng):
    """With clipping the factor itself differs in its rounding, from another order of sums."""
    pytest.importorskip("pyoptim.runtime._native")
    here = arrays(rng, (np.float32, np.float64), [(5,), (), (0, 3), (130, 130)])
    here[0][...] = 0  # a norm of 0
    copies = [p.copy() for p in here]

    def groups(params):
        return [{"params": params[:3]}, {"params": params[3:], "weight_decay": 0.25}]

    kwargs = {**options, "max_grad_norm": max_grad_norm}
    cpu, own = TRUSTING[name](groups(here), **kwargs), TRUSTING[name](groups(there(copies)), **kwargs)
    for _ in range(3):
        grads = like(rng, here)
        with po.use_backend("native"):
            cpu.step([grads[:3], grads[3:]])
        own.step([there(grads[:3]), there(grads[3:])])
        if max_grad_norm is None:
            assert_same(copies, here)
    for a, b in zip(copies, here, strict=True):
        eps = np.finfo(a.dtype).eps
        np.testing.assert_allclose(a, b, rtol=16 * eps, atol=16 * eps)
    if max_grad_norm is None:
        assert_same(states(own), states(cpu))
        fresh = TRUSTING[name](groups([p.copy() for p in here]), **kwargs)
        fresh.load_state_dict(own.state_dict())  # to the processor and back
        own.load_state_dict(fresh.state_dict())
        assert_same(states(own), states(cpu))


def test_steps_by_norms_do_not_wait(recorder, rng):
    for name, kernels in (
        ("LARS", ["lars_squares<float>", "trust_rows<float>", "step<rule_named::momentum, float>"]),
        ("LAMB", ["scale_rows<float>", "lamb_direction<float>", "trust_rows<float>",
                  "step<rule_named::sgd, float>"]),
    ):  # fmt: skip
        grads = [There(g, 70) for g in arrays(rng)]
        own = TRUSTING[name](there(arrays(rng)), accumulate=1)
        own.step(grads)
        recorder.log.clear()
        own.step(grads)
        assert [(kernel, at) for _, kernel, at in recorder.all("launch")] == [(k, 70) for k in kernels]
        assert not recorder.all("synchronize")


@pytest.mark.parametrize(
    "options", oracles.ORACLES["Muon"][2], ids=lambda value: "-".join(value) or "defaults"
)
def test_muon_is_the_cpu_s_up_to_rounding(gpu, options, rng):
    here = arrays(rng, (np.float32, np.float64), [(5, 3), (3, 40), (70, 33), (1, 1), (0, 3), (70, 70)])
    copies = [p.copy() for p in here]

    def groups(params):
        return [{"params": params[:3]}, {"params": params[3:], "ns_steps": 3, "eps": 0.5}]

    cpu, own = po.Muon(groups(here), **options), po.Muon(groups(there(copies)), **options)
    start = [p.copy() for p in copies]
    for _ in range(3):
        grads = like(rng, here)
        cpu_step(cpu, [grads[:3], grads[3:]])
        own.step([there(grads[:3]), there(grads[3:])])
    lr = 0.1 if callable(options.get("lr")) else options.get("lr", 1e-3)
    assert_orthogonal_alike(copies, here, 3, lr)
    assert all((a != b).any() for a, b in zip(copies, start, strict=True) if a.size)
    assert_same(states(own), states(cpu))
    fresh = po.Muon(groups([p.copy() for p in here]), **options)
    fresh.load_state_dict(own.state_dict())
    assert_same(states(fresh), states(cpu))


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
@pytest.mark.parametrize(
    "options", oracles.ORACLES["Adafactor"][2], ids=lambda value: "-".join(value) or "none"
)
def test_adafactor_is_the_cpu_s_up_to_rounding(gpu, options, max_grad_norm, rng):
    shapes = [(5,), (3, 40), (), (0, 3), (2, 0), (300, 7), (4, 2, 3, 3), (4097,)]
    here = arrays(rng, (np.float32, np.float64), shapes)
    copies = [p.copy() for p in here]
    kwargs = {**options, "max_grad_norm": max_grad_norm}

    def groups(params):
        return [{"params": params[:3]}, {"params": params[3:], "d": 1.5, "weight_decay": 0.25}]

    cpu, own = po.Adafactor(groups(here), **kwargs), po.Adafactor(groups(there(copies)), **kwargs)
    for i in range(4):
        grads = like(rng, here)
        cpu_step(cpu, [grads[:3], grads[3:]])
        own.step([there(grads[:3]), there(grads[3:])])
        if i == 1:  # to the processor and back
            fresh = po.Adafactor(groups([p.copy() for p in here]), **kwargs)
            fresh.load_state_dict(own.state_dict())
            own.load_state_dict(fresh.state_dict())
    for a, b in zip(copies, here, strict=True):
        eps = np.finfo(a.dtype).eps
        np.testing.assert_allclose(a, b, rtol=32 * eps, atol=32 * eps)
    for entry, other in zip(states(own).values(), states(cpu).values(), strict=True):
        assert entry["step"] == other["step"] == 4
        for name in entry:
            eps = np.finfo(getattr(entry[name], "dtype", float)).eps
            np.testing.assert_allclose(entry[name], other[name], rtol=32 * eps)


def many_shapes(name):
    matrices = [(1, 1), (7, 5), (3, 40), (0, 4), (33, 33), (5, 0), (40, 6)] * 3
    return matrices if name == "Muon" else [*matrices, (), (9,), (4097,), (0,), (6, 2, 3, 3), (2, 0, 3, 3)]


@pytest.mark.parametrize("name", ["Adafactor", "Muon"])
def test_arrays_do_not_depend_on_those_beside_them(gpu, name, rng):
    """All at once, each alone, and in groups of other options: the same bits."""
    start = arrays(rng, (np.float32, np.float64), many_shapes(name))
    grads = [like(rng, start) for _ in range(2)]

    def stepped(groups_of):
        params = [p.copy() for p in start]
        for of in groups_of:
            groups = [{"params": there([params[i] for i in group]), "weight_decay": 0.1} for group in of]
            optimizer = OPTIMIZERS[name](groups, lr=0.1)
            for g in grads:
                optimizer.step([there([g[i] for i in group]) for group in of])
        return params

    everything = range(len(start))
    expected = stepped([[everything]])
    assert all((a != b).any() for a, b in zip(expected, start, strict=True) if a.size)
    assert_same(stepped([[[i]] for i in everything]), expected)
    assert_same(stepped([[everything[begin::9] for begin in range(9)]]), expected)  # rows that go by memory


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("Adafactor", ["scale_rows<double>", *(f"adafactor_{k}<float>" for k in
            ("rows", "columns", "col_var", "means", "squares", "rates", "step"))]),
        ("Muon", ["scale_rows<float>", "step<rule_named::nesterov, float>", "sum_of_squares<float>",
                  "muon_rows<float>", "muon_normalize<float>", *["muon_product<float>"] * 15,
                  "step<rule_named::sgd, float>"]),
    ],
)  # fmt: skip
def test_any_number_of_arrays_are_as_many_launches(recorder, name, stages, rng):
    for count in (1, 200):
        params, grads = (arrays(rng, shapes=[(3, 2)] * count) for _ in range(2))
        own, grads = OPTIMIZERS[name](there(params)), [There(g, 70) for g in grads]
        own.step(grads)
        recorder.log.clear()
        own.step(grads)
        assert [entry[1:] for entry in recorder.all("launch")] == [(kernel, 70) for kernel in stages]
        assert not recorder.all("synchronize")


def test_adafactor_clips_and_does_not_wait(recorder, rng):
    own = po.Adafactor(there(arrays(rng)), max_grad_norm=1.0)
    grads = [There(g, 70) for g in arrays(rng)]
    own.step(grads)
    recorder.log.clear()
    own.step(grads)
    assert {at for _, _, at in recorder.all("launch")} == {70}
    assert not recorder.all("synchronize")


def test_muon_clips_and_does_not_wait(recorder, rng):
    here = arrays(rng, shapes=[(6, 4), (5, 9)])
    copies = [p.copy() for p in here]
    options = {"lr": 0.1, "max_grad_norm": 0.5, "accumulate": 2, "eps": 1.0}
    cpu, own = po.Muon(here, **options), po.Muon(there(copies), **options)
    for i in range(4):
        grads = like(rng, here)
        cpu_step(cpu, grads)
        recorder.log.clear()
        own.step([There(g, 70) for g in grads])
        assert not recorder.all("synchronize") or i < 2  # tables at first
    assert_orthogonal_alike(copies, here, 2, 0.1)
    with pytest.raises(ValueError, match=r"params has shape \(3,\), expected a matrix for Muon"):
        po.Muon(There(np.ones(3)))


def test_structures_and_groups(gpu, rng):
    here = [arrays(rng) for _ in range(3)]
    copies = [[p.copy() for p in part] for part in here]

    def groups(parts):
        return [
            {"params": dict(enumerate(parts[0])), "lr": 0.1, "momentum": 0.9},
            {"params": parts[1], "weight_decay": 0.1},
            {"params": parts[2][0], "momentum": 0.5, "nesterov": True, "maximize": True},
        ]

    cpu, own = po.SGD(groups(here)), po.SGD(groups([there(part) for part in copies]))
    for _ in range(3):
        grads = [arrays(rng) for _ in range(3)]
        for optimizer, (a, b, c) in ((cpu, grads), (own, [there(part) for part in grads])):
            step = optimizer.step if optimizer is own else lambda g: cpu_step(cpu, g)
            step([dict(enumerate(a)), b, c[0]])
    assert_same(copies, here)
    assert_same(states(own), states(cpu))
    p, q = np.ones(3), np.ones(3)
    with po.use_backend("numpy"):
        po.Adam(p).step(np.arange(3.0))
    po.Adam(There(q)).step(There(np.arange(3.0)))
    assert_same(p, q)


@pytest.mark.parametrize("count", [8, 9, 20])
def test_many_groups(recorder, rng, count):
    here = arrays(rng, shapes=[(7,)] * count)
    copies = [p.copy() for p in here]

    def groups(params):
        return [{"params": p, "lr": 0.1 * (i + 1)} for i, p in enumerate(params)]

    grads = arrays(rng, shapes=[(7,)] * count)
    po.Adam(groups(here)).step(grads)
    own = po.Adam(groups(there(copies)))
    recorder.log.clear()
    own.step(there(grads))
    assert_same(copies, here)
    assert len(recorder.all("launch")) == 1


def test_one_launch_for_each_rule_and_dtype(recorder, rng):
    params = arrays(rng, (np.float32, np.float64))
    grads = arrays(rng, (np.float32, np.float64))
    own = po.SGD([{"params": there(params)}, {"params": there(arrays(rng)), "momentum": 0.9}])
    kept = there(grads), there(arrays(rng))
    own.step(kept)  # prepares the tables
    for given, copies in ((kept, 0), ((kept[0], there(arrays(rng))), 1), (kept, 1)):
        recorder.log.clear()
        own.step(given)
        assert sorted(kernel for _, kernel, _ in recorder.all("launch")) == [
            "step<rule_named::momentum, float>",
            "step<rule_named::sgd, double>",
            "step<rule_named::sgd, float>",
        ]
        assert not recorder.all("synchronize")
        assert len(recorder.all("copy")) == copies  # addresses of gradients, where they are others


def test_gradients_are_found_again_after_a_step_that_failed(recorder, rng, monkeypatch):
    """Of two launches one had new addresses already."""
    params = arrays(rng, (np.float32, np.float64), [(3,)])
    own, before = po.SGD(there(params), lr=1.0), [p.copy() for p in params]
    first, second = (there([np.full_like(p, i) for p in params]) for i in (1, 2))
    own.step(first)
    copy, left = recorder.copy, [1]

    def fail(*rest):
        if not left:
            raise RuntimeError("CUDA: it failed")
        left.pop()
        copy(*rest)

    with monkeypatch.context() as during:
        during.setattr(recorder, "copy", fail)
        with pytest.raises(RuntimeError, match="it failed"):
            own.step(second)
    assert_same(params, [b - 1 for b in before])
    own.step(first)
    assert_same(params, [(b - 1) - 1 for b in before])


def test_tables():
    queue = object()
    params = [DeviceArray(4096 * i, (n,), np.dtype("f4"), 0, queue) for i, n in enumerate([0, 1, 4096, 4097])]
    of_states = [[DeviceArray(8 * i, (1,), np.dtype("f4"), 0, queue)] * 2 for i in range(4)]
    table, chunks = tables(params, of_states, [0, 0, 1, 1])
    assert table.dtype.itemsize == 56
    assert table["param"].tolist() == [0, 4096, 8192, 12288]
    assert table["size"].tolist() == [0, 1, 4096, 4097]
    assert table["row"].tolist() == [0, 0, 1, 1]
    assert table["state"].tolist() == [[8 * i, 8 * i, 0, 0] for i in range(4)]
    assert chunks.tolist() == [(1, 0), (2, 0), (3, 0), (3, 1)]
    assert tables([], [], [])[1].tolist() == []


@pytest.fixture
def found(monkeypatch):
    """Which gradients are found without a look at each: CPU tensors pass for a GPU's."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("pyoptim.runtime._native")
    for module in (gpu_checks, gpu_views):
        monkeypatch.setattr(module, "DLPACK_GPU", (1, 13))
    stream = types.SimpleNamespace(cuda_stream=0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    calls, find = [], gpu_checks.TensorFinder.find

    def noted(finder, grads):
        result = find(finder, grads)
        calls.append(result is not None)
        return result

    monkeypatch.setattr(gpu_checks.TensorFinder, "find", noted)
    return calls


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_of_torch_are_found_at_once(emulated, found, name, rng):
    """Their steps are those of other arrays."""
    shapes = [(3, 4), (65, 33)] if name == "Muon" else [(5,), (3, 4), (), (4097,)]
    start = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    memory = [a.copy() for a in start]
    one, other = OPTIMIZERS[name](there(start)), OPTIMIZERS[name]([doubles.tensor(a) for a in memory])
    for _ in range(3):
        grads = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
        one.step(there(grads))
        other.step([doubles.tensor(g) for g in grads])
    assert found == [False, True] * 3
    assert_same(memory, start)


def test_gradients_that_are_not_found_are_looked_at(emulated, found, rng):
    params = [doubles.tensor(np.zeros(shape, np.float32)) for shape in ((4,), (2, 3))]
    optimizer = po.SGD(params, lr=1.0)
    good, right = doubles.tensor(np.ones(4, np.float32)), doubles.tensor(np.ones((2, 3), np.float32))
    for bad, error, match in (
        (doubles.tensor(np.ones(6, np.float32)), ValueError, "grads.1. has shape"),
        (doubles.tensor(np.ones((2, 3))), TypeError, "grads.1. has dtype float64"),
        (params[1], ValueError, "overlaps"),
        (np.ones((2, 3), np.float32), TypeError, "processor's memory"),
    ):
        with pytest.raises(error, match=match):
            optimizer.step([good, bad])
    assert found == [False] * 4
    assert not any(p.any() for p in params)
    optimizer.step([good, There(np.ones((2, 3), np.float32))])  # of two libraries
    optimizer.step([good, right])
    assert found[4:] == [False, True]
    with pytest.raises(ValueError, match="grads"):
        optimizer.step([good])
    resized = sys.modules["torch"].zeros(4).as_subclass(type(good))
    optimizer = po.SGD([resized], lr=1.0)
    optimizer.step([good])
    resized.untyped_storage().resize_(1 << 22)
    with pytest.raises(ValueError, match="has been resized"):
        optimizer.step([good])


def test_rows_of_coefficients():
    def made(rows, dtype):
        bytes = coefficient_rows(rows, np.dtype(dtype))
        return np.frombuffer(bytes, dtype).reshape(-1, constants.ROW_LENGTH)

    given = [(0.1, 2, np.float32(0.3)), (1e300, -1e300, 1e-40, np.nan), (1e-46, 2**24 + 1, 1 + 2**-24)]
    for dtype in (np.float32, np.float64):
        rows = made(given, dtype)
        assert len(rows) == constants.STEP_ROWS
        for row, values in zip(rows, [*given, *[()] * (len(rows) - 3)], strict=True):
            with np.errstate(over="ignore"):
                expected = np.array([*values, *[0.0] * (constants.ROW_LENGTH - len(values))]).astype(dtype)
            np.testing.assert_array_equal(row, expected)
        assert len(made([(1.0,)] * 9, dtype)) == 9
    assert made(given, np.float32)[1, :2].tolist() == [np.inf, -np.inf]


def test_nothing_to_step(gpu):
    own = po.Adam(There(np.empty(0)))
    own.step(There(np.empty(0)))
    assert states(own)[0]["step"] == 1
