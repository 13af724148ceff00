"""Layers and losses on arrays in a GPU's memory: the functions of its backends, with emulated kernels.

Against the compiled CPU kernels: elementwise results have their bits. Sums are held against float64, with
the bounds of test_cuda_*.py, where the kernels are tested by themselves.
"""

import ctypes
import math
import sys

import numpy as np
import pytest
from oracles import layers as layer_oracles
from oracles import losses as loss_oracles
from support import device, doubles, emulator
from support.launcher import LANE, NORM_SHAPES, SIZES, bound, same, special

import pyoptim as po
from pyoptim.arrays import gpu
from pyoptim.arrays.queue import Queue
from pyoptim.backends.gpu import muon, products
from pyoptim.backends.gpu.cublaslt import Blas
from pyoptim.formulas import activations
from pyoptim.formulas.losses import POINTWISE
from pyoptim.formulas.norms import NormOptions
from pyoptim.runtime import dispatch

_native = pytest.importorskip("pyoptim.runtime._native", reason="what is compared with")
native = dispatch.get("native")
KINDS = list(_native.activation_kinds())


@pytest.fixture(scope="session")
def cublaslt(tmp_path_factory):
    """The path of a libcublasLt that works on the host's memory."""
    if reason := emulator.why_not():
        pytest.skip(reason)
    return str(emulator.build_cublaslt(tmp_path_factory.mktemp("cublaslt")))


class Device:
    """A backend, and arrays that come from and go to its memory."""

    def __init__(self, backend):
        self.backend, self.queue = backend, Queue(backend.launcher, 0)

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def empty(self, shape, dtype, offset=0):
        """``offset``: elements by which it misses an address that is a multiple of 16."""
        size = math.prod(shape)
        array = gpu.empty(self.queue, (size + offset,), dtype)[offset:].reshape(tuple(shape))
        array[...] = np.full(shape, -7, dtype)
        return array

    def put(self, values, offset=0):
        if values is None:
            return None
        array = self.empty(values.shape, values.dtype, offset)
        array[...] = values
        return array


PRODUCTS = ["cuda", "cublaslt", "cupy"]


@pytest.fixture(params=["cuda", "cupy"])
def dev(request, cuda, no_gpu, monkeypatch):
    """The emulated device by either launcher; or with products by cuBLASLt."""
    use = device.use_cupy if request.param == "cupy" else device.use_cuda
    backend = use(monkeypatch, cuda)
    if request.param == "cublaslt":
        monkeypatch.setenv("PYOPTIM_CUBLAS", request.getfixturevalue("cublaslt"))
    with po.use_backend(backend.name):
        yield Device(backend)


@pytest.fixture
def rng():
    return np.random.default_rng(17)


DENSE = [(0, 3, 4), (1, 1, 1), (5, 0, 3), (33, 65, 31), (3, 4, 2048), (300, 20, 33)]


