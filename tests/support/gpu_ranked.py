"""What each rank of tests/gpu/test_device_ranks.py does: ``mpiexec -n 2 python gpu_ranked.py MODULE``.

MODULE is the file of the CUDA module with the emulator, whose GPU's memory is the processor's. A stand-in for
CuPy's NCCL has its functions and their arguments, and sums up by MPI.
"""

import ctypes
import importlib.util
import sys
import traceback
import types
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.device import use_cuda

import pyoptim as po
from pyoptim import callbacks, nn

COMM = MPI.COMM_WORLD
RNG = np.random.default_rng(0)
X = RNG.normal(size=(29, 5))
Y = RNG.integers(0, 3, 29)
WEIGHT = RNG.random(29)
calls = []


class NcclCommunicator:
    def __init__(self, ndev, commId, rank):
        assert (ndev, len(commId), rank) == (COMM.size, 128, COMM.rank)
        assert set(COMM.allgather(commId)) == {commId}

    def allReduce(self, sendbuf, recvbuf, count, datatype, op, stream):
        assert op == nccl.NCCL_SUM
        kind = {nccl.NCCL_FLOAT32: ctypes.c_float, nccl.NCCL_FLOAT64: ctypes.c_double}[datatype]
        own, result = (
            np.ctypeslib.as_array((kind * count).from_address(address)) for address in (sendbuf, recvbuf)
        )
        COMM.Allreduce(own.copy(), result)
        calls.append((count, stream))


nccl = types.ModuleType("cupy.cuda.nccl")
nccl.available, nccl.NCCL_SUM, nccl.NCCL_FLOAT32, nccl.NCCL_FLOAT64 = True, 0, 7, 8
nccl.get_unique_id, nccl.NcclCommunicator = lambda: tuple(range(128)), NcclCommunicator


def make(comm, device, dtype="float64", layers=(), fit=None, **optimizer):
    layers = [nn.Dense(5, 6), *layers, nn.ReLU(), nn.Dense(6, 3)]
    model = nn.Sequential(*layers, seed=1 if comm is None else COMM.rank, dtype=dtype).to(device)
    if comm is None:
        model.load_state_dict(nn.Sequential(*map(again, layers), seed=0, dtype=dtype).state_dict())
    optimizer = po.Adam(model.parameters(), lr=0.05, **optimizer)
    trainer = po.Trainer(model, nn.CrossEntropy(), optimizer, seed=0, comm=comm)
    usual = {"epochs": 2, "batch_size": 9, "shard": True, "verbose": False}
    return trainer, trainer.fit(X, Y, **(usual | (fit or {})))


def again(layer):
    return type(layer)(**{name: getattr(layer, name) for name in layer.arguments})


def flat(trainer):
    return np.array(trainer.model.flat_parameters)


def main():
    for case in (
        {},
        {"fit": {"sample_weight": WEIGHT, "validation_split": 0.2}},
        {"max_grad_norm": 0.1, "fit": {"batch_size": 28}},  # the last batch is one example: a rank has none
        {"nonfinite": "skip"},
    ):
        together, history = make(COMM, "cuda", **case)
        assert len(set(COMM.allgather(flat(together).tobytes()))) == 1
        assert history.path == "python"
        alone, of_alone = make(None, "cpu", **case)
        np.testing.assert_allclose(flat(together), flat(alone), rtol=1e-9, atol=1e-11)
        for name in of_alone.keys() - {"seconds"}:
            np.testing.assert_allclose(history[name], of_alone[name], rtol=1e-9)
    assert {count for count, _ in calls} == {flat(together).size}

    class Watch(callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            assert len(set(COMM.allgather(flat(self.trainer).tobytes()))) == 1

    make(
        COMM,
        "cuda",
        "float32",
        [nn.BatchNorm(6), nn.Dropout(0.5)],
        fit={"callbacks": [Watch()], "batch_size": 10},
    )
    for comm, fit, message in (
        (COMM, {"engine": "native"}, "GPUs exchange gradients in each step"),
        (po.distributed.ParameterServer(COMM), {}, "a model on a GPU: not with a comm of 2 ranks"),
    ):
        with pytest.raises(ValueError, match=message):
            make(comm, "cuda", fit=fit)
    with pytest.raises(ValueError, match="whether the model is on a GPU differs between ranks"):
        make(COMM, "cuda" if COMM.rank else "cpu")


if __name__ == "__main__":
    spec = importlib.util.spec_from_file_location("_cuda", sys.argv[1])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        with pytest.MonkeyPatch.context() as patch:
            use_cuda(patch, module)
            patch.setitem(sys.modules, "cupy.cuda.nccl", nccl)
            main()
    except BaseException:
        traceback.print_exc()
        COMM.Abort(1)
    print(f"rank {COMM.rank} is done")
