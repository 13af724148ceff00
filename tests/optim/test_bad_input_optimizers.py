"""What optimizers refuse: the type of the error, that it names the argument, and that nothing changed."""

import copy
import pickle
import re
import weakref

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided, sliding_window_view
from support.optimizers import NO_STATE_DICTS, OPTIMIZERS, snapshot

import pyoptim as po

NAN, INF = float("nan"), float("inf")
WRONG = (TypeError, ValueError)


def refused(optimizer, call, error, match, *arrays):
    before = snapshot(optimizer, *arrays)
    with pytest.raises(error, match=match):
        call()
    assert snapshot(optimizer, *arrays) == before


# ---- gradients -------------------------------------------------------------------------------------


def two_params(layout):
    """Two float32 parameters of shapes (3, 4) and (5,), and the memory that they lie in."""
    memory = np.arange(100, dtype=np.float32)
    if layout == "contiguous":
        return [memory[20:32].reshape(3, 4), memory[40:45]], memory
    return [memory[20:44:2].reshape(3, 4), memory[50:60:2]], memory


def gradients(*replaced):
    """Good ones, but for what is given as (index, value)."""
    good = [np.ones((3, 4), np.float32), np.ones(5, np.float32)]
    for i, value in replaced:
        good[i] = value
    return good


SECOND = {
    "list": ([1.0] * 5, TypeError, r"grads\[1\] is a list"),
    "None": (None, TypeError, r"grads\[1\] is a NoneType"),
    "float": (1.0, TypeError, r"grads\[1\] is a float"),
    "NumPy scalar": (np.float32(1), TypeError, r"grads\[1\] is a float32"),
    "bytes": (b"12345", TypeError, r"grads\[1\] is a bytes"),
    **{
        dtype: (np.ones(5).astype(dtype), TypeError, r"grads\[1\] has dtype .*, expected float32")
        for dtype in ("f8", "f2", "g", "i4", "i8", "u1", "?", "c8", "O", "S4", ">f4", "M8[s]")
    },
    "record": (np.zeros(5, [("x", "f4")]), TypeError, r"grads\[1\] has dtype"),
    "too short": (np.ones(4, np.float32), ValueError, r"grads\[1\] has shape \(4,\), expected \(5,\)"),
    "too long": (np.ones(6, np.float32), ValueError, r"grads\[1\] has shape \(6,\)"),
    "one dimension more": (np.ones((1, 5), np.float32), ValueError, r"grads\[1\] has shape \(1, 5\)"),
    "0-d": (np.ones((), np.float32), ValueError, r"grads\[1\] has shape \(\)"),
    "empty": (np.ones(0, np.float32), ValueError, r"grads\[1\] has shape \(0,\)"),
}


def packed_adam(params):
    return po.Adam(params, state_dtype="int8")


