"""The CUDA backend: the compiled kernels of csrc/cuda, for arrays in a GPU's memory."""

from __future__ import annotations

from typing import cast

try:
    from .. import _cuda
except ImportError as error:
    raise ImportError(
        "this install has no CUDA module, which is built where nvcc 12 or later is found "
        f"(CMake option PYOPTIM_CUDA): {error}"
    ) from error

from . import STEPPERS, device_layers
from .device import Launcher, Stepper, host_functions  # noqa: F401
from .device_adafactor import AdafactorStepper  # noqa: F401
from .device_layers import *  # noqa: F403
from .device_muon import MuonStepper  # noqa: F401
from .device_packed import PackedStepper  # noqa: F401
from .device_trust import TrustStepper  # noqa: F401

__all__ = ["launcher", "name", *STEPPERS, *device_layers.__all__]

name = "cuda"
if reason := _cuda.why_not():
    raise ImportError(f"no CUDA device can be used: {reason}")

launcher = cast(Launcher, _cuda)
__getattr__ = host_functions(name)
