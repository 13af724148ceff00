"""Updates: against the float64 oracles, against PyTorch, and bit for bit between backends and layouts."""

import inspect
import itertools
import math
import pickle
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.optimizers import CASES, ORACLES, case_id, trajectory
from support.backends import LIVE, running_on, use_threads
from support.optimizers import STEPS, assert_same_bits, hard_values, make, plain_gradients, rule_of, states

import pyoptim as po
from pyoptim.formulas.rules import RULES

RULE_CASES = list({rule_of(case): case for case in reversed(CASES)}.values())[::-1]  # the first of each

every_case = pytest.mark.parametrize("case", CASES, ids=case_id)
every_rule = pytest.mark.parametrize("case", RULE_CASES, ids=rule_of)


def test_every_rule_has_a_case():
    assert {rule_of(case) for case in RULE_CASES} == set(RULES)


# ---- formulas --------------------------------------------------------------------------------------


@every_case
def test_fifty_steps_against_the_oracle(backend, dtype, case):
    grads = plain_gradients(dtype)
    p = np.random.default_rng(2).normal(size=grads[0].shape).astype(dtype)
    points, expected = trajectory(*case, p, grads)

    # The parameter is rounded once a step, by at most half an ulp of its size. The relative error of a
    # state grows by at most four roundings a step (two products, a sum, a coefficient), and so does that
    # of a move. eps is two roundings: in float64 the oracle rounds too.
    start, eps = p.copy(), np.finfo(dtype).eps
    moves = np.abs(np.diff([start.astype(np.float64), *points], axis=0))
    amplified = 4 * ORACLES[case[0]].amplification
    bound = STEPS * eps * (np.abs(points).max() + amplified * moves.max(axis=(1, 2)).sum())
    # What does nothing fails, and so does what leaves out the last step.
    assert np.abs(points[-1] - start).max() > 20 * bound
    assert moves[-1].max() > 5 * bound

    optimizer = make(case, p)
    for g in grads:
        optimizer.step(g)
    np.testing.assert_allclose(p, points[-1], rtol=0, atol=bound)
    state = optimizer.state_dict()["state"][0]
    assert state.pop("step") == STEPS
    for name, value in state.items():
        if name == "mu_product" and name not in expected:
            continue  # momentum_decay=None has a closed form
        wanted = expected[name]
        np.testing.assert_allclose(value, wanted, rtol=0, atol=4 * STEPS * eps * np.abs(wanted).max())
        assert np.shape(value) == np.shape(wanted)


def product(**options):
    return [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]


decay = {"weight_decay": (0, 0.1), "maximize": (False, True)}
betas = {"betas": ((0.9, 0.999), (0.8, 0.9)), "eps": (1e-8, 0.1)}
TORCH = {
    "SGD": [
        o
        for o in product(momentum=(0, 0.9), dampening=(0, 0.5), nesterov=(False, True), **decay)
        if not o["nesterov"] or (o["momentum"] and not o["dampening"])
    ],
    "Adagrad": product(lr_decay=(0, 0.1), initial_accumulator_value=(0, 0.1), eps=(1e-10, 0.1), **decay),
    "RMSprop": product(
        alpha=(0.99, 0.9), eps=(1e-8, 0.1), momentum=(0, 0.9), centered=(False, True), **decay
    ),
    "Adadelta": product(rho=(0.9, 0.5), eps=(1e-6, 0.1), **decay),
    "Adam": product(**betas, amsgrad=(False, True), decoupled_weight_decay=(False, True), **decay),
    "AdamW": product(**betas, amsgrad=(False, True), **decay),
    "Adamax": product(**betas, **decay),
    "NAdam": product(**betas, momentum_decay=(4e-3, 0.1), decoupled_weight_decay=(False, True), **decay),
    "RAdam": product(**betas, decoupled_weight_decay=(False, True), **decay),
    "Rprop": product(
        etas=((0.5, 1.2), (0.3, 1.5)), step_sizes=((1e-6, 50), (1e-3, 0.02)), maximize=(False, True)
    ),
    "ASGD": product(lambd=(1e-4, 0.1), alpha=(0.75, 0.5), t0=(1e6, 3), **decay),
    "Adafactor": product(beta2_decay=(-0.8, -0.5), eps=((None, 1e-3), (0.5, 0.1)), d=(1.0, 2.0), **decay),
    "Muon": product(
        momentum=(0.95, 0.5),
        nesterov=(False, True),
        ns_coefficients=((3.4445, -4.775, 2.0315), (2.0, -1.5, 0.5)),
        eps=(1e-7, 1.0),
        ns_steps=(5, 2),
        adjust_lr_fn=("original", "match_rms_adamw"),
        weight_decay=(0, 0.1),
    ),
}
# Half of them, of every option's values, with another learning rate: twice as many would find no more.
TORCH = {
    name: [{**options, "lr": (0.03, 0.004)[i.bit_count() % 2]} for i, options in enumerate(cases)]
    for name, cases in TORCH.items()
}


