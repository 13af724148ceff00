"""``pyoptim study pretraining | transfer | hints | curriculum``: recipes against plain training."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np

from .. import datasets, nn, recipes
from ..optim.elementwise import SGD, Adam
from ..recipes._curriculum import losses_of
from ..runtime.dtypes import Array
from ..runtime.figures import new_figure
from ..train.history import History
from ..train.trainer import Trainer
from .studies._common import resolved

_MOST = 5_000, 2_000  # examples that are taken of a large data set, to train and to test


class Result(NamedTuple):
    """How a way to train did: test accuracies, of each seed a row, at each place of the x axis."""

    name: str
    at: Sequence[float]
    scores: Array

    @property
    def last(self) -> Array:
        """The accuracies at the end of the trainings, a number for each seed."""
        last: Array = self.scores[:, -1]
        return last


class Part(NamedTuple):
    """Ways to train that are compared on one problem, and what it claims of them.

    A claim is a sentence, the name of what is said to be better, and that of what is said to be worse.
    ``marks`` are places of the x axis where stages end.
    """

    title: str
    results: list[Result]
    claims: list[tuple[str, str, str]]
    marks: Sequence[float] = ()


class Setting(NamedTuple):
    """What studies are given."""

    data: datasets.Dataset
    seeds: range
    epochs: int

    def sizes(self, *hidden: int) -> list[int]:
        """Return the sizes of layers of a network for these data."""
        return [self.data.x_train.shape[1], *hidden, int(self.data.y_train.max()) + 1]

    @property
    def test(self) -> tuple[Any, Any]:
        """The examples to test on."""
        return self.data.x_test, self.data.y_test

    def options(self, seed: int) -> dict[str, Any]:
        """Return what all recipes are given that make their own trainers."""
        return {"seed": seed, "validation_data": self.test, "verbose": False}


class Study(NamedTuple):
    """``run`` trains, and ``draw`` makes the figure from a title and what was found."""

    about: str
    epochs: int  # by default
    seeds: int  # how many trainings there are of each kind
    run: Callable[[Setting], list[Part]]
    draw: Callable[[str, list[Part]], Any]


def _network(sizes: Sequence[int], activation: str, seed: int, init: str = "glorot") -> nn.Sequential:
    *hidden, last = pairwise(sizes)
    layers = [nn.Dense(a, b, activation=activation, init=init) for a, b in hidden]
    return nn.Sequential(*layers, nn.Dense(*last), seed=seed)


def _sgd(parameters: Any) -> SGD:
    return SGD(parameters, lr=0.1, momentum=0.9)


def _trainer(model: nn.Sequential, seed: int, optimizer: Any = Adam) -> Trainer:
    return Trainer(model, nn.CrossEntropy(), optimizer(model.parameters()), seed=seed)


def _fit(trainer: Trainer, x: Any, y: Any, test: Any, epochs: int, batch_size: int = 32) -> History:
    return trainer.fit(x, y, epochs=epochs, batch_size=batch_size, validation_data=test, verbose=False)


def _result(name: str, histories: Sequence[History], first: int = 0, each: Sequence[float] = ()) -> Result:
    """Return the test accuracies of several seeds, after ``first`` epochs, or at places of their own."""
    scores = np.array([history["val_accuracy"] for history in histories])
    return Result(name, each or range(first + 1, first + 1 + scores.shape[1]), scores)


def _pretraining(setting: Setting) -> list[Part]:
    depth, epochs, (x, y) = 6, setting.epochs, setting.data[:2]
    sizes, finally_ = setting.sizes(*[50] * depth), 3 * epochs
    at_once, greedy = [], []
    for seed in setting.seeds:
        model = _network(sizes, "sigmoid", seed)
        at_once.append(_fit(_trainer(model, seed, _sgd), x, y, setting.test, depth * epochs + finally_))
        model = _network(sizes, "sigmoid", seed)
        given: dict[str, Any] = {"optimizer": _sgd, "epochs": epochs, **setting.options(seed)}
        stages = recipes.greedy_pretrain(model, x, y, nn.CrossEntropy(), **given)
        stages["fine-tuning"] = _fit(_trainer(model, seed, _sgd), x, y, setting.test, finally_)
        greedy.append(stages.history)
    return [
        Part(
            f"{depth} hidden layers of 50 sigmoids, SGD with momentum",
            [_result("at once", at_once), _result("layer by layer, then all", greedy)],
            [
                (
                    "pretraining layer by layer helps a deep sigmoid network",
                    "layer by layer, then all",
                    "at once",
                )
            ],
            [epochs * (i + 1) + 0.5 for i in range(depth)],
        )
    ]


_FEW = 2, 5, 20  # examples of each class
# Name of a way to train, hidden layers that are copied, and whether they are frozen.
_COPIES = [("from scratch", 0, False)] + [
    (f"{k} copied, {'frozen' if freeze else 'fine-tuned'}", k, freeze)
    for freeze in (True, False)
    for k in (1, 2, 3)
]


def _transfer(setting: Setting) -> list[Part]:
    """Learn pairs of classes (0 or 1, 2 or 3, …) from all examples, then each class from few."""
    x, y = setting.data[:2]
    x_test, y_test = setting.test
    sizes = setting.sizes(100, 100, 100)
    found: dict[tuple[int, str], list[History]] = {}
    for seed in setting.seeds:
        source = _network([*sizes[:-1], (sizes[-1] + 1) // 2], "relu", seed, "he")
        _fit(_trainer(source, seed), x, y // 2, (x_test, y_test // 2), 30)
        order = np.random.default_rng(seed).permutation(len(y))
        places = [order[y[order] == label] for label in range(sizes[-1])]
        for count, (name, k, freeze) in product(_FEW, _COPIES):
            rows = np.concatenate([place[:count] for place in places])
            model = _network(sizes, "relu", 1_000 + seed, "he")
            if k:
                recipes.transfer(source, model, k, freeze=freeze)
            history = _fit(_trainer(model, seed), x[rows], y[rows], setting.test, setting.epochs, 16)
            found.setdefault((count, name), []).append(history)
    claims = [
        ("layers that a task like this one has taught help", "2 copied, frozen", "from scratch"),
        ("the last hidden layer knows its own task alone", "2 copied, frozen", "3 copied, frozen"),
        ("fine-tuning mends that", "3 copied, fine-tuned", "3 copied, frozen"),
    ]
    title = "3 hidden layers of 100 ReLUs, Adam,\n{} examples of each class"
    return [
        Part(title.format(count), [_result(name, found[count, name]) for name, *_ in _COPIES], claims)
        for count in _FEW
    ]


def _hints(setting: Setting) -> list[Part]:
    depth, hinting, (x, y) = 5, setting.epochs // 3 or 1, setting.data[:2]
    sizes, all_ = setting.sizes(*[16] * depth), setting.epochs + hinting
    found: dict[str, list[History]] = {}
    for seed in setting.seeds:
        teacher = _network(setting.sizes(64, 64), "tanh", 1_000 + seed)
        found.setdefault("teacher", []).append(_fit(_trainer(teacher, seed), x, y, setting.test, 30))
        model = _network(sizes, "sigmoid", seed)
        found.setdefault("labels", []).append(_fit(_trainer(model, seed, _sgd), x, y, setting.test, all_))
        for name, hinted, alpha in (
            ("teacher's outputs", False, 1.0),
            ("hints, then teacher's outputs", True, 1.0),
            ("hints, then labels", True, 0.0),
        ):
            model = _network(sizes, "sigmoid", seed)
            given: dict[str, Any] = {"temperature": 3.0, "alpha": alpha, "optimizer": _sgd}
            epochs = (
                {"epochs": setting.epochs, "hint_epochs": hinting, "hints": {1: 1}}
                if hinted
                else {"epochs": all_}
            )
            stages = recipes.distill(teacher, model, x, y, **given, **epochs, **setting.options(seed))
            found.setdefault(name, []).append(stages["distill"])
    results = [
        _result(name, histories, hinting if name.startswith("hints") else 0)
        for name, histories in found.items()
    ]
    results[0] = Result("teacher", (1, all_), results[0].scores[:, -1:].repeat(2, axis=1))
    claims = [
        ("what the teacher says of wrong classes helps", "teacher's outputs", "labels"),
        ("hints train a thin deep student", "hints, then teacher's outputs", "teacher's outputs"),
        ("hints alone do it, also with labels afterwards", "hints, then labels", "labels"),
    ]
    return [
        Part(
            f"student of {depth} hidden layers of 16 sigmoids, SGD with momentum",
            results,
            claims,
            [hinting + 0.5],
        )
    ]


_SHARES = 0.25, 0.5, 0.75, 1.0


def _curriculum(setting: Setting) -> list[Part]:
    return [_curriculum_with(setting, wrong) for wrong in (0.0, 0.3)]


def _curriculum_with(setting: Setting, wrong: float) -> Part:
    """Compare orders of the examples, of whose labels this share is drawn at random."""
    x, clean = setting.data[:2]
    each = 2 * -(-setting.epochs // 2)  # even, so that all take as many steps
    total, noises = 5 * each // 2, (0.1, 0.05, 0.02, 0.01, 0.0)
    sizes = setting.sizes(64, 64)
    found: dict[str, list[History]] = {}

    def add(name: str, history: History) -> None:
        found.setdefault(name, []).append(history)

    for seed in setting.seeds:
        rng = np.random.default_rng(seed)
        y, drawn = clean.copy(), rng.random(len(clean)) < wrong
        y[drawn] = rng.integers(0, int(y.max()) + 1, int(drawn.sum()))
        judge = _network(setting.sizes(64), "relu", 1_000 + seed, "he")
        _fit(_trainer(judge, seed), x, y, setting.test, 10)
        options: dict[str, Any] = {"validation_data": setting.test, "verbose": False}

        def new(seed: int = seed) -> Trainer:
            return _trainer(_network(sizes, "relu", seed, "he"), seed)

        add("plain", _fit(new(), x, y, setting.test, total))
        hard = losses_of(judge, nn.CrossEntropy(), x, y)
        for name, hardness in (
            ("easy first", judge),
            ("hard first", -hard),
            ("random shares", rng.random(len(y))),
        ):
            stages = recipes.curriculum(new(), x, y, hardness, shares=_SHARES, epochs=each, **options)
            add(name, stages.history)
        by_noise = recipes.continuation(new(), x, y, noises, epochs=total // len(noises), **options)
        add("continuation", by_noise.history)
    seen = np.cumsum([share for share in _SHARES for _ in range(each)]).tolist()
    results = [
        _result(name, histories, each=() if name in ("plain", "continuation") else seen)
        for name, histories in found.items()
    ]
    claims = [
        ("easy examples first help", "easy first", "plain"),
        ("that they are the easy ones matters", "easy first", "random shares"),
        ("hard ones first harm", "plain", "hard first"),
        ("noise on the weights that falls helps", "continuation", "plain"),
    ]
    labels = f"{wrong:.0%} of the labels random" if wrong else "right labels"
    return Part(f"2 hidden layers of 64 ReLUs, Adam, {labels}", results, claims, seen[each - 1 :: each][:-1])


# Student's quantile for an interval of 95%, by the number of seeds; a little too wide for more of them.
_STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}


def verdict(part: Part, claim: tuple[str, str, str]) -> str:
    """Return what the accuracies say of a claim: trainings of the same seed are compared with each other."""
    words, *names = claim
    better, worse = (next(r.last for r in part.results if r.name == name) for name in names)
    gain = 100 * (better - worse)
    mean, seeds = float(gain.mean()), len(gain)
    found = f"{names[0]} {better.mean():.1%}, {names[1]} {worse.mean():.1%}"
    if seeds < 2:
        return f"{words}: {found}; one seed does not say how much is chance"
    error = _STUDENT.get(seeds, 2.6) * float(gain.std(ddof=1)) / math.sqrt(seeds)
    found += f", {mean:+.1f} ± {error:.1f} points (95% interval, {seeds} seeds)"
    if abs(mean) <= error:
        return f"{words}: {found}: this does not show, it may be chance"
    return f"{words}: {found}: {'this shows' if mean > 0 else 'the opposite shows'}"


def report(parts: Sequence[Part]) -> str:
    """Return a table of the accuracies at the end, and what they say of the claims."""
    width = max(len(result.name) for part in parts for result in part.results) + 2
    lines = []
    for part in parts:
        lines += [
            part.title.replace("\n", " "),
            f"  {'':<{width}}{'test acc':>9}{'spread':>9}{'worst':>9}{'best':>9}",
        ]
        for name, _, scores in part.results:
            last = scores[:, -1]
            lines.append(
                f"  {name:<{width}}{last.mean():>9.2%}{last.std():>9.2%}{last.min():>9.2%}{last.max():>9.2%}"
            )
        lines += [f"  - {verdict(part, claim)}" for claim in part.claims]
    return "\n".join(lines)


def draw(title: str, parts: list[Part], label: str = "epoch") -> Any:
    """Draw the test error over a training: the mean of the seeds, in a band from the best to the worst."""
    figure = new_figure(max(8, 6.5 * len(parts)), 5)
    for axes, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        for i, mark in enumerate(part.marks):
            label_once = "" if i else "end of a stage"
            axes.axvline(mark, color="0.75", linewidth=0.8, zorder=0, label=label_once)
        for i, (name, at, scores) in enumerate(part.results):
            style = {"color": f"C{i}", "linestyle": ("-", "--", "-.", ":")[i % 4]}
            errors = np.maximum(1 - scores, 1e-4)  # a logarithm has no place for 0
            axes.plot(at, errors.mean(axis=0), label=name, **style)
            axes.fill_between(at, errors.min(axis=0), errors.max(axis=0), color=f"C{i}", alpha=0.15)
        axes.set(title=part.title, xlabel=label, ylabel="test error", yscale="log")
        axes.yaxis.set_major_formatter(lambda error, _: f"{error:.0%}")
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(3, len(handles[0])))
    return figure


def _draw_transfer(title: str, parts: list[Part]) -> Any:
    """Draw the test accuracy over the number of layers that are copied."""
    figure = new_figure(4.5 * len(parts), 4.5)
    panels = figure.subplots(1, len(parts), sharey=True)
    for axes, part in zip(panels, parts, strict=True):
        scratch = part.results[0].last
        for i, name in enumerate(("frozen", "fine-tuned")):
            own = [result.last for result in part.results if result.name.endswith(name)]
            scores, at = np.array([scratch, *own]), range(1 + len(own))
            style = {"marker": "o", "markersize": 4, "color": f"C{i}"}
            axes.plot(at, scores.mean(axis=1), label=f"copied layers {name}", **style)
            axes.fill_between(at, scores.min(axis=1), scores.max(axis=1), color=f"C{i}", alpha=0.15)
        axes.axhline(scratch.mean(), color="0.4", linestyle="--", label="from scratch")
        axes.set(title=part.title, xlabel="hidden layers copied", xticks=at)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy")
    figure.suptitle(title)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


STUDIES = {
    "pretraining": Study(
        "greedy pretraining layer by layer against training at once", 6, 5, _pretraining, draw
    ),
    "transfer": Study(
        "layers copied from a network that knows pairs of classes, to learn the classes from few examples",
        50,
        5,
        _transfer,
        _draw_transfer,
    ),
    "hints": Study("a thin deep student of a teacher, with and without hints", 30, 5, _hints, draw),
    "curriculum": Study(
        "easy examples first, and a loss that sharpens, against plain training of as many steps",
        24,
        5,
        _curriculum,
        lambda title, parts: draw(title, parts, "examples seen, in numbers of all examples"),
    ),
}


def _loaded(name: str) -> datasets.Dataset:
    data = datasets.load(name, flatten=True, normalize=True)
    most = dict(zip(("train", "test"), _MOST, strict=True))
    return data._replace(
        **{f"{k}_{part}": getattr(data, f"{k}_{part}")[: most[part]] for k in "xy" for part in most}
    )


def main(options: argparse.Namespace) -> int:
    """Run the study that the command line names."""
    study = STUDIES[options.study]
    dataset = resolved(options.dataset)
    data, seeds = _loaded(dataset), range(options.seed, options.seed + (options.seeds or study.seeds))
    title = f"{options.study}: {dataset}, {len(data.x_train):,} training examples, {len(seeds)} seeds"
    print(f"{title}; {study.about}", flush=True)
    title += " (mean, best to worst)"
    parts = study.run(Setting(data, seeds, options.epochs or study.epochs))
    print(report(parts))
    study.draw(title, parts).savefig(options.plot, dpi=120)
    print(f"plot saved to {options.plot}")
    return 0
