"""Optimizers on arrays in a GPU's memory: what needs no GPU, with emulated kernels, and what does.

The kernels themselves are tested in test_cuda_kernels.py. Here "device memory" is the host's, and an array is
there because it says so (tests/cuda/doubles.py).
"""

import copy
import ctypes
import importlib.util
import math
import pickle
import sys
import types
import weakref
from pathlib import Path

import doubles
import numpy as np
import pytest
from doubles import Capsule, OnDevice, There
from oracles import optimizers as oracles
from test_contract import OPTIMIZERS
from test_cuda_build import nvrtc as nvrtc_library
from test_storage import type_of

import pyoptim as po
from pyoptim.arrays import gpu_checks, gpu_views
from pyoptim.arrays.gpu import DeviceArray, uploaded
from pyoptim.arrays.queue import Queue
from pyoptim.arrays.tensors import in_place
from pyoptim.backends.gpu import constants
from pyoptim.backends.gpu.steps import Table, coefficient_rows, tables
from pyoptim.formulas import storage
from pyoptim.runtime import dispatch

INCLUDE = Path(__file__).resolve().parents[2] / "csrc"
ELEMENTWISE = {
    name: cls for name, cls in OPTIMIZERS.items() if name not in ("LARS", "LAMB", "Adafactor", "Muon")
}
TRUSTING = {name: OPTIMIZERS[name] for name in ("LARS", "LAMB")}
SHAPES = [(5,), (4097,), (), (0, 3), (3, 4), (9000,)]


def load(monkeypatch, name, **modules):
    """A backend's module with other modules in place of what it imports."""
    for key, module in modules.items():
        monkeypatch.setitem(sys.modules, key.replace("__", "."), module)
    full = f"pyoptim.backends.{name}"
    spec = importlib.util.find_spec(full)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, full, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def no_gpu(monkeypatch):
    """Nothing is known of GPUs yet, nor when the test is over."""
    for name in dispatch.DEVICE_MODULES:
        monkeypatch.delitem(dispatch._cache, name, raising=False)
    monkeypatch.setattr(dispatch, "_device_default", None)
    monkeypatch.setattr(dispatch, "_cache", dict(dispatch._cache))


def use_cuda(monkeypatch, cuda):
    monkeypatch.setenv("PYOPTIM_CUBLAS", "off")  # the machine's would not find the memory
    monkeypatch.setattr(po, "_cuda", cuda, raising=False)
    dispatch._cache["cuda"] = load(monkeypatch, "cuda", pyoptim___cuda=cuda)
    return dispatch._cache["cuda"]


def use_cupy(monkeypatch, cuda, **options):
    monkeypatch.setenv("PYOPTIM_CUBLAS", "off")
    for name, module in doubles.cupy(cuda, **options).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(Path, "is_file", lambda path: True)  # that the package has its headers
    dispatch._cache["cupy"] = load(monkeypatch, "nvrtc")
    monkeypatch.setattr(dispatch._cache["cupy"], "headers", lambda: INCLUDE)
    return dispatch._cache["cupy"]


@pytest.fixture(params=["cuda", "cupy"])
def gpu(request, cuda, no_gpu, monkeypatch):
    """The emulated device, by either launcher."""
    use = {"cuda": use_cuda, "cupy": use_cupy}[request.param]
    backend = use(monkeypatch, cuda)
    with po.use_backend(request.param):
        yield backend


@pytest.fixture
def recorder(cuda, no_gpu, monkeypatch):
    made = doubles.Recorder(cuda)
    use_cuda(monkeypatch, made)
    return made


@pytest.fixture
def emulated(cuda, no_gpu, monkeypatch):
    use_cuda(monkeypatch, cuda)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def arrays(rng, dtypes=(np.float32,), shapes=SHAPES):
    return [
        doubles.unaligned(rng.normal(size=shape), dtype, i % 3)
        for dtype in dtypes
        for i, shape in enumerate(shapes)
    ]


def like(rng, params, scale=1.0):
    return [np.asarray(scale * rng.normal(size=p.shape), p.dtype) for p in params]


def there(values):
    return [There(value) for value in values]


def states(optimizer):
    return optimizer.state_dict()["state"]


def assert_same(a, b):
    """States or arrays, with ==."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        a, b = list(a.values()), list(b.values())
    if isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert type(a) is type(b)
        np.testing.assert_array_equal(a, b, strict=True)


def cpu_step(optimizer, grads):
    """On the processor, though a GPU's backend is in force."""
    with po.use_backend("numpy"):
        optimizer.step(grads)


# ---- steps -----------------------------------------------------------------------------------------


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


def assert_orthogonal_alike(params, here, steps, lr):
    """What rounding allows: products of up to max(shape) terms, amplified up to thirtyfold (oracles.py)."""
    for a, b in zip(params, here, strict=True):
        length = max(a.shape)
        allowed = steps * lr * math.sqrt(length) * 30 * length * np.finfo(a.dtype).eps
        np.testing.assert_allclose(a, b, rtol=0, atol=allowed)


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
    monkeypatch.setattr(gpu_views, "_CUDA", (1, 13))
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
    rows = coefficient_rows([(1.0, 2.0), (1e300,)], np.float32)
    assert rows.shape == (constants.STEP_ROWS, constants.ROW_LENGTH)
    assert rows[0].tolist() == [1, 2] + [0] * 14
    assert rows[1, 0] == np.inf
    assert coefficient_rows([(1.0,)] * 9, np.float64).shape == (9, constants.ROW_LENGTH)


def test_nothing_to_step(gpu):
    own = po.Adam(There(np.empty(0)))
    own.step(There(np.empty(0)))
    assert states(own)[0]["step"] == 1


# ---- clipping, accumulation, what is not finite ----------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"nonfinite": "skip"}], ids=str)
def test_clipping(gpu, options, rng):
    here = arrays(rng, (np.float32, np.float64))
    copies = [p.copy() for p in here]
    kwargs = {"momentum": 0.9, "max_grad_norm": 0.5, **options}
    cpu = po.SGD([{"params": here, "maximize": True}], **kwargs)
    own = po.SGD([{"params": there(copies), "maximize": True}], **kwargs)
    for scale in (1, 1e-4, 1, 1e-4):  # longer and shorter than the limit
        grads = like(rng, here, scale)
        cpu_step(cpu, [grads])
        own.step([there(grads)])
    for a, b in zip(copies, here, strict=True):
        np.testing.assert_allclose(
            a, b, rtol=4 * np.finfo(a.dtype).eps, atol=1e-7 if a.dtype == "f4" else 1e-15
        )


