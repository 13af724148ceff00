"""The gradient check on all that there is and on a wrong backward; the noise of a gradient."""

import numpy as np
import pytest
from oracles.layers import LAYERS

import pyoptim as po
from pyoptim import diagnostics, nn


def model_of(*layers, dtype=np.float32, seed=0):
    model = nn.Sequential(nn.Dense(8, 8), *layers, nn.Dense(8, 3), seed=seed, dtype=dtype)
    model.flat_parameters[...] += np.random.default_rng(1).normal(size=model.flat_parameters.size) * 0.2
    return model


def made(kind):
    """A layer of each kind, in a chain that it fits into."""
    if kind == "Residual":
        return [nn.Residual([nn.Dense(8, 8, activation="sigmoid"), nn.BatchNorm(8, activation="relu")])]
    return [nn.Layer.kinds[kind](**LAYERS.get(kind, ({},))[0])]


PUBLIC_LAYERS = sorted(
    kind for kind in nn.Layer.kinds if hasattr(nn, kind) and kind not in ("Layer", "Activation")
)
LOSSES = {
    "CrossEntropy": nn.CrossEntropy(class_weight=[1, 2, 3], label_smoothing=0.1),
    "KLDiv": nn.KLDiv(2.0),
    "BinaryCrossEntropy": nn.BinaryCrossEntropy(pos_weight=[1, 2, 3]),
    "Huber": nn.Huber(0.5),
}
PUBLIC_LOSSES = [name for name in nn.losses.__all__ if name != "Loss"]
PENALTIES = {"l2": nn.Penalty(l2=0.3, biases=True), "l1": nn.Penalty(l1=0.2, batch_norm=True)}
CASES = [
    *((layer, "CrossEntropy", None, training) for layer in PUBLIC_LAYERS for training in (True, False)),
    *(("ReLU", loss, None, True) for loss in PUBLIC_LOSSES),
    *(("BatchNorm", "MSE", penalty, True) for penalty in PENALTIES),
]


def targets(loss, rng):
    if loss == "CrossEntropy":
        return rng.integers(0, 3, 6)
    if loss == "KLDiv":
        return rng.dirichlet(np.ones(3), 6)
    return rng.choice([-1.0, 1.0], (6, 3)) if loss == "Hinge" else rng.random((6, 3))


@pytest.mark.parametrize(("layer", "loss", "penalty", "training"), CASES)
def test_every_layer_loss_and_penalty_has_the_right_gradient(layer, loss, penalty, training):
    rng = np.random.default_rng(3)
    model = model_of(*made(layer))
    before = model.state_dict()
    found = diagnostics.gradient_check(
        model, LOSSES.get(loss) or getattr(nn, loss)(), rng.normal(size=(6, 8)), targets(loss, rng),
        penalty=PENALTIES.get(penalty), training=training, entries=4, tolerance=1e-7,
    )  # fmt: skip
    assert found.ok, str(found)
    assert set(found.errors) == {*model.parameters(), "input"}
    after = model.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)


class Wrong(nn.Layer):
    """x * w, with a wrong gradient of w or of x."""

    def __init__(self, of_weight, of_input):
        super().__init__()
        self.of_weight, self.of_input = of_weight, of_input

    def parameter_shapes(self):
        return {"scale": (8,)}

    def initialize(self, rng):
        self.parameters["scale"][...] = rng.normal(size=8)

    def forward(self, x, training):
        self._x = x
        return x * self.parameters["scale"]

    def backward(self, dy, need_dx=True):
        self.gradients["scale"][...] = self.of_weight * (dy * self._x).sum(axis=0)
        return self.of_input * dy * self.parameters["scale"]


@pytest.mark.parametrize("factor", [-1, 0, 0.5, 1 + 1e-5])
def test_a_wrong_backward_is_found_and_named(factor):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(6, 8)), rng.integers(0, 3, 6)
    for layer, worst in ((Wrong(1, 1), None), (Wrong(factor, 1), {"1.scale"}), (Wrong(1, factor), None)):
        found = diagnostics.gradient_check(model_of(layer), nn.CrossEntropy(), x, y)
        assert found.ok == (layer.of_weight == layer.of_input == 1), str(found)
        wrong = {name for name, error in found.errors.items() if error > found.tolerance}
        if layer.of_weight != 1:
            assert wrong == worst
        elif layer.of_input != 1:
            assert wrong == {"0.weight", "0.bias", "input"}
        if wrong:
            assert found.worst in wrong
            assert repr(found.worst) in str(found)


def test_a_loss_with_a_wrong_gradient_is_wrong_everywhere():
    class Half(nn.MSE):
        def compute(self, output, target, gradient, sample_weight=None):
            value = super().compute(output, target, gradient, sample_weight)
            if gradient is not None:
                gradient *= 0.5
            return value

    rng = np.random.default_rng(3)
    found = diagnostics.gradient_check(model_of(), Half(), rng.normal(size=(6, 8)), rng.random((6, 3)))
    assert all(error > 0.1 for error in found.errors.values())


def test_examples_of_bytes():
    x = np.random.default_rng(3).integers(0, 255, (6, 8), dtype=np.uint8)
    assert diagnostics.gradient_check(model_of(nn.Sigmoid()), nn.MSE(), x, np.zeros((6, 3))).ok


def test_frozen_layers_are_left_out():
    rng = np.random.default_rng(3)
    model = model_of(nn.ReLU())
    model.layers[0].trainable = False
    found = diagnostics.gradient_check(model, nn.MSE(), rng.normal(size=(6, 8)), rng.random((6, 3)))
    assert found.ok
    assert set(found.errors) == {"2.weight", "2.bias", "input"}


