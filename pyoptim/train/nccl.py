"""The exchange of gradients between GPUs, by NCCL through CuPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays.gpu import DeviceArray
from ..arrays.queue import LEGACY_STREAM
from ..runtime import dispatch
from ..runtime.extras import needed


class GpuExchange:
    """Does what `ranks.Exchange` does for gradients in a GPU's memory, of which each rank has its own.

    MPI sums up losses and divisors on the processors, two numbers. With their sum known each GPU divides its
    gradients, and NCCL sums these up, with the same bits on all.
    """

    def __init__(self, comm: Any, gradients: DeviceArray) -> None:
        what = "a training by several GPUs needs CuPy and NCCL"
        nccl = needed("cupy.cuda.nccl", what, "pyoptim[cuda]")
        if not getattr(nccl, "available", True):
            raise ImportError(f"{what}, but this CuPy was built without NCCL")
        assert gradients.queue is not None
        self.gradients, self._queue, self._sum_up = gradients, gradients.queue, comm.Allreduce
        name = comm.bcast(nccl.get_unique_id() if comm.Get_rank() == 0 else None, root=0)
        with self._queue.on(self._queue.stream):  # makes its GPU the current one
            self._gpus = nccl.NcclCommunicator(comm.Get_size(), name, comm.Get_rank())
        single = gradients.dtype == np.float32
        self._kind = nccl.NCCL_FLOAT32 if single else nccl.NCCL_FLOAT64, nccl.NCCL_SUM

    def __call__(self, loss: float, divisor: float) -> float:
        """Return the mean loss of the batch, from that of the part; an empty part has the divisor 0."""
        own, result = np.array([loss * divisor if divisor else 0.0, divisor]), np.empty(2)
        self._sum_up(own, result)
        total, gradients, queue = float(result[1]) or 1.0, self.gradients, self._queue
        dispatch.of(gradients).affine(gradients, 1 / total, -0.0, gradients)
        with queue.on(queue.stream):
            stream = 0 if queue.stream == LEGACY_STREAM else queue.stream
            at = gradients.address
            self._gpus.allReduce(at, at, gradients.size, *self._kind, stream)
        return float(result[0]) / total
