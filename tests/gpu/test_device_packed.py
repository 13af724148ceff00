"""Optimizers whose parameters have 16 bits, or whose states have 16 or 8, in a GPU's memory."""

import numpy as np
import pytest
from support import doubles
from support.device import assert_kept_alike, assert_same, cpu_step, packed_arrays, states, there
from support.doubles import There

import pyoptim as po
from pyoptim.arrays.gpu import DeviceArray


def kept_on_gpu(values):
    """As `there`; bfloat16 as DLPack would bring it."""
    return [
        DeviceArray(v.ctypes.data, v.shape, v.dtype, 0, (v,), stream=1)
        if v.dtype.name == "bfloat16"
        else There(v)
        for v in values
    ]


PACKED = {
    "SGD": po.SGD,
    "momentum": lambda p, **options: po.SGD(p, momentum=0.9, **options),
    "AMSGrad": po.AMSGrad,  # the most states
    "Rprop": po.Rprop,  # states that do not begin at 0
}


@pytest.mark.parametrize("kinds", [("float32",), ("float16", "float32"), ("bfloat16",)], ids=str)
@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("rounding", ["master", "stochastic", "nearest"])
@pytest.mark.parametrize("name", PACKED)
def test_packed_arrays_have_the_cpu_s_bits(gpu, kinds, state_dtype, rounding, name, rng, tmp_path):
    if kinds == ("float32",) and (state_dtype is None or rounding != "master"):
        return  # nothing is packed, or there is nothing to round
    here = packed_arrays(rng, kinds)
    copies = [p.copy() for p in here]
    options = {"state_dtype": state_dtype, "rounding": rounding, "seed": 3, "weight_decay": 0.01}
    cpu, own = PACKED[name](here, **options), PACKED[name](kept_on_gpu(copies), **options)
    assert_kept_alike(states(own), states(cpu))
    for i in range(4):
        grads = packed_arrays(rng, kinds)
        if i == 2:  # what a user writes in between counts
            for mine, theirs, values in zip(copies, here, packed_arrays(rng, kinds), strict=True):
                mine[...] = theirs[...] = np.where(values > 0, values, theirs)
        cpu_step(cpu, grads)
        own.step(kept_on_gpu(grads))
        assert_same(copies, here)
        if i == 1:  # in the middle, to and fro
            own.save(tmp_path / "own.safetensors")
            saved = cpu.state_dict()
            cpu = PACKED[name](here, **options)
            cpu.load(tmp_path / "own.safetensors")
            own.load_state_dict(saved)
    assert_kept_alike(states(own), states(cpu))


@pytest.mark.parametrize("state_dtype", [None, "int8"])
@pytest.mark.parametrize("kinds", [("float16", "float32"), ("bfloat16",)], ids=str)
def test_packed_gradients_accumulate_and_average(gpu, kinds, state_dtype, rng):
    here = packed_arrays(rng, kinds)
    copies = [p.copy() for p in here]
    options = {"state_dtype": state_dtype, "accumulate": 3}
    cpu, own = po.Adam(here, **options), po.Adam(kept_on_gpu(copies), **options)
    ours, theirs = po.averages.EMA(own, 0.9), po.averages.EMA(cpu, 0.9)
    for i in range(8):
        grads = packed_arrays(rng, kinds)
        cpu_step(cpu, grads)
        own.step(kept_on_gpu(grads))
        assert_same(copies, here)
        assert_same(ours.state_dict()["averages"], theirs.averages)
        assert own.state_dict()["accumulated"]["count"] == (i + 1) % 3
        assert_same(own.state_dict()["accumulated"]["sums"], cpu.state_dict()["accumulated"]["sums"])
        if i == 4:
            own.load_state_dict(cpu.state_dict())
    with ours.applied(), theirs.applied():
        assert_same(copies, here)
    assert_same(copies, here)
    assert_kept_alike(states(own), states(cpu))


@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("kinds", [("float16", "float32"), ("bfloat16",)], ids=str)
def test_packed_arrays_look_ahead(gpu, kinds, state_dtype, rng):
    here = packed_arrays(rng, kinds)
    copies = [p.copy() for p in here]
    options = {"lr": 0.1, "momentum": 0.3, "velocity": "classical", "state_dtype": state_dtype}
    cpu, own = po.SGD(here, **options), po.SGD(kept_on_gpu(copies), **options)
    for _ in range(3):
        grads = packed_arrays(rng, kinds)
        cpu_step(cpu, grads)
        own.step(kept_on_gpu(grads))
        with cpu.lookahead(), own.lookahead():
            assert_same(copies, here)
        assert_same(copies, here)


@pytest.mark.parametrize("kinds", [("float16", "float32"), ("bfloat16",)], ids=str)
def test_packed_gradients_are_clipped_and_checked(gpu, kinds, rng):
    here = packed_arrays(rng, kinds)
    copies = [p.copy() for p in here]
    options = {"momentum": 0.9, "max_grad_norm": 0.5, "nonfinite": "skip", "lr": 0.1}
    cpu, own = po.SGD(here, **options), po.SGD(kept_on_gpu(copies), **options)
    for scale in (1, 1e-3):  # longer and shorter than the limit
        grads = [np.asarray(scale * rng.normal(size=p.shape), p.dtype) for p in here]
        cpu_step(cpu, grads)
        own.step(kept_on_gpu(grads))
    for entry, other in zip(states(own).values(), states(cpu).values(), strict=True):
        # The factor has another order of sums, and then is rounded to float32.
        np.testing.assert_allclose(entry["momentum_buffer"], other["momentum_buffer"], rtol=1e-6)
    before = [p.copy() for p in copies]
    grads[1][5] = np.inf
    own.step(kept_on_gpu(grads))
    assert own.skipped == 1
    assert_same(copies, before)


def test_packed_steps_do_not_wait(recorder, rng):
    params = packed_arrays(rng, ["float16"])
    own = po.Adam(there(params), state_dtype="int8", accumulate=2)
    po.averages.EMA(own)
    grads = [There(g, 70) for g in packed_arrays(rng, ["float16"])]
    for _ in range(4):
        recorder.log.clear()
        own.step(grads)
        own.step(grads)
    names = [kernel for _, kernel, _ in recorder.all("launch")]
    add, convert = "packed_step<rule_named::sgd, float>", "convert<float>"
    adam = "packed_step<rule_named::adam, float>"
    assert names == [add, add, *[convert] * len(params), adam, add]
    assert not recorder.all("synchronize")


def test_torch_s_bfloat16(recorder, monkeypatch):
    torch, ml_dtypes = pytest.importorskip("torch"), pytest.importorskip("ml_dtypes")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: type("Stream", (), {"cuda_stream": 99}))
    doubles.views_by_torch(monkeypatch)
    p, q = np.ones(300, ml_dtypes.bfloat16), torch.ones(300, dtype=torch.bfloat16)
    tensors = [doubles.tensor(p), q]
    made = [po.torch.Optimizer([t], po.Adam, lr=0.1, state_dtype="int8") for t in tensors]
    for step in range(3):
        for t, optimizer in zip(tensors, made, strict=True):
            grad = np.linspace(-1, 1, 300).astype(ml_dtypes.bfloat16)
            given = doubles.tensor(grad)
            t.grad = given if t is tensors[0] else torch.from_numpy(grad.view(np.int16)).view(torch.bfloat16)
            optimizer.step()
        if step == 0:
            made[0].load_state_dict(made[1].state_dict())
    assert_same(p.view(np.int16), q.view(torch.int16).numpy())
    assert {at for _, _, at in recorder.all("launch")} == {99}
