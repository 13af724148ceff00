"""The studies of learning rates and of their schedules."""

from __future__ import annotations

from typing import Any

from ... import schedules
from ...optim.elementwise import SGD
from ._common import Curve, Options, Result, Study, curves_table, draw_curves, load, network, train, trainer


def _learning_rates(options: Options) -> Result:
    compared: dict[str, float | schedules.Schedule] = {f"lr {lr:g}": lr for lr in (0.5, 0.05, 0.0003)}
    return _compared(options, compared)


def _schedules(options: Options) -> Result:
    steps = options.epochs * -(-len(load(options).x_train) // 60)
    compared: dict[str, float | schedules.Schedule] = {
        "constant": schedules.Constant(0.3),
        "inverse time": schedules.InverseTime(0.3, decay=10 / steps),
        "exponential": schedules.Exponential(0.3, rate=0.01, steps=steps),
        "step": schedules.Step(0.3, every=max(1, steps // 3)),
        "cosine": schedules.Cosine(0.3, steps=steps),
        "one-cycle": schedules.OneCycle(0.6, steps=steps),
        "warm-up, then cosine": schedules.WarmUp(schedules.Cosine(0.3, steps=steps), steps=steps // 10),
    }
    return _compared(options, compared)


def _compared(options: Options, rates: dict[str, float | schedules.Schedule]) -> Result:
    data = load(options)

    def trained(name: str, lr: float | schedules.Schedule) -> Curve:
        def make(seed: int) -> Any:
            return trainer(network(data, 100), lambda p: SGD(p, lr=lr), seed)

        return train(name, options, data, make)

    curves = [trained(name, lr) for name, lr in rates.items()]
    return Result(f"{options.dataset}, ReLU network (100,), SGD", curves_table(curves), curves)


LEARNING_RATE = Study("learning rates 0.5, 0.05 and 0.0003", _learning_rates, draw_curves, seeds=1)
SCHEDULES = Study("learning-rate schedules compared", _schedules, draw_curves, seeds=1)
