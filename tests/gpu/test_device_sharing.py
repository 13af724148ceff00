"""Arrays of other libraries: their streams and captures, DLPack, PyTorch's tensors and optimizers."""

import weakref

import numpy as np
import pytest
from support import doubles
from support.device import arrays, assert_same, like, states, there, use_cuda
from support.doubles import Capsule, OnDevice, There

import pyoptim as po
from pyoptim.arrays import gpu_views
from pyoptim.arrays.gpu import uploaded
from pyoptim.arrays.queue import Queue
from pyoptim.backends.gpu.steps import Table


def test_streams(recorder, rng):
    """The work is queued on the stream of the gradients; others wait for it, and it for them."""
    params = arrays(rng, shapes=[(3,)] * 3)
    own = po.SGD(there(params))
    own.step(there(arrays(rng, shapes=[(3,)] * 3)))
    recorder.log.clear()
    own.step(
        [There(g, stream) for g, stream in zip(arrays(rng, shapes=[(3,)] * 3), (70, 80, None), strict=True)]
    )
    ((_, _, stream),) = recorder.all("launch")
    assert stream == 70
    order = [(kind, at) for kind, _, at in recorder.all("hold", "record", "launch")]
    assert order == [
        ("record", 1), ("hold", 70),  # after all earlier work on these arrays
        ("record", 80), ("hold", 70),
        ("launch", 70),
        ("record", 70), ("hold", 80),
        ("record", 70),
    ]  # fmt: skip
    first, last = recorder.all("hold", "record")[0], recorder.all("hold", "record")[-1]
    assert first[1] == last[1]  # the event that the next step, on whatever stream, waits for
    for given, used in ((0, 1), (2, 2), (None, 1)):
        recorder.log.clear()
        own.step([There(g, given) for g in arrays(rng, shapes=[(3,)] * 3)])
        assert [at for _, _, at in recorder.all("launch")] == [used]
        assert recorder.all("hold")[0][1:] == (first[1], used)


def test_the_default_stream_waits_for_others_alone(recorder, rng):
    """Its own order is enough until another stream comes; that of another may be destroyed after a step."""
    own = po.SGD(there(arrays(rng, shapes=[(3,)])))
    orders = []
    for stream in (1, 1, 70, 70, 1, 1, 80):
        recorder.log.clear()
        own.step([There(g, stream) for g in arrays(rng, shapes=[(3,)])])
        orders.append([(kind, at) for kind, _, at in recorder.all("hold", "record", "launch")])
    assert orders[1:] == [
        [("launch", 1)],
        [("record", 1), ("hold", 70), ("launch", 70), ("record", 70)],
        [("hold", 70), ("launch", 70), ("record", 70)],
        [("hold", 1), ("launch", 1)],
        [("launch", 1)],
        [("record", 1), ("hold", 80), ("launch", 80), ("record", 80)],
    ]


def test_a_capture_that_the_default_stream_would_spoil_is_left_alone(recorder, rng, monkeypatch):
    """Of a stream that the default one waits for, as CUDA's default kind does: it may not be used at all."""
    (p,) = params = arrays(rng, shapes=[(3,)])
    own = po.SGD(there(params))
    own.step(there(arrays(rng, shapes=[(3,)])))
    before = p.copy()

    def is_capturing(stream):
        if stream == 1:
            raise RuntimeError("CUDA: cudaStreamIsCapturing: it would depend on a capture")
        return False

    recorder.log.clear()
    with monkeypatch.context() as during:
        during.setattr(recorder, "is_capturing", is_capturing, raising=False)
        for stream in (1, 70):
            with pytest.raises(RuntimeError, match="depend on a capture"):
                own.step([There(g, stream) for g in arrays(rng, shapes=[(3,)])])
    assert not recorder.all("hold", "record", "launch", "copy")
    assert_same(p, before)
    own.step([There(g, 70) for g in arrays(rng, shapes=[(3,)])])
    assert recorder.all("record")[0][2] == 1  # what could not be waited for is, later


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_others_wait_for_a_step_that_fails(recorder, rng, monkeypatch, max_grad_norm):
    """What has been queued before reads their gradients."""
    own = po.SGD(there(arrays(rng, shapes=[(3,)] * 2)), max_grad_norm=max_grad_norm)
    grads = [There(g, stream) for g, stream in zip(arrays(rng, shapes=[(3,)] * 2), (70, 80), strict=True)]
    own.step(grads)
    recorder.log.clear()

    def launch(kernel, *rest):
        raise RuntimeError("CUDA: it failed")

    monkeypatch.setattr(recorder, "launch", launch, raising=False)
    with pytest.raises(RuntimeError, match="it failed"):
        own.step(grads)
    order = [(kind, at) for kind, _, at in recorder.all("hold", "record")]
    assert order[-3:] == [("record", 70), ("hold", 80), ("record", 70)]


