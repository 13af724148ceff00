"""Activations on every backend: float64 oracles, central differences, PyTorch, the errors of exp and tanh."""

import copy

import numpy as np
import pytest
from oracles import layers as oracles
from support import backends, kinds

from pyoptim import nn, ops
from pyoptim.formulas.activations import ACTIVATIONS

EPS = {np.float32: 2.0**-24, np.float64: 2.0**-53}
ORACLES = oracles.ACTIVATIONS


def kept(kind, x, y):
    return x if ACTIVATIONS[kind].keeps_input else y


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 4097])
def test_values(backend, dtype, kind, n, rng):
    x = rng.normal(0, 4, size=n).astype(dtype)
    y = ops.activation_forward(x, kind)
    exact = ORACLES[kind](x.astype(np.float64))
    assert y.dtype == dtype
    # Relative throughout, as far as normal numbers reach; a relative error of u is one of |u| in exp(u).
    units = 8 + (4 * x.astype(np.float64) ** 2 if kind.startswith("gelu") else 0)
    assert (np.abs(y - exact) <= units * EPS[dtype] * np.abs(exact) + 16 * np.finfo(dtype).tiny).all()


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_gradients_by_central_differences(backend, kind, rng):
    x, dy = rng.normal(0, 3, size=64), rng.normal(size=64)
    y = ops.activation_forward(x, kind)
    dx = ops.activation_backward(dy, kept(kind, x, y), kind)
    h = 1e-6
    numeric = (ops.activation_forward(x + h, kind) - ops.activation_forward(x - h, kind)) / (2 * h)
    np.testing.assert_allclose(dx, dy * numeric, rtol=1e-6, atol=1e-8)


PARAMETERS = [
    ("leaky_relu", {"slope": 0.2}, lambda f, x: f.leaky_relu(x, 0.2)),
    ("elu", {"alpha": 0.7}, lambda f, x: f.elu(x, 0.7)),
    ("softplus", {"beta": 2.5}, lambda f, x: f.softplus(x, 2.5)),
    ("hardtanh", {"low": -2.0, "high": 0.5}, lambda f, x: f.hardtanh(x, -2.0, 0.5)),
    ("gelu_tanh", {}, lambda f, x: f.gelu(x, approximate="tanh")),
    *[(kind, {}, lambda f, x, kind=kind: getattr(f, kind)(x)) for kind in
      ("relu", "sigmoid", "tanh", "selu", "gelu", "silu", "hardsigmoid", "hardswish")],
]  # fmt: skip


@pytest.mark.parametrize(("kind", "parameters", "theirs"), PARAMETERS, ids=[p[0] for p in PARAMETERS])
def test_against_torch(backend, dtype, kind, parameters, theirs, rng):
    torch = pytest.importorskip("torch")
    special = [0.0, -3, 3, -1, 1, 6, np.nan, np.inf, -np.inf, 1e4, -1e4]
    x = np.concatenate([rng.normal(0, 4, size=1000), special]).astype(dtype)
    dy = rng.normal(size=x.size).astype(dtype)
    tx = torch.tensor(x, requires_grad=True)
    ty = theirs(torch.nn.functional, tx)
    ty.backward(torch.tensor(dy))
    y = ops.activation_forward(x, kind, **parameters)
    # PyTorch's softplus is x beyond a threshold, and its hardsigmoid multiplies by 1/6 in float.
    tolerance = max(64 * EPS[dtype], 1e-7 if kind in ("softplus", "hardsigmoid") else 0)
    same = np.ones(x.shape, bool)
    if kind == "gelu":  # PyTorch's vectorised erf makes it NaN at infinity, where the limit is infinity
        same = ~np.isposinf(x)
        assert np.isposinf(y[~same]).all()
    np.testing.assert_allclose(y[same], ty.detach().numpy()[same], rtol=tolerance, atol=tolerance)
    finite = np.isfinite(x)  # elsewhere a matter of how 0 * inf is written
    dx = ops.activation_backward(dy, kept(kind, x, y), kind, **parameters)
    np.testing.assert_allclose(dx[finite], tx.grad.numpy()[finite], rtol=tolerance, atol=4 * tolerance)