@pytest.fixture
def torch_in_double():
    torch = pytest.importorskip("torch")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # of its step counts, mu_product and eta
    yield torch
    torch.set_default_dtype(before)


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("defaults", [False, True])
def test_against_torch(name, defaults, torch_in_double):
    torch = torch_in_double
    their_class = getattr(torch.optim, name)
    rng = np.random.default_rng(3)
    start = [rng.normal(size=shape) for shape in ((4, 3), (1, 5) if name == "Muon" else (5,))]
    for options in [{}] if defaults else TORCH[name]:
        ours = [p.copy() for p in start]
        theirs = [torch.tensor(p) for p in start]
        # PyTorch orthogonalises in bfloat16, whatever the parameter is: 2.5% of the way of twelve steps.
        muons = {"rtol": 0, "atol": 0.3 * options.get("lr", 1e-3)}
        close = muons if name == "Muon" else {"rtol": 1e-12, "atol": 1e-14}
        mine = getattr(po, name)(ours, **options)
        other = their_class(theirs, **options)
        for g in plain_gradients(np.float64)[:12]:
            grads = [g.ravel()[:12].reshape(4, 3).copy(), g.ravel()[12:17].reshape(start[1].shape).copy()]
            mine.step(grads)
            for p, one in zip(theirs, grads, strict=True):
                p.grad = torch.tensor(one)
            other.step()
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            np.testing.assert_allclose(p, q.numpy(), **close, err_msg=str(options))
            assert not np.allclose(start[i], q.numpy(), **close)
            state = mine.state_dict()["state"][i]
            known = {k: v for k, v in other.state_dict()["state"].get(i, {}).items() if v is not None}
            arrays = {k for k, v in known.items() if v.ndim}
            assert arrays == {k for k, v in state.items() if np.ndim(v)}, options
            assert set(state) - arrays <= {"step", "mu_product"}
            for key in set(state) & set(known):
                theirs_now = known[key].numpy()
                assert np.shape(state[key]) == theirs_now.shape
                np.testing.assert_allclose(state[key], theirs_now, rtol=1e-12, atol=1e-14, err_msg=key)


def test_nadam_can_be_keras_s():
    """Its ramp is ``beta1 * (1 - 0.5 * 0.96**t)``."""
    grads = plain_gradients(np.float64)
    p = np.ones(grads[0].shape)
    optimizer = po.NAdam(p, lr=1e-3, eps=1e-7, momentum_decay=1.0)
    expected, m, v, product = p.copy(), 0.0, 0.0, 1.0
    for t, g in enumerate(grads, 1):
        optimizer.step(g)
        now, after = (0.9 * (1 - 0.5 * 0.96**k) for k in (t, t + 1))
        product *= now
        m, v = m + (g - m) * 0.1, v + (g * g - v) * 0.001
        m_hat = after * m / (1 - product * after) + (1 - now) * g / (1 - product)
        expected -= m_hat * 1e-3 / (np.sqrt(v / (1 - 0.999**t)) + 1e-7)
    np.testing.assert_allclose(p, expected, rtol=1e-12)


# Keywords of PyTorch's that no comparison can need: they choose how it runs, not what it computes.
MACHINERY = {"params", "foreach", "fused", "capturable", "differentiable"}


