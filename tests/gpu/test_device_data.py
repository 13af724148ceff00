"""Data that lie in a GPU's memory: `Trainer`, losses and callbacks make of them what they make of NumPy's.

With emulated kernels; see test_device_training.py.
"""

import numpy as np
import pytest
from support import doubles
from support.doubles import Capsule, OnDevice, There
from support.gpu_training import assert_same, every_layer, fit, labels, pixels, small, state, trainer

import pyoptim as po
from pyoptim import metrics, nn
from pyoptim.arrays import gpu

INTEGERS = [np.int8, np.uint8, np.int32, np.uint64]


@pytest.fixture
def rng():
    return np.random.default_rng(29)


@pytest.fixture(params=["interface", "its GPU too", "DLPack", "tensor"])
def make(request, emulated, monkeypatch):
    """Of a NumPy array, one in a GPU's memory, by each way that those say so."""
    if request.param == "tensor":
        torch = pytest.importorskip("torch")
        current = type("Stream", (), {"cuda_stream": 0})
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    return {"interface": There, "its GPU too": OnDevice, "DLPack": Capsule, "tensor": doubles.tensor}[
        request.param
    ]


def both(loss, x, y, weight, make, **options):
    """Trained, evaluated and called with targets, weights and validation data of either memory."""
    results = []
    for of in (lambda array: array, make):
        own_y, own_weight = of(y), None if weight is None else of(weight)
        one = trainer(small(), "cuda", loss, metrics=[lambda targets, outputs: np.sum(targets * targets)])
        history = fit(one, x, own_y, sample_weight=own_weight, validation_data=(x[:9], of(y[:9])), **options)
        measured = {name: values for name, values in history.items() if name != "seconds"}
        measured |= one.evaluate(x, own_y, own_weight)
        measured["step"] = one.partial_fit(x, own_y, own_weight)
        output = one.model(OnDevice(x))
        measured["called"], gradient = loss(output, own_y, own_weight)
        results.append({**measured, **state(one), "gradient": gradient.numpy()})
    assert_same(*results)


@pytest.mark.parametrize("integers", INTEGERS)
def test_labels_and_weights(make, rng, integers):
    x, y, weight = rng.normal(size=(23, 6)), labels(rng).astype(integers), rng.uniform(0.5, 2, 23)
    both(nn.CrossEntropy(), x, y, weight.astype(np.float32), make)


# What a target is converted to, and how, does not depend on the loss: each of both once.
@pytest.mark.parametrize(
    ("loss", "dtype"),
    [
        *((nn.MSE(), dtype) for dtype in (np.float16, np.float32, np.float64, np.int32, bool)),
        *((nn.CrossEntropy(), dtype) for dtype in (np.float16, np.float32)),
        (nn.KLDiv(), np.float64),
        (nn.BinaryCrossEntropy(), bool),
    ],
    ids=repr,
)
def test_targets(make, rng, loss, dtype):
    y = rng.integers(0, 2, (23, 3)).astype(dtype)
    both(loss, pixels(rng), y, None, make, engine="python")


def test_a_split_and_a_transform(make, rng):
    x, y = rng.normal(size=(23, 6)), labels(rng)
    results = []
    for target in (y, make(y)):
        one = trainer(small(), "cuda")
        fit(one, x, target, validation_split=0.3)
        fit(one, x, target, transform=lambda x, y, rng: (x, y[::-1]))
        results.append(state(one))
    assert_same(*results)


@pytest.mark.parametrize("engine", ["native", "python"])
def test_bytes(make, rng, engine):
    x, y, results = pixels(rng), labels(rng), []
    for of in (lambda array: array, make):
        one = trainer(every_layer(), "cuda")
        history = fit(one, of(x), y, validation_data=(of(x[:9]), y[:9]), engine=engine)
        measured = {name: values for name, values in history.items() if name != "seconds"}
        measured |= one.evaluate(of(x), y)
        measured["step"] = one.partial_fit(of(x), y)
        measured["predicted"] = np.asarray(one.predict(of(x)))
        measured["called"] = np.asarray(one.model(of(x)))
        one.model.backward(np.ones((23, 3)))
        results.append({**measured, **state(one), "gradient": one.model.flat_gradients.numpy()})
    assert_same(*results)