def test_clipping_does_not_wait(recorder, rng):
    params, grads = arrays(rng), there(arrays(rng))
    own = po.Adam(there(params), max_grad_norm=1.0)
    own.step(grads)
    recorder.log.clear()
    own.step(grads)
    assert not recorder.all("synchronize")
    assert [kernel for _, kernel, _ in recorder.all("launch")] == [
        "sum_of_squares<float>", "total<double>", "clip_factor<double>", "scale_rows<float>",
        "step<rule_named::adam, float>",
    ]  # fmt: skip


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_gradients_that_are_not_finite(gpu, bad, rng):
    params, grads = arrays(rng), arrays(rng)
    grads[1][7] = bad
    before = [p.copy() for p in params]
    own = po.Adam(there(params), nonfinite="raise")
    with pytest.raises(ValueError, match=r"grads\[1\] holds NaN or infinity"):
        own.step(there(grads))
    assert_same(params, before)
    assert states(own)[0]["step"] == 0
    own.nonfinite = "skip"
    own.step(there(grads))
    assert own.skipped == 1
    assert_same(params, before)
    own.nonfinite = "ignore"
    own.step(there(grads))
    assert states(own)[0]["step"] == 1
    assert np.isnan(params[1][7])


def test_a_norm_that_overflows_is_no_reason_to_skip(gpu):
    p = np.ones(2)
    own = po.SGD(There(p), lr=1e-200, nonfinite="skip")
    own.step(There(np.full(2, 1e200)))
    assert own.skipped == 0
    assert_same(p, np.zeros(2))


def test_accumulation(gpu, rng):
    here = arrays(rng, (np.float32, np.float64))
    copies = [p.copy() for p in here]
    cpu, own = po.Adam(here, accumulate=3), po.Adam(there(copies), accumulate=3)
    for i in range(8):
        grads = like(rng, here)
        cpu_step(cpu, grads)
        own.step(there(grads))
        assert_same(copies, here)
        if i == 4:  # in the middle, to and fro
            saved = own.state_dict()
            assert saved["accumulated"]["count"] == 2
            assert_same(saved["accumulated"]["sums"], cpu.state_dict()["accumulated"]["sums"])
            own, cpu = po.Adam(there(copies), accumulate=3), po.Adam(here, accumulate=3)
            own.load_state_dict(saved)
            cpu.load_state_dict(saved)
    assert_same(states(own), states(cpu))


def test_a_rate_that_cannot_be_leaves_the_sums_alone(gpu):
    p, rate = np.zeros(2), [np.nan]
    own = po.SGD(There(p), lr=lambda step: rate[0], accumulate=2)
    own.step(There(np.ones(2)))
    with pytest.raises(ValueError, match="lr is nan"):
        own.step(There(np.ones(2)))
    rate[0] = 1.0
    own.step(There(np.full(2, 3.0)))
    assert p.tolist() == [-2, -2]


# ---- averages, lookahead ---------------------------------------------------------------------------


def averages(params, kind):
    return po.averages.SWA(params) if kind == "swa" else po.averages.EMA(params, 0.9, warm_up=kind == "warm")


@pytest.mark.parametrize("kind", ["ema", "warm", "swa"])
@pytest.mark.parametrize("follows", [True, False])
def test_averages_have_the_cpu_s_bits(gpu, kind, follows, rng, tmp_path):
    here = arrays(rng, (np.float32, np.float64))
    copies = [p.copy() for p in here]
    cpu, own = po.SGD(here, lr=0.1, momentum=0.9), po.SGD(there(copies), lr=0.1, momentum=0.9)
    cpu_average = averages(cpu if follows else here, kind)
    own_average = averages(own if follows else there(copies), kind)

    def run():
        for _ in range(4):
            grads = like(rng, here)
            cpu_step(cpu, grads)
            own.step(there(grads))
            if not follows:
                own_average.update()
                with po.use_backend("numpy"):
                    cpu_average.update()
            assert own_average.count == cpu_average.count
            assert_same(own_average.state_dict()["averages"], cpu_average.averages)

    run()
    before = [p.copy() for p in copies]
    with own_average.applied():
        assert_same(copies, cpu_average.averages)
    assert_same(copies, before)
    held = cpu_average.state_dict()  # to and fro
    cpu_average.load_state_dict(own_average.state_dict())
    own_average.load_state_dict(held)
    if follows:
        own.save(tmp_path / "own.safetensors")
        cpu.save(tmp_path / "cpu.safetensors")
        assert (tmp_path / "own.safetensors").read_bytes() == (tmp_path / "cpu.safetensors").read_bytes()
        cpu.load(tmp_path / "own.safetensors")
        own.load(tmp_path / "cpu.safetensors")
    run()


def test_averages_do_not_wait(recorder, rng):
    params = arrays(rng)
    own = po.Adam([There(p, 70) for p in params])
    average = po.averages.EMA(own)
    grads = [There(g, 70) for g in arrays(rng)]
    own.step(grads)
    recorder.log.clear()
    own.step(grads)
    launches = recorder.all("launch", "synchronize", "copy")
    assert launches == [
        ("launch", "step<rule_named::adam, float>", 70),
        ("launch", "step<rule_named::sgd, float>", 70),
    ]
    with pytest.raises(ValueError, match="already carries an average"):
        po.averages.EMA(own)
    one = po.SGD(There(np.ones(3)))
    overlapping = po.averages.EMA(one).averages[0]
    with pytest.raises(ValueError, match="grads overlaps a parameter or an optimizer state"):
        one.step(overlapping)
    assert average.count == 2


def test_averages_that_cannot_be(emulated):
    a = np.ones(3)
    with pytest.raises(TypeError, match=r"params\[0\] is a ndarray in the processor's memory"):
        po.averages.EMA([a, There(a.copy())])
    with pytest.raises(ValueError, match=r"params\[1\] overlaps params\[0\]"):
        po.averages.EMA([There(a), There(a)])
    average = po.averages.EMA(There(a))
    with pytest.raises(ValueError, match=r"state_dict\['averages'\]\[0\] has shape \(4,\)"):
        average.load_state_dict({"count": 1, "averages": [np.ones(4)]})
    with po.use_backend("numpy"), pytest.raises(po.BackendError, match="does not reach arrays in a GPU"):
        average.update()
    assert average.count == 0


def test_averages_of_torch_tensors(recorder, monkeypatch):
    torch = pytest.importorskip("torch")
    streams = [80]
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: type("Stream", (), {"cuda_stream": streams[0]})
    )
    p = np.ones(3, np.float32)
    tensor = doubles.tensor(p)
    average = po.averages.EMA(tensor, 0.5)
    p[...] = 3
    streams[0] = 90
    recorder.log.clear()
    average.update()
    assert {at for _, _, at in recorder.all("launch")} == {90}  # where the tensor's work is now
    version = tensor._version
    with average.applied():
        assert p.tolist() == [2] * 3
        assert tensor._version > version  # autograd heard of it
    assert p.tolist() == [3] * 3


