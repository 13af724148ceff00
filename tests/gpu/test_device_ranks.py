"""Several processes with a GPU each: the emulator's, and a stand-in for NCCL."""

import pytest
from support.mpi import needs_mpi, succeeds

from pyoptim.train.nccl import GpuExchange


@needs_mpi
def test_gradients_are_those_of_all_gpus(cuda):
    succeeds(2, "gpu_ranked.py", cuda.__spec__.origin)


def test_without_cupy(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cupy.cuda.nccl", None)
    with pytest.raises(ImportError, match=r"needs CuPy and NCCL .*pyoptim\[cuda\]"):
        GpuExchange(None, None)
