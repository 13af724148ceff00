"""PyTorch's tensors: recognised, shared without a copy, and told when their memory is written."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from .memory import refuse_masked


def is_tensor(value: Any) -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def in_place(name: str, value: Any) -> Any:
    """Return a tensor that speaks DLPack as a NumPy array of the same memory, and all else as it is.

    Raises
    ------
    TypeError
        The tensor is not in the processor's memory, or is not dense; or this is a masked array.
    """
    if isinstance(value, np.ndarray):
        if type(value) is not np.ndarray:
            refuse_masked(name, value)
        return np.asarray(value)
    if not hasattr(value, "__dlpack__"):
        return value
    if getattr(value, "requires_grad", False):
        value = value.detach()
    try:
        device, _ = value.__dlpack_device__()
        if device != 1:  # kDLCPU
            raise BufferError(f"it is on DLPack's device {int(device)}")
        torch: Any = sys.modules.get("torch")
        if torch is None or not isinstance(value, torch.Tensor):
            return np.from_dlpack(value)
        # We call numpy() instead of taking a DLPack capsule, because PyTorch then refuses to resize memory
        # that we use, and refuses tensors whose negation is still pending.
        if value.dtype != torch.bfloat16:
            return value.numpy()
        # NumPy has no bfloat16 of its own: its bits travel as integers.
        from ..runtime.dtypes import bfloat16

        return value.view(torch.int16).numpy().view(bfloat16())
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        kind = type(value).__name__
        raise TypeError(
            f"{name} is a {kind} that NumPy cannot share: {error}; expected a dense CPU tensor"
        ) from error


def tensors_among(params: Any) -> list[Any]:
    """Return PyTorch's tensors among an array, or a sequence or mapping of arrays."""
    torch: Any = sys.modules.get("torch")
    if torch is None or isinstance(params, np.ndarray):
        return []
    values = params.values() if isinstance(params, Mapping) else params
    values = values if isinstance(params, Mapping | list | tuple) else [values]
    return [value for value in values if isinstance(value, torch.Tensor)]


def tell_autograd(tensors: list[Any]) -> None:
    """Let PyTorch notice that the memory of tensors was written: what it saved of them is out of date."""
    if tensors:
        sys.modules["torch"].autograd.graph.increment_version(tensors)