@pytest.mark.parametrize("fails", [True, False])
def test_lookahead_has_the_cpu_s_bits(gpu, fails, rng):
    here = arrays(rng, (np.float32, np.float64))
    copies = [p.copy() for p in here]
    options = {"lr": 0.1, "velocity": "classical"}

    def groups(params):
        return [{"params": params[:3], "momentum": 0.9}, {"params": params[3:], "momentum": 0.5}]

    cpu, own = po.SGD(groups(here), **options), po.SGD(groups(there(copies)), **options)
    for _ in range(3):
        grads = like(rng, here)
        cpu_step(cpu, [grads[:3], grads[3:]])
        own.step([there(grads[:3]), there(grads[3:])])
        before = [p.copy() for p in copies]
        with cpu.lookahead(), own.lookahead():
            assert_same(copies, here)
            assert any((p != was).any() for p, was in zip(copies, before, strict=True))
        if fails:
            with pytest.raises(RuntimeError, match="step inside lookahead"), own.lookahead():
                own.step([there(grads[:3]), there(grads[3:])])
        assert_same(copies, before)
        assert_same(copies, here)


# ---- 16 and 8 bits ---------------------------------------------------------------------------------


def kept_there(values):
    """As `there`; bfloat16 as DLPack would bring it."""
    return [
        DeviceArray(v.ctypes.data, v.shape, v.dtype, 0, (v,), stream=1)
        if v.dtype.name == "bfloat16"
        else There(v)
        for v in values
    ]


def assert_kept_alike(a, b):
    """States with 8-bit codes decoded, and 16-bit floats widened."""
    assert a.keys() == b.keys()
    for i, entry in a.items():
        assert entry.keys() == b[i].keys()
        for name, value in entry.items():
            other = b[i][name]
            if np.ndim(value) and value.dtype == np.uint8:
                value = storage.decode(storage.pack_state(name, entry))
                other = storage.decode(storage.pack_state(name, b[i]))
            assert_same(np.asarray(value, float), np.asarray(other, float))


PACKED = {
    "SGD": po.SGD,
    "momentum": lambda p, **options: po.SGD(p, momentum=0.9, **options),
    "AMSGrad": po.AMSGrad,  # the most states
    "Rprop": po.Rprop,  # states that do not begin at 0
}
# Longer than a chunk and than a block of a scale, shorter, empty, without dimensions.
PACKED_SHAPES = [(300,), (4097,), (), (0, 3), (17, 15)]


def packed_arrays(rng, kinds):
    return [a for kind in kinds for a in arrays(rng, (type_of(kind),), PACKED_SHAPES)]


@pytest.mark.parametrize("kinds", [("float32",), ("float16", "float32"), ("bfloat16",)], ids=str)
@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("rounding", ["master", "stochastic", "nearest"])
@pytest.mark.parametrize("name", PACKED)
def test_packed_arrays_have_the_cpu_s_bits(gpu, kinds, state_dtype, rounding, name, rng, tmp_path):
    if kinds == ("float32",) and (state_dtype is None or rounding != "master"):
        return  # nothing is packed, or there is nothing to round
    here = packed_arrays(rng, kinds)
    copies = [p.copy() for p in here]
    options = {"state_dtype": state_dtype, "rounding": rounding, "seed": 3, "weight_decay": 0.01}
    cpu, own = PACKED[name](here, **options), PACKED[name](kept_there(copies), **options)
    assert_kept_alike(states(own), states(cpu))
    for i in range(4):
        grads = packed_arrays(rng, kinds)
        cpu_step(cpu, grads)
        own.step(kept_there(grads))
        assert_same(copies, here)
        if i == 1:  # in the middle, to and fro
            own.save(tmp_path / "own.safetensors")
            saved = cpu.state_dict()
            cpu = PACKED[name](here, **options)
            cpu.load(tmp_path / "own.safetensors")
            own.load_state_dict(saved)
    assert_kept_alike(states(own), states(cpu))


@pytest.mark.parametrize("state_dtype", [None, "int8"])
@pytest.mark.parametrize("kinds", [("float16", "float32"), ("bfloat16",)], ids=str)
def test_packed_gradients_accumulate_and_average(gpu, kinds, state_dtype, rng):
    here = packed_arrays(rng, kinds)
    copies = [p.copy() for p in here]
    options = {"state_dtype": state_dtype, "accumulate": 3}
    cpu, own = po.Adam(here, **options), po.Adam(kept_there(copies), **options)
    ours, theirs = po.averages.EMA(own, 0.9), po.averages.EMA(cpu, 0.9)
    for i in range(8):
        grads = packed_arrays(rng, kinds)
        cpu_step(cpu, grads)
        own.step(kept_there(grads))
        assert_same(copies, here)
        assert_same(ours.state_dict()["averages"], theirs.averages)
        assert own.state_dict()["accumulated"]["count"] == (i + 1) % 3
        assert_same(own.state_dict()["accumulated"]["sums"], cpu.state_dict()["accumulated"]["sums"])
        if i == 4:
            own.load_state_dict(cpu.state_dict())
    with ours.applied(), theirs.applied():
        assert_same(copies, here)
    assert_same(copies, here)
    assert_kept_alike(states(own), states(cpu))


@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("kinds", [("float16", "float32"), ("bfloat16",)], ids=str)
def test_packed_arrays_look_ahead(gpu, kinds, state_dtype, rng):
    here = packed_arrays(rng, kinds)
    copies = [p.copy() for p in here]
    options = {"lr": 0.1, "momentum": 0.3, "velocity": "classical", "state_dtype": state_dtype}
    cpu, own = po.SGD(here, **options), po.SGD(kept_there(copies), **options)
    for _ in range(3):
        grads = packed_arrays(rng, kinds)
        cpu_step(cpu, grads)
        own.step(kept_there(grads))
        with cpu.lookahead(), own.lookahead():
            assert_same(copies, here)
        assert_same(copies, here)


@pytest.mark.parametrize("kinds", [("float16", "float32"), ("bfloat16",)], ids=str)
def test_packed_gradients_are_clipped_and_checked(gpu, kinds, rng):
    here = packed_arrays(rng, kinds)
    copies = [p.copy() for p in here]
    options = {"momentum": 0.9, "max_grad_norm": 0.5, "nonfinite": "skip", "lr": 0.1}
    cpu, own = po.SGD(here, **options), po.SGD(kept_there(copies), **options)
    for scale in (1, 1e-3):  # longer and shorter than the limit
        grads = [np.asarray(scale * rng.normal(size=p.shape), p.dtype) for p in here]
        cpu_step(cpu, grads)
        own.step(kept_there(grads))
    for entry, other in zip(states(own).values(), states(cpu).values(), strict=True):
        # The factor has another order of sums, and then is rounded to float32.
        np.testing.assert_allclose(entry["momentum_buffer"], other["momentum_buffer"], rtol=1e-6)
    before = [p.copy() for p in copies]
    grads[1][5] = np.inf
    own.step(kept_there(grads))
    assert own.skipped == 1
    assert_same(copies, before)


