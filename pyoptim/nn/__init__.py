"""Layers, losses, initialisers, and models made of them."""

from __future__ import annotations

from . import activations, initializers, layers, losses, noise
from .activations import *  # noqa: F403
from .initializers import *  # noqa: F403
from .layers import *  # noqa: F403
from .losses import *  # noqa: F403
from .noise import *  # noqa: F403
from .penalties import Penalty
from .residual import Residual
from .sequential import Sequential

__all__ = ["Penalty", "Residual", "Sequential"]
__all__ += activations.__all__
__all__ += initializers.__all__
__all__ += layers.__all__
__all__ += losses.__all__
__all__ += noise.__all__


def __dir__() -> list[str]:
    return __all__
