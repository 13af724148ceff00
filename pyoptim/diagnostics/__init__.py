"""Looking inside a model: what is wrong with it, how its loss is curved, and what more data would bring.

Each function returns numbers that say what they mean when printed, and have a method ``plot`` that draws
them: it takes a path, ``axes=`` and ``title=``, returns the figure, and needs the extra ``plot``. All
measure a copy of the model in float64, so the model is left as it is, and what is seen is the function and
not its rounding. `BatchNorm` normalises by the statistics of the examples given, and what is random in
training does nothing, unless a function says otherwise."""

from __future__ import annotations

from ._curvature import curvature, hessian_spectrum, sharpness
from ._gradients import gradient_check, gradient_noise
from ._layers import fit_tiny, layer_statistics
from ._learning import bias_variance, learning_curve
from ._slices import loss_slice

__all__ = [
    "bias_variance",
    "curvature",
    "fit_tiny",
    "gradient_check",
    "gradient_noise",
    "hessian_spectrum",
    "layer_statistics",
    "learning_curve",
    "loss_slice",
    "sharpness",
]


def __dir__() -> list[str]:
    return __all__
