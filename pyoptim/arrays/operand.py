"""The arrays in a GPU's memory that functions of `pyoptim.ops` work on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import gpu, gpu_views
from .gpu import DeviceArray
from .queue import Queue


class Operand(DeviceArray):
    """An array that a function of `ops` works on; new arrays beside it are of the kind that the user gave."""

    __slots__ = ("make",)
    make: Callable[..., Any] | None

    @classmethod
    def of(cls, array: DeviceArray, queue: Queue, make: Callable[..., Any] | None) -> Operand:
        """Wrap an array. ``make`` creates an array of the user's kind from a shape; None creates our own."""
        operand = cls(
            array.address, array.shape, array.dtype, array.device, array.owner,
            readonly=array.readonly, queue=queue,
        )  # fmt: skip
        operand.make = make
        return operand

    def _part(self, begin: int, shape: tuple[int, ...]) -> Operand:
        assert self.queue is not None
        return Operand.of(super()._part(begin, shape), self.queue, self.make)

    def empty(self, shape: tuple[int, ...]) -> Operand:
        assert self.queue is not None
        if self.make is None:
            made = gpu.empty(self.queue, shape, self.dtype)
        else:
            made = gpu_views.view("a result", self.make(shape, self.dtype))
        return Operand.of(made, self.queue, self.make)

    def result(self) -> Any:
        """Return the array that the user gets."""
        if self.make is None:
            return DeviceArray(
                self.address, self.shape, self.dtype, self.device, self.owner, queue=self.queue
            )
        return self.owner if tuple(self.owner.shape) == self.shape else self.owner.reshape(self.shape)