@pytest.mark.parametrize("dev", PRODUCTS, indirect=True)
@pytest.mark.parametrize("activation", [None, "relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("shape", DENSE, ids=str)
def test_dense(dev, dtype, shape, activation, rng):
    batch, inside, outside = shape
    x, weight = (
        rng.normal(size=(batch, inside)).astype(dtype),
        rng.normal(size=(outside, inside)).astype(dtype),
    )
    eps = np.finfo(dtype).eps
    for i, bias in enumerate((rng.normal(size=outside).astype(dtype), None)):
        y = dev.empty((batch, outside), dtype, i)
        dev.dense_forward(dev.put(x, i), dev.put(weight), dev.put(bias, 1), activation, y)
        exact = layer_oracles.dense(x.astype(float), weight.astype(float), bias, activation)
        sizes = abs(x).astype(float) @ abs(weight.T) + (0 if bias is None else abs(bias))
        allowed = (inside + 2) * eps * sizes
        if activation in ("sigmoid", "tanh"):  # whose slopes are at most 1
            allowed += 4 * eps
        assert (abs(y.numpy() - exact) <= allowed).all()


@pytest.mark.parametrize("dev", PRODUCTS, indirect=True)
@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
@pytest.mark.parametrize("shape", DENSE, ids=str)
def test_dense_backward(dev, dtype, shape, activation, rng):
    batch, inside, outside = shape
    x, weight, dy, y = (
        rng.normal(size=size).astype(dtype)
        for size in ((batch, inside), (outside, inside), (batch, outside), (batch, outside))
    )
    dx, dweight = dev.empty(x.shape, dtype), dev.empty(weight.shape, dtype, 1)
    dbias = dev.empty((outside,), dtype)
    given = dev.put(dy), dev.put(x), dev.put(weight)
    dev.dense_backward(*given, None if activation is None else dev.put(y), activation, dx, dweight, dbias)
    dz = dy.copy()
    if activation is not None:
        native.activation_backward(activation, dy, y, dz)
    eps, wide = np.finfo(dtype).eps, dz.astype(float)
    for got, a, b in ((dweight, wide.T, x), (dx, wide, weight), (dbias, wide.T, np.ones(batch))):
        allowed = (a.shape[1] + 2) * eps * (abs(a) @ abs(b).astype(float))
        assert (abs(got.numpy() - a @ b) <= allowed).all()
    dev.dense_backward(*given, None, None, None, None, None)  # nothing that is wanted


@pytest.mark.parametrize("dev", PRODUCTS, indirect=True)
def test_relu_keeps_nan(dev):
    x, y = dev.put(np.array([[np.nan], [-1.0]], np.float32)), dev.empty((2, 1), np.float32)
    dev.dense_forward(x, dev.put(np.ones((1, 1), np.float32)), None, "relu", y)
    np.testing.assert_array_equal(y.numpy(), [[np.nan], [0]])


@pytest.mark.parametrize("kind", KINDS)
def test_activations(dev, dtype, kind, rng):
    for i, n in enumerate(SIZES):
        x, dy = special(rng, n, dtype), rng.normal(size=n).astype(dtype)
        y, expected = dev.empty((n,), dtype, i % 2), np.empty_like(x)
        dev.activation_forward(kind, dev.put(x, i % 3), y, 0.75, 1.5)
        native.activation_forward(kind, x, expected, 0.75, 1.5)
        assert same(y.numpy(), expected)
        kept = x if activations.ACTIVATIONS[kind].keeps_input else expected
        dx, expected_dx = dev.put(dy), np.empty_like(x)
        dev.activation_backward(kind, dx, dev.put(kept), dx, 0.75, 1.5)
        native.activation_backward(kind, dy, kept, expected_dx, 0.75, 1.5)
        assert same(dx.numpy(), expected_dx)


@pytest.mark.parametrize("n", [0, 1, 63, 65, 1023, 1025, 3000])
def test_dropout_and_noise(dev, dtype, n, rng):
    x, seed, step = rng.normal(size=n).astype(dtype), 0x123456789ABCDEF0, 0xFEDCBA9876543210
    for name, number in (("dropout", 0.3), ("dropout", 1 - 2.0**-40), ("gaussian_noise", 0.25)):
        y, expected = dev.empty((n,), dtype), np.empty_like(x)
        getattr(dev, name)(dev.put(x, 1), number, seed, step, y)
        getattr(native, name)(x, number, seed, step, expected)
        assert same(y.numpy(), expected)


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (9, 10), (8, 33), (3, 300)], ids=str)
def test_softmax(dev, dtype, shape, log, rng):
    x, dy = rng.normal(0, 5, size=shape).astype(dtype), rng.normal(size=shape).astype(dtype)
    y, dx, eps = dev.empty(shape, dtype), dev.empty(shape, dtype), np.finfo(dtype).eps
    dev.softmax_forward(log, dev.put(x), y)
    dev.softmax_backward(log, dev.put(dy), y, dx)
    expected, expected_dx = np.empty_like(x), np.empty_like(x)
    native.softmax_forward(log, x, expected)
    np.testing.assert_allclose(y.numpy(), expected, rtol=16 * eps, atol=32 * eps if log else 0)
    native.softmax_backward(log, dy, y.numpy(), expected_dx)
    size = abs(dy) + abs(dy).sum(1, keepdims=True)
    assert (abs(dx.numpy() - expected_dx) <= 16 * eps * size).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("shape", [(1, 2), (9, 10), (17, 40)], ids=str)