KINDS = [po.Adam, packed_adam, po.LARS, po.LAMB]  # each prepares its arrays in a way of its own


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_gradients(backend, layout, make):
    params, memory = two_params(layout)
    optimizer = make(params)
    optimizer.step(gradients())
    for value, error, match in SECOND.values():
        grads = gradients((1, value))
        refused(optimizer, lambda grads=grads: optimizer.step(grads), error, match, memory)
    transposed = gradients((0, np.ones((4, 3), np.float32)))
    refused(optimizer, lambda: optimizer.step(transposed), ValueError, r"grads\[0\] has shape", memory)

    first, second = gradients()
    for grads, error, match in (
        ([first], ValueError, "grads is a list of 1, expected 2 arrays"),
        ([first, second, second], ValueError, "grads is a list of 3, expected 2"),
        ([], ValueError, "grads is a list of 0"),
        (first, ValueError, "grads is a ndarray"),
        (None, ValueError, "grads is a NoneType"),
        (iter([first, second]), ValueError, "grads is a list_iterator"),
        ({"a": first, "b": second}, ValueError, r"grads has the names \['a', 'b'\]"),
        ([second, first], ValueError, r"grads\[0\] has shape"),
    ):
        refused(optimizer, lambda grads=grads: optimizer.step(grads), error, match, memory)

    # What has failed leaves an optimizer that works.
    twins, _ = two_params(layout)
    twin = make(twins)
    optimizer.step(gradients())
    for _ in range(2):
        twin.step(gradients())
    assert snapshot(optimizer) == snapshot(twin)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_gradients_that_overlap_what_is_written(backend, layout, make):
    params, memory = two_params(layout)
    optimizer = make(params)
    optimizer.step(gradients())
    first_state, last_state = optimizer._states[0]
    first, last = (20, 32) if layout == "contiguous" else (20, 43)
    begin = 40 if layout == "contiguous" else 50
    for i, g in (
        (0, params[0]),
        (1, params[1]),
        (1, params[1][::-1]),
        (1, params[0].ravel(order="K")[:5] if layout == "contiguous" else memory[first : last + 5 : 2][:5]),
        (1, memory[first - 4 : first + 1]),  # its last element is the first of a parameter
        (1, memory[last - 1 : last + 4]),
        (1, memory[begin - 4 : begin + 1]),
        (1, memory[begin - 8 : begin + 2 : 2]),
        (1, memory.view(np.uint8)[4 * first - 17 : 4 * first + 3].view(np.float32)),  # by three bytes
        *((0, a) for a in first_state.values() if a.dtype == np.float32 and a.shape == (3, 4)),
        *((1, a) for a in last_state.values() if a.dtype == np.float32 and a.shape == (5,)),
        *((1, np.broadcast_to(a.ravel()[:1], 5)) for a in first_state.values() if a.dtype == np.float32),
        (1, np.broadcast_to(params[1][:1], 5)),
    ):
        grads = gradients((i, g))
        match = rf"grads\[{i}\] overlaps a parameter or an optimizer state"
        refused(optimizer, lambda grads=grads: optimizer.step(grads), ValueError, match, memory)
    # Beside them is allowed, up to the last byte.
    twins, _ = two_params(layout)
    twin = make(twins)
    twin.step(gradients())
    for g in (memory[first - 5 : first], memory[last : last + 5], memory[begin - 5 : begin]):
        g[...] = 1
        optimizer.step(gradients((1, g)))
        twin.step(gradients())
    assert snapshot(optimizer) == snapshot(twin)


@pytest.mark.parametrize("make", KINDS)
def test_parameters_that_have_become_read_only_or_another_size(backend, make):
    p, q = np.ones(5, np.float32), np.ones(3, np.float32)
    optimizer = make([p, q])
    grads = [np.ones(5, np.float32), np.ones(3, np.float32)]
    optimizer.step(grads)
    q.setflags(write=False)
    refused(optimizer, lambda: optimizer.step(grads), ValueError, r"params\[1\] is read-only")
    q.setflags(write=True)
    optimizer.step(grads)
    q.resize(4, refcheck=False)
    grads[1] = np.ones(4, np.float32)
    refused(optimizer, lambda: optimizer.step(grads), ValueError, r"params\[1\] has been resized or reshaped")


def test_structures_of_gradients(backend):
    g = np.ones(2)
    cases = [
        (g, [g], TypeError, "grads is a list, expected a NumPy array"),
        (g, {"w": g}, TypeError, "grads is a dict"),
        ({"w": g}, {}, ValueError, r"grads has the names \[\], expected \['w'\]"),
        ({"w": g}, {"v": g}, ValueError, r"grads has the names \['v'\]"),
        ({"w": g}, {"w": g, "v": g}, ValueError, r"grads has the names \['w', 'v'\]"),
        ({"w": g}, [g], ValueError, r"grads is a list of 1, expected a mapping with the names \['w'\]"),
        ({"w": g}, {"w": np.ones(3)}, ValueError, r"grads\['w'\] has shape"),
        ([{"params": g}], g, ValueError, "grads is a ndarray of 2, expected a sequence of 1 groups'"),
        ([{"params": g}], [g, g], ValueError, "grads is a list of 2"),
        ([{"params": [g]}], [g], ValueError, r"grads\[0\] is a ndarray of 2, expected 1 arrays"),
        ([{"params": [g]}], [[None]], TypeError, r"grads\[0\]\[0\] is a NoneType"),
        ([{"params": {"w": g}}], [{"w": 1}], TypeError, r"grads\[0\]\['w'\] is a int"),
    ]
    for params, grads, error, match in cases:
        optimizer = po.Adam(copy.deepcopy(params))
        refused(optimizer, lambda o=optimizer, grads=grads: o.step(grads), error, match)


