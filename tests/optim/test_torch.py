"""PyTorch: its tensors in our optimizers, our optimizers in its clothes, states there and back."""

import copy
import pickle
import warnings

import numpy as np
import pytest
from support.optimizers import NO_STATE_DICTS, OPTIMIZERS, assert_same_bits, snapshot

import pyoptim as po

torch = pytest.importorskip("torch")
from torch.optim.optimizer import (  # noqa: E402
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16}


def values(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ---- tensors as arrays -------------------------------------------------------------------------------

STRUCTURES = {
    "lone": (lambda p, q: p, lambda a, b: a),
    "list": (lambda p, q: [p, q], lambda a, b: [a, b]),
    "dict": (lambda p, q: {"w": p, "b": q}, lambda a, b: {"w": a, "b": b}),
    "groups": (lambda p, q: [{"params": [p]}, {"params": q}], lambda a, b: [[a], b]),
}


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("leaf", [False, True])
def test_tensors_are_arrays(backend, structure, dtype, leaf):
    """The same bits as on NumPy arrays, in the tensors' own memory."""
    if dtype == "bfloat16":
        kind, numpy_type = torch.bfloat16, np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    else:
        kind, numpy_type = DTYPES[dtype], np.dtype(dtype)
    wrap, wrap_gradients = STRUCTURES[structure]
    arrays = [values((3, 4)).astype(numpy_type), values(5).astype(numpy_type)]
    tensors = [torch.tensor(a.astype(np.float64)).to(kind).requires_grad_(leaf) for a in arrays]
    addresses = [t.data_ptr() for t in tensors]
    ours, theirs = po.Adam(wrap(*arrays), lr=0.1), po.Adam(wrap(*tensors), lr=0.1)
    for seed in range(1, 4):
        grads = [values(a.shape, seed).astype(numpy_type) for a in arrays]
        ours.step(wrap_gradients(*grads))
        theirs.step(wrap_gradients(*(torch.tensor(g.astype(np.float64)).to(kind) for g in grads)))
    for a, t in zip(arrays, tensors, strict=True):
        assert np.array_equal(a.astype(np.float64), t.detach().double().numpy())
    assert not np.array_equal(arrays[0].astype(np.float32), values((3, 4)))
    assert [t.data_ptr() for t in tensors] == addresses


def test_dense_gradients_are_read_where_they_are(monkeypatch):
    """By the kernels' own check, without an array made for each."""
    pytest.importorskip("pyoptim.runtime._native")
    shapes = [(), (1,), (3, 4), (2, 1, 5), (4097,)]
    arrays = [np.array(values(shape), np.float32) for shape in shapes]
    tensors = [torch.nn.Parameter(torch.tensor(a)) for a in arrays]
    makers = (
        po.Adam,
        po.LAMB,
        lambda p: po.SGD(p, momentum=0.9, state_dtype="bfloat16"),
        lambda p: po.Adam(p, max_grad_norm=0.5, nonfinite="skip"),
        lambda p: po.Adam(p, accumulate=2),
    )
    for make in makers:  # fmt: skip
        ours, theirs = make(arrays), make(tensors)
        wrapped = po.torch.Optimizer(tensors, po.Adam)
        if not theirs._accumulate > 1:
            monkeypatch.setattr(theirs, "_checked", None)
        for seed in (1, 2):
            grads = [np.asarray(values(shape, seed)) for shape in shapes]
            ours.step(grads)
            theirs.step([torch.tensor(g) for g in grads])
        for a, t in zip(arrays, tensors, strict=True):
            assert_same_bits(a, t.detach().numpy())
        monkeypatch.setattr(wrapped._parts[0].ours, "_checked", None)
        for t in tensors:
            t.grad = torch.ones_like(t)
        before = tensors[0].item()
        wrapped.step()
        assert tensors[0].item() < before
        for a, t in zip(arrays, tensors, strict=True):
            a[...] = t.detach().numpy()


@pytest.mark.parametrize("n", [(), (1,), (3,)])
def test_a_sign_that_is_not_in_memory_is_not_lost(n):
    a = torch.complex(torch.zeros(n), torch.ones(n)).conj().imag
    p = torch.zeros(n)
    assert a.is_neg()
    with pytest.raises(TypeError, match="cannot share"):
        po.SGD(p, lr=1.0).step(a)
    assert not p.any()


def test_gradients_that_do_not_fit_are_named_as_arrays_are():
    p = [torch.zeros(4), torch.zeros(2, 2)]
    optimizer = po.SGD(p, lr=1.0)
    good = torch.ones(4)
    for bad, error, match in (
        (torch.ones(4), ValueError, r"grads\[1\] has shape \(4,\), expected \(2, 2\)"),
        (torch.ones(2, 2, dtype=torch.float64), TypeError, r"grads\[1\] has dtype float64"),
        (p[0].view(2, 2), ValueError, r"grads\[1\] overlaps a parameter"),
    ):
        with pytest.raises(error, match=match):
            optimizer.step([good, bad])
    assert not p[0].any()
    optimizer.step([good, torch.ones(4, 2)[::2]])
    assert p[1].tolist() == [[-1, -1], [-1, -1]]


def test_strided_tensors():
    base = torch.tensor(values((4, 3)))
    array, g = values((4, 3)).T.copy(), torch.tensor(values((4, 3), 1)).t()
    theirs, ours = po.Adam(base.t()), po.Adam(array)
    theirs.step(g)
    ours.step(g.numpy().copy())
    assert_same_bits(base.t().numpy().copy(), array)


def test_gradients_that_require_a_gradient():
    p = torch.ones(3, requires_grad=True)
    po.SGD(p, lr=0.5).step(p * 2)
    assert p.tolist() == [0, 0, 0]


def sparse():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.eye(3).to_sparse()


class Elsewhere:
    """A tensor on another device, as PyTorch's of Intel's GPUs."""

    def __dlpack_device__(self):
        return (14, 0)

    def __dlpack__(self, **_):
        raise AssertionError("its memory is not to be asked for")


@pytest.mark.parametrize(
    ("tensor", "match"),
    [
        (lambda: torch.ones(3, device="meta"), "Tensor that NumPy cannot share.*meta"),
        (sparse, "Tensor that NumPy cannot share.*Sparse"),
        (Elsewhere, "Elsewhere that NumPy cannot share: it is on DLPack's device 14"),
        (lambda: torch.ones(3, dtype=torch.int32), "has dtype int32"),
    ],
    ids=["meta", "sparse", "elsewhere", "integers"],
)
def test_tensors_that_cannot_be_shared(tensor, match):
    p = np.ones(3, np.float32)
    optimizer = po.Adam(p)
    before = snapshot(optimizer)
    for call, name in (
        (lambda: po.Adam(tensor()), "params"),
        (lambda: po.Adam({"w": tensor()}), r"params\['w'\]"),
        (lambda: optimizer.step(tensor()), "grads"),
    ):
        with pytest.raises(TypeError, match=f"{name} .*{match}|{name} is an? {match}"):
            call()
    assert snapshot(optimizer) == before


def test_tensors_that_are_computed_are_no_parameters():
    p = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match=r"params\[1\] is computed from other tensors"):
        po.Adam([p, p * 2])
    with pytest.raises(ValueError, match=r"params\[1\] overlaps params\[0\]"):
        po.Adam([p, p.detach()[1:]])
    with pytest.raises(ValueError, match="grads overlaps a parameter"):
        po.Adam(p).step(p.detach())


