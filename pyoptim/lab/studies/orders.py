"""The study of orders of the examples: easy ones first, and noise on the weights that falls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import nn, recipes
from ...optim.elementwise import Adam
from ...recipes._curriculum import losses_of
from ...train.history import History
from ...train.trainer import Trainer
from ._claims import Part, Setting, draw_errors, fit, model_of, study, way
from ._common import Result, trainer

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
        judge = model_of(setting.sizes(64), "relu", 1_000 + seed, "he")
        fit(trainer(judge, Adam, seed), x, y, setting.test, 10)
        options: dict[str, Any] = {"validation_data": setting.test, "verbose": False}

        def new(seed: int = seed) -> Trainer:
            return trainer(model_of(sizes, "relu", seed, "he"), Adam, seed)

        add("plain", fit(new(), x, y, setting.test, total))
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
        way(name, histories, each=() if name in ("plain", "continuation") else seen)
        for name, histories in found.items()
    ]
    claims = [
        ("easy examples first help", "easy first", "plain"),
        ("that they are the easy ones matters", "easy first", "random shares"),
        ("hard ones first harm", "plain", "hard first"),
        ("noise on the weights that falls helps", "continuation", "plain"),
    ]
    labels = f"{wrong:.0%} of the labels random" if wrong else "right labels"
    return Part(
        f"2 hidden layers of 64 ReLUs, Adam, {labels}", results, claims, seen[each - 1 :: each][:-1], labels
    )


def _draw(result: Result, axes: Sequence[Any]) -> None:
    draw_errors(result, axes, "examples seen, in numbers of all examples")


CURRICULUM = study(
    "easy examples first, and a loss that sharpens, against plain training of as many steps",
    _curriculum,
    24,
    _draw,
    panels=2,
)
