"""Layers scaled to vanish, explode, die and saturate; models that can fit a handful, and that can't."""

import numpy as np
import pytest

from pyoptim import diagnostics, nn


def deep(init, activation="tanh", depth=8, width=64):
    layers = [nn.Dense(width, width, activation=activation, init=init) for _ in range(depth)]
    return nn.Sequential(*layers, nn.Dense(width, 3, init="lecun"), seed=0)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return nn.CrossEntropy(), rng.normal(size=(50, 64)), rng.integers(0, 3, 50)


def words(found):
    return "\n".join(found.findings)


def test_a_sound_network_has_no_findings(data):
    found = diagnostics.layer_statistics(deep("lecun"), *data)
    assert found.findings == []
    assert [row.name for row in found.rows] == [str(i) for i in range(9)]


@pytest.mark.parametrize(
    ("init", "activation", "expected"),
    [
        (nn.Normal(0.02), "tanh", ["gradients vanish", "outputs vanish"]),
        (nn.Normal(1.0), "relu", ["gradients explode", "outputs explode"]),
        (nn.Normal(3.0), "tanh", ["outputs of layer 0 (Dense) are saturated"]),
        (nn.Constant(0.0), "relu", ["layer 0 (Dense) gives the same output for all", "gradients vanish"]),
    ],
)
def test_what_is_wrong_is_named(data, init, activation, expected):
    found = diagnostics.layer_statistics(deep(init, activation), *data)
    for text in expected:
        assert text in words(found)


def test_dead_units_and_unscaled_inputs_are_named(data):
    loss, x, y = data
    model = deep("he", "relu", depth=2)
    model.layers[1].parameters["bias"][:40] = -1e3
    assert words(diagnostics.layer_statistics(model, loss, x, y)).startswith("62% of the units of layer 1")
    for scale, expected in ((100, "inputs are large (1"), (1e-5, "inputs are small (1")):
        found = diagnostics.layer_statistics(deep("he", "relu"), loss, scale * x, y)
        assert expected in words(found) or "inputs are small (9" in words(found)


def test_pixels_that_are_always_the_same_are_no_dead_units(data):
    loss, x, y = data
    x[:, :40] = 0
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm(64), nn.Dense(64, 3), seed=0)
    found = diagnostics.layer_statistics(model, loss, x, y)
    assert [row.dead for row in found.rows] == [0, 0, 0]
    assert found.findings == []


def test_numbers_of_a_known_layer():
    model = nn.Sequential(nn.Dense(2, 2, activation="relu"), nn.Dense(2, 1, bias=False), seed=0)
    model.layers[0].parameters["weight"][...] = [[1, 0], [-1, 0]]
    model.layers[1].parameters["weight"][...] = 1
    x = np.array([[1.0, 0], [3, 0]])
    first, last = diagnostics.layer_statistics(model, nn.MSE(), x, np.zeros(2)).rows
    assert (first.mean, first.dead, first.saturated) == (1, 0.5, 0)  # outputs 1, 0, 3, 0
    assert first.deviation == pytest.approx(np.std([1, 0, 3, 0]))
    assert last.gradient == pytest.approx(np.sqrt((1**2 + 3**2) / 2))  # (y - 0) 2/2
    assert first.gradient == pytest.approx(last.gradient)
    assert last.weight == 1
    assert last.weight_gradient == pytest.approx(np.sqrt(((1 + 9) ** 2 + 0) / 2))


def test_layers_in_blocks_and_frozen_ones(data):
    block = nn.Residual([nn.Dense(64, 64), nn.BatchNorm(64)])
    model = nn.Sequential(nn.Dense(64, 64), block, nn.Dropout(0.5), nn.Dense(64, 3), seed=0)
    model.layers[0].trainable = False
    before = model.state_dict()
    found = diagnostics.layer_statistics(model, *data)
    assert [row.name for row in found.rows] == ["0", "1.block.0", "1.block.1", "2", "3"]
    assert np.isnan(found.rows[0].gradient)  # nothing needs it
    assert "layer" in str(found)
    assert all(np.array_equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["classes", "numbers", "norm"])
def test_a_sound_model_fits_a_handful(data, kind):
    loss, x, y = data
    layers = [nn.BatchNorm(64)] if kind == "norm" else [nn.Dropout(0.5)]
    model = nn.Sequential(nn.Dense(64, 64, activation="relu"), *layers, nn.Dense(64, 3), seed=0)
    before = model.state_dict()
    if kind == "numbers":
        loss, y = nn.MSE(), np.random.default_rng(1).normal(size=(50, 3))
    found = diagnostics.fit_tiny(model, loss, x, y, steps=300)
    assert found.ok, str(found)
    assert found.losses[-1] < 1e-2 * found.losses[0]
    assert np.isnan(found.accuracy) if kind == "numbers" else found.accuracy == 1
    assert all(np.array_equal(before[name], value) for name, value in model.state_dict().items())


