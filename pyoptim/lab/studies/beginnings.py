"""The study of first weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import diagnostics, nn
from ...nn import initializers
from ...optim.elementwise import SGD
from ._common import Options, Result, Study, band, legend_below, listed, load, mean, network, train, trainer

_HIDDEN = (100,) * 6
_WAYS: dict[str, Any] = {
    "zeros": initializers.Zeros(),
    "small": initializers.Normal(0.01),
    "large": initializers.Normal(0.5),
    "Glorot": initializers.Glorot(),
    "He": initializers.He(),
}
_ABOUT = {"small": "normal, std 0.01", "large": "normal, std 0.5"}


def _initialization(options: Options) -> Result:
    """Measure outputs and gradients of each layer of a deep network before its training, and train it."""
    data = load(options, 10_000)
    curves, found, rows = [], {}, {}
    for name, init in _WAYS.items():

        def make(seed: int, init: Any = init) -> Any:
            layers = network(data, *_HIDDEN, init=init)
            layers[-1] = nn.Dense(_HIDDEN[-1], int(data.y_train.max()) + 1, init=init)
            return trainer(layers, lambda p: SGD(p, lr=0.05), seed)

        seen = []
        for seed in options.seeds:
            fresh = make(seed)
            seen.append(
                diagnostics.layer_statistics(fresh.model, fresh.loss, data.x_train[:500], data.y_train[:500])
            )
        curves.append(train(name, options, data, make, batch_size=32))
        found[name] = {
            "deviation": np.array([[row.deviation for row in each.rows] for each in seen]),
            "gradient": np.array([[row.weight_gradient for row in each.rows] for each in seen]),
            "accuracy": curves[-1].values("val_accuracy"),
        }
        outputs, gradients = found[name]["deviation"], found[name]["gradient"]
        rows[name] = {
            "outputs, first layer": outputs[:, 0],
            "last layer": outputs[:, -1],
            "gradient, first layer": gradients[:, 0],
            "at the last": gradients[:, -1],
            "test accuracy": curves[-1].last("val_accuracy"),
        }
    setting = f"{options.dataset}, ReLU network of {len(_HIDDEN)} hidden layers of {_HIDDEN[0]}, SGD at 0.05"
    return Result(setting, rows, found)


def _draw_initialization(result: Result, axes: Sequence[Any]) -> None:
    for panel, (key, title, label) in zip(
        axes,
        (
            ("deviation", "outputs before training", "standard deviation"),
            ("gradient", "gradients of the weights before training", "root mean square"),
            ("accuracy", "training", "test accuracy"),
        ),
        strict=True,
    ):
        for i, (name, values) in enumerate(result.data.items()):
            label_ = f"{name} ({_ABOUT[name]})" if name in _ABOUT else name
            shown = values[key] if key == "accuracy" else np.maximum(values[key], _least(result, key))
            band(
                panel,
                np.arange(shown.shape[1]) + 1,
                shown,
                i,
                label_,
                linestyle="--" if name == "small" else "-",
            )
        panel.set(title=title, xlabel="epoch" if key == "accuracy" else "layer", ylabel=label)
        if key != "accuracy":
            panel.set_yscale("log")
            panel.set_ylabel(f"{label} (0 is drawn at the bottom)")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
    legend_below(axes[0])


def _least(result: Result, key: str) -> float:
    """Where a 0 is drawn on a logarithmic axis: a tenth of the least number that is none."""
    values = np.concatenate([found[key].ravel() for found in result.data.values()])
    positive = values[np.isfinite(values) & (values > 0)]
    return float(positive.min()) / 10 if positive.size else 1e-12


def _say_initialization(result: Result) -> str:
    def scaled(name: str) -> str:
        first, last = (mean(result, name, key) for key in ("outputs, first layer", "last layer"))
        if not first or not last:
            return f"{name} let nothing through"
        ratio = last / first
        kind = "vanish" if ratio < 0.1 else "explode" if ratio > 10 else "keep their size"
        return f"with {name} weights outputs {kind} ({ratio:.2g} times from the first layer to the last)"

    learn = {name: mean(result, name, "test accuracy") for name in result.rows}
    best = max(learn, key=lambda name: learn[name])
    words = f"{'; '.join(map(scaled, result.rows))}."
    words = words[0].upper() + words[1:]
    stuck = [name for name, accuracy in learn.items() if accuracy < 0.5 * learn[best]]
    told = f"After training {best} is the best with {learn[best]:.1%}"
    told += (
        f"; {listed(stuck)} {'has' if len(stuck) == 1 else 'have'} hardly learnt."
        if stuck
        else "; all have learnt."
    )
    fit = "shows" if best in ("He", "Glorot") and {"zeros", "small"} <= set(stuck) else "does not show"
    return f"{words} {told} That first weights scaled to the layer's size train deep networks {fit} here."


INITIALIZATION = Study(
    "first weights of a deep network: outputs and gradients by layer, and the training",
    _initialization,
    _draw_initialization,
    _say_initialization,
    panels=3,
    epochs=4,
)
