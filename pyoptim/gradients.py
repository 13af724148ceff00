"""Clipping gradients, and refusing those that are not finite.

An optimizer does both without writing the gradients: ``Adam(params, max_grad_norm=1.0, nonfinite="skip")``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .arrays import checks, gpu_views
from .arrays.checks import check_float_array
from .backends.places import HOST
from .runtime.dtypes import Array
from .runtime.numbers import POSITIVE

__all__ = ["clip_grad_norm_", "clip_grad_value_", "global_norm"]


def __dir__() -> list[str]:
    return __all__


def global_norm(grads: Any) -> float:
    """The L2 norm of all gradients taken as one vector, summed in double.

    Parameters
    ----------
    grads : array, sequence, or mapping of arrays
        float32 or float64; all in the processor's memory, or all in a GPU's (CuPy's, PyTorch's, and what else
        has ``__cuda_array_interface__`` or speaks DLPack).

    Returns
    -------
    float
        NaN or infinite exactly where an element is, or where the norm itself exceeds 1.8e308: elements of any
        size are squared without overflow or underflow.
    """
    return _norm(_named(grads))


def _norm(named: Sequence[tuple[str, Any]]) -> float:
    kernels = _kernels_for(named)
    norm: float = kernels.norm([g for _, g in kernels.viewed(named, written=False)])
    return norm


def clip_factor(norm: float, max_norm: float) -> float:
    """What gradients of this norm are multiplied by: 1, or ``max_norm / (norm + 1e-6)`` (PyTorch's)."""
    factor = max_norm / (norm + 1e-6)
    return 1.0 if factor >= 1 else factor  # NaN stays NaN: it must not switch clipping off


def clip_grad_norm_(grads: Any, max_norm: float) -> float:
    """Scale all gradients in place so that their global norm is at most ``max_norm``.

    As `torch.nn.utils.clip_grad_norm_`. An optimizer's ``max_grad_norm`` does the same without the pass
    that writes the gradients.

    Parameters
    ----------
    grads : array, sequence, or mapping of arrays
        float32 or float64, writeable; in a GPU's memory, as of `global_norm`, contiguous too. There the
        norm is waited for, which an optimizer's ``max_grad_norm`` does not do.
    max_norm : float
        Greater than 0.

    Returns
    -------
    float
        The norm before clipping.

    Raises
    ------
    ValueError
        An element is not finite, the norm exceeds 1.8e308, an array is read-only or overlaps another (as the
        same one twice, which would be scaled twice), or max_norm is not greater than 0. Nothing is changed.
    """
    if type(max_norm) is not float or not max_norm > 0:
        max_norm = POSITIVE.number("max_norm", max_norm)
    named = _writeable(grads)
    kernels = _kernels_for(named)
    arrays = [g for _, g in named]
    kernels.check_parameters([name for name, _ in named], arrays)
    norm = _norm(named)
    if not math.isfinite(norm):
        if all(map(kernels.is_finite, arrays)):
            raise ValueError("the norm of grads is beyond all floats, expected smaller gradients")
        raise ValueError(f"the norm of grads is {norm}, expected finite gradients")
    factor = clip_factor(norm, max_norm)
    if factor < 1:
        kernels.scale(arrays, factor)
    return norm


def clip_grad_value_(grads: Any, clip_value: float) -> None:
    """Clamp every element in place to ``[-clip_value, clip_value]``; NaN stays NaN.

    ``grads`` is as of `clip_grad_norm_`.

    Raises
    ------
    ValueError
        An array is read-only, or clip_value is not greater than 0. Nothing is changed.
    """
    if type(clip_value) is not float or not clip_value > 0:
        clip_value = POSITIVE.number("clip_value", clip_value)
    named = _writeable(grads)
    _kernels_for(named).clamp([g for _, g in named], clip_value)


def _named(grads: Any) -> list[tuple[str, Any]]:
    if isinstance(grads, Mapping):
        return [(f"grads[{key!r}]", g) for key, g in grads.items()]
    if isinstance(grads, list | tuple):
        return [(f"grads[{i}]", g) for i, g in enumerate(grads)]
    return [("grads", grads)]


class _HostKernels:
    """The functions of `pyoptim.ops.gpu_gradients`, for NumPy's arrays."""

    check_parameters = staticmethod(checks.check_parameters)
    norm = staticmethod(HOST.norm)

    @staticmethod
    def viewed(named: Sequence[tuple[str, Any]], *, written: bool) -> list[tuple[str, Any]]:
        """Arrays with their names: writeable ones as they are, or made contiguous to be read."""
        if not written:
            return [(name, check_float_array(name, g)) for name, g in named]
        for name, g in named:
            check_float_array(name, g)
            if not g.flags.writeable:
                raise ValueError(f"{name} is read-only, expected a writeable array")
        return list(named)

    @staticmethod
    def is_finite(array: Array) -> bool:
        return bool(np.isfinite(array).all())

    @staticmethod
    def scale(arrays: Sequence[Array], factor: float) -> None:
        """Multiply the arrays by a factor, in place."""
        for g in arrays:
            g *= g.dtype.type(factor)

    @staticmethod
    def clamp(arrays: Sequence[Array], limit: float) -> None:
        """Clamp the arrays to ``[-limit, limit]``, in place; NaN stays NaN."""
        for g in arrays:
            np.clip(g, -limit, limit, out=g)


def _kernels_for(named: Sequence[tuple[str, Any]]) -> Any:
    """The functions for arrays in a GPU's memory if there is any among these, else for NumPy's."""
    if not any(gpu_views.is_on_gpu(g) for _, g in named):
        return _HostKernels
    from .ops import gpu_gradients  # imported late, so that `import pyoptim` stays fast

    return gpu_gradients


def _writeable(grads: Any) -> list[tuple[str, Any]]:
    named = _named(grads)
    viewed: list[tuple[str, Any]] = _kernels_for(named).viewed(named, written=True)
    return viewed
