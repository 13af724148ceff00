"""``pyoptim compare``: the same problem with several optimizers, side by side; or every schedule."""

from __future__ import annotations

import argparse
import ast
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import schedules
from ..optim.optimizer import Optimizer
from ..runtime.dtypes import Array
from ..runtime.numbers import check_name
from ..surfaces import SURFACES, Surface
from . import compare_plots

if TYPE_CHECKING:
    from ..train.trainer import Trainer

# Learning rates that suit the problems. On a surface it is the one of 1, 2, 5 x 10^k with which 500 steps
# bring the loss down soonest, for good and within the window. An optimizer without a row has its own default.
_COLUMNS = (*SURFACES, "digits")  # the last column serves the larger data sets too
_RATES = {
    "sgd": (0.02, 0.002, 0.2, 0.01, 0.5, 0.2),
    "momentum": (0.002, 0.002, 0.1, 0.005, 0.1, 0.05),
    "nesterov": (0.005, 0.001, 0.2, 0.01, 0.1, 0.05),
    "adagrad": (1.0, 1.0, 1.0, 2.0, 0.1, 0.05),
    "rmsprop": (0.02, 0.02, 0.1, 0.05, 0.01, 0.002),
    "adadelta": (2.0, 2.0, 1.0, 2.0, 5.0, 1.0),
    "adam": (0.5, 0.5, 0.2, 1.0, 0.01, 0.002),
    "nadam": (0.2, 0.05, 0.1, 0.2, 0.01, 0.002),
    "adamw": (0.5, 0.5, 0.5, 1.0, 0.01, 0.002),
    "amsgrad": (0.5, 0.5, 0.2, 1.0, 0.01, 0.002),
    "adamax": (1.0, 0.5, 0.5, 2.0, 0.05, 0.005),
    "radam": (0.01, 0.005, 0.5, 0.02, 0.02, 0.002),
    "lion": (0.05, 0.01, 0.02, 0.05, 0.001, 0.0002),
    "rprop": (0.1, 0.05, 0.5, 2.0, 0.005, 0.001),
    "asgd": (0.02, 0.002, 0.2, 0.01, 0.5, 0.2),
    "lars": (2.0, 5.0, 5.0, 20.0, 2.0, 2.0),
    "lamb": (0.01, 0.02, 0.01, 0.5, 0.005, 0.005),
    "adafactor": (0.02, 0.5, 0.1, 0.2, 0.1, 0.05),
}
_VARIANTS = {
    "momentum": ("sgd", {"momentum": 0.9}),
    "nesterov": ("sgd", {"momentum": 0.9, "nesterov": True}),
}
_USUAL = "sgd,momentum,nesterov,adagrad,rmsprop,adadelta,adam,nadam"


class Choice(NamedTuple):
    """An optimizer as ``--optimizers`` names it: ``adam`` or ``sgd:lr=0.1:momentum=0.9``."""

    text: str
    name: str
    make: type[Optimizer]
    options: dict[str, Any]

    def on(self, problem: str, params: Any) -> Optimizer:
        """The optimizer of params, with a learning rate that suits the problem if none was given."""
        column = _COLUMNS.index(problem) if problem in _COLUMNS else -1
        usual = {"lr": _RATES[self.name][column]} if self.name in _RATES else {}
        return self.make(params, **usual | self.options)


def main(options: argparse.Namespace, choices: Sequence[Choice]) -> None:
    """Run what the command line says; all of it has been checked."""
    if options.schedules:
        _compare_schedules(options)
    elif options.problem == "surfaces" or options.problem in SURFACES:
        _compare_on_surfaces(options, choices)
    else:
        _compare_on_data(options, choices)
    print(f"plot saved to {options.plot}")


def check(options: argparse.Namespace, find: Callable[[str], type[Optimizer]]) -> list[Choice]:
    """Raise now for what would fail after the training, and fill in what was not given."""
    from ..datasets import NAMES

    known = ("surfaces", *SURFACES, *NAMES)
    check_name("PROBLEM", options.problem, known)
    if options.schedules and (options.gif or options.optimizers or options.epochs or options.seeds):
        raise ValueError("--schedules takes --steps and --plot only")
    on_data = options.problem in NAMES and not options.schedules
    if on_data and (options.steps or options.gif):
        given = "--steps" if options.steps else "--gif"
        raise ValueError(f"{given} is for surfaces, and {options.problem} is a data set")
    if not on_data and options.epochs:
        raise ValueError(f"--epochs is for data sets ({', '.join(NAMES)}), expected --steps")
    if not on_data and options.seeds:
        raise ValueError(
            f"--seeds is for data sets ({', '.join(NAMES)}): descents on surfaces are not random"
        )
    if options.gif and Path(options.gif).suffix.lower() != ".gif":
        raise ValueError(f"--gif is {options.gif!r}, expected a name that ends in .gif")
    if options.gif and Path(options.gif).resolve() == Path(options.plot).resolve():
        raise ValueError(f"--gif and --plot are both {options.gif!r}, expected two files")
    choices = [_choice(text, find) for text in (options.optimizers or _USUAL).split(",")]
    if not on_data and not options.schedules:
        for choice in choices:
            choice.on("beale", np.zeros(2))  # raises for an optimizer that needs matrices, such as Muon
    return choices


