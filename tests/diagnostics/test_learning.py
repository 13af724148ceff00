"""Learning curves and the parts of an error, where it is known what a training does: it takes a mean."""

import numpy as np
import pytest

import pyoptim as po
from pyoptim import diagnostics, nn
from pyoptim.diagnostics._learning import power_law


def mean_trainer(seed):
    """A step of one epoch over all examples brings the output to their mean."""
    model = nn.Sequential(nn.Dense(1, 1, bias=False), seed=seed, dtype=np.float64)
    return po.Trainer(model, nn.MSE(), po.SGD(model.parameters(), lr=0.5), seed=seed)


ONE_STEP = {"epochs": 1, "batch_size": None}


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    y = rng.normal(3, 2, 64)
    return np.ones((64, 1)), y, (np.ones((1000, 1)), rng.normal(3, 2, 1000))


def test_a_learning_curve_of_means(data):
    x, y, validation = data
    found = diagnostics.learning_curve(
        mean_trainer, x, y, validation_data=validation, sizes=[2, 8, 64], repeats=40, fit=ONE_STEP
    )
    assert found.sizes.tolist() == [2, 8, 64]
    assert found.validation.shape == (3, 40)
    assert found.training[2] == pytest.approx(np.full(40, y.var()))
    assert found.validation[2] == pytest.approx(np.full(40, np.mean((validation[1] - y.mean()) ** 2)))
    for i, n in enumerate([2, 8]):
        assert found.training[i].mean() == pytest.approx(y.var(ddof=1) * (1 - 1 / n), rel=0.25)
    assert found.at(1e9) == pytest.approx(found.validation[2, 0], rel=0.1)
    assert "with twice as many" in str(found)


@pytest.mark.parametrize("law", [(0.1, 2.0, 0.5), (0.0, 1.0, 0.3), (0.25, 0.0, 1.0)])
def test_a_law_is_found_again(law):
    sizes = np.array([10, 30, 100, 300, 1000])
    a, b, c = power_law(sizes, law[0] + law[1] * sizes ** -law[2])
    assert a + b * 1e4**-c == pytest.approx(law[0] + law[1] * 1e4 ** -law[2], rel=1e-2)


def test_bias_and_variance_of_means(data):
    x, y, validation = data
    found = diagnostics.bias_variance(
        mean_trainer, x, y, validation_data=validation, repeats=200, noise=4.0, fit=ONE_STEP
    )
    means = found.predictions[:, 0, 0]
    assert found.variance == pytest.approx(means.var(ddof=1)) == pytest.approx(y.var() / 64, rel=0.2)
    squared = np.mean((validation[1] - means.mean()) ** 2)
    assert found.bias_squared == pytest.approx(squared - found.variance / 200 - 4)
    assert found.error == pytest.approx(np.mean((validation[1] - found.predictions[..., 0]) ** 2))
    assert found.error == pytest.approx(found.bias_squared + found.variance + found.noise)


def test_probabilities_are_compared_for_classes():
    def untrained(seed):
        model = nn.Sequential(nn.Dense(2, 2, init="zeros"), seed=seed)
        return po.Trainer(model, nn.CrossEntropy(), po.SGD(model.parameters(), lr=0.0))

    x, y = np.ones((4, 2)), np.array([0, 1, 0, 1])
    found = diagnostics.bias_variance(untrained, x, y, validation_data=(x, y), repeats=2, fit={"epochs": 1})
    assert (found.variance, found.error) == (0, pytest.approx(0.5))  # 0.5^2 + 0.5^2
    assert found.predictions == pytest.approx(np.full((2, 4, 2), 0.5))
    curve = diagnostics.learning_curve(untrained, x, y, validation_data=(x, y), repeats=1, fit={"epochs": 1})
    assert curve.validation[-1, 0] == 0.5
    assert curve.sizes.tolist() == [2, 3, 4]


def test_wrong_arguments(data):
    x, y, validation = data
    for options, message in (
        ({"sizes": [1, 65]}, "sizes holds 65, expected integers from 1 to 64"),
        ({"validation_data": 3}, "validation_data is 3"),
        ({"make": lambda seed: None}, "make returned a NoneType"),
        ({"y": y[:3]}, "y has 3 targets, expected 64"),
    ):
        arguments = {"make": mean_trainer, "x": x, "y": y, "validation_data": validation, **options}
        with pytest.raises((TypeError, ValueError), match=message):
            diagnostics.learning_curve(**arguments, fit=ONE_STEP)
    with pytest.raises(ValueError, match="repeats is 1, expected at least 2"):
        diagnostics.bias_variance(mean_trainer, x, y, validation_data=validation, repeats=1)