# ---- parameters ------------------------------------------------------------------------------------


def read_only(x):
    x.setflags(write=False)
    return x


BASE = np.zeros(20, np.float32)
PARAMS = {
    "None": (None, TypeError, "params is a NoneType"),
    "float": (1.0, TypeError, "params is a float"),
    "NumPy scalar": (np.float32(1), TypeError, "params is a float32"),
    "string": ("abc", TypeError, "params is a str"),
    "generator": ((x for x in [BASE]), TypeError, "params is a generator"),
    "list of numbers": ([1.0, 2.0], TypeError, r"params\[0\] is a float"),
    "nested list": ([BASE, [1.0]], TypeError, r"params\[1\] is a list"),
    "None in a dict": ({"w": None}, TypeError, r"params\['w'\] is a NoneType"),
    "in a group": ([{"params": [BASE, None]}], TypeError, r"params\[0\]\['params'\]\[1\] is a NoneType"),
    "group of None": ([{"params": None}], TypeError, r"params\[0\]\['params'\] is a NoneType"),
    **{
        dtype: (np.ones(3).astype(dtype), TypeError, "params has dtype .*, expected float32")
        for dtype in ("g", "i4", "i8", "u1", "?", "c8", "c16", "O", "S4", ">f4", ">f8", "M8[s]")
    },
    "record": (np.zeros(3, [("x", "f4")]), TypeError, "params has dtype"),
    "read-only": (read_only(np.ones(3)), ValueError, "params is read-only"),
    "broadcast": (np.broadcast_to(1.0, 3), ValueError, "params is read-only"),
    "twice": ([BASE, BASE], ValueError, r"params\[\d\] overlaps params\[\d\]"),
    "a view": ({"a": BASE, "b": BASE[19:]}, ValueError, r"params\['b'\] overlaps params\['a'\]"),
    "one byte": (
        [BASE[:2], BASE.view(np.uint8)[7:15].view(np.float32)],
        ValueError,
        r"params\[1\] overlaps params\[0\]",
    ),
    "interleaved": ([BASE[::2], BASE[3::3]], ValueError, r"params\[1\] overlaps params\[0\]"),
    "far apart in the list": (
        [BASE[10:], np.ones(3), np.ones(0), np.ones(4), BASE[5:11]],
        ValueError,
        r"params\[0\] overlaps params\[4\]",
    ),
    "within a large one": ([BASE, np.ones(3), BASE[3:4], BASE[:0]], ValueError, "overlaps"),
    "of another type": ([BASE, BASE[4:8].view(np.float64)], ValueError, "overlaps"),
    "in two groups": (
        [{"params": BASE}, {"params": {"w": BASE[:1]}}],
        ValueError,
        r"params\[\d\]\['params'\].* overlaps params\[\d\]\['params'\]",
    ),
    "itself": (as_strided(BASE, (3,), (0,)), ValueError, "params overlaps itself"),
    "itself, by bytes": (as_strided(BASE, (3,), (2,)), ValueError, "params overlaps itself"),
    "a window": (sliding_window_view(BASE, 3, writeable=True), ValueError, "params overlaps itself"),
}


@pytest.mark.parametrize("params", PARAMS)
def test_parameters(params):
    value, error, match = PARAMS[params]
    with pytest.raises(error, match=match):
        po.Adam(value)
    assert not BASE.any()


