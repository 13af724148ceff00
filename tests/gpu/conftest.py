"""The emulated GPU, as tests of the package see it and as tests of single kernels do."""

import numpy as np
import pytest
from support import doubles, launcher
from support.device import use_cuda, use_cupy

import pyoptim as po


@pytest.fixture(params=["cuda", "cupy"])
def gpu(request, cuda, no_gpu, monkeypatch):
    """The emulated GPU by either launcher, whose backend was asked for."""
    use = {"cuda": use_cuda, "cupy": use_cupy}[request.param]
    backend = use(monkeypatch, cuda)
    with po.use_backend(request.param):
        yield backend


@pytest.fixture
def recorder(cuda, no_gpu, monkeypatch):
    """The emulated CUDA module, which notes its calls."""
    made = doubles.Recorder(cuda)
    use_cuda(monkeypatch, made)
    return made


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def run(cuda):
    """Launches kernels on guarded arrays, and looks at the end whether one has written beside them."""
    launch = launcher.Launcher(cuda)
    yield launch
    launch.check()
