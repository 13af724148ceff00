"""What PyTorch says about `torch.optim.Optimizer`, sentence by sentence, of ours over the same parameters."""

import copy
import functools
import io
import pickle

import numpy as np
import pytest

import pyoptim as po

torch = pytest.importorskip("torch")
schedulers = torch.optim.lr_scheduler


class Twins:
    """Ours and PyTorch's optimizer over parameters of the same values."""

    def __init__(self, name="Adam", count=3, **options):
        self.sides = []
        for make in (lambda p: po.torch.Optimizer(p, getattr(po, name), **options), None):
            params = [torch.nn.Parameter(torch.linspace(-1, 1, 4) + i) for i in range(count)]
            made = make(params) if make else getattr(torch.optim, name)(params, **copy.deepcopy(options))
            self.sides.append((params, made))
        self.steps = 0

    def both(self, change):
        """Do the same to both optimizers, given the parameters and the optimizer."""
        for params, optimizer in self.sides:
            change(params, optimizer)

    def step(self, count=2):
        for params, optimizer in self.sides:
            for k in range(self.steps, self.steps + count):
                for i, p in enumerate(params):
                    values = np.random.default_rng([i, k]).normal(size=p.shape)
                    p.grad = torch.tensor(values, dtype=p.dtype)
                optimizer.step()
        self.steps += count

    def check(self):
        (a, ours), (b, theirs) = self.sides
        for p, q in zip(a, b, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
        for p, q in zip(a, b, strict=True):
            if theirs.state:  # SGD's has none without momentum
                assert (p in ours.state) == (q in theirs.state)
            for name, value in theirs.state.get(q, {}).items():
                torch.testing.assert_close(torch.as_tensor(ours.state[p][name]), torch.as_tensor(value))


def exchange(params, optimizer):
    params[0] = torch.nn.Parameter(torch.zeros(4))
    optimizer.param_groups[0]["params"][0] = params[0]


def append(params, optimizer):
    params.append(torch.nn.Parameter(torch.ones(5)))
    optimizer.param_groups[0]["params"].append(params[-1])


def new_state(params, optimizer):
    optimizer.state = type(optimizer.state)(dict, {params[0]: optimizer.state[params[0]]})


def entry_of(params, optimizer):
    return optimizer.state[params[0]]


CHANGES = {
    "exchanged": exchange,
    "appended": append,
    "deleted": lambda p, o: o.param_groups[0]["params"].pop(1),
    "moved to another group": lambda p, o: o.param_groups.append(
        {**o.param_groups[0], "params": [o.param_groups[0]["params"].pop()], "lr": 0.5}
    ),
    "a group deleted": lambda p, o: (
        o.add_param_group({"params": [p[0].detach().clone()]}),
        o.param_groups.pop(),
    ),
    "moments written": lambda p, o: entry_of(p, o)["exp_avg"].zero_(),
    "moments replaced": lambda p, o: entry_of(p, o).update(exp_avg=torch.ones(4)),
    "moments given other memory": lambda p, o: setattr(entry_of(p, o)["exp_avg"], "data", torch.ones(4)),
    "moments set to other memory": lambda p, o: entry_of(p, o)["exp_avg"].set_(torch.ones(4)),
    "step given other memory": lambda p, o: setattr(entry_of(p, o)["step"], "data", torch.tensor(9.0)),
    "step written": lambda p, o: entry_of(p, o)["step"].fill_(20.0),
    "step replaced": lambda p, o: entry_of(p, o).update(step=torch.tensor(5.0)),
    "an entry deleted": lambda p, o: o.state.pop(p[1]),
    "cleared": lambda p, o: o.state.clear(),
    "another mapping": new_state,
    "a key of the user's own": lambda p, o: entry_of(p, o).update(ema=torch.ones(2)),
    "frozen": lambda p, o: p[0].requires_grad_(False),
    "other data": lambda p, o: setattr(p[0], "data", torch.ones(4)),
}


@pytest.mark.parametrize("read_before", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_written_counts_from_the_next_step_on(change, read_before):
    twins = Twins(lr=0.1)
    if read_before:
        twins.both(lambda params, optimizer: optimizer.state)
    twins.step()
    twins.both(CHANGES[change])
    twins.step(3)
    twins.check()
    twins.both(CHANGES["moments written"])
    twins.step()
    twins.check()


def test_without_the_compiled_part_what_is_written_counts_too(monkeypatch):
    monkeypatch.setattr(po.torch, "_native", None)
    for change in CHANGES:
        test_what_is_written_counts_from_the_next_step_on(change, True)


def test_what_is_not_written_is_not_taken_over_again(monkeypatch):
    (params, ours), _ = Twins().sides
    for p in params:
        p.grad = torch.ones(4)
    ours.state[params[0]]["of the user's own"] = {"a list": [torch.ones(3).to_sparse()]}
    ours.state["no parameter"] = torch.ones(3).to_sparse()
    ours.step()
    monkeypatch.setattr(ours, "_regroup", lambda *_: pytest.fail("the state was taken for another"))
    for _ in range(3):
        ours.step()
        assert ours.state[params[0]]["step"] == ours._parts[0].ours.state_dict()["state"][0]["step"]


def add_a_group(params, optimizer):
    params.append(torch.nn.Parameter(torch.ones(5)))
    optimizer.add_param_group({"params": [params[-1]], "lr": 0.2, "momentum": 0.9, "dampening": 0.5})


DOORS = {
    "none": lambda p, o: None,
    "exchanged": exchange,
    "appended": append,
    "a group added": add_a_group,
    "the state read": lambda p, o: o.state,
    "saved and loaded": lambda p, o: o.load_state_dict(o.state_dict()),
    "a skipped gradient": lambda p, o: (setattr(p[0], "grad", None), o.step()),
}


@pytest.mark.parametrize("read_before", [False, True])
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("twice", [False, True])
def test_a_first_momentum_is_not_damped(door, read_before, twice):
    twins = Twins("SGD", lr=0.1)
    if read_before:
        twins.both(lambda params, optimizer: optimizer.state)
    twins.step()
    twins.both(lambda params, optimizer: optimizer.param_groups[0].update(momentum=0.9, dampening=0.5))
    for _ in range(1 + twice):
        twins.both(DOORS[door])
    twins.step()
    twins.check()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_know_that_momentum_is_to_begin(copied):
    twins = Twins("SGD", lr=0.1)
    twins.step()
    twins.both(lambda params, optimizer: optimizer.param_groups[0].update(momentum=0.9, dampening=0.5))
    twins.both(add_a_group)
    twins.sides = [copied(side) for side in twins.sides]
    twins.step()
    twins.check()


def test_a_state_that_was_read_stays_up_to_date():
    twins = Twins()
    held = [optimizer.state for _, optimizer in twins.sides]
    for _ in range(3):
        twins.step(1)
        for (params, _), state in zip(twins.sides, held, strict=True):
            assert state[params[0]]["step"] == twins.steps
    moments = [state[params[0]]["exp_avg"] for (params, _), state in zip(twins.sides, held, strict=True)]
    twins.step()
    torch.testing.assert_close(*moments)
    for m in moments:
        m.mul_(0.5)
    twins.step()
    twins.check()


def test_state_dicts_are_copies():
    (params, ours), _ = Twins().sides
    params[0].grad = torch.ones(4)
    ours.step()
    saved = ours.state_dict()
    before = copy.deepcopy(saved)
    ours.step()
    assert str(saved) == str(before)


def test_groups_have_keys_of_their_own():
    p, q = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    made = [po.torch.Optimizer([{"params": [p], "name": "w", "lr_scale": 0.5}], po.SGD) for _ in range(2)]
    made[0].add_param_group({"params": [q], "layer": "body"})
    made[0].param_groups[0]["layer"] = "head"
    made[1].add_param_group({"params": [q]})
    file = io.BytesIO()
    torch.save(made[0].state_dict(), file)
    file.seek(0)
    made[1].load_state_dict(torch.load(file, weights_only=True))
    for optimizer in made:
        assert [g["layer"] for g in optimizer.param_groups] == ["head", "body"]
        assert (optimizer.param_groups[0]["name"], optimizer.param_groups[0]["lr_scale"]) == ("w", 0.5)


def test_load_state_dict_hooks_change_what_is_loaded():
    twins = Twins()
    twins.step()

    def halved(optimizer, state_dict):
        state = {
            k: {**e, "exp_avg": e["exp_avg"] / 2, "step": e["step"] + 5}
            for k, e in state_dict["state"].items()
        }
        return {**state_dict, "state": state}

    seen = []

    def load(params, optimizer):
        optimizer.register_load_state_dict_pre_hook(halved)
        optimizer.register_load_state_dict_post_hook(lambda o: seen.append(o.state[params[0]]["step"].item()))
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    twins.both(load)
    assert seen == [7, 7]
    twins.step()
    twins.check()


def test_state_dict_hooks_see_and_change_what_is_saved():
    twins = Twins()
    twins.step()

    def save(params, optimizer):
        optimizer.register_state_dict_pre_hook(lambda o: o.state[params[0]]["exp_avg"].zero_())
        optimizer.register_state_dict_post_hook(lambda o, saved: {**saved, "note": 1})
        saved = optimizer.state_dict()
        assert saved["note"] == 1
        assert not saved["state"][0]["exp_avg"].any()

    twins.both(save)
    twins.step()
    twins.check()


@pytest.mark.parametrize("shape", [(), (1,)])
def test_learning_rates_are_tensors_too(shape):
    lr = torch.tensor(0.1).reshape(shape)
    twins = Twins(lr=lr)
    assert twins.sides[0][1].param_groups[0]["lr"] is lr
    twins.step()
    twins.both(lambda params, optimizer: optimizer.param_groups[0]["lr"].fill_(0.01))
    twins.step()
    twins.check()
    with pytest.raises(ValueError, match="lr is tensor"):
        Twins(lr=torch.ones(2))


SCHEDULERS = {
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, max_lr=0.1, total_steps=9),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "CyclicLR to no momentum": lambda o: schedulers.CyclicLR(
        o, 0.01, 0.1, step_size_up=2, base_momentum=0.0, max_momentum=0.9
    ),
    "StepLR": lambda o: schedulers.StepLR(o, 3),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [2, 5]),
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda k: 0.9**k),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda k: 0.9),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: schedulers.LinearLR(o, 0.1, 1.0, 5),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 6),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 3),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.ConstantLR(o), schedulers.ExponentialLR(o, 0.9)], [3]
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o), schedulers.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=0.05),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=1),
}


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(name, scheduler):
    if scheduler == "CyclicLR to no momentum" and name == "Adam":
        pytest.skip("its betas are as in CyclicLR")
    twins = Twins(name, lr=0.05)
    made = []
    twins.both(lambda params, optimizer: made.append(SCHEDULERS[scheduler](optimizer)))
    for _ in range(8):
        twins.step(1)
        for one in made:
            one.step(*[1.0] if scheduler == "ReduceLROnPlateau" else [])
        first, second = (optimizer.param_groups[0] for _, optimizer in twins.sides)
        assert first["lr"] == second["lr"]
    twins.check()


