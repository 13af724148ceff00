"""The study of transfer: layers copied from a network that knows another task."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from ... import recipes
from ...optim.elementwise import Adam
from ...train.history import History
from ._claims import Part, Setting, fit, model_of, study, way
from ._common import Result, band, legend_below, trainer

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
        source = model_of([*sizes[:-1], (sizes[-1] + 1) // 2], "relu", seed, "he")
        fit(trainer(source, Adam, seed), x, y // 2, (x_test, y_test // 2), 30)
        order = np.random.default_rng(seed).permutation(len(y))
        places = [order[y[order] == label] for label in range(sizes[-1])]
        for count, (name, k, freeze) in product(_FEW, _COPIES):
            rows = np.concatenate([place[:count] for place in places])
            model = model_of(sizes, "relu", 1_000 + seed, "he")
            if k:
                recipes.transfer(source, model, k, freeze=freeze)
            history = fit(trainer(model, Adam, seed), x[rows], y[rows], setting.test, setting.epochs, 16)
            found.setdefault((count, name), []).append(history)
    claims = [
        ("layers that a task like this one has taught help", "2 copied, frozen", "from scratch"),
        ("the last hidden layer knows its own task alone", "2 copied, frozen", "3 copied, frozen"),
        ("fine-tuning mends that", "3 copied, fine-tuned", "3 copied, frozen"),
    ]
    title = "3 hidden layers of 100 ReLUs, Adam,\n{} examples of each class"
    return [
        Part(
            title.format(count),
            [way(name, found[count, name]) for name, *_ in _COPIES],
            claims,
            short=f"{count} a class",
        )
        for count in _FEW
    ]


def _draw(result: Result, axes: Sequence[Any]) -> None:
    """Draw the test accuracy over the number of layers that are copied."""
    for panel, part in zip(axes, result.data, strict=True):
        scratch = part.ways[0].last
        for i, name in enumerate(("frozen", "fine-tuned")):
            own = [each.last for each in part.ways if each.name.endswith(name)]
            scores = np.array([scratch, *own]).T
            band(panel, range(1 + len(own)), scores, i, f"copied layers {name}")
        panel.axhline(scratch.mean(), color="0.4", linestyle="--", label="from scratch")
        panel.set(title=part.title, xlabel="hidden layers copied", ylabel="test accuracy")
        panel.title.set_fontsize("small")
        panel.set_xticks(range(1 + len(own)))
        panel.grid(alpha=0.3)
    legend_below(axes[0])


TRANSFER = study(
    "layers copied from a network that knows pairs of classes, to learn the classes from few examples",
    _transfer,
    50,
    _draw,
    panels=len(_FEW),
)
