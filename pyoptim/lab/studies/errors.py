"""The studies of what errors consist of, and what takes them away: bias, variance, ensembles, examples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ... import datasets, diagnostics, nn
from ...diagnostics._learning import power_law
from ...optim.elementwise import Adam
from ...runtime.dtypes import Array
from ...runtime.extras import needed
from ...train.trainer import Trainer
from ._common import (
    Options,
    Result,
    Study,
    band,
    difference,
    few,
    legend_below,
    listed,
    load,
    mean,
    network,
    trainer,
)

_SIZES = (2, 4, 8, 16, 64, 256)
_PENALTIES = (0.0, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
_PARTS = {"bias²": "bias_squared", "variance": "variance", "Brier score": "error"}


def _bias_variance(options: Options) -> Result:
    """Split Brier's score for networks of growing size, and for growing penalties."""
    data = load(options, 300 if options.dataset == "digits" else 1_000)

    def measured(name: str, hidden: int, penalty: float) -> dict[str, Any]:
        if options.verbose:
            print(f"training: {name}", flush=True)
        found = [_split(data, hidden, penalty, options.epochs, seed) for seed in options.seeds]
        return {column: np.array([getattr(each, part) for each in found]) for column, part in _PARTS.items()}

    rows = {_size(hidden): measured(_size(hidden), hidden, 0.0) for hidden in _SIZES}
    rows |= {_l2(l2): measured(_l2(l2), 256, l2) for l2 in _PENALTIES[1:]}
    setting = (
        f"{options.dataset}, {len(data.x_train):,} examples; one hidden layer, Adam, "
        f"{_REPEATS} trainings on bootstrap samples"
    )
    return Result(setting, rows)


_REPEATS = 8


def _size(hidden: int) -> str:
    return f"{hidden} hidden units"


def _l2(l2: float) -> str:
    return f"256, penalty l2 {l2:g}" if l2 else _size(256)


def _split(data: datasets.Dataset, hidden: int, l2: float, epochs: int, seed: int) -> Any:
    def make(each: int) -> Trainer:
        layers = network(data, hidden)
        return trainer(layers, lambda p: Adam(p, lr=3e-3), 1000 * seed + each, penalty=nn.Penalty(l2=l2))

    return diagnostics.bias_variance(
        make,
        data.x_train,
        data.y_train,
        validation_data=(data.x_test, data.y_test),
        repeats=_REPEATS,
        seed=seed,
        fit={"epochs": epochs, "batch_size": 32},
    )


def _draw_bias_variance(result: Result, axes: Sequence[Any]) -> None:
    ways: tuple[tuple[str, Sequence[float], Callable[..., str]], ...] = (
        ("hidden units", _SIZES, _size),
        ("penalty l2 of 256 hidden units", _PENALTIES, _l2),
    )
    for panel, (label, values, named) in zip(axes, ways, strict=True):
        places = range(len(values))
        for i, column in enumerate(_PARTS):
            band(
                panel,
                places,
                np.transpose([np.atleast_1d(result.rows[named(v)][column]) for v in values]),
                i,
                column,
            )
        panel.set_xticks(places, [f"{value:g}" for value in values])
        panel.set(xlabel=label, ylabel="squared error of probabilities")
        panel.grid(alpha=0.3)
    axes[0].set_title("size of the model")
    axes[1].set_title("strength of a penalty")
    axes[1].sharey(axes[0])
    legend_below(axes[0])


def _say_bias_variance(result: Result) -> str:
    small, large, tamed = _size(_SIZES[0]), _size(_SIZES[-1]), _l2(_PENALTIES[-1])
    words = []
    bias = difference(result, large, small, "bias²")
    words.append(
        f"From {_SIZES[0]} to {_SIZES[-1]} hidden units bias² goes from {mean(result, small, 'bias²'):.3f} "
        "to "
        f"{mean(result, large, 'bias²'):.3f}"
        + ("." if bias.is_less else ", so that larger models have less bias does not show here.")
    )
    most = max((_size(hidden) for hidden in _SIZES), key=lambda name: mean(result, name, "variance"))
    if most == large:
        words.append("Variance grows with the size, as the lecture has it.")
    else:
        words.append(
            f"Variance is largest with {most} ({mean(result, most, 'variance'):.3f}) and falls again to "
            f"{mean(result, large, 'variance'):.3f}: that ever larger models have ever more variance does "
            "not show here. It is known of wide networks that it does not (Neal et al. 2018)."
        )
    variance, more = (difference(result, tamed, large, part) for part in ("variance", "bias²"))
    words.append(
        f"A penalty of {_PENALTIES[-1]:g} changes variance by {variance.mean:+.3f} and bias² by "
        f"{more.mean:+.3f}"
        + (
            ": it trades the one for the other."
            if variance.is_less and more.is_more
            else ": a trade of the one for the other does not show here."
        )
    )
    best = min(result.rows, key=lambda name: mean(result, name, "Brier score"))
    words.append(f"The error is least with {best}.")
    return " ".join(words)


