"""Optimizers on arrays in a GPU's memory: what needs no GPU, with emulated kernels, and what does.

The kernels themselves are tested in test_cuda_kernels.py. Here "device memory" is the host's, and an array is
there because it says so (tests/cuda/doubles.py).
"""

import copy
import ctypes
import importlib.util
import pickle
import sys
from pathlib import Path

import doubles
import numpy as np
import oracles
import pytest
from doubles import Capsule, OnDevice, There
from test_contract import OPTIMIZERS
from test_cuda_build import nvrtc as nvrtc_library

import pyoptim as po
from pyoptim import _device, backends
from pyoptim.backends import device

INCLUDE = Path(__file__).resolve().parents[1] / "csrc" / "include"
ELEMENTWISE = {
    name: cls for name, cls in OPTIMIZERS.items() if name not in ("LARS", "LAMB", "Adafactor", "Muon")
}
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
    for name in backends.DEVICE_MODULES:
        monkeypatch.delitem(backends._cache, name, raising=False)
    monkeypatch.setattr(backends, "_device_default", None)
    monkeypatch.setattr(backends, "_cache", dict(backends._cache))


def use_cuda(monkeypatch, cuda):
    monkeypatch.setenv("PYOPTIM_CUBLAS", "off")  # the machine's would not find the memory
    monkeypatch.setattr(po, "_cuda", cuda, raising=False)
    backends._cache["cuda"] = load(monkeypatch, "cuda", pyoptim___cuda=cuda)
    return backends._cache["cuda"]


def use_cupy(monkeypatch, cuda, **options):
    for name, module in doubles.cupy(cuda, **options).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(Path, "is_file", lambda path: True)  # that the package has its headers
    backends._cache["cupy"] = load(monkeypatch, "nvrtc")
    monkeypatch.setattr(backends._cache["cupy"], "headers", lambda: INCLUDE)
    return backends._cache["cupy"]


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
    params = [
        _device.DeviceArray(4096 * i, (n,), np.dtype("f4"), 0, queue)
        for i, n in enumerate([0, 1, 4096, 4097])
    ]
    of_states = [[_device.DeviceArray(8 * i, (1,), np.dtype("f4"), 0, queue)] * 2 for i in range(4)]
    table, chunks = device.tables(params, of_states, [0, 0, 1, 1])
    assert table.dtype.itemsize == 56
    assert table["param"].tolist() == [0, 4096, 8192, 12288]
    assert table["size"].tolist() == [0, 1, 4096, 4097]
    assert table["row"].tolist() == [0, 0, 1, 1]
    assert table["state"].tolist() == [[8 * i, 8 * i, 0, 0] for i in range(4)]
    assert chunks.tolist() == [(1, 0), (2, 0), (3, 0), (3, 1)]
    assert device.tables([], [], [])[1].tolist() == []


def test_constants_are_the_kernels(cuda):
    assert (cuda.chunk, cuda.step_rows, cuda.row_length) == (
        device.CHUNK,
        device.STEP_ROWS,
        device.ROW_LENGTH,
    )


def test_rows_of_coefficients():
    rows = device.coefficient_rows([(1.0, 2.0), (1e300,)], np.float32)
    assert rows.shape == (device.STEP_ROWS, device.ROW_LENGTH)
    assert rows[0].tolist() == [1, 2] + [0] * 14
    assert rows[1, 0] == np.inf
    assert device.coefficient_rows([(1.0,)] * 9, np.float64).shape == (9, device.ROW_LENGTH)


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
    with pytest.raises(TypeError, match="params has dtype DLPack's 2, 16 bits, expected float32 or float64"):
        po.SGD(Capsule(p.astype(np.float16)))


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
    with pytest.raises(TypeError, match="params has dtype bfloat16, expected float32 or float64"):
        po.SGD(doubles.tensor(p).bfloat16())
    with pytest.raises(ValueError, match=r"params has the strides \(1, 3\)"):
        po.SGD(doubles.tensor(p).t())
    with pytest.raises(ValueError, match="overlaps a parameter"):
        own.step({"w": tensor})
    sparse, signs = torch.eye(3).to_sparse(), torch.view_as_complex(torch.ones(3, 2)).conj().imag
    for lazy in (sparse, signs):
        with pytest.raises(TypeError, match="params is a tensor that is not dense in memory"):
            _device.view("params", lazy)
    assert _device._made_contiguous(sparse) is sparse
    assert not _device._made_contiguous(signs).is_neg()
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
        (There(a.astype(np.float16)), TypeError, "params has dtype <f2, expected float32 or float64"),
        (There(a.astype(">f4")), TypeError, "params has dtype >f4"),
        (There(a.T[1:]), ValueError, r"params has the strides \(4, 16\), expected a C-contiguous array"),
        (There(a, data=(a.ctypes.data, True)), ValueError, "params is read-only"),
        (There(a, mask=There(a)), TypeError, "params is masked"),
        ([There(a), There(a[2:])], ValueError, r"params\[1\] overlaps params\[0\]"),
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


