"""A decorator by which functions of `ops` take arrays in a GPU's memory too, wrapped as `Operand`s."""

from __future__ import annotations

import copy
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

from numpy import int64, ndarray

from ..arrays import gpu, gpu_views, tensors
from ..arrays.gpu import DeviceArray
from ..arrays.operand import Operand
from ..arrays.queue import LEGACY_STREAM, Queue
from ..arrays.tensors import tell_autograd
from ..runtime import dispatch

P = ParamSpec("P")
R = TypeVar("R")


def for_either_memory(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function that checks and makes arrays by `pyoptim.arrays` work on a GPU's arrays too."""
    signature = inspect.signature(function)

    @wraps(function)
    def either(*args: P.args, **kwargs: P.kwargs) -> R:
        first: Any = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(first, ndarray):  # the usual case at little cost
            return function(*args, **kwargs)
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # the function raises the error
        given.apply_defaults()
        arrays = dict(_arrays_of(given.arguments))
        on_gpu = {name: value for name, value in arrays.items() if gpu_views.is_on_gpu(value)}
        if not on_gpu:
            return function(*args, **kwargs)
        known = next(iter(on_gpu))
        for name, value in arrays.items():
            if name not in on_gpu:
                raise TypeError(
                    f"{name} is a {type(value).__name__} in the processor's memory, but {known} is in a "
                    "GPU's: expected all in one"
                )
        return _run(function, given, on_gpu)

    return either


def _arrays_of(arguments: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield names and values of the arguments that are arrays, or should be."""
    for name, value in arguments.items():
        if hasattr(value, "_fields"):
            yield from _arrays_of({f"{name}.{field}": v for field, v in value._asdict().items()})
        elif isinstance(value, ndarray | list | tuple):
            if name != "features":
                yield name, value
        elif not isinstance(value, str | int | float | None) and gpu_views.is_on_gpu(value):
            yield name, value


def _run(function: Callable[..., R], given: inspect.BoundArguments, on_gpu: dict[str, Any]) -> R:
    written = ("running_mean", "running_var") if given.arguments.get("training") else ()
    views: dict[str, DeviceArray] = {}
    streams: dict[int, int] = {}
    for name, value in on_gpu.items():
        dense = value if name in written else gpu_views.made_contiguous(value)
        views[name] = gpu_views.view(name, dense, streams, gpu_views.LABELS if name == "labels" else ())
    first = next(iter(views))
    for name, array in views.items():
        if array.device != views[first].device:
            raise ValueError(
                f"{name} is on GPU {array.device}, but {first} on {views[first].device}: expected all on one"
            )
    make = _maker(on_gpu[first])
    with ordered(list(views.values())) as queue:
        operands = {name: _operand(array, queue, make) for name, array in views.items()}
        given.arguments.update(_replaced(given.arguments, operands))
        result = function(*given.args, **given.kwargs)
    tell_autograd([on_gpu[name] for name in written if tensors.is_tensor(on_gpu.get(name))])
    return cast(R, _given_back(result))


def _operand(array: DeviceArray, queue: Queue, make: Callable[..., Any] | None) -> Operand:
    if array.dtype.kind in "iub" and array.dtype != int64:  # labels; what takes some waits anyway
        array = gpu.uploaded(queue, array.download(queue).astype(int64))
    return Operand.of(array, queue, make)


def _replaced(arguments: dict[str, Any], operands: dict[str, Operand], prefix: str = "") -> dict[str, Any]:
    replaced = {}
    for name, value in arguments.items():
        if hasattr(value, "_fields"):
            value = type(value)(**_replaced(value._asdict(), operands, f"{prefix}{name}."))
        replaced[name] = operands.get(prefix + name, value)
    return replaced


def _given_back(result: Any) -> Any:
    if isinstance(result, Operand):
        return result.result()
    if isinstance(result, tuple):
        values = [_given_back(value) for value in result]
        return type(result)(*values) if hasattr(result, "_fields") else tuple(values)
    return result


def _maker(value: Any) -> Callable[..., Any] | None:
    """Return a function that makes arrays of the same kind on the same GPU."""
    if tensors.is_tensor(value):
        torch: Any = sys.modules["torch"]
        return lambda shape, dtype: value.new_empty(shape, dtype=getattr(torch, dtype.name))
    cupy: Any = sys.modules.get("cupy")
    if cupy is not None and isinstance(value, cupy.ndarray):
        return lambda shape, dtype: cupy.empty(shape, dtype)
    return None


# Queues by GPU and stream; those of one GPU share one order of work and one memory pool.
_queues: dict[tuple[Any, int, int], Queue] = {}
_lock = threading.RLock()  # one thread at a time queues its work


def _queue(device: int, stream: int) -> Queue:
    launcher = dispatch.for_device().launcher
    made = _queues.get((launcher, device, stream))
    if made is None:
        root = _queues.setdefault((launcher, device, LEGACY_STREAM), Queue(launcher, device))
        made = _queues.setdefault((launcher, device, stream), copy.copy(root))
        made.stream = stream
    return made


@contextmanager
def ordered(arrays: Sequence[DeviceArray]) -> Iterator[Queue]:
    """A queue on the stream of the first array: after all work on all of them, and before what comes."""
    streams, queues = gpu.works_of(arrays)
    with _lock:
        queue = _queue(arrays[0].device, streams[0] if streams else LEGACY_STREAM)
        with queue.among(streams, queues):
            yield queue