def test_parameters_side_by_side_are_allowed(backend):
    base = np.zeros((4, 6))
    parts = [base[:, 0], base[:, 1::2], base[::2, 2::2], base[1::2, 2:6:2], base[:0]]
    po.SGD(parts, lr=1).step([np.full(p.shape, -1.0) for p in parts])
    assert (base == 1).all()


# ---- hyperparameters -------------------------------------------------------------------------------

NO_NUMBER = [NAN, INF, -INF, "0.1", None, 1j, [0.1], np.array([0.1, 0.2]), True]
NOT_AT_LEAST_0 = [*NO_NUMBER, -1, -1e-9]
NO_SHARE = [*NOT_AT_LEAST_0, 1.5]
NO_FLAG = [0, 1, "yes", None, np.array([True, False])]
NO_EPS = [*NOT_AT_LEAST_0, (1e-30, 1e-3), (None, 1e-3), [0.1]]
NO_PAIR = [0.9, None, "ab", (0.9,), (0.9, 0.9, 0.9), (0.9, None), (NAN, 0.9)]
BAD = {
    "lr": NOT_AT_LEAST_0,
    **dict.fromkeys(("momentum", "weight_decay", "lr_decay", "eps_root", "trust"), NOT_AT_LEAST_0),
    **dict.fromkeys(("initial_accumulator_value", "t0"), NOT_AT_LEAST_0),
    "lambd": NO_NUMBER,
    "eps": NO_EPS,
    "beta2_decay": [*NO_NUMBER, 0.1],
    "d": [*NOT_AT_LEAST_0, 0.5],
    "ns_coefficients": [None, 1.0, (1.0, 2.0), (1.0, 2.0, NAN), (1.0, 2.0, "3")],
    "ns_steps": [0, -1, 1.0, "5", None, True],
    "adjust_lr_fn": ["", None, 1, "Original"],
    "momentum_decay": [v for v in NOT_AT_LEAST_0 if v is not None],
    "dampening": NO_NUMBER,
    **dict.fromkeys(("alpha", "rho"), NO_SHARE),
    **dict.fromkeys(("nesterov", "centered", "amsgrad", "eps_hat", "bias_correction"), NO_FLAG),
    **dict.fromkeys(("maximize", "decoupled_weight_decay"), NO_FLAG),
    "velocity": ["Torch", None, 1, ["torch"]],
    "amsgrad_max": ["", None, 1, ["raw"]],
    "betas": [*NO_PAIR, (1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, "0.9")],
    "etas": [*NO_PAIR, (0.5, 1.0), (1.0, 1.2), (0.0, 1.2), (1.2, 0.5)],
    "step_sizes": [*NO_PAIR, (1.0, 0.5), (-1.0, 1.0)],
}


@pytest.mark.parametrize(
    ("name", "option"), [(n, o) for n, cls in OPTIMIZERS.items() for o in cls([])._defaults]
)
def test_hyperparameters(name, option):
    is_flag = isinstance(OPTIMIZERS[name].defaults.get(option), bool)
    values = BAD.get(option, NO_FLAG if is_flag else NOT_AT_LEAST_0)
    if (name, option) == ("Adafactor", "eps"):
        values = [1e-3, None, (1e-30,), (1e-3, None), (NAN, 1e-3), (None, -1.0)]
    if (name, option) == ("ASGD", "alpha"):
        values = NO_NUMBER  # an exponent
    for value in values:
        p = BASE.reshape(4, 5)
        given = [([{"params": p, option: value}], {})]
        if option != "lr" or value is not None:  # None: the default of the class
            given.append((p, {option: value}))
        for params, options in given:
            with pytest.raises(ValueError, match=rf"^{option} is "):
                OPTIMIZERS[name](params, **options)


