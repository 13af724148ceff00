"""`ops` on arrays in a GPU's memory: whose they are, on which stream, and what comes back.

What is computed is tested in test_device_layers.py and test_cuda_*.py. Arrays are stand-ins
(tests/support/doubles.py) and kernels emulated, but for the tests marked gpu.
"""

import inspect
import sys
from collections import namedtuple

import numpy as np
import pytest
from support import device, doubles
from support.doubles import Capsule, OnDevice, There

import pyoptim as po
from pyoptim import ops
from pyoptim.arrays.gpu import DeviceArray, empty
from pyoptim.arrays.queue import Queue
from pyoptim.backends.gpu import products
from pyoptim.runtime import dispatch

pytest.importorskip("pyoptim.runtime._native", reason="what is compared with")


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def recorder(cuda, no_gpu, monkeypatch):
    made = doubles.Recorder(cuda)
    monkeypatch.setattr(dispatch, "_device_default", device.use_cuda(monkeypatch, made))
    return made


Kind = namedtuple("Kind", "make, read, type")  # of a NumPy array; the NumPy array of a result; of results


@pytest.fixture(params=["interface", "DLPack", "ours", "cupy", "torch"])
def kind(request, cuda, no_gpu, monkeypatch):
    """Kinds of arrays, and what their results are. CuPy's with its launcher."""
    if request.param == "cupy":
        backend = device.use_cupy(monkeypatch, cuda)
    else:
        backend = device.use_cuda(monkeypatch, cuda)
    monkeypatch.setattr(dispatch, "_device_default", backend)
    ours = DeviceArray

    def download(result):
        return result.numpy()

    if request.param == "cupy":
        ndarray = sys.modules["cupy"].ndarray
        return Kind(ndarray, lambda result: result.array, ndarray)
    if request.param == "torch":
        torch = pytest.importorskip("torch")
        stream = type("Stream", (), {"cuda_stream": 7})
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
        plain = torch.Tensor
        return Kind(doubles.tensor, lambda result: result.as_subclass(plain).numpy(), plain)
    if request.param == "ours":
        queue = Queue(backend.launcher, 0)

        def upload(array):
            made = empty(queue, array.shape, array.dtype)
            made[...] = array
            return made

        return Kind(upload, download, ours)
    return Kind(There if request.param == "interface" else Capsule, download, ours)


def arguments(rng, dtype):
    """Calls of all functions: name, arrays, other arguments; and whether the results have the CPU's bits."""

    def a(*shape):
        return rng.normal(size=shape).astype(dtype)

    def positive(*shape):
        return rng.uniform(0.5, 1.5, size=shape).astype(dtype)

    x, dy = a(6, 5), a(6, 5)
    weight, bias = a(4, 5), a(4)
    yield "dense_forward", [x, weight, bias], {"activation": "relu"}, False
    yield "dense_forward", [x, weight], {}, False
    yield "dense_backward", [a(6, 4), x, weight, positive(6, 4)], {"activation": "tanh"}, False
    yield "activation_forward", [x], {"activation": "leaky_relu", "slope": 0.25}, True
    yield "activation_backward", [dy, x], {"activation": "gelu"}, True
    yield "softmax_forward", [a(2, 3, 4)], {"log": True}, False
    yield "softmax_backward", [a(2, 3, 4), positive(2, 3, 4)], {}, False
    for name in ("dropout_forward", "dropout_backward"):
        yield name, [a(3, 50)], {"p": 0.4, "seed": 3, "step": 2**63}, True
    yield "gaussian_noise", [a(3, 50)], {"std": 0.4, "seed": 3, "step": 2}, True
    running = [a(3), positive(3)]
    yield "batch_norm_forward", [a(4, 3, 2, 2), a(3), a(3), *running], {"training": False}, True
    yield "batch_norm_forward", [a(8, 3), a(3), a(3), *running], {"activation": "relu"}, False
    yield "layer_norm_forward", [a(4, 3, 2)], {"features": (3, 2)}, False
    yield "layer_norm_forward", [a(4, 3)], {"features": 3, "gamma": a(3), "beta": a(3)}, False
    labels, shares = rng.integers(0, 5, 6), positive(6, 5) / 10
    weights = {"class_weight": positive(5), "sample_weight": positive(6)}
    yield "softmax_cross_entropy", [x, labels], {"label_smoothing": 0.1, **weights}, False
    yield "softmax_cross_entropy", [x, shares], {}, False
    yield "kl_divergence", [x, shares], {"temperature": 2.0, "sample_weight": positive(6)}, False
    yield "pointwise_loss", [x, dy], {"kind": "huber", "delta": 0.5}, False
    target = rng.integers(0, 2, (4, 7, 3)).astype(dtype)
    extra = {"pos_weight": positive(3), "sample_weight": positive(4)}
    yield "pointwise_loss", [a(4, 7, 3), target], {"kind": "binary", **extra}, False
    yield "pointwise_loss", [a(3), a(3)], {}, False


