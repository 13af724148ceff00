"""8 bits: integer sums are exact everywhere, outputs are close, files come back."""

import numpy as np
import pytest
from support import backends

import pyoptim as po
from pyoptim import nn
from pyoptim.runtime import dispatch


@pytest.fixture(params=backends.BACKENDS)
def backend(request):
    """Each instruction set has a kernel of its own."""
    if reason := backends.why_not(request.param):
        pytest.skip(reason)
    with backends.running_on(request.param):
        yield request.param


def padded(weight):
    return np.pad(weight, ((0, 0), (0, -weight.shape[1] % 64)))


@pytest.mark.parametrize(
    "shape",
    [
        (0, 3, 2),
        (1, 1, 1),
        (3, 63, 5),
        (4, 64, 4),
        (5, 65, 9),
        (9, 200, 13),
        (2, 65792, 5),
        (70, 300, 60),
        (3, 4000, 101),
    ],
)
def test_sums_are_those_of_integers(backend, shape):
    rows, inputs, outputs = shape
    rng = np.random.default_rng(0)
    q = rng.integers(0, 256, (rows, inputs))
    weight = rng.integers(-127, 128, (outputs, inputs)).astype(np.int8)
    if inputs == 65792:  # the largest sums that there are
        q[:], weight[:] = 255, 127
    sums = q.astype(np.int64) @ weight.astype(np.int64).T
    assert np.abs(sums).max(initial=0) < 2**31
    x, zero = (q - 7).astype(np.float32), 7
    ones, zeros = np.ones(outputs, np.float32), np.zeros(outputs, np.float32)
    y = np.empty((rows, outputs), np.float32)
    run = dispatch.current().quantized_dense
    run(x, 1.0, zero, padded(weight), np.zeros(outputs, np.int32), ones, zeros, False, y)
    assert (y == sums.astype(np.float32)).all()
    for i in range(min(rows, 5)):  # less what it should be, a sum is 0 only if every bit is right
        run(x, 1.0, zero, padded(weight), sums[i].astype(np.int32), ones, zeros, False, y)
        assert (y[i] == 0).all()


def test_inputs_are_rounded_to_even_and_limited(backend):
    x = np.array([[-100.0, -1.5, -0.5, 0.5, 1.5, 2.5, 300.0, np.inf, -np.inf, 12.3]], np.float32).T.copy()
    y = np.empty((10, 1), np.float32)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    weight = padded(np.ones((1, 1), np.int8))
    dispatch.current().quantized_dense(x, 2.0, 10, weight, np.zeros(1, np.int32), one, zero, True, y)
    wanted = np.clip(np.rint(2.0 * x.astype(np.float64)) + 10, 0, 255)
    assert (y == wanted).all()


def network(dtype=np.float32):
    block = [nn.Dense(20, 20, activation="tanh"), nn.Dropout(0.2), nn.Dense(20, 20)]
    return nn.Sequential(
        nn.Dense(16, 20), nn.BatchNorm(20), nn.ReLU(), nn.Residual(block), nn.LayerNorm(20),
        nn.Dense(20, 24, bias=False), nn.ReLU(), nn.BatchNorm(24), nn.Dense(24, 5), seed=1, dtype=dtype,
    )  # fmt: skip


def trained(dtype=np.float32):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 16))
    y = (x[:, :5] + 0.3 * x[:, 5:10]).argmax(axis=1)
    model = network(dtype)
    po.Trainer(model, nn.CrossEntropy(), po.Adam(model.parameters(), lr=0.01), seed=0).fit(
        x, y, epochs=8, verbose=False
    )
    return model, x, y


def oracle(model, calibration, x):
    """The outputs by the textbook, in float64, of a chain of Dense and ReLU with such scales."""
    calibration = calibration.astype(np.float64)
    for layer in model.layers:
        if isinstance(layer, nn.ReLU):
            calibration, x = np.maximum(calibration, 0), np.maximum(x, 0)
            continue
        w, b = (layer.parameters[name].astype(np.float64) for name in ("weight", "bias"))
        low, high = min(0, calibration.min()), max(0, calibration.max())
        scale = (high - low) / 255
        zero = round(-low / scale)
        q = np.clip(np.rint(x / scale) + zero, 0, 255)
        of_row = np.abs(w).max(axis=1, keepdims=True) / 127
        x = (q - zero) @ np.rint(w / of_row).T * scale * of_row[:, 0] + b
        calibration = calibration @ w.T + b
    return x