@pytest.mark.parametrize("name", TORCH)
def test_every_torch_keyword_is_compared(name):
    """With two values at least, so that one of them is not what it would be without."""
    torch = pytest.importorskip("torch")
    known = set(inspect.signature(getattr(torch.optim, name)).parameters) - MACHINERY
    values = {key: {str(options[key]) for options in TORCH[name]} for key in TORCH[name][0]}
    assert set(values) == known
    assert min(map(len, values.values())) >= 2


# ---- the same bits everywhere ----------------------------------------------------------------------

LARGEST = 200_003  # pays for three threads of Numba's


def hard_run(case, dtype, lengths, steps=20):
    """Parameters and states (as one long array each) after steps on arrays of these lengths."""
    name, options = case
    whole = hard_values(99, dtype, LARGEST)
    params = [whole[:n].copy() for n in lengths]
    optimizer = getattr(po, name)(params, **{"weight_decay": 0.01, **options})
    for t in range(steps):
        g = hard_values(t, dtype, LARGEST)
        optimizer.step([g[:n] for n in lengths])
    return [
        {"param": p, **{k: v for k, v in optimizer.state_dict()["state"][i].items() if np.ndim(v)}}
        for i, p in enumerate(params)
    ]


@cache
def expected_bits(name, options, dtype):
    with running_on("numpy"):
        return hard_run((name, dict(options)), dtype, [LARGEST])[0]


SHORT = [0, 1, 2, 3, 15, 16, 17, 63, 64, 65, 1000]  # around vectors of every width
WALK = [0, 1, 40_000, 0, 63, 16_385, 65, 20_001, 0]  # threads that begin and end inside arrays
# Around what pays for a second thread, and for a third.
RUNS = {
    1: [SHORT, [16383], [16384], [16385], [32767], [32769]],
    2: [[32768], [32769], WALK],
    3: [[100_003], WALK],
}


@every_rule
def test_same_bits_on_every_engine(backend, dtype, case):
    name, options = case
    expected = expected_bits(name, tuple(options.items()), dtype)
    assert np.isfinite(expected["param"]).mean() > 0.8  # not a comparison of NaN with NaN
    for threads, runs in RUNS.items():
        for lengths in [*runs, [LARGEST]] if threads == 3 and backend == "numba" else runs:
            with use_threads(threads):
                run = hard_run(case, dtype, lengths)
            for n, got in zip(lengths, run, strict=True):
                for key, value in got.items():
                    assert_same_bits(value, expected[key][:n], f"{key}, {threads} threads, length {n}")


def embed(x, kind):
    """The same values in another layout."""
    if kind == "one element off":
        out = np.empty(x.size + 1, x.dtype)[1:].reshape(x.shape)
    elif kind == "one byte off":
        out = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    elif kind == "strided":
        out = np.empty((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)[..., ::2]
    elif kind == "a column of many":
        out = np.empty((*x.shape, 3), x.dtype)[..., 1]
    elif kind == "reversed":
        out = np.empty_like(x)[::-1, ::-1]
    elif kind == "Fortran":
        out = np.empty_like(x, order="F")
    elif kind == "unpickled":  # its dtype is an object of its own
        return pickle.loads(pickle.dumps(x))
    elif kind == "dtype with metadata":
        out = np.empty_like(x, dtype=np.dtype(x.dtype, metadata={"unit": "m"}))
    elif kind == "memory map":
        return np.frombuffer(bytearray(x.tobytes()), x.dtype).reshape(x.shape)
    elif kind == "axes of length 1":
        out = np.empty((x.shape[0], 5, x.shape[1]), x.dtype)[:, 2:3, :].swapaxes(0, 1)
        out[...] = x
        return out
    out[...] = x
    return out


LAYOUTS = [
    "one element off",
    "one byte off",
    "strided",
    "a column of many",
    "reversed",
    "Fortran",
    "unpickled",
    "dtype with metadata",
    "memory map",
    "axes of length 1",
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("of", ["param", "grad", "both"])
def test_layouts(backend, dtype, layout, of):
    x, grads = np.arange(15.0).reshape(3, 5).astype(dtype), plain_gradients(dtype)[:5, :, :5]
    plain = x.copy()
    reference = po.AdamW(plain, lr=0.1)
    p = embed(x, layout) if of != "grad" else x.copy()
    optimizer = po.AdamW(p, lr=0.1)
    for g in grads:
        g = np.ascontiguousarray(g)
        reference.step(g)
        optimizer.step((embed(g, layout) if of != "param" else g.copy()).reshape(p.shape))
    assert (plain != x).all()  # they did step
    assert_same_bits(p.reshape(x.shape), plain)
    for (_, name), value in states(optimizer).items():
        assert_same_bits(np.reshape(value, np.shape(states(reference)[0, name])), states(reference)[0, name])


def test_gradients_are_only_read(backend, dtype):
    p = np.ones((3, 4), dtype)
    optimizer = po.Adam(p, lr=0.5, weight_decay=0.1, maximize=True)
    g = np.full((3, 4), 2, dtype)
    g.setflags(write=False)
    optimizer.step(g)
    optimizer.step(np.broadcast_to(dtype(2), (3, 4)))
    expected = np.ones((3, 4), dtype)
    twin = po.Adam(expected, lr=0.5, weight_decay=0.1, maximize=True)
    for _ in range(2):
        twin.step(np.full((3, 4), 2, dtype))
    assert_same_bits(p, expected)
    assert (p != 1).all()
    assert (g == 2).all()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1), (0,), (3, 0, 2), (2, 3, 4, 5)], ids=str)
