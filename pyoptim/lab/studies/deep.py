"""Studies of deep thin networks: greedy pretraining, and hints of a teacher."""

from __future__ import annotations

from typing import Any

from ... import nn, recipes
from ...optim.elementwise import Adam
from ...train.history import History
from ._claims import Part, Setting, Way, draw_errors, fit, model_of, sgd, study, way
from ._common import trainer


def _pretraining(setting: Setting) -> list[Part]:
    depth, epochs, (x, y) = 6, setting.epochs, setting.data[:2]
    sizes, finally_ = setting.sizes(*[50] * depth), 3 * epochs
    at_once, greedy = [], []
    for seed in setting.seeds:
        model = model_of(sizes, "sigmoid", seed)
        at_once.append(fit(trainer(model, sgd, seed), x, y, setting.test, depth * epochs + finally_))
        model = model_of(sizes, "sigmoid", seed)
        given: dict[str, Any] = {"optimizer": sgd, "epochs": epochs, **setting.options(seed)}
        stages = recipes.greedy_pretrain(model, x, y, nn.CrossEntropy(), **given)
        stages["fine-tuning"] = fit(trainer(model, sgd, seed), x, y, setting.test, finally_)
        greedy.append(stages.history)
    return [
        Part(
            f"{depth} hidden layers of 50 sigmoids, SGD with momentum",
            [way("at once", at_once), way("layer by layer, then all", greedy)],
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


def _hints(setting: Setting) -> list[Part]:
    depth, hinting, (x, y) = 5, setting.epochs // 3 or 1, setting.data[:2]
    sizes, all_ = setting.sizes(*[16] * depth), setting.epochs + hinting
    found: dict[str, list[History]] = {}
    for seed in setting.seeds:
        teacher = model_of(setting.sizes(64, 64), "tanh", 1_000 + seed)
        found.setdefault("teacher", []).append(fit(trainer(teacher, Adam, seed), x, y, setting.test, 30))
        model = model_of(sizes, "sigmoid", seed)
        found.setdefault("labels", []).append(fit(trainer(model, sgd, seed), x, y, setting.test, all_))
        for name, hinted, alpha in (
            ("teacher's outputs", False, 1.0),
            ("hints, then teacher's outputs", True, 1.0),
            ("hints, then labels", True, 0.0),
        ):
            model = model_of(sizes, "sigmoid", seed)
            given: dict[str, Any] = {"temperature": 3.0, "alpha": alpha, "optimizer": sgd}
            epochs = (
                {"epochs": setting.epochs, "hint_epochs": hinting, "hints": {1: 1}}
                if hinted
                else {"epochs": all_}
            )
            stages = recipes.distill(teacher, model, x, y, **given, **epochs, **setting.options(seed))
            found.setdefault(name, []).append(stages["distill"])
    results = [
        way(name, histories, hinting if name.startswith("hints") else 0) for name, histories in found.items()
    ]
    results[0] = Way("teacher", (1, all_), results[0].scores[:, -1:].repeat(2, axis=1))
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


PRETRAINING = study(
    "greedy pretraining layer by layer against training at once", _pretraining, 6, draw_errors
)
HINTS = study("a thin deep student of a teacher, with and without hints", _hints, 30, draw_errors)
