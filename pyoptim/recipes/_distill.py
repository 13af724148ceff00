"""Distillation of a teacher into a student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import nn
from ..arrays.memory import empty_like
from ..nn.checkpoint import describe
from ..ops import losses
from ..optim.elementwise import Adam
from ..runtime.dtypes import Array
from ..runtime.numbers import POSITIVE, SHARE, check_count, check_seed, check_type, is_integer, shown
from ..train import evaluation
from ..train.data import Data, checked
from ..train.sources import Source
from ..train.trainer import Trainer
from ._stages import (
    MakeOptimizer,
    Stages,
    check_fit,
    check_maker,
    copy_layers,
    fit_stage,
    made_optimizer,
    made_trainer,
    part_of,
    predicted,
    shapes_of,
    split,
)


def distill(
    teacher: nn.Sequential,
    student: nn.Sequential,
    x: Any,
    y: Any = None,
    *,
    temperature: float = 4.0,
    alpha: float | None = None,
    hints: Mapping[int, int] | None = None,
    hint_epochs: int | None = None,
    epochs: int = 10,
    optimizer: MakeOptimizer = Adam,
    **options: Any,
) -> Stages:
    """Train a student on what a teacher says of the examples, which need no labels for it.

    The loss is ``alpha * T^2 * KL(softmax(t/T), softmax(s/T)) + (1 - alpha) * CrossEntropy(s, y)`` of the
    teacher's outputs t and the student's s (Hinton, Vinyals & Dean 2015, "Distilling the knowledge in a
    neural network"): at a temperature T > 1 what the teacher says of the wrong classes counts more.

    Parameters
    ----------
    teacher, student : nn.Sequential
        They take the same examples, and return logits of the same classes. The teacher is left as it is.
    x
        As `Trainer.fit`.
    y : array, optional
        Labels, or shares of classes, as `nn.CrossEntropy` takes them. Without, the teacher's outputs alone
        count.
    temperature : float > 0, default 4
        T.
    alpha : float in [0, 1], optional
        How much the teacher counts: 0.9 by default, and 1 without ``y``.
    hints : dict of int to int, optional
        Layers of the student -> layers of the teacher whose outputs they are to resemble, by their places in
        ``layers``: a stage for each pair, from the first layer of the student to the last, before the
        student learns the teacher's outputs (FitNets, Romero et al. 2015). In a stage the student's layers up
        to the hinted one are trained, with a `Dense` layer on top that turns its outputs into as many as the
        teacher's layer has, and is thrown away (the regressor), by `nn.MSE`.
    hint_epochs : int, optional
        Of each stage of hints; ``epochs`` by default.
    epochs : int, default 10
        Of the last stage.
    optimizer : callable, default Adam
        Makes the optimizer of a stage of its parameters: a class, or e.g. ``lambda p: SGD(p, lr=0.1)``.
    **options
        Further arguments of `Trainer` and `Trainer.fit`. ``validation_data`` (with labels, of which
        cross-entropy and accuracy are measured), ``metrics`` and ``callbacks`` are of the last stage. A
        ``checkpoint`` is a file for each stage, with its number before the suffix, and of this teacher alone:
        another one needs another file.

    Returns
    -------
    Stages
        A `History` for each pair of hints, named such as "hint 1 from 3", and the last one, "distill".

    Raises
    ------
    TypeError, ValueError
        As `Trainer` and `Trainer.fit`, or the models do not fit. The student is unchanged.

    Notes
    -----
    What the teacher says is computed once for each stage, in evaluation mode, of the examples as they are
    before a ``transform``. It takes the memory of the stage's targets: classes numbers an example, twice that
    with ``alpha`` below 1, and as many as the teacher's layer has outputs for a hint.

    With ``alpha`` 1 the compiled engine runs `nn.KLDiv`. The sum of two losses, at two temperatures, is none
    of the compiled ones: it takes the generic loop, and the models are on the processor.

    Examples
    --------
    >>> po.recipes.distill(teacher, student, x, temperature=4, epochs=30, seed=0)
    >>> po.recipes.distill(teacher, student, x, y, hints={1: 3}, validation_data=(x_test, y_test))
    """
    for name, model in (("teacher", teacher), ("student", student)):
        check_type(name, model, nn.Sequential, "a Sequential")
    if student is teacher:
        raise ValueError("student is teacher, expected another model")
    check_maker(optimizer)
    epochs = check_count("epochs", epochs)
    hint_epochs = epochs if hint_epochs is None else check_count("hint_epochs", hint_epochs)
    temperature = POSITIVE.number("temperature", temperature)
    if alpha is None:
        alpha = 1.0 if y is None else 0.9
    alpha = SHARE.number("alpha", alpha)
    expected = "validation_data, since it trains on the teacher's outputs"
    given = split("distill", options, True, validation_split=expected)
    given.trainer["seed"] = check_seed("seed", given.trainer.get("seed"))
    data = _checked_data(teacher, student, x, y, alpha)
    loss, targets = _soft_targets(teacher, data, temperature, alpha)
    trainer = _Student(student, loss, made_optimizer(optimizer, student), **given.trainer)
    last = {**given.fit, "epochs": epochs}
    pairs = _pairs(teacher, student, data.x.shape[1:], hints)
    check_fit(trainer, len(pairs), x, targets, last)
    stages, of_hint = Stages(), given.without("validation_data", "metrics", "callbacks")
    options = {**of_hint.fit, "epochs": hint_epochs}

    def hinted(own: int, its: int, seed: Any) -> tuple[Trainer, Array]:
        """Return the trainer of a stage of hints, and the targets."""
        said = _outputs(part_of("teacher", teacher, its + 1), x, f"teacher's layer {its} returns")
        regressor = nn.Dense(shapes_of(student, data.x.shape[1:])[own][0], said.shape[1])
        part = part_of("student", student, own + 1, regressor, seed=seed)
        return made_trainer(part, nn.MSE(), optimizer, {**of_hint.trainer, "seed": seed}), said

    for i, pair in enumerate(pairs):
        hint, said = hinted(*pair, seed=0)  # so that no number is drawn of the user's seed
        check_fit(hint, i, x, said, options)
    for i, pair in enumerate(pairs):
        hint, said = hinted(*pair, seed=of_hint.trainer["seed"])
        stages["hint {} from {}".format(*pair)] = fit_stage(hint, i, x, said, options)
        copy_layers(hint.model, student, pair[0] + 1)
    stages["distill"] = fit_stage(trainer, len(pairs), x, targets, last)
    return stages


class _Student(Trainer):
    """A trainer of which the validation has labels, though it trains on what a teacher says."""

    _labelled = nn.CrossEntropy()

    def _check_data(self, x: Any, y: Any, weight: Any = None, names: tuple[str, str] = ("x", "y")) -> Data:
        loss = self._labelled if names[0].startswith("validation_data") else self.loss
        return checked(self.model, loss, x, y, weight, names)

    def _evaluate(self, data: Data | Source) -> dict[str, float]:
        return evaluation.evaluate(self.model, self._labelled, self.metrics, data)


class Distillation(nn.Loss):
    """``alpha`` of `KLDiv` at a temperature, and the rest of `CrossEntropy`.

    Targets (batch, 2 * classes) are the teacher's shares at that temperature, and the labels' shares.
    """

    takes_sample_weight = True
    arguments = ("temperature", "alpha")

    def __init__(self, temperature: float, alpha: float) -> None:
        self.temperature, self.alpha = temperature, alpha
        self._parts = (alpha, nn.KLDiv(temperature)), (1 - alpha, nn.CrossEntropy())

    def check_target(
        self, name: str, target: Any, batch: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> Array:
        return losses.check_shares(name, target, (batch, 2 * shape[0]), dtype)

    def compute(
        self, output: Array, target: Array, gradient: Array | None, sample_weight: Array | None = None
    ) -> float:
        value, halves = 0.0, np.split(target, 2, axis=1)
        made = [None if gradient is None else empty_like(gradient) for _ in self._parts]
        for (share, loss), half, of_part in zip(self._parts, halves, made, strict=True):
            value += share * loss.compute(output, np.ascontiguousarray(half), of_part, sample_weight)
        if gradient is not None:
            soft, hard = made
            gradient[...] = self.alpha * soft + (1 - self.alpha) * hard  # type: ignore[operator]
        return value


def _checked_data(teacher: nn.Sequential, student: nn.Sequential, x: Any, y: Any, alpha: float) -> Data:
    """Return the examples, and the labels as shares of the classes, or None without any."""
    x = student.check_input("x", x, keep_bytes=True)
    if len(x) == 0:
        raise ValueError("x is empty, expected at least one example")
    shapes = [model.output_shape(x.shape[1:]) for model in (student, teacher)]
    if len(shapes[0]) != 1 or shapes[0] != shapes[1]:
        raise ValueError(
            f"student has outputs of shape {shapes[0]} and teacher of {shapes[1]}, expected (classes,) twice"
        )
    if shapes[0][0] < 2:
        raise ValueError("student and teacher have one output, expected one for each of two classes or more")
    if y is None:
        if alpha < 1:
            raise ValueError(f"alpha is {alpha!r}, but there are no labels y, expected 1")
        return Data(x, None)
    y = checked(student, nn.CrossEntropy(), x, y).y
    if alpha < 1 and student.device != "cpu":
        raise ValueError(f"alpha is {alpha!r}, but student is on {student.device!r}, expected 1 on a GPU")
    return Data(x, y if y.ndim == 2 else np.eye(shapes[0][0], dtype=student.dtype)[y])


def _outputs(model: nn.Sequential, x: Any, name: str = "teacher's outputs hold") -> Array:
    """Return what a teacher says, if that is finite."""
    said = predicted(model, x)
    if not np.isfinite(said).all():
        raise ValueError(f"{name} NaN or infinity, expected finite numbers")
    return said


def _soft_targets(
    teacher: nn.Sequential, data: Data, temperature: float, alpha: float
) -> tuple[nn.Loss, Array]:
    """Return the student's loss, and the targets that it takes."""
    said = _outputs(teacher, data.x)
    soft = nn.KLDiv(temperature, from_logits=True).check_target(
        "teacher", said, len(said), said.shape[1:], said.dtype
    )
    if alpha == 1:
        return nn.KLDiv(temperature), soft
    return Distillation(temperature, alpha), np.concatenate([soft, data.y.astype(soft.dtype)], axis=1)


def _pairs(
    teacher: nn.Sequential, student: nn.Sequential, shape: tuple[int, ...], hints: Any
) -> list[tuple[int, int]]:
    """Return the pairs of layers of the student and of the teacher, in the order of the student's."""
    if hints is None:
        return []
    check_type("hints", hints, Mapping, "a dict of layers of the student to layers of the teacher")
    for place in (*hints, *hints.values()):
        if not is_integer(place):
            raise TypeError(f"hints holds {shown(place)}, expected the places of layers, such as 1")
    for whose, model, places in (("student", student, hints), ("teacher", teacher, hints.values())):
        outputs = shapes_of(model, shape)
        for place in places:
            if not 0 <= place < len(outputs) - 1:
                raise ValueError(
                    f"hints holds layer {place} of the {whose}, expected one from 0 to {len(outputs) - 2}: "
                    "a hidden layer"
                )
            if len(outputs[place]) != 1:
                raise ValueError(
                    f"hints holds layer {place} of the {whose}, which has outputs of shape {outputs[place]}, "
                    "expected (features,)"
                )
        describe(f"{whose}.layers", model.layers)
    for place in hints:
        if not any(layer.learns for layer in student.layers[: place + 1]):
            raise ValueError(f"hints holds layer {place} of the student, up to which nothing learns")
    return sorted((int(own), int(its)) for own, its in hints.items())