def flat(result):
    return [v for part in result for v in flat(part)] if isinstance(result, tuple) else [result]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_function(kind, dtype, rng):
    called = set()
    for name, arrays, others, same in arguments(rng, dtype):
        called.add(name)
        function = getattr(ops, name)
        given = [kind.make(array.copy()) for array in arrays]
        named = {k: kind.make(v) if isinstance(v, np.ndarray) else v for k, v in others.items()}
        mine, cpu = flat(function(*given, **named)), flat(function(*arrays, **others))
        assert len(mine) == len(cpu)
        for a, b in zip(mine, cpu, strict=True):
            if isinstance(b, float | bool):
                assert type(a) is type(b)
                assert a == pytest.approx(b, rel=64 * float(np.finfo(dtype).eps))
                continue
            assert isinstance(a, kind.type)
            a = kind.read(a)
            if same:
                np.testing.assert_array_equal(a, b, strict=True)
            else:
                assert (a.dtype, a.shape) == (b.dtype, b.shape)
                eps = float(np.finfo(dtype).eps)
                np.testing.assert_allclose(a, b, rtol=64 * eps, atol=64 * eps)
    layers = {"batch_norm_backward", "layer_norm_backward"}  # from what the forward pass kept: below
    functions = {name for name in ops.__all__ if hasattr(getattr(ops, name), "__wrapped__")}
    assert called | layers == functions | {"layer_norm_forward", "layer_norm_backward"}


def test_whole_numbers_are_numbers(gpu, rng):
    """CuPy's launcher knows a float from an int by its type alone."""
    x = rng.standard_normal((4, 3))

    def results(of):
        own = [np.zeros(3), np.ones(3)]
        yield ops.layer_norm_forward(of(x), 3, eps=1)[0]
        yield ops.activation_forward(of(x), "leaky_relu", slope=1)
        yield ops.activation_forward(of(x), "hardtanh", low=-1, high=1)
        yield ops.batch_norm_forward(of(x), None, None, *map(of, own), momentum=1, eps=1)[0]
        yield from own
        p = np.ones((4, 3))
        po.Muon(of(p), lr=1, ns_coefficients=(3, -4, 2), eps=1).step(of(x))
        yield p

    there = [r if isinstance(r, np.ndarray) else r.numpy() for r in results(There)]
    with po.use_backend("numpy"):
        here = list(results(np.asarray))
    for got, wanted in zip(there, here, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-10)


def test_norms_keep_what_their_gradients_need(kind, rng):
    dtype = np.float64
    x, dy, gamma, beta = (rng.normal(size=size).astype(dtype) for size in ((8, 3), (8, 3), 3, 3))
    running = np.zeros(3), np.ones(3)

    def both(make):
        given = [make(array) for array in (x, dy, gamma, beta)]
        y, saved = ops.batch_norm_forward(given[0], given[2], given[3], *map(make, running))
        batch = ops.batch_norm_backward(given[1], given[0], given[2], saved, given[3])
        z, kept = ops.layer_norm_forward(given[0], 3, given[2], given[3])
        return [
            y,
            *saved[:2],
            *batch,
            z,
            *kept,
            *ops.layer_norm_backward(given[1], given[0], 3, given[2], kept),
        ]

    for a, b in zip(both(kind.make), both(np.copy), strict=True):
        np.testing.assert_allclose(kind.read(a), b, rtol=1e-12, atol=1e-12)


def test_running_statistics_are_updated_in_place(kind, rng):
    x, dtype = rng.normal(size=(8, 3)), np.float64
    statistics = [np.zeros(3, dtype), np.ones(3, dtype)]
    there = [kind.make(array.copy()) for array in statistics]
    versions = [getattr(array, "_version", 0) for array in there]
    ops.batch_norm_forward(kind.make(x), None, None, *there, training=False)
    assert [getattr(array, "_version", 0) for array in there] == versions
    ops.batch_norm_forward(kind.make(x), None, None, *there)
    ops.batch_norm_forward(x, None, None, *statistics)
    for a, b in zip(there, statistics, strict=True):
        values = a.array if hasattr(a, "array") else kind.read(a)
        np.testing.assert_allclose(values, b, rtol=1e-13)
    if hasattr(there[0], "_version"):  # PyTorch's autograd heard of it
        assert [array._version for array in there] > versions