def test_shapes(backend, dtype, shape):
    p, g = np.ones(shape, dtype), np.full(shape, 0.5, dtype)
    optimizer = po.Adam({"w": p}, lr=0.25)
    optimizer.step({"w": g})
    np.testing.assert_allclose(p, np.full(shape, 0.75), rtol=1e-6)
    assert states(optimizer)[0, "exp_avg"].shape == shape


def test_subclasses_of_ndarray_are_plain_arrays(backend):
    """Another product must not change what an update is."""

    class Odd(np.ndarray):
        def __mul__(self, other):
            return self

    x, g = np.ones((2, 2)), np.array([[1.0, 2.0], [3.0, 4.0]])
    expected, odd_param, odd_grad = x.copy(), x.copy(), x.copy()
    po.Adagrad(expected, lr=0.5).step(g)
    po.Adagrad(odd_param.view(Odd), lr=0.5).step(g)
    po.Adagrad(odd_grad, lr=0.5).step(g.view(Odd))
    assert_same_bits(odd_param, expected)
    assert_same_bits(odd_grad, expected)


OF_WHOLE_TENSORS = ("LARS", "LAMB", "Adafactor", "Muon")
LAYOUT_CASES = [*RULE_CASES, *((name, {}) for name in ORACLES if name not in dict(RULE_CASES))]


@st.composite
def views(draw, dims):
    """The shape of a base array, 0-d and empty ones too, and a view of it by slices and a transposition."""
    shape = draw(st.lists(st.integers(0, 40), min_size=dims[0], max_size=dims[1]))
    if len(shape) == 3:
        shape = [n % 13 for n in shape]
    steps = [draw(st.sampled_from([1, 1, 2, 3, -1, -2])) for _ in shape]
    axes = draw(st.permutations(range(len(shape))))
    return shape, lambda base: base[(*(slice(None, None, step) for step in steps), ...)].transpose(axes)


