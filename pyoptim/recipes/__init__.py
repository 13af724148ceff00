"""Ways to train that are more than one training, and ways to make what was trained small or quick.

Each is a function or a class over `Trainer`. What one that trains in stages has no argument for of its own is
passed on to `Trainer` and `Trainer.fit`: callbacks, validation, metrics, batch sizes, the engine. Several
trainings come back as `Stages`, the `History` of each by name, whose ``path`` says what ran it."""

from __future__ import annotations

from ._cascade import Cascade
from ._compress import compress
from ._continuation import continuation
from ._curriculum import curriculum
from ._distill import distill
from ._experts import MixtureOfExperts
from ._greedy import greedy_pretrain
from ._prune import prune, shrink
from ._quantize import QuantizedModel, quantize
from ._stages import Stages
from ._transfer import transfer

__all__ = [
    "Cascade",
    "MixtureOfExperts",
    "QuantizedModel",
    "Stages",
    "compress",
    "continuation",
    "curriculum",
    "distill",
    "greedy_pretrain",
    "prune",
    "quantize",
    "shrink",
    "transfer",
]


def __dir__() -> list[str]:
    return __all__