def test_memory_is_taken_and_given_back_whoever_captures(cuda, no_gpu, monkeypatch):
    """Even the first step in ``torch.cuda.graph`` says what is wrong, and ends nothing."""
    monkeypatch.setenv("PYOPTIM_EMULATED_CAPTURE", "global")
    use_cuda(monkeypatch, cuda)
    stream, memory, p = cuda.Stream(), cuda.Memory(8), np.ones(3)
    own = po.SGD(There(p))
    cuda.begin_capture(stream.address)
    cuda.fill(memory.address, 0, 8, stream.address)
    with pytest.raises(RuntimeError, match=r"graph is being captured"):
        own.step(There(np.ones(3), stream.address))
    cuda.Memory(1 << 20)
    graph = cuda.Graph(stream.address)
    graph.launch(stream.address)
    assert Queue(cuda, 0).download(memory.address, np.ones(1)) == 0


@pytest.mark.parametrize("at", [0, 1])
def test_a_capture_of_somebody_s_is_refused_and_goes_on(gpu, rng, at):
    """PyTorch's ``torch.cuda.graph`` around a step, say: of any of the gradients' streams."""
    params = arrays(rng, shapes=[(3,)] * 2)
    own, before = po.Adam(there(params)), [p.copy() for p in params]
    stream, memory = gpu.launcher.Stream(), gpu.launcher.Memory(8)
    streams = [1, 1]
    streams[at] = stream.address
    for captured in (True, False):
        if captured:
            gpu.launcher.begin_capture(stream.address)
        grads = [There(g, s) for g, s in zip(like(rng, params), streams, strict=True)]
        if captured:
            with pytest.raises(RuntimeError, match=r"graph is being captured .* outside of the capture"):
                own.step(grads)
            assert_same(params, before)
            assert all(s["step"] == 0 for s in states(own).values() if "step" in s)
            gpu.launcher.fill(memory.address, 0, 8, stream.address)
            graph = gpu.launcher.Graph(stream.address)  # nothing has spoilt it
            graph.launch(stream.address)
            assert Queue(gpu.launcher, 0).download(memory.address, np.ones(1)) == 0
        else:
            own.step(grads)
            assert any((p != b).all() for p, b in zip(params, before, strict=True))


def test_what_is_copied_is_kept_until_there_has_been_a_wait(recorder):
    """A GPU that reads the processor's memory itself may do so later."""
    queue = Queue(recorder, 0)
    memory, table = queue.allocate(8), Table(queue)

    def put(by, i):
        source = np.array([float(i)])
        kept = weakref.ref(source)
        by(source)
        return kept

    sources = [lambda source: queue.put(memory.address, source), lambda source: table.put(source, 1)]
    for wait in (
        lambda: queue.download(memory.address, np.empty(1)),
        lambda: queue.upload(memory.address, np.ones(1)),
    ):
        kept = [put(by, i) for i, by in enumerate(sources)]
        assert all(source() is not None for source in kept)
        wait()
        assert not any(source() is not None for source in kept)
        table.put(np.zeros(0), 1)  # the next is another one
    recorder.log.clear()
    kept = [put(sources[0], i) for i in range(1000)]
    assert sum(source() is not None for source in kept) < 64
    assert len(recorder.all("synchronize")) == 1000 // 64
    np.testing.assert_array_equal(queue.download(memory.address, np.empty(1)), 999)


def test_values_of_another_stream_are_waited_for(recorder):
    """As results of `ops` are, which have a queue of their own."""
    here, there = Queue(recorder, 0), Queue(recorder, 0)
    there.stream = 70
    to, source = (uploaded(queue, np.full(3, i)) for i, queue in enumerate((here, there)))
    recorder.log.clear()
    to[...] = source
    log, last = recorder.all("hold", "record", "copy"), id(there._last.event)
    copied = next(i for i, entry in enumerate(log) if entry[0] == "copy")
    assert ("hold", last, 1) in log[:copied]  # after all that has been queued there
    assert ("hold", 70) in [(kind, at) for kind, _, at in log[copied:]]
    recorder.log.clear()
    source.copy()  # on another stream than the last, for which it waits
    assert recorder.all("hold", "record")[:2] == [("record", last, 1), ("hold", last, 70)]
    np.testing.assert_array_equal(to.numpy(), 1)


def test_a_table_that_was_not_copied_is_copied_again(recorder, monkeypatch):
    table, numbers = Table(Queue(recorder, 0)), np.arange(3.0)
    table.put(numbers, 1)
    copy = recorder.copy

    def fail(*rest):
        raise RuntimeError("CUDA: it failed")

    monkeypatch.setattr(recorder, "copy", fail)
    with pytest.raises(RuntimeError, match="it failed"):
        table.put(np.arange(4.0), 1)
    monkeypatch.setattr(recorder, "copy", copy)
    queue = Queue(recorder, 0)
    np.testing.assert_array_equal(queue.download(table.put(numbers, 1), np.empty(3)), numbers)