def test_empty_arrays(kind):
    for shape in ((0, 3), (3, 0)):
        x = np.zeros(shape)
        y = ops.activation_forward(kind.make(x), "relu")
        assert kind.read(y).shape == shape
        assert kind.read(ops.softmax_forward(kind.make(x))).shape == shape
    dx, dweight, dbias = ops.dense_backward(
        *map(kind.make, (np.zeros((0, 2)), np.zeros((0, 3)), np.ones((2, 3))))
    )
    assert kind.read(dx).shape == (0, 3)
    assert (kind.read(dweight) == 0).all()
    assert (kind.read(dbias) == 0).all()


def test_what_is_not_contiguous_is_copied_by_its_library(recorder, monkeypatch, rng):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: type("Stream", (), {"cuda_stream": 0}))
    x = rng.normal(size=(2, 3, 4, 5))
    last = doubles.tensor(x).to(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    y, _ = ops.batch_norm_forward(last, None, None, None, None)
    np.testing.assert_allclose(
        y.as_subclass(torch.Tensor).numpy(), ops.batch_norm_forward(x, None, None, None, None)[0], atol=1e-13
    )
    statistics = doubles.tensor(np.ones((3, 2))).t()[0]  # a copy would be updated
    assert statistics.is_contiguous() is False
    with pytest.raises(ValueError, match="running_mean has the strides"):
        ops.batch_norm_forward(last, None, None, statistics, statistics)
    with pytest.raises(ValueError, match="x has the strides"):
        ops.activation_forward(There(x.T), "relu")


@pytest.mark.parametrize("integers", [np.int8, np.uint8, np.int16, np.int32, np.uint32, np.uint64])
def test_labels_are_of_any_integers(kind, rng, integers):
    logits, labels = rng.normal(size=(3, 4)), np.array([0, 3, 1])
    expected = ops.softmax_cross_entropy(kind.make(logits), kind.make(labels))
    loss, dlogits = ops.softmax_cross_entropy(kind.make(logits), kind.make(labels.astype(integers)))
    assert loss == expected[0]
    np.testing.assert_array_equal(kind.read(dlogits), kind.read(expected[1]))


def test_integers_are_for_labels_alone(kind, rng):
    logits, labels = rng.normal(size=(3, 4)), np.array([0, 3, 1])
    ops.softmax_cross_entropy(kind.make(logits), kind.make(labels))
    with pytest.raises(TypeError, match=r"x has dtype .*, expected float32 or float64"):
        ops.softmax_forward(kind.make(labels))
    with pytest.raises(
        TypeError, match=r"labels has dtype .*, expected float32, float64, bool, int8, .* or uint64"
    ):
        ops.softmax_cross_entropy(There(logits), There(labels.astype(np.complex64)))
    loss, dlogits = ops.softmax_cross_entropy(kind.make(logits), kind.make(np.array([0, 4, 1])))
    assert np.isnan(loss)
    assert np.isnan(kind.read(dlogits)).all(1).tolist() == [False, True, False]


def test_arrays_of_the_processor_cost_no_look_at_the_signature(monkeypatch):
    """By position or keyword: of small arrays it would be the most."""
    monkeypatch.setattr(inspect.Signature, "bind", None)
    x, weight = np.ones((2, 3)), np.ones((4, 3))
    for y in (ops.dense_forward(x, weight), ops.dense_forward(x=x, weight=weight)):
        np.testing.assert_array_equal(y, np.full((2, 4), 3.0))


# ---- streams ---------------------------------------------------------------------------------------


def test_work_is_on_the_stream_of_the_first_array(recorder):
    x = np.ones((2, 3))
    for told, used in ((70, 70), (0, 1), (None, 1), (2, 2)):
        recorder.log.clear()
        y = ops.activation_forward(There(x, told), "relu")
        assert {stream for _, _, stream in recorder.all("hold", "launch")} == {used}
        assert not recorder.all("synchronize")
        assert y.__cuda_array_interface__["stream"] == used


def test_other_streams_are_waited_for_and_wait(recorder):
    x, weight = np.ones((2, 3)), np.ones((4, 3))
    ops.dense_forward(There(x, 70), There(weight, 80))
    recorder.log.clear()
    ops.dense_forward(There(x, 70), There(weight, 80))
    order = recorder.all("hold", "record", "launch")
    (at,) = [i for i, entry in enumerate(order) if entry[0] == "launch"]
    events = {"before": order[:at], "after": order[at + 1 :]}
    last = order[0][1]  # the event of all that went before
    assert order[0] == ("hold", last, 70)
    assert [(what, stream) for what, event, stream in events["before"] if event != last] == [
        ("record", 80), ("hold", 70)
    ]  # fmt: skip
    assert [(what, stream) for what, event, stream in events["after"] if event != last] == [
        ("record", 70), ("hold", 80)
    ]  # fmt: skip
    assert order[-1] == ("record", last, 70)


def test_all_calls_have_one_order_and_one_pool(recorder):
    """What a call gives back, another stream's may take: after it."""
    x = np.ones(3)
    address = ops.activation_forward(There(x, 70), "relu").address
    recorder.log.clear()
    assert ops.activation_forward(There(x, 80), "relu").address == address
    (first, *_), last = recorder.all("hold"), recorder.all("record")[-1]
    assert first[2] == last[2] == 80
    assert first[1] == last[1]


def test_arrays_of_our_own_bring_their_order(recorder):
    queue = Queue(recorder, 0)
    queue.stream = 90
    x = empty(queue, (3,), np.float64)
    x[...] = 1
    recorder.log.clear()
    y = ops.activation_forward(x, "relu")
    assert y.numpy().tolist() == [1] * 3
    assert id(queue._last.event) in [event for what, event, at in recorder.all("hold") if at == 90]
    assert id(queue._last.event) in [event for what, event, at in recorder.all("record") if at == 90]


def test_the_device_of_the_arrays_is_used_and_left(recorder):
    x = OnDevice(np.ones(3), device=2)
    ops.activation_forward(x, "relu")
    recorder.log.clear()
    assert ops.activation_forward(x, "relu").device == 2
    assert recorder.current == 0
    assert recorder.all("device")[0][1] == 2


# ---- what cannot be --------------------------------------------------------------------------------


def test_mixed_memory(recorder):
    x, weight, bias = np.ones((2, 3)), np.ones((4, 3)), np.ones(4)
    for call, message in (
        (
            lambda: ops.dense_forward(There(x), weight),
            "weight is a ndarray in the processor's memory, but x",
        ),
        (
            lambda: ops.dense_forward(x, There(weight)),
            "weight is a There in a GPU's memory, expected a",
        ),
        (
            lambda: ops.dense_forward(x=x, weight=There(weight)),
            "weight is a There in a GPU's memory, expected a",
        ),
        (lambda: ops.dense_forward(There(x), There(weight), bias), "bias is a ndarray in the processor's"),
        (
            lambda: ops.softmax_cross_entropy(There(x), There(np.zeros(2, int)), class_weight=[1, 1, 1]),
            "class_weight is a list in the processor's memory, but logits is in a GPU's",
        ),
        (
            lambda: ops.batch_norm_backward(There(x), There(x), None, ops.SavedNorm(bias, bias, True)),
            "saved.mean is a ndarray in the processor's memory, but dy is in a GPU's",
        ),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    with pytest.raises(ValueError, match="weight is on GPU 1, but x on 0: expected all on one"):
        ops.dense_forward(OnDevice(x), OnDevice(weight, device=1))
    assert not recorder.all("launch")


def test_shapes_and_dtypes(recorder):
    x, weight = There(np.ones((2, 3))), There(np.ones((4, 3)))
    for call, error, message in (
        (
            lambda: ops.dense_forward(x, There(np.ones((4, 2)))),
            ValueError,
            r"weight has shape \(4, 2\)",
        ),
        (lambda: ops.dense_forward(x, There(np.ones((4, 3), "f4"))), TypeError, "weight has dtype float32"),
        (lambda: ops.dense_forward(There(np.ones(3)), weight), ValueError, "x has 1 dimensions"),
        (lambda: ops.dense_forward(x), TypeError, "missing 1 required positional argument: 'weight'"),
        (
            lambda: ops.dense_forward([x], weight),
            TypeError,
            "x is a list in the processor's memory",
        ),
        (lambda: ops.dense_forward("x", "weight"), TypeError, "x is a str, expected a NumPy array"),
        (
            lambda: ops.softmax_cross_entropy(x, There(np.zeros(3, int))),
            ValueError,
            r"labels has shape \(3,\), expected \(2,\)",
        ),
        (
            lambda: ops.softmax_cross_entropy(x, There(np.zeros(2, int)), sample_weight=There(np.ones(3))),
            ValueError,
            r"sample_weight has shape \(3,\), expected \(2,\)",
        ),
        (
            lambda: ops.pointwise_loss(x, There(np.ones((2, 3))), "binary", pos_weight=There(np.ones(2))),
            ValueError,
            r"pos_weight has shape \(2,\), expected \(3,\)",
        ),
        (lambda: ops.pointwise_loss(There(np.ones(0)), There(np.ones(0))), ValueError, "prediction is empty"),
    ):
        with pytest.raises(error, match=message):
            call()
    assert not recorder.all("launch")


def test_what_is_updated_must_be_writeable_and_apart(recorder):
    x, mean = There(np.ones((4, 3))), np.zeros(3)
    frozen = There(mean, data=(mean.ctypes.data, True))
    with pytest.raises(ValueError, match="running_mean is read-only, expected a writeable array"):
        ops.batch_norm_forward(x, None, None, frozen, There(np.ones(3)))
    with pytest.raises(ValueError, match="running_var overlaps running_mean, expected separate memory"):
        ops.batch_norm_forward(x, None, None, There(mean), There(mean))
    assert not recorder.all("launch")
    ops.batch_norm_forward(x, None, None, frozen, There(np.ones(3)), training=False)


def test_the_backend_asked_for_is_used_or_refuses(recorder):
    with po.use_backend("numpy"), pytest.raises(po.BackendError, match="the 'numpy' backend was asked for"):
        ops.activation_forward(There(np.ones(3)), "relu")
    with po.use_backend("cuda"):
        assert ops.activation_forward(There(np.ones(3)), "relu").numpy().tolist() == [1] * 3


# ---- on a GPU --------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("make", [device.cupy_array, device.torch_array])
@pytest.mark.parametrize("backend", ["cuda", "cupy"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_on_a_gpu(backend, make, dtype, rng):
    if backend not in po.available_backends():
        pytest.skip(f"needs a GPU: {backend} is not available")
    for name, arrays, others, same in arguments(rng, dtype):
        function = getattr(ops, name)
        named = {k: make(v) if isinstance(v, np.ndarray) else v for k, v in others.items()}
        cpu = flat(function(*(array.copy() for array in arrays), **others))
        with po.use_backend(backend):
            given = [make(array) for array in arrays]
            mine = flat(function(*given, **named))
        for a, b in zip(mine, cpu, strict=True):
            if isinstance(b, float | bool):
                assert a == pytest.approx(b, rel=64 * float(np.finfo(dtype).eps))
                continue
            assert type(a) is type(given[0])
            a = a.get() if hasattr(a, "get") else a.cpu().numpy()
            if same:
                np.testing.assert_array_equal(a, b, strict=True)
            else:
                eps = float(np.finfo(dtype).eps)
                np.testing.assert_allclose(a, b, rtol=64 * eps, atol=64 * eps)


@pytest.mark.gpu
@pytest.mark.parametrize("by", ["cuBLASLt", "our own kernel"])
def test_products_on_a_gpu(dtype, by, rng, monkeypatch):
    """Shapes that lie anywhere, forward and backward."""
    if "cuda" not in po.available_backends():
        pytest.skip("needs a GPU: cuda is not available")
    torch = pytest.importorskip("torch")
    if by == "cuBLASLt":
        monkeypatch.setattr(products, "_OWN", 0)
    else:
        monkeypatch.setattr(products, "library_of", lambda queue: None)
    eps = float(np.finfo(dtype).eps)

    def check(y, exact, sizes, terms):
        assert (abs(y.cpu().numpy() - exact) <= (terms + 2) * eps * sizes).all()

    shapes = [(1, 1, 1), (33, 65, 31), (128, 784, 256), (1000, 3, 7), (128, 128, 10), (10, 784, 256)]
    for batch, inside, outside in [*shapes, (4096, 30, 2)]:
        x, weight = rng.normal(size=(batch, inside)), rng.normal(size=(outside, inside))
        bias, dy = rng.normal(size=outside), rng.normal(size=(batch, outside))
        there = [torch.from_numpy(np.append(0, a).astype(dtype)).cuda()[1:] for a in (x, weight, bias, dy)]
        given = there[0].view(batch, inside), there[1].view(outside, inside)
        slope = there[3].view(batch, outside)
        x, weight, bias, dy = (a.cpu().numpy().astype(float) for a in (*given, there[2], slope))
        for activation in (None, "relu"):
            with po.use_backend("cuda"):
                y = ops.dense_forward(*given, there[2], activation)
            exact = x @ weight.T + bias
            sizes = abs(x) @ abs(weight.T) + abs(bias)
            check(y, exact if activation is None else np.maximum(exact, 0), sizes, inside)
        with po.use_backend("cuda"):
            dx, dweight, dbias = ops.dense_backward(slope, *given)
        check(dx, dy @ weight, abs(dy) @ abs(weight), outside)
        check(dweight, dy.T @ x, abs(dy.T) @ abs(x), batch)
        check(dbias, dy.sum(0), abs(dy).sum(0), batch)
