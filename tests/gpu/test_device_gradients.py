"""Norms and clipping of gradients in a GPU's memory, with emulated kernels: see test_device_steps.py."""

import numpy as np
import pytest
from support import device, doubles
from support.doubles import Capsule, OnDevice, There

import pyoptim as po
from pyoptim import gradients


@pytest.fixture
def rng():
    return np.random.default_rng(31)


def arrays(rng, dtypes=(np.float32, np.float64)):
    return device.arrays(rng, dtypes, [(5,), (4097,), (), (0, 3), (3, 4), (9000,)])


def on_cpu(function, *arguments):
    with po.use_backend("numpy"):
        return function(*arguments)


@pytest.mark.parametrize("make", [There, OnDevice, Capsule])
def test_clip_grad_norm(gpu, make, rng):
    for max_norm in (0.25, 3.0, 1e6, np.inf):  # the last two leave them as they are
        here = arrays(rng)
        here[1][:3] = -0.0, 1e-45, 0.0
        there, before = [g.copy() for g in here], [g.copy() for g in here]
        expected = on_cpu(gradients.clip_grad_norm_, here, max_norm)
        norm = gradients.clip_grad_norm_([make(g) for g in there], max_norm)
        assert norm == pytest.approx(expected, rel=1e-12)
        factor = gradients.clip_factor(norm, max_norm)
        for g, was in zip(there, before, strict=True):
            scaled = was if factor == 1 else was * g.dtype.type(factor)
            assert g.tobytes() == np.asarray(scaled, g.dtype).tobytes()


def test_the_norm_is_that_of_a_step(gpu, rng):
    """A plain step from 0 with clipping leaves minus the gradients that `clip_grad_norm_` leaves."""
    for dtypes in ((np.float32,), (np.float64,), (np.float32, np.float64)):
        grads = arrays(rng, dtypes)
        params = [np.zeros_like(g) for g in grads]
        po.SGD([There(p) for p in params], lr=1.0, max_grad_norm=0.5).step([There(g) for g in grads])
        gradients.clip_grad_norm_([There(g) for g in grads], 0.5)
        for p, g in zip(params, grads, strict=True):
            np.testing.assert_array_equal(-p, g)


@pytest.mark.parametrize("n", [0, 1, 4096, 4097, 100_003])
def test_global_norm(gpu, dtype, n):
    x = np.random.default_rng(n).normal(size=n).astype(dtype)
    norm = gradients.global_norm(There(x))
    assert norm == pytest.approx(np.linalg.norm(x.astype(np.float64)), rel=1e-12)
    assert gradients.global_norm({"a": There(x), "b": There(np.full(3, 2.0))}) == pytest.approx(
        np.hypot(norm, np.sqrt(12)), rel=1e-12
    )
    x[:1] = np.nan
    assert np.isnan(gradients.global_norm(There(x))) == (n > 0)


