"""Pretraining layer by layer."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from .. import nn
from ..nn.checkpoint import describe, layer_from
from ..optim.elementwise import Adam
from ..runtime.numbers import check_count, check_seed, check_type
from ..train.data import checked
from ._stages import (
    MakeOptimizer,
    Stages,
    check_fit,
    check_maker,
    copy_layers,
    fit_stage,
    made_trainer,
    part_of,
    shapes_of,
    split,
)


def greedy_pretrain(
    model: nn.Sequential,
    x: Any,
    y: Any,
    loss: nn.Loss,
    *,
    optimizer: MakeOptimizer = Adam,
    epochs: int = 5,
    **options: Any,
) -> Stages:
    """Train the hidden layers one after the other, each with an output layer on top of it.

    First the first hidden layer and an output layer are trained, as a network of their own. The output layer
    is thrown away, the hidden layer is frozen, and the next one is trained on top of it; and so on. The last
    hidden layer is trained with the model's own output layer. Then train the whole model, which begins in a
    better place than at random: see the example (Bengio et al. 2007, "Greedy layer-wise training of deep
    networks", in its supervised form).

    Parameters
    ----------
    model : nn.Sequential
        Of layers of `pyoptim.nn`. A hidden layer is a `Dense` or a `Residual`, with what follows it up to the
        next one (activations, norms, dropout); the last `Dense` begins the output layer. Hidden layers that
        are frozen keep their values, and are no stage.
    x, y, loss
        As of `Trainer` and its `fit`.
    optimizer : callable, default Adam
        Makes the optimizer of a stage of its parameters: a class, or e.g. ``lambda p: SGD(p, lr=0.1)``.
    epochs : int, default 5
        Of each stage.
    **options
        Further arguments of `Trainer` and `Trainer.fit`, the same in each stage. ``seed`` draws the output
        layers that are thrown away too. Callbacks begin anew in each stage, and see its part of the model: a
        `CSVLogger` keeps the rows of all stages with ``append=True``. A ``checkpoint`` is a file for each
        stage, with its number before the suffix.

    Returns
    -------
    Stages
        A `History` for each hidden layer, by names such as "layer 0", the place in ``model.layers``.

    Raises
    ------
    TypeError, ValueError
        As `Trainer` and `Trainer.fit`; the model has no hidden layer, or holds layers that are not ours. The
        model is unchanged.

    Notes
    -----
    The stages train copies of the layers, whose values the model takes over when a stage ends. Its
    optimizers stay valid. Frozen layers run in each step, forward alone; their `BatchNorm` normalises by
    the running statistics that its own stage has found, and `Dropout` goes on.

    Examples
    --------
    >>> po.recipes.greedy_pretrain(model, x, y, po.nn.CrossEntropy(), epochs=10, seed=0)
    >>> trainer = po.Trainer(model, po.nn.CrossEntropy(), po.Adam(model.parameters()))
    >>> trainer.fit(x, y, epochs=20)
    """
    check_type("model", model, nn.Sequential, "a Sequential")
    check_type("loss", loss, nn.Loss, "a Loss, e.g. CrossEntropy()")
    check_maker(optimizer)
    epochs = check_count("epochs", epochs)
    given = split("greedy_pretrain", options, True)
    rng = check_seed("seed", given.trainer.pop("seed", None))
    begins = _begins(model)
    data = checked(model, loss, x, y, given.fit.get("sample_weight"))
    shapes = shapes_of(model, data.x.shape[1:])
    options = {**given.fit, "epochs": epochs}
    whole = made_trainer(model, loss, optimizer, given.trainer)
    for i in range(len(begins) - 1):
        check_fit(whole, i, x, y, options)
    stages = Stages()
    for i, (begin, end) in enumerate(pairwise(begins)):
        if not any(layer.learns for layer in model.layers[begin if i else 0 : end]):
            continue
        last = end == begins[-1]
        end = len(model.layers) if last else end
        output = [] if last else _output_layer(model, begins[-1], shapes[end - 1])
        part = part_of("model", model, end, *output, seed=rng)
        for layer in part.layers[: begin if i else 0]:
            layer.trainable = False
        trainer = made_trainer(part, loss, optimizer, {**given.trainer, "seed": rng})
        stages[f"layer {begin}"] = fit_stage(trainer, i, x, y, options)
        copy_layers(part, model, end)
    model.eval()
    return stages


def _begins(model: nn.Sequential) -> list[int]:
    """Return where hidden layers and the output layer begin, in order."""
    begins = [
        i
        for i, layer in enumerate(model.layers)
        if any(isinstance(leaf, nn.Dense) for leaf in layer.leaves().values())
    ]
    if len(begins) < 2 or not isinstance(model.layers[begins[-1]], nn.Dense):
        raise ValueError(f"model is {model!r}, expected a hidden layer at least, and a Dense layer after it")
    describe("model.layers", model.layers)
    if not any(layer.learns for layer in model.layers[: begins[-1]]):
        raise ValueError("model has no hidden layer that is not frozen, expected one at least")
    return begins


def _output_layer(model: nn.Sequential, begin: int, shape: tuple[int, ...]) -> list[nn.Layer]:
    """Return new layers as the model's from ``begin`` on, for inputs of another shape."""
    dense = model.layers[begin]
    assert isinstance(dense, nn.Dense)
    first = nn.Dense(shape[0], dense.out_features, dense.bias, dense.activation)
    return [first, *map(layer_from, describe("model.layers", model.layers[begin + 1 :]))]