def test_the_formula(backend):
    model = nn.Sequential(nn.Dense(30, 40), nn.ReLU(), nn.Dense(40, 6), seed=0)
    x = np.random.default_rng(0).normal(size=(50, 30)).astype(np.float32)
    found, wanted = po.recipes.quantize(model, x)(x), oracle(model, x, x.astype(np.float64))
    plain = model.eval()(x)
    # What is rounded the other way by float32, here and there, moves an output by one unit of its input.
    assert np.median(np.abs(found - wanted)) < 1e-5
    assert np.abs(found - wanted).max() < 0.03
    assert 1e-4 < np.abs(found - plain).max() < 0.1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_network_keeps_its_answers(dtype):
    model, x, _ = trained(dtype)
    before = model.state_dict()
    small = po.recipes.quantize(model, x[:100])
    outputs, plain = small.predict(x), model.eval()(x)
    assert outputs.dtype == np.float32
    assert (outputs.argmax(axis=1) == plain.argmax(axis=1)).mean() > 0.95
    assert np.corrcoef(outputs.ravel(), plain.ravel())[0, 1] > 0.995
    assert (outputs != plain).any()
    np.testing.assert_allclose(small.predict_proba(x).sum(axis=1), 1, rtol=1e-5)
    of_weights = sum(p.size for name, p in model.parameters().items() if p.ndim == 2)
    assert of_weights < small.nbytes < of_weights + 4 * 24 * 20
    assert all((before[name] == value).all() for name, value in model.state_dict().items())
    assert small(x[:0]).shape == (0, 5)
    with po.use_backend("numpy"):
        np.testing.assert_allclose(small(x), outputs, rtol=1e-4, atol=1e-4)


def test_files(tmp_path):
    model, x, _ = trained()
    small = po.recipes.quantize(model, x)
    small.save(tmp_path / "small")
    again = po.recipes.QuantizedModel.load(tmp_path / "small")
    assert (again(x) == small(x)).all()
    assert again.nbytes == small.nbytes
    assert repr(again) == repr(small)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="has the format"):
        po.recipes.QuantizedModel.load(tmp_path / "model")
    with pytest.raises(ValueError, match="has the format"):
        nn.Sequential.load(tmp_path / "small")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s._tensors.pop("0.weight"), "'0.weight' is missing"),
        (lambda s: s._tensors.update({"0.scale": np.ones(3, np.float32)}), "'0.scale' is float32"),
        (lambda s: s._tensors.update({"6.running_mean": np.ones(3, np.float32)}), "'6.running_mean' is"),
        (lambda s: s._scales.update({"0.": (-1.0, 0)}), "scale -1.0"),
        (lambda s: s._scales.update({"0.": (1.0, 256)}), "zero 256"),
        (lambda s: s._scales.clear(), "0."),
        (lambda s: s._layers.append({"type": "Wrong"}), "no layer"),
    ],
)
def test_files_that_make_no_sense(change, message, tmp_path):
    small = po.recipes.quantize(network(), np.zeros((1, 16)))
    change(small)
    small.save(tmp_path / "file")
    with pytest.raises(ValueError, match=f"does not describe a quantized model: .*{message}"):
        po.recipes.QuantizedModel.load(tmp_path / "file")


def test_one_output_has_no_softmax():
    x = np.ones((2, 3), np.float32)
    small = po.recipes.quantize(nn.Sequential(nn.Dense(3, 1), seed=0).eval(), x)
    with pytest.raises(ValueError, match="one output, expected one for each class"):
        small.predict_proba(x)


def test_what_is_refused():
    model = network()
    with pytest.raises(TypeError, match="QuantizedModel is made by"):
        po.recipes.QuantizedModel()
    with pytest.raises(ValueError, match="calibration has shape"):
        po.recipes.quantize(model, np.zeros((0, 16)))
    with pytest.raises(ValueError, match="x has shape"):
        po.recipes.quantize(model, np.zeros((3, 16))).predict(np.zeros((3, 15)))
    wide = nn.Sequential(nn.Dense(65_794, 1, init="zeros"))
    with pytest.raises(ValueError, match="65,793 or less"):
        po.recipes.quantize(wide, np.zeros((1, 65_794)))
    model.parameters()["0.weight"][0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        po.recipes.quantize(model, np.zeros((3, 16)))


@pytest.mark.parametrize(
    ("name", "value"), [("0.bias", np.nan), ("2.bias", np.inf), ("0.weight", np.nan), ("2.weight", 1e60)]
)
def test_values_that_float32_does_not_hold(name, value):
    """A Tanh hides what is not finite from the outputs."""
    model = nn.Sequential(nn.Dense(4, 5), nn.Tanh(), nn.Dense(5, 3), seed=0, dtype=np.float64)
    model.parameters()[name].flat[0] = value
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="finite"):
        po.recipes.quantize(model, np.ones((3, 4)))


def test_inputs_and_weights_too_small_for_a_scale_count_as_0():
    model = nn.Sequential(nn.Dense(4, 3), seed=0)
    model.parameters()["0.weight"][0] = 1e-42
    model.parameters()["0.bias"][...] = 1
    small = np.full((2, 4), 1e-40, np.float32)
    assert (po.recipes.quantize(model, small)(small) == 1).all()
    ones = np.ones((2, 4), np.float32)
    assert (po.recipes.quantize(model, ones)(ones)[:, 0] == 1).all()
