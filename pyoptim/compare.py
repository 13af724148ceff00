"""``pyoptim compare``: the same problem with several optimizers, side by side; or every schedule."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import compare_plots, optimizers, schedules, tensor_optimizers
from ._arrays import Array
from .optimizer import Optimizer
from .plots import check_image
from .surfaces import SURFACES, Surface


class Choice(NamedTuple):
    """An optimizer under the name it has here, with learning rates that suit it.

    ``rates`` are for the surfaces, in their order, then for digits and for larger data sets. On a surface it
    is that of 1, 2, 5 x 10^k with which 500 steps bring the loss down soonest for good, within the window.
    """

    make: type[Optimizer]
    options: dict[str, Any]
    rates: tuple[float, ...]

    def rate(self, problem: str) -> float:
        """The learning rate for a surface or a data set."""
        columns = [*SURFACES, "digits"]
        return self.rates[columns.index(problem) if problem in columns else -1]


_HEAVY, _NESTEROV = {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}
CHOICES = {  #                                      beale, rosenbrock, saddle, valley; digits, larger
    "sgd": Choice(optimizers.SGD, {}, (0.02, 0.002, 0.2, 0.01, 0.5, 0.2)),
    "momentum": Choice(optimizers.SGD, _HEAVY, (0.002, 0.002, 0.1, 0.005, 0.1, 0.05)),
    "nesterov": Choice(optimizers.SGD, _NESTEROV, (0.005, 0.001, 0.2, 0.01, 0.1, 0.05)),
    "adagrad": Choice(optimizers.Adagrad, {}, (1.0, 1.0, 1.0, 2.0, 0.1, 0.05)),
    "rmsprop": Choice(optimizers.RMSprop, {}, (0.02, 0.02, 0.1, 0.05, 0.01, 0.002)),
    "adadelta": Choice(optimizers.Adadelta, {}, (10.0, 2.0, 5.0, 5.0, 5.0, 1.0)),
    "adam": Choice(optimizers.Adam, {}, (0.5, 0.5, 0.2, 1.0, 0.01, 0.002)),
    "nadam": Choice(optimizers.NAdam, {}, (0.2, 0.05, 0.1, 0.2, 0.01, 0.002)),
    "adamw": Choice(optimizers.AdamW, {}, (0.5, 0.5, 0.5, 1.0, 0.01, 0.002)),
    "amsgrad": Choice(optimizers.AMSGrad, {}, (0.5, 0.5, 0.2, 1.0, 0.01, 0.002)),
    "adamax": Choice(optimizers.Adamax, {}, (1.0, 0.5, 0.5, 2.0, 0.05, 0.005)),
    "radam": Choice(optimizers.RAdam, {}, (0.01, 0.005, 0.5, 0.02, 0.02, 0.002)),
    "lion": Choice(optimizers.Lion, {}, (0.05, 0.01, 0.02, 0.05, 0.001, 0.0002)),
    "rprop": Choice(optimizers.Rprop, {}, (0.1, 0.05, 0.5, 2.0, 0.005, 0.001)),
    "asgd": Choice(optimizers.ASGD, {}, (0.02, 0.002, 0.2, 0.01, 0.5, 0.2)),
    "lars": Choice(tensor_optimizers.LARS, {}, (2.0, 5.0, 5.0, 20.0, 2.0, 2.0)),
    "lamb": Choice(tensor_optimizers.LAMB, {}, (0.01, 0.02, 0.01, 0.5, 0.005, 0.005)),
    "adafactor": Choice(tensor_optimizers.Adafactor, {}, (0.02, 0.5, 0.1, 0.2, 0.1, 0.05)),
}
"""What ``--optimizers`` takes. Muon is not among them: it is for matrices only."""

_USUAL = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adadelta", "adam", "nadam")
_STEPS, _SCHEDULE_STEPS = 500, 1000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit status: 0, or 2 if it cannot run."""
    options = _parser().parse_args(argv)
    try:
        _check(options)
        if options.schedules:
            _compare_schedules(options)
        elif options.problem == "surfaces" or options.problem in SURFACES:
            _compare_on_surfaces(options)
        else:
            _compare_on_data(options)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f"pyoptim compare: {error}", file=sys.stderr)
        return 2
    print(f"plot saved to {options.plot}")
    return 0


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
    with np.errstate(all="ignore"):  # one that diverges is shown as such
        for t in range(1, steps + 1):
            optimizer.step(surface.gradient(p))
            if not np.isfinite(p).all():
                break
            points[t] = p
        return points, surface.value(points.T) - surface.least


