"""What tests run on: the backends and, for the compiled one, its instruction sets."""

from contextlib import contextmanager

import pyoptim as po
from pyoptim.runtime import dispatch

try:
    from pyoptim.runtime import _native
except ImportError:
    _native = None

ENGINES = ("numpy", "numba", "native-avx512", "native-avx2", "native-baseline")


def why_not(engine):
    """Why an engine cannot run here, or None."""
    backend, _, isa = engine.partition("-")
    try:
        dispatch.get(backend)
    except (dispatch.BackendError, ValueError) as error:
        return str(error)
    if isa and isa not in _native.instruction_sets():
        return f"this build on this processor has no {isa}"
    return None


LIVE = [engine for engine in ENGINES if why_not(engine) is None]


@contextmanager
def use_engine(engine):
    backend, _, isa = engine.partition("-")
    before = _native.instruction_set() if isa else None
    if isa:
        _native.use_instruction_set(isa)
        assert _native.instruction_set() == isa
    try:
        with po.use_backend(backend):
            yield
    finally:
        if isa:
            _native.use_instruction_set(before)


@contextmanager
def use_threads(n):
    before = po.get_num_threads()
    po.set_num_threads(n)
    try:
        yield
    finally:
        po.set_num_threads(before)
