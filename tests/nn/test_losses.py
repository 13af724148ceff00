"""Losses: float64 oracles, central differences, PyTorch, extremes, weights, bad input, and in training."""

import inspect
import itertools

import numpy as np
import pytest
from oracles import layers as layer_oracles
from oracles import losses as oracles
from support import backends, kinds

import pyoptim as po
from pyoptim import metrics, nn, ops
from pyoptim.formulas.losses import POINTWISE
from pyoptim.runtime import dispatch

EPS = {np.float32: 2.0**-24, np.float64: 2.0**-53}
SHAPES = [(1, 1), (1, 2), (3, 5), (16, 10), (17, 32), (65, 33), (5, 255), (7, 1001)]
KINDS = tuple(POINTWISE)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def shares(rng, shape):
    t = rng.random(shape)
    return t / t.sum(1, keepdims=True)


def options(rng, n, classes, dtype):
    """Some combinations, drawn in this dtype."""
    w, s = rng.random(classes).astype(dtype) + dtype(0.1), rng.random(n).astype(dtype)
    return [
        {},
        {"label_smoothing": 0.1},
        {"class_weight": w},
        {"sample_weight": s},
        {"class_weight": w, "label_smoothing": 0.3, "sample_weight": s},
        {"class_weight": w, "sample_weight": s},
    ]


def targets(rng, n, classes, dtype):
    return rng.integers(0, classes, n), shares(rng, (n, classes)).astype(dtype)