def test_what_is_not_for_a_gpu_says_so(emulated):
    a = np.ones((4, 4), np.float32)
    for name in set(OPTIMIZERS) - set(ELEMENTWISE):
        with pytest.raises(TypeError, match=f"{name} updates .* in a GPU's memory are for the elementwise"):
            OPTIMIZERS[name]([There(a)])
    with pytest.raises(TypeError, match="state_dtype is 'int8', expected None for arrays in a GPU's memory"):
        po.Adam(There(a), state_dtype="int8")
    with pytest.raises(
        TypeError, match="params is in a GPU's memory, expected what is averaged in the processor's"
    ):
        po.averages.EMA(po.Adam(There(a)), decay=0.9)
    own = po.SGD(There(a), momentum=0.9, velocity="classical")
    with (
        pytest.raises(TypeError, match="lookahead moves parameters in the processor's memory"),
        own.lookahead(),
    ):
        pass
    assert (a == 1).all()


# ---- backends --------------------------------------------------------------------------------------


def test_available_backends(cuda, no_gpu, monkeypatch):
    use_cuda(monkeypatch, cuda)
    use_cupy(monkeypatch, cuda)
    assert po.available_backends()[-2:] == ["cuda", "cupy"]
    assert po.show_config()["cuda"] == "emulated (0.0 GiB, compute capability 0.0; own kernel)"
    assert backends.for_device().name == "cuda"  # the better of the two
    assert backends.current().name not in backends.DEVICE_MODULES
    with po.use_backend("cupy"):
        assert backends.for_device().name == "cupy"
    del backends._cache["cuda"]
    monkeypatch.setitem(sys.modules, "pyoptim._cuda", None)
    monkeypatch.delattr(po, "_cuda")
    monkeypatch.delitem(sys.modules, "pyoptim.backends.cuda")
    monkeypatch.setattr(backends, "_device_default", None)
    assert backends.for_device().name == "cupy"
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
    for name in backends.DEVICE_MODULES:
        with po.use_backend(name):
            with pytest.raises(po.BackendError, match="these are in the processor's"):
                cpu.step(np.ones(3))
            with pytest.raises(
                po.BackendError, match=f"the '{name}' backend has no activation_forward for arrays"
            ):
                po.ops.activation_forward(p, "relu")
    assert p.tolist() == [1] * 3
    assert not hasattr(backends.get("cuda"), "__path__")


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
    done = run_python(WITHOUT.format(hidden=["pyoptim._cuda", "cupy"]))
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


def test_what_nvrtc_is_given(cuda, no_gpu, monkeypatch, tmp_path):
    backend = use_cupy(monkeypatch, cuda)
    own = po.Adam(There(np.ones(3, np.float32)))
    own.step(There(np.ones(3, np.float32)))
    own.step(There(np.ones(3, np.float32)))
    ((code, options, names),) = sys.modules["cupy"].compiled  # once
    assert names == ["step<rule_named::adam, float>"]
    assert options == ("--std=c++17", "--fmad=false", f"-I{INCLUDE}")
    comment, *lines = code.splitlines()
    assert lines == ['#include "pyoptim/kernels.cuh"', "using namespace pyoptim::cuda;"]
    # CuPy keeps binaries by the program's text: another version's headers make another one.
    (tmp_path / "pyoptim").mkdir()
    (tmp_path / "pyoptim" / "rules.hpp").write_text("other")
    assert backend.source(tmp_path).splitlines()[1:] == lines
    assert backend.source(tmp_path).splitlines()[0] != comment


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
    source = backend.source(INCLUDE).encode()
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
    assert b"fma" not in ptx.value.replace(b"fmad", b"")  # the CPU's bits


def test_cupy_imports_without_a_driver(run_python):
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("needs CuPy")
    done = run_python("from pyoptim import backends; import pyoptim.backends.nvrtc")
    assert done.returncode == 0 or "ImportError: no CUDA device can be used: " in done.stderr, done.stderr


# ---- on a GPU --------------------------------------------------------------------------------------


def cupy_array(values):
    cupy = pytest.importorskip("cupy")
    return cupy.asarray(values)


def torch_array(values):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    return torch.from_numpy(values).cuda()


@pytest.mark.gpu
@pytest.mark.parametrize("make", [cupy_array, torch_array])
@pytest.mark.parametrize("backend", ["cuda", "cupy"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_gpu_has_the_cpu_s_bits(name, backend, make, rng):
    if backend not in po.available_backends():
        pytest.skip(f"needs a GPU: {backend} is not available")
    here = arrays(rng, (np.float32, np.float64))
    with po.use_backend(backend):
        params = [make(p.copy()) for p in here]
        cpu, own = ELEMENTWISE[name](here), ELEMENTWISE[name](params)
        for _ in range(3):
            grads = like(rng, here)
            cpu_step(cpu, grads)
            own.step([make(g) for g in grads])
        assert_same(states(own), states(cpu))
        for p, expected in zip(params, here, strict=True):
            np.testing.assert_array_equal(p.get() if hasattr(p, "get") else p.cpu().numpy(), expected)
