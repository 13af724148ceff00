"""Curvature, spectrum, sharpness and slices of quadratics whose Hessian is known, and of a small network."""

import copy

import numpy as np
import pytest

from pyoptim import diagnostics, nn

ROOTS = np.array([3.0, 2, 1, 0.5])  # of the eigenvalues, times the root of a factor


def quadratic(w):
    """(mean of (x w - y)^2), of which the Hessian is diag(ROOTS^2) * 2/4 and the minimum is 0 at w = 0."""
    model = nn.Sequential(nn.Dense(4, 1, bias=False), seed=0)
    model.flat_parameters[...] = w
    return model, nn.MSE(), np.diag(ROOTS), np.zeros(4)


EIGENVALUES = ROOTS**2 / 2
W = np.array([1.0, -2, 0.5, 1])


def network(size=6):
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Dense(5, size, activation="tanh"), nn.Dropout(0.5), nn.Dense(size, 3), seed=1)
    return model, nn.CrossEntropy(), rng.normal(size=(20, 5)), rng.integers(0, 3, 20)


def test_curvature_of_a_quadratic():
    found = diagnostics.curvature(*quadratic(W))
    g = EIGENVALUES * W
    assert found.loss == pytest.approx(EIGENVALUES @ W**2 / 2)
    assert found.gradient_squared == pytest.approx(g @ g)
    assert found.curvature == pytest.approx(g @ (EIGENVALUES * g), rel=1e-5)
    assert found.best_step == pytest.approx(g @ g / (g @ (EIGENVALUES * g)), rel=1e-5)
    assert found.losses == pytest.approx(found.predicted, rel=1e-5)
    assert found.steps[np.argmin(found.losses)] == pytest.approx(found.best_step, rel=0.05)
    assert (found.losses[found.steps > found.largest_step] > found.loss).all()


def test_a_penalty_adds_to_the_curvature():
    plain, more = (
        diagnostics.hessian_spectrum(*quadratic(W), penalty=penalty) for penalty in (None, nn.Penalty(l2=3))
    )
    assert more.largest == pytest.approx(plain.largest + 3)


def test_at_a_minimum_nothing_is_curved_along_the_gradient():
    found = diagnostics.curvature(*quadratic(np.zeros(4)))
    assert (found.loss, found.gradient_squared, found.best_step) == (0, 0, np.inf)


def test_spectrum_of_a_quadratic():
    found = diagnostics.hessian_spectrum(*quadratic(W), count=2)
    assert found.largest == pytest.approx(np.sort(EIGENVALUES)[::-1][:2])
    assert found.smallest == pytest.approx(np.sort(EIGENVALUES)[:2])
    assert found.largest_step == pytest.approx(2 / EIGENVALUES.max())
    assert found.parameters == 4


def test_the_ends_of_a_spectrum_are_those_of_the_whole_hessian():
    pytest.importorskip("scipy")
    model, *data = network(30)
    found = diagnostics.hessian_spectrum(model, *data, count=3)
    problem = diagnostics._curvature.Problem(model, *data)
    assert problem.size > diagnostics._curvature._SMALL
    rows = [problem.hessian_vector(problem.parameters, unit) for unit in np.eye(problem.size)]
    values = np.linalg.eigvalsh((np.array(rows) + np.array(rows).T) / 2)
    assert found.largest == pytest.approx(values[::-1][:3], rel=1e-3)
    assert found.smallest == pytest.approx(values[:3], rel=1e-2, abs=1e-6)


def test_kinks_are_no_curvature():
    """A ReLU close to its kink, at which the gradient jumps; the loss is linear on either side."""
    model = nn.Sequential(nn.Dense(1, 1, activation="relu"), nn.Dense(1, 1, init="zeros"), seed=0)
    model.flat_parameters[...] = [0.5, -0.5 + 1e-7, 1, 0]
    loss, x, y = nn.L1(), np.ones((1, 1)), np.array([9.0])
    assert abs(diagnostics.hessian_spectrum(model, loss, x, y).largest).max() < 2  # 2.0 for a product of two


