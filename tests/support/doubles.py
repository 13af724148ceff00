"""Stand-ins for what a machine with a GPU has: arrays, PyTorch's tensors and CuPy, all in host memory."""

import ctypes
import sys
import types

import numpy as np


class There:
    """An array with ``__cuda_array_interface__``, as CuPy's."""

    def __init__(self, array, stream=1, **told):
        self.array, self.stream, self.told = array, stream, told

    @property
    def __cuda_array_interface__(self):
        told = {**self.array.__array_interface__, "version": 3, "stream": self.stream}
        return {**told, **self.told}


class OnDevice(There):
    """One that says which GPU it is on."""

    def __init__(self, array, device=0, **told):
        super().__init__(array, **told)
        self.device = device

    def __dlpack_device__(self):
        return 2, self.device


class Capsule:
    """An array that speaks DLPack alone."""

    def __init__(self, array):
        self.array, self.streams = array, []

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, *, stream):
        self.streams.append(stream)
        return self.array.__dlpack__()


def tensor(array, stream=0):
    """A PyTorch tensor that says it is on a GPU."""
    import torch

    class Tensor(torch.Tensor):
        is_cuda = True

        def get_device(self):
            return 0

        def numpy(self):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

        def detach(self):
            return super().detach().as_subclass(Tensor)

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).as_subclass(Tensor)
    return torch.from_numpy(array).as_subclass(Tensor)


def views_by_torch(monkeypatch):
    """Lets a PyTorch without CUDA view our GPU arrays, whose memory is the processor's here."""
    import torch

    as_torch_does = torch.as_tensor

    def as_tensor(value, **options):
        if type(value).__name__ != "DeviceArray":
            return as_torch_does(value, **options)
        told = value.__cuda_array_interface__
        kind, (address, _) = np.dtype(told["typestr"]), told["data"]
        size = kind.itemsize * int(np.prod(told["shape"]))
        memory = (ctypes.c_byte * size).from_address(address)
        return torch.from_numpy(np.frombuffer(memory, kind).reshape(told["shape"]))

    monkeypatch.setattr(torch, "as_tensor", as_tensor)


class Recorder:
    """The emulated module, with a note of what is asked of it."""

    def __init__(self, cuda):
        self._cuda, self.log, self.current, self.used = cuda, [], 0, set()
        recorder = self

        class Event(cuda.Event):
            def record(self, stream):
                recorder.log.append(("record", id(self), stream))
                super().record(recorder._known(stream))

            def hold(self, stream):
                recorder.log.append(("hold", id(self), stream))
                super().hold(recorder._known(stream))

        class Stream(cuda.Stream):
            def __init__(self):
                super().__init__()
                recorder.log.append(("stream", None, self.address))
                recorder._streams.add(self.address)

        class Graph(cuda.Graph):
            def launch(self, stream):
                recorder.log.append(("graph", id(self), stream))
                recorder.used.add(recorder.current)
                super().launch(0)

        self.Event, self.Stream, self.Graph = Event, Stream, Graph
        self._streams = set()

    def _known(self, stream):
        return stream if stream in self._streams else 0

    def __getattr__(self, name):
        return getattr(self._cuda, name)

    def launch(self, kernel, blocks, arguments, stream):
        self.log.append(("launch", kernel, stream))
        self.used.add(self.current)
        self._cuda.launch(kernel, blocks, arguments, self._known(stream))

    def copy(self, to, source, bytes, stream):
        self.log.append(("copy", bytes, stream))
        self.used.add(self.current)
        self._cuda.copy(to, source, bytes, self._known(stream))

    def fill(self, to, byte, bytes, stream):
        self._cuda.fill(to, byte, bytes, self._known(stream))

    def synchronize(self, stream):
        self.log.append(("synchronize", None, stream))
        self._cuda.synchronize(self._known(stream))

    def get_device(self):
        return self.current

    def set_device(self, index):
        self.log.append(("device", index, None))
        self.current = index

    def all(self, *kinds):
        return [entry for entry in self.log if entry[0] in kinds]


