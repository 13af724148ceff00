"""The CUDA backend: the compiled kernels of csrc/cuda, for arrays in a GPU's memory."""

from __future__ import annotations

from typing import cast

try:
    from . import _cuda
except ImportError as error:
    raise ImportError(
        "this install has no CUDA module: `pip install pyoptim-cuda` adds it to a wheel of pyoptim of the "
        "same version, and one from the sources builds it where nvcc 12 or later is found (CMake option "
        f"PYOPTIM_CUDA): {error}"
    ) from error

from ...arrays.queue import Launcher
from .. import STEPPERS
from . import layers
from .adafactor import AdafactorStepper
from .layers import *
from .muon import MuonStepper
from .packed import PackedStepper
from .steps import Stepper, host_functions
from .trust import TrustStepper

__all__ = ["launcher", "name", *STEPPERS, *layers.__all__]

name = "cuda"
if reason := _cuda.why_not():
    raise ImportError(f"no CUDA device can be used: {reason}")

launcher = cast(Launcher, _cuda)
__getattr__ = host_functions(name)