@pytest.mark.parametrize("w", [np.zeros(4), W])
def test_sharpness_of_a_quadratic(w):
    pytest.importorskip("scipy")
    found = diagnostics.sharpness(*quadratic(w), epsilon=0.1, rho=0.25)
    half = 0.1 * (np.abs(w) + 1)
    loss = EIGENVALUES @ w**2 / 2
    rise = EIGENVALUES @ (np.abs(w) + half) ** 2 / 2 - loss  # in the corner away from the minimum
    assert found.box_rise == pytest.approx(rise)
    assert found.keskar == pytest.approx(100 * rise / (1 + loss))
    g = EIGENVALUES * w
    step = 0.25 * g / np.linalg.norm(g) if g.any() else 0 * g
    assert found.sam == pytest.approx(EIGENVALUES @ (w + step) ** 2 / 2 - loss)


def test_a_slice_of_a_quadratic_between_two_models():
    model, *data = quadratic(W)
    other = copy.deepcopy(model)
    other.flat_parameters[...] = -W
    found = diagnostics.loss_slice(model, *data, other=other, points=9)
    assert found.along[[0, -1]] == pytest.approx([-0.5, 1.5])
    assert found.losses == pytest.approx(EIGENVALUES @ W**2 / 2 * (1 - 2 * found.along) ** 2)


def test_directions_are_as_long_as_the_weights_of_each_output():
    model, *data = network()
    problem = diagnostics._slices.Problem(model, *data)
    direction = diagnostics._slices._direction(problem, np.random.default_rng(0))
    at = 0
    for name, array in problem.names:
        part = direction[at : at + array.size].reshape(array.shape)
        at += array.size
        if name.endswith("bias"):
            assert not part.any()
        else:
            assert np.linalg.norm(part, axis=1) == pytest.approx(np.linalg.norm(array, axis=1))
    plane = diagnostics.loss_slice(model, *data, dimensions=2, points=3)
    assert plane.losses.shape == (3, 3)
    assert plane.losses[1, 1] == pytest.approx(problem.value(problem.parameters)) == plane.here


def test_models_are_left_alone_and_frozen_layers_stay():
    pytest.importorskip("scipy")
    model, *data = network()
    model.layers[0].trainable = False
    before, gradients = model.state_dict(), model.flat_gradients.copy()
    for measure in (diagnostics.curvature, diagnostics.sharpness, diagnostics.loss_slice):
        measure(model, *data)
    assert diagnostics.hessian_spectrum(model, *data).parameters == 21
    after = model.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert np.array_equal(gradients, model.flat_gradients)
    assert model.training
    model.layers[2].trainable = False
    with pytest.raises(ValueError, match="model has no parameters, or all are frozen"):
        diagnostics.curvature(model, *data)


def test_wrong_others():
    model, *data = network()
    with pytest.raises(ValueError, match="other has the layers"):
        diagnostics.loss_slice(model, *data, other=network(7)[0])
    with pytest.raises(ValueError, match="dimensions is 2, expected 1 between"):
        diagnostics.loss_slice(model, *data, other=model, dimensions=2)


def test_plots_and_words(tmp_path):
    figure_of = pytest.importorskip("matplotlib.figure")
    pytest.importorskip("scipy")
    figure = figure_of.Figure()
    model, *data = network()
    found = (
        diagnostics.curvature(model, *data, points=5),
        diagnostics.hessian_spectrum(model, *data),
        diagnostics.sharpness(model, *data),
        diagnostics.loss_slice(model, *data, points=3, dimensions=2),
        diagnostics.loss_slice(model, *data, points=3, other=model),
    )
    for one, axes in zip(found, figure.subplots(1, 5), strict=True):
        assert one.plot(axes=axes, title="digits") is figure
        assert axes.get_title() == "digits"
        assert "e" in str(one)


def test_products_are_exact_where_the_gradient_is_large():
    """The Hessian does not depend on the targets, which make the gradient a million times as long."""
    model, loss, x, y = quadratic(W)
    found = diagnostics.hessian_spectrum(model, loss, x, y + 1e8, count=4, penalty=nn.Penalty(l2=3))
    assert found.largest == pytest.approx(np.sort(EIGENVALUES)[::-1] + 3, rel=1e-12)


@pytest.mark.parametrize("size", [6, 30])
def test_a_model_that_diverged_is_said_to_be_so(size):
    pytest.importorskip("scipy")
    model, *data = network(size)
    model.flat_parameters[3] = np.nan
    found = diagnostics.curvature(model, *data, points=5)
    assert np.isnan([found.loss, found.best_step, found.largest_step]).all()
    assert "NaN or infinite" in str(found)
    spectrum = diagnostics.hessian_spectrum(model, *data)
    assert np.isnan([*spectrum.largest, *spectrum.smallest, spectrum.largest_step]).all()
    assert "not finite" in str(spectrum)
    sharp = diagnostics.sharpness(model, *data)
    assert np.isnan([sharp.box_rise, sharp.keskar, sharp.sam]).all()
    assert "NaN or infinite" in str(sharp)


