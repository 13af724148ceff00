"""The NumPy backend: whole-array code that needs no compiler, and defines what a backend provides.

Arguments have been validated: arrays are contiguous, of one float dtype, and match. Outputs are
arguments; ``None`` skips one that is optional.
"""

from .. import FUNCTIONS, STEPPERS
from .layers import (
    activation_backward,
    activation_forward,
    dense_backward,
    dense_forward,
    dropout,
    gaussian_noise,
    layer_norm_backward,
    layer_norm_forward,
    norm_backward,
    norm_forward,
    penalty,
    softmax_backward,
    softmax_forward,
)
from .losses import kl_divergence, pointwise_loss, softmax_cross_entropy
from .steps import PackedStepper, Stepper, TrustStepper, sum_of_squares
from .tensors import AdafactorStepper, MuonStepper

__all__ = ["name", "sum_of_squares", *STEPPERS, *FUNCTIONS]

name = "numpy"