def test_torch_is_not_imported(run_python):
    code = "import sys, numpy as np, pyoptim as po; po.Adam(np.ones(3)).step(np.ones(3))"
    code += "; print('torch' in sys.modules)"
    assert run_python(code).stdout.strip() == "False"


def test_without_torch_the_error_says_so(run_python):
    assert "torch" in dir(po)
    code = "import sys; sys.modules['torch'] = None; import pyoptim as po; po.torch"
    assert "pyoptim.torch needs PyTorch" in run_python(code).stderr


# ---- states there and back ---------------------------------------------------------------------------

EXCHANGED = {
    "SGD": [{"lr": 0.1}, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}, {"momentum": 0.9, "nesterov": True}],
    "Adam": [
        {},
        {"amsgrad": True, "weight_decay": 0.1, "betas": (0.8, 0.9)},
        {"decoupled_weight_decay": True},
    ],
    "AdamW": [{"weight_decay": 0.2, "maximize": True}],
    "AMSGrad": [{"weight_decay": 0.1}],
    "Adamax": [{"eps": 0.1}],
    "NAdam": [{"momentum_decay": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True}],
    "RAdam": [{"lr": 0.1}],
    "RMSprop": [{}, {"centered": True, "momentum": 0.9}],
    "Adagrad": [{"lr_decay": 0.1, "initial_accumulator_value": 0.1}],
    "Adadelta": [{"rho": 0.5}],
    "Rprop": [{}, {"etas": (0.3, 1.5)}],
    "ASGD": [{"lambd": 0.1, "t0": 2, "lr": 0.1}],
    "Adafactor": [{}, {"d": 2.0, "weight_decay": 0.1}],
    "Muon": [{"ns_steps": 3}, {"nesterov": False, "adjust_lr_fn": "match_rms_adamw"}],
}
exchanged = pytest.mark.parametrize(
    ("name", "options"), [(n, o) for n, all_options in EXCHANGED.items() for o in all_options], ids=str
)
STEPS = 6


def theirs_of(name, params, options):
    options = {**options, "amsgrad": True} if name == "AMSGrad" else options
    return getattr(torch.optim, "Adam" if name == "AMSGrad" else name)(params, **options)


def shapes(name):
    return [(4, 3), (2, 6)] if name == "Muon" else [(4, 3), (5,), ()]


def step_theirs(optimizer, tensors, begin, end):
    for seed in range(begin, end):
        for t in tensors:
            t.grad = torch.tensor(values(tuple(t.shape), seed))
        optimizer.step()