def test_packed_steps_do_not_wait(recorder, rng):
    params = packed_arrays(rng, ["float16"])
    own = po.Adam(there(params), state_dtype="int8", accumulate=2)
    po.averages.EMA(own)
    grads = [There(g, 70) for g in packed_arrays(rng, ["float16"])]
    for _ in range(4):
        recorder.log.clear()
        own.step(grads)
        own.step(grads)
    names = [kernel for _, kernel, _ in recorder.all("launch")]
    add, convert = "packed_step<rule_named::sgd, float>", "convert<float>"
    adam = "packed_step<rule_named::adam, float>"
    assert names == [add, add, *[convert] * len(params), adam, add]
    assert not recorder.all("synchronize")


def test_torch_s_bfloat16(recorder, monkeypatch):
    torch, ml_dtypes = pytest.importorskip("torch"), pytest.importorskip("ml_dtypes")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: type("Stream", (), {"cuda_stream": 99}))
    p, q = np.ones(300, ml_dtypes.bfloat16), torch.ones(300, dtype=torch.bfloat16)
    tensors = [doubles.tensor(p), q]
    made = [po.torch.Optimizer([t], po.Adam, lr=0.1, state_dtype="int8") for t in tensors]
    for step in range(3):
        for t, optimizer in zip(tensors, made, strict=True):
            grad = np.linspace(-1, 1, 300).astype(ml_dtypes.bfloat16)
            given = doubles.tensor(grad)
            t.grad = given if t is tensors[0] else torch.from_numpy(grad.view(np.int16)).view(torch.bfloat16)
            optimizer.step()
        if step == 0:
            made[0].load_state_dict(made[1].state_dict())
    assert_same(p.view(np.int16), q.view(torch.int16).numpy())
    assert {at for _, _, at in recorder.all("launch")} == {99}


# ---- state -----------------------------------------------------------------------------------------


def test_checkpoints_move_between_cpu_and_gpu(gpu, rng, tmp_path):
    here = arrays(rng)
    copies = [p.copy() for p in here]
    cpu, own = po.Adam(here, amsgrad=True), po.Adam(there(copies), amsgrad=True)
    grads = arrays(rng)
    own.step(there(grads))
    cpu_step(cpu, grads)
    own.save(tmp_path / "own.safetensors")
    cpu.save(tmp_path / "cpu.safetensors")
    assert (tmp_path / "own.safetensors").read_bytes() == (tmp_path / "cpu.safetensors").read_bytes()
    back = [p.copy() for p in copies]
    from_gpu, from_cpu = po.Adam(back, amsgrad=True), po.Adam(there(copies), amsgrad=True)
    from_gpu.load(tmp_path / "own.safetensors")
    from_cpu.load_state_dict(cpu.state_dict())
    grads = arrays(rng)
    for optimizer, params in ((from_gpu, back), (cpu, here)):
        cpu_step(optimizer, grads)
        assert params is not copies
    from_cpu.step(there(grads))
    assert_same(back, here)
    assert_same(copies, here)
    assert_same(states(from_cpu), states(cpu))


def test_states_that_do_not_begin_with_zero(gpu):
    own = po.Rprop(There(np.ones(3, np.float32)), lr=0.25)
    assert states(own)[0]["step_size"].tolist() == [0.25] * 3
    assert po.ASGD(There(np.ones(3))).averages()[0].tolist() == [0] * 3


@pytest.mark.parametrize("call", [copy.deepcopy, pickle.dumps])
def test_no_copies_of_the_optimizer(emulated, call):
    with pytest.raises(TypeError, match=r"cannot be copied or pickled: save its state_dict\(\)"):
        call(po.Adam(There(np.ones(3))))


# ---- arrays of others ------------------------------------------------------------------------------


def test_streams(recorder, rng):
    """The work is queued on the stream of the gradients; others wait for it, and it for them."""
    params = arrays(rng, shapes=[(3,)] * 3)
    own = po.SGD(there(params))
    own.step(there(arrays(rng, shapes=[(3,)] * 3)))
    recorder.log.clear()
    own.step(
        [There(g, stream) for g, stream in zip(arrays(rng, shapes=[(3,)] * 3), (70, 80, None), strict=True)]
    )
    ((_, _, stream),) = recorder.all("launch")
    assert stream == 70
    order = [(kind, at) for kind, _, at in recorder.all("hold", "record", "launch")]
    assert order == [
        ("hold", 70),  # after all earlier work on these arrays
        ("record", 80), ("hold", 70),
        ("launch", 70),
        ("record", 70), ("hold", 80),
        ("record", 70),
    ]  # fmt: skip
    first, last = recorder.all("hold", "record")[0], recorder.all("hold", "record")[-1]
    assert first[1] == last[1]  # the event that the next step, on whatever stream, waits for
    for given, used in ((0, 1), (2, 2), (None, 1)):
        recorder.log.clear()
        own.step([There(g, given) for g in arrays(rng, shapes=[(3,)] * 3)])
        assert [at for _, _, at in recorder.all("launch")] == [used]
        assert recorder.all("hold")[0][1:] == (first[1], used)


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_others_wait_for_a_step_that_fails(recorder, rng, monkeypatch, max_grad_norm):
    """What has been queued before reads their gradients."""
    own = po.SGD(there(arrays(rng, shapes=[(3,)] * 2)), max_grad_norm=max_grad_norm)
    grads = [There(g, stream) for g, stream in zip(arrays(rng, shapes=[(3,)] * 2), (70, 80), strict=True)]
    own.step(grads)
    recorder.log.clear()

    def launch(kernel, *rest):
        raise RuntimeError("CUDA: it failed")

    monkeypatch.setattr(recorder, "launch", launch, raising=False)
    with pytest.raises(RuntimeError, match="it failed"):
        own.step(grads)
    order = [(kind, at) for kind, _, at in recorder.all("hold", "record")]
    assert order[-3:] == [("record", 70), ("hold", 80), ("record", 70)]


