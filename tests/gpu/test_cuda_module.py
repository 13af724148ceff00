"""The CUDA module checks its arguments, has a kernel for every rule, and gives and takes memory.

Kernels are compiled for the host and run by the emulator in tests/gpu/emulator: results, not speed.
"""

import numpy as np
import pytest
from support.launcher import same

from pyoptim.backends.gpu.packed import ARRAYS
from pyoptim.formulas import storage
from pyoptim.formulas.rules import RULES

pytest.importorskip("pyoptim.runtime._native", reason="what is compared with", exc_type=ImportError)


def test_arguments_are_checked(cuda):
    with pytest.raises(ValueError, match="no kernel named 'sum'"):
        cuda.launch("sum", 1, (), 0)
    with pytest.raises(TypeError, match="total<double> takes 5 arguments, 1 were given"):
        cuda.launch("total<double>", 1, (1,), 0)
    with pytest.raises(TypeError, match="argument 1 of total<double> is 'x', expected an address or None"):
        cuda.launch("total<double>", 1, (1, "x", 1.0, None, 0), 0)
    with pytest.raises(TypeError, match=r"argument 0 of total<double> is 1\.5, expected an int"):
        cuda.launch("total<double>", 1, (1.5, 0, 1.0, None, 0), 0)
    with pytest.raises(TypeError, match="argument 2 of total<double> is None, expected a float"):
        cuda.launch("total<double>", 1, (1, 0, None, None, 0), 0)
    with pytest.raises(
        ValueError, match="argument 5 of step<rule_named::sgd, float> has 3 bytes, expected 512"
    ):
        cuda.launch("step<rule_named::sgd, float>", 1, (1, 0, 0, 0, 0, b"abc"), 0)
    with pytest.raises(ValueError, match="blocks is -1"):
        cuda.launch("total<double>", -1, (0, 0, 1.0, None, 0), 0)


def test_every_rule_has_its_kernels(cuda):
    steps = {name for name in cuda.kernels() if name.startswith("step<")}
    assert steps == {f"step<rule_named::{rule}, {t}>" for rule in RULES for t in ("float", "double")}
    packed = {name for name in cuda.kernels() if name.startswith("packed_step<")}
    assert packed == {f"packed_step<rule_named::{rule}, float>" for rule in RULES}


def test_constants_of_storage(cuda):
    assert cuda.scale_block == storage.BLOCK
    assert ARRAYS.itemsize == 176


def test_memory_and_copies(cuda):
    x, y = np.arange(5.0), np.zeros(5)
    memory = cuda.Memory(x.nbytes)
    assert memory.bytes == x.nbytes
    cuda.copy(memory.address, x.ctypes.data, x.nbytes, 0)
    cuda.copy(y.ctypes.data, memory.address, x.nbytes, 0)
    cuda.synchronize(0)
    assert same(x, y)
    cuda.fill(memory.address, 0, x.nbytes, 0)
    cuda.copy(y.ctypes.data, memory.address, x.nbytes, 0)
    assert not y.any()


def test_without_a_device(cuda, monkeypatch, run_python):
    code = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("_cuda", {cuda.__file__!r})
cuda = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cuda)
print(cuda.device_count(), cuda.why_not())
def launch():
    cuda.launch("total<double>", 0, (0, 0, 1.0, 0, 0), 0)
for call in (lambda: cuda.Memory(8), cuda.Stream, launch):
    try:
        call()
    except RuntimeError as error:
        print(error)
"""
    out = run_python(code, PYOPTIM_EMULATED_DEVICES="0").stdout.splitlines()
    assert out[0] == "0 no CUDA-capable device is detected"
    assert out[1:] == ["no CUDA device can be used: no CUDA-capable device is detected"] * 3
