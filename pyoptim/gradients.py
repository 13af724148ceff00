"""Clipping gradients, and refusing those that are not finite.

An optimizer does both without writing the gradients: ``Adam(params, max_grad_norm=1.0, nonfinite="skip")``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .arrays import checks, gpu_checks, gpu_views
from .arrays.checks import check_float_array
from .runtime import dispatch
from .runtime.dtypes import Array

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
        NaN or infinite exactly where an element is (or a float64 exceeds 1e154).
    """
    return _norm(_named(grads))


def _norm(named: Sequence[tuple[str, Any]]) -> float:
    if there := _there(named):
        return there.norm([g for _, g in there.viewed(named, written=False)])  # type: ignore[no-any-return]
    return norm_of([check_float_array(name, g) for name, g in named])


def norm_of(arrays: Iterable[Array]) -> float:
    """`global_norm` of checked, contiguous arrays."""
    sum_of_squares = dispatch.current().sum_of_squares
    return math.sqrt(sum(sum_of_squares(array) for array in arrays))


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
        The norm is not finite, an array is read-only or overlaps another (as the same one twice, which
        would be scaled twice), or max_norm is not greater than 0. Nothing is changed.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm is {max_norm!r}, expected a number > 0")
    named = _writeable(grads)
    names, arrays = [name for name, _ in named], [g for _, g in named]
    there = _there(named)
    (gpu_checks if there else checks).check_parameters(names, arrays)
    norm = _norm(named)
    if not math.isfinite(norm):
        raise ValueError(f"the norm of grads is {norm}, expected finite gradients")
    factor = clip_factor(norm, max_norm)
    if factor < 1:
        if there:
            there.scale(arrays, factor)
        else:
            for g in arrays:
                g *= g.dtype.type(factor)
    return norm


def clip_grad_value_(grads: Any, clip_value: float) -> None:
    """Clamp every element in place to ``[-clip_value, clip_value]``; NaN stays NaN.

    ``grads`` is as of `clip_grad_norm_`.

    Raises
    ------
    ValueError
        An array is read-only, or clip_value is not greater than 0. Nothing is changed.
    """
    if not clip_value > 0:
        raise ValueError(f"clip_value is {clip_value!r}, expected a number > 0")
    named = _writeable(grads)
    if there := _there(named):
        there.clamp([g for _, g in named], clip_value)
        return
    for _, g in named:
        np.clip(g, -clip_value, clip_value, out=g)


def _named(grads: Any) -> list[tuple[str, Any]]:
    if isinstance(grads, Mapping):
        return [(f"grads[{key!r}]", g) for key, g in grads.items()]
    if isinstance(grads, list | tuple):
        return [(f"grads[{i}]", g) for i, g in enumerate(grads)]
    return [("grads", grads)]


def _there(named: Sequence[tuple[str, Any]]) -> Any:
    """What works on arrays in a GPU's memory where there is any, else None."""
    if not any(gpu_views.is_there(g) for _, g in named):
        return None
    from .ops import gpu_gradients as _device_gradients  # costs what `import pyoptim` need not

    return _device_gradients


def _writeable(grads: Any) -> list[tuple[str, Any]]:
    named = _named(grads)
    if there := _there(named):
        return there.viewed(named, written=True)  # type: ignore[no-any-return]
    for name, g in named:
        check_float_array(name, g)
        if not g.flags.writeable:
            raise ValueError(f"{name} is read-only, expected a writeable array")
    return named
