"""Every test that takes `backend` runs on each backend and instruction set.

PYOPTIM_TEST_BACKENDS lists the backends that must run here (default: all), so that a suite that was
meant to test the compiled kernels cannot pass without them.
"""

import functools
import gc
import importlib.metadata
import importlib.util
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # They share the cores; tests of threads set their number.
    os.environ.setdefault("PYOPTIM_NUM_THREADS", "1")
os.environ["PYOPTIM_ALWAYS_SHARE"] = "1"  # Work is cut for all threads also while the machine is busy.

import filelock
import numpy as np
import pytest
from support import backends, children, emulator
from support.device import use_cuda

import pyoptim as po
from pyoptim.runtime import dispatch


def pytest_configure():
    wanted = os.environ.get("PYOPTIM_TEST_BACKENDS", "native,numba,numpy").split(",")
    reasons = [reason for name in filter(None, wanted) if (reason := backends.why_not(name))]
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
    dead = [name for name in backends.BACKENDS if name not in backends.LIVE]
    return [
        f"pyoptim: {po.__version__} from {os.path.dirname(po.__file__)}, {po.get_num_threads()} threads",
        f"backends: {', '.join(backends.LIVE)}" + (f"; SKIPPED: {', '.join(dead)}" if dead else ""),
        f"torch: {torch}",
    ]


def pytest_collection_finish():
    """The tests that were collected are a million objects; garbage collections need not go through them."""
    gc.freeze()


@pytest.fixture(params=backends.BACKENDS)
def backend(request):
    if reason := backends.why_not(request.param):
        pytest.skip(reason)
    with backends.running_on(request.param):
        yield request.param


@pytest.fixture(params=[np.float32, np.float64])
def dtype(request):
    return request.param


@pytest.fixture(scope="session")
def build_once(tmp_path_factory):
    """Calls ``build(folder)`` in the first process of the test run that asks for ``name``: the folder."""
    run_folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run_folder = run_folder.parent

    def once(name, build):
        folder = run_folder / name
        with filelock.FileLock(run_folder / f"{name}.lock"):
            if not (folder / "finished").exists():
                folder.mkdir(exist_ok=True)
                build(folder)
                (folder / "finished").touch()
        return folder

    return once


@pytest.fixture(scope="session")
def cuda(build_once):
    """The CUDA module with an emulator in place of a GPU."""
    if reason := emulator.why_not():
        pytest.skip(reason)
    (file,) = build_once("emulated", emulator.build).glob("_cuda*.so")
    spec = importlib.util.spec_from_file_location("_cuda", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def no_gpu(monkeypatch):
    """The package has not looked for a GPU yet, and forgets what it finds when the test is over."""
    for name in dispatch.DEVICE_MODULES:
        monkeypatch.delitem(dispatch._cache, name, raising=False)
    monkeypatch.setattr(dispatch, "_device_default", None)
    monkeypatch.setattr(dispatch, "_cache", dict(dispatch._cache))


@pytest.fixture
def emulated(cuda, no_gpu, monkeypatch):
    """A machine with an emulated GPU."""
    use_cuda(monkeypatch, cuda)


@pytest.fixture(scope="session", autouse=True)
def _children_never_see_the_checkout():
    children.forbid_the_checkout()


@pytest.fixture
def run_python(tmp_path):
    """Runs code in a process of its own with only the given PYOPTIM_ variables: a CompletedProcess."""

    def run(code, timeout=120, **env):
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYOPTIM_")}
        return children.run("-c", code, cwd=tmp_path, env={**inherited, **env}, timeout=timeout)

    return run


@pytest.fixture
def run_pyoptim(tmp_path):
    """Runs the command ``pyoptim`` in a process of its own: a CompletedProcess."""
    return functools.partial(children.run, "-m", "pyoptim", cwd=tmp_path, timeout=600)


@pytest.fixture
def start_python(tmp_path):
    """Starts Python with the given arguments in a process of its own: a Popen."""
    return functools.partial(children.start, cwd=tmp_path)