def test_cross_entropy(dev, dtype, shape, soft, weighted, smoothing, rng):
    rows, classes = shape
    logits, labels = rng.normal(0, 3, size=shape).astype(dtype), rng.integers(0, classes, rows)
    shares = rng.uniform(size=shape)
    target = (shares / shares.sum(1, keepdims=True)).astype(dtype) if soft else labels
    sample_weight = rng.uniform(1, 2, rows).astype(dtype) if weighted else None
    class_weight = rng.uniform(1, 2, classes).astype(dtype) if weighted else None
    expected = np.empty_like(logits)
    native.softmax_cross_entropy(logits, target, expected, sample_weight, class_weight, smoothing)
    exact = loss_oracles.cross_entropy(logits.astype(float), target, class_weight, smoothing, sample_weight)
    given = dev.put(logits), dev.put(target)
    weights = dev.put(sample_weight), dev.put(class_weight)
    for dx in (dev.empty(shape, dtype), None):
        loss = dev.softmax_cross_entropy(*given, dx, *weights, smoothing)
        assert loss.shape == ()
        assert abs(float(loss) - exact) <= 8 * np.finfo(dtype).eps * (abs(logits).max() + exact)
        if dx is not None:
            allowed = 16 * np.finfo(dtype).eps * abs(expected).max()
            np.testing.assert_allclose(dx.numpy(), expected, rtol=0, atol=allowed)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("shape", [(1, 2), (9, 10), (17, 40)], ids=str)
def test_kl_divergence(dev, dtype, shape, temperature, weighted, rng):
    logits, shares = rng.normal(0, 3, size=shape).astype(dtype), rng.uniform(size=shape)
    shares[0, 0] = 0
    target = (shares / shares.sum(1, keepdims=True)).astype(dtype)
    sample_weight = rng.uniform(1, 2, shape[0]).astype(dtype) if weighted else None
    expected = np.empty_like(logits)
    native.kl_divergence(logits, target, expected, sample_weight, temperature)
    wide = logits.astype(float), target.astype(float)
    exact = loss_oracles.kl_divergence(*wide, temperature, sample_weight)
    for dx in (dev.empty(shape, dtype), None):
        loss = dev.kl_divergence(dev.put(logits), dev.put(target), dx, dev.put(sample_weight), temperature)
        # Rounded are the logits' differences, each of which a row's loss has T times its share of.
        sizes = 2 * abs(logits).max() * temperature * (1 if sample_weight is None else sample_weight.max())
        assert abs(float(loss) - exact) <= 8 * np.finfo(dtype).eps * (sizes + exact)
        if dx is not None:
            allowed = 16 * np.finfo(dtype).eps * abs(expected).max()
            np.testing.assert_allclose(dx.numpy(), expected, rtol=0, atol=allowed)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("kind", POINTWISE)
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (70, 61)], ids=str)
def test_pointwise_losses(dev, dtype, shape, kind, weighted, rng):
    x, target = rng.normal(size=shape).astype(dtype), rng.integers(0, 2, size=shape).astype(dtype)
    parameter = rng.uniform(0.5, 2, shape[1]).astype(dtype) if weighted else 0.75
    sample_weight = rng.uniform(1, 2, shape[0]).astype(dtype) if weighted else None
    dx, expected = dev.empty(shape, dtype), np.empty_like(x)
    native.pointwise_loss(kind, x, target, expected, sample_weight, parameter)
    given = dev.put(parameter) if weighted else parameter
    exact = loss_oracles.pointwise(kind, x, target, parameter, sample_weight)
    for gradient in (dx, None):
        loss = dev.pointwise_loss(kind, dev.put(x), dev.put(target), gradient, dev.put(sample_weight), given)
        rounding = 8 * np.finfo(dtype).eps + x.size * np.finfo(float).eps
        np.testing.assert_allclose(float(loss), exact, rtol=rounding)
    assert same(dx.numpy(), expected)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(0, 3, 1), (3, 2, 0), *NORM_SHAPES], ids=str)