class Upside(nn.Layer):
    """The identity, with the gradient of its opposite."""

    def forward(self, x, training):
        return x

    def backward(self, dy, need_dx=True):
        return -dy


@pytest.mark.parametrize("what", ["dead", "wrong gradient", "other targets", "nan"])
def test_what_keeps_a_model_from_fitting(data, what):
    loss, x, y = data
    model = nn.Sequential(nn.Dense(64, 16, activation="relu"), nn.Dense(16, 3), seed=0)
    expected = {
        "dead": "hardly falls",
        "wrong gradient": "rises",
        "other targets": "are alike",
        "nan": "NaN",
    }[what]
    if what == "dead":
        model.layers[0].parameters["bias"][...] = -1e3
    if what == "wrong gradient":
        model = nn.Sequential(nn.Dense(64, 3), Upside(), seed=0)
    if what == "other targets":
        x, y = np.repeat(x[:1], 50, 0), np.arange(50) % 3
    if what == "nan":
        model.flat_parameters[...] = np.nan
    found = diagnostics.fit_tiny(model, loss, x, y, steps=60)
    assert not found.ok
    assert expected in words(found), words(found)


def test_plots(data, tmp_path):
    pytest.importorskip("matplotlib")
    for measure in (diagnostics.layer_statistics, diagnostics.fit_tiny):
        figure = measure(deep("lecun", depth=2), *data).plot(tmp_path / "a.png", title="digits")
        assert figure.axes[0].get_title() == "digits"


def test_inputs_that_the_first_layer_scales_are_not_large(data):
    loss, x, y = data
    for first in (nn.Rescale(0.01), nn.BatchNorm(64)):
        model = nn.Sequential(first, nn.Dense(64, 3), seed=0)
        assert diagnostics.layer_statistics(model, loss, 100 * x, y).findings == []


def test_rounding_is_no_growth(data):
    model = deep(nn.Constant(0.0), "relu", depth=2)
    model.layers[0].parameters["bias"][...] = 0.1  # of which 64 times the mean is not 0.1 exactly
    assert "explode" not in words(diagnostics.layer_statistics(model, *data))
    assert "outputs vanish" not in words(diagnostics.layer_statistics(model, *data))


@pytest.mark.parametrize("loss", [nn.MSE(), nn.L1(), nn.Huber()])
def test_large_targets_are_named_and_no_broken_model(data, loss):
    _, x, _ = data
    y = 5000 + 1000 * np.random.default_rng(1).normal(size=50)
    model = nn.Sequential(nn.Dense(64, 64, activation="relu"), nn.Dense(64, 1), seed=0)
    found = diagnostics.fit_tiny(model, loss, x, y)
    assert found.ok, str(found)
    assert found.scale == pytest.approx(np.sqrt(np.mean(y[:8] ** 2)))
    assert len(found.findings) == 1
    assert "targets are large" in words(found)


@pytest.mark.parametrize(
    ("loss", "outputs", "y"),
    [
        (nn.BinaryCrossEntropy(), 1, np.full((50, 1), 0.3)),
        (nn.BinaryCrossEntropy(pos_weight=2.0), 1, np.full((50, 1), 0.3)),
        (nn.CrossEntropy(label_smoothing=0.3), 3, np.arange(50) % 3),
        (nn.CrossEntropy(class_weight=[1, 2, 3]), 3, np.full((50, 3), 1 / 3)),
    ],
)
def test_the_least_loss_of_shares_is_not_zero(data, loss, outputs, y):
    model = nn.Sequential(nn.Dense(64, 64, activation="relu"), nn.Dense(64, outputs), seed=0)
    found = diagnostics.fit_tiny(model, loss, data[1], y)
    assert found.ok, str(found)
    assert found.findings == []


@pytest.mark.parametrize(
    ("last", "loss", "named"),
    [
        ([nn.Dense(64, 3), nn.Softmax()], nn.CrossEntropy(), "ends with a Softmax, but CrossEntropy takes"),
        ([nn.Dense(64, 3), nn.LogSoftmax()], nn.CrossEntropy(), None),
        ([nn.Dense(64, 1), nn.Sigmoid()], nn.BinaryCrossEntropy(), "ends with a Sigmoid, but BinaryCross"),
        (
            [nn.Dense(64, 1, activation="sigmoid")],
            nn.BinaryCrossEntropy(),
            "ends with the activation sigmoid",
        ),
    ],
)
def test_probabilities_before_a_loss_on_logits_are_named(data, last, loss, named):
    _, x, y = data
    y = y if isinstance(loss, nn.CrossEntropy) else (y > 0).astype(float)
    found = diagnostics.fit_tiny(nn.Sequential(*last, seed=0), loss, x, y)
    assert (named or "") in words(found)
    assert named or not found.findings