def test_bytes_stay_where_and_what_they_are(recorder, rng):
    x, y = pixels(rng, 4000), labels(rng, 4000)
    one = trainer(small(np.float32), "cuda")
    recorder.log.clear()
    fit(one, OnDevice(x, stream=77), y, epochs=1, batch_size=1000, shuffle=False)
    assert max(size for _, size, _ in recorder.all("copy")) < x.nbytes + y.nbytes
    assert max(size for _, size, _ in recorder.all("copy")) == y.nbytes
    events = [(kind, stream) for kind, _, stream in recorder.all("record", "hold")]
    assert events[:2] == [("record", 77), ("hold", 1)]  # what the owner has queued comes first
    recorder.log.clear()
    one.predict(OnDevice(x, stream=77))
    assert [(kind, stream) for kind, _, stream in recorder.all("record", "hold")][-2:] == [
        ("record", 1),
        ("hold", 77),
    ]


def test_the_owner_s_stream_is_waited_for(recorder, rng):
    x, y = rng.normal(size=(23, 6)), labels(rng)
    one = trainer(small(), "cuda")
    recorder.log.clear()
    one.evaluate(x, OnDevice(y, stream=77), OnDevice(np.ones(23), stream=78))
    for stream in (77, 78):
        assert [kind for kind, _, at in recorder.log if at == stream and kind != "record"] == [
            "hold",
            "copy",
            "synchronize",
        ]


def test_they_are_checked_as_numpy_s(make, rng):
    x, y = rng.normal(size=(23, 6)), labels(rng)
    one = trainer(small(), "cuda")
    before, output = state(one), one.model(OnDevice(x))
    wrong_y, wrong_weight, nan = y.copy(), np.ones(23), np.ones((23, 3))
    wrong_y[4], wrong_weight[2], nan[1, 2] = 3, -1, np.nan
    for use in (one.fit, one.evaluate, one.partial_fit):
        with pytest.raises(ValueError, match=r"y\[4\] is 3, expected a class in \[0, 3\)"):
            use(x, make(wrong_y))
        with pytest.raises(ValueError, match=r"y has 22 targets, expected 23: one per example of x"):
            use(x, make(y[1:]))
        with pytest.raises(TypeError, match="y has dtype float64, expected integers or bool"):
            use(x, make(y * 1.0))
        with pytest.raises(
            TypeError, match=r"y has dtype .*, expected float32, float64, float16, bool, int8"
        ):
            use(x, make(y.astype(complex)))
        with pytest.raises(ValueError, match=r"sample_weight\[2\] is -1\.0, expected numbers >= 0"):
            use(x, y, sample_weight=make(wrong_weight))
        with pytest.raises(ValueError, match=r"sample_weight has shape \(22,\), expected \(23,\)"):
            use(x, y, sample_weight=make(wrong_weight[1:]))
    with pytest.raises(ValueError, match=r"validation_data\[1\]\[4\] is 3, expected a class"):
        one.fit(x, y, validation_data=(x, make(wrong_y)))
    with pytest.raises(ValueError, match=r"target\[4\] is 3, expected a class"):
        nn.CrossEntropy()(output, make(wrong_y))
    with pytest.raises(ValueError, match=r"target\[1, 2\] is nan, expected finite"):
        nn.MSE()(output, make(nan))
    with pytest.raises(ValueError, match=r"sample_weight\[2\] is -1\.0"):
        nn.CrossEntropy()(output, y, make(wrong_weight))
    assert_same(state(one), before)


def test_those_that_are_not_contiguous(emulated, rng, monkeypatch):
    torch = pytest.importorskip("torch")
    current = type("Stream", (), {"cuda_stream": 0})
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    x, y = rng.normal(size=(23, 6)), rng.integers(0, 3, (23, 2))
    one, other = trainer(small(), "cuda"), trainer(small(), "cuda")
    fit(one, x, doubles.tensor(y).t()[1])
    fit(other, x, y[:, 1])
    assert_same(state(one), state(other))
    with pytest.raises(
        ValueError, match=r"y has the strides \(16,\), expected a C-contiguous array in a GPU"
    ):
        fit(one, x, There(y[:, 1]))