def test_batch_norm_in_evaluation_has_the_cpu_s_bits(dev, dtype, shape, affine, relu, rng):
    channels = shape[1]
    x, dy = rng.normal(3, 2, size=shape).astype(dtype), rng.normal(size=shape).astype(dtype)
    gamma, beta = rng.normal(size=(2, channels)).astype(dtype) if affine else (None, None)
    running = rng.uniform(1, 2, size=(2, channels)).astype(dtype)
    y, saved, expected, expected_saved = (
        dev.empty(shape, dtype), [dev.empty((channels,), dtype) for _ in range(2)],
        np.empty_like(x), np.empty((2, channels), dtype),
    )  # fmt: skip
    kept = [dev.put(row) for row in running]
    options = NormOptions(training=False, relu=relu)
    affine = dev.put(gamma), dev.put(beta)
    dev.norm_forward(dev.put(x, 1), affine, kept, options, y, saved)
    native.norm_forward(x, (gamma, beta), tuple(running), options, expected, tuple(expected_saved))
    assert same(y.numpy(), expected)
    for a, b in zip((*saved, *kept), (*expected_saved, *running), strict=True):
        assert same(a.numpy(), b)
    dx, expected_dx = dev.empty(shape, dtype), np.empty_like(x)
    sums, expected_sums = [dev.empty((channels,), dtype) for _ in range(2)], np.empty((2, channels), dtype)
    given = dev.put(dy), dev.put(x), affine, (*saved, False), relu
    dev.norm_backward(*given, (dx, *sums))
    expected_saved = *expected_saved, False
    native.norm_backward(dy, x, (gamma, beta), expected_saved, relu, (expected_dx, *expected_sums))
    assert same(dx.numpy(), expected_dx)
    dev.norm_backward(*given, (None, *sums))
    dz = np.where(expected > 0, dy, 0) if relu else dy
    centred = dz * (x - expected_saved[0][:, None]) * expected_saved[1][:, None]
    for got, terms in zip(sums, (centred, dz), strict=True):
        assert (abs(got.numpy() - terms.sum((0, 2), dtype=float)) <= bound(dtype, terms)).all()


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("shape", NORM_SHAPES, ids=str)
def test_batch_norm_in_training(dev, dtype, shape, relu, running, rng):
    channels, count, eps = shape[1], shape[0] * shape[2], np.finfo(dtype).eps
    x, dy = rng.normal(3, 2, size=shape).astype(dtype), rng.normal(size=shape).astype(dtype)
    gamma, beta = rng.normal(size=(2, channels)).astype(dtype)
    before = rng.uniform(1, 2, size=(2, channels)).astype(dtype)
    kept = [dev.put(row) for row in before] if running else [None, None]
    y, (mean, inv_std) = dev.empty(shape, dtype), (dev.empty((channels,), dtype) for _ in range(2))
    given = dev.put(x), (dev.put(gamma), dev.put(beta))
    options = NormOptions(momentum=0.3, training=running, relu=relu)
    dev.norm_forward(*given, kept, options, y, (mean, inv_std))
    wide = x.astype(float)
    exact, variance, spread = wide.mean((0, 2)), wide.var((0, 2)), np.ptp(wide, (0, 2))
    m, s = mean.numpy(), inv_std.numpy()
    assert (abs(m - exact) <= LANE * eps * spread + 2 * eps * abs(exact)).all()
    limit = 1 / np.sqrt(variance + 1e-5)
    assert (abs(s - limit) <= limit * (LANE * eps * spread**2 / variance + 2 * eps)).all()
    if running:
        for ours, old, new in zip(kept, before, (exact, variance * count / (count - 1)), strict=True):
            expected = 0.7 * old.astype(float) + 0.3 * new
            np.testing.assert_allclose(ours.numpy(), expected, rtol=4 * LANE * eps)
    z = (x - m[:, None]) * (gamma * s)[:, None] + beta[:, None]
    assert same(y.numpy(), np.where(z > 0, z, dtype(0)) if relu else z)

    dx, (dgamma, dbeta) = dev.empty(shape, dtype), (dev.empty((channels,), dtype) for _ in range(2))
    dev.norm_backward(dev.put(dy), *given, (mean, inv_std, True), relu, (dx, dgamma, dbeta))
    dz = np.where(z > 0, dy, 0) if relu else dy
    normal, scale = (x - m[:, None]) * s[:, None], (gamma * s)[:, None].astype(float)
    sums = [dgamma.numpy()[:, None], dbeta.numpy()[:, None]]
    exact_dx = scale * (dz - (sums[1] + normal.astype(float) * sums[0]) / count)
    scales = abs(scale) * (abs(dz) + (abs(sums[1]) + abs(normal * sums[0])) / count)
    assert (abs(dx.numpy() - exact_dx) <= 16 * eps * scales).all()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (9, 31), (140, 33), (8, 1000)], ids=str)