def test_hyperparameters_that_do_not_exist_or_do_not_go_together():
    for params, options in (BASE, {"momentun": 0.9}), ([{"params": BASE, "momentun": 0.9}], {}):
        with pytest.raises(TypeError, match=r"'momentun' is no hyperparameter, expected one of .*momentum"):
            po.SGD(params, **options)
    with pytest.raises(TypeError, match="betas"):
        po.SGD(BASE, betas=(0.9, 0.9))
    for wrong in {"momentum": 0.0}, {"momentum": 0.9, "dampening": 0.1}:
        with pytest.raises(ValueError, match="nesterov"):
            po.SGD(BASE, nesterov=True, **wrong)
    for option, values in {
        "max_grad_norm": [0, -1, NAN, "1", True],
        "nonfinite": ["Raise", None, 0],
        "accumulate": [0, -1, 1.5, None, "2", True],
        "rounding": ["", None, "Nearest"],
        "state_dtype": ["float32", "int4", 8],
        "seed": ["1", 1.5, None, -1, 2**32],
    }.items():
        for value in values:
            with pytest.raises(ValueError, match=rf"^{option} is "):
                po.SGD(BASE, **{option: value})


def fail(k):
    raise ZeroDivisionError("of the schedule")


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        *((v, ValueError, rf"lr is .*{v}.* at step 2") for v in (NAN, -1.0, INF, -INF, np.float32(NAN))),
        *((v, WRONG, r"lr is .* at step 2") for v in (None, "0.1", 1j, [0.1], np.ones(2))),
        (fail, ZeroDivisionError, "of the schedule"),
    ],
    ids=lambda v: repr(v)[:16],
)
def test_schedules_that_fail(backend, value, error, match):
    """In the last of the groups, when the others have been computed."""
    lr = (lambda k: fail(k) if k else 0.1) if value is fail else (lambda k: value if k else 0.1)
    p = [np.ones(3), np.ones(3)]
    optimizer = po.NAdam([{"params": p[0]}, {"params": p[1], "lr": lr}])
    grads = [np.ones(3), np.ones(3)]
    optimizer.step(grads)
    refused(optimizer, lambda: optimizer.step(grads), error, match)


def test_what_makes_no_sense_from_the_start_may_come_about_later():
    for wrong in {"momentum": 0.0}, {"momentum": 0.9, "dampening": 0.5}:
        with pytest.raises(ValueError, match="nesterov=True needs momentum"):
            po.SGD(np.ones(3), nesterov=True, **wrong)
        group = po.SGD(np.ones(3), momentum=0.9, nesterov=True).param_groups[0]
        group.update(wrong)


def test_every_way_to_change_a_group_is_checked():
    optimizer = po.Adam(np.ones(3), lr=0.1)
    group = optimizer.param_groups[0]
    before = dict(group)
    for change, error, match in (
        (lambda: group.__ior__({"lr": -1}), ValueError, "lr is -1"),
        (lambda: group.__ior__([("eps", 0.1), ("lr", NAN)]), ValueError, "lr is nan"),
        (lambda: group.update(lr=-1), ValueError, "lr is -1"),
        (lambda: group.setdefault("momentum", 0.9), TypeError, "'momentum' is no hyperparameter"),
        (lambda: group.pop("lr"), TypeError, "cannot be removed"),
        (lambda: group.pop("lr", None), TypeError, "cannot be removed"),
        (lambda: group.__delitem__("lr"), TypeError, "cannot be removed"),
        (group.popitem, TypeError, "cannot be removed"),
        (group.clear, TypeError, "cannot be removed"),
    ):
        with pytest.raises(error, match=match):
            change()
        assert dict(group) == before
    group |= {"lr": np.float32(0.5)}
    assert group["lr"] == group.setdefault("lr", -1) == 0.5
    assert optimizer.param_groups[0] is group


def test_an_optimizer_is_freed_at_once():
    """No cycle holds its arrays until the next garbage collection."""
    optimizer = po.Adam(np.ones(3))
    po.averages.EMA(optimizer)
    optimizer.step(np.ones(3))
    dead = weakref.ref(optimizer)
    del optimizer
    assert dead() is None