def test_memory_is_taken_and_given_back_whoever_captures(cuda, no_gpu, monkeypatch):
    """Even the first step in ``torch.cuda.graph`` says what is wrong, and ends nothing."""
    monkeypatch.setenv("PYOPTIM_EMULATED_CAPTURE", "global")
    use_cuda(monkeypatch, cuda)
    stream, memory, p = cuda.Stream(), cuda.Memory(8), np.ones(3)
    own = po.SGD(There(p))
    cuda.begin_capture(stream.address)
    cuda.fill(memory.address, 0, 8, stream.address)
    with pytest.raises(RuntimeError, match=r"graph is being captured"):
        own.step(There(np.ones(3), stream.address))
    cuda.Memory(1 << 20)
    graph = cuda.Graph(stream.address)
    graph.launch(stream.address)
    assert Queue(cuda, 0).download(memory.address, np.ones(1)) == 0


@pytest.mark.parametrize("at", [0, 1])
def test_a_capture_of_somebody_s_is_refused_and_goes_on(gpu, rng, at):
    """PyTorch's ``torch.cuda.graph`` around a step, say: of any of the gradients' streams."""
    params = arrays(rng, shapes=[(3,)] * 2)
    own, before = po.Adam(there(params)), [p.copy() for p in params]
    stream, memory = gpu.launcher.Stream(), gpu.launcher.Memory(8)
    streams = [1, 1]
    streams[at] = stream.address
    for captured in (True, False):
        if captured:
            gpu.launcher.begin_capture(stream.address)
        grads = [There(g, s) for g, s in zip(like(rng, params), streams, strict=True)]
        if captured:
            with pytest.raises(RuntimeError, match=r"graph is being captured .* outside of the capture"):
                own.step(grads)
            assert_same(params, before)
            assert all(s["step"] == 0 for s in states(own).values() if "step" in s)
            gpu.launcher.fill(memory.address, 0, 8, stream.address)
            graph = gpu.launcher.Graph(stream.address)  # nothing has spoilt it
            graph.launch(stream.address)
            assert Queue(gpu.launcher, 0).download(memory.address, np.ones(1)) == 0
        else:
            own.step(grads)
            assert any((p != b).all() for p, b in zip(params, before, strict=True))


def test_what_is_copied_is_kept_until_there_has_been_a_wait(recorder):
    """A GPU that reads the processor's memory itself may do so later."""
    queue = Queue(recorder, 0)
    memory, table = queue.allocate(8), Table(queue)

    def put(by, i):
        source = np.array([float(i)])
        kept = weakref.ref(source)
        by(source)
        return kept

    sources = [lambda source: queue.put(memory.address, source), lambda source: table.put(source, 1)]
    for wait in (
        lambda: queue.download(memory.address, np.empty(1)),
        lambda: queue.upload(memory.address, np.ones(1)),
    ):
        kept = [put(by, i) for i, by in enumerate(sources)]
        assert all(source() is not None for source in kept)
        wait()
        assert not any(source() is not None for source in kept)
        table.put(np.zeros(0), 1)  # the next is another one
    recorder.log.clear()
    kept = [put(sources[0], i) for i in range(1000)]
    assert sum(source() is not None for source in kept) < 64
    assert len(recorder.all("synchronize")) == 1000 // 64
    np.testing.assert_array_equal(queue.download(memory.address, np.empty(1)), 999)


def test_values_of_another_stream_are_waited_for(recorder):
    """As results of `ops` are, which have a queue of their own."""
    here, there = Queue(recorder, 0), Queue(recorder, 0)
    there.stream = 70
    to, source = (uploaded(queue, np.full(3, i)) for i, queue in enumerate((here, there)))
    recorder.log.clear()
    to[...] = source
    log, last = recorder.all("hold", "record", "copy"), id(there._last)
    copied = next(i for i, entry in enumerate(log) if entry[0] == "copy")
    assert ("hold", last, 1) in log[:copied]  # after all that has been queued there
    assert ("record", last, 1) in log[copied:]  # before what comes
    assert ("hold", 70) in [(kind, at) for kind, _, at in log[copied:]]
    np.testing.assert_array_equal(to.numpy(), 1)


def test_a_table_that_was_not_copied_is_copied_again(recorder, monkeypatch):
    table, numbers = Table(Queue(recorder, 0)), np.arange(3.0)
    table.put(numbers, 1)
    copy = recorder.copy

    def fail(*rest):
        raise RuntimeError("CUDA: it failed")

    monkeypatch.setattr(recorder, "copy", fail)
    with pytest.raises(RuntimeError, match="it failed"):
        table.put(np.arange(4.0), 1)
    monkeypatch.setattr(recorder, "copy", copy)
    queue = Queue(recorder, 0)
    np.testing.assert_array_equal(queue.download(table.put(numbers, 1), np.empty(3)), numbers)


def test_memory_of_gradients_of_another_queue_is_used_again_after_the_step(recorder):
    """On whatever stream; and it is downloaded after the work on its own."""
    own, made = po.SGD(There(np.ones(3)), nonfinite="skip"), Queue(recorder, 0)
    made.stream = 70
    g = uploaded(made, np.full(3, np.nan))
    own.step(g)
    recorder.log.clear()
    own.step(g)
    assert own.skipped == 2
    assert ("copy", 24, 70) in recorder.log  # to the host, to tell which is not finite
    own = po.SGD(There(np.ones(3)))
    g[...] = np.ones(3)
    own.step(g)
    recorder.log.clear()
    own.step(g)
    log, last = recorder.log, id(made._last)
    launched = next(i for i, entry in enumerate(log) if entry[0] == "launch")
    assert log[launched][2] == 70
    assert ("hold", last, 70) in log[:launched]
    assert ("record", last, 70) in log[launched:]


def test_the_device_of_the_arrays_is_used_and_left(recorder):
    own = po.SGD(OnDevice(np.ones(3), device=2))
    own.step(OnDevice(np.ones(3), device=2))
    recorder.log.clear()
    own.step(OnDevice(np.ones(3), device=2))
    assert [index for _, index, _ in recorder.all("device")] == [2, 0]
    assert [entry[0] for entry in recorder.log if entry[0] in ("device", "launch")] == [
        "device",
        "launch",
        "device",
    ]


def test_dlpack(emulated):
    p, g = np.ones((2, 3), np.float32), Capsule(np.ones((2, 3), np.float32))
    po.SGD([Capsule(p)], lr=0.25).step([g])
    assert p.tolist() == [[0.75] * 3] * 2
    assert g.streams == [1]
    with pytest.raises(ValueError, match=r"params has the strides \(1, 2\), expected a C-contiguous array"):
        po.SGD(Capsule(p.T.copy().T))
    half = p.astype(np.float16)
    po.SGD(Capsule(half), lr=0.25, rounding="nearest").step(Capsule(np.ones((2, 3), np.float16)))
    assert half.tolist() == [[0.5] * 3] * 2
    with pytest.raises(TypeError, match="params has dtype int32, expected float32, float64"):
        po.SGD(Capsule(p.astype(np.int32)))
    with pytest.raises(TypeError, match="x has dtype float16, expected float32 or float64 in"):
        gpu_views.view("x", Capsule(half))


