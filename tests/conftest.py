"""Every test that takes `engine` runs on each backend and instruction set."""

import numpy as np
import pytest

import pyoptim as po
from pyoptim import _native


@pytest.fixture(params=["numpy", "numba", "native-avx512", "native-avx2", "native-baseline"])
def engine(request):
    backend, _, isa = request.param.partition("-")
    before = _native.instruction_set()
    if isa:
        _native.use_instruction_set(isa)
    with po.use_backend(backend):
        yield request.param
    _native.use_instruction_set(before)


@pytest.fixture(params=[np.float32, np.float64])
def dtype(request):
    return request.param