def test_noise_of_a_known_gradient():
    """The gradient of (w - y)^2 at w = 1 is 2 (1 - y), of any example."""
    model = nn.Sequential(nn.Dense(1, 1, bias=False), seed=0)
    model.flat_parameters[...] = 1
    y = np.array([0.0, 1, 2, 5])
    found = diagnostics.gradient_noise(model, nn.MSE(), np.ones((4, 1)), y)
    gradients = 2 * (1 - y)
    assert found.norm == pytest.approx(abs(gradients.mean()))
    assert found.deviation == pytest.approx(gradients.std(ddof=1))
    assert found.batch_size == pytest.approx(gradients.var(ddof=1) / gradients.mean() ** 2)
    assert found.errors == pytest.approx(found.deviation / np.sqrt(found.sizes))
    penalised = diagnostics.gradient_noise(model, nn.MSE(), np.ones((4, 1)), y, penalty=nn.Penalty(l2=3.0))
    assert penalised.norm == pytest.approx(abs(gradients.mean() + 3))
    assert penalised.deviation == pytest.approx(found.deviation)
    with pytest.raises(ValueError, match="examples is 1 of 4"):
        diagnostics.gradient_noise(model, nn.MSE(), np.ones((4, 1)), y, examples=1)


def test_noise_with_weights_of_classes():
    """The mean of the gradients of examples is that of the batch, also where these are bytes."""
    rng = np.random.default_rng(3)
    model, x, y = model_of(), rng.integers(0, 3, (9, 8), dtype=np.uint8), rng.integers(0, 3, 9)
    loss = nn.CrossEntropy(class_weight=[0.3, 1.7, 2.5])
    found = diagnostics.gradient_noise(model, loss, x, y)
    assert found.norm**2 == pytest.approx(diagnostics.curvature(model, loss, x, y).gradient_squared)


def test_plots_return_the_figure(tmp_path):
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(3)
    data = rng.normal(size=(6, 8)), rng.integers(0, 3, 6)
    for measure in (diagnostics.gradient_check, diagnostics.gradient_noise):
        figure = measure(model_of(), nn.CrossEntropy(), *data).plot(tmp_path / "a.png", title="digits")
        assert figure.axes[0].get_title() == "digits"
    assert (tmp_path / "a.png").exists()
    assert po.diagnostics is diagnostics


class ScaledTanh(nn.Tanh):
    """A tanh whose backward is wrong by a factor."""

    factor = 1.0

    def backward(self, dy, need_dx=True):
        return super().backward(self.factor * dy, need_dx)


@pytest.mark.parametrize("power", [2, 3, 4, 5, 9])
@pytest.mark.parametrize("is_wrong", [False, True])
def test_where_the_loss_is_large_the_check_says_what_it_can_tell(power, is_wrong):
    rng = np.random.default_rng(3)
    layer = ScaledTanh()
    layer.factor = 1 + is_wrong * 10.0 ** (power - 7)
    found = diagnostics.gradient_check(
        model_of(layer), nn.MSE(), rng.normal(size=(6, 8)), rng.random((6, 3)) + 10.0**power
    )
    if is_wrong:
        assert not found.ok
        assert found.unclear or found.worst in ("0.weight", "0.bias", "input")
    else:
        assert found.ok or found.unclear
        assert max(found.errors.values()) <= found.tolerance
    if power == 2:
        assert found.ok == (not is_wrong)
    if power == 9 and not is_wrong:
        assert found.unclear
        assert "cannot be told" in str(found)


def test_gradients_of_a_model_that_diverged_are_not_called_wrong():
    rng = np.random.default_rng(3)
    model, data = model_of(nn.ReLU()), (nn.MSE(), rng.normal(size=(6, 8)), rng.random((6, 3)))
    model.flat_parameters[0] = np.nan
    found = diagnostics.gradient_check(model, *data)
    assert (found.ok, found.unclear) == (False, True)
    assert np.isnan(list(found.errors.values())).all()
    assert str(found).startswith("the loss or its gradient is NaN or infinite")
    noise = diagnostics.gradient_noise(model, *data)
    assert np.isnan([noise.norm, noise.deviation, noise.batch_size]).all()
    assert str(noise).startswith("the loss or its gradient is NaN or infinite")


def test_at_a_minimum_the_noise_of_few_examples_is_no_gradient():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    y = x @ [1.0, 2, 3] + rng.normal(size=400)
    model = nn.Sequential(nn.Dense(3, 1, bias=False), seed=0, dtype=np.float64)
    model.flat_parameters[...] = np.linalg.lstsq(x, y, rcond=None)[0]
    found = diagnostics.gradient_noise(model, nn.MSE(), x, y, examples=32)
    assert found.norm < 1e-12
    assert found.batch_size > 1e20
    assert found.deviation > 1


@pytest.mark.parametrize("seed", range(4))
def test_a_model_that_is_nearly_sure_has_right_gradients(seed):
    """Of a loss of a millionth, the rounding is that of the logarithm of 1, and no error."""
    rng = np.random.default_rng(seed)
    model, x = model_of(nn.ReLU(), seed=seed), rng.normal(size=(4, 8))
    output = model(x.astype(np.float32))
    top = np.sort(output, axis=1)
    model.layers[2].parameters["weight"][...] *= 14 / (top[:, -1] - top[:, -2]).min()
    model.layers[2].parameters["bias"][...] *= 14 / (top[:, -1] - top[:, -2]).min()
    found = diagnostics.gradient_check(model, nn.CrossEntropy(), x, output.argmax(axis=1))
    assert found.ok or found.unclear, str(found)
    assert max(found.errors.values()) <= found.tolerance