BIAS_VARIANCE = Study(
    "of what the error consists, for models of growing size and growing penalties",
    _bias_variance,
    _draw_bias_variance,
    _say_bias_variance,
    epochs=6,
)

_MEMBERS = 20
_THIN, _WIDE = "3 units", "100 units"
_ALONE, _BAGGED, _BOOSTED = "alone", "bagging", "boosting"


def _bootstrap(options: Options) -> Result:
    """Ensembles by scikit-learn, of a model with much bias and of one with much variance."""
    ensemble = needed("sklearn.ensemble", "the study bootstrap needs scikit-learn", "pyoptim[sklearn]")
    data, words = few(options, 300, 1_000, wrong=0.15)
    curves: dict[str, dict[str, Array]] = {}
    for base, hidden in ((_THIN, 3), (_WIDE, 100)):
        for kind in (_BAGGED, _BOOSTED):
            if options.verbose:
                print(f"training: {kind} of {base}", flush=True)
            found = [_staged(ensemble, kind, hidden, data, options.epochs, seed) for seed in options.seeds]
            curves.setdefault(base, {})[kind] = np.array(found)
    rows: dict[str, dict[str, Any]] = {}
    for base, kinds in curves.items():
        # A network by itself sees all examples, as the first of the boosted ones.
        rows[f"{base}, {_ALONE}"] = {"test accuracy": kinds[_BOOSTED][:, 0]}
        for kind, found_of in kinds.items():
            rows[f"{base}, {kind}"] = {"test accuracy": found_of[:, -1]}
    setting = f"{words}; one hidden layer, Adam; ensembles of {_MEMBERS}"
    return Result(setting, rows, curves)