def test_attributes_are_checked_when_they_are_set():
    p = np.ones(2)
    optimizer = po.SGD(p, lr=1.0)
    for name, values in {
        "max_grad_norm": [0, -1, NAN, "1", True],
        "nonfinite": ["Raise", None, 0, ["raise"]],
        "accumulate": [0, -1, 1.5, None, True],
        "seed": [-1, 2**32, 0.5, None],
    }.items():
        before = getattr(optimizer, name)
        for value in values:
            with pytest.raises(ValueError, match=rf"^{name} is "):
                setattr(optimizer, name, value)
        assert getattr(optimizer, name) == before
    for name in ("rounding", "state_dtype"):
        with pytest.raises(ValueError, match=f"{name} is fixed"):
            setattr(optimizer, name, getattr(optimizer, name))
    optimizer.max_grad_norm, optimizer.accumulate = np.float32(0.5), np.int64(1)
    assert (type(optimizer.max_grad_norm), type(optimizer.accumulate)) == (float, int)
    optimizer.step(np.array([3.0, 4.0]))
    np.testing.assert_allclose(p, [1 - 0.3, 1 - 0.4], rtol=1e-6)


@pytest.mark.parametrize("lowered", [1, 2, 3])
def test_accumulate_can_be_lowered_half_way(backend, lowered):
    p = np.ones(2)
    optimizer = po.SGD(p, lr=1.0, accumulate=4)
    for g in (1.0, 2.0):
        optimizer.step(np.full(2, g))
    optimizer.accumulate = lowered
    optimizer.step(np.full(2, 6.0))
    assert (p == 1 - 3.0).all()  # the mean of all three


def test_a_refused_step_keeps_what_was_accumulated(backend):
    def half_way(**options):
        p = np.ones(2)
        optimizer = po.SGD(p, lr=1, accumulate=2, **options)
        optimizer.step(np.full(2, 0.5))
        return p, optimizer

    p, optimizer = half_way(nonfinite="raise")
    for g, error, match in (
        (np.ones(3), ValueError, "grads has shape"),
        (p, ValueError, "grads overlaps"),
        (np.array([1, NAN]), ValueError, "grads holds NaN"),
    ):
        refused(optimizer, lambda g=g: optimizer.step(g), error, match)
    optimizer.step(np.full(2, 1.0))
    assert (p == 0.25).all()

    p, optimizer = half_way()
    optimizer.param_groups[0]["lr"] = lambda k: NAN
    refused(optimizer, lambda: optimizer.step(np.full(2, 1.0)), ValueError, "lr is nan")
    optimizer.param_groups[0]["lr"] = 1
    optimizer.step(np.full(2, 1.0))
    assert (p == 0.25).all()


# ---- state_dict ------------------------------------------------------------------------------------


def group(saved):
    return saved["param_groups"][0]


def first(saved):
    return saved["state"][0]


