"""Smaller answers: compression, cascades, and experts of which only one computes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ... import datasets, nn, recipes
from ...optim.elementwise import Adam
from ...recipes._compress import stage as stage_of
from ...recipes._measure import median_seconds
from ...runtime.dtypes import Array
from ...train.trainer import Trainer
from ._common import Options, Result, Study, band, load, mean, network, style, trainer

_MOST = 10_000  # examples that are taken of a large data set
_WANTED = (0.8, 0.9, 0.95, 0.97, 0.98, 0.99)  # accuracies of what a cheap classifier answers
_RECALL = 0.98  # of a detector
_OBJECT = 3  # the digit (or class) that detectors look for
_EXPERTS, _WIDTH = 8, 32

Rows = dict[str, dict[str, Any]]


def _trained(options: Options, data: datasets.Dataset, layers: Sequence[nn.Layer], seed: int) -> Trainer:
    made = trainer(layers, Adam, seed)
    made.fit(data.x_train, data.y_train, epochs=options.epochs, batch_size=32, verbose=False)
    return made


def _collected(runs: Sequence[Rows]) -> Rows:
    """Return the rows of several seeds as one table."""
    return {
        name: {column: np.array([run[name][column] for run in runs]) for column in row}
        for name, row in runs[0].items()
    }


def _told(options: Options, what: str) -> None:
    if options.verbose:
        print(f"training: {what}", flush=True)


# ---- compression -------------------------------------------------------------------------------------


def _compression(options: Options) -> Result:
    data, runs = load(options, _MOST), []
    test = data.x_test, data.y_test
    for seed in options.seeds:
        _told(options, f"a network of 512 and 256 units, and its students, seed {seed}")
        model = _trained(options, data, network(data, 512, 256), seed).model
        of_labels = _trained(options, data, network(data, 32), seed).model
        student = nn.Sequential(*network(data, 32), seed=seed)
        fit = {"epochs": options.epochs, "batch_size": 32}
        made = recipes.compress(model, data.x_train, student, fit=fit, test_data=test, seed=seed)
        run: Rows = {stage.name: _of_stage(stage) for stage in made.stages}
        before = model(data.x_test)
        in_bits = recipes.quantize(model, data.x_train[:1000])
        run["model in 8 bits"] = _of_stage(stage_of("", in_bits, test, before))
        run["student of labels"] = _of_stage(stage_of("", of_labels, test, before))
        runs.append(run)
    setting = f"{options.dataset}, 512-256 ReLU units into 32, Adam, {len(options.seeds)} seeds"
    return Result(setting, _collected(runs))


def _of_stage(stage: Any) -> dict[str, Any]:
    return {
        "parameters": stage.parameters,
        "bytes": stage.nbytes,
        "test accuracy": stage.accuracy,
        "share as the model": stage.fidelity,
        "us alone": 1e6 * stage.latency,
        "us each": 1e6 * stage.seconds,
    }


def _compression_words(result: Result) -> str:
    first, last = result.rows["model"], result.rows["8 bits"]
    lost = 100 * (first["test accuracy"] - last["test accuracy"])
    words = [
        f"The last model takes {np.mean(first['bytes'] / last['bytes']):,.0f} times fewer bytes than the "
        f"first, {np.mean(first['us alone'] / last['us alone']):.1f} times less time for an example alone, "
        f"and {lost.mean():.1f} points of accuracy less."
    ]
    gain = 100 * (result.rows["student"]["test accuracy"] - result.rows["student of labels"]["test accuracy"])
    if _is_clear(gain):
        words.append(f"The student of the model is {gain.mean():.1f} points better than one of the labels.")
    else:
        words.append(
            f"That a model teaches better than labels do does not show here: {gain.mean():+.1f} points, "
            "which is within what seeds make, or worse."
        )
    for name, of in (("model in 8 bits", "model"), ("8 bits", "pruned")):
        faster = [np.mean(result.rows[of][c] / result.rows[name][c]) for c in ("us alone", "us each")]
        words.append(
            f"8 bits make the {of}{' network' if of == 'pruned' else ''} {faster[0]:.2f} times as fast alone "
            f"and {faster[1]:.2f} times among many."
        )
    return " ".join(words)


def _is_clear(gain: Array) -> bool:
    """Whether a gain over several seeds is above twice its standard error, and above 0."""
    error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.inf
    return bool(gain.mean() > max(2 * error, 0))


def _draw_compression(result: Result, axes: Sequence[Any]) -> None:
    names = ["model", "model in 8 bits", "student", "pruned", "8 bits"]
    for panel, column, log in zip(
        axes, ("bytes", "us alone", "test accuracy"), (True, False, False), strict=True
    ):
        shown = [*names, "student of labels"] if column == "test accuracy" else names
        values = [np.asarray(result.rows[name][column], np.float64) for name in shown]
        _dots(panel, [name.replace(" in ", "\nin ").replace(" of ", "\nof ") for name in shown], values)
        panel.set_ylabel({"us alone": "us of one example alone"}.get(column, column))
        if log:
            panel.set_yscale("log")
        else:
            panel.set_ylim(bottom=0 if column == "us alone" else None)


def _dots(panel: Any, names: Sequence[str], values: Sequence[Array]) -> None:
    """Draw a dot for each seed and a line at the mean, for each of some things."""
    for i, of_seeds in enumerate(values):
        panel.plot(np.full(len(of_seeds), i), of_seeds, "o", color=style(i)["color"], alpha=0.6)
        panel.plot([i - 0.25, i + 0.25], [of_seeds.mean()] * 2, color=style(i)["color"], linewidth=2.5)
    panel.set_xticks(range(len(names)), names)
    panel.margins(x=0.12)
    panel.grid(alpha=0.3)


# ---- cascades ----------------------------------------------------------------------------------------


def _cascade(options: Options) -> Result:
    whole, runs = load(options, _MOST), []
    held = len(whole.x_train) // 4  # that only thresholds are fitted on
    data = whole._replace(x_train=whole.x_train[held:], y_train=whole.y_train[held:])
    for seed in options.seeds:
        _told(options, f"a linear classifier, one of 512 and 256 units, and detectors alike, seed {seed}")
        models = [_trained(options, data, network(data, *hidden), seed).model for hidden in ((), (512, 256))]
        run: Rows = {}
        for wanted in _WANTED:
            cascade = recipes.Cascade(models)
            cascade.fit(whole.x_train[:held], whole.y_train[:held], wanted)
            report = cascade.evaluate(data.x_test, data.y_test)
            if not run:
                cheap = models[0](data.x_test).argmax(axis=1)
                run["cheap alone"] = {
                    "cost": cascade.costs[0], "test accuracy": np.mean(cheap == data.y_test),
                }  # fmt: skip
                run["dear alone"] = {**_columns(report.last), "share seen by the dear one": 1.0}
            run[f"cascade, {wanted:.0%} wanted"] = {
                **_columns(report.cascade), "share seen by the dear one": report.reached[1],
            }  # fmt: skip
        runs.append(run | _detectors(options, data, (whole.x_train[:held], whole.y_train[:held]), seed))
    setting = f"{options.dataset}, linear before 512-256 ReLU units, Adam, {len(options.seeds)} seeds"
    return Result(setting, _collected(runs))


def _columns(measures: Any) -> dict[str, Any]:
    return {"cost": measures.cost, "us each": 1e6 * measures.seconds, "test accuracy": measures.accuracy}


def _detectors(options: Options, data: datasets.Dataset, held: tuple[Array, Array], seed: int) -> Rows:
    binary = data._replace(y_train=(data.y_train == _OBJECT).astype(np.float32))
    models = []
    for hidden in ((), (512, 256)):
        layers = [*network(data, *hidden)[:-1], nn.Dense(hidden[-1] if hidden else data.x_train.shape[1], 1)]
        made = trainer(layers, Adam, seed, loss=nn.BinaryCrossEntropy())
        made.fit(binary.x_train, binary.y_train, epochs=options.epochs, batch_size=32, verbose=False)
        models.append(made.model)
    cascade = recipes.Cascade(models).fit(held[0], held[1] == _OBJECT, _RECALL)
    report = cascade.evaluate(data.x_test, data.y_test == _OBJECT)
    found = {}
    for name, measures in (("dear", report.last), ("cascade", report.cascade)):
        found[f"detector, {name}{' alone' if name == 'dear' else ''}"] = {
            **_columns(measures), "share of objects found": measures.recall,
            "share of finds right": measures.precision,
            "share seen by the dear one": report.reached[1] if name == "cascade" else 1.0,
        }  # fmt: skip
    return found


def _cascade_words(result: Result) -> str:
    dear = result.rows["dear alone"]
    words = []
    names = [name for name in result.rows if name.startswith("cascade")]
    good = [
        name
        for name in names
        if not _is_clear(dear["test accuracy"] - result.rows[name]["test accuracy"])
        or abs(np.mean(dear["test accuracy"] - result.rows[name]["test accuracy"])) < 0.002
    ]
    best = min(good, key=lambda name: mean(result, name, "cost"), default=None)
    if best is not None and mean(result, best, "cost") < mean(result, "dear alone", "cost"):
        share = mean(result, best, "cost") / mean(result, "dear alone", "cost")
        faster = mean(result, "dear alone", "us each") / mean(result, best, "us each")
        lost = 100 * np.mean(dear["test accuracy"] - result.rows[best]["test accuracy"])
        words.append(
            f"With {best.split()[1]} wanted of the cheap one, the cascade costs {share:.0%} of the dear "
            f"one's products ({faster:.1f} times its speed) for {lost:.1f} points of accuracy."
        )
    else:
        words.append(
            "No cascade here is cheaper than the dear one without losing accuracy beyond the seeds' noise."
        )
    alone, together = (result.rows[f"detector, {name}"] for name in ("dear alone", "cascade"))
    words.append(
        f"The cascade of detectors finds {np.mean(together['share of objects found']):.1%} of the objects "
        f"({_RECALL:.0%} wanted; the dear one alone {np.mean(alone['share of objects found']):.1%}), and the "
        f"dear one looks at {np.mean(together['share seen by the dear one']):.0%} of the examples."
    )
    return " ".join(words)


def _draw_cascade(result: Result, axes: Sequence[Any]) -> None:
    names = [name for name in result.rows if name.startswith("cascade")]
    columns = {
        column: np.array([result.rows[name][column] for name in names]).T
        for column in ("cost", "test accuracy", "share seen by the dear one")
    }
    whole = mean(result, "dear alone", "cost")
    cost = columns["cost"].mean(axis=0) / whole
    band(axes[0], cost, columns["test accuracy"], 0, "cascade, by the accuracy wanted of the cheap one")
    for at, name in zip(cost, names, strict=True):
        axes[0].annotate(
            name.split()[1], (at, mean(result, name, "test accuracy")), xytext=(3, -11),
            textcoords="offset points", fontsize="small",
        )  # fmt: skip
    for i, name in enumerate(("cheap alone", "dear alone"), 1):
        at = mean(result, name, "cost") / whole
        values = result.rows[name]["test accuracy"]
        axes[0].plot(np.full(len(values), at), values, "s", color=style(i)["color"], label=name, alpha=0.6)
    axes[0].set(xlabel="cost of a mean example (the dear one's is 1)", ylabel="test accuracy")
    axes[0].legend(loc="lower right")
    axes[0].grid(alpha=0.3)
    alone, together = (result.rows[f"detector, {name}"] for name in ("dear alone", "cascade"))
    shares = ("share of objects found", "share of finds right", "share seen by the dear one")
    for i, (row, name) in enumerate(((alone, "dear detector alone"), (together, "cascade of detectors"))):
        places = np.arange(len(shares)) + 0.4 * i - 0.2
        heights = [np.mean(row[share]) for share in shares]
        bars = axes[1].bar(places, heights, 0.36, color=style(i)["color"], label=name)
        axes[1].bar_label(bars, [f"{height:.1%}" for height in heights], fontsize="small")
    axes[1].set_xticks(
        range(len(shares)), ["objects found\n(recall)", "finds right\n(precision)", "seen by the\ndear one"]
    )
    axes[1].set(ylabel="share", ylim=(0, 1.25))
    axes[1].legend(loc="upper right")


# ---- experts -----------------------------------------------------------------------------------------


def _experts(options: Options) -> Result:
    data, runs, gates = load(options, _MOST), [], []
    test = data.x_test, data.y_test
    for seed in options.seeds:
        _told(options, f"{_EXPERTS} experts with a gater, mixed two ways, and single networks, seed {seed}")
        run: Rows = {}
        for name, width in (
            (f"one network of {_WIDTH}", _WIDTH),
            (f"one of {_EXPERTS * _WIDTH}", _EXPERTS * _WIDTH),
        ):
            made = _trained(options, data, network(data, width), seed)
            run[name] = _measured(data, made.predict, made.model)
        for mix in ("probabilities", "outputs"):
            experts = [nn.Sequential(*network(data, _WIDTH), seed=100 * seed + i) for i in range(_EXPERTS)]
            gater = nn.Sequential(nn.Dense(data.x_train.shape[1], _EXPERTS), seed=100 * seed + 99)
            moe = recipes.MixtureOfExperts(experts, gater, mix)
            making = Trainer(moe.model, nn.CrossEntropy(), Adam(moe.model.parameters()), seed=seed)
            making.fit(data.x_train, data.y_train, epochs=options.epochs, batch_size=32, verbose=False)
            for hard in (False, True):
                name = f"mixed {mix}, {'hard' if hard else 'soft'}"
                computing = (experts[0], gater) if hard else (moe.model,)
                run[name] = _measured(data, partial(moe.predict, hard=hard), *computing)
                run[name]["experts used"] = len(np.unique(moe.gates(test[0]).argmax(axis=1)))
            if mix == "probabilities":
                gates.append(moe.gates(data.x_test))
        runs.append(run)
    setting = (
        f"{options.dataset}, {_EXPERTS} experts of {_WIDTH} ReLU units, Adam, {len(options.seeds)} seeds"
    )
    shares = np.array([gates[0][data.y_test == c].mean(axis=0) for c in np.unique(data.y_test)])
    return Result(setting, _collected(runs), shares)


def _measured(data: datasets.Dataset, predict: Any, *models: nn.Sequential) -> dict[str, Any]:
    """Return the row of a way to predict, for which these models compute."""
    right = predict(data.x_test).argmax(axis=1) == data.y_test
    seconds = median_seconds(lambda: predict(data.x_test), 9) / len(data.x_test)
    parameters = sum(model.flat_parameters.size for model in models)
    return {"parameters computed": parameters, "test accuracy": np.mean(right), "us each": 1e6 * seconds}


def _experts_words(result: Result) -> str:
    words = []
    for mix in ("probabilities", "outputs"):
        soft, hard = (result.rows[f"mixed {mix}, {kind}"] for kind in ("soft", "hard"))
        lost = 100 * (soft["test accuracy"] - hard["test accuracy"])
        faster = np.mean(soft["us each"]) / np.mean(hard["us each"])
        words.append(
            f"Where {mix} are mixed, the chosen expert alone loses {lost.mean():.1f} points of accuracy and "
            f"takes {1 / faster:.0%} of the time ({np.mean(hard['experts used']):.1f} of {_EXPERTS} experts "
            "are chosen at all)."
        )
    one, large = (row for name, row in result.rows.items() if name.startswith("one"))
    hard = result.rows["mixed probabilities, hard"]
    gain = 100 * (hard["test accuracy"] - one["test accuracy"])
    if _is_clear(gain):
        words.append(f"It is {gain.mean():.1f} points better than one network of an expert's size.")
    else:
        words.append(
            "That experts of which one computes are better than one network of an expert's size does not "
            f"show here: {gain.mean():+.1f} points."
        )
    behind = 100 * (large["test accuracy"] - hard["test accuracy"]).mean()
    words.append(f"One network of all experts' units is {behind:+.1f} points from the chosen expert.")
    return " ".join(words)


def _draw_experts(result: Result, axes: Sequence[Any]) -> None:
    names = list(result.rows)
    labels = [f"{_WIDTH}\nunits", f"{_EXPERTS * _WIDTH}\nunits"]
    labels += [f"{mix}\nmixed\n{kind}" for mix in ("prob.", "outp.") for kind in ("soft", "hard")]
    for panel, column, label in zip(
        axes, ("test accuracy", "us each"), ("test accuracy", "us an example, of many at once"), strict=False
    ):
        _dots(panel, labels, [np.asarray(result.rows[name][column], np.float64) for name in names])
        panel.set_ylabel(label)
        panel.tick_params(axis="x", labelsize="small")
    axes[1].set_ylim(bottom=0)
    image = axes[2].imshow(result.data, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes[2].set(
        xlabel="expert", ylabel="class", yticks=range(len(result.data)), xticks=range(_EXPERTS),
        title="mean shares of the experts (mixed probabilities, first seed)",
    )  # fmt: skip
    axes[2].title.set_fontsize("small")
    axes[2].get_figure().colorbar(image, ax=axes[2])


COMPRESSION = Study(
    "a large network's answers learned by a small one, pruned, in 8 bits",
    _compression, _draw_compression, _compression_words, panels=3, epochs=6,
)  # fmt: skip
CASCADE = Study(
    "a cheap model that asks a dear one where it is unsure", _cascade, _draw_cascade, _cascade_words, epochs=4
)
EXPERTS = Study(
    "experts of which all answer, or only the one that a gater chooses",
    _experts, _draw_experts, _experts_words, panels=3, epochs=4,
)  # fmt: skip