@pytest.mark.skipif(not LIVE, reason="no backend")
@pytest.mark.parametrize("case", LAYOUT_CASES, ids=case_id)
@settings(max_examples=20, deadline=None, database=None)
@given(data=st.data())
def test_layouts_and_splits_change_no_bit(case, data):
    """One contiguous array; and a view, cut along an axis where the optimizer looks at single elements."""
    name, _ = case
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    shape, view = data.draw(views((2, 2) if name == "Muon" else (0, 3)))
    axis = data.draw(st.integers(0, max(len(shape) - 1, 0)))
    cuts = sorted(data.draw(st.lists(st.integers(0, 40), max_size=4)))
    strided_gradients = data.draw(st.booleans())
    splits = len(shape) > 0 and name not in OF_WHOLE_TENSORS

    def split(array):
        return np.split(array, cuts, axis) if splits else [array]

    def joined(pieces):
        return np.concatenate(pieces, axis) if splits else pieces[0]

    base, *grads = np.random.default_rng(5).normal(size=(4, *shape)).astype(dtype)
    base, grads = np.asarray(base), [np.asarray(g) for g in grads]  # of a 0-d one they are scalars
    bits = []
    for backend in LIVE:
        with running_on(backend):
            whole = np.array(view(base), order="C")
            parts = split(view(base.copy()))
            one, many = make(case, whole), make(case, parts)
            for g in grads:
                g = view(g) if strided_gradients else np.array(view(g), order="C")
                one.step(np.array(g, order="C"))
                many.step(split(g))
        assert_same_bits(joined(parts), whole, backend)
        arrays = {key: value for (_, key), value in states(one).items() if np.ndim(value) or not shape}
        for key, value in arrays.items():
            pieces = [states(many)[i, key] for i in range(len(parts))]
            assert_same_bits(joined(pieces), value, f"{backend}: {key}")
        assert whole.size == 0 or (whole != view(base)).any()
        if name not in OF_WHOLE_TENSORS:  # those add up, in each backend's own order
            bits.append(whole)
            assert_same_bits(whole, bits[0], f"{backend} and {LIVE[0]}")


@pytest.mark.parametrize("name", ORACLES)
def test_changing_the_backend_between_steps_changes_nothing(name):
    grads = plain_gradients(np.float64)[: 3 * len(LIVE)]
    p = np.random.default_rng(8).normal(size=grads[0].shape)
    points, _ = trajectory(name, {"lr": 0.1}, p, grads)
    optimizer = getattr(po, name)(p, lr=0.1)
    for t, (g, expected) in enumerate(zip(grads, points, strict=True)):
        with running_on(LIVE[t % len(LIVE)]):  # each of them again and again
            optimizer.step(g)
        np.testing.assert_allclose(p, expected, rtol=1e-9, atol=1e-11, err_msg=f"{LIVE[t % len(LIVE)]}, {t}")


@pytest.mark.parametrize("name", ["LARS", "LAMB", "Adafactor", "Muon"])
def test_same_bits_for_every_number_of_threads(backend, dtype, name):
    """What looks at a whole tensor adds up: in an order that the threads do not change."""
    rng = np.random.default_rng(9)
    start, *grads = rng.normal(size=(3, 64, 3100)).astype(dtype)  # worth three threads
    results = []
    for threads in (1, 2, 3, 2):
        p = start.copy()
        optimizer = getattr(po, name)(p, weight_decay=0.01)
        with use_threads(threads):
            for g in grads:
                optimizer.step(g)
        results.append(p)
    assert (results[0] != start).any()
    for p in results[1:]:
        assert_same_bits(p, results[0])


MIXED = [(1, 1), (40, 3), (0, 4), (3, 500), (17, 17), (64, 700), (700, 64), (150, 160)]
STACKS = [(), (5,), (0,), (40_000,), (500, 3, 3), (2, 3, 100, 90), (3, 0, 2), (2, 0), (2, 40_000)]