def step_ours(optimizer, arrays, begin, end):
    for seed in range(begin, end):
        optimizer.step([np.asarray(values(a.shape, seed)) for a in arrays])


def assert_close(name, arrays, tensors):
    # PyTorch orthogonalises in bfloat16, whatever the parameter is.
    close = {"rtol": 0, "atol": 1e-2} if name == "Muon" else {"rtol": 1e-5, "atol": 1e-6}
    for a, t in zip(arrays, tensors, strict=True):
        np.testing.assert_allclose(a, t.detach().numpy(), **close)


@exchanged
def test_from_torch(name, options):
    tensors = [torch.tensor(values(shape)) for shape in shapes(name)]
    theirs = theirs_of(name, tensors, options)
    step_theirs(theirs, tensors, 1, STEPS)
    if name != "ASGD":  # whose rate PyTorch fixes a step ahead
        theirs.param_groups[0]["lr"] *= 0.5  # what is moved, not what ours was made with
    arrays = [t.numpy().copy() for t in tensors]
    fixed = {
        k: v for k, v in options.items() if k in ("momentum", "nesterov", "amsgrad", "centered", "dampening")
    }
    ours = getattr(po, name)(arrays, **({"dampening": 0.0} | fixed if name == "SGD" else fixed))
    po.torch.load_state_dict(ours, theirs.state_dict())
    for option, value in theirs.param_groups[0].items():
        if option in ours.param_groups[0] and option not in ("params", "adjust_lr_fn"):
            assert ours.param_groups[0][option] == value, option
    if name not in ("SGD", "Muon"):
        assert ours.state_dict()["state"][0]["step"] == STEPS - 1
    start = [a.copy() for a in arrays]
    step_theirs(theirs, tensors, STEPS, 2 * STEPS)
    step_ours(ours, arrays, STEPS, 2 * STEPS)
    assert_close(name, arrays, tensors)
    assert not np.allclose(start[0], arrays[0], atol=1e-5)


@exchanged
def test_to_torch(name, options):
    arrays = [values(shape) if shape else np.array(values(shape)) for shape in shapes(name)]
    ours = getattr(po, name)(arrays, **options)
    step_ours(ours, arrays, 1, STEPS)
    ours.param_groups[0]["lr"] *= 0.5
    tensors = [torch.tensor(a) for a in arrays]
    theirs = theirs_of(name, tensors, {})
    saved = po.torch.state_dict(ours)
    theirs.load_state_dict(saved)
    assert theirs.param_groups[0]["lr"] == ours.param_groups[0]["lr"]
    step_theirs(theirs, tensors, STEPS, 2 * STEPS)
    step_ours(ours, arrays, STEPS, 2 * STEPS)
    assert_close(name, arrays, tensors)
    fresh = theirs_of(name, [torch.tensor(a) for a in arrays], options)
    step_theirs(fresh, fresh.param_groups[0]["params"], 1, 2)
    kept = [
        sorted(k for k, v in entry.items() if v is not None) for entry in fresh.state_dict()["state"].values()
    ]
    assert [sorted(entry) for entry in saved["state"].values()] == [k for k in kept if k]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("way", ["load_state_dict", "data", "inplace", "copy_"])
def test_what_is_written_into_a_network_counts(dtype, way):
    """Pretrained weights are loaded after the optimizer was made, and after its first step."""
    net, trained = (torch.nn.Linear(20, 15, dtype=dtype) for _ in range(2))
    optimizer = po.torch.Optimizer(net.parameters(), po.SGD, lr=0.0)
    for _ in range(2):
        for p in trained.parameters():
            p.data.add_(1)
        for p, q in zip(net.parameters(), trained.parameters(), strict=True):
            if way == "data":
                p.data = q.data.clone()
            elif way == "inplace":
                with torch.no_grad():
                    p.clamp_(100, 100).sub_(100).add_(q)
            elif way == "copy_":
                p.data.copy_(q)
            p.grad = torch.ones_like(p)
        if way == "load_state_dict":
            net.load_state_dict(trained.state_dict())
        optimizer.step()
        for p, q in zip(net.parameters(), trained.parameters(), strict=True):
            assert torch.equal(p, q)


def test_states_before_the_first_step():
    theirs = torch.optim.Rprop([torch.ones(3)], lr=0.5)
    ours = po.Rprop(np.ones(3, np.float32), lr=0.1)
    ours.step(np.ones(3, np.float32))
    po.torch.load_state_dict(ours, theirs.state_dict())
    assert ours.state_dict()["state"][0]["step"] == 0
    assert (ours.state_dict()["state"][0]["step_size"] == 0.5).all()
    assert po.torch.state_dict(po.Adam(np.ones(3)))["state"] == {}