def test_torch_tensors(recorder, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: type("Stream", (), {"cuda_stream": 99}))
    p, g = np.ones((2, 3), np.float32), np.ones((3, 2), np.float32)
    tensor = doubles.tensor(p)
    own = po.SGD({"w": tensor}, lr=0.25)
    version = tensor._version
    own.step({"w": doubles.tensor(g).t()})  # copied
    assert p.tolist() == [[0.75] * 3] * 2
    assert tensor._version > version  # autograd heard of it
    assert {at for _, _, at in recorder.all("launch")} == {99}
    half = doubles.tensor(p).bfloat16()
    assert gpu_views.view("x", half, also=gpu_views.HALF).dtype.name == "bfloat16"
    with pytest.raises(TypeError, match="x has dtype bfloat16, expected float32 or float64"):
        gpu_views.view("x", half)
    with pytest.raises(TypeError, match="params has dtype int32, expected float32, float64, float16 or b"):
        po.SGD(doubles.tensor(p).int())
    with pytest.raises(ValueError, match=r"params has the strides \(1, 3\)"):
        po.SGD(doubles.tensor(p).t())
    with pytest.raises(ValueError, match="overlaps a parameter"):
        own.step({"w": tensor})
    sparse, signs = torch.eye(3).to_sparse(), torch.view_as_complex(torch.ones(3, 2)).conj().imag
    for lazy in (sparse, signs):
        with pytest.raises(TypeError, match="params is a tensor that is not dense in memory"):
            gpu_views.view("params", lazy)
    assert gpu_views._made_contiguous(sparse) is sparse
    assert not gpu_views._made_contiguous(signs).is_neg()
    with torch.no_grad():
        own._params[0].owner.resize_(1, 3)
    with pytest.raises(ValueError, match=r"params\['w'\] has been resized"):
        own.step({"w": doubles.tensor(np.ones((2, 3), np.float32))})


def test_the_torch_optimizer(emulated, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: type("Stream", (), {"cuda_stream": 0}))
    p, q = np.ones(3, np.float32), np.ones(3, np.float32)
    params = [doubles.tensor(p), torch.from_numpy(q)]
    made = [po.torch.Optimizer([param], po.Adam, lr=0.1) for param in params]
    for _ in range(2):
        for param, optimizer in zip(params, made, strict=True):
            grad = np.arange(3, dtype=np.float32)
            param.grad = doubles.tensor(grad) if param is params[0] else torch.from_numpy(grad)
            optimizer.step()
    assert_same(p, q)
    saved, other = (optimizer.state_dict()["state"] for optimizer in made)
    assert torch.equal(saved[0]["exp_avg"], other[0]["exp_avg"])
    made[0].load_state_dict(made[1].state_dict())


# ---- what cannot be --------------------------------------------------------------------------------


def test_mixed_memory_is_refused_before_anything_is_written(emulated, rng):
    a, b = np.ones(3), np.ones(3)
    with pytest.raises(
        TypeError, match=r"params\[0\] is a ndarray in the processor's memory, but params\[1\] is in"
    ):
        po.Adam([a, There(b)])
    with pytest.raises(ValueError, match=r"params\[1\] is on GPU 1, but params\[0\] on 0"):
        po.Adam([OnDevice(a), OnDevice(b, device=1)])
    own, cpu = po.Adam([There(a), There(b)]), po.Adam([a])
    with pytest.raises(
        TypeError, match=r"grads\[1\] is a ndarray in the processor's memory, expected an array in a G"
    ):
        own.step([There(np.ones(3)), np.ones(3)])
    with pytest.raises(TypeError, match=r"grads\[0\] is a There in a GPU's memory, expected a NumPy array"):
        cpu.step([There(np.ones(3))])
    with pytest.raises(ValueError, match=r"grads\[1\] is on GPU 1, expected 0"):
        own.step([There(np.ones(3)), OnDevice(np.ones(3), device=1)])
    assert a.tolist() == b.tolist() == [1] * 3
    assert states(own)[0]["step"] == states(cpu)[0]["step"] == 0


def test_arrays_that_cannot_be(emulated):
    a = np.ones((4, 4), np.float32)
    for array, error, match in (
        (There(a.astype(np.int16)), TypeError, "params has dtype <i2, expected float32, float64, float16"),
        (There(a.astype(">f4")), TypeError, "params has dtype >f4"),
        (There(a.T[1:]), ValueError, r"params has the strides \(4, 16\), expected a C-contiguous array"),
        (There(a, data=(a.ctypes.data, True)), ValueError, "params is read-only"),
        (There(a, mask=There(a)), TypeError, "params is masked"),
        ([There(a), There(a[2:])], ValueError, r"params\[1\] overlaps params\[0\]"),
        (There(a, data=(a.ctypes.data + 2, False)), ValueError, "params is at the address .*, expected"),
    ):
        with pytest.raises(error, match=match):
            po.Adam(array)
    own = po.Adam(There(a))
    for grad, error, match in (
        (There(np.ones(16, np.float32)), ValueError, r"grads has shape \(16,\), expected \(4, 4\)"),
        (There(np.ones((4, 4))), TypeError, "grads has dtype float64, expected float32"),
        (There(np.ones((4, 4), np.float32).T), ValueError, "grads has the strides"),
        (There(a), ValueError, "grads overlaps a parameter or an optimizer state"),
        ([There(a)], TypeError, "grads is a list"),
    ):
        with pytest.raises(error, match=match):
            own.step(grad)
    assert (a == 1).all()
    assert There(a[:, :1]).__cuda_array_interface__["strides"] == (16, 4)
    po.Adam(There(a[:1, :]))  # contiguous, whatever the stride of a single row


def test_memory_that_nobody_uses_is_given_back_before_there_is_none(recorder, monkeypatch):
    queue, left = Queue(recorder, 0), 3 << 20

    class Memory:
        address = 512

        def __init__(self, size):
            nonlocal left
            if size > left:
                raise RuntimeError("CUDA: cudaMalloc: out of memory")
            self.size = size
            left -= size

        def __del__(self):
            nonlocal left
            left += self.size if hasattr(self, "size") else 0

    monkeypatch.setattr(recorder, "Memory", Memory, raising=False)
    kept = queue.pool.take(1 << 20)
    queue.pool.take(2 << 20)
    with pytest.raises(RuntimeError, match="out of memory"):
        queue.capture(lambda: queue.allocate(1 << 20))
    assert left == 0
    queue.allocate(1 << 20)  # and gone at once
    assert left == 2 << 20
    with pytest.raises(RuntimeError, match="out of memory"):
        queue.allocate(3 << 20)
    assert kept.address == 512