def exact(logits, target, class_weight=None, label_smoothing=0.0, sample_weight=None):
    wide = [None if a is None else np.asarray(a, np.float64) for a in (class_weight, sample_weight)]
    target = target if target.ndim == 1 else target.astype(np.float64)
    return oracles.cross_entropy(logits.astype(np.float64), target, wide[0], label_smoothing, wide[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy_values(backend, dtype, shape, rng):
    n, classes = shape
    logits = rng.normal(0, 3, size=shape).astype(dtype)
    for target in targets(rng, n, classes, dtype):
        for option in options(rng, n, classes, dtype):
            loss, gradient = ops.softmax_cross_entropy(logits, target, **option)
            assert loss == pytest.approx(
                exact(logits, target, **option), rel=64 * EPS[dtype], abs=8 * EPS[dtype]
            )
            with_gradient = nn.CrossEntropy(option.get("class_weight"), option.get("label_smoothing", 0.0))
            weight = option.get("sample_weight")
            assert with_gradient.evaluate(logits, target, None, weight) == loss
            assert gradient.dtype == dtype


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (17, 4), (4, 40)])
def test_cross_entropy_gradients_by_central_differences(backend, shape, rng):
    n, classes = shape
    logits = rng.normal(0, 2, size=shape)
    for target in targets(rng, n, classes, np.float64):
        for option in options(rng, n, classes, np.float64):
            _, gradient = ops.softmax_cross_entropy(logits, target, **option)
            numeric = layer_oracles.numerical_gradient(
                lambda target=target, option=option: ops.softmax_cross_entropy(logits, target, **option)[0],
                logits,
            )
            np.testing.assert_allclose(gradient, numeric, atol=2e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy_against_torch(backend, dtype, shape, rng):
    torch = pytest.importorskip("torch")
    n, classes = shape
    logits = rng.normal(0, 3, size=shape).astype(dtype)
    for target in targets(rng, n, classes, dtype):
        for option in options(rng, n, classes, dtype):
            if "sample_weight" in option:  # PyTorch has none
                continue
            x = torch.tensor(logits, requires_grad=True)
            weight = option.get("class_weight")
            theirs = torch.nn.functional.cross_entropy(
                x,
                torch.tensor(target),
                weight=None if weight is None else torch.tensor(weight),
                label_smoothing=option.get("label_smoothing", 0.0),
            )
            theirs.backward()
            loss, gradient = ops.softmax_cross_entropy(logits, target, **option)
            assert loss == pytest.approx(theirs.item(), rel=64 * EPS[dtype], abs=16 * EPS[dtype])
            np.testing.assert_allclose(
                gradient, x.grad.numpy(), rtol=512 * EPS[dtype], atol=16 * EPS[dtype] / n
            )


@pytest.mark.parametrize("classes", [2, 40])
def test_cross_entropy_of_extreme_logits(backend, dtype, classes):
    big = {np.float32: 3e38, np.float64: 2e307}[dtype]
    for size in (1e4, big):
        logits = np.full((2, classes), -size, dtype)
        logits[0, 0] = logits[1, 1] = size
        for smoothing in (0.0, 0.5):
            loss, gradient = ops.softmax_cross_entropy(logits, np.array([0, 0]), label_smoothing=smoothing)
            assert np.isfinite(loss)
            assert np.isfinite(gradient).all()
        loss, gradient = ops.softmax_cross_entropy(logits, np.array([0, 0]))
        assert loss == pytest.approx(float(dtype(size)), rel=1e-15)
        assert gradient[:, :2].tolist() == [[0, 0], [-0.5, 0.5]]
        assert not gradient[:, 2:].any()


@pytest.mark.parametrize("classes", [3, 40])
def test_cross_entropy_of_masked_logits(backend, dtype, classes):
    """A class at -infinity without a share has probability 0 and costs nothing."""
    logits = np.zeros((1, classes), dtype)
    logits[0, -1] = -np.inf
    for target in (np.array([0]), np.eye(classes, dtype=dtype)[:1]):
        loss, gradient = ops.softmax_cross_entropy(logits, target)
        assert loss == pytest.approx(np.log(classes - 1), rel=4 * EPS[dtype])
        assert gradient[0, -1] == 0


@pytest.mark.parametrize("classes", [3, 32, 40, 600])
def test_cross_entropy_propagates_nan(backend, dtype, classes):
    for at in (0, classes // 2, classes - 1):
        logits = np.zeros((3, classes), dtype)
        logits[1, at] = np.nan
        for target in (np.zeros(3, int), np.eye(classes, dtype=dtype)[[0, 0, 0]]):
            loss, gradient = ops.softmax_cross_entropy(logits, target)
            assert np.isnan(loss)
            assert np.isnan(gradient[1]).all()
            assert np.isfinite(gradient[[0, 2]]).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("classes", [3, 40])
def test_weights_that_are_all_zero_give_zero(backend, dtype, classes, smoothing):
    logits = np.arange(2 * classes, dtype=dtype).reshape(2, classes)
    labels, weight = np.array([0, 0]), np.arange(classes) > 0
    options = {"class_weight": weight, "label_smoothing": smoothing}
    loss, gradient = ops.softmax_cross_entropy(logits, labels, **options)
    assert loss == 0
    assert not gradient.any()
    logits[1, 2] = np.nan  # which no weight hides
    assert np.isnan(ops.softmax_cross_entropy(logits, labels, **options)[0])
    assert nn.CrossEntropy(**options).divisor(logits, labels) == 0


@pytest.mark.parametrize("kind", ["?", *np.typecodes["AllInteger"]])
def test_labels_of_every_dtype(backend, rng, kind):
    logits, labels = rng.normal(size=(20, 2)), rng.integers(0, 2, 20)
    given = labels.astype(kind)
    assert ops.softmax_cross_entropy(logits, given)[0] == ops.softmax_cross_entropy(logits, labels)[0]
    assert metrics.accuracy(given, logits) == metrics.accuracy(labels, logits)
    assert metrics.TopK(1)(given, logits) == metrics.accuracy(labels, logits)
    if kind != "?":
        given[3] = 2
        with pytest.raises(ValueError, match=r"labels\[3\] is 2"):
            ops.softmax_cross_entropy(logits, given)


@pytest.mark.parametrize("label", [-1, 4, 2**40])
def test_backends_check_the_labels_that_they_use(backend, rng, label):
    """They may have changed since they were checked: in another thread, or between two steps."""
    logits, labels = rng.normal(size=(3, 4)), np.array([0, 1, label])
    kernels, weight = dispatch.current(), np.ones(4)
    with pytest.raises(ValueError, match=r"expected classes in \[0, 4\)"):
        kernels.softmax_cross_entropy(logits, labels, None, None, weight, 0.0)
    with pytest.raises(ValueError, match=r"expected classes in \[0, 4\)"):
        kernels.label_weights(labels, weight)


def pointwise_data(rng, kind, shape, dtype):
    x = rng.normal(0, 2, size=shape).astype(dtype)
    return x, kinds.pointwise_targets(kind, rng, shape).astype(dtype)


def default_of(kind):
    """The parameter of a loss's formula, if no option is given."""
    option = POINTWISE[kind].parameter
    default = None if option is None else inspect.signature(ops.pointwise_loss).parameters[option].default
    return 1.0 if default is None else default


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (3, 5), (2, 257), (33, 17), (4, 3, 2)])
def test_pointwise_values_and_gradients(backend, dtype, kind, shape, rng):
    x, t = pointwise_data(rng, kind, shape, dtype)
    s = rng.random(shape[0]).astype(dtype)
    parameters = [({}, default_of(kind))]
    if POINTWISE[kind].parameter is not None:
        parameters.append(({POINTWISE[kind].parameter: 0.3}, 0.3))
    if kind == "huber":
        parameters.append(({"delta": 7}, 7.0))
    if kind == "binary":
        per_output = rng.random(shape[-1]).astype(dtype) * 3
        parameters += [({"pos_weight": 2.5}, 2.5), ({"pos_weight": per_output}, per_output)]
    for option, a in parameters:
        for weight in (None, s):
            loss, gradient = ops.pointwise_loss(x, t, kind, **option, sample_weight=weight)
            expected = oracles.pointwise(kind, x, t, a, weight)
            assert loss == pytest.approx(expected, rel=32 * EPS[dtype], abs=4 * EPS[dtype])
            if x.size > 100:
                continue
            wide, wide_t = x.astype(np.float64), t.astype(np.float64)
            numeric = layer_oracles.numerical_gradient(
                lambda x=wide, t=wide_t, a=a, w=weight: x.size * oracles.pointwise(kind, x, t, a, w), wide
            )
            np.testing.assert_allclose(gradient * x.size, numeric, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("cls", [cls for cls in nn.losses.ELEMENTWISE if POINTWISE[cls.kind].parameter])
def test_functions_allow_the_options_that_classes_allow(cls, rng):
    x, option = rng.normal(size=(2, 3)), POINTWISE[cls.kind].parameter
    call = x, kinds.pointwise_targets(cls.kind, rng, x.shape), cls.kind
    for value in (-1.0, 0.0, 0.5, 1.0, 2.0, np.nan, np.inf):
        in_class = kinds.is_allowed(cls, **{option: value})
        assert kinds.is_allowed(ops.pointwise_loss, *call, **{option: value}) == in_class, value


@pytest.mark.parametrize("kind", KINDS)
def test_pointwise_against_torch(backend, dtype, kind, rng):
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    x, t = pointwise_data(rng, kind, (31, 9), dtype)
    x[0, :4] = t[0, :4] if kind != "hinge" else 1 / t[0, :4]  # kinks
    p = rng.random(9).astype(dtype) * 2
    known = {
        "squared": f.mse_loss,
        "absolute": f.l1_loss,
        "huber": lambda a, b: f.huber_loss(a, b, delta=0.7),
        "binary": lambda a, b: f.binary_cross_entropy_with_logits(a, b, pos_weight=torch.tensor(p)),
        "hinge": lambda a, b: torch.relu(1 - b * a).mean(),
        "poisson": lambda a, b: f.poisson_nll_loss(a, b) + (torch.xlogy(b, b) - b).mean(),
    }
    if kind not in known:
        pytest.skip("PyTorch has no such loss")
    theirs = known[kind]
    tx = torch.tensor(x, requires_grad=True)
    value = theirs(tx, torch.tensor(t))
    value.backward()
    loss, gradient = ops.pointwise_loss(x, t, kind, delta=0.7, pos_weight=p if kind == "binary" else None)
    assert loss == pytest.approx(value.item(), rel=32 * EPS[dtype])
    np.testing.assert_allclose(gradient, tx.grad.numpy(), rtol=32 * EPS[dtype], atol=32 * EPS[dtype] / x.size)


@pytest.mark.parametrize("kind", KINDS)
def test_pointwise_extremes(backend, dtype, kind):
    far = 80.0 if kind == "poisson" else 1e4  # exp(x) is finite
    x = np.array([[far, -far, far, -far, np.nan]], dtype)
    t = (
        np.array([[1, 1, 0, 0, 1]], dtype)
        if kind in ("binary", "poisson")
        else np.array([[1, 1, -1, -1, 1]], dtype)
    )
    loss, gradient = ops.pointwise_loss(x[:, :4].copy(), t[:, :4].copy(), kind)
    assert loss == pytest.approx(
        oracles.pointwise(kind, x[:, :4], t[:, :4], default_of(kind)), rel=4 * EPS[dtype]
    )
    assert np.isfinite(gradient).all()
    if kind == "binary":
        assert (4 * gradient).tolist() == [[0, -1, 1, 0]]
    loss, gradient = ops.pointwise_loss(x, t, kind)
    assert np.isnan(loss)
    assert np.isnan(gradient[0, 4])
    assert np.isfinite(gradient[0, :4]).all()


TEMPERATURES = [1.0, 0.5, 4.0]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kl_divergence_values(backend, dtype, shape, temperature, rng):
    logits = rng.normal(0, 2, size=shape).astype(dtype)
    target = shares(rng, shape).astype(dtype)
    target[0] = np.eye(shape[1])[-1]  # 0 log 0 = 0
    for weight in (None, rng.random(shape[0]).astype(dtype)):
        loss, gradient = ops.kl_divergence(logits, target, temperature=temperature, sample_weight=weight)
        wide = [a.astype(np.float64) for a in (logits, target)]
        expected = oracles.kl_divergence(*wide, temperature, weight)
        assert loss == pytest.approx(expected, rel=64 * EPS[dtype], abs=8 * temperature**2 * EPS[dtype])
        assert nn.KLDiv(temperature).evaluate(logits, target, None, weight) == loss
        assert gradient.dtype == dtype
    teacher = rng.normal(0, 2, size=shape).astype(dtype)
    loss, gradient = nn.KLDiv(temperature, from_logits=True)(teacher, teacher)
    assert loss == pytest.approx(0, abs=temperature**2 * 32 * EPS[dtype])
    np.testing.assert_allclose(gradient, 0, atol=temperature * 16 * EPS[dtype])


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (17, 4), (4, 40)])
def test_kl_divergence_gradients_by_central_differences(backend, shape, temperature, rng):
    logits, target = rng.normal(0, 2, size=shape), shares(rng, shape)
    target[0] = np.eye(shape[1])[-1]
    for weight in (None, rng.random(shape[0])):
        _, gradient = ops.kl_divergence(logits, target, temperature=temperature, sample_weight=weight)
        numeric = layer_oracles.numerical_gradient(
            lambda w=weight: oracles.kl_divergence(logits, target, temperature, w), logits
        )
        np.testing.assert_allclose(gradient, numeric, atol=1e-8)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kl_divergence_against_torch(backend, dtype, shape, temperature, rng):
    torch = pytest.importorskip("torch")
    logits, teacher = rng.normal(0, 3, size=(2, *shape)).astype(dtype)
    target = torch.softmax(torch.tensor(teacher) / temperature, 1)
    target[0] = torch.eye(shape[1])[-1]
    x = torch.tensor(logits, requires_grad=True)
    log = torch.log_softmax(x / temperature, 1)
    theirs = temperature**2 * torch.nn.functional.kl_div(log, target, reduction="batchmean")
    theirs.backward()
    loss, gradient = nn.KLDiv(temperature)(logits, target.numpy())
    assert loss == pytest.approx(theirs.item(), rel=64 * EPS[dtype], abs=32 * temperature**2 * EPS[dtype])
    atol = 32 * temperature * EPS[dtype] / shape[0]
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=512 * EPS[dtype], atol=atol)