def ulps(computed, exact):
    """The error in units of the last place; exact is in a wider type."""
    rounded = exact.astype(computed.dtype)
    with np.errstate(invalid="ignore"):
        unit = np.spacing(np.abs(rounded)).astype(exact.dtype)
    finite = np.isfinite(rounded)
    assert (np.isfinite(computed) == finite).all()
    return (np.abs(computed[finite].astype(exact.dtype) - exact[finite]) / unit[finite]).max()


NATIVE = [e for e in backends.LIVE if e.startswith("native")]


def exp_of(x):
    y = np.empty_like(x)
    backends._native.exponential(x, y)
    return y


@pytest.mark.parametrize("isa", NATIVE)
def test_exp_and_tanh_are_within_2_ulp(isa):
    """Every 509th float32, of either sign, against float64: subnormal results and infinity too."""
    bits = np.arange(0, 0x7F800000, 509, dtype=np.uint32)
    magnitude = bits.view(np.float32)
    with backends.running_on(isa), np.errstate(over="ignore"):
        for x in (magnitude, -magnitude, np.linspace(-104, 89, 1_000_003, dtype=np.float32)):
            assert ulps(ops.activation_forward(x, "tanh"), np.tanh(x.astype(np.float64))) <= 2
            assert ulps(exp_of(x), np.exp(x.astype(np.float64))) <= 2
        assert exp_of(np.array([-np.inf, np.inf, 0, -0.0], np.float32)).tolist() == [0, np.inf, 1, 1]
        assert np.isnan(exp_of(np.array([np.nan], np.float32)))


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="no type wider than float64")
@pytest.mark.parametrize("isa", NATIVE)
def test_exp_of_doubles_is_within_2_ulp(isa, rng):
    x = np.concatenate([rng.uniform(-746, 710, 300_000), rng.normal(size=100_000)])
    with backends.running_on(isa), np.errstate(over="ignore"):
        assert ulps(exp_of(x), np.exp(x.astype(np.longdouble))) <= 2
        assert exp_of(np.array([-np.inf, np.inf, -800, 800])).tolist() == [0, np.inf, 0, np.inf]


def everything(dtype):
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.normal(0, 5, size=200_003), rng.normal(0, 1e-3, 99)]).astype(dtype)
    dy = rng.normal(size=x.size).astype(dtype)
    results = []
    for kind in ACTIVATIONS:
        y = ops.activation_forward(x, kind)
        results += [y, ops.activation_backward(dy, kept(kind, x, y), kind)]
    rows = x[:200_000].reshape(-1, 40)
    return [*results, ops.softmax_forward(rows), ops.softmax_forward(rows, log=True)]


def test_same_bits_for_every_instruction_set_and_number_of_threads(dtype):
    native = [e for e in backends.LIVE if e.startswith("native")]
    if not native:
        pytest.skip("no compiled kernels")
    results = []
    for e in native:
        for threads in (1, 2, 3):
            with backends.running_on(e), backends.use_threads(threads):
                results.append(everything(dtype))
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (3, 16), (4, 17), (2, 1000), (2, 3, 40), (7,)], ids=str)
def test_softmax(backend, dtype, log, shape, rng):
    x = rng.normal(0, 3, size=shape).astype(dtype)
    e = np.exp(x.astype(np.float64))
    exact = e / e.sum(-1, keepdims=True)
    y = ops.softmax_forward(x, log)
    tolerance = 64 * EPS[dtype]
    np.testing.assert_allclose(y, np.log(exact) if log else exact, rtol=tolerance, atol=tolerance)
    dy = rng.normal(size=shape).astype(dtype)
    dy64 = dy.astype(np.float64)
    if log:
        expected = dy64 - exact * dy64.sum(-1, keepdims=True)
    else:
        expected = exact * (dy64 - (dy64 * exact).sum(-1, keepdims=True))
    np.testing.assert_allclose(
        ops.softmax_backward(dy, y, log), expected, rtol=8 * tolerance, atol=8 * tolerance
    )


def test_softmax_of_extreme_logits(backend, dtype):
    x = np.array([[1e4, -1e4, 1e4], [-3e38, 3e38, 0]], dtype)
    assert ops.softmax_forward(x).tolist() == [[0.5, 0, 0.5], [0, 1, 0]]