@pytest.mark.parametrize("name", ["Adafactor", "Muon"])
def test_many_tensors_at_once(backend, dtype, name):
    """The bits of each alone, for every number of threads; NumPy's up to rounding."""
    rng = np.random.default_rng(4)
    shapes = MIXED if name == "Muon" else [*MIXED, *STACKS]
    start, *grads = [[np.asarray(rng.normal(size=n), dtype) for n in shapes] for _ in range(3)]

    def stepped(of, threads=1):
        params = [start[i].copy() for i in of]
        optimizer = getattr(po, name)(params, lr=0.1, weight_decay=0.1)
        with use_threads(threads):
            for g in grads:
                optimizer.step([g[i] for i in of])
        return params, {key: a for key, a in states(optimizer).items() if np.ndim(a)}

    everything = range(len(shapes))
    expected, kept = stepped(everything)
    for threads in (2, 3):
        for a, b in zip(stepped(everything, threads)[0], expected, strict=True):
            assert_same_bits(a, b)
    for i in everything:
        assert_same_bits(stepped([i])[0][0], expected[i], str(shapes[i]))
    with running_on("numpy"):
        twins, others = stepped(everything)
    eps = np.finfo(dtype).eps
    allowed = 5e4 * eps if name == "Muon" else 64 * eps  # products amplify what rounding does: oracles.py
    for a, b in zip(expected, twins, strict=True):
        np.testing.assert_allclose(a, b, rtol=allowed, atol=allowed)
    for key, a in kept.items():
        np.testing.assert_allclose(a, others[key], rtol=64 * eps)


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("value", [np.inf, np.nan, 1e30, 1e-30, 0.0])
def test_extremes_pass_without_a_warning(backend, name, value):
    """As in PyTorch; pytest makes errors of warnings. And they stay in their own parameter."""
    g = np.full((3, 4), value, np.float32)
    g[0, 0] = 1
    params = [np.ones((3, 4), np.float32), np.ones((2, 2), np.float32)]
    twin = np.ones((2, 2), np.float32)
    optimizer, alone = getattr(po, name)(params), getattr(po, name)(twin)
    for _ in range(2):
        optimizer.step([g, np.ones((2, 2), np.float32)])
        alone.step(np.ones((2, 2), np.float32))
    assert_same_bits(params[1], twin)
    if np.isfinite(value) and name != "Adafactor":  # whose means of squares overflow, as PyTorch's
        assert np.isfinite(params[0]).all()


# ---- structures, groups, state ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        list,
        tuple,
        lambda arrays: dict(zip("ab", arrays, strict=True)),
        lambda arrays: {"b": arrays[1], "a": arrays[0]},  # by name, not by place
        lambda arrays: dict(zip((7, ("x", 1)), arrays, strict=True)),
    ],
    ids=["list", "tuple", "dict", "other order", "odd keys"],
)
def test_structures(backend, wrap):
    def arrays(value):
        return [np.full(3, value, np.float32), np.full((2, 2), 10.0 * value)]

    params = arrays(1)
    given = wrap(params)
    optimizer = po.SGD(given, lr=1)
    optimizer.step(wrap(arrays(0.25)))
    assert params[0].dtype == np.float32  # next to a float64 one
    assert (params[0] == 0.75).all()
    assert (params[1] == 7.5).all()


def test_one_gradient_may_serve_two_parameters(backend):
    p, g = [np.ones(3), np.ones(3)], np.full(3, 0.5)
    po.SGD(p, lr=1).step([g, g])
    assert (np.array(p) == 0.5).all()


def test_groups_have_their_own_hyperparameters(backend):
    """Each group as an optimizer of its own: other rules, types, structures, schedules, in one step."""
    rng = np.random.default_rng(6)
    shapes = [[(3,)], [(70,), (2, 2)], [(5,)], [(4, 4)]]
    types = [np.float32, np.float64, np.float32, np.float64]
    options = [
        {},
        {"momentum": 0.9, "lr": 0.1, "weight_decay": 0.1},
        {"lr": lambda k: 0.1 / (k + 1)},
        {"momentum": 0.9, "nesterov": True, "maximize": True},
    ]
    start = [[rng.normal(size=s).astype(t) for s in some] for some, t in zip(shapes, types, strict=True)]

    def copy(nested):
        first, (a, b), third, fourth = [[p.copy() for p in some] for some in nested]
        return [first[0], {"a": a, "b": b}, third, tuple(fourth)]

    together, alone = copy(start), copy(start)
    optimizer = po.SGD([{"params": p, **o} for p, o in zip(together, options, strict=True)], lr=0.01)
    singles = [po.SGD(p, **{"lr": 0.01, **o}) for p, o in zip(alone, options, strict=True)]
    for _ in range(5):
        grads = copy([[rng.normal(size=p.shape).astype(p.dtype) for p in some] for some in start])
        optimizer.step(grads)
        for single, g in zip(singles, grads, strict=True):
            single.step(g)
    flat = [p for o in singles for p in o.param_groups[0]["params"]]
    mine = [p for group in optimizer.param_groups for p in group["params"]]
    for p, expected in zip(mine, flat, strict=True):
        assert_same_bits(p, expected)
    assert not np.array_equal(mine[0], start[0][0])
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_lr_may_be_changed_and_kinds_of_numbers_are_equal(backend):
    """Coefficients are computed in double, whatever type of number a hyperparameter or schedule is."""
    p, q = np.ones(3), np.ones(3)
    one, other = po.AdamW(p), po.AdamW(q)
    for lr in (np.float32(0.1), np.float64(0.1), np.float16(0.1), 1, lambda k: np.float32(0.1)):
        one.param_groups[0]["lr"] = lr
        other.param_groups[0]["lr"] = float(lr(0) if callable(lr) else lr)
        for optimizer in (one, other):
            optimizer.step(np.full(3, 0.5))
    assert_same_bits(p, q)
    p, q = np.ones(3), np.ones(3)
    po.Adam(p, betas=(np.float32(0.9), np.float32(0.999)), eps=np.float16(1e-3)).step(np.full(3, 0.5))
    betas = (float(np.float32(0.9)), float(np.float32(0.999)))
    po.Adam(q, betas=betas, eps=float(np.float16(1e-3))).step(np.full(3, 0.5))
    assert_same_bits(p, q)