def test_kl_divergence_takes_the_teachers_logits(backend, rng):
    torch = pytest.importorskip("torch")
    logits, teacher = rng.normal(size=(2, 9, 6))
    theirs = 9 * torch.nn.functional.kl_div(
        torch.log_softmax(torch.tensor(logits) / 3, 1),
        torch.log_softmax(torch.tensor(teacher) / 3, 1),
        reduction="batchmean",
        log_target=True,
    )
    assert nn.KLDiv(3, from_logits=True)(logits, teacher)[0] == pytest.approx(theirs.item(), rel=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("classes", [2, 40])
def test_kl_divergence_of_extreme_logits(backend, dtype, classes, temperature):
    logits = np.full((2, classes), -1e4, dtype)
    logits[0, 0] = logits[1, 1] = 1e4
    target = np.zeros((2, classes), dtype)
    target[:, 0] = 1
    loss, gradient = ops.kl_divergence(logits, target, temperature=temperature)
    assert loss == pytest.approx(1e4 * temperature, rel=1e-15)
    assert gradient[:, :2].tolist() == [[0, 0], [-temperature / 2, temperature / 2]]
    assert not gradient[:, 2:].any()


@pytest.mark.parametrize("classes", [2, 40])
@pytest.mark.parametrize("temperature", [1e-60, 1e60])
def test_kl_divergence_at_temperatures_beyond_float32(backend, dtype, classes, temperature):
    logits = np.zeros((3, classes), dtype)
    logits[1, 0] = 1
    logits[2, 0] = -np.inf
    target = np.zeros((3, classes), dtype)
    target[:, 1] = 1
    loss, gradient = ops.kl_divergence(logits, target, temperature=temperature)
    p = np.full((3, classes), 1 / classes)
    p[1] = np.eye(classes)[0] if temperature < 1 else p[1]
    p[2] = np.append(0, np.full(classes - 1, 1 / (classes - 1)))
    with np.errstate(over="ignore", under="ignore"):
        expected = (temperature * (p - target) / 3).astype(dtype)
    np.testing.assert_allclose(gradient, expected, rtol=8 * EPS[dtype])
    # Where T^2 vanishes, what is left is T times how far the target is from the largest logit.
    exact = temperature / 3 if temperature < 1 else temperature**2 * -np.log(p[:, 1]).mean()
    assert loss == pytest.approx(exact, rel=8 * EPS[dtype])


@pytest.mark.parametrize("classes", [3, 40, 600])
def test_kl_divergence_propagates_what_is_not_finite(backend, dtype, classes):
    target = np.zeros((3, classes), dtype)
    target[:, :2] = 0.5
    for bad in (np.nan, np.inf):
        for at in (0, classes // 2, classes - 1):
            logits = np.zeros((3, classes), dtype)
            logits[1, at] = bad
            loss, gradient = ops.kl_divergence(logits, target, temperature=2)
            assert np.isnan(loss)
            assert np.isnan(gradient[1]).all()
            assert np.isfinite(gradient[[0, 2]]).all()
    logits = np.zeros((3, classes), dtype)
    logits[0, -1] = -np.inf  # a class without a share
    loss, gradient = ops.kl_divergence(logits[:1], target[:1], temperature=2)
    assert loss == pytest.approx(4 * np.log((classes - 1) / 2), rel=8 * EPS[dtype], abs=8 * EPS[dtype])
    assert gradient[0, -1] == 0
    logits[0, 0] = -np.inf  # one with a share
    loss, gradient = ops.kl_divergence(logits, target, temperature=2)
    assert loss == np.inf
    assert gradient[0, 0] == pytest.approx(-1 / 3, rel=4 * EPS[dtype])


def everything(dtype):
    rng = np.random.default_rng(1)
    results = []
    for n, classes in (3001, 10), (601, 300):
        logits = rng.normal(size=(n, classes)).astype(dtype)
        for target in targets(rng, n, classes, dtype):
            for option in options(rng, n, classes, dtype)[::2]:
                results += ops.softmax_cross_entropy(logits, target, **option)
        target, weight = shares(rng, (n, classes)).astype(dtype), rng.random(n)
        results += ops.kl_divergence(logits, target, temperature=3, sample_weight=weight)
    for kind in KINDS:
        x, t = pointwise_data(rng, kind, (9001, 11), dtype)
        results += ops.pointwise_loss(x, t, kind)
        results += ops.pointwise_loss(x, t, kind, sample_weight=rng.random(9001))
    return results


def test_same_bits_for_every_number_of_threads(backend, dtype):
    results = []
    for n in (1, 2, 3, 7):
        with backends.use_threads(n):
            results.append(everything(dtype))
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_what_the_classes_compute(backend, rng):
    x = rng.normal(size=(6, 3))
    t, signs, p = rng.normal(size=(6, 3)), np.sign(rng.normal(size=(6, 3))), rng.random((6, 3))
    taught = shares(rng, (6, 3))
    w, s = np.array([1.0, 2, 0.5]), rng.random(6)
    labels = np.array([0, 1, 2, 2, 1, 0])
    pairs = [
        (nn.MSE(), t, oracles.pointwise("squared", x, t, 1, s)),
        (nn.L1(), t, oracles.pointwise("absolute", x, t, 1, s)),
        (nn.Huber(0.4), t, oracles.pointwise("huber", x, t, 0.4, s)),
        (nn.Hinge(), signs.astype(int), oracles.pointwise("hinge", x, signs, 1, s)),
        (nn.Poisson(), np.floor(3 * p), oracles.pointwise("poisson", x, np.floor(3 * p), 1, s)),
        (nn.BinaryCrossEntropy(), p > 0.5, oracles.pointwise("binary", x, p > 0.5, 1, s)),
        (nn.BinaryCrossEntropy(3), p, oracles.pointwise("binary", x, p, 3, s)),
        (nn.BinaryCrossEntropy(w), p, oracles.pointwise("binary", x, p, w, s)),
        (nn.CrossEntropy(w, 0.2), labels, oracles.cross_entropy(x, labels, w, 0.2, s)),
        (nn.CrossEntropy(), shares(rng, (6, 3)), None),
        (nn.KLDiv(2), taught, oracles.kl_divergence(x, taught, 2, s)),
    ]
    for loss, target, expected in pairs:
        value, gradient = loss(x, target, sample_weight=s)
        if expected is not None:
            assert value == pytest.approx(expected, rel=1e-12)
        numeric = layer_oracles.numerical_gradient(
            lambda loss=loss, target=target: loss(x, target, sample_weight=s)[0], x
        )
        np.testing.assert_allclose(gradient, numeric, atol=1e-8)
        assert value != loss(x, target)[0]
    assert repr(nn.CrossEntropy(None, 0.1)) == "CrossEntropy(class_weight=None, label_smoothing=0.1)"


A, N = np.zeros, np.arange
X = np.zeros((2, 3))
CE = ops.softmax_cross_entropy
BAD = [
    (lambda: CE(X, N(2), class_weight=A(2)), ValueError, "class_weight has shape"),
    (lambda: CE(X, N(2), class_weight=[1, -1, 1]), ValueError, r"class_weight\[1\] is -1"),
    (lambda: CE(X, N(2), class_weight=["a", "b", "c"]), TypeError, "class_weight has dtype"),
    (lambda: CE(X, N(2), class_weight=[1, np.nan, 1]), ValueError, r"class_weight\[1\] is nan"),
    (lambda: CE(X, N(2), sample_weight=A(3)), ValueError, "sample_weight has shape"),
    (lambda: CE(X, N(2), sample_weight=[1, -2]), ValueError, r"sample_weight\[1\] is -2"),
    (lambda: CE(X, N(2), label_smoothing=1.5), ValueError, "label_smoothing is 1.5"),
    (lambda: CE(X, N(2), label_smoothing="a"), ValueError, "label_smoothing is 'a'"),
    (lambda: CE(X, A((2, 4))), ValueError, "labels has shape"),
    (lambda: CE(X, X - 1), ValueError, r"labels\[0, 0\] is -1"),
    (lambda: CE(A((0, 3)), A((0, 3))), ValueError, "labels is empty"),
    (lambda: CE(A((2, 0)), A((2, 0))), ValueError, "labels is empty"),
    (lambda: CE(X, X * np.nan), ValueError, r"labels\[0, 0\] is nan"),
    (lambda: ops.pointwise_loss(X, X, "cubed"), ValueError, "kind is 'cubed'"),
    (lambda: ops.pointwise_loss(X, X, "huber", delta=0), ValueError, "delta is 0"),
    (lambda: ops.pointwise_loss(X, X, "hinge"), ValueError, r"target\[0, 0\] is 0.0, expected -1 or 1"),
    (lambda: ops.pointwise_loss(X, X - 1, "poisson"), ValueError, r"target\[0, 0\] is -1.0, expected n"),
    (lambda: ops.pointwise_loss(X, X + 2, "binary"), ValueError, r"expected numbers in \[0, 1\]"),
    (lambda: ops.pointwise_loss(X, X, "binary", pos_weight=-1), ValueError, "pos_weight"),
    (lambda: ops.pointwise_loss(X, X, "binary", pos_weight=A(2)), ValueError, "pos_weight has shape"),
    (lambda: ops.pointwise_loss(X, A((2, 3), np.float32)), TypeError, "target has dtype float32"),
    (lambda: ops.kl_divergence(X, X, temperature=0), ValueError, "temperature is 0"),
    (lambda: ops.kl_divergence(X, A((2, 2))), ValueError, "target has shape"),
    (lambda: nn.CrossEntropy(A((0,)))(X, N(2)), ValueError, "class_weight has shape"),
    (lambda: nn.CrossEntropy([-1, 1]), ValueError, r"class_weight\[0\] is -1"),
    (lambda: nn.BinaryCrossEntropy(A(2))(X, X), ValueError, "pos_weight has shape"),
    (lambda: nn.BinaryCrossEntropy()(X, X - 1), ValueError, r"target\[0, 0\] is -1"),
    (lambda: nn.Huber(-1), ValueError, "delta is -1"),
    (lambda: nn.KLDiv(np.inf), ValueError, "temperature is inf"),
    (lambda: nn.KLDiv()(A((2, 3, 1)), X), ValueError, "KLDiv has an output"),
    (lambda: nn.MSE()(X, X, sample_weight=[1]), ValueError, "sample_weight has shape"),
    (lambda: nn.Penalty(l2=-1), ValueError, "l2 is -1"),
    (lambda: nn.Penalty(l1="a"), ValueError, "l1 is 'a'"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def make(loss, seed=0, penalty=None, outputs=3):
    model = nn.Sequential(
        nn.Dense(4, 5), nn.BatchNorm(5), nn.Tanh(), nn.Dense(5, outputs), seed=seed, dtype=np.float64
    )
    return po.Trainer(model, loss, po.SGD(model.parameters(), lr=0.1), seed=0, penalty=penalty)


def data(rng, n=12):
    return rng.normal(size=(n, 4)), rng.integers(0, 3, n)


def plain(loss, penalty=None, lr=0.1):
    """Without BatchNorm, whose statistics see no weights."""
    model = nn.Sequential(nn.Dense(4, 5), nn.Tanh(), nn.Dense(5, 3), seed=0, dtype=np.float64)
    return po.Trainer(model, loss, po.SGD(model.parameters(), lr=lr), seed=0, penalty=penalty)


def test_sample_weights_are_like_repeated_examples(backend, rng):
    """Weights 0 and 2 against leaving out and doubling, in one batch of the same size."""
    x, y = data(rng)
    weight = np.array([2.0, 0] * 6)
    one, other = plain(nn.CrossEntropy()), plain(nn.CrossEntropy())
    history = one.fit(x, y, batch_size=None, sample_weight=weight, shuffle=False, verbose=False)
    twice = np.repeat(np.arange(0, 12, 2), 2)
    history2 = other.fit(x[twice], y[twice], batch_size=None, shuffle=False, verbose=False)
    assert history["loss"] == pytest.approx(history2["loss"], rel=1e-14)
    np.testing.assert_allclose(one.model.flat_parameters, other.model.flat_parameters, rtol=1e-12)
    assert one.evaluate(x, y, weight)["loss"] == pytest.approx(other.evaluate(x[twice], y[twice])["loss"])
    assert one.partial_fit(x, y, weight) == pytest.approx(other.partial_fit(x[twice], y[twice]), rel=1e-12)


def test_sample_weights_follow_their_examples(rng):
    """Shuffled, in batches, with a part held back."""
    x, y = data(rng)
    weight = rng.random(12)
    trainer = plain(nn.CrossEntropy(), lr=0.0)
    history = trainer.fit(x, y, batch_size=4, sample_weight=weight, validation_split=0.25, verbose=False)
    assert history["loss"][0] == pytest.approx(trainer.evaluate(x[:9], y[:9], weight[:9])["loss"])
    assert history["val_loss"][0] == pytest.approx(trainer.evaluate(x[9:], y[9:], weight[9:])["loss"])
    with pytest.raises(ValueError, match="sample_weight has shape"):
        trainer.fit(x, y, sample_weight=weight[:5])


def test_soft_targets_in_training(backend, rng):
    x, y = data(rng)
    soft, hard = make(nn.CrossEntropy()), make(nn.CrossEntropy())
    one = soft.fit(x, np.eye(3)[y], epochs=2, batch_size=4, verbose=False)
    two = hard.fit(x, y, epochs=2, batch_size=4, verbose=False)
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-12)
    assert one["accuracy"] == two["accuracy"]
    np.testing.assert_allclose(soft.model.flat_parameters, hard.model.flat_parameters, rtol=1e-9, atol=1e-12)


@pytest.mark.skipif(backends.why_not("native") is not None, reason="no native backend")
def test_which_losses_the_engine_knows(rng):
    x, y = data(rng)
    for loss in (
        nn.CrossEntropy(),
        nn.MSE(),
        nn.CrossEntropy(np.array([0.5, 0.0, 2.0]), label_smoothing=0.1),
        nn.L1(),
        nn.Huber(0.3),
        nn.Hinge(),
        nn.Poisson(),
        nn.BinaryCrossEntropy(1.5),
        nn.BinaryCrossEntropy(np.array([1.5, 0.2, 3.0])),
        nn.KLDiv(2.5),
        nn.KLDiv(0.7, from_logits=True),
    ):
        shares = rng.dirichlet(np.ones(3), 12)
        targets = {nn.CrossEntropy: [y, shares], nn.KLDiv: [shares], nn.BinaryCrossEntropy: [shares],
                   nn.Poisson: [rng.poisson(2, (12, 3))],
                   nn.Hinge: [rng.choice([-1.0, 1.0], (12, 3))]}  # fmt: skip
        several = targets.get(type(loss), [rng.normal(size=(12, 3))])
        for target, weight in itertools.product(several, (None, rng.random(12))):
            ours, python = make(loss), make(loss)
            fit = {"epochs": 2, "batch_size": 5, "verbose": False, "sample_weight": weight}
            history = ours.fit(x, target, **fit)
            assert history.path == "native"
            expected = python.fit(x, target, **fit, engine="python")
            assert np.array_equal(ours.model.flat_parameters, python.model.flat_parameters)
            assert history["loss"] == expected["loss"]
            assert history.get("accuracy") == expected.get("accuracy")
    with pytest.raises(ValueError, match="the loss is a Own, which has no compiled form"):
        plain(Own()).fit(x, rng.normal(size=(12, 3)), engine="native", verbose=False)


class Own(nn.Loss):
    """As users wrote it before there were weights."""

    def check_target(self, name, target, batch, shape, dtype):
        return np.asarray(target, dtype)

    def compute(self, output, target, gradient):
        if gradient is not None:
            gradient[...] = output - target
        return float(((output - target) ** 2).sum() / 2)


@pytest.mark.skipif(dispatch.current().name != "native", reason="runs on the native backend")
def test_every_pointwise_loss_is_a_public_class_that_the_engine_knows(rng):
    assert [cls.kind for cls in nn.losses.ELEMENTWISE] == list(POINTWISE) == list(oracles.POINTWISE)
    for cls in nn.losses.ELEMENTWISE:
        assert getattr(nn, cls.__name__) is cls
        assert cls.__name__ in nn.__all__


@pytest.mark.skipif(dispatch.current().name != "native", reason="runs on the native backend")
@pytest.mark.parametrize("loss", kinds.pointwise_losses(), ids=repr)
def test_every_pointwise_loss_in_training(loss, rng):
    x, target = data(rng)[0], kinds.pointwise_targets(loss.kind, rng, (12, 3))
    options = {name: value for name, value in vars(loss).items() if value is not None}
    value, gradient = loss(x[:, :3].copy(), target)
    expected, expected_gradient = ops.pointwise_loss(x[:, :3].copy(), target, loss.kind, **options)
    assert value == expected
    assert np.array_equal(gradient, expected_gradient)
    ours, python = make(loss), make(loss)
    assert ours.fit(x, target, epochs=1, verbose=False).path == "native"
    python.fit(x, target, epochs=1, verbose=False, engine="python")
    assert np.array_equal(ours.model.flat_parameters, python.model.flat_parameters)


def test_a_loss_of_ones_own(rng):
    x, t = rng.normal(size=(6, 4)), rng.normal(size=(6, 3))
    trainer = plain(Own())
    before = trainer.evaluate(x, t)["loss"]
    trainer.fit(x, t, epochs=3, batch_size=None, verbose=False)
    assert trainer.evaluate(x, t)["loss"] < before
    assert Own()(x, x)[0] == 0
    with pytest.raises(TypeError, match="Own takes no sample_weight"):
        trainer.fit(x, t, sample_weight=np.ones(6))


@pytest.mark.parametrize("flags", [{}, {"biases": True}, {"batch_norm": True}])
def test_penalty(backend, flags, rng):
    x, y = data(rng)
    penalty = nn.Penalty(l2=0.3, l1=0.2, **flags)
    trainer, without = make(nn.CrossEntropy(), penalty=penalty), make(nn.CrossEntropy())
    counted = {"0.weight", "3.weight"}
    counted |= {"0.bias", "3.bias"} if "biases" in flags else set()
    counted |= {"1.weight", "1.bias"} if "batch_norm" in flags else set()
    for t in (trainer, without):
        t.model.flat_parameters += 0.1
    parameters = {name: p.copy() for name, p in trainer.model.parameters().items()}
    expected = sum(0.15 * (w**2).sum() + 0.2 * np.abs(w).sum() for n, w in parameters.items() if n in counted)
    assert trainer.partial_fit(x, y) - without.partial_fit(x, y) == pytest.approx(expected, rel=1e-12)
    for name, gradient in trainer.model.gradients().items():
        w = parameters[name]
        extra = 0.3 * w + 0.2 * np.sign(w) if name in counted else 0
        np.testing.assert_allclose(gradient, without.model.gradients()[name] + extra, atol=1e-14)
    with pytest.raises(TypeError, match="penalty is a float"):
        make(nn.MSE(), penalty=0.1)