def test_a_box_in_which_the_loss_overflows_has_no_sharpness():
    pytest.importorskip("scipy")
    found = diagnostics.sharpness(*network(), epsilon=1e308)
    assert np.isfinite(found.loss)
    assert np.isnan(found.box_rise)
    assert "take a smaller epsilon" in str(found)


def test_eigenvalues_that_were_not_found_are_nan(monkeypatch):
    linear = pytest.importorskip("scipy.sparse.linalg")

    def fails(*_, **__):
        raise linear.ArpackNoConvergence("none", np.array([]), np.array([]))

    monkeypatch.setattr(linear, "eigsh", fails)
    found = diagnostics.hessian_spectrum(*network(30))
    assert np.isnan([*found.largest, *found.smallest, found.largest_step]).all()
    assert "were not found" in str(found)


def test_a_loss_that_is_curved_downwards_is_said_to_be_so():
    model = nn.Sequential(nn.Dense(1, 1, bias=False), nn.Sigmoid(), seed=0)
    model.flat_parameters[...] = -3  # far from the target 1, where the sigmoid is flat
    found = diagnostics.curvature(model, nn.MSE(), np.ones((1, 1)), np.ones(1))
    assert found.best_step == np.inf
    assert "curved downwards along the gradient" in str(found)
    at_rest = diagnostics.curvature(*quadratic(np.zeros(4)))
    assert "the gradient is 0" in str(at_rest)


def test_the_line_to_another_model_ends_at_its_own_loss():
    """Also where layers are frozen, and normalise by statistics that differ between the two."""

    def made(seed, activation="tanh"):
        first = nn.Dense(5, 6, activation=activation)
        model = nn.Sequential(first, nn.BatchNorm(6), nn.Dense(6, 3), seed=seed, dtype=np.float64)
        model.layers[1].buffers["running_mean"][...] = seed / 10
        model.layers[0].trainable = model.layers[1].trainable = False
        return model

    _, *data = network()
    model, other = made(1), made(2)
    found = diagnostics.loss_slice(model, *data, other=other, points=9)
    assert found.losses[found.along == 0] == pytest.approx(diagnostics.curvature(model, *data).loss)
    assert found.losses[found.along == 1] == pytest.approx(diagnostics.curvature(other, *data).loss)
    with pytest.raises(ValueError, match="activation='relu'"):
        diagnostics.loss_slice(model, *data, other=made(2, "relu"))


@pytest.mark.parametrize("dimensions", [1, 2])
def test_a_slice_of_a_model_that_diverged_is_said_to_be_so(dimensions):
    figures = pytest.importorskip("matplotlib.figure")
    model, *data = network()
    model.flat_parameters[...] = np.nan
    found = diagnostics.loss_slice(model, *data, points=3, dimensions=dimensions)
    assert np.isnan(found.losses).all()
    assert "NaN or infinite" in str(found)
    found.plot(axes=figures.Figure().subplots())


@pytest.mark.parametrize("frozen", [False, True])
def test_exact_products_are_those_of_differences(frozen, monkeypatch):
    """Also with a penalty, layers that are frozen, and statistics of the batch."""
    rng = np.random.default_rng(0)
    layers = nn.Dense(5, 6, activation="tanh"), nn.BatchNorm(6), nn.Dropout(0.5), nn.Dense(6, 3)
    model = nn.Sequential(*layers, seed=1)
    model.layers[0].trainable, model.layers[1].trainable = not frozen, not frozen
    given = nn.CrossEntropy(class_weight=[1, 2, 3]), rng.normal(size=(20, 5)), rng.integers(0, 3, 20)
    problem = diagnostics._curvature.Problem(model, *given, nn.Penalty(l2=0.3))
    w, v = problem.parameters, rng.normal(size=problem.size)
    exact = problem.hessian_vector(w, v)
    monkeypatch.setattr(diagnostics._problem.tangents, "is_exact", lambda *_: False)
    assert problem.hessian_vector(w, v) == pytest.approx(exact, rel=1e-5, abs=1e-5)
    assert not np.array_equal(problem.hessian_vector(w, v), exact)
