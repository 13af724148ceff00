"""``pyoptim check``: the diagnostics on one model and data set, and on a page what looks wrong, first."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np

from .. import datasets, diagnostics, metrics, nn
from ..datasets import Dataset
from ..optim.elementwise import Adam
from ..runtime.figures import new_figure
from ..train.trainer import Trainer

_EXAMPLES = 500  # that diagnostics of a trained model look at
_TRAININGS = 2000  # examples of the repeated trainings


class _Part(NamedTuple):
    name: str
    found: Any  # with numbers as words, and a method `plot`


@dataclass(frozen=True)
class _Failed:
    """What stands on the page in place of a part that raised an error."""

    reason: str

    def __str__(self) -> str:
        return f"it could not be measured: {self.reason}"

    def plot(self, *, axes: Any, title: str) -> None:
        axes.text(0.5, 0.5, fill(str(self), 40), ha="center", va="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[], title=title)


def _measured(measure: Callable[..., Any], *given: Any, **options: Any) -> Any:
    """Return what is found, or why nothing is: one part that fails does not take the page with it."""
    try:
        with np.errstate(all="ignore"):
            return measure(*given, **options)
    except Exception as error:
        return _Failed(str(error) or type(error).__name__)


def main(options: argparse.Namespace) -> int:
    """Run the command on parsed arguments; returns the exit status."""
    data = datasets.load(options.dataset, flatten=True, normalize=not options.raw)
    model = _model(options, data)
    sizes = "-".join(map(str, [data.x_train.shape[1], *_widths(model)]))
    wrong: list[str] = []
    parts = _before(model, data, wrong, "layers" if options.model else "layers at the start")
    if options.model is None:
        _trainer(model, options.seed).fit(
            data.x_train, data.y_train, epochs=options.epochs, verbose=not options.quiet
        )
    scores = _scores(model, data, wrong)
    parts += _after(model, data, wrong, options.model is None)
    parts += _trainings(options, data)
    reasons = dict.fromkeys(part.found.reason for part in parts if isinstance(part.found, _Failed))
    wrong += [f"some parts of this page could not be measured: {reason}" for reason in reasons]
    title = f"{options.dataset}, {sizes}, " + (options.model or f"Adam, epochs: {options.epochs}")
    _print(title, wrong, scores, parts)
    if options.plot:
        _draw(options.plot, title, parts)
        print(f"plot saved to {options.plot}")
    return 0


def _model(options: argparse.Namespace, data: Dataset) -> nn.Sequential:
    if options.model is None:
        return _made(options, data, options.seed)
    model = nn.Sequential.load(options.model)
    try:
        outputs = model.output_shape(data.x_train.shape[1:])
    except ValueError as error:
        raise ValueError(f"--model {options.model} does not fit {options.dataset}: {error}") from None
    classes = int(data.y_train.max()) + 1
    if outputs != (classes,):
        raise ValueError(f"--model {options.model} has outputs {outputs}, expected ({classes},)")
    return model


def _made(options: argparse.Namespace, data: Dataset, seed: int) -> nn.Sequential:
    sizes = [data.x_train.shape[1], *options.hidden, int(data.y_train.max()) + 1]
    hidden = [
        nn.Dense(a, b, activation=options.activation, init=options.init) for a, b in pairwise(sizes[:-1])
    ]
    return nn.Sequential(*hidden, nn.Dense(sizes[-2], sizes[-1], init=options.init), seed=seed)


def _widths(model: nn.Sequential) -> list[int]:
    return [layer.out_features for layer in model.leaves().values() if isinstance(layer, nn.Dense)]


def _trainer(model: nn.Sequential, seed: int) -> Trainer:
    return Trainer(model, nn.CrossEntropy(), Adam(model.parameters()), seed=seed)


def _before(model: nn.Sequential, data: Dataset, wrong: list[str], layers_title: str) -> list[_Part]:
    """Return what can be said of the model as it stands, before any training."""
    loss, x, y = nn.CrossEntropy(), data.x_train, data.y_train
    gradients = _measured(diagnostics.gradient_check, model, loss, x[:16], y[:16], entries=5)
    layers = _measured(diagnostics.layer_statistics, model, loss, x[:_EXAMPLES], y[:_EXAMPLES])
    tiny = _measured(diagnostics.fit_tiny, model, loss, x, y)
    if not (isinstance(gradients, _Failed) or gradients.ok or gradients.unclear):
        wrong.append(str(gradients))
    wrong += [] if isinstance(layers, _Failed) else layers.findings
    if not isinstance(tiny, _Failed):
        begin = "" if tiny.ok else "not even 8 examples can be fitted: "
        wrong += [begin + finding for finding in tiny.findings]
    shares = np.bincount(y) / len(y)
    wrong += [
        f"class {label} is rare: {share:.1%} of the training examples"
        for label, share in enumerate(shares)
        if share < 0.2 / len(shares)
    ]
    return [
        _Part("gradient check", gradients),
        _Part(layers_title, layers),
        _Part("8 examples", tiny),
    ]


def _after(model: nn.Sequential, data: Dataset, wrong: list[str], has_changed: bool) -> list[_Part]:
    """Return what can be said of the trained model; of its layers only if `_before` has not said it."""
    given = nn.CrossEntropy(), data.x_train[:_EXAMPLES], data.y_train[:_EXAMPLES]
    parts = []
    if has_changed:
        layers = _measured(diagnostics.layer_statistics, model, *given)
        findings = [] if isinstance(layers, _Failed) else layers.findings
        wrong += [f"after training: {finding}" for finding in findings if "inputs are" not in finding]
        parts = [_Part("layers after training", layers)]
    measures: dict[str, Callable[..., Any]] = {
        "gradient noise": diagnostics.gradient_noise, "curvature": diagnostics.curvature,
    }  # fmt: skip
    if find_spec("scipy") is not None:
        measures |= {"spectrum": diagnostics.hessian_spectrum, "sharpness": diagnostics.sharpness}
    measures["loss slice"] = diagnostics.loss_slice
    return [*parts, *(_Part(name, _measured(measure, model, *given)) for name, measure in measures.items())]


def _trainings(options: argparse.Namespace, data: Dataset) -> list[_Part]:
    """Return what repeated trainings on part of the data say."""
    if options.model is not None:
        return []
    given = data.x_train[:_TRAININGS], data.y_train[:_TRAININGS]

    def make(seed: int) -> Trainer:
        return _trainer(_made(options, data, seed), seed)

    common: dict[str, Any] = {
        "validation_data": (data.x_test, data.y_test), "fit": {"epochs": options.epochs},
    }  # fmt: skip
    return [
        _Part("learning curve", _measured(diagnostics.learning_curve, make, *given, repeats=2, **common)),
        _Part("bias and variance", _measured(diagnostics.bias_variance, make, *given, repeats=5, **common)),
    ]


def _scores(model: nn.Sequential, data: Dataset, wrong: list[str]) -> str:
    trainer = _trainer(model, 0)
    fitted, outputs = trainer.predict(data.x_train), trainer.predict(data.x_test)
    if not (np.isfinite(fitted).all() and np.isfinite(outputs).all()):
        wrong.append("the model has outputs that are NaN or infinite: it has diverged")
        return "none: the model has outputs that are NaN or infinite"
    train = metrics.accuracy(data.y_train, fitted)
    test, sure = metrics.accuracy(data.y_test, outputs), metrics.selective_accuracy(data.y_test, outputs)
    if train - test > 0.1:
        wrong.append(
            f"it overfits: {train:.1%} of the training and {test:.1%} of the test examples are right"
        )
    often = float(np.bincount(data.y_test).max() / len(data.y_test))
    if test < 1.5 * often:
        wrong.append(
            f"it has hardly learnt: {test:.1%} are right, and {often:.1%} with the most frequent class"
        )
    right = outputs.argmax(axis=1) == data.y_test
    found = {int(label): float(right[data.y_test == label].mean()) for label in np.unique(data.y_test)}
    worst = min(found, key=lambda label: found[label])
    if found[worst] < test - 0.2:
        wrong.append(f"class {worst} is found in {found[worst]:.1%} of its examples only")
    return (
        f"training accuracy {train:.2%}, test {test:.2%} ({sure:.2%} on the 90 % that it is most sure of); "
        f"worst class {worst}: {found[worst]:.2%}"
    )


def _print(title: str, wrong: list[str], scores: str, parts: list[_Part]) -> None:
    print(f"{title}\n\nWhat looks wrong")
    print("\n".join(f"  - {text}" for text in wrong) or "  nothing")
    print(f"\nAccuracy\n  {scores}")
    for name, found in parts:
        print(f"\n{name.capitalize()}\n  " + str(found).replace("\n", "\n  "))


def _draw(path: str, title: str, parts: list[_Part]) -> None:
    columns = 4
    figure = new_figure(6.5 * columns, 4.5 * -(-len(parts) // columns))
    panels = figure.subplots(-(-len(parts) // columns), columns, squeeze=False).ravel()
    for axes, (name, found) in zip(panels, parts, strict=False):
        found.plot(axes=axes, title=name)
    for axes in panels[len(parts) :]:
        axes.remove()
    figure.suptitle(title)
    figure.savefig(path, dpi=80)