@pytest.mark.parametrize("layer", kinds.activations(), ids=repr)
def test_layers_by_central_differences(backend, layer, rng):
    model = nn.Sequential(copy.deepcopy(layer), dtype=np.float64)
    x, dy = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    y = model(x)
    assert y.shape == x.shape
    dx = model.backward(dy, need_dx=True)
    perturbed = x.copy()
    numeric = oracles.numerical_gradient(lambda: float((model(perturbed) * dy).sum()), perturbed)
    np.testing.assert_allclose(dx, numeric, rtol=1e-6, atol=1e-8)


def test_layers_are_saved_with_their_parameters(tmp_path, rng):
    model = nn.Sequential(nn.Dense(3, 3), nn.LeakyReLU(0.3), nn.ELU(0.5), nn.Hardtanh(-2, 3), nn.GELU("tanh"))
    model.save(tmp_path / "m")
    x = rng.normal(size=(5, 3))
    loaded = nn.Sequential.load(tmp_path / "m")
    assert repr(loaded) == repr(model)
    assert np.array_equal(loaded(x), model(x))


def test_both_languages_list_the_same_kinds():
    native = pytest.importorskip("pyoptim.runtime._native")
    kinds = [(kind, value.keeps_input) for kind, value in ACTIVATIONS.items()]
    assert list(native.activation_kinds().items()) == kinds  # in the order by which GPUs' kernels know them


def test_both_languages_fuse_the_same_kinds():
    native = pytest.importorskip("pyoptim.runtime._native")

    def fuses(kind):
        x = np.zeros((1, 1))
        try:
            native.dense_forward(x, x, None, kind, x.copy())
        except ValueError:
            return False
        return True

    assert tuple(kind for kind in ACTIVATIONS if fuses(kind)) == ops.ACTIVATIONS


def test_every_kind_is_a_public_layer():
    layers = [layer() for layer in nn.activations.ELEMENTWISE] + [nn.GELU("tanh")]
    assert sorted(layer.kind for layer in layers) == sorted(ACTIVATIONS)
    assert {type(layer).__name__ for layer in layers} <= set(nn.__all__)
    assert set(ACTIVATIONS) | {None} == set(ORACLES)


@pytest.mark.parametrize("layer", kinds.activations(), ids=repr)
def test_options_of_layers_are_those_of_their_formulas(layer):
    defaults = ACTIVATIONS[layer.kind].defaults
    given = {name: getattr(layer, name) for name in defaults}
    assert layer.arguments == (("approximate",) if isinstance(layer, nn.GELU) else tuple(defaults))
    assert given in (defaults, {name: value + 0.25 for name, value in defaults.items()})
    x = np.linspace(-2, 2, 9)
    expected = ops.activation_forward(x, layer.kind, **given)
    assert np.array_equal(nn.Sequential(copy.deepcopy(layer), dtype=np.float64)(x[None]), expected[None])


A = np.zeros
BAD_CALLS = [
    (lambda: ops.activation_forward(A(3), "swish?"), ValueError, "activation is"),
    (lambda: ops.activation_forward(A(3), "relu", slope=1), TypeError, "'slope' is no parameter of relu"),
    (lambda: ops.activation_forward(A(3), "elu", alpha="1"), ValueError, "alpha is '1'"),
    (lambda: ops.activation_forward(A(3), "elu", alpha=-1), ValueError, "alpha is -1"),
    (lambda: ops.activation_forward(A(3), "softplus", beta=0), ValueError, "beta is 0"),
    (lambda: ops.activation_forward(A(3), "hardtanh", low=2), ValueError, "low is 2"),
    (lambda: ops.activation_forward(A(3, int), "elu"), TypeError, "x has dtype int64"),
    (lambda: ops.activation_backward(A(3), A(4), "elu"), ValueError, "dy has shape"),
    (lambda: ops.softmax_forward(A(())), ValueError, "x is a scalar"),
    (lambda: ops.softmax_backward(A(2), A(3)), ValueError, "dy has shape"),
    (lambda: nn.GELU("erf"), ValueError, "approximate is 'erf'"),
    (lambda: nn.LeakyReLU(-0.1), ValueError, "slope is -0.1"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS, ids=[m for _, _, m in BAD_CALLS])
def test_bad_input(backend, call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_unaligned_and_strided(backend, dtype, rng):
    wide = rng.normal(size=2 * 99 + 1).astype(dtype)
    for kind in ACTIVATIONS:
        expected = ops.activation_forward(wide[1::2].copy(), kind)
        assert np.array_equal(ops.activation_forward(wide[1::2], kind), expected)