def cupy(cuda, devices=1, driver=12000):
    """Modules in place of CuPy's, which launch the emulated kernels: name -> module."""
    kernels, letters, graphs, streams, events = [], cuda.kernels(), {}, set(), {}

    class CUDARuntimeError(RuntimeError):
        pass

    def count():
        if devices is None:
            raise CUDARuntimeError("cudaErrorUnknown: unknown error")
        return devices

    def known(stream):
        return stream if stream in streams else 0

    def told(function, *arguments):
        try:
            return function(*arguments)
        except RuntimeError as error:
            raise CUDARuntimeError(str(error)) from error

    def end_capture(stream):
        graph = told(cuda.Graph, stream)
        graphs[id(graph)] = graph
        return id(graph)

    runtime = types.SimpleNamespace(
        streamCaptureModeRelaxed=2,
        streamBeginCapture=lambda stream, mode: cuda.begin_capture(stream),
        streamEndCapture=end_capture,
        graphInstantiate=lambda graph: graph + 1,
        graphLaunch=lambda graph, stream: graphs[graph - 1].launch(known(stream)),
        graphExecDestroy=lambda graph: graphs.pop(graph - 1),
        graphDestroy=lambda graph: None,
        CUDARuntimeError=CUDARuntimeError,
        is_hip=False,
        memcpyDefault=4,
        driverGetVersion=lambda: driver,
        getDeviceCount=count,
        getDevice=lambda: 0,
        setDevice=lambda index: None,
        getDeviceProperties=lambda index: {
            "name": b"pretended", "major": 9, "minor": 0, "totalGlobalMem": 2**31, "multiProcessorCount": 1
        },
        memcpyAsync=lambda to, source, size, kind, stream: cuda.copy(to, source, size, known(stream)),
        memsetAsync=lambda to, byte, size, stream: cuda.fill(to, byte, size, known(stream)),
        streamSynchronize=lambda stream: cuda.synchronize(known(stream)),
        streamIsCapturing=lambda stream: cuda.is_capturing(stream),
        eventRecord=lambda event, stream: told(events[event].record, known(stream)),
        streamWaitEvent=lambda stream, event: told(events[event].hold, known(stream)),
    )  # fmt: skip

    compiled = []

    def compile_using_nvrtc(source, options, name_expressions):
        compiled.append((source, options, name_expressions))
        return b"code", {name: f"lowered {name}" for name in name_expressions}

    class Module:
        def load(self, code):
            assert code == b"code"

        def get_function(self, name):
            kernels.append(name.removeprefix("lowered "))
            return types.SimpleNamespace(ptr=len(kernels) - 1)

    def value(kind, address, kernel):
        if kind == "s":
            rows = 8 * 16 * (4 if "float" in kernel else 8)
            return ctypes.string_at(address, 40 if kernel.startswith("adafactor") else rows)
        number = {"p": ctypes.c_uint64, "i": ctypes.c_int64, "d": ctypes.c_double}[kind]
        number = number.from_address(address).value
        assert kind != "d" or number == 0 or abs(number) >= sys.float_info.min, f"{kernel} got an int"
        return number

    def launch(function, blocks, by, bz, threads, ty, tz, shared, stream, parameters, extra):
        assert (by, bz, threads, ty, tz, shared, extra) == (1, 1, cuda.threads, 1, 1, 0, 0)
        kernel = kernels[function]
        kinds = letters[kernel]
        addresses = (ctypes.c_void_p * len(kinds)).from_address(parameters)
        arguments = [value(kind, at, kernel) for kind, at in zip(kinds, addresses, strict=True)]
        cuda.launch(kernel, blocks, tuple(arguments), known(stream))

    class Memory:
        def __init__(self, size):
            self._own = cuda.Memory(size)
            self.ptr = self._own.address

    class Event:
        def __init__(self, disable_timing):
            assert disable_timing
            self.ptr = id(self)
            events[self.ptr] = cuda.Event()

        def __del__(self):
            del events[self.ptr]

    class Stream:
        def __init__(self, non_blocking):
            assert non_blocking
            self._own = cuda.Stream()
            self.ptr = self._own.address
            streams.add(self.ptr)

    class ndarray:
        """As CuPy's, of a NumPy array."""

        def __init__(self, array):
            self.array = array

        shape = property(lambda self: self.array.shape)
        flags = property(lambda self: self.array.flags)
        __cuda_array_interface__ = property(
            lambda self: {**self.array.__array_interface__, "version": 3, "stream": own.stream}
        )

        def reshape(self, shape):
            return ndarray(self.array.reshape(shape))

    own = types.ModuleType("cupy")
    own.compiled, own.cuda = compiled, types.ModuleType("cupy.cuda")
    own.cuda.compiler = types.SimpleNamespace(compile_using_nvrtc=compile_using_nvrtc)
    function = types.ModuleType("cupy.cuda.function")
    function.Module = Module
    own.ndarray, own.stream = ndarray, 1
    own.empty = lambda shape, dtype: ndarray(np.empty(shape, dtype))
    own.ascontiguousarray = lambda a: ndarray(np.ascontiguousarray(a.array))
    own.cuda.runtime, own.cuda.Memory, own.cuda.Event = runtime, Memory, Event
    own.cuda.Stream = Stream
    api = types.ModuleType("cupy_backends.cuda.api")
    api.driver = types.SimpleNamespace(launchKernel=launch)
    return {
        "cupy": own,
        "cupy.cuda": own.cuda,
        "cupy.cuda.function": function,
        "cupy_backends": types.ModuleType("cupy_backends"),
        "cupy_backends.cuda": types.ModuleType("cupy_backends.cuda"),
        "cupy_backends.cuda.api": api,
    }


def unaligned(values, dtype, offset):
    """A copy that begins ``offset`` elements after 16 bytes."""
    size = np.dtype(dtype).itemsize
    values = np.asarray(values, dtype)
    memory = np.empty(values.nbytes + 32, np.uint8)
    begin = -memory.ctypes.data % 16 + offset * size
    made = memory[begin : begin + values.nbytes].view(dtype).reshape(values.shape)
    made[...] = values
    return made


assert sys.byteorder == "little"