def _compare_on_surfaces(options: argparse.Namespace) -> None:
    names = list(SURFACES) if options.problem == "surfaces" else [options.problem]
    steps = options.steps or _STEPS
    runs: dict[str, list[compare_plots.Descent]] = {}
    for name in names:
        surface = SURFACES[name]
        start = np.array(surface.start)
        if options.seed is not None:
            start = np.random.default_rng(options.seed).uniform(*np.transpose(surface.window))
        print(f"{name} from ({start[0]:.4g}, {start[1]:.4g}), {steps} steps:")
        print(f"  {'optimizer':<10} {'lr':>6} {'f - min f':>10} {'distance':>10} {'steps to 0.1%':>14}")
        runs[name] = []
        for key in options.optimizers:
            choice, p = CHOICES[key], start.copy()
            lr = options.lr or choice.rate(name)
            points, losses = descend(surface, choice.make(p, lr=lr, **choice.options), p, steps)
            runs[name].append(compare_plots.Descent(key, lr, points, losses))
            print(f"  {key:<10} {lr:>6g} {_result(surface, points, losses)}")
        print()
    compare_plots.draw_surfaces(options.plot, runs)
    if options.gif:
        compare_plots.animate_surfaces(options.gif, runs)
        print(f"animation saved to {options.gif}")


def _result(surface: Surface, points: Array, losses: Array) -> str:
    if not np.isfinite(losses[-1]):
        return f"{'diverged':>10}"
    distance = min(math.dist(points[-1], minimum) for minimum in surface.minima)
    near = np.flatnonzero(losses <= 1e-3 * losses[0])
    return f"{losses[-1]:>10.1e} {distance:>10.1e} {near[0] if near.size else '-':>14}"


