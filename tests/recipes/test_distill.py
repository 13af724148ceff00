"""Distilling: the loss is Hinton's, hints are trainings of their own, validation is by labels."""

from itertools import pairwise

import numpy as np
import pytest

import pyoptim as po
from pyoptim import callbacks, nn
from pyoptim.recipes import distill
from pyoptim.recipes._distill import Distillation

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(30, 4)).astype(np.float32), RNG.integers(0, 3, 30)


def network(*hidden, seed=0, dtype=np.float32):
    sizes = [4, *hidden]
    layers = [nn.Dense(a, b, activation="tanh") for a, b in pairwise(sizes)]
    return nn.Sequential(*layers, nn.Dense(sizes[-1], 3), seed=seed, dtype=dtype)


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def textbook(s, t, y, temperature, alpha):
    """Value and gradient of equation (4) of Hinton et al., with KL for the cross-entropy of soft targets."""
    soft, p = softmax(t / temperature), softmax(s / temperature)
    hard = np.eye(3)[y]
    value = alpha * temperature**2 * (soft * np.log(soft / p)).sum(axis=1)
    value -= (1 - alpha) * (hard * np.log(softmax(s))).sum(axis=1)
    gradient = alpha * temperature * (p - soft) + (1 - alpha) * (softmax(s) - hard)
    return value.mean(), gradient / len(s)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_is_the_textbooks(backend, alpha):
    s, t = RNG.normal(size=(2, 7, 3)) * 3
    y, weight = Y[:7], np.arange(7.0)
    value, gradient = textbook(s, t, y, 2.5, alpha)
    loss = Distillation(2.5, alpha)
    target = np.concatenate([softmax(t / 2.5), np.eye(3)[y]], axis=1)
    found = loss(s, target)
    assert found[0] == pytest.approx(value)
    assert found[1] == pytest.approx(gradient)
    found = loss(s, target, weight)
    assert found[1] == pytest.approx(gradient * weight[:, None])


@pytest.mark.parametrize("alpha", [None, 0.25, 1.0])
def test_a_step_follows_the_textbooks_gradient(alpha):
    teacher, student = network(5, seed=1, dtype=np.float64), network(dtype=np.float64)
    y = None if alpha is None else Y
    before = student.state_dict()
    said = teacher.eval()(X)
    _, gradient = textbook(student.eval()(X), said, Y, 3.0, 1.0 if alpha is None else alpha)
    teacher.train()
    stages = distill(
        teacher, student, X, y, temperature=3, alpha=alpha, epochs=1, batch_size=None, shuffle=False,
        optimizer=lambda p: po.SGD(p, lr=0.5), verbose=False,
    )  # fmt: skip
    after = student.state_dict()
    assert after["0.weight"] == pytest.approx(before["0.weight"] - 0.5 * gradient.T @ X)
    assert after["0.bias"] == pytest.approx(before["0.bias"] - 0.5 * gradient.sum(axis=0))
    assert teacher.training
    assert (teacher.eval()(X) == said).all()
    native = po.runtime.dispatch.current().name == "native" and alpha in (None, 1.0)
    assert stages["distill"].path == ("native" if native else "python")
    assert list(stages) == ["distill"]


def test_labels_count_a_tenth_by_default():
    losses = []
    for alpha in (None, 0.9):
        student = network(5)
        stages = distill(network(9, seed=1), student, X, Y, alpha=alpha, epochs=2, seed=0, verbose=False)
        losses.append((stages["distill"]["loss"], student.flat_parameters.tolist()))
    assert losses[0] == losses[1]


class Begin(callbacks.Callback):
    """Keeps what the model is as the last stage begins."""

    def on_train_begin(self):
        self.state = self.trainer.model.state_dict()