def test_16_bit_states():
    """Theirs of bfloat16 are widened; ours of 8 bits, too."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    t = torch.tensor(values(9)).bfloat16()
    theirs = torch.optim.Adam([t])
    t.grad = torch.ones_like(t)
    theirs.step()
    p = t.float().numpy().astype(ml_dtypes.bfloat16)
    ours = po.Adam([p])
    po.torch.load_state_dict(ours, theirs.state_dict())
    entry = ours.state_dict()["state"][0]
    assert entry["exp_avg"].dtype == entry["master"].dtype == np.float32
    assert np.array_equal(entry["exp_avg"], theirs.state[t]["exp_avg"].float().numpy())
    assert np.array_equal(entry["master"], p.astype(np.float32))

    packed = po.Adam([values(9)], state_dtype="int8")
    packed.step([values(9, 1)])
    moved = po.torch.state_dict(packed)["state"][0]
    np.testing.assert_allclose(moved["exp_avg"].numpy(), 0.1 * values(9, 1), rtol=0.1, atol=1e-2)
    assert sorted(moved) == ["exp_avg", "exp_avg_sq", "step"]


def filled(cls, **options):
    optimizer = cls([values(3)], **options)
    optimizer.step([values(3, 1)])
    return optimizer


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: filled(po.Lion), "PyTorch has no optimizer Lion"),
        (lambda: filled(po.LAMB), "PyTorch has no optimizer LAMB"),
        (lambda: filled(po.Adam, eps_root=0.1), r"param_groups\[0\] has eps_root=0.1"),
        (lambda: filled(po.Adam, eps_hat=True), "eps_hat=True"),
        (lambda: filled(po.SGD, momentum=0.9, velocity="classical"), "velocity='classical'"),
        (lambda: filled(po.RMSprop, decoupled_weight_decay=True), "decoupled_weight_decay=True"),
        (lambda: filled(po.AdamW, decoupled_weight_decay=False), "decoupled_weight_decay=False"),
        (lambda: filled(po.NAdam, momentum_decay=None), "momentum_decay=None"),
        (lambda: filled(po.Adam, lr=po.schedules.Constant(0.1)), "has lr=Constant"),
        (lambda: filled(po.Adam, accumulate=2), "an accumulation is under way"),
    ],
)
def test_what_torch_does_not_have(make, match):
    with pytest.raises(ValueError, match=match):
        po.torch.state_dict(make())


def torch_adam(**options):
    t = [torch.tensor(values(3)), torch.tensor(values(2))]
    optimizer = torch.optim.Adam(t, **options)
    step_theirs(optimizer, t, 1, 2)
    return optimizer.state_dict()


FOREIGN = {
    "nothing": (lambda s: s.clear(), "expected a mapping with state and param_groups"),
    "tensor": (lambda s: s["state"][0].update(exp_avg="x"), r"\['exp_avg'\] is a str, expected a tensor"),
    "step": (lambda s: s["state"][0].update(step="x"), r"\['step'\] is 'x'"),
    "groups": (lambda s: s["param_groups"].append({}), "2 parameter groups, expected 1"),
    "params": (lambda s: s["param_groups"][0].update(params=[0]), "has 1 parameters, expected 2"),
    "option": (lambda s: s["param_groups"][0].update(warp=9), "'warp'"),
    "lr": (lambda s: s["param_groups"][0].update(lr=-1), "lr is -1"),
    "amsgrad": (lambda s: s["param_groups"][0].update(amsgrad=True), "expected .*max_exp_avg_sq"),
    "state": (lambda s: s["state"][0].update(warp=torch.ones(3)), "warp"),
    "no state": (lambda s: s["state"][0].pop("exp_avg"), r"\['state'\]\[0\] has .*exp_avg"),
    "shape": (lambda s: s["state"][0].update(exp_avg=torch.ones(4)), r"\['exp_avg'\] has shape"),
    "steps": (lambda s: s["state"][0].update(step=torch.tensor(5.0)), "steps together"),
    "no state of one": (lambda s: s["state"].pop(1), r"no state of the parameters \[1\]"),
}


@pytest.mark.parametrize("change", FOREIGN)
def test_states_that_do_not_fit_change_nothing(change):
    alter, match = FOREIGN[change]
    saved = torch_adam(lr=0.7)
    alter(saved)
    optimizer = po.Adam([values(3), values(2)])
    optimizer.step([values(3, 1), values(2, 1)])
    before = snapshot(optimizer)
    with pytest.raises((TypeError, ValueError), match=match):
        po.torch.load_state_dict(optimizer, saved)
    assert snapshot(optimizer) == before


@pytest.mark.parametrize("value", NO_STATE_DICTS, ids=repr)
def test_what_is_no_state_dict(value):
    p = torch.nn.Parameter(torch.ones(3))
    wrapped, ours = po.torch.Optimizer([p], po.Adam), po.Adam(np.ones(3, np.float32))
    p.grad = torch.ones(3)
    wrapped.step()
    before = str(wrapped.state_dict()), snapshot(ours)
    loads = [wrapped.load_state_dict, lambda state: po.torch.load_state_dict(ours, state)]
    if "['0']" in str(value):  # PyTorch's optimizers load names, as torch.distributed writes them
        del loads[0]
    for load in loads:
        with pytest.raises(ValueError, match=r"^state_dict"):
            load(value)
    assert (str(wrapped.state_dict()), snapshot(ours)) == before


# What PyTorch takes, up to the ends of its ranges.
ENDS = [
    ("RMSprop", {"alpha": 1.0, "eps": 0.1}),
    ("RMSprop", {"alpha": 0.0}),
    ("Adadelta", {"rho": 1.0}),
    ("Adadelta", {"rho": 0.0}),
    ("ASGD", {"alpha": 1.0, "lambd": 0.1}),
    ("ASGD", {"alpha": -2.0, "lambd": 0.1}),
    ("ASGD", {"lambd": -0.1}),
    ("Rprop", {"step_sizes": (0.0, 0.0)}),
    ("Rprop", {"step_sizes": (0.0, 0.02)}),
]


@pytest.mark.parametrize(("name", "options"), ENDS, ids=str)
def test_the_ends_of_torchs_ranges(name, options):
    tensors = [torch.tensor(values((4, 3)), dtype=torch.float64)]
    array = tensors[0].numpy().copy()
    theirs = getattr(torch.optim, name)(tensors, lr=0.1, **options)
    ours = getattr(po, name)([array], lr=0.1, **options)
    for seed in range(5):
        g = values((4, 3), seed).astype(np.float64)
        tensors[0].grad = torch.tensor(g)
        theirs.step()
        ours.step([g])
    np.testing.assert_allclose(array, tensors[0].numpy(), rtol=1e-6)


def test_asgd_whose_shrinkage_has_no_power_is_refused():
    p = np.ones(2)
    optimizer = po.ASGD([p], lr=1.0, lambd=-0.5)
    optimizer.step([np.ones(2)])
    optimizer.step([np.ones(2)])
    before = snapshot(optimizer, p)
    with pytest.raises(ValueError, match=r"1 \+ lambd\*lr\*\(t-1\) is 0.0 at step 3, .* lambd is -0.5"):
        optimizer.step([np.ones(2)])
    assert snapshot(optimizer, p) == before


def test_a_change_of_lr_reaches_torchs_asgd_one_step_later():
    p, t = values(5), torch.tensor(values(5))
    ours, theirs = po.ASGD([p], lr=0.1), torch.optim.ASGD([t], lr=0.1)
    for step in range(6):
        if step == 2:
            theirs.param_groups[0]["lr"] = 0.5
        if step == 3:
            ours.param_groups[0]["lr"] = 0.5
        t.grad = torch.tensor(values(5, step))
        theirs.step()
        ours.step([values(5, step)])
        np.testing.assert_allclose(p, t.numpy(), rtol=1e-5)


# ---- ours as torch.optim.Optimizer -------------------------------------------------------------------


def network(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    return net.to(dtype)


def train(net, optimizer, steps, begin=0):
    losses = []
    for seed in range(begin, begin + steps):
        x = torch.tensor(values((16, 6), seed)).to(next(net.parameters()).dtype)
        y = torch.tensor(np.random.default_rng(seed).integers(0, 3, 16))
        loss = torch.nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def parameters(net):
    return [p.detach().numpy().copy() for p in net.parameters()]


def assert_nets_close(a, b, rtol=1e-4, atol=1e-5):
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=atol)


@exchanged
def test_the_trajectory_is_torchs(name, options):
    if name == "Muon":
        pytest.skip("it has no vectors; its states are exchanged above")
    a, b = network(), network()
    wrapped = po.torch.Optimizer(a.parameters(), getattr(po, name), **options)
    start = parameters(a)
    np.testing.assert_allclose(
        train(a, wrapped, 15), train(b, theirs_of(name, b.parameters(), options), 15), rtol=1e-4
    )
    assert_nets_close(a, b)
    assert not np.allclose(start[0], parameters(a)[0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_runs_as_itself(backend, name):
    """The bits of ours on the same gradients."""
    params = [torch.nn.Parameter(torch.tensor(values(shape))) for shape in [(4, 3), (2, 6)]]
    arrays = [p.detach().numpy().copy() for p in params]
    wrapped, ours = po.torch.Optimizer(params, OPTIMIZERS[name]), OPTIMIZERS[name](arrays)
    for seed in range(1, 6):
        grads = [values(a.shape, seed) for a in arrays]
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.tensor(g)
        wrapped.step()
        ours.step(grads)
    for p, a in zip(params, arrays, strict=True):
        assert_same_bits(p.detach().numpy(), a)
    # A state goes round, with hyperparameters that PyTorch does not have.
    other = po.torch.Optimizer(params, OPTIMIZERS[name])
    other.load_state_dict(wrapped.state_dict())
    other.step()
    ours.step(grads)
    for p, a in zip(params, arrays, strict=True):
        assert_same_bits(p.detach().numpy(), a)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"rounding": "stochastic"}, {"state_dtype": "int8"}], ids=str)
def test_dtypes_resume_with_the_same_bits(dtype, options):
    if dtype == torch.bfloat16:
        pytest.importorskip("ml_dtypes")
    if dtype == torch.float64:
        options = {}
    net = network(dtype=dtype)
    optimizer = po.torch.Optimizer(net.parameters(), po.NAdam, lr=0.01, seed=3, **options)
    before = [p.detach().clone() for p in net.parameters()]
    train(net, optimizer, 4)
    assert all((p != q).any() for p, q in zip(net.parameters(), before, strict=True))
    again = copy.deepcopy(net)
    resumed = po.torch.Optimizer(again.parameters(), po.NAdam, seed=3, **options)
    resumed.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    train(net, optimizer, 4, begin=4)
    train(again, resumed, 4, begin=4)
    for p, q in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_states_go_both_ways_between_the_wrapper_and_torch():
    nets = [network() for _ in range(3)]
    wrapped = po.torch.Optimizer(nets[0].parameters(), po.Adam, lr=0.02)
    theirs = torch.optim.Adam(nets[1].parameters(), lr=0.02)
    train(nets[0], wrapped, 5)
    train(nets[1], theirs, 5)
    mine, known = wrapped.state_dict(), theirs.state_dict()
    assert mine.keys() == known.keys()
    for i, entry in known["state"].items():
        assert mine["state"][i].keys() == entry.keys()
        for name, value in entry.items():
            torch.testing.assert_close(mine["state"][i][name], value, rtol=1e-4, atol=1e-6)
    # Each goes on with the other's.
    wrapped.load_state_dict(known)
    theirs.load_state_dict(mine)
    train(nets[0], wrapped, 5, begin=5)
    train(nets[1], theirs, 5, begin=5)
    train(nets[2], torch.optim.Adam(nets[2].parameters(), lr=0.02), 10)
    assert_nets_close(nets[0], nets[2])
    assert_nets_close(nets[1], nets[2])


def both(**options):
    a, b = network(), network()
    ours, theirs = (
        po.torch.Optimizer(a.parameters(), po.Adam, **options),
        torch.optim.Adam(b.parameters(), **options),
    )
    return a, ours, b, theirs


def test_groups_and_schedulers():
    a, b = network(), network()

    def grouped(net):
        return [{"params": net[0].parameters(), "lr": 0.1}, {"params": list(net[2].parameters())}]

    ours = po.torch.Optimizer(grouped(a), po.AdamW, lr=0.01, weight_decay=0.1)
    theirs = torch.optim.AdamW(grouped(b), lr=0.01, weight_decay=0.1)
    for net, optimizer in ((a, ours), (b, theirs)):
        steps = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[0.1, 0.02], total_steps=12)
        for i in range(12):
            train(net, optimizer, 1, begin=i)
            if i < 11:
                steps.step()
    assert [g["lr"] for g in ours.param_groups] == [g["lr"] for g in theirs.param_groups]
    assert_nets_close(a, b)
    again = po.torch.Optimizer(grouped(a), po.AdamW)
    again.load_state_dict(ours.state_dict())  # with what the scheduler noted
    assert again.param_groups[0]["initial_lr"] == ours.param_groups[0]["initial_lr"]


def test_a_group_added_later():
    a, b = network(), network()
    optimizers = []
    for net, new in ((a, lambda p: po.torch.Optimizer(p, po.Adam)), (b, torch.optim.Adam)):
        optimizer = new(net[0].parameters())
        train(net, optimizer, 3)
        optimizer.add_param_group({"params": net[2].parameters(), "lr": 0.1})
        train(net, optimizer, 4, begin=3)
        optimizers.append(optimizer)
    assert_nets_close(a, b)
    steps = [[e["step"].item() for e in o.state_dict()["state"].values()] for o in optimizers]
    assert steps == [[7, 7, 4, 4], [7, 7, 4, 4]]
    before = copy.deepcopy(optimizers[0].state_dict())
    for group, error, match in (
        ({"params": [torch.nn.Parameter(torch.ones(2))], "lr": -1.0}, ValueError, "lr is -1"),
        ({"params": [torch.ones(2, dtype=torch.int32)]}, TypeError, "int32"),
    ):
        with pytest.raises(error, match=match):
            optimizers[0].add_param_group(group)
        assert str(optimizers[0].state_dict()) == str(before)


def test_parameters_without_a_gradient_are_skipped():
    """Frozen, now and then, and from the start: their step counts stand still, as PyTorch's."""
    a, ours, b, theirs = both(lr=0.01)
    for net, optimizer in ((a, ours), (b, theirs)):
        p = list(net.parameters())
        for i in range(12):
            p[0].requires_grad_(i % 3 != 1)
            p[3].requires_grad_(i > 5)
            train(net, optimizer, 1, begin=i)
    assert_nets_close(a, b)
    steps = [[e["step"].item() for e in o.state_dict()["state"].values()] for o in (ours, theirs)]
    assert steps[0] == steps[1] == [8, 12, 12, 6]
    state = ours.state_dict()
    resumed = po.torch.Optimizer(a.parameters(), po.Adam)
    resumed.load_state_dict(state)
    for optimizer, net in ((resumed, a), (theirs, b)):
        train(net, optimizer, 3, begin=12)
    assert_nets_close(a, b)


