"""Which way parameters move to look for the sharpness around them (SAM and ASAM)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_LEAST_SCALE = 0.01  # that of a parameter of 0 in ASAM: the eta of Kwon et al. 2021
# Below this norm gradients move parameters by less than rho, since float32 could not hold rho / norm.
_LEAST_NORM = 1e-12


def ascent(
    points: Sequence[Any], grads: Sequence[Any], rho: float, adaptive: bool, norm_of: Callable[[Any], float]
) -> tuple[Sequence[Any], float]:
    """Return the directions in which parameters ascend, and the rate that makes their length rho."""
    with np.errstate(all="ignore"):
        scales = [np.abs(p) + p.dtype.type(_LEAST_SCALE) for p in points] if adaptive else None
        scaled = grads if scales is None else [np.asarray(s * g) for s, g in zip(scales, grads, strict=True)]
        norm = norm_of(scaled)
        rate = rho / (_LEAST_NORM if norm < _LEAST_NORM else norm)
        if scales is None:
            return grads, rate
        return [np.asarray(s * g) for s, g in zip(scales, scaled, strict=True)], rate