def test_layer_norm(dev, dtype, shape, affine, rng):
    rows, cols = shape
    x, dy = rng.normal(100, 2, size=shape).astype(dtype), rng.normal(size=shape).astype(dtype)
    gamma, beta = rng.normal(size=(2, cols)).astype(dtype) if affine else (None, None)
    y, (mean, inv_std) = dev.empty(shape, dtype), (dev.empty((rows,), dtype) for _ in range(2))
    dev.layer_norm_forward(dev.put(x), (dev.put(gamma), dev.put(beta)), 1e-5, y, (mean, inv_std))
    wide, eps = x.astype(float), np.finfo(dtype).eps
    spread, variance = np.ptp(wide, 1), wide.var(1)
    m, s = mean.numpy(), inv_std.numpy()
    assert (abs(m - wide.mean(1)) <= LANE * eps * spread + eps * 110).all()
    limit = 1 / np.sqrt(variance + 1e-5)
    assert (abs(s - limit) <= limit * (LANE * eps * spread**2 / (variance + 1e-5) + 2 * eps)).all()
    g, b = (gamma, beta) if affine else (np.ones(cols, dtype), np.zeros(cols, dtype))
    normal = (x - m[:, None]) * s[:, None]
    assert same(y.numpy(), normal * g + b)

    dx, (dgamma, dbeta) = dev.empty(shape, dtype), (dev.empty((cols,), dtype) for _ in range(2))
    given = dev.put(dy), dev.put(x), dev.put(gamma), (mean, inv_std)
    dev.layer_norm_backward(*given, (None, dgamma, dbeta))
    dev.layer_norm_backward(*given, (dx, dgamma, dbeta))
    dz = dy.astype(float) * g
    means = [(dz * other).mean(1, keepdims=True) for other in (1, normal)]
    sizes = abs(dz) + abs(dz).mean(1, keepdims=True) + abs(normal) * abs(dz * normal).mean(1, keepdims=True)
    exact_dx = s[:, None] * (dz - means[0] - normal * means[1])
    assert (abs(dx.numpy() - exact_dx) <= LANE * eps * s[:, None] * sizes).all()
    for got, terms in ((dgamma, dy * normal), (dbeta, dy)):
        allowed = LANE * eps * abs(terms).sum(0, dtype=float)
        assert (abs(got.numpy() - terms.sum(0, dtype=float)) <= allowed).all()


# ---- that nothing waits, and what is asked for -----------------------------------------------------


def test_nothing_waits_and_all_is_on_the_queue_s_stream(cuda, no_gpu, monkeypatch, cublaslt, rng):
    recorder = doubles.Recorder(cuda)
    dev = Device(device.use_cuda(monkeypatch, recorder))
    monkeypatch.setenv("PYOPTIM_CUBLAS", cublaslt)
    dev.queue.stream = 42
    x, weight = dev.put(rng.normal(size=(9, 4))), dev.put(rng.normal(size=(5, 4)))
    labels, y, dy = dev.put(np.arange(9) % 5), dev.empty((9, 5), float), dev.empty((9, 5), float)
    dx, dweight, dbias = dev.empty((9, 4), float), dev.empty((5, 4), float), dev.empty((5,), float)
    recorder.log.clear()
    dev.dense_forward(x, weight, dbias, "tanh", y)
    loss = dev.softmax_cross_entropy(y, labels, dy, None, None, 0.0)
    dev.dense_backward(dy, x, weight, y, "tanh", dx, dweight, dbias)
    assert not recorder.all("synchronize", "copy")
    assert {stream for _, _, stream in recorder.all("launch", "hold", "record")} == {42}
    assert [kernel for _, kernel, _ in recorder.all("launch")] == [
        "bias_activation<double>", "cross_entropy<double>", "total<double>", "activation_backward<double>",
        "column_sum<double>",
    ]  # fmt: skip
    assert math.isfinite(float(loss))
    assert recorder.all("synchronize")
    with pytest.raises(TypeError, match=r"an array of shape \(9, 5\) is no number"):
        float(y)


