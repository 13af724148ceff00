"""Training on easy examples first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import nn
from ..arrays.checks import as_numpy
from ..arrays.memory import refuse_masked
from ..runtime.dtypes import Array
from ..runtime.numbers import SHARE, check_count, check_type, plain, shown
from ..train.data import Data, checked
from ..train.trainer import Trainer
from ._stages import Stages, check_fit, fit_stage, predicted, split


def curriculum(
    trainer: Trainer,
    x: Any,
    y: Any,
    hardness: Any,
    *,
    shares: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    epochs: int = 5,
    **fit: Any,
) -> Stages:
    """Train on the easiest examples first, and on a growing share of the harder ones.

    Bengio et al. 2009, "Curriculum learning"; with the model's own losses it is self-paced learning (Kumar,
    Packer & Koller 2010).

    Parameters
    ----------
    trainer : Trainer
    x, y
        As `Trainer.fit`, in the processor's memory.
    hardness : array (examples,), nn.Sequential or "own"
        Given: a number for each example, the larger the harder. Measured: the trainer's loss of each example,
        in which weights of classes and of examples do not count, by another model, which was trained before;
        or by the trainer's own model, anew as each stage begins.
        The losses of a model that has learnt nothing say little, so train it for some epochs before
        ``"own"``.
    shares : sequence of float in (0, 1], default (0.25, 0.5, 0.75, 1.0)
        What share of the examples, the easiest, each stage trains on: that of all, rounded, and one example
        at least. It does not fall from stage to stage; of equally hard examples the first come first.
    epochs : int, default 5
        Of each stage: so a stage of a smaller share takes fewer steps.
    **fit
        Further arguments of `Trainer.fit`, the same in each stage; ``sample_weight`` is of all examples.
        Callbacks begin anew in each stage, and one that stops the training ends its stage: a `CSVLogger`
        keeps the rows of all stages with ``append=True``. A ``checkpoint`` is a file for each stage, with its
        number before the suffix, and of this hardness alone: other orders need another file. With ``"own"``
        a training that was interrupted in its first stage is the same again if the model begins with the
        same values.

    Returns
    -------
    Stages
        Named such as "1: easiest 25%".

    Raises
    ------
    TypeError, ValueError
        As `Trainer.fit`, before anything is trained.

    Notes
    -----
    The optimizer goes on through all stages: its states, and the steps that a schedule counts. Each stage
    copies the examples that it trains on, unless these are all. To measure takes a call of the loss for
    each example. Easy examples may be of few classes: hardness less its mean over the class keeps the
    classes' shares about equal.

    Examples
    --------
    >>> trainer.fit(x, y, epochs=1)
    >>> po.recipes.curriculum(trainer, x, y, "own", shares=(0.5, 0.75, 1.0), epochs=10)
    """
    check_type("trainer", trainer, Trainer, "a Trainer")
    planned, epochs = _checked_shares(shares), check_count("epochs", epochs)
    expected = "validation_data, since its stages train on parts of the examples"
    given = split("curriculum", fit, False, validation_split=expected).fit
    x, y = as_numpy("x", x), as_numpy("y", y)
    weight = given.pop("sample_weight", None)
    data = trainer._check_data(x, y, weight)
    weight = None if weight is None else as_numpy("sample_weight", weight)
    counts = [max(1, round(share * len(x))) for share in planned]
    for i, count in enumerate(counts):
        weights = {} if weight is None else {"sample_weight": weight[:count]}
        try:
            check_fit(trainer, i, x[:count], y[:count], {**given, **weights, "epochs": epochs})
        except ValueError as error:
            raise ValueError(f"shares leaves {count} of {len(x)} examples: {error}") from error
    hard, result = _hardness(trainer, data, x, y, hardness), Stages()
    for i, (share, count) in enumerate(zip(planned, counts, strict=True)):
        if i and isinstance(hardness, str):
            hard = losses_of(trainer.model, trainer.loss, x, y)
        rows: Any = np.sort(np.argsort(hard, kind="stable")[:count]) if count < len(x) else slice(None)
        weights = {} if weight is None else {"sample_weight": weight[rows]}
        options = {**given, **weights, "epochs": epochs}
        result[f"{i + 1}: easiest {share:.0%}"] = fit_stage(trainer, i, x[rows], y[rows], options)
    return result


def _checked_shares(shares: Any) -> list[float]:
    refuse_masked("shares", shares)
    given = plain(shares)
    if not isinstance(given, Sequence) or isinstance(given, str | bytes) or not given:
        raise TypeError(f"shares is {shown(shares)}, expected a sequence of numbers in (0, 1]")
    made = [SHARE.number(f"shares[{i}]", share) for i, share in enumerate(given)]
    if made[0] == 0 or sorted(made) != made:
        raise ValueError(f"shares is {shown(shares)}, expected numbers in (0, 1] that do not fall")
    return made


def _hardness(trainer: Trainer, data: Data, x: Array, y: Array, hardness: Any) -> Array:
    """Return how hard each example is, as the user says."""
    if isinstance(hardness, str | nn.Sequential):
        if isinstance(hardness, str) and hardness != "own":
            raise ValueError(f"hardness is {hardness!r}, expected 'own', a Sequential, or an array")
        return losses_of(trainer.model if isinstance(hardness, str) else hardness, trainer.loss, x, y)
    hard = as_numpy("hardness", hardness)
    if hard.dtype.kind not in "fiub" or hard.shape != (len(data.x),):
        raise ValueError(
            f"hardness has shape {hard.shape} and dtype {hard.dtype}, expected ({len(data.x)},): a number "
            "for each example of x, or 'own', or a Sequential"
        )
    if not np.isfinite(hard).all():
        raise ValueError("hardness holds NaN or infinity, expected finite numbers")
    return hard


def losses_of(model: nn.Sequential, loss: nn.Loss, x: Array, y: Array) -> Array:
    """Return the loss of each example; NaN, which counts as hardest, where the model has diverged."""
    targets = np.asarray(checked(model, loss, x, y).y)
    outputs = predicted(model, x)
    each = (slice(i, i + 1) for i in range(len(outputs)))
    return np.array([loss.evaluate(outputs[i], targets[i], None, None) for i in each], np.float64)
