"""Every test that takes `engine` runs on each backend and instruction set.

PYOPTIM_TEST_BACKENDS lists the backends that must run here (default: all), so that a suite that was
meant to test the compiled kernels cannot pass without them.
"""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys

import engines
import numpy as np
import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "cuda"))
import emulated

import pyoptim as po


def pytest_configure():
    wanted = os.environ.get("PYOPTIM_TEST_BACKENDS", "native,numba,numpy").split(",")
    reasons = [reason for name in filter(None, wanted) if (reason := engines.why_not(name))]
    if reasons:
        raise pytest.UsageError(
            f"PYOPTIM_TEST_BACKENDS is {','.join(wanted)}, but: {'; '.join(reasons)}.\n"
            f"pyoptim was imported from {os.path.dirname(po.__file__)}: if that is the source folder, run "
            "`pytest`, since `python -m pytest` there shadows the installed package."
        )


def pytest_report_header():
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = "not installed, its comparisons are skipped"
    dead = [engine for engine in engines.ENGINES if engine not in engines.LIVE]
    return [
        f"pyoptim: {po.__version__} from {os.path.dirname(po.__file__)}, {po.get_num_threads()} threads",
        f"engines: {', '.join(engines.LIVE)}" + (f"; SKIPPED: {', '.join(dead)}" if dead else ""),
        f"torch: {torch}",
    ]


@pytest.fixture(params=engines.ENGINES)
def engine(request):
    if reason := engines.why_not(request.param):
        pytest.skip(reason)
    with engines.use_engine(request.param):
        yield request.param


@pytest.fixture(params=[np.float32, np.float64])
def dtype(request):
    return request.param


@pytest.fixture(scope="session")
def cuda(tmp_path_factory):
    """The CUDA module with an emulator in place of a GPU."""
    if reason := emulated.why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("emulated")
    emulated.build(folder)
    (file,) = folder.glob("_cuda*.so")
    spec = importlib.util.spec_from_file_location("_cuda", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_python(tmp_path):
    """Runs code in a process of its own, away from the sources, with only the given PYOPTIM_ variables."""

    def run(code, timeout=120, **env):
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYOPTIM_")}
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**inherited, **env},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
