"""Launches kernels of the emulated CUDA module on NumPy arrays, and what their results are compared by."""

import math

import numpy as np

from pyoptim.backends.gpu.constants import POSITION
from pyoptim.formulas.rules import Common

ARRAYS = np.dtype([("param", "u8"), ("state", "u8", 4), ("size", "i8"), ("row", "i8")])
CHUNKS = np.dtype([("array", "i4"), ("chunk", "i4")])
CANARY = 0xA5


class Launcher:
    """What is allocated here has bytes around it that no kernel may write: `check` looks."""

    def __init__(self, cuda):
        self.cuda, self._guarded = cuda, []

    def __call__(self, kernel, blocks, *arguments, dtype=None):
        name = {np.float32: f"{kernel}<float>", np.float64: f"{kernel}<double>", None: kernel}[dtype]
        self.cuda.launch(name, blocks, tuple(map(address, arguments)), 0)

    def empty(self, shape, dtype, offset=0):
        """``offset``: elements by which it misses an address that is a multiple of 16."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = np.full(size + 256, CANARY, np.uint8)
        begin = 64 + -memory.ctypes.data % 16 + offset * np.dtype(dtype).itemsize
        self._guarded.append((memory, begin, begin + size))
        return memory[begin : begin + size].view(dtype).reshape(shape)

    def array(self, values, dtype=None, offset=0):
        values = np.asarray(values, dtype)
        made = self.empty(values.shape, values.dtype, offset)
        made[...] = values
        return made

    def check(self):
        for memory, begin, end in self._guarded:
            assert (memory[:begin] == CANARY).all(), "written before an array"
            assert (memory[end:] == CANARY).all(), "written after an array"


def address(argument):
    return argument.ctypes.data if isinstance(argument, np.ndarray) else argument


def blocks_of(n, of):
    """How many blocks of so many elements cover n."""
    return -(-n // of)


def tables(cuda, arrays):
    """The tables of step_kernel.cuh for (param, states, row) each: arrays, chunks."""
    table, chunks = np.zeros(len(arrays), ARRAYS), []
    for i, (param, states, row) in enumerate(arrays):
        table[i]["param"], table[i]["size"], table[i]["row"] = param.ctypes.data, param.size, row
        table[i]["state"][: len(states)] = [state.ctypes.data for state in states]
        chunks += [(i, chunk) for chunk in range(blocks_of(param.size, cuda.chunk))]
    return table, np.array(chunks, CHUNKS)


def addresses(arrays):
    return np.array([array.ctypes.data for array in arrays], np.uint64)


LANE = 32  # terms that a thread adds in the arrays' own precision, at most (see the shapes below)
SIZES = [0, 1, 3, 255, 256, 1023, 1025, 4095, 4096, 4097, 9000]


def position(**values):
    """The record of where a training is, which kernels read."""
    made = np.zeros(1, POSITION)
    for name, value in values.items():
        made[name] = value
    return made


def same(a, b):
    """Whether all bits are equal, but that one NaN is as good as another."""
    assert a.dtype == b.dtype
    bits = np.uint32 if a.dtype == np.float32 else np.uint64
    return bool(((a.view(bits) == b.view(bits)) | (np.isnan(a) & np.isnan(b))).all())


def special(rng, n, dtype):
    """Values of all sizes, some of them special."""
    x = (rng.normal(size=n) * 10 ** rng.uniform(-6, 3, size=n)).astype(dtype)
    some = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40, -1e-40, 88.8, -104.5, 710.0, -745.5, 3.0, -3.0]
    x[: len(some)] = some[:n]
    return x


def coefficients(rng, rule):
    """A row of coefficients for a rule, within the range of all of them."""
    row = rng.uniform(0.4, 0.9, len(Common._fields) + len(rule.coefficients._fields))
    if "smallest" in rule.coefficients._fields:
        row[-2:] = 0.1, 2.0
    return tuple(row)


# Columns with and without a rest, several parts; short and long runs, several slices.
NORM_SHAPES = [(2, 1, 1), (128, 32, 1), (129, 33, 1), (300, 5, 1), (40, 3, 7), (9, 2, 255), (3, 4, 256),
               (2, 3, 4097), (1, 2, 9000)]  # fmt: skip


def bound(dtype, terms, n=LANE):
    """What the rounding of sums by lanes of n terms allows: n roundings of the sum of abs(terms)."""
    return n * np.finfo(dtype).eps * np.abs(terms).sum((0, 2), dtype=float)