def _compare_on_data(options: argparse.Namespace) -> None:
    from . import backends, datasets, nn, threads
    from .trainer import Trainer

    is_small = options.problem == "digits"
    epochs = options.epochs or (20 if is_small else 3)
    seed = options.seed or 0
    data = datasets.load(options.problem, flatten=True, normalize=True)
    sizes = (data.x_train.shape[1], 64 if is_small else 128, int(data.y_train.max()) + 1)
    print(
        f"{options.problem}: {len(data.x_train):,} training and {len(data.x_test):,} test examples; "
        f"{'-'.join(map(str, sizes))}, {epochs} epochs in batches of {options.batch_size}; "
        f"{backends.current().name} backend, {threads.get_num_threads()} threads"
    )
    heads = f"{'train loss':>10} {'test loss':>10} {'test accuracy':>14} {'time':>8}"
    print(f"  {'optimizer':<10} {'lr':>6} {heads}")
    runs = []
    for key in options.optimizers:
        # The same seeds: every optimizer has the same first weights and sees the same batches.
        model = nn.Sequential(
            nn.Dense(*sizes[:2], activation="relu", init="he"), nn.Dense(*sizes[1:]), seed=seed
        )
        choice = CHOICES[key]
        lr = options.lr or choice.rate(options.problem)
        optimizer = choice.make(model.parameters(), lr=lr, **choice.options)
        with np.errstate(all="ignore"):
            history = Trainer(model, nn.CrossEntropy(), optimizer, seed=seed).fit(
                data.x_train,
                data.y_train,
                epochs=epochs,
                batch_size=options.batch_size,
                validation_data=(data.x_test, data.y_test),
                verbose=False,
            )
        runs.append(compare_plots.Training(key, lr, history))
        last = {name: values[-1] for name, values in history.items()}
        print(
            f"  {key:<10} {lr:>6g} {last['loss']:>10.4f} {last['val_loss']:>10.4f} "
            f"{last['val_accuracy']:>14.2%} {sum(history['seconds']):>6.2f} s",
            flush=True,
        )
    print()
    compare_plots.draw_training(options.plot, options.problem, runs)


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
        "InverseSqrt": {f"scale={scale:g}": s.InverseSqrt(1.0, scale) for scale in (1.0, 4.0)},
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
    steps = options.steps or _SCHEDULE_STEPS
    examples = schedule_examples(steps)
    shown = (0, steps // 2, steps - 1)
    print(f"{'learning rate at':<34}" + "".join(f"{f'k = {k}':>12}" for k in shown))
    for name, variants in examples.items():
        for label, schedule in variants.items():
            print(f"  {name:<11} {label:<20}" + "".join(f"{schedule(k):>12.4g}" for k in shown))
    print()
    compare_plots.draw_schedules(options.plot, examples, steps)


def _check(options: argparse.Namespace) -> None:
    """Say before the training what would fail after it."""
    from .datasets import NAMES

    known = ["surfaces", *SURFACES, *NAMES]
    on_data = options.problem in NAMES and not options.schedules
    if options.problem not in known:
        raise ValueError(f"--problem is {options.problem!r}, expected one of {', '.join(known)}")
    if on_data and (options.steps or options.gif):
        given = "--steps" if options.steps else "--gif"
        raise ValueError(f"{given} is for surfaces, and {options.problem} is a data set: give --epochs")
    if not on_data and (options.epochs or options.batch_size):
        given = "--epochs" if options.epochs else "--batch-size"
        raise ValueError(f"{given} is for data sets ({', '.join(NAMES)}): give --problem, or --steps")
    if options.schedules and (options.gif or options.lr or options.optimizers):
        raise ValueError("--schedules takes --steps and --plot only")
    options.batch_size = options.batch_size or 32
    options.optimizers = options.optimizers or _USUAL
    options.plot = options.plot or ("schedules.png" if options.schedules else "compare.png")
    for option, path in (("--plot", options.plot), ("--gif", options.gif or "")):
        if not Path(path).parent.is_dir():
            raise ValueError(f"{option} is {path!r}, but there is no folder {str(Path(path).parent)!r}")
    check_image(options.plot)
    if options.gif and Path(options.gif).suffix.lower() != ".gif":
        raise ValueError(f"--gif is {options.gif!r}, expected a name that ends in .gif")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "pyoptim compare",
        description="Train the same problem with several optimizers, print a table and draw a plot.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--problem",
        default="surfaces",
        metavar="NAME",
        help=f"{', '.join(SURFACES)}; surfaces: all of these (default); digits, mnist, …",
    )
    what.add_argument("--schedules", action="store_true", help="draw every learning-rate schedule instead")
    parser.add_argument(
        "--optimizers",
        type=_names,
        metavar="NAMES",
        help=f"some of {','.join(CHOICES)}; default: {','.join(_USUAL)}",
    )
    parser.add_argument("--lr", type=_rate, help="for all; default: one that suits optimizer and problem")
    parser.add_argument(
        "--steps", type=_positive, help=f"default: {_STEPS}; {_SCHEDULE_STEPS} for --schedules"
    )
    parser.add_argument("--epochs", type=_positive, help="on a data set; default: 20 for digits, else 3")
    parser.add_argument("--batch-size", type=_positive, help="on a data set; default: 32")
    parser.add_argument(
        "--seed", type=_seed, help="of first weights and order of examples; of a random start on surfaces"
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="the image; default: compare.png, or schedules.png for --schedules"
    )
    parser.add_argument("--gif", metavar="FILE", help="write an animation too, on surfaces")
    return parser


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",")))
    for name in names:
        if name not in CHOICES:
            raise argparse.ArgumentTypeError(f"{name!r} is not among {', '.join(CHOICES)}")
    return names


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not (math.isfinite(rate) and rate > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number > 0")
    return rate


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 0")
    return int(text)
