"""Which backend runs arrays in a GPU's memory, and what is said where none can."""

import sys
from contextlib import nullcontext

import numpy as np
import pytest
from support import doubles
from support.device import load, put_cuda, use_cuda, use_cupy
from support.doubles import There

import pyoptim as po
from pyoptim.backends import gpu
from pyoptim.runtime import dispatch


def test_available_backends(cuda, no_gpu, monkeypatch):
    use_cuda(monkeypatch, cuda)
    use_cupy(monkeypatch, cuda)
    assert po.available_backends()[-2:] == ["cuda", "cupy"]
    assert po.show_config()["cuda"] == "emulated (0.0 GiB, compute capability 0.0; own kernel)"
    assert dispatch.for_device().name == "cuda"  # the better of the two
    assert dispatch.current().name not in dispatch.DEVICE_MODULES
    with po.use_backend("cupy"):
        assert dispatch.for_device().name == "cupy"
    del dispatch._cache["cuda"]
    monkeypatch.setitem(sys.modules, "pyoptim.backends.gpu._cuda", None)
    monkeypatch.delattr(gpu, "_cuda")
    monkeypatch.delitem(sys.modules, "pyoptim.backends.gpu.cuda")
    monkeypatch.setattr(dispatch, "_device_default", None)
    assert dispatch.for_device().name == "cupy"
    assert po.show_config()["cuda"] == "pretended (2.0 GiB, compute capability 9.0; own kernel)"


def test_the_backend_asked_for_is_used_or_refuses(cuda, no_gpu, monkeypatch):
    use_cuda(monkeypatch, cuda)
    use_cupy(monkeypatch, cuda)
    p = np.ones(3)
    own = po.Adam(There(p))
    for name in ("numpy", "cupy"):
        with (
            po.use_backend(name),
            pytest.raises(po.BackendError, match=f"the '{name}' backend was asked for"),
        ):
            own.step(There(np.ones(3)))
    with (
        po.use_backend("numpy"),
        pytest.raises(po.BackendError, match="does not reach arrays in a GPU's memory"),
    ):
        po.Adam(There(p))
    cpu = po.Adam(p)
    for name in dispatch.DEVICE_MODULES:
        with po.use_backend(name):
            with pytest.raises(po.BackendError, match="these are in the processor's"):
                cpu.step(np.ones(3))
            with pytest.raises(
                po.BackendError, match=f"the '{name}' backend has no activation_forward for arrays"
            ):
                po.ops.activation_forward(p, "relu")
    assert p.tolist() == [1] * 3
    assert not hasattr(dispatch.get("cuda"), "__path__")


@pytest.mark.parametrize("name", ["cupy", "numpy"])
def test_the_environment_asks_for_a_backend(cuda, no_gpu, monkeypatch, name):
    use_cuda(monkeypatch, cuda)
    use_cupy(monkeypatch, cuda)
    monkeypatch.setattr(dispatch, "_default", None)
    monkeypatch.setenv("PYOPTIM_BACKEND", name)
    refuses = pytest.raises(po.BackendError, match="the 'numpy' backend was asked for")
    for _ in range(2):
        with nullcontext() if name == "cupy" else refuses:
            assert dispatch.for_device().name == name
        with po.use_backend("cuda"):
            assert dispatch.for_device().name == "cuda"


WITHOUT = """
import sys
for name in {hidden!r}:
    sys.modules[name] = None
import pyoptim as po
for name in ("cuda", "cupy"):
    try:
        po.use_backend(name).__enter__()
    except po.BackendError as error:
        print(error)
print(po.available_backends(), po.show_config()["cuda"])
class There:
    __cuda_array_interface__ = {{}}
try:
    po.Adam(There())
except po.BackendError as error:
    print(error)
"""


def test_without_either_the_errors_say_what_is_missing(run_python):
    done = run_python(WITHOUT.format(hidden=["pyoptim.backends.gpu._cuda", "cupy"]))
    assert done.returncode == 0, done.stderr
    cuda, cupy, available, there = done.stdout.splitlines()
    assert cuda.startswith(
        "the 'cuda' backend cannot run here: this install has no CUDA module: `pip install pyoptim-cuda`"
    )
    assert cupy.startswith(
        "the 'cupy' backend cannot run here: CuPy is not installed (pip install 'pyoptim[cuda]')"
    )
    assert "cu" not in available.split("]")[0]
    assert available.endswith(" None")
    assert there == f"arrays in a GPU's memory need a backend for it: {cuda}; {cupy}"


class Dead:
    @staticmethod
    def why_not():
        return "there is no NVIDIA driver"


def test_without_a_device_the_errors_say_so(cuda, no_gpu, monkeypatch):
    put_cuda(monkeypatch, Dead)
    with pytest.raises(ImportError, match="no CUDA device can be used: there is no NVIDIA driver"):
        load(monkeypatch, "cuda")
    for options, reason in (
        ({"driver": 0}, "there is no NVIDIA driver"),
        ({"devices": 0}, "there is no CUDA device"),
        ({"devices": None}, "cudaErrorUnknown"),
    ):
        with pytest.raises(ImportError, match=f"no CUDA device can be used: {reason}"):
            use_cupy(monkeypatch, cuda, **options)
    modules = doubles.cupy(cuda)
    modules["cupy"].cuda.runtime.is_hip = True
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(ImportError, match="built for ROCm"):
        load(monkeypatch, "nvrtc")