def _staged(
    ensemble: Any, kind: str, hidden: int, data: datasets.Dataset, epochs: int, seed: int
) -> list[float]:
    """Return the test accuracy of the first 1, 2, … members."""
    from ...sklearn import MLPClassifier

    base = MLPClassifier((hidden,), max_iter=epochs, learning_rate_init=0.01, batch_size=32, tol=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it ends before it converges, on purpose
        if kind == _BAGGED:
            found = ensemble.BaggingClassifier(base, _MEMBERS, random_state=seed).fit(
                data.x_train, data.y_train
            )
            sums = np.cumsum([each.predict_proba(data.x_test) for each in found.estimators_], axis=0)
            right = found.classes_[sums.argmax(axis=2)] == data.y_test
            scores = [float(score) for score in right.mean(axis=1)]
        else:
            found = ensemble.AdaBoostClassifier(base, n_estimators=_MEMBERS, random_state=seed)
            staged = found.fit(data.x_train, data.y_train).staged_score(data.x_test, data.y_test)
            scores = [float(score) for score in staged]
    return scores + scores[-1:] * (_MEMBERS - len(scores))  # boosting ends where a member makes no mistake


def _draw_bootstrap(result: Result, axes: Sequence[Any]) -> None:
    for panel, (base, kinds) in zip(axes, result.data.items(), strict=True):
        alone = kinds[_BOOSTED][:, 0].mean()
        panel.axhline(alone, color="0.4", linestyle="--", label="one network alone")
        for i, (kind, values) in enumerate(kinds.items()):
            band(panel, np.arange(values.shape[1]) + 1, values, i, kind)
        panel.set(title=f"networks of {base}", xlabel="members of the ensemble", ylabel="test accuracy")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
    legend_below(axes[0])


def _say_bootstrap(result: Result) -> str:
    words = []
    for base, what in ((_THIN, "which has much bias"), (_WIDE, "which has much variance")):
        gains = {
            kind: difference(result, f"{base}, {kind}", f"{base}, {_ALONE}", "test accuracy")
            for kind in (_BAGGED, _BOOSTED)
        }
        told = [
            f"{kind} {'adds' if gain.mean >= 0 else 'takes'} {abs(100 * gain.mean):.1f} points"
            + ("" if gain.is_clear else " (within the noise)")
            for kind, gain in gains.items()
        ]
        words.append(f"To a network of {base}, {what}, {listed(told)}.")
    bagged = difference(result, f"{_WIDE}, {_BAGGED}", f"{_WIDE}, {_ALONE}", "test accuracy")
    boosted = difference(result, f"{_THIN}, {_BOOSTED}", f"{_THIN}, {_ALONE}", "test accuracy")
    shown = [
        f"that {claim} {'shows' if gain.is_more else 'does not show'}"
        for claim, gain in (("bagging takes away variance", bagged), ("boosting takes away bias", boosted))
    ]
    return " ".join([*words, f"So {listed(shown)} here."])


BOOTSTRAP = Study(
    "bagging and boosting of thin and of wide networks",
    _bootstrap,
    _draw_bootstrap,
    _say_bootstrap,
    epochs=6,
)

_FEW, _MANY = "6 hidden units", "64 hidden units"


def _learning_curve(options: Options) -> Result:
    """Measure errors over the number of examples, and say the last from the others by a law."""
    data = load(options, 20_000)
    rows: dict[str, dict[str, Any]] = {}
    found: dict[str, Any] = {}
    for name, hidden in ((_FEW, (6,)), (_MANY, (64,))):
        if options.verbose:
            print(f"training: {name}", flush=True)
        curve = diagnostics.learning_curve(
            lambda seed, hidden=hidden: trainer(network(data, *hidden), lambda p: Adam(p, lr=3e-3), seed),  # type: ignore[misc]
            data.x_train,
            data.y_train,
            validation_data=(data.x_test, data.y_test),
            repeats=len(options.seeds),
            seed=options.seeds[0],
            fit={"epochs": options.epochs, "batch_size": 32},
        )
        law = power_law(curve.sizes[:-1], curve.validation[:-1].mean(axis=1))
        found[name] = {"sizes": curve.sizes, "training": curve.training, "test": curve.validation, "law": law}
        for i, size in enumerate(curve.sizes):
            rows[f"{name}, {size:,}"] = {
                "training error": curve.training[i],
                "test error": curve.validation[i],
                "error by the law": _at(law, size),
            }
    return Result(f"{options.dataset}, Adam, {options.epochs} epochs", rows, found)


def _at(law: tuple[float, float, float], size: Any) -> Any:
    a, b, c = law
    return a + b * np.asarray(size, np.float64) ** -c


def _draw_learning_curve(result: Result, axes: Sequence[Any]) -> None:
    for panel, (name, curve) in zip(axes, result.data.items(), strict=True):
        for i, part in enumerate(("training", "test")):
            band(panel, curve["sizes"], np.maximum(curve[part].T, 1e-4), i, f"{part} error")
        sizes = np.geomspace(curve["sizes"][0], 4 * curve["sizes"][-1], 40)
        panel.plot(
            sizes, _at(curve["law"], sizes), color="0.4", linestyle="--", label="law of all but the last"
        )
        panel.set(title=name, xlabel="training examples", ylabel="share that is wrong", xscale="log")
        panel.grid(alpha=0.3)
    axes[1].sharey(axes[0])
    axes[0].set_ylim(bottom=-0.02)
    legend_below(axes[0])


def _say_learning_curve(result: Result) -> str:
    words, ends = [], {}
    for name, curve in result.data.items():
        training, test = (float(curve[part][-1].mean()) for part in ("training", "test"))
        said = float(_at(curve["law"], curve["sizes"][-1]))
        ends[name] = test
        words.append(
            f"{name} errs on {training:.1%} in training and {test:.1%} in the test with all "
            f"{curve['sizes'][-1]:,} examples, of which the law of the smaller numbers said {said:.1%}: "
            + (
                "the gap asks for more examples."
                if test - training > training
                else "the two have nearly met, so a larger model is called for."
            )
        )
    better = ends[_MANY] < ends[_FEW]
    words.append(
        "With all examples the larger model is better."
        if better
        else "That the larger model is better with all examples does not show here."
    )
    return " ".join(words)


LEARNING_CURVE = Study(
    "errors over the number of training examples, and a law that extrapolates them",
    _learning_curve,
    _draw_learning_curve,
    _say_learning_curve,
    epochs=20,
    seeds=5,
)