def test_what_is_not_for_a_gpu_says_so(emulated):
    a = np.ones((4, 4), np.float32)
    for cls in (*TRUSTING.values(), po.Muon, po.Adafactor):
        with pytest.raises(TypeError, match="16-bit parameters and state_dtype are for the elementwise"):
            cls(There(a), state_dtype="int8")
    with pytest.raises(TypeError, match="params has dtype float64, which does not go with"):
        po.Adam(There(a.astype(float)), state_dtype="int8")
    assert (a == 1).all()


# ---- backends --------------------------------------------------------------------------------------


def test_available_backends(cuda, no_gpu, monkeypatch):
    use_cuda(monkeypatch, cuda)
    use_cupy(monkeypatch, cuda)
    assert po.available_backends()[-2:] == ["cuda", "cupy"]
    assert po.show_config()["cuda"] == "emulated (0.0 GiB, compute capability 0.0; own kernel)"
    assert dispatch.for_device().name == "cuda"  # the better of the two
    assert dispatch.current().name not in dispatch.DEVICE_MODULES
    with po.use_backend("cupy"):
        assert dispatch.for_device().name == "cupy"
    del dispatch._cache["cuda"]
    monkeypatch.setitem(sys.modules, "pyoptim.backends.gpu._cuda", None)
    monkeypatch.delattr(po, "_cuda")
    monkeypatch.delitem(sys.modules, "pyoptim.backends.gpu.cuda")
    monkeypatch.setattr(dispatch, "_device_default", None)
    assert dispatch.for_device().name == "cupy"
    assert po.show_config()["cuda"] == "pretended (2.0 GiB, compute capability 9.0; own kernel)"


def test_the_backend_asked_for_is_used_or_refuses(cuda, no_gpu, monkeypatch):
    use_cuda(monkeypatch, cuda)
    use_cupy(monkeypatch, cuda)
    p = np.ones(3)
    own = po.Adam(There(p))
    for name in ("numpy", "cupy"):
        with (
            po.use_backend(name),
            pytest.raises(po.BackendError, match=f"the '{name}' backend was asked for"),
        ):
            own.step(There(np.ones(3)))
    with (
        po.use_backend("numpy"),
        pytest.raises(po.BackendError, match="does not reach arrays in a GPU's memory"),
    ):
        po.Adam(There(p))
    cpu = po.Adam(p)
    for name in dispatch.DEVICE_MODULES:
        with po.use_backend(name):
            with pytest.raises(po.BackendError, match="these are in the processor's"):
                cpu.step(np.ones(3))
            with pytest.raises(
                po.BackendError, match=f"the '{name}' backend has no activation_forward for arrays"
            ):
                po.ops.activation_forward(p, "relu")
    assert p.tolist() == [1] * 3
    assert not hasattr(dispatch.get("cuda"), "__path__")


WITHOUT = """
import sys
for name in {hidden!r}:
    sys.modules[name] = None
import pyoptim as po
for name in ("cuda", "cupy"):
    try:
        po.use_backend(name).__enter__()
    except po.BackendError as error:
        print(error)
print(po.available_backends(), po.show_config()["cuda"])
class There:
    __cuda_array_interface__ = {{}}
try:
    po.Adam(There())
except po.BackendError as error:
    print(error)
"""


def test_without_either_the_errors_say_what_is_missing(run_python):
    done = run_python(WITHOUT.format(hidden=["pyoptim.backends.gpu._cuda", "cupy"]))
    assert done.returncode == 0, done.stderr
    cuda, cupy, available, there = done.stdout.splitlines()
    assert cuda.startswith(
        "the 'cuda' backend cannot run here: this install has no CUDA module, which is built where"
    )
    assert cupy.startswith(
        "the 'cupy' backend cannot run here: CuPy is not installed (pip install 'pyoptim[cuda]')"
    )
    assert "cu" not in available.split("]")[0]
    assert available.endswith(" None")
    assert there == f"arrays in a GPU's memory need a backend for it: {cuda}; {cupy}"


class Dead:
    @staticmethod
    def why_not():
        return "there is no NVIDIA driver"


def test_without_a_device_the_errors_say_so(cuda, no_gpu, monkeypatch):
    monkeypatch.setattr(po, "_cuda", Dead, raising=False)
    with pytest.raises(ImportError, match="no CUDA device can be used: there is no NVIDIA driver"):
        load(monkeypatch, "cuda")
    for options, reason in (
        ({"driver": 0}, "there is no NVIDIA driver"),
        ({"devices": 0}, "there is no CUDA device"),
        ({"devices": None}, "cudaErrorUnknown"),
    ):
        with pytest.raises(ImportError, match=f"no CUDA device can be used: {reason}"):
            use_cupy(monkeypatch, cuda, **options)
    modules = doubles.cupy(cuda)
    modules["cupy"].cuda.runtime.is_hip = True
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(ImportError, match="built for ROCm"):
        load(monkeypatch, "nvrtc")


# ---- what CuPy compiles ----------------------------------------------------------------------------


def test_what_nvrtc_is_given(cuda, no_gpu, monkeypatch):
    use_cupy(monkeypatch, cuda)
    own = po.Adam(There(np.ones(3, np.float32)))
    own.step(There(np.ones(3, np.float32)))
    own.step(There(np.ones(3, np.float32)))
    ((code, options, names),) = sys.modules["cupy"].compiled  # once
    assert names == ("step<rule_named::adam, float>",)
    assert options == ("--std=c++17", "--fmad=false", f"-I{INCLUDE}")
    assert code.splitlines() == ['#include "cuda/kernels/kernels.cuh"', "using namespace pyoptim::cuda;"]


def test_cupy_adds_no_option_that_changes_numbers(monkeypatch):
    compiler = pytest.importorskip("cupy.cuda.compiler")
    given = []

    class Program:
        def __init__(self, *args, **kwargs):
            pass

        def compile(self, options, log):
            given.extend(options)
            return b"", {}

    monkeypatch.setattr(compiler, "_NVRTCProgram", Program)
    monkeypatch.setattr(compiler, "_get_nvrtc_version", lambda: (12, 0))
    monkeypatch.setattr(compiler, "_get_arch_for_options_for_nvrtc", lambda arch: ("-arch=sm_90", "cubin"))
    compiler.compile_using_nvrtc("", ("--fmad=false",), "90", name_expressions=("a",))
    assert given == ["--fmad=false", "-arch=sm_90", "--device-as-default-execution-space"]


