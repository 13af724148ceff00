"""The emulator's streams, events and graphs behave as CUDA's.

Kernels are compiled for the host and run by the emulator in tests/gpu/emulator: results, not speed.
"""

import numpy as np
import pytest
from support import emulator
from support.launcher import position

pytest.importorskip("pyoptim.runtime._native", reason="what is compared with", exc_type=ImportError)

if reason := emulator.why_not():
    pytest.skip(reason, allow_module_level=True)


def finish_step(cuda, batch, loss, at, stream):
    cuda.launch("finish_step<double>", 1, (batch, 0, loss.ctypes.data, at.ctypes.data), stream)


def test_a_graph_is_what_was_launched_and_runs_when_it_is_launched(cuda):
    at, loss = position(), np.array([2.0])
    stream = cuda.Stream()
    cuda.begin_capture(stream.address)
    finish_step(cuda, 10, loss, at, stream.address)
    cuda.fill(loss.ctypes.data, 0, 8, stream.address)
    memory, copied = cuda.Memory(8), cuda.Memory(8)  # relaxed: memory may be taken
    cuda.copy(copied.address, memory.address, 8, stream.address)
    finish_step(cuda, 1, loss, at, 0)  # elsewhere work goes on
    assert at["example"] == 1
    graph = cuda.Graph(stream.address)
    assert (at["example"], loss[0]) == (1, 2.0)
    graph.launch(0)
    assert (at["example"], at["loss"], loss[0]) == (11, 22.0, 0.0)
    graph.launch(stream.address)
    assert (at["example"], at["loss"]) == (21, 22.0)


def test_streams_of_a_capture_are_in_any_order_that_events_allow(cuda):
    main, side, event, joined = cuda.Stream(), cuda.Stream(), cuda.Event(), cuda.Event()
    first, both = np.zeros(8, np.uint8), np.zeros(8, np.uint8)
    value = first.ctypes.data
    cuda.begin_capture(main.address)
    cuda.fill(value, 1, 8, main.address)
    event.record(main.address)
    event.hold(side.address)
    cuda.fill(value, 2, 8, side.address)  # beside the next
    cuda.fill(value, 3, 8, main.address)
    joined.record(side.address)
    with pytest.raises(RuntimeError, match="uncaptured work"):
        joined.hold(0)  # the default stream
    joined.hold(main.address)
    cuda.fill(both.ctypes.data, 4, 8, main.address)
    graph = cuda.Graph(main.address)
    assert not first.any()
    seen = set()
    for _ in range(40):
        graph.launch(0)
        seen.add(int(first[0]))
    assert (seen, set(both)) == ({2, 3}, {4})


def test_a_capture_ends_with_all_its_streams_joined(cuda):
    main, side, event, host = cuda.Stream(), cuda.Stream(), cuda.Event(), np.zeros(8, np.uint8)
    cuda.begin_capture(main.address)
    event.record(main.address)
    event.hold(side.address)
    cuda.fill(host.ctypes.data, 1, 8, side.address)
    with pytest.raises(RuntimeError, match="not ended in the same stream"):
        cuda.Graph(side.address)
    with pytest.raises(RuntimeError, match="unjoined"):
        cuda.Graph(main.address)
    cuda.fill(host.ctypes.data, 2, 8, side.address)  # both streams are as before
    assert set(host) == {2}
    with pytest.raises(RuntimeError, match="event last recorded in a capturing stream"):
        event.hold(side.address)


@pytest.mark.parametrize("what", ["synchronize", "copy", "hold"])
def test_a_capture_refuses_what_a_gpu_s_does(cuda, what):
    stream, event, host, memory = cuda.Stream(), cuda.Event(), np.zeros(1), cuda.Memory(8)
    event.record(0)
    cuda.begin_capture(stream.address)
    refused = {
        "synchronize": lambda: cuda.synchronize(stream.address),
        "copy": lambda: cuda.copy(memory.address, host.ctypes.data, 8, stream.address),
        "hold": lambda: event.hold(stream.address),
    }
    with pytest.raises(RuntimeError, match="captur"):
        refused[what]()
    with pytest.raises(RuntimeError, match="previous error during capture"):
        cuda.Graph(stream.address)
    cuda.begin_capture(stream.address)  # the stream is as before
    cuda.Graph(stream.address).launch(stream.address)


def test_the_default_stream_cannot_capture(cuda):
    for stream in (0, 1):
        with pytest.raises(RuntimeError, match="capturing"):
            cuda.begin_capture(stream)
        assert not cuda.is_capturing(stream)


def test_which_stream_captures(cuda):
    one, other = cuda.Stream(), cuda.Stream()
    cuda.begin_capture(one.address)
    assert [cuda.is_capturing(stream.address) for stream in (one, other)] == [True, False]
    cuda.Graph(one.address)
    assert not cuda.is_capturing(one.address)
    with pytest.raises(RuntimeError, match="present state"):
        cuda.Graph(one.address)


def test_streams_and_events_belong_to_a_device(cuda, monkeypatch):
    monkeypatch.setenv("PYOPTIM_EMULATED_DEVICES", "2")
    with pytest.raises(RuntimeError, match="invalid device"):
        cuda.set_device(2)
    here = cuda.Event(), cuda.Stream()
    cuda.set_device(1)
    try:
        there = cuda.Event(), cuda.Stream()
        assert cuda.get_device() == 1
        for event, stream in ((here[0], there[1]), (there[0], here[1]), (here[0], 1)):
            with pytest.raises(RuntimeError, match="invalid resource handle"):
                event.record(getattr(stream, "address", stream))
        there[0].record(1)
        there[0].hold(here[1].address)  # a stream may wait for another device
    finally:
        cuda.set_device(0)
    here[0].record(1)


RACE = """
#include "emulator.hpp"
#include <cstdio>
__shared__ int shared;
__global__ void say(int value, int* out) {
    if (threadIdx.x == 0) shared = value;
    BARRIER
    out[blockIdx.x * 256 + threadIdx.x] = shared;
}
__global__ void last(int* out) { *out = int(blockIdx.x); }
int main() {
    static int out[3 * 256];
    int wrong = 0, blocks = 0;
    for (int value = 1; value <= 3; ++value) {
        int* at = out;
        void* arguments[] = {&value, &at};
        emulator::Call<&say>::run_all(3, arguments);
        for (int x : out) wrong += x != value;
        emulator::Call<&last>::run_all(3, arguments + 1);
        blocks |= 1 << out[0];
    }
    std::printf("%d %d", wrong != 0, blocks);
}
"""


@pytest.mark.parametrize(("barrier", "wrong"), [("__syncthreads();", "0"), ("", "1")])
def test_the_emulator_s_order_is_not_to_be_relied_on(barrier, wrong, tmp_path):
    """Threads that miss a barrier, and blocks that overwrite each other, give other results by and by."""
    if reason := emulator.why_not():
        pytest.skip(reason)
    (tmp_path / "race.cpp").write_text(RACE.replace("BARRIER", barrier))
    folder = emulator.HERE
    emulator.run(
        emulator.compiler(), "-std=c++17", f"-I{folder}", tmp_path / "race.cpp", "-o", tmp_path / "race"
    )
    differ, blocks = emulator.run(tmp_path / "race").split()
    assert differ == wrong
    assert int(blocks) & (int(blocks) - 1)  # more than one block was the last