def test_plots(data, tmp_path):
    pytest.importorskip("matplotlib")
    x, y, validation = data
    options = {"validation_data": validation, "repeats": 2, "fit": ONE_STEP}
    for measure in (diagnostics.learning_curve, diagnostics.bias_variance):
        figure = measure(mean_trainer, x, y, **options).plot(tmp_path / "a.png", title="digits")
        assert figure.axes[0].get_title() == "digits"


def still(loss, outputs, bias=0.0):
    """A function that makes trainers of a model that gives the same output always."""

    def make(seed):
        model = nn.Sequential(nn.Dense(1, outputs, init="zeros"), seed=seed)
        model.layers[0].parameters["bias"][...] = bias
        return po.Trainer(model, loss, po.SGD(model.parameters(), lr=0.0))

    return make


@pytest.mark.parametrize(
    ("loss", "bias", "y", "predicted"),
    [
        (nn.BinaryCrossEntropy(), [np.log(3)], [1.0, 0, 1, 1], [0.75]),
        (nn.Poisson(), [np.log(3)], [3.0, 3, 3, 3], [3]),
        (nn.KLDiv(2.0), [2 * np.log(3), 0], [[0.75, 0.25]] * 4, [0.75, 0.25]),
        (nn.MSE(), [3], [3.0, 3, 3, 3], [3]),
    ],
)
def test_predictions_are_compared_and_not_logits(loss, bias, y, predicted):
    x, y = np.ones((4, 1)), np.array(y)
    found = diagnostics.bias_variance(
        still(loss, len(bias), bias), x, y, validation_data=(x, y), repeats=2, fit={"epochs": 1}
    )
    assert found.predictions[0] == pytest.approx(np.tile(predicted, (4, 1)))
    squares = (y.reshape(4, -1) - predicted) ** 2
    assert found.error == pytest.approx(squares.sum(axis=1).mean(), abs=1e-12)


def test_a_loss_without_predictions_is_refused():
    x, y = np.ones((4, 1)), np.ones(4)
    with pytest.raises(ValueError, match="the outputs of a model with the loss Hinge are no predictions"):
        diagnostics.bias_variance(still(nn.Hinge(), 1), x, y, validation_data=(x, y))


def test_a_training_that_diverged_leaves_the_others(data):
    x, y, validation = data
    calls = []

    def make(seed):
        trainer = mean_trainer(seed)
        calls.append(seed)
        if len(calls) == 3:
            trainer.model.flat_parameters[...] = np.nan
        return trainer

    found = diagnostics.learning_curve(
        make, x, y, validation_data=validation, sizes=[2, 8, 64], repeats=1, fit=ONE_STEP
    )
    assert np.isfinite(found.validation[:2]).all()
    assert np.isfinite(found.law).all()
    assert "diverged" in str(found)
    assert np.isnan(power_law(np.array([1, 2]), np.full(2, np.nan))).all()


def test_all_sizes_are_checked_before_the_first_training():
    trained = []

    def make(seed):
        model = nn.Sequential(nn.BatchNorm(1), nn.Dense(1, 1), seed=seed)
        trainer = po.Trainer(model, nn.MSE(), po.SGD(model.parameters(), lr=0.1))
        trainer.fit = lambda *_, **__: trained.append(seed)
        return trainer

    x, y = np.ones((100, 1)), np.ones(100)
    with pytest.raises(ValueError, match="sizes holds 65: batch_size 32 makes a batch of 1 of 65 examples"):
        diagnostics.learning_curve(make, x, y, validation_data=(x, y), sizes=[32, 65, 100])
    assert trained == []


def test_the_same_model_again_is_refused(data):
    x, y, validation = data
    trainer = mean_trainer(0)
    for measure in (diagnostics.learning_curve, diagnostics.bias_variance):
        with pytest.raises(ValueError, match="expected a new model each time"):
            measure(lambda seed: trainer, x, y, validation_data=validation, fit=ONE_STEP)


def test_nothing_is_left_to_gain_without_errors():
    errors = np.zeros((2, 1))
    found = diagnostics._learning.LearningCurve(np.array([2, 4]), errors, errors, (0.0, 0.0, 1.0))
    assert str(found).endswith("nothing is left to gain")
