"""Training on a sequence of losses, from easy to the one that counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import nn
from ..runtime.numbers import AT_LEAST_ZERO, check_count, check_type, shown
from ..train.trainer import Trainer
from ._stages import Stages, check_fit, fit_stage, split


def continuation(
    trainer: Trainer,
    x: Any,
    y: Any,
    stages: Sequence[float | nn.Loss] = (0.1, 0.05, 0.02, 0.0),
    *,
    epochs: int = 5,
    **fit: Any,
) -> Stages:
    """Train on a sequence of losses that begins smooth and ends with the one that counts.

    Each stage begins at what the last one has found. A smooth loss has fewer minima to be caught in; as it
    sharpens step by step, its minimum leads into a good one of the next (Mobahi & Fisher 2015, "A theoretical
    analysis of optimization by Gaussian continuation"; lecture 004).

    Parameters
    ----------
    trainer : Trainer
    x, y
        As `Trainer.fit`.
    stages : sequence of float or nn.Loss, default (0.1, 0.05, 0.02, 0.0)
        A number is the standard deviation of normal noise on the weights (``weight_noise`` of
        `Trainer.fit`), which does not rise from stage to stage: on average over its steps the stage descends
        the trainer's loss blurred by a Gaussian of that width. 0 is the loss itself. A loss is taken in place
        of the trainer's, without noise; it takes the same targets.
    epochs : int, default 5
        Of each stage.
    **fit
        Further arguments of `Trainer.fit`, the same in each stage. Callbacks begin anew in each stage, and
        one that stops the training ends its stage: a `CSVLogger` keeps the rows of all stages with
        ``append=True``. A ``checkpoint`` is a file for each stage, with its number before the suffix.

    Returns
    -------
    Stages
        Named such as "1: noise 0.1" and "2: MSE()". The losses of a stage's `History`, that of validation
        too, are of the stage's own loss, those of validation without noise.

    Raises
    ------
    TypeError, ValueError
        As `Trainer.fit`, before anything is trained.

    Notes
    -----
    The optimizer goes on through all stages: its states, and the steps that a schedule counts. Afterwards the
    trainer has its own loss again, also after an error.

    Examples
    --------
    >>> po.recipes.continuation(trainer, x, y, (0.2, 0.1, 0.05, 0.0), epochs=10)

    Of a loss that forgives outliers to the squared one.

    >>> po.recipes.continuation(trainer, x, y, (po.nn.Huber(0.1), po.nn.Huber(1.0), po.nn.MSE()))
    """
    check_type("trainer", trainer, Trainer, "a Trainer")
    planned, epochs = _checked(stages), check_count("epochs", epochs)
    given = split("continuation", fit, False, weight_noise="it in stages").fit
    result, own = Stages(), trainer.loss
    plan = [(own, stage) if isinstance(stage, float) else (stage, 0.0) for stage in planned]
    try:
        for i, (loss, noise) in enumerate(plan):
            trainer.loss = loss
            trainer._check_loss()
            check_fit(trainer, i, x, y, {**given, "epochs": epochs, "weight_noise": noise})
        for i, (loss, noise) in enumerate(plan):
            trainer.loss = loss
            name = f"noise {noise:g}" if isinstance(planned[i], float) else repr(loss)
            options = {**given, "epochs": epochs, "weight_noise": noise}
            result[f"{i + 1}: {name}"] = fit_stage(trainer, i, x, y, options)
    finally:
        trainer.loss = own
    return result


def _checked(stages: Any) -> list[float | nn.Loss]:
    if not isinstance(stages, Sequence) or isinstance(stages, str | bytes) or not stages:
        raise TypeError(f"stages is {shown(stages)}, expected a sequence of numbers and losses")
    made: list[float | nn.Loss] = []
    for i, stage in enumerate(stages):
        if isinstance(stage, nn.Loss):
            made.append(stage)
            continue
        noise = AT_LEAST_ZERO.number(f"stages[{i}]", stage)
        if any(isinstance(before, float) and before < noise for before in made):
            raise ValueError(f"stages is {shown(stages)}, expected noise that does not rise")
        made.append(noise)
    return made