def test_other_places_are_refused_by_name(emulated, rng):
    x, y = rng.normal(size=(23, 6)), labels(rng)
    one, here = trainer(small(), "cuda"), trainer(small())
    for use in (one.fit, one.evaluate, one.partial_fit):
        with pytest.raises(ValueError, match="y is on GPU 1, expected 0 as the model"):
            use(x, OnDevice(y, device=1))
        with pytest.raises(ValueError, match="sample_weight is on GPU 1, expected 0 as the model"):
            use(x, y, sample_weight=OnDevice(np.ones(23), device=1))
    for use in (here.fit, here.evaluate, here.partial_fit):
        with pytest.raises(TypeError, match="y is a OnDevice in a GPU's memory, expected a NumPy array"):
            use(x, OnDevice(y))
        with pytest.raises(
            TypeError, match="sample_weight is a OnDevice in a GPU's memory, expected a NumPy"
        ):
            use(x, y, sample_weight=OnDevice(np.ones(23)))
        with pytest.raises(TypeError, match="x is in a GPU's memory, but the model is not"):
            use(OnDevice(pixels(rng)), y)
    for loss in (nn.MSE(), nn.CrossEntropy(), nn.BinaryCrossEntropy()):
        with pytest.raises(TypeError, match="target is a OnDevice in a GPU's memory, expected a NumPy array"):
            loss(rng.normal(size=(23, 3)), OnDevice(y))
    with pytest.raises(
        TypeError, match="class_weight is a OnDevice in a GPU's memory, expected a NumPy array"
    ):
        nn.CrossEntropy(OnDevice(np.ones(3)))
    with pytest.raises(TypeError, match="pos_weight is a OnDevice in a GPU's memory, expected a NumPy array"):
        nn.BinaryCrossEntropy(OnDevice(np.ones(3)))


def test_metrics_of_what_a_model_there_returns(emulated, rng):
    x, y = rng.normal(size=(23, 6)), labels(rng)
    output = small().to("cuda").eval()(OnDevice(x))
    assert isinstance(output, gpu.DeviceArray)
    for metric in (metrics.accuracy, metrics.TopK(2)):
        assert metric(y, output) == metric(y, output.numpy())
        with pytest.raises(
            TypeError, match="targets is a OnDevice in a GPU's memory, expected a NumPy array"
        ):
            metric(OnDevice(y), output)
        with pytest.raises(
            TypeError, match="outputs is a OnDevice in a GPU's memory, expected a NumPy array"
        ):
            metric(y, OnDevice(output.numpy()))


def test_named_metrics_and_diagnostics_of_a_model_there(make, rng):
    x, y, weight = rng.normal(size=(23, 6)), labels(rng), rng.random(23)
    names = ["top_2", "selective_accuracy"]
    here, there = (trainer(small(), where, metrics=names) for where in ("cpu", "cuda"))
    expected = here.evaluate(x, y, weight)
    found = there.evaluate(x, make(y), make(weight))
    assert {name: found[name] for name in names} == pytest.approx({name: expected[name] for name in names})
    there.model.layers[0].trainable = here.model.layers[0].trainable = False
    one, other = (po.diagnostics.curvature(t.model, t.loss, x, y, points=2) for t in (here, there))
    assert one.gradient_squared == pytest.approx(other.gradient_squared, rel=1e-5)
    assert there.model.device == "cuda:0"


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("bytes_", [True, False])
def test_activation_statistics(make, rng, layer, bytes_):
    x, y = pixels(rng) if bytes_ else rng.normal(size=(23, 6)), labels(rng)
    statistics = []
    for of in (lambda array: array, make):
        watched = po.callbacks.ActivationStatistics(of(x), layer, every=2)
        fit(trainer(every_layer(), "cuda"), x, y, callbacks=[watched])
        statistics.append({"steps": watched.steps, "values": watched.values})
    assert_same(*statistics)
    with pytest.raises(TypeError, match="x is in a GPU's memory, but the model is not"):
        fit(trainer(every_layer()), x, y, callbacks=[watched])


# ---- on a GPU --------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "cupy"])
def test_a_gpu_s_own_data(backend, rng):
    torch = pytest.importorskip("torch")
    if backend not in po.available_backends() or not torch.cuda.is_available():
        pytest.skip(f"needs a GPU, {backend} and PyTorch for it")
    x, y, weight = pixels(rng, 300), labels(rng, 300).astype(np.int32), rng.uniform(0.5, 2, 300)
    results, clipped = [], []
    for of in (lambda array: array, lambda array: torch.from_numpy(array).cuda()):
        with po.use_backend(backend):
            one = trainer(every_layer(), "cuda")
            for _ in range(2):  # the second launches what the first has captured
                history = fit(one, of(x), of(y), sample_weight=of(weight), batch_size=32)
                assert history.path == "cuda"
            results.append({**state(one), **one.evaluate(of(x), of(y))})
        grad = of(weight.copy())
        norm = po.gradients.clip_grad_norm_(grad, 0.5)
        po.gradients.clip_grad_value_(grad, 0.02)
        clipped.append([norm, *(grad if isinstance(grad, np.ndarray) else grad.cpu().numpy())])
    assert_same(*results)
    np.testing.assert_allclose(*clipped, rtol=1e-12)
