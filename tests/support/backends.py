"""The backends that tests run on; the compiled one counts once for each of its instruction sets."""

from contextlib import contextmanager

import pyoptim as po
from pyoptim.backends.reference import steps
from pyoptim.runtime import dispatch

try:
    from pyoptim.runtime import _native
except ImportError:
    _native = None

BACKENDS = ("numpy", "numba", "native-avx512", "native-avx2", "native-baseline")


def why_not(backend):
    """Why a backend cannot run here, or None if it can."""
    name, _, isa = backend.partition("-")
    try:
        dispatch.get(name)
    except (dispatch.BackendError, ValueError) as error:
        return str(error)
    if isa and isa not in _native.instruction_sets():
        return f"this build on this processor has no {isa}"
    return None


LIVE = [backend for backend in BACKENDS if why_not(backend) is None]


@contextmanager
def running_on(backend):
    """Run a block on a backend, with its instruction set."""
    name, _, isa = backend.partition("-")
    before = _native.instruction_set() if isa else None
    if isa:
        _native.use_instruction_set(isa)
        assert _native.instruction_set() == isa
    try:
        with po.use_backend(name):
            yield
    finally:
        if isa:
            _native.use_instruction_set(before)


@contextmanager
def use_threads(n):
    """Run a block on so many threads."""
    before = po.get_num_threads()
    po.set_num_threads(n)
    try:
        yield
    finally:
        po.set_num_threads(before)


def share_small_work(name, monkeypatch, size=8):
    """Let threads share steps of the Numba or the NumPy backend in parts of so many float64 elements."""
    if name == "numba":
        monkeypatch.setattr(dispatch.get(name), "_PART", size)
        monkeypatch.setattr(dispatch.get(name), "_PAYS", 0)
    if name == "numpy":
        monkeypatch.setattr(steps, "_BLOCK", 8 * size)
        monkeypatch.setattr(steps, "_PAYS", 0)
