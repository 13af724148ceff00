"""The NumPy backend: whole-array code that needs no compiler, and defines what a backend provides.

Arguments have been validated: arrays are contiguous, of one float dtype, and match. Outputs are
arguments; ``None`` skips one that is optional.
"""

from .. import STEPPERS
from . import layers, losses
from .layers import *
from .layers import quantized_dense
from .losses import *
from .losses import any_outside
from .steps import PackedStepper, Stepper, TrustStepper, norm
from .tensors import AdafactorStepper, MuonStepper

FUNCTIONS = (*layers.__all__, *losses.__all__)  # of layers and losses, which every backend has
__all__ = ["any_outside", "name", "norm", "quantized_dense", *STEPPERS, *FUNCTIONS]

name = "numpy"
