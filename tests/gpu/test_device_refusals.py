"""What optimizers refuse of arrays in a GPU's memory, before anything is written."""

import numpy as np
import pytest
from support.device import TRUSTING, states
from support.doubles import OnDevice, There

import pyoptim as po
from pyoptim import nn
from pyoptim.arrays.queue import Queue


def test_mixed_memory_is_refused_before_anything_is_written(emulated, rng):
    a, b = np.ones(3), np.ones(3)
    with pytest.raises(
        TypeError, match=r"params\[0\] is a ndarray in the processor's memory, but params\[1\] is in"
    ):
        po.Adam([a, There(b)])
    with pytest.raises(ValueError, match=r"params\[1\] is on GPU 1, but params\[0\] on 0"):
        po.Adam([OnDevice(a), OnDevice(b, device=1)])
    own, cpu = po.Adam([There(a), There(b)]), po.Adam([a])
    with pytest.raises(
        TypeError, match=r"grads\[1\] is a ndarray in the processor's memory, expected an array in a G"
    ):
        own.step([There(np.ones(3)), np.ones(3)])
    with pytest.raises(TypeError, match=r"grads\[0\] is a There in a GPU's memory, expected a NumPy array"):
        cpu.step([There(np.ones(3))])
    with pytest.raises(ValueError, match=r"grads\[1\] is on GPU 1, expected 0"):
        own.step([There(np.ones(3)), OnDevice(np.ones(3), device=1)])
    assert a.tolist() == b.tolist() == [1] * 3
    assert states(own)[0]["step"] == states(cpu)[0]["step"] == 0


def test_arrays_that_cannot_be(emulated):
    a = np.ones((4, 4), np.float32)
    for array, error, match in (
        (There(a.astype(np.int16)), TypeError, "params has dtype <i2, expected float32, float64, float16"),
        (There(a.astype(">f4")), TypeError, "params has dtype >f4"),
        (There(a.T[1:]), ValueError, r"params has the strides \(4, 16\), expected a C-contiguous array"),
        (There(a, data=(a.ctypes.data, True)), ValueError, "params is read-only"),
        (There(a, mask=There(a)), TypeError, "params is masked"),
        ([There(a), There(a[2:])], ValueError, r"params\[1\] overlaps params\[0\]"),
        (There(a, data=(a.ctypes.data + 2, False)), ValueError, "params is at the address .*, expected"),
    ):
        with pytest.raises(error, match=match):
            po.Adam(array)
    own = po.Adam(There(a))
    for grad, error, match in (
        (There(np.ones(16, np.float32)), ValueError, r"grads has shape \(16,\), expected \(4, 4\)"),
        (There(np.ones((4, 4))), TypeError, "grads has dtype float64, expected float32"),
        (There(np.ones((4, 4), np.float32).T), ValueError, "grads has the strides"),
        (There(a), ValueError, "grads overlaps a parameter or an optimizer state"),
        ([There(a)], TypeError, "grads is a list"),
    ):
        with pytest.raises(error, match=match):
            own.step(grad)
    assert (a == 1).all()
    assert There(a[:, :1]).__cuda_array_interface__["strides"] == (16, 4)
    po.Adam(There(a[:1, :]))  # contiguous, whatever the stride of a single row


def test_memory_that_nobody_uses_is_given_back_before_there_is_none(recorder, monkeypatch):
    queue, left = Queue(recorder, 0), 3 << 20

    class Memory:
        address = 512

        def __init__(self, size):
            nonlocal left
            if size > left:
                raise RuntimeError("CUDA: cudaMalloc: out of memory")
            self.size = size
            left -= size

        def __del__(self):
            nonlocal left
            left += self.size if hasattr(self, "size") else 0

    monkeypatch.setattr(recorder, "Memory", Memory, raising=False)
    kept = queue.pool.take(1 << 20)
    queue.pool.take(2 << 20)
    with pytest.raises(RuntimeError, match="out of memory"):
        queue.capture(lambda: queue.allocate(1 << 20))
    assert left == 0
    queue.allocate(1 << 20)  # and gone at once
    assert left == 2 << 20
    with pytest.raises(RuntimeError, match="out of memory"):
        queue.allocate(3 << 20)
    assert kept.address == 512


def test_what_is_not_for_a_gpu_says_so(emulated):
    a = np.ones((4, 4), np.float32)
    for cls in (*TRUSTING.values(), po.Muon, po.Adafactor):
        with pytest.raises(TypeError, match="16-bit parameters and state_dtype are for the elementwise"):
            cls(There(a), state_dtype="int8")
    with pytest.raises(TypeError, match="params has dtype float64, which does not go with"):
        po.Adam(There(a.astype(float)), state_dtype="int8")
    assert (a == 1).all()


class TwoRanks:
    """A communicator of two ranks, of which the other one is always like this one."""

    def Get_rank(self):
        return 0

    def Get_size(self):
        return 2

    def allgather(self, value):
        return [value, value]

    def bcast(self, value, root):
        return value

    Allreduce = isend = irecv = Abort = None


def test_statistics_over_all_ranks_are_not_for_a_gpu(emulated, monkeypatch, rng):
    model = nn.Sequential(nn.Dense(3, 2), seed=0).to("cuda")
    trainer = po.Trainer(
        model, nn.MSE(), po.SGD(model.parameters(), lr=0.1), comm=TwoRanks(), sync_norms=True
    )
    monkeypatch.setattr(type(trainer._ranks), "_all_fail", lambda self: True)
    with pytest.raises(ValueError, match="sync_norms, and a model on a GPU: not with a comm of 2 ranks"):
        trainer.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=False)