def test_arrays_of_the_processor_are_refused(dev):
    x = np.ones((2, 2))
    for call in (
        lambda: dev.softmax_forward(False, x, x),
        lambda: dev.dense_backward(x, x, x, None, None, x, x, x),
        lambda: dev.pointwise_loss("squared", x, x, None, None, 1.0),
    ):
        with pytest.raises(
            po.BackendError, match=f"the '{dev.backend.name}' backend has no .* for arrays in"
        ):
            call()
    assert (x == 1).all()


# ---- matrix products -------------------------------------------------------------------------------


def blas_of(dev):
    """What the device multiplies with."""
    return products.library_of(dev.queue)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_muon_by_both_products(cuda, no_gpu, monkeypatch, cublaslt, dtype, rng):
    """Large matrices go through cuBLASLt, small ones together through our own kernel, on one stream."""
    recorder = doubles.Recorder(cuda)
    device.use_cuda(monkeypatch, recorder)
    monkeypatch.setenv("PYOPTIM_CUBLAS", cublaslt)
    monkeypatch.setattr(muon, "_TOGETHER", 1000)
    shapes = [(5, 3), (9, 12), (40, 33), (3, 40), (12, 9), (10, 10)]
    here = [rng.normal(size=shape).astype(dtype) for shape in shapes]
    copies = [p.copy() for p in here]
    options = {"lr": 0.1, "eps": 0.5, "max_grad_norm": 1.0, "ns_steps": 3}
    cpu, own = po.Muon(here, **options), po.Muon(device.there(copies), **options)
    for _ in range(2):
        grads = [rng.normal(size=shape).astype(dtype) for shape in shapes]
        device.cpu_step(cpu, grads)
        recorder.log.clear()
        own.step([device.There(g, 70) for g in grads])
        assert {stream for _, _, stream in recorder.all("launch")} == {70}
        kernels = [kernel.partition("<")[0] for _, kernel, _ in recorder.all("launch")]
        assert kernels.count("muon_product") == 3 * 3
        assert kernels.count("muon_blend") == 2 * 3  # of (40, 33) alone
    assert not recorder.all("synchronize")
    device.assert_orthogonal_alike(copies, here, 2, 0.1)


def test_which_library_multiplies(cuda, no_gpu, monkeypatch, cublaslt, tmp_path):
    dev = Device(device.use_cuda(monkeypatch, cuda))
    assert blas_of(dev) is None  # PYOPTIM_CUBLAS=off
    monkeypatch.setenv("PYOPTIM_CUBLAS", cublaslt)
    assert blas_of(dev) is None  # decided
    one, other = Device(dev.backend), Device(dev.backend)
    assert blas_of(one).version == 129999
    assert blas_of(one) is blas_of(other)
    assert po.show_config()["cuda"].endswith("; cuBLASLt 12.99.99)")
    for path, reason in (("/nowhere/libcublasLt.so", "No such file"), ("libc.so.6", "undefined symbol")):
        monkeypatch.setenv("PYOPTIM_CUBLAS", path)
        expected = rf"is '{path}', expected 'off' or a path: .*{reason}"
        with pytest.raises(po.BackendError, match=expected):
            blas_of(Device(dev.backend))
    # By default: the package's, newest first; what does not load is passed over.
    (tmp_path / "cu13" / "lib").mkdir(parents=True)
    (tmp_path / "cublas" / "lib").mkdir(parents=True)
    (tmp_path / "cu13" / "lib" / "libcublasLt.so.13").write_text("not a library")
    (tmp_path / "cublas" / "lib" / "libcublasLt.so.12").symlink_to(cublaslt)
    nvidia = type(sys)("nvidia")
    nvidia.__spec__ = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setitem(sys.modules, "nvidia", nvidia)
    monkeypatch.setenv("CUDA_PATH", "/toolkit")
    wanted = ["cu13/lib/libcublasLt.so.13", "cublas/lib/libcublasLt.so.12"]
    candidates = products._candidates()
    assert candidates[:2] == [str(tmp_path / path) for path in wanted]
    assert candidates[2] == "/toolkit/lib64/libcublasLt.so"
    assert candidates[-1] == "libcublasLt.so.12"
    monkeypatch.delenv("PYOPTIM_CUBLAS")
    products._find.cache_clear()
    assert blas_of(Device(dev.backend)).version == 129999
    products._find.cache_clear()
    monkeypatch.setattr(products, "_candidates", lambda: [str(tmp_path / wanted[0])])
    assert blas_of(Device(dev.backend)) is None
    products._find.cache_clear()


