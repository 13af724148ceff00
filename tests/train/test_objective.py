"""The loss of all examples as a function, its derivatives against differences, and its minimisers."""

import copy
import pickle

import numpy as np
import pytest
from oracles.layers import numerical_gradient
from support import kinds

import pyoptim as po
from pyoptim import nn
from pyoptim.train import objective as objectives
from pyoptim.train.minimizing import METHODS

N = 20


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Several blocks in every test, the last one of which is smaller."""
    monkeypatch.setattr(objectives, "_BLOCK", 7)


def rng():
    return np.random.default_rng(0)


def quadratic():
    """Linear regression: an objective, and the matrix and targets whose least squares it is."""
    x, y = rng().normal(size=(N, 4)), rng().normal(size=N)
    model = nn.Sequential(nn.Dense(4, 1), seed=0, dtype=np.float64)
    return model, x, y, np.hstack([x, np.ones((N, 1))])


def losses():
    r = rng()
    made = {"CrossEntropy": (nn.CrossEntropy([0.5, 2.0, 1.0], 0.1), r.integers(0, 3, N))}
    made["KLDiv"] = nn.KLDiv(2.0, from_logits=True), r.normal(size=(N, 3))
    for loss in kinds.pointwise_losses():
        made[repr(loss)] = loss, kinds.pointwise_targets(loss.kind, r, (N, 3))
    return made


def layers():
    made = {repr(layer): layer for layer in kinds.activations()}
    made |= {name: kinds.layer(name) for name in kinds.LAYERS}
    made["Residual"] = nn.Residual([nn.Dense(8, 8), nn.Dropout(0.5), nn.Tanh()])
    return made


LAYERS, LOSSES = list(layers()), list(losses())


def model_with(layer, dtype=np.float64):
    return nn.Sequential(nn.Dense(5, 8), layer, nn.Dense(8, 3), seed=1, dtype=dtype)


def check_gradient(objective):
    w = objective.parameters + 0.01 * rng().normal(size=objective.size)  # away from kinks at 0
    value, gradient = objective.value_and_gradient(w)
    assert value == objective.value(w)
    np.testing.assert_array_equal(gradient, objective.gradient(w))
    expected = numerical_gradient(lambda: objective.value(w), w, 1e-6)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7 * max(1, abs(value)))


def check_product(objective, monkeypatch):
    """The exact product is the derivative of the gradient."""
    w = objective.parameters + 0.01 * rng().normal(size=objective.size)
    v = rng().normal(size=objective.size)
    exact = objective.hessian_vector(w, v)
    monkeypatch.setattr(objectives.tangents, "is_exact", lambda *_: False)
    np.testing.assert_allclose(exact, objective.hessian_vector(w, v), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", LAYERS)
def test_hessian_of_every_layer(name, monkeypatch):
    x, y = rng().normal(size=(N, 5)), rng().integers(0, 3, N)
    model = nn.Sequential(
        nn.Dense(5, 8, activation="tanh"), layers()[name], nn.Tanh(), nn.Dense(8, 3), seed=1, dtype=np.float64
    )
    check_product(po.Objective(model, nn.CrossEntropy(), x, y), monkeypatch)


@pytest.mark.parametrize("name", LOSSES)
def test_hessian_of_every_loss(name, monkeypatch):
    loss, y = losses()[name]
    x, weight = rng().normal(size=(N, 5)), rng().random(N)
    model, penalty = model_with(nn.Tanh()), nn.Penalty(l2=0.1, l1=0.01)
    check_product(po.Objective(model, loss, x, y, penalty, sample_weight=weight), monkeypatch)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm(3, activation="relu"),
        nn.BatchNorm(3, affine=False, track_running_stats=False),
        nn.LayerNorm((3, 2)),
        nn.LayerNorm(2, affine=False),
    ],
    ids=repr,
)
def test_hessian_of_norms_of_images(layer, monkeypatch):
    x, y = rng().normal(size=(N, 3, 2)), rng().integers(0, 3, N)
    model = nn.Sequential(
        nn.Residual([nn.LayerNorm((3, 2)), layer]), nn.Flatten(), nn.Dense(6, 3), dtype=np.float64, seed=0
    )
    check_product(po.Objective(model, nn.CrossEntropy(), x, y), monkeypatch)


def test_hessian_beside_a_frozen_norm(monkeypatch):
    x, y = rng().normal(size=(N, 5)), rng().integers(0, 3, N)
    model = model_with(nn.BatchNorm(8))
    model.layers[1].trainable = False
    check_product(po.Objective(model, nn.CrossEntropy(), x, y), monkeypatch)


@pytest.mark.parametrize("name", LAYERS)
def test_gradient_of_every_layer(name):
    x, y = rng().normal(size=(N, 5)), rng().integers(0, 3, N)
    check_gradient(po.Objective(model_with(layers()[name]), nn.CrossEntropy(), x, y))


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_of_every_loss(name):
    loss, y = losses()[name]
    weight = rng().random(N) if loss.takes_sample_weight else None
    penalty = nn.Penalty(l2=0.1, l1=0.01)
    x = rng().normal(size=(N, 5))
    objective = po.Objective(model_with(nn.Tanh()), loss, x, y, penalty, sample_weight=weight)
    check_gradient(objective)


def test_backends_agree_and_leave_the_model_as_it_is(backend):
    dtype = np.float32
    layer = nn.Residual([nn.Dense(8, 8), nn.BatchNorm(8), nn.Dropout(0.5), nn.LayerNorm(8), nn.GELU()])
    model = model_with(layer, dtype)
    x, y = rng().normal(size=(N, 5)).astype(dtype), rng().integers(0, 3, N)
    weight, penalty = rng().random(N), nn.Penalty(l2=0.1)
    objective = po.Objective(model, nn.CrossEntropy(), x, y, penalty, sample_weight=weight)
    before = model.state_dict()
    value, gradient = objective.value_and_gradient(objective.parameters + 0.125)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert objective.path == ("native" if backend.startswith("native") else "python")
    block = [nn.Dense(8, 8), nn.BatchNorm(8), nn.LayerNorm(8), nn.GELU()]  # Dropout does nothing
    wide = model_with(nn.Residual(block))
    with po.use_backend("numpy"):
        reference = po.Objective(wide, nn.CrossEntropy(), x, y, penalty, sample_weight=weight)
        expected, slope = reference.value_and_gradient(objective.parameters + 0.125)
    tolerance = 200 * np.finfo(dtype).eps
    np.testing.assert_allclose(value, expected, rtol=tolerance)
    np.testing.assert_allclose(gradient, slope, atol=tolerance * np.abs(slope).max())


@pytest.mark.parametrize("loss", [nn.CrossEntropy(), nn.CrossEntropy([0.5, 2.0, 0.0])], ids=repr)
def test_it_is_the_loss_that_evaluate_measures(loss):
    x, y = rng().normal(size=(N, 5)), rng().integers(0, 3, N)
    weight = rng().random(N)
    model = model_with(nn.Tanh())
    value = po.Objective(model, loss, x, y, sample_weight=weight)
    trainer = po.Trainer(model, loss, po.SGD(model.parameters()))
    expected = trainer.evaluate(x, y, sample_weight=weight)["loss"]
    assert value.value(value.parameters) == pytest.approx(expected, rel=1e-14)


def test_bytes_and_one_example():
    x, y = rng().integers(0, 256, (1, 5)).astype(np.uint8), np.array([2])
    model = nn.Sequential(nn.Rescale(), nn.Dense(5, 3), seed=0, dtype=np.float64)
    check_gradient(po.Objective(model, nn.CrossEntropy(), x, y))


def test_frozen_layers_are_no_part_of_the_vector():
    model = nn.Sequential(nn.Dense(5, 4), nn.Dense(4, 4), nn.Dense(4, 3), seed=0, dtype=np.float64)
    model.layers[1].trainable = False
    x, y = rng().normal(size=(N, 5)), rng().integers(0, 3, N)
    objective = po.Objective(model, nn.CrossEntropy(), x, y)
    assert objective.size == sum(p.size for p in model.parameters().values()) == 39
    check_gradient(objective)
    frozen = model.state_dict()
    po.minimize(model, nn.CrossEntropy(), x, y, max_iter=3, verbose=False)
    after = model.state_dict()
    for name in frozen:
        assert (name[0] == "1") == np.array_equal(frozen[name], after[name])


def test_hessian_of_a_quadratic():
    model, x, y, matrix = quadratic()
    objective = po.Objective(model, nn.MSE(), x, y, nn.Penalty(l2=0.5))
    expected = 2 / N * matrix.T @ matrix + 0.5 * np.diag([1, 1, 1, 1, 0])
    w, v = rng().normal(size=(2, 5))
    np.testing.assert_allclose(objective.hessian_vector(w, v), expected @ v, rtol=1e-13)
    np.testing.assert_allclose(objective.hessian(w), expected, atol=1e-14)
    np.testing.assert_array_equal(objective.hessian_vector(w, 0 * v), 0 * v)


# ---- minimize ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_minimum_of_a_quadratic(method):
    pytest.importorskip("scipy")
    model, x, y, matrix = quadratic()
    tol = 1e-10 if method in ("L-BFGS-B", "damped-newton") else 1e-7  # rounding may hide smaller gradients
    history = po.minimize(model, nn.MSE(), x, y, method, tol=tol, verbose=False)
    best = np.linalg.lstsq(matrix, y, rcond=None)[0]
    np.testing.assert_allclose(model.flat_parameters, best, atol=1e-6)
    assert history.result.success, history.result.message
    assert len(history["loss"]) == len(history["seconds"]) == history.result.nit
    assert history["loss"][-1] == pytest.approx(np.mean((matrix @ best - y) ** 2), rel=1e-9)
    if method == "damped-newton":
        assert history.result.nit == 1  # an undamped step is exact


@pytest.mark.parametrize("method", ["L-BFGS-B", "trust-krylov", "damped-newton"])
def test_logistic_regression_is_that_of_sklearn(method):
    linear = pytest.importorskip("sklearn.linear_model")
    x = rng().normal(size=(60, 4))
    y = (x @ [1.0, -2.0, 0.5, 0.0] + rng().normal(size=60) > 0).astype(int)
    theirs = linear.LogisticRegression(C=2.0, tol=1e-10, max_iter=1000).fit(x, y)
    model = nn.Sequential(nn.Dense(4, 1), seed=0, dtype=np.float64)
    penalty = nn.Penalty(l2=1 / (2.0 * len(x)))
    po.minimize(model, nn.BinaryCrossEntropy(), x, y, method, penalty=penalty, tol=1e-12, verbose=False)
    np.testing.assert_allclose(model.flat_parameters[:4], theirs.coef_[0], atol=1e-5)
    np.testing.assert_allclose(model.flat_parameters[4:], theirs.intercept_, atol=1e-5)


@pytest.mark.parametrize("method", ["trust-ncg", "damped-newton"])
def test_a_saddle_is_left(method):
    """At a saddle the Hessian is indefinite: plain Newton would stay near it."""
    pytest.importorskip("scipy")
    x = rng().normal(size=(30, 2))
    y = x[:, 0] * x[:, 1]
    model = nn.Sequential(nn.Dense(2, 4, activation="tanh"), nn.Dense(4, 1), seed=3, dtype=np.float64)
    model.flat_parameters *= 0.1
    history = po.minimize(model, nn.MSE(), x, y, method, max_iter=60, verbose=False)
    assert history["loss"][-1] < 0.05 * history["loss"][0]
    assert np.all(np.diff(history["loss"]) <= 1e-12)


def test_float32_comes_as_near_as_its_rounding_lets_it():
    pytest.importorskip("scipy")
    x, y = rng().normal(size=(N, 5)), rng().integers(0, 3, N)
    ends = []
    for dtype in (np.float32, np.float64):
        model = model_with(nn.Tanh(), dtype)
        penalty = nn.Penalty(l2=0.1)
        ends.append(po.minimize(model, nn.CrossEntropy(), x, y, penalty=penalty, verbose=False)["loss"][-1])
    assert ends[0] == pytest.approx(ends[1], rel=1e-3)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_are_those_of_the_accepted_weights(momentum):
    pytest.importorskip("scipy")
    x, y = rng().normal(size=(N, 5)), rng().integers(0, 3, N)
    norm = nn.BatchNorm(8, momentum=momentum)
    model = model_with(nn.Residual([nn.Dense(8, 8), norm, nn.Tanh()]))
    history = po.minimize(model, nn.CrossEntropy(), x, y, max_iter=5, verbose=False)
    before_norm = nn.Sequential(nn.Dense(5, 8), nn.Dense(8, 8), dtype=np.float64)
    before_norm.flat_parameters[...] = model.flat_parameters[: before_norm.flat_parameters.size]
    hidden = before_norm(x)
    np.testing.assert_allclose(norm.buffers["running_mean"], hidden.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(norm.buffers["running_var"], hidden.var(axis=0, ddof=1), atol=1e-12)
    assert norm.momentum == momentum
    # In evaluation the model nearly has the loss that was minimised; the running variance is unbiased.
    trainer = po.Trainer(model, nn.CrossEntropy(), po.SGD(model.parameters()))
    assert trainer.evaluate(x, y)["loss"] == pytest.approx(history["loss"][-1], rel=0.05)


def test_the_callback_sees_the_model_of_each_iteration_and_can_end_it():
    pytest.importorskip("scipy")
    for method in ("L-BFGS-B", "damped-newton"):
        model, x, y, _ = quadratic()
        model = nn.Sequential(nn.Dense(4, 3, activation="tanh"), nn.Dense(3, 1), seed=0, dtype=np.float64)
        seen = []

        def look(result, model=model, seen=seen):
            np.testing.assert_array_equal(model.flat_parameters, result.x)
            seen.append(result.fun)
            if len(seen) == 3:
                raise StopIteration

        history = po.minimize(
            model, nn.MSE(), x, y, method, callback=look, validation_data=(x[:5], y[:5]), verbose=False
        )
        assert history["loss"] == seen
        assert len(history["val_loss"]) == 3
        assert not history.result.success
        assert not model.training


def test_what_is_refused():
    x, y = rng().normal(size=(N, 5)), rng().integers(0, 3, N)
    model, loss = model_with(nn.Residual([nn.Dropout(0.5)])), nn.CrossEntropy()
    with pytest.raises(ValueError, match="method is 'lbfgs', expected"):
        po.minimize(model, loss, x, y, "lbfgs")
    with pytest.raises(ValueError, match=r"w has shape \(3,\), expected \(75,\)"):
        po.Objective(model, loss, x, y).value(np.zeros(3))
    pytest.importorskip("scipy")
    with pytest.raises(ValueError, match=r"layers\[1\].block\[0\] is a Dropout, which is random"):
        po.minimize(model, loss, x, y)
    wide = nn.Sequential(nn.Dense(5, 1600), nn.Dense(1600, 3))
    with pytest.raises(ValueError, match="at most 10,000 parameters, and the model has 14,403"):
        po.minimize(wide, loss, x, y, "damped-newton")
    with pytest.raises(ValueError, match=r"options is .*, but 'damped-newton' has none"):
        po.minimize(model_with(nn.Tanh()), loss, x, y, "damped-newton", options={"maxiter": 3})
    norm = model_with(nn.BatchNorm(8))
    with pytest.raises(ValueError, match="batch"):
        po.Objective(norm, loss, x[:1], y[:1])


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_diverged_is_refused(method):
    pytest.importorskip("scipy")
    x, y = rng().normal(size=(N, 5)), rng().integers(0, 3, N)
    model = model_with(nn.Tanh())
    model.flat_parameters[3] = np.nan
    with pytest.raises(ValueError, match="the objective is nan where the model stands"):
        po.minimize(model, nn.CrossEntropy(), x, y, method, verbose=False)


def test_a_model_whose_layers_freeze_needs_another_objective(backend):
    x, y = rng().normal(size=(N, 5)), rng().integers(0, 3, N)
    model = model_with(nn.Tanh())
    objective = po.Objective(model, nn.CrossEntropy(), x, y)
    w = objective.parameters
    objective.gradient(w)
    model.layers[0].trainable = False
    with pytest.raises(ValueError, match="frozen or thawed since the objective was made"):
        objective.gradient(w)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_compute_the_same(copied):
    x, y = rng().normal(size=(N, 5)), rng().integers(0, 3, N)
    objective = po.Objective(model_with(nn.Tanh()), nn.CrossEntropy(), x, y)
    value, gradient = objective.value_and_gradient(objective.parameters)
    other, (again, same) = copied(objective), objective.value_and_gradient(objective.parameters)
    assert other.value(objective.parameters) == value == again
    np.testing.assert_array_equal(same, gradient)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("layer", [1, 3])
def test_what_interrupts_the_statistics_leaves_the_model_as_it_was(error, layer, monkeypatch):
    x, y = rng().normal(size=(N, 5)), rng().integers(0, 3, N)
    norms = nn.BatchNorm(8), nn.BatchNorm(8)
    model = nn.Sequential(nn.Dense(5, 8), norms[0], nn.Dense(8, 8), norms[1], nn.Dense(8, 3), seed=0)
    objective = po.Objective(model, nn.CrossEntropy(), x, y)
    before, w = model.state_dict(), objective.parameters + 1

    def interrupted(*arguments):
        raise error

    monkeypatch.setattr(model.layers[layer + 1], "forward", interrupted)
    with pytest.raises(error):
        objective.set_parameters(w)
    after = model.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert [norm.momentum for norm in norms] == [0.1, 0.1]


def test_from_the_command_line(tmp_path, capsys):
    pytest.importorskip("scipy")
    from pyoptim import cli

    path = str(tmp_path / "m.safetensors")
    train = ["train", "--optimizer", "l-bfgs", "--epochs", "15", "--hidden", "16", "--save", path]
    assert cli.main(train) == 0
    shown = capsys.readouterr().out
    assert "with L-BFGS-B" in shown
    assert float(shown.split("test accuracy ")[1].split("%")[0]) > 80
    for option in (["--lr", "0.1"], ["--batch-size", "full"], ["--schedule", "constant"]):
        assert cli.main([*train, *option]) == 2
        assert f"{option[0]} is {option[1]}, but l-bfgs takes all examples at once" in capsys.readouterr().err
