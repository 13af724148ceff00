"""What recipes of several trainings share: their options, copies of layers, and what they return."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import nn
from ..nn.checkpoint import describe, layer_from
from ..optim.optimizer import Optimizer
from ..runtime.dtypes import Array
from ..runtime.numbers import check_path, nearest, shown
from ..train.evaluation import predict
from ..train.history import History
from ..train.preparing import Options, hold_back, prepare, source_of
from ..train.trainer import Trainer

MakeOptimizer = Callable[[dict[str, Array]], Optimizer]


class Stages(dict[str, History]):
    """What a recipe of several trainings measured: the name of each stage -> its `History`, in order."""

    @property
    def history(self) -> History:
        """The stages one after the other, as one `History`, of what was measured in all of them.

        Its ``path`` is that of the last stage, or "python" where any stage took the generic loop.
        """
        joined = History()
        for history in self.values():
            if joined.path != "python" or not joined:
                vars(joined).update(vars(history))
            for name in history:
                if all(name in other for other in self.values()):
                    joined.setdefault(name, []).extend(history[name])
        return joined

    def _repr_html_(self) -> str:
        return "".join(history._table(f"{name}: ") for name, history in self.items())


class Given(NamedTuple):
    """Options of a recipe that are none of its own."""

    trainer: dict[str, Any]  # arguments of `Trainer`
    fit: dict[str, Any]  # arguments of `Trainer.fit`

    def without(self, *names: str) -> Given:
        """The same without some of them."""
        left = ({k: v for k, v in part.items() if k not in names} for part in self)
        return Given(*left)


def split(recipe: str, options: Mapping[str, Any], of_trainer: bool, **refused: str) -> Given:
    """Sort options by whose they are; TypeError or ValueError for those that the recipe cannot pass on.

    ``of_trainer`` says whether the recipe makes trainers; ``refused`` what is expected instead of an option.
    """
    ours = ["seed", "metrics", "penalty", "sharpness_aware"] if of_trainer else []
    fit = [name for name in inspect.signature(Trainer.fit).parameters if name not in ("self", "x", "y")]
    for name, value in options.items():
        if name in refused:
            raise ValueError(f"{name} is {shown(value)}, but {recipe} expected {refused[name]}")
        if name not in (*ours, *fit):
            raise TypeError(f"{recipe} has no argument {name!r}{nearest(name, [*ours, *fit])}")
    given: tuple[dict[str, Any], ...] = tuple(
        {name: options[name] for name in names if name in options} for names in (ours, fit)
    )
    return Given(*given)


def fit_stage(trainer: Trainer, stage: int, x: Any, y: Any, options: Mapping[str, Any]) -> History:
    """Train a stage; one that saves itself has a file of its own, with the stage's number in its name."""
    return trainer.fit(x, y, **_of_stage(stage, options))


def _of_stage(stage: int, options: Mapping[str, Any]) -> Mapping[str, Any]:
    path = options.get("checkpoint")
    if path is None:
        return options
    file = Path(check_path("checkpoint", path))
    return {**options, "checkpoint": file.with_name(f"{file.stem}-{stage + 1}{file.suffix}")}


def check_fit(trainer: Trainer, stage: int, x: Any, y: Any, options: Mapping[str, Any]) -> None:
    """Raise what `Trainer.fit` would raise for a stage to come, and train nothing."""
    defaults = {name: p.default for name, p in inspect.signature(Trainer.fit).parameters.items()}
    given = {**defaults, **_of_stage(stage, options)}
    chosen = Options(**{field.name: given[field.name] for field in dataclasses.fields(Options)})
    source = source_of(trainer, x, y, given["sample_weight"])
    source, held_back = hold_back(trainer, source, given["validation_data"], given["validation_split"])
    run = prepare(trainer, source, held_back, chosen)
    if run.resume is not None and trainer.resuming:
        run.resume.read()
    trainer._why_not(run)


def made_trainer(
    model: nn.Sequential, loss: nn.Loss, optimizer: MakeOptimizer, options: Mapping[str, Any]
) -> Trainer:
    """Return a trainer of the model with an optimizer that the user's function makes."""
    return Trainer(model, loss, made_optimizer(optimizer, model), **options)


def check_maker(optimizer: Any) -> None:
    """Raise TypeError unless this is an optimizer's class or another function of parameters."""
    if not callable(optimizer) or (isinstance(optimizer, type) and not issubclass(optimizer, Optimizer)):
        raise TypeError(
            f"optimizer is {shown(optimizer)}, expected an optimizer's class or a function of parameters "
            "that returns an optimizer"
        )


def made_optimizer(optimizer: MakeOptimizer, model: nn.Sequential) -> Optimizer:
    """Return the optimizer that the user's function makes for a model."""
    made = optimizer(model.parameters())
    if not isinstance(made, Optimizer):
        raise TypeError(f"optimizer returned a {type(made).__name__}, expected an Optimizer, such as Adam")
    return made


def part_of(name: str, model: nn.Sequential, count: int, *more: nn.Layer, seed: Any = None) -> nn.Sequential:
    """Return a model of its own of copies of the first ``count`` layers, and of ``more`` layers after these.

    It has the values that the layers have, which are frozen where they are, and is on the same device.
    ``name`` is what messages call the model.
    """
    layers = map(layer_from, describe(f"{name}.layers", model.layers[:count]))
    made = nn.Sequential(*layers, *more, seed=seed, dtype=model.dtype)
    copy_layers(model, made, count)
    return made.to(model.device)


def copy_layers(source: nn.Sequential, target: nn.Sequential, count: int) -> None:
    """Copy parameters and buffers of the first ``count`` layers into a model that has the same ones."""
    into = arrays_of(target, count)
    for name, value in arrays_of(source, count).items():
        into[name][...] = np.array(value)


def arrays_of(model: nn.Sequential, count: int) -> dict[str, Array]:
    """Return parameters and buffers of the first ``count`` layers, by name."""
    named = model._named("parameters", "buffers")
    return {name: value for name, value in named.items() if int(name.partition(".")[0]) < count}


def predicted(model: nn.Sequential, x: Any) -> Array:
    """Return a model's outputs in evaluation mode, in the processor's memory; its own mode stays as it is."""
    mode = model.training
    outputs: Array = np.asarray(predict(model, x))
    model.training = mode
    return outputs


def shapes_of(model: nn.Sequential, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shape of each layer's output, for inputs of this shape."""
    shapes = []
    for layer in model.layers:
        shapes.append(shape := layer.output_shape(shape))
    return shapes