def test_what_cublaslt_refuses(cublaslt):
    blas, memory = Blas(cublaslt), np.ones(77 * 77)
    at = memory.ctypes.data
    for shape, bias in (((77, 1, 1), 0), ((1, 1, 1), at)):  # the stand-in refuses 77; all a bias in double
        assert not blas.product(shape, (at, False), (at, False), bias, at, True, at, 0)
    blas.workspace_bytes = 10  # less than the stand-in's algorithm needs
    assert not blas.product((1, 1, 1), (at, False), (at, False), 0, at, True, at, 0)
    with pytest.raises(RuntimeError, match="cublasLtMatmulDescCreate failed with status 7"):
        blas._made("cublasLtMatmulDescCreate", 68, 1)
    assert (memory == 1).all()


@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
@pytest.mark.parametrize(("batch", "outside"), [(77, 3), (3, 78)])
def test_our_own_kernel_does_what_cublaslt_cannot(
    cuda, no_gpu, monkeypatch, cublaslt, rng, dtype, batch, outside, activation
):
    """The stand-in has no algorithm for 77 columns of its own, and refuses 78 rows when it is called."""
    recorder = doubles.Recorder(cuda)
    dev = Device(device.use_cuda(monkeypatch, recorder))
    monkeypatch.setenv("PYOPTIM_CUBLAS", cublaslt)
    x, weight, bias = (rng.normal(size=s).astype(dtype) for s in ((batch, 5), (outside, 5), (outside,)))
    given, results = (dev.put(x), dev.put(weight), dev.put(bias)), []
    for _ in range(2):
        y = dev.empty((batch, outside), dtype)
        recorder.log.clear()
        dev.dense_forward(*given, activation, y)
        assert recorder.all("launch")[0][1].startswith("product<")
        results.append(y.numpy())
    exact = layer_oracles.dense(x.astype(float), weight.astype(float), bias, activation)
    np.testing.assert_allclose(results[0], exact, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(results[0], results[1])


def test_a_bias_may_lie_anywhere(cuda, no_gpu, monkeypatch, cublaslt, rng):
    """An algorithm is chosen for arrays on 16 bytes, and another for those that are not."""
    dev = Device(device.use_cuda(monkeypatch, cuda))
    monkeypatch.setenv("PYOPTIM_CUBLAS", cublaslt)
    x, weight = rng.normal(size=(8, 4)).astype("f4"), rng.normal(size=(4, 4)).astype("f4")
    bias = rng.normal(size=4).astype("f4")
    for at in (0, 1, 2, 3, 0):
        y = dev.empty((8, 4), "f4")
        dev.dense_forward(dev.put(x), dev.put(weight), dev.put(bias, at), None, y)
        np.testing.assert_allclose(y.numpy(), x @ weight.T + bias, rtol=1e-5, atol=1e-5)


def test_a_bias_may_lie_anywhere_where_others_are_not_on_16_bytes(cuda, no_gpu, monkeypatch, cublaslt, rng):
    """What the first bias lies on says nothing about the next."""
    dev = Device(device.use_cuda(monkeypatch, cuda))
    monkeypatch.setenv("PYOPTIM_CUBLAS", cublaslt)
    x, weight = rng.normal(size=(8, 6)).astype("f4"), rng.normal(size=(4, 6)).astype("f4")
    bias = rng.normal(size=4).astype("f4")
    for at in (0, 1):
        y = dev.empty((8, 4), "f4")
        dev.dense_forward(dev.put(x, 1), dev.put(weight), dev.put(bias, at), None, y)
        np.testing.assert_allclose(y.numpy(), x @ weight.T + bias, rtol=1e-5, atol=1e-5)


def test_products_are_on_the_queue_s_stream(cuda, no_gpu, monkeypatch, cublaslt):
    dev = Device(device.use_cuda(monkeypatch, cuda))
    monkeypatch.setenv("PYOPTIM_CUBLAS", cublaslt)
    dev.queue.stream = 42
    x, last = dev.put(np.eye(3)), ctypes.c_uint64.in_dll(ctypes.CDLL(cublaslt), "last_stream")
    dev.dense_forward(x, x, None, None, dev.empty((3, 3), float))
    assert last.value == 42