def test_distributed_checkpoints():
    dcp = pytest.importorskip("torch.distributed.checkpoint.state_dict")
    nets, optimizers = [], []
    for seed in (0, 1):
        torch.manual_seed(seed)
        nets.append(torch.nn.Linear(3, 2))
        optimizers.append(po.torch.Optimizer(nets[-1].parameters(), po.Adam, lr=0.1 + seed))
    for _ in range(3):
        for p in nets[0].parameters():
            p.grad = torch.ones_like(p)
        optimizers[0].step()
    saved = dcp.get_optimizer_state_dict(nets[0], optimizers[0])
    dcp.set_optimizer_state_dict(nets[1], optimizers[1], saved)
    states = [optimizer.state_dict() for optimizer in optimizers]
    assert states[1]["param_groups"][0]["lr"] == 0.1
    assert str(states[1]["state"]) == str(states[0]["state"])


def test_zero_grad():
    twins = Twins()
    twins.step()
    for params, optimizer in twins.sides:
        optimizer.zero_grad(set_to_none=False)
        assert all(p.grad is not None and not p.grad.any() for p in params)
        optimizer.zero_grad()
        assert all(p.grad is None for p in params)


@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize("trigger", ["nothing", "another group", "no gradient", "a state that is read"])
def test_momentum_that_one_group_turns_on_is_of_that_group(late, trigger):
    """The other group, which steps together with it, keeps its own, whatever makes the parts anew then."""
    ends = []
    for make in (torch.optim.SGD, functools.partial(po.torch.Optimizer, optimizer=po.SGD)):
        a, b, c, d = (torch.nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(4))
        groups = [{"params": [a, d], "momentum": 0.9}, {"params": [b], "momentum": 0.9}]
        groups[late]["momentum"] = 0.0
        optimizer = make(groups, lr=0.1, dampening=0.5)
        for t in range(8):
            for i, p in enumerate((a, b, c, d)):
                p.grad = torch.full((2,), i + t + 1.0, dtype=torch.float64)
            if t == 5:
                optimizer.param_groups[late]["momentum"] = 0.9
                if trigger == "another group":
                    optimizer.add_param_group({"params": [c], "momentum": 0.5})
                elif trigger == "no gradient":
                    d.grad = None
                elif trigger == "a state that is read":
                    assert optimizer.state[a if late else b]
            optimizer.step()
        ends.append([p.detach().clone() for p in (a, b, c, d)])
    torch.testing.assert_close(*ends, rtol=1e-12, atol=0)


def test_gradient_scalers_leave_out_what_is_not_finite():
    (params, ours), _ = Twins().sides
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(sum((p * p).sum() for p in params)).backward()
    scaler.step(ours)
    scaler.update()
    assert ours.state[params[0]]["step"] == 1
    params[0].grad.fill_(torch.inf)
    scaler.unscale_(ours)
    scaler.step(ours)
    assert ours.state[params[0]]["step"] == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_have_what_was_written(copied):
    twins = Twins()
    twins.step()
    twins.both(lambda params, optimizer: optimizer.state[params[0]]["step"].fill_(9.0))
    for k, (params, optimizer) in enumerate(twins.sides):
        twins.sides[k] = copied((params, optimizer))
    twins.step()
    twins.check()


def test_a_state_that_cannot_be_is_named_and_nothing_moves():
    (params, ours), _ = Twins().sides
    for p in params:
        p.grad = torch.ones(4)
    ours.step()
    before = [p.detach().clone() for p in params]
    ours.state[params[1]]["exp_avg"] = torch.ones(5)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"\['exp_avg'\] has shape \(5,\)"):
            ours.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    ours.state[params[1]]["exp_avg"] = torch.ones(4)
    ours.step()
    assert not torch.equal(params[0], before[0])
