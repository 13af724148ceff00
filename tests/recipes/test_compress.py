"""Compression: each stage is smaller than the one before and still knows what the model says."""

import numpy as np
import pytest

import pyoptim as po
from pyoptim import nn


def problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 10)).astype(np.float32)
    y = (x[:, :3] + x[:, 3:6]).argmax(axis=1)
    model = nn.Sequential(nn.Dense(10, 100), nn.ReLU(), nn.Dense(100, 3), seed=0)
    po.Trainer(model, nn.CrossEntropy(), po.Adam(model.parameters(), lr=0.01), seed=0).fit(
        x, y, epochs=10, verbose=False
    )
    return model, x, y


@pytest.mark.parametrize("units", [True, False])
def test_stages(units):
    model, x, y = problem()
    before = model.state_dict()
    student = nn.Sequential(nn.Dense(10, 20), nn.ReLU(), nn.Dense(20, 3), seed=1)
    fit = {"epochs": 15, "batch_size": 20}
    made = po.recipes.compress(
        model, x[:300], student, units=units, optimizer=lambda p: po.Adam(p, lr=0.01), fit=fit,
        test_data=(x[300:], y[300:]),
    )  # fmt: skip
    first, second, pruned, last = made.stages
    assert [stage.name for stage in made.stages] == ["model", "student", "pruned", "8 bits"]
    assert first.model is model
    assert second.model is student
    assert all((before[name] == value).all() for name, value in model.state_dict().items())
    counts = [stage.parameters for stage in (first, second, pruned)]
    assert counts == [1403, 283, 143 if units else 283 - 130]
    assert first.nbytes == 4 * 1403
    assert pruned.nbytes == 4 * (143 if units else 283)
    assert last.nbytes < pruned.nbytes
    assert isinstance(last.model, po.recipes.QuantizedModel)
    for stage in made.stages:
        outputs = np.asarray(stage.model(x[300:]))
        assert stage.accuracy == (outputs.argmax(axis=1) == y[300:]).mean()
        assert stage.fidelity == (outputs.argmax(axis=1) == model(x[300:]).argmax(axis=1)).mean()
        assert stage.fidelity > 0.8
        assert stage.latency > 0 < stage.seconds
    table = str(made).splitlines()
    assert len(table) == 5
    assert "1,403" in table[1]


def test_it_is_the_model_that_is_learned_and_not_labels():
    """A model of one output that no label knows of."""
    x = np.random.default_rng(0).normal(size=(300, 4))
    model = nn.Sequential(nn.Dense(4, 30, activation="tanh"), nn.Dense(30, 1), seed=3)
    student = nn.Sequential(nn.Dense(4, 12, activation="tanh"), nn.Dense(12, 1), seed=4)
    untrained = student(x)
    made = po.recipes.compress(
        model, x, student, share=0.2, optimizer=lambda p: po.Adam(p, lr=0.02), fit={"epochs": 20}
    )
    r2 = [1 - ((np.asarray(s.model(x)) - model(x)) ** 2).mean() / model(x).var() for s in made.stages]
    assert [s.fidelity for s in made.stages] == pytest.approx(r2, abs=1e-5)
    assert 1 - ((untrained - model(x)) ** 2).mean() / model(x).var() < 0.3 < 0.9 < min(r2)
    assert np.isnan(made.stages[0].accuracy)


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    model, x, _ = problem()
    student = nn.Sequential(nn.Dense(10, 4), nn.Dense(4, 3), seed=1)
    made = po.recipes.compress(model, x, student, fit={"epochs": 1})
    figure = made.plot(tmp_path / "compressed.png")
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == [stage.nbytes for stage in made.stages]


def test_what_is_refused():
    model, x, _ = problem()
    student = nn.Sequential(nn.Dense(10, 4), nn.Dense(4, 2), seed=1)
    with pytest.raises(ValueError, match="student is the model"):
        po.recipes.compress(model, x, model)
    with pytest.raises(ValueError, match="student has outputs"):
        po.recipes.compress(model, x, student)
    with pytest.raises(TypeError, match="test_data is"):
        po.recipes.compress(model, x, student, test_data=x)


def test_a_student_that_cannot_be_pruned_is_not_trained():
    student = nn.Sequential(nn.Dense(4, 3), seed=0)
    before = student.flat_parameters.copy()
    with pytest.raises(ValueError, match="student has no hidden Dense layer"):
        po.recipes.compress(nn.Sequential(nn.Dense(4, 3), seed=1), np.ones((5, 4), np.float32), student)
    assert (before == student.flat_parameters).all()