STATE_DICTS = {
    "no groups": (lambda s: s.pop("param_groups"), ValueError, "state_dict.*param_groups"),
    "no state": (lambda s: s.pop("state"), ValueError, "state_dict.*state"),
    "no state of a parameter": (lambda s: s["state"].pop(1), ValueError, "state_dict.*1"),
    "state of a stranger": (lambda s: s["state"].update({7: first(s)}), ValueError, "state_dict.*7"),
    "state without a name": (
        lambda s: first(s).pop("exp_avg"),
        ValueError,
        r"\['state'\]\[0\] has .*exp_avg",
    ),
    "state of another name": (lambda s: first(s).update(foo=1), ValueError, r"\['state'\]\[0\] has .*foo"),
    "no step": (lambda s: first(s).pop("step"), ValueError, r"\['state'\]\[0\] has .*step"),
    "shape": (
        lambda s: s["state"][1].update(exp_avg=np.ones(6, np.float32)),
        ValueError,
        r"state_dict\['state'\]\[1\]\['exp_avg'\] has shape",
    ),
    "dtype": (
        lambda s: s["state"][1].update(exp_avg=np.ones(5)),
        TypeError,
        r"state_dict\['state'\]\[1\]\['exp_avg'\] has dtype",
    ),
    "byte order": (
        lambda s: s["state"][1].update(exp_avg=np.ones(5, ">f4")),
        TypeError,
        r"state_dict\['state'\]\[1\]\['exp_avg'\] has dtype",
    ),
    "list": (lambda s: s["state"][1].update(exp_avg=[1.0] * 5), TypeError, r"\['exp_avg'\] is a list"),
    "empty group": (lambda s: s["param_groups"].pop(), ValueError, "state_dict has 0 parameter groups"),
    "group too many": (lambda s: s["param_groups"].append(group(s)), ValueError, "has 2 parameter groups"),
    "no params": (lambda s: group(s).pop("params"), ValueError, "state_dict.*params"),
    "params missing": (lambda s: group(s).update(params=[0]), ValueError, "has 1 parameters, expected 2"),
    "params of nobody": (
        lambda s: group(s).update(params=[0, 7]),
        ValueError,
        r"\[0, 7\], expected each once",
    ),
    "no accumulation": (lambda s: s.update(accumulated=None), ValueError, "accumulated.*a NoneType"),
    "sums": (lambda s: s.update(accumulated={"count": 0, "sums": 0}), ValueError, "accumulated"),
    "seed": (lambda s: s.update(seed=-1), ValueError, r"state_dict\['seed'\] is -1"),
    "rounding": (lambda s: s.update(rounding="up"), ValueError, r"state_dict\['rounding'\] is 'up'"),
    "unknown option": (lambda s: group(s).update(foo=1), TypeError, "'foo' is no hyperparameter"),
    "bad option": (lambda s: group(s).update(lr=NAN), ValueError, "lr is nan"),
    "other rule": (lambda s: group(s).update(amsgrad=True), ValueError, "expected .*max_exp_avg_sq"),
    **{
        f"step is {step!r}": (
            lambda s, step=step: [entry.update(step=step) for entry in s["state"].values()],
            WRONG,
            "state_dict.*step",
        )
        for step in (-1, 2.5, NAN, "3", None)
    },
    # One step count serves a group.
    "steps that differ": (lambda s: first(s).update(step=9), ValueError, "state_dict.*step"),
}


@pytest.mark.parametrize("change", STATE_DICTS)
def test_state_dicts(change):
    alter, error, match = STATE_DICTS[change]
    params, memory = two_params("contiguous")
    optimizer = po.Adam(params)
    optimizer.step(gradients())
    saved = optimizer.state_dict()
    first(saved)["exp_avg"][...] = 7  # which must not arrive
    group(saved)["lr"] = 7.0
    alter(saved)
    refused(optimizer, lambda: optimizer.load_state_dict(saved), error, match, memory)


@pytest.mark.parametrize("value", NO_STATE_DICTS, ids=repr)
def test_what_is_no_state_dict(value):
    optimizer = po.Adam(np.ones(3))
    refused(optimizer, lambda: optimizer.load_state_dict(value), ValueError, "^state_dict")


def test_state_dict_of_another_optimizer():
    optimizer = po.Adam(np.ones(3))
    other = po.SGD(np.ones(3)).state_dict()
    refused(optimizer, lambda: optimizer.load_state_dict(other), TypeError, re.escape("'momentum'"))


def test_what_is_set_in_a_group_is_checked_there_and_then():
    p = np.ones(3)
    optimizer = po.Adam(p, lr=0.1)
    group = optimizer.param_groups[0]
    for name, value, error, message in [
        ("betas", (2, "x"), ValueError, "betas is"),
        ("eps", None, ValueError, "eps is None"),
        ("lr", 10**400, ValueError, "lr is 1000"),
        ("momentum", 0.9, TypeError, "'momentum' is no hyperparameter"),
        ("params", (p,), ValueError, "params of a group are fixed"),
    ]:
        before = dict(group)
        with pytest.raises(error, match=message):
            group[name] = value
        with pytest.raises(error, match=message):
            group.update({name: value})
        assert dict(group) == before
    group["lr"] = np.float32(0.5)
    assert type(group["lr"]) is float
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        with pytest.raises(ValueError, match="eps is -1"):
            twin.param_groups[0]["eps"] = -1
        assert twin.param_groups[0]["lr"] == 0.5