def test_no_gradient_at_all_is_no_step():
    a, ours, _, _ = both()
    before = parameters(a)
    ours.step()
    assert all(np.array_equal(p, q) for p, q in zip(before, parameters(a), strict=True))
    assert ours.state_dict()["state"] == {}


def test_data_that_was_replaced_is_noticed():
    a, ours, b, theirs = both(lr=0.01)
    for net, optimizer in ((a, ours), (b, theirs)):
        train(net, optimizer, 3)
        for p in net.parameters():
            p.data = p.data.clone() + 0.1
        train(net, optimizer, 3, begin=3)
        if optimizer is ours:
            net.double()  # which PyTorch's own does not survive
        train(net, optimizer, 3, begin=6)
    assert next(a.parameters()).dtype == torch.float64
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q.double(), rtol=1e-4, atol=1e-5)


def test_closures_hooks_and_zero_grad():
    a, ours, b, theirs = both(lr=0.1)
    seen = []
    ours.register_step_post_hook(lambda *_: seen.append(1))
    x, y = torch.tensor(values((4, 6))), torch.tensor([0, 1, 2, 0])
    results = []
    for net, optimizer in ((a, ours), (b, theirs)):

        def closure(net=net, optimizer=optimizer):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(x), y)
            loss.backward()
            return loss

        results.append([optimizer.step(closure).item() for _ in range(5)])
    np.testing.assert_allclose(*results, rtol=1e-4)
    assert len(seen) == 5
    ours.zero_grad()
    assert all(p.grad is None for p in a.parameters())


