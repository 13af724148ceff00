"""Arrays in the memory of a GPU that is emulated, and the same on the processor."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from support import doubles
from support.doubles import There
from support.optimizers import OPTIMIZERS, type_of

import pyoptim as po
from pyoptim.arrays.tensors import in_place
from pyoptim.backends import gpu
from pyoptim.formulas import storage
from pyoptim.runtime import dispatch

INCLUDE = Path(__file__).resolve().parents[2] / "csrc"
ELEMENTWISE = {
    name: cls for name, cls in OPTIMIZERS.items() if name not in ("LARS", "LAMB", "Adafactor", "Muon")
}
TRUSTING = {name: OPTIMIZERS[name] for name in ("LARS", "LAMB")}
SHAPES = [(5,), (4097,), (), (0, 3), (3, 4), (9000,)]


def load(monkeypatch, name):
    """A backend's module, imported anew: it finds what now stands in place of what it imports."""
    full = f"pyoptim.backends.gpu.{name}"
    spec = importlib.util.find_spec(full)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, full, module)
    spec.loader.exec_module(module)
    return module


def put_cuda(monkeypatch, module):
    """Put a module in place of the compiled CUDA module."""
    monkeypatch.setattr(gpu, "_cuda", module, raising=False)
    monkeypatch.setitem(sys.modules, "pyoptim.backends.gpu._cuda", module)


def use_cuda(monkeypatch, cuda):
    """Make `cuda` the CUDA module, and its backend one that is found: the backend."""
    monkeypatch.setenv("PYOPTIM_CUBLAS", "off")  # the machine's would not find the memory
    put_cuda(monkeypatch, cuda)
    dispatch._cache["cuda"] = load(monkeypatch, "cuda")
    return dispatch._cache["cuda"]


def use_cupy(monkeypatch, cuda, **options):
    """Put a stand-in for CuPy, which launches the kernels of `cuda`, in its place: the backend."""
    monkeypatch.setenv("PYOPTIM_CUBLAS", "off")
    for name, module in doubles.cupy(cuda, **options).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(Path, "is_file", lambda path: True)  # that the package has its headers
    dispatch._cache["cupy"] = load(monkeypatch, "nvrtc")
    monkeypatch.setattr(dispatch._cache["cupy"], "headers", lambda: INCLUDE)
    return dispatch._cache["cupy"]


def arrays(rng, dtypes=(np.float32,), shapes=SHAPES):
    return [
        doubles.unaligned(rng.normal(size=shape), dtype, i % 3)
        for dtype in dtypes
        for i, shape in enumerate(shapes)
    ]


def like(rng, params, scale=1.0):
    """Random arrays of the parameters' shapes and dtypes, such as gradients."""
    return [np.asarray(scale * rng.normal(size=p.shape), p.dtype) for p in params]


def there(values):
    """The arrays, with their memory said to be a GPU's."""
    return [There(value) for value in values]


def states(optimizer):
    return optimizer.state_dict()["state"]


def assert_same(a, b):
    """Two states, or two lists of arrays, are equal."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        a, b = list(a.values()), list(b.values())
    if isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert type(a) is type(b)
        np.testing.assert_array_equal(a, b, strict=True)


def cpu_step(optimizer, grads):
    """A step on the processor, though a GPU's backend was asked for."""
    with po.use_backend("numpy"):
        optimizer.step(grads)


def assert_orthogonal_alike(params, here, steps, lr):
    """Equal up to rounding: products of max(shape) terms, amplified thirtyfold (oracles/optimizers.py)."""
    for a, b in zip(params, here, strict=True):
        length = max(a.shape)
        allowed = steps * lr * math.sqrt(length) * 30 * length * np.finfo(a.dtype).eps
        np.testing.assert_allclose(a, b, rtol=0, atol=allowed)


def assert_kept_alike(a, b):
    """States with 8-bit codes decoded, and 16-bit floats widened."""
    assert a.keys() == b.keys()
    for i, entry in a.items():
        assert entry.keys() == b[i].keys()
        for name, value in entry.items():
            other = b[i][name]
            if np.ndim(value) and value.dtype == np.uint8:
                value = storage.decode(storage.pack_state(name, entry))
                other = storage.decode(storage.pack_state(name, b[i]))
            assert_same(np.asarray(value, float), np.asarray(other, float))


# Longer than a chunk and than a block of a scale, shorter, empty, without dimensions.
PACKED_SHAPES = [(300,), (4097,), (), (0, 3), (17, 15)]


def packed_arrays(rng, kinds):
    return [a for kind in kinds for a in arrays(rng, (type_of(kind),), PACKED_SHAPES)]


def averages(params, kind):
    return po.averages.SWA(params) if kind == "swa" else po.averages.EMA(params, 0.9, warm_up=kind == "warm")


def cupy_array(values):
    cupy = pytest.importorskip("cupy")
    return cupy.asarray(values)


def torch_array(values):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    if values.dtype.name == "bfloat16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16).cuda()
    return torch.from_numpy(values).cuda()


def fetched(array):
    if hasattr(array, "get"):
        return array.get()
    return in_place("array", array.cpu())