def test_coefficients_beyond_float32_become_infinite_silently(backend):
    p = np.ones(2, np.float32)
    po.SGD(p, lr=1e39).step(np.ones(2, np.float32))
    assert (p == -np.inf).all()


def test_schedules_count_the_steps_taken():
    seen = []
    optimizer = po.SGD(np.ones(1), lr=lambda k: seen.append(k) or 0.1)
    for _ in range(3):
        optimizer.step(np.ones(1))
    assert seen == [0, 1, 2]


@every_case
def test_a_restored_optimizer_goes_on_with_the_same_bits(case):
    grads = plain_gradients(np.float64)
    p = np.random.default_rng(7).normal(size=grads[0].shape)
    straight = p.copy()
    optimizer = make(case, straight)
    for g in grads[:6]:
        optimizer.step(g)

    first = make(case, p)
    for g in grads[:3]:
        first.step(g)
    saved = first.state_dict()
    saved = {**saved, "state": pickle.loads(pickle.dumps(saved["state"]))}
    resumed = make((case[0], {}), p) if rule_of(case) == rule_of((case[0], {})) else make(case, p)
    resumed.load_state_dict(saved)
    for g in grads[3:6]:
        resumed.step(g)
    assert_same_bits(p, straight)
    for key, value in states(optimizer).items():
        assert_same_bits(states(resumed)[key], value)
    assert resumed.param_groups[0] | {"params": 0} == optimizer.param_groups[0] | {"params": 0}


def test_state_dict_is_a_copy():
    optimizer = po.Adam(np.ones(2))
    optimizer.step(np.ones(2))
    saved = optimizer.state_dict()
    saved["state"][0]["exp_avg"][...] = 99
    saved["param_groups"][0]["lr"] = 99
    assert states(optimizer)[0, "exp_avg"].max() < 1
    optimizer.load_state_dict(again := optimizer.state_dict())
    again["state"][0]["exp_avg"][...] = 99
    assert states(optimizer)[0, "exp_avg"].max() < 1
    assert optimizer.param_groups[0]["lr"] == 1e-3


# ---- options of every optimizer: clipping, accumulation, what is not finite --------------------------


def test_max_grad_norm(backend, dtype):
    """As scaling the gradients beforehand, within a rounding; the gradients are not written."""
    p, q = np.ones(5, dtype), np.ones(5, dtype)
    one, other = po.Adam(p, max_grad_norm=0.5), po.Adam(q)
    for g in plain_gradients(dtype)[:3]:
        g = g.ravel()[:5].copy()
        norm = math.sqrt((g.astype(np.float64) ** 2).sum())
        kept = g.copy()
        one.step(g)
        assert_same_bits(g, kept)
        other.step((g * (0.5 / (norm + 1e-6))).astype(dtype))
    np.testing.assert_allclose(p, q, rtol=8 * np.finfo(dtype).eps)
    small, r = np.ones(5, dtype), np.ones(5, dtype)
    po.SGD(small, lr=1, max_grad_norm=1e3).step(np.ones(5, dtype))
    po.SGD(r, lr=1).step(np.ones(5, dtype))
    assert_same_bits(small, r)