def stepped(optimizer, p, steps=1):
    for k in range(steps):
        p.grad = torch.full_like(p, 0.5 + k)
        optimizer.step()


def test_hooks_of_every_kind_are_called_once():
    class Own(po.torch.Optimizer):
        def step(self, closure=None):
            return super().step(closure)

    for cls in (po.torch.Optimizer, Own):
        p, calls = torch.nn.Parameter(torch.ones(3)), []
        optimizer = cls([p], po.Adam)
        stepped(optimizer, p)
        handles = [
            optimizer.register_step_pre_hook(lambda *_, calls=calls: calls.append("before")),
            optimizer.register_step_post_hook(lambda *_, calls=calls: calls.append("after")),
            register_optimizer_step_pre_hook(lambda *_, calls=calls: calls.append("before any")),
            register_optimizer_step_post_hook(lambda *_, calls=calls: calls.append("after any")),
        ]
        for handle, own in zip(handles, ("before", "after", "before any", "after any"), strict=True):
            calls.clear()
            stepped(optimizer, p)
            assert calls.count(own) == 1
            handle.remove()
        calls.clear()
        stepped(optimizer, p)
        assert not calls


def test_the_profiler_sees_steps():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = po.torch.Optimizer([p], po.Adam)
    stepped(optimizer, p)
    with torch.profiler.profile() as profile:
        stepped(optimizer, p, 2)
    (event,) = [e for e in profile.key_averages() if e.key == "Optimizer.step#Optimizer.step"]
    assert event.count == 2


