"""Launches kernels of the emulated CUDA module on NumPy arrays."""

import numpy as np

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