def _choice(text: str, find: Callable[[str], type[Optimizer]]) -> Choice:
    name, *parts = text.strip().split(":")
    base, options = _VARIANTS.get(name.lower(), (name, {}))
    given: dict[str, Any] = dict(options)
    for part in parts:
        key, equals, value = part.partition("=")
        if not (key and equals):
            raise ValueError(f"--optimizers has {part!r} in {text!r}, expected OPTION=VALUE")
        try:
            given[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            given[key] = value
    return Choice(text.strip().lower(), name.lower(), find(base), given)


def descend(surface: Surface, optimizer: Optimizer, p: Array, steps: int) -> tuple[Array, Array]:
    """Minimise a surface from p, which the optimizer updates.

    Returns
    -------
    points : array (steps + 1, 2)
        p before the first step and after each; NaN once it is no longer finite.
    losses : array (steps + 1,)
        Values above the minimum.
    """
    points = np.full((steps + 1, 2), np.nan)
    points[0] = p
    with np.errstate(all="ignore"):  # an optimizer that diverges is shown as such
        for t in range(1, steps + 1):
            optimizer.step(surface.gradient(p))
            if not np.isfinite(p).all():
                break
            points[t] = p
        return points, surface.value(points.T) - surface.least


def _compare_on_surfaces(options: argparse.Namespace, choices: Sequence[Choice]) -> None:
    names = list(SURFACES) if options.problem == "surfaces" else [options.problem]
    steps = options.steps or 500
    runs: dict[str, list[compare_plots.Descent]] = {}
    width = _width(choices)
    for name in names:
        surface = SURFACES[name]
        start = np.array(surface.start)
        if options.seed is not None:
            start = np.random.default_rng(options.seed).uniform(*np.transpose(surface.window))
        print(f"{name} from ({start[0]:.4g}, {start[1]:.4g}), {steps} steps:")
        print(f"  {'optimizer':<{width}} {'lr':>6} {'f - min f':>10} {'distance':>10} {'steps to 0.1%':>14}")
        runs[name] = []
        for choice in choices:
            p = start.copy()
            optimizer = choice.on(name, p)
            lr = float(optimizer.param_groups[0]["lr"])
            points, losses = descend(surface, optimizer, p, steps)
            runs[name].append(compare_plots.Descent(choice.text, lr, points, losses))
            print(f"  {choice.text:<{width}} {lr:>6g} {_result(surface, points, losses)}")
        print()
    compare_plots.draw_surfaces(options.plot, runs)
    if options.gif:
        compare_plots.animate_surfaces(options.gif, runs)
        print(f"animation saved to {options.gif}")


def _width(choices: Sequence[Choice]) -> int:
    return max(9, *(len(choice.text) for choice in choices))


def _result(surface: Surface, points: Array, losses: Array) -> str:
    if not np.isfinite(losses[-1]):
        return f"{'diverged':>10}"
    distance = min(math.dist(points[-1], minimum) for minimum in surface.minima)
    near = np.flatnonzero(losses <= 1e-3 * losses[0])
    return f"{losses[-1]:>10.1e} {distance:>10.1e} {near[0] if near.size else '-':>14}"


def _compare_on_data(options: argparse.Namespace, choices: Sequence[Choice]) -> None:
    from .. import datasets
    from ..runtime import dispatch, threads
    from ..train.curves import compare

    is_small = options.problem == "digits"
    epochs = options.epochs or (20 if is_small else 3)
    first = options.seed or 0
    seeds = range(first, first + (options.seeds or 3))
    data = datasets.load(options.problem, flatten=True, normalize=True)
    sizes = (data.x_train.shape[1], 64 if is_small else 128, int(data.y_train.max()) + 1)
    trainers = [[_trainer(choice, options.problem, sizes, seed) for seed in seeds] for choice in choices]
    what = f"{options.problem}: {'-'.join(map(str, sizes))}, {epochs} epochs in batches of 32"
    print(
        f"{what}, {_words(seeds)}; {len(data.x_train):,} training and {len(data.x_test):,} test examples; "
        f"{dispatch.current().name} backend, {threads.get_num_threads()} threads"
    )
    width = _width(choices)
    heads = f"{'train loss':>10} {'test loss':>10} {'test accuracy':>14} {'range':>15} {'time':>8}"
    print(f"  {'optimizer':<{width}} {'lr':>6} {heads}")
    runs = {}
    for choice, of_seeds in zip(choices, trainers, strict=True):
        lr = float(of_seeds[0].optimizer.param_groups[0]["lr"])
        with np.errstate(all="ignore"):
            histories = [
                trainer.fit(
                    data.x_train, data.y_train, epochs=epochs, batch_size=32,
                    validation_data=(data.x_test, data.y_test), verbose=False,
                )
                for trainer in of_seeds
            ]  # fmt: skip
        runs[choice.text if "lr=" in choice.text else f"{choice.text} ({lr:g})"] = histories
        print(f"  {choice.text:<{width}} {lr:>6g} {_of_seeds(histories)}", flush=True)
    print()
    compare(runs, options.plot, title=f"{what}, {_words(seeds)}", validation="test")


def _words(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"median and range of {len(seeds)} seeds"


def _trainer(choice: Choice, problem: str, sizes: tuple[int, int, int], seed: int) -> Trainer:
    """With the same seed every optimizer has the same first weights and sees the same batches."""
    from .. import nn
    from ..train.trainer import Trainer

    hidden = nn.Dense(*sizes[:2], activation="relu", init="he")
    model = nn.Sequential(hidden, nn.Dense(*sizes[1:]), seed=seed)
    return Trainer(model, nn.CrossEntropy(), choice.on(problem, model.parameters()), seed=seed)


def _of_seeds(histories: Sequence[Mapping[str, Sequence[float]]]) -> str:
    last = {name: [history[name][-1] for history in histories] for name in histories[0]}
    seconds = float(np.mean([sum(history["seconds"]) for history in histories]))
    scores = last["val_accuracy"]
    result = (
        f"{np.median(last['loss']):>10.4f} {np.median(last['val_loss']):>10.4f} {np.median(scores):>14.2%} "
    )
    result += f"{100 * min(scores):.2f}-{max(scores):.2%}".rjust(15)
    if not np.isfinite(last["val_loss"]).all():
        gone = int(np.count_nonzero(~np.isfinite(last["val_loss"])))
        some = f" with {gone} of {len(scores)} seeds" if gone < len(scores) else ""
        result = f"diverged{some}".ljust(52)
    return f"{result} {seconds:>6.2f} s"


def schedule_examples(steps: int) -> dict[str, dict[str, schedules.Schedule]]:
    """Every schedule of `pyoptim.schedules`, with arguments that show its shape over so many steps."""
    s, n = schedules, max(steps // 10, 1)
    third, seventh = max(steps // 3, 1), -(-steps // 7)
    rising = s.Linear(0.1, 1.0, steps=3 * n)
    return {
        "Constant": {"lr=0.5": s.Constant(0.5)},
        "Linear": {"final=0.1": s.Linear(1.0, 0.1, steps=6 * n)},
        "Polynomial": {f"power={p:g}": s.Polynomial(1.0, steps=8 * n, power=p) for p in (0.5, 2.0)},
        "InverseTime": {f"decay={d / n:g}": s.InverseTime(1.0, d / n) for d in (0.2, 1.0)},
        "InverseSqrt": {f"scale={scale:g}": s.InverseSqrt(1.0, scale) for scale in (0.25, 1.0)},
        "Exponential": {f"rate={r}, steps={n}": s.Exponential(1.0, r, steps=n) for r in (0.8, 0.5)},
        "Step": {f"gamma={g}, every={2 * n}": s.Step(1.0, every=2 * n, gamma=g) for g in (0.7, 0.3)},
        "Piecewise": {"three rates": s.Piecewise([third, 2 * third], [1.0, 0.4, 0.1])},
        "Cosine": {
            f"steps={10 * n}": s.Cosine(1.0, steps=10 * n),
            "restarts, growth=2": s.Cosine(1.0, steps=seventh, restarts=True, growth=2),
        },
        "Cyclic": {m: s.Cyclic(0.1, 1.0, half_cycle=n, mode=m) for m in ("triangular", "triangular2")},
        "OneCycle": {"rise=0.3": s.OneCycle(1.0, steps=steps)},
        "RangeTest": {"1e-4 to 1": s.RangeTest(1e-4, 1.0, steps=steps)},
        "WarmUp": {"then Cosine": s.WarmUp(s.Cosine(1.0, steps=8 * n), steps=2 * n)},
        "Joined": {"Linear, then Step": s.Joined([rising, s.Step(1.0, every=2 * n, gamma=0.5)], [3 * n])},
        "Chained": {
            "Cyclic * Exponential": s.Chained(
                [s.Cyclic(0.5, 1.0, half_cycle=n), s.Exponential(1.0, 0.8, steps=n)]
            )
        },
    }


def _compare_schedules(options: argparse.Namespace) -> None:
    steps = options.steps or 1000
    examples = schedule_examples(steps)
    shown = (0, steps // 2, steps - 1)
    print(f"{'learning rate at':<34}" + "".join(f"{f'k = {k}':>12}" for k in shown))
    for name, variants in examples.items():
        for label, schedule in variants.items():
            print(f"  {name:<11} {label:<20}" + "".join(f"{schedule(k):>12.4g}" for k in shown))
    print()
    compare_plots.draw_schedules(options.plot, examples, steps)