def test_accumulate_steps_with_the_mean(backend, dtype):
    p, q = np.ones(4, dtype), np.ones(4, dtype)
    one, other = po.Adam(p, accumulate=2), po.Adam(q)
    for a, b in ((1, 3), (2, -4)):
        before = p.copy()
        one.step(np.full(4, a, dtype))
        assert_same_bits(p, before)
        one.step(np.full(4, b, dtype))
        other.step(np.full(4, (a + b) / 2, dtype))
    assert_same_bits(p, q)
    assert states(one)[0, "step"] == 2


def test_accumulate_lets_infinities_through_silently(backend):
    p = np.ones(2)
    optimizer = po.SGD(p, accumulate=2)
    optimizer.step(np.array([np.inf, 1]))
    optimizer.step(np.array([-np.inf, 1]))
    assert np.isnan(p[0])
    assert p[1] == 1 - 1e-3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite(backend, dtype, bad):
    for policy in ("ignore", "raise", "skip"):
        p = {"w": np.ones(3, dtype), "b": np.ones(2, dtype)}
        optimizer = po.Adam(p, nonfinite=policy)
        good = {"w": np.ones(3, dtype), "b": np.ones(2, dtype)}
        optimizer.step(good)
        kept = {k: v.copy() for k, v in (p | states(optimizer)).items() if np.ndim(v)}
        wrong = good | {"b": np.array([1, bad], dtype)}
        if policy == "raise":
            with pytest.raises(ValueError, match=r"grads\['b'\] holds NaN or infinity"):
                optimizer.step(wrong)
        else:
            optimizer.step(wrong)
        if policy == "ignore":
            assert np.isnan(p["b"][1])
            continue
        for key, value in kept.items():
            assert_same_bits((p | states(optimizer))[key], value)
        assert states(optimizer)[0, "step"] == 1
        assert optimizer.skipped == (policy == "skip")
    huge = np.full(3, np.finfo(dtype).max / 4, dtype)  # finite, though its norm may overflow
    p = np.ones(3, dtype)
    po.SGD(p, nonfinite="raise").step(huge)
    assert (p < 0).all()


def test_lookahead_agrees_with_nesterov(backend):
    """In the variable p - momentum*v, the reformulated method takes the same path."""

    def gradient(x):
        return np.sin(3 * x) + x

    p = np.linspace(-2, 2, 9)
    q = p.copy()  # v = 0: the variables begin equal
    plain = po.SGD(p, lr=0.05, momentum=0.9, velocity="classical")
    shifted = po.SGD(q, lr=0.05, momentum=0.9, velocity="classical", nesterov=True)
    for _ in range(20):
        kept = p.copy()
        with plain.lookahead():
            np.testing.assert_allclose(p, q, rtol=1e-12, atol=1e-13)
            g = gradient(p)
        assert_same_bits(p, kept)
        plain.step(g)
        shifted.step(gradient(q))
    assert np.abs(p).max() < 1

    with pytest.raises(ZeroDivisionError), plain.lookahead():
        1 / 0  # noqa: B018
    with pytest.raises(ValueError, match="classical"), po.SGD(p, momentum=0.9).lookahead():
        pass


def test_asgd_averages_are_copies():
    p = np.ones(3)
    optimizer = po.ASGD([p], t0=0.0)
    optimizer.step([np.ones(3)])
    average = optimizer.averages()[0]
    assert_same_bits(average, p)
    average[...] = 99
    assert states(optimizer)[0, "ax"].max() < 2


def test_signatures_name_the_hyperparameters():
    """`help` shows every hyperparameter with its default, also of classes that users derive."""
    parameters = inspect.signature(po.Adam).parameters
    defaults = {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.0, "nonfinite": "ignore"}
    assert {name: parameters[name].default for name in defaults} == defaults

    class Same(po.Adam):
        pass

    class Own(po.Adam):
        def __init__(self, params, gain=1):
            super().__init__(params)

    assert inspect.signature(Same) == inspect.signature(po.Adam)
    assert list(inspect.signature(Own).parameters) == ["params", "gain"]