def test_memory_of_gradients_of_another_queue_is_used_again_after_the_step(recorder):
    """On whatever stream; and it is downloaded after the work on its own."""
    own, made = po.SGD(There(np.ones(3)), nonfinite="skip"), Queue(recorder, 0)
    made.stream = 70
    g = uploaded(made, np.full(3, np.nan))
    own.step(g)
    recorder.log.clear()
    own.step(g)
    assert own.skipped == 2
    assert ("copy", 24, 70) in recorder.log  # to the host, to tell which is not finite
    own = po.SGD(There(np.ones(3)))
    g[...] = np.ones(3)
    own.step(g)
    recorder.log.clear()
    own.step(g)
    log, last = recorder.log, id(made._last.event)
    launched = next(i for i, entry in enumerate(log) if entry[0] == "launch")
    assert log[launched][2] == 70
    assert ("hold", last, 70) in log[:launched]
    assert ("record", last, 70) in log[launched:]


def test_the_device_of_the_arrays_is_used_and_left(recorder):
    own = po.SGD(OnDevice(np.ones(3), device=2))
    own.step(OnDevice(np.ones(3), device=2))
    recorder.log.clear()
    own.step(OnDevice(np.ones(3), device=2))
    assert [index for _, index, _ in recorder.all("device")] == [2, 0]
    assert [entry[0] for entry in recorder.log if entry[0] in ("device", "launch")] == [
        "device",
        "launch",
        "device",
    ]


def test_dlpack(emulated):
    p, g = np.ones((2, 3), np.float32), Capsule(np.ones((2, 3), np.float32))
    po.SGD([Capsule(p)], lr=0.25).step([g])
    assert p.tolist() == [[0.75] * 3] * 2
    assert g.streams == [1]
    with pytest.raises(ValueError, match=r"params has the strides \(1, 2\), expected a C-contiguous array"):
        po.SGD(Capsule(p.T.copy().T))
    half = p.astype(np.float16)
    po.SGD(Capsule(half), lr=0.25, rounding="nearest").step(Capsule(np.ones((2, 3), np.float16)))
    assert half.tolist() == [[0.5] * 3] * 2
    with pytest.raises(TypeError, match="params has dtype int32, expected float32, float64"):
        po.SGD(Capsule(p.astype(np.int32)))
    with pytest.raises(TypeError, match="x has dtype float16, expected float32 or float64 in"):
        gpu_views.view("x", Capsule(half))


def test_torch_tensors(recorder, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: type("Stream", (), {"cuda_stream": 99}))
    p, g = np.ones((2, 3), np.float32), np.ones((3, 2), np.float32)
    tensor = doubles.tensor(p)
    own = po.SGD({"w": tensor}, lr=0.25)
    version = tensor._version
    own.step({"w": doubles.tensor(g).t()})  # copied
    assert p.tolist() == [[0.75] * 3] * 2
    assert tensor._version > version  # autograd heard of it
    assert {at for _, _, at in recorder.all("launch")} == {99}
    half = doubles.tensor(p).bfloat16()
    assert gpu_views.view("x", half, also=gpu_views.HALF).dtype.name == "bfloat16"
    with pytest.raises(TypeError, match="x has dtype bfloat16, expected float32 or float64"):
        gpu_views.view("x", half)
    with pytest.raises(TypeError, match="params has dtype int32, expected float32, float64, float16 or b"):
        po.SGD(doubles.tensor(p).int())
    with pytest.raises(ValueError, match=r"params has the strides \(1, 3\)"):
        po.SGD(doubles.tensor(p).t())
    with pytest.raises(ValueError, match="overlaps a parameter"):
        own.step({"w": tensor})
    sparse, signs = torch.eye(3).to_sparse(), torch.view_as_complex(torch.ones(3, 2)).conj().imag
    for lazy in (sparse, signs):
        with pytest.raises(TypeError, match="params is a tensor that is not dense in memory"):
            gpu_views.view("params", lazy)
    assert gpu_views.made_contiguous(sparse) is sparse
    assert not gpu_views.made_contiguous(signs).is_neg()
    with torch.no_grad():
        own._params[0].owner.resize_(1, 3)
    with pytest.raises(ValueError, match=r"params\['w'\] has been resized"):
        own.step({"w": doubles.tensor(np.ones((2, 3), np.float32))})


def test_the_torch_optimizer(emulated, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: type("Stream", (), {"cuda_stream": 0}))
    doubles.views_by_torch(monkeypatch)
    p, q = np.ones(3, np.float32), np.ones(3, np.float32)
    params = [doubles.tensor(p), torch.from_numpy(q)]
    made = [po.torch.Optimizer([param], po.Adam, lr=0.1) for param in params]
    for _ in range(2):
        for param, optimizer in zip(params, made, strict=True):
            grad = np.arange(3, dtype=np.float32)
            param.grad = doubles.tensor(grad) if param is params[0] else torch.from_numpy(grad)
            optimizer.step()
    assert_same(p, q)
    saved, other = (optimizer.state_dict()["state"] for optimizer in made)
    assert torch.equal(saved[0]["exp_avg"], other[0]["exp_avg"])
    made[0].load_state_dict(made[1].state_dict())
