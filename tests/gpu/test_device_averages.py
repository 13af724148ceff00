"""`Average` and `Lookahead` of arrays in a GPU's memory."""

import numpy as np
import pytest
from support import doubles
from support.device import arrays, assert_same, averages, cpu_step, like, there
from support.doubles import There

import pyoptim as po


@pytest.mark.parametrize("kind", ["ema", "warm", "swa"])
@pytest.mark.parametrize("follows", [True, False])
def test_averages_have_the_cpu_s_bits(gpu, kind, follows, rng, tmp_path):
    here = arrays(rng, (np.float32, np.float64))
    copies = [p.copy() for p in here]
    cpu, own = po.SGD(here, lr=0.1, momentum=0.9), po.SGD(there(copies), lr=0.1, momentum=0.9)
    cpu_average = averages(cpu if follows else here, kind)
    own_average = averages(own if follows else there(copies), kind)

    def run():
        for _ in range(4):
            grads = like(rng, here)
            cpu_step(cpu, grads)
            own.step(there(grads))
            if not follows:
                own_average.update()
                with po.use_backend("numpy"):
                    cpu_average.update()
            assert own_average.count == cpu_average.count
            assert_same(own_average.state_dict()["averages"], cpu_average.averages)

    run()
    before = [p.copy() for p in copies]
    with own_average.applied():
        assert_same(copies, cpu_average.averages)
    assert_same(copies, before)
    held = cpu_average.state_dict()  # to and fro
    cpu_average.load_state_dict(own_average.state_dict())
    own_average.load_state_dict(held)
    if follows:
        own.save(tmp_path / "own.safetensors")
        cpu.save(tmp_path / "cpu.safetensors")
        assert (tmp_path / "own.safetensors").read_bytes() == (tmp_path / "cpu.safetensors").read_bytes()
        cpu.load(tmp_path / "own.safetensors")
        own.load(tmp_path / "cpu.safetensors")
    run()


def test_averages_do_not_wait(recorder, rng):
    params = arrays(rng)
    own = po.Adam([There(p, 70) for p in params])
    average = po.averages.EMA(own)
    grads = [There(g, 70) for g in arrays(rng)]
    own.step(grads)
    recorder.log.clear()
    own.step(grads)
    launches = recorder.all("launch", "synchronize", "copy")
    assert launches == [
        ("launch", "step<rule_named::adam, float>", 70),
        ("launch", "step<rule_named::sgd, float>", 70),
    ]
    with pytest.raises(ValueError, match="already carries an average"):
        po.averages.EMA(own)
    one = po.SGD(There(np.ones(3)))
    overlapping = po.averages.EMA(one).averages[0]
    with pytest.raises(ValueError, match="grads overlaps a parameter or an optimizer state"):
        one.step(overlapping)
    assert average.count == 2


def test_averages_that_cannot_be(emulated):
    a = np.ones(3)
    with pytest.raises(TypeError, match=r"params\[0\] is a ndarray in the processor's memory"):
        po.averages.EMA([a, There(a.copy())])
    with pytest.raises(ValueError, match=r"params\[1\] overlaps params\[0\]"):
        po.averages.EMA([There(a), There(a)])
    average = po.averages.EMA(There(a))
    with pytest.raises(ValueError, match=r"state_dict\['averages'\]\[0\] has shape \(4,\)"):
        average.load_state_dict({"count": 1, "averages": [np.ones(4)]})
    with po.use_backend("numpy"), pytest.raises(po.BackendError, match="does not reach arrays in a GPU"):
        average.update()
    assert average.count == 0


def test_averages_of_torch_tensors(recorder, monkeypatch):
    torch = pytest.importorskip("torch")
    streams = [80]
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: type("Stream", (), {"cuda_stream": streams[0]})
    )
    p = np.ones(3, np.float32)
    tensor = doubles.tensor(p)
    average = po.averages.EMA(tensor, 0.5)
    p[...] = 3
    streams[0] = 90
    recorder.log.clear()
    average.update()
    assert {at for _, _, at in recorder.all("launch")} == {90}  # where the tensor's work is now
    version = tensor._version
    with average.applied():
        assert p.tolist() == [2] * 3
        assert tensor._version > version  # autograd heard of it
    assert p.tolist() == [3] * 3


@pytest.mark.parametrize("fails", [True, False])
def test_lookahead_has_the_cpu_s_bits(gpu, fails, rng):
    here = arrays(rng, (np.float32, np.float64))
    copies = [p.copy() for p in here]
    options = {"lr": 0.1, "velocity": "classical"}

    def groups(params):
        return [{"params": params[:3], "momentum": 0.9}, {"params": params[3:], "momentum": 0.5}]

    cpu, own = po.SGD(groups(here), **options), po.SGD(groups(there(copies)), **options)
    for _ in range(3):
        grads = like(rng, here)
        cpu_step(cpu, [grads[:3], grads[3:]])
        own.step([there(grads[:3]), there(grads[3:])])
        before = [p.copy() for p in copies]
        with cpu.lookahead(), own.lookahead():
            assert_same(copies, here)
            assert any((p != was).any() for p, was in zip(copies, before, strict=True))
        if fails:
            with pytest.raises(RuntimeError, match="step inside lookahead"), own.lookahead():
                own.step([there(grads[:3]), there(grads[3:])])
        assert_same(copies, before)
        assert_same(copies, here)