@pytest.mark.parametrize("limit", [1.0, 0.1, 1e39, np.inf])
def test_clip_grad_value(gpu, limit, rng):
    here = arrays(rng)
    here[1][:6] = np.nan, np.inf, -np.inf, -0.0, 3e38, -min(limit, 3e38)
    there = [g.copy() for g in here]
    with np.errstate(over="ignore"):
        on_cpu(gradients.clip_grad_value_, here, limit)
    gradients.clip_grad_value_({i: There(g) for i, g in enumerate(there)}, limit)
    for a, b in zip(there, here, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (np.signbit(a) == np.signbit(b)).all()


def test_models_gradients(emulated, rng):
    """Of a loop of one's own: what a model on a GPU gives is clipped where it is."""
    x, dy, clipped = rng.normal(size=(9, 6)), rng.normal(size=(9, 3)), []
    for where in ("cpu", "cuda"):
        model = po.nn.Sequential(po.nn.Dense(6, 3), seed=1, dtype=np.float64).to(where)
        model(x)
        model.backward(dy)
        norm = gradients.clip_grad_norm_(model.gradients(), 0.5)
        gradients.clip_grad_value_(model.flat_gradients, 0.1)
        clipped.append([norm, *np.asarray(model.flat_gradients)])
    np.testing.assert_allclose(*clipped, rtol=1e-12)


def test_streams(recorder, rng):
    a, b = rng.normal(size=5000), rng.normal(size=7)
    for function in (gradients.clip_grad_norm_, gradients.clip_grad_value_):
        recorder.log.clear()
        function([There(a, stream=77), There(b, stream=78)], 0.1)
        log = [(kind, stream) for kind, _, stream in recorder.log if kind in ("record", "hold", "launch")]
        launches = [i for i, (kind, _) in enumerate(log) if kind == "launch"]
        assert {log[i][1] for i in launches} == {77}
        assert log.index(("record", 78)) < launches[0]  # the other's work comes before
        assert log[launches[-1] :].index(("hold", 78)) > 0  # and what it does next after
        assert max([size for _, size, _ in recorder.all("copy")], default=0) <= 8


def test_tensors(emulated, monkeypatch, rng):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: type("Stream", (), {"cuda_stream": 0}))
    here = rng.normal(size=(4, 6)).astype(np.float32)
    there = here.copy()
    tensor = doubles.tensor(there)
    assert gradients.global_norm(tensor.t()) == pytest.approx(np.linalg.norm(here.astype(float)), rel=1e-12)
    with pytest.raises(ValueError, match="grads has the strides"):
        gradients.clip_grad_value_(tensor.t(), 0.5)
    version = tensor._version
    gradients.clip_grad_value_(tensor, 0.5)
    assert tensor._version > version  # autograd heard of it
    np.testing.assert_array_equal(there, here.clip(-0.5, 0.5))
    version = tensor._version
    gradients.clip_grad_norm_([tensor], 0.5)
    assert tensor._version > version
    assert gradients.global_norm(there) == pytest.approx(0.5, rel=1e-5)


READ_ONLY = np.full(3, 5.0)
READ_ONLY_AT = (READ_ONLY.ctypes.data, True)
HERE = "is a ndarray in the processor's memory, but"
WRONG = [
    (lambda g: [There(g), g.copy()], TypeError, rf"grads\[1\] {HERE} grads\[0\] is in a GPU's"),
    (lambda g: {"a": g.copy(), "b": There(g)}, TypeError, rf"grads\['a'\] {HERE} grads\['b'\] is"),
    (lambda g: [OnDevice(g), OnDevice(g, device=1)], ValueError, r"grads\[1\] is on GPU 1, but grads\[0"),
    (lambda g: [There(g), There(READ_ONLY, data=READ_ONLY_AT)], ValueError, r"grads\[1\] is read-only"),
    (
        lambda g: [There(g), There(g.astype("f2"))],
        TypeError,
        r"grads\[1\] has dtype <f2, expected float32 or",
    ),
    (lambda g: [There(g), There(np.ones((3, 2)).T)], ValueError, r"grads\[1\] has the strides"),
]


@pytest.mark.parametrize(("of", "error", "message"), WRONG)
def test_bad_input_changes_nothing(emulated, of, error, message):
    g = np.full(3, 5.0)
    for function in (gradients.clip_grad_norm_, gradients.clip_grad_value_):
        with pytest.raises(error, match=message):
            function(of(g), 0.5)
    assert (g == 5).all()


def test_what_a_norm_cannot_be_of_changes_nothing(emulated):
    g = np.full(3, 5.0)
    with pytest.raises(ValueError, match=r"grads\[1\] overlaps grads\[0\]"):
        gradients.clip_grad_norm_([There(g), There(g[1:])], 1)
    with pytest.raises(ValueError, match="the norm of grads is inf, expected finite gradients"):
        gradients.clip_grad_norm_([There(g), There(np.array([np.inf]))], 1)
    with pytest.raises(ValueError, match="max_norm is 0"):
        gradients.clip_grad_norm_(There(g), 0)
    with pytest.raises(ValueError, match="clip_value is nan"):
        gradients.clip_grad_value_(There(g), np.nan)
    assert (g == 5).all()
    gradients.clip_grad_value_([There(g), There(g)], 1)  # as of NumPy's, twice is as once
    assert (g == 1).all()