def test_hints_are_trainings_of_the_first_layers_with_a_regressor():
    teacher, student, expected = network(9, 8, seed=1), network(5, 6, 5), network(5, 6, 5)
    rng, begin = np.random.default_rng(7), Begin()
    for count, its, width in ((1, 0, 9), (3, 1, 8)):
        said = X
        for layer in teacher.layers[: its + 1]:
            said = layer.forward(said, False)
        first = [
            nn.Dense(a, b, activation="tanh", init="zeros") for a, b in pairwise([4, 5, 6, 5][: count + 1])
        ]
        part = nn.Sequential(*first, nn.Dense((5, 6, 5)[count - 1], width), seed=rng)
        values = expected.state_dict()
        own = {name: value for name, value in values.items() if int(name[0]) < count}
        part.load_state_dict({**part.state_dict(), **own})
        trainer = po.Trainer(part, nn.MSE(), po.Adam(part.parameters()), seed=rng)
        losses = trainer.fit(X, said, epochs=3, batch_size=10, verbose=False)["loss"]
        made = {name: value for name, value in part.state_dict().items() if int(name[0]) < count}
        expected.load_state_dict({**values, **made})
    stages = distill(
        teacher, student, X, hints={2: 1, 0: 0}, hint_epochs=3, epochs=1, batch_size=10, seed=7,
        callbacks=[begin], validation_data=(X, Y), verbose=False,
    )  # fmt: skip
    assert list(stages) == ["hint 0 from 0", "hint 2 from 1", "distill"]
    assert stages["hint 2 from 1"]["loss"] == losses
    for name, value in begin.state.items():
        assert (value == expected.state_dict()[name]).all(), name
    assert [len(history["loss"]) for history in stages.values()] == [3, 3, 1]
    assert len(stages.history["loss"]) == 7
    assert "val_loss" not in stages.history  # hints have none


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_validation_is_by_labels(alpha):
    pytest.importorskip("sklearn")
    student = network(5)
    history = distill(
        network(9, seed=1), student, X, Y, alpha=alpha, epochs=2, validation_data=(X, Y), metrics=["f1"],
        verbose=False,
    )["distill"]  # fmt: skip
    trainer = po.Trainer(student, nn.CrossEntropy(), po.SGD(student.parameters()), metrics=["f1"])
    found = trainer.evaluate(X, Y)
    assert {name: history[f"val_{name}"][-1] for name in found} == found


def test_a_student_comes_to_say_what_its_teacher_says():
    digits = po.datasets.load("digits", flatten=True, normalize=True)
    x, y = digits.x_train[:500], digits.y_train[:500]
    teacher, student = (
        nn.Sequential(nn.Dense(64, n, activation="relu"), nn.Dense(n, 10), seed=n) for n in (64, 16)
    )
    po.Trainer(teacher, nn.CrossEntropy(), po.Adam(teacher.parameters())).fit(x, y, epochs=15, verbose=False)
    distill(teacher, student, digits.x_train, epochs=20, seed=0, verbose=False)
    same = teacher.eval()(digits.x_test).argmax(axis=1) == student(digits.x_test).argmax(axis=1)
    assert same.mean() > 0.85


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.5}, "alpha is 0.5, but there are no labels y"),
        ({"y": Y + 1}, r"y\[0\] is 3, expected a class"),
        ({"hints": {2: 0}}, "hints holds layer 2 of the student, expected one from 0 to 1"),
        ({"hints": {0: 1}}, "hints holds layer 1 of the teacher, expected one from 0 to 0"),
        ({"hints": {0: 0}, "callbacks": [3]}, r"callbacks\[0\]"),
        ({"hints": {0: 0}, "validation_data": (X, Y[:5])}, "validation_data"),
        ({"validation_split": 0.5}, "validation_split is 0.5, but distill expected validation_data"),
        ({"teacher": nn.Sequential(nn.Dense(4, 5))}, r"teacher of \(5,\)"),
        ({"x": X[:0]}, "x is empty"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(options, message):
    student = network(5, 6)
    before = student.state_dict()
    given = {"teacher": network(9, seed=1), "x": X, "verbose": False, **options}
    with pytest.raises((TypeError, ValueError), match=message):
        distill(student=student, **given)
    assert all((value == before[name]).all() for name, value in student.state_dict().items())


def test_a_teacher_that_has_diverged_is_refused():
    teacher = network(9)
    teacher.flat_parameters[...] = np.nan
    with pytest.raises(ValueError, match="teacher's outputs hold NaN or infinity"):
        distill(teacher, network(5), X)


def test_all_hints_are_checked_before_the_first_is_trained():
    student = network(5, 5, seed=2)
    teacher = nn.Sequential(nn.Dense(4, 6), nn.Dense(6, 6), nn.Tanh(), nn.Dense(6, 3), seed=1)
    teacher.layers[1].parameters["bias"][...] = np.inf  # which the layer after it hides
    before = np.array(student.flat_parameters)
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="layer 1 returns NaN or infinity"):
        distill(teacher, student, X, hints={0: 0, 1: 1}, epochs=1, verbose=False)
    assert (before == student.flat_parameters).all()


def test_a_model_does_not_teach_itself_and_one_output_teaches_nothing():
    model = network(5)
    with pytest.raises(ValueError, match="student is teacher, expected another model"):
        distill(model, model, X)
    one, two = (nn.Sequential(nn.Dense(4, 1), seed=seed) for seed in (0, 1))
    with pytest.raises(ValueError, match="two classes or more"):
        distill(one, two, X)
    with pytest.raises(ValueError, match="target is source, expected another model"):
        po.recipes.transfer(model, model, 1)
    assert model.layers[0].trainable