def test_hyperparameters_that_change_in_place_are_noticed():
    rate, betas = torch.tensor(0.1), [0.5, 0.5]
    ours, theirs = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    a = po.torch.Optimizer([ours], po.Adam, lr=0.1)
    b = po.torch.Optimizer([theirs], po.Adam, lr=0.1)
    a.param_groups[0].update(lr=rate, betas=betas)
    for lr, first in ((0.1, 0.5), (0.2, 0.5), (0.2, 0.75), (0.05, 0.25)):
        rate.fill_(lr)
        betas[0] = first
        b.param_groups[0].update(lr=rate.item(), betas=(first, 0.5))
        stepped(a, ours)
        stepped(b, theirs)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("wrapped", [False, True])
def test_autograd_notices_the_step(wrapped):
    p, g = torch.nn.Parameter(torch.ones(3)), torch.ones(3)
    optimizer = po.torch.Optimizer([p], po.SGD) if wrapped else po.SGD({"p": p}, nonfinite="skip")
    p.grad = g
    loss = (p * p).sum()
    if not wrapped:
        optimizer.step({"p": g * float("nan")})  # which is skipped
        loss.backward(retain_graph=True)
    optimizer.step(*[] if wrapped else [{"p": g}])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_autograd_notices_whatever_else_writes_parameters():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = po.SGD(p, momentum=0.9, velocity="classical")
    ema = po.averages.EMA(optimizer)
    for block in (optimizer.lookahead, ema.applied):
        before, inside = (p * p).sum(), None
        with block():
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                before.backward()
            inside = (p * p).sum()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            inside.backward()
    twin, version = copy.deepcopy(optimizer), p._version
    twin.step(torch.ones(3))  # of memory of its own
    assert p._version == version
    with torch.inference_mode():
        unversioned = torch.ones(3)
    po.SGD([unversioned], lr=1.0).step([torch.ones(3)])
    assert unversioned.tolist() == [0, 0, 0]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_whole(copied):
    a, ours, _, _ = both()
    train(a, ours, 3)
    b, again = copied((a, ours))
    train(a, ours, 3, begin=3)
    train(b, again, 3, begin=3)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)


