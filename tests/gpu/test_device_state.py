"""State and checkpoints of optimizers on arrays in a GPU's memory."""

import copy
import pickle

import numpy as np
import pytest
from support.device import arrays, assert_same, cpu_step, states, there
from support.doubles import There

import pyoptim as po


def test_checkpoints_move_between_cpu_and_gpu(gpu, rng, tmp_path):
    here = arrays(rng)
    copies = [p.copy() for p in here]
    cpu, own = po.Adam(here, amsgrad=True), po.Adam(there(copies), amsgrad=True)
    grads = arrays(rng)
    own.step(there(grads))
    cpu_step(cpu, grads)
    own.save(tmp_path / "own.safetensors")
    cpu.save(tmp_path / "cpu.safetensors")
    assert (tmp_path / "own.safetensors").read_bytes() == (tmp_path / "cpu.safetensors").read_bytes()
    back = [p.copy() for p in copies]
    from_gpu, from_cpu = po.Adam(back, amsgrad=True), po.Adam(there(copies), amsgrad=True)
    from_gpu.load(tmp_path / "own.safetensors")
    from_cpu.load_state_dict(cpu.state_dict())
    grads = arrays(rng)
    for optimizer, params in ((from_gpu, back), (cpu, here)):
        cpu_step(optimizer, grads)
        assert params is not copies
    from_cpu.step(there(grads))
    assert_same(back, here)
    assert_same(copies, here)
    assert_same(states(from_cpu), states(cpu))


def test_states_that_do_not_begin_with_zero(gpu):
    own = po.Rprop(There(np.ones(3, np.float32)), lr=0.25)
    assert states(own)[0]["step_size"].tolist() == [0.25] * 3
    assert po.ASGD(There(np.ones(3))).averages()[0].tolist() == [0] * 3


@pytest.mark.parametrize("call", [copy.deepcopy, pickle.dumps])
def test_no_copies_of_the_optimizer(emulated, call):
    with pytest.raises(TypeError, match=r"cannot be copied or pickled: save its state_dict\(\)"):
        call(po.Adam(There(np.ones(3))))
