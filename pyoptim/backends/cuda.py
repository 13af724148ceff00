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

from . import device_layers
from .device import Launcher, Stepper, host_functions
from .device_adafactor import AdafactorStepper
from .device_layers import *  # noqa: F403
from .device_muon import MuonStepper
from .device_packed import PackedStepper
from .device_trust import TrustStepper

__all__ = [
    "AdafactorStepper", "MuonStepper", "PackedStepper", "Stepper", "TrustStepper", "launcher", "name",
    *device_layers.__all__,
]  # fmt: skip

name = "cuda"
if reason := _cuda.why_not():
    raise ImportError(f"no CUDA device can be used: {reason}")

launcher = cast(Launcher, _cuda)
__getattr__ = host_functions(name)