def test_what_the_wrapper_refuses():
    p = [torch.nn.Parameter(torch.ones(3))]
    for make, error, match in (
        (
            lambda: po.torch.Optimizer(p, torch.optim.Adam),
            TypeError,
            "optimizer is .*expected a class such as",
        ),
        (lambda: po.torch.Optimizer(p, po.Optimizer), TypeError, "expected a class such as pyoptim.Adam"),
        (lambda: po.torch.Optimizer(p, po.Adam(np.ones(3))), TypeError, "expected a class"),
        (lambda: po.torch.Optimizer(p, po.Adam, warp=9), TypeError, "'warp' is no hyperparameter"),
        (lambda: po.torch.Optimizer(p, po.Adam, lr=-1), ValueError, "lr is -1"),
        (lambda: po.torch.Optimizer(None, po.Adam, lr=-1), ValueError, "lr is -1"),  # first, as in PyTorch
        (lambda: po.torch.Optimizer(None, po.Adam), TypeError, "params is None"),
        (lambda: po.torch.Optimizer(p, po.Adam, accumulate=2), TypeError, "accumulate is not for"),
        (lambda: po.torch.Optimizer(p, po.Adam, state_dtype="f3"), ValueError, "state_dtype is 'f3'"),
        (lambda: po.torch.Optimizer([torch.ones(3, dtype=torch.cfloat)], po.Adam), TypeError, "complex64"),
        (lambda: po.torch.Optimizer([torch.ones(3, device="meta")], po.Adam), TypeError, "cannot share"),
    ):
        with pytest.raises(error, match=match):
            make()
    optimizer = po.torch.Optimizer(p, po.Adam)
    p[0].grad = sparse()[0]
    with pytest.raises(TypeError, match=r"grads\[0\]\[0\] is a Tensor that NumPy cannot share"):
        optimizer.step()
    p[0].grad = None
    for alter, match in (
        (lambda s: s["param_groups"][0].update(amsgrad=True), "expected .*max_exp_avg_sq"),
        (lambda s: s["state"][0].update(exp_avg=torch.ones(4)), "has shape"),
        (lambda s: s["state"][0].pop("exp_avg"), "exp_avg"),
        (lambda s: s["param_groups"].append({"params": []}), "group"),
    ):
        p[0].grad = torch.ones(3)
        optimizer.step()
        saved = copy.deepcopy(optimizer.state_dict())
        alter(saved)
        before = str(optimizer.state_dict())
        with pytest.raises((TypeError, ValueError), match=match):
            optimizer.load_state_dict(saved)
        assert str(optimizer.state_dict()) == before


def test_a_shared_tensor_cannot_be_resized_under_us():
    t = torch.ones(64)
    po.SGD([t], lr=1.0)
    with pytest.raises(RuntimeError, match="not resizable"):
        t.resize_(200_000)


def test_signs_that_are_not_in_memory_are_refused():
    g = torch.complex(torch.zeros(3), torch.ones(3)).conj().imag
    p = torch.nn.Parameter(torch.zeros(3))
    wrapped = po.torch.Optimizer([p], po.SGD, lr=1.0)
    p.grad = g
    for step in (lambda: po.SGD([p], lr=1.0).step([g]), wrapped.step):
        with pytest.raises(TypeError, match="cannot share"):
            step()
    assert not p.detach().any()


def test_another_layout_at_the_same_address_is_noticed():
    results = []
    for make in (lambda p: po.torch.Optimizer(p, po.Adam, lr=1.0), lambda p: torch.optim.Adam(p, lr=1.0)):
        p = torch.nn.Parameter(torch.zeros(2, 2))
        optimizer = make([p])
        for transpose, g in ((False, [[1.0, 2.0], [3.0, -4.0]]), (True, [[0.0, 1.0], [0.0, 0.0]])):
            if transpose:
                p.data = p.data.t()
            p.grad = torch.tensor(g)
            optimizer.step()
        results.append(p.detach().numpy())
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-7)


def test_a_step_that_is_refused_in_one_part_moves_none():
    a, b = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = po.torch.Optimizer([a], po.Adam, lr=0.1)
    a.grad, b.grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    optimizer.add_param_group({"params": [b]})
    before = a.detach().clone()
    optimizer.param_groups[1]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr is -1"):
        optimizer.step()
    assert torch.equal(a.detach(), before)