def test_an_install_without_headers(cuda, no_gpu, monkeypatch):
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    for name, module in doubles.cupy(cuda).items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(
        ImportError, match=r"this install has no C\+\+ headers: there is no folder '.*include'"
    ):
        load(monkeypatch, "nvrtc")


def test_nvrtc_compiles_what_it_is_given(cuda, no_gpu, monkeypatch):
    library = nvrtc_library()
    if library is None:
        pytest.skip("needs NVRTC (pip install nvidia-cuda-nvrtc)")
    backend = use_cupy(monkeypatch, cuda)
    program, name = ctypes.c_void_p(), b"step<rule_named::adam, float>"
    source = backend.PROGRAM.encode()
    assert library.nvrtcCreateProgram(ctypes.byref(program), source, b"pyoptim.cu", 0, None, None) == 0
    assert library.nvrtcAddNameExpression(program, name) == 0
    options = [option.encode() for option in (*backend.options(INCLUDE), "-arch=compute_80")]
    assert library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options)) == 0
    size = ctypes.c_size_t()
    assert library.nvrtcGetPTXSize(program, ctypes.byref(size)) == 0
    ptx = ctypes.create_string_buffer(size.value)
    assert library.nvrtcGetPTX(program, ptx) == 0
    library.nvrtcDestroyProgram(ctypes.byref(program))
    assert b".entry" in ptx.value
    assert b"sqrt.rn.f32" in ptx.value
    assert b".ftz" not in ptx.value
    assert b"fma" not in ptx.value.replace(b"fmad", b"")  # the CPU's bits


def test_cupy_imports_without_a_driver(run_python):
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("needs CuPy")
    done = run_python("import pyoptim.backends.gpu.nvrtc")
    assert done.returncode == 0 or "ImportError: no CUDA device can be used: " in done.stderr, done.stderr


# ---- on a GPU --------------------------------------------------------------------------------------


def cupy_array(values):
    cupy = pytest.importorskip("cupy")
    return cupy.asarray(values)


def torch_array(values):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    if values.dtype.name == "bfloat16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16).cuda()
    return torch.from_numpy(values).cuda()


def fetched(array):
    if hasattr(array, "get"):
        return array.get()
    return in_place("array", array.cpu())


@pytest.mark.gpu
@pytest.mark.parametrize("make", [cupy_array, torch_array])
@pytest.mark.parametrize("backend", ["cuda", "cupy"])
@pytest.mark.parametrize("name", [*ELEMENTWISE, *TRUSTING])
def test_a_gpu_has_the_cpu_s_bits(name, backend, make, rng):
    if backend not in po.available_backends():
        pytest.skip(f"needs a GPU: {backend} is not available")
    here = arrays(rng, (np.float32, np.float64), [*SHAPES, (130, 130)])
    with po.use_backend(backend):
        params = [make(p.copy()) for p in here]
        cpu, own = OPTIMIZERS[name](here), OPTIMIZERS[name](params)
        for _ in range(3):
            grads = like(rng, here)
            with po.use_backend("native"):  # whose norms have the same order of sums
                cpu.step(grads)
            own.step([make(g) for g in grads])
        assert_same(states(own), states(cpu))
        for p, expected in zip(params, here, strict=True):
            assert_same(fetched(p), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("make", [cupy_array, torch_array])
@pytest.mark.parametrize("backend", ["cuda", "cupy"])
@pytest.mark.parametrize("kinds", [("float32",), ("float16", "float32"), ("bfloat16",)], ids=str)
@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("rounding", ["master", "stochastic"])
def test_a_gpu_has_the_cpu_s_bits_of_packed_arrays(kinds, state_dtype, rounding, backend, make, rng):
    if backend not in po.available_backends():
        pytest.skip(f"needs a GPU: {backend} is not available")
    if make is cupy_array and "bfloat16" in kinds:
        return  # CuPy has none
    here = packed_arrays(rng, kinds)
    options = {"state_dtype": state_dtype, "rounding": rounding, "accumulate": 2}
    with po.use_backend(backend):
        params = [make(p.copy()) for p in here]
        cpu, own = po.AMSGrad(here, **options), po.AMSGrad(params, **options)
        averages = [po.averages.EMA(optimizer, 0.9) for optimizer in (cpu, own)]
        for _ in range(4):
            grads = packed_arrays(rng, kinds)
            cpu_step(cpu, grads)
            own.step([make(g) for g in grads])
        assert_kept_alike(states(own), states(cpu))
        assert_same(averages[1].state_dict()["averages"], averages[0].averages)
        for p, expected in zip(params, here, strict=True):
            assert_same(fetched(p), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("make", [cupy_array, torch_array])
@pytest.mark.parametrize("backend", ["cuda", "cupy"])
@pytest.mark.parametrize("name", ["Muon", "Adafactor"])
def test_whole_matrices_on_a_gpu(name, backend, make, rng):
    if backend not in po.available_backends():
        pytest.skip(f"needs a GPU: {backend} is not available")
    here = arrays(rng, (np.float32, np.float64), [(5, 3), (300, 700), (700, 130)])
    with po.use_backend(backend):
        params = [make(p.copy()) for p in here]
        cpu, own = OPTIMIZERS[name](here, lr=0.1), OPTIMIZERS[name](params, lr=0.1)
        for _ in range(3):
            grads = like(rng, here)
            cpu_step(cpu, grads)
            own.step([make(g) for g in grads])
        assert_orthogonal_alike([fetched(p) for p in params], here, 3, 0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("make", [cupy_array, torch_array])
@pytest.mark.parametrize("backend", ["cuda", "cupy"])
def test_a_gpu_averages_and_looks_ahead(backend, make, rng):
    if backend not in po.available_backends():
        pytest.skip(f"needs a GPU: {backend} is not available")
    here = arrays(rng, (np.float32, np.float64))
    options = {"lr": 0.1, "momentum": 0.9, "velocity": "classical"}
    with po.use_backend(backend):
        params = [make(p.copy()) for p in here]
        cpu, own = po.SGD(here, **options), po.SGD(params, **options)
        averages = [po.averages.EMA(optimizer, 0.9) for optimizer in (cpu, own)]
        for _ in range(3):
            grads = like(rng, here)
            with cpu.lookahead(), own.lookahead():
                for p, expected in zip(params, here, strict=True):
                    assert_same(fetched(p), expected)
            cpu_step(cpu, grads)
            own.step([make(g) for g in grads])
        assert_same(averages[1].state_dict()["averages"], averages[0].averages)
        with averages[0].applied(), averages[1].applied():
            for p, expected in zip(params, here, strict=True):
                assert_same(fetched(p), expected)
