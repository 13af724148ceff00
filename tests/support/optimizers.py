"""Optimizers by name, gradients for them, and comparisons of all that they hold."""

from functools import cache

import numpy as np
import pytest

import pyoptim as po

OPTIMIZERS = {
    name: cls
    for name in po.__all__
    if isinstance(cls := getattr(po, name), type)
    and issubclass(cls, po.Optimizer)
    and cls is not po.Optimizer
}


def type_of(kind):
    """The dtype of that name; bfloat16 is ml_dtypes', without which the test is skipped."""
    if kind == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(kind)


def make(case, params):
    """The optimizer of an oracle's case, which is a name and options."""
    name, options = case
    return getattr(po, name)(params, **options)


def rule_of(case):
    return make(case, np.ones((1, 1)))._rules[0].name


def states(optimizer):
    """All that an optimizer keeps of its parameters, by (index, name)."""
    entries = optimizer.state_dict()["state"].items()
    return {(i, name): value for i, entry in entries for name, value in entry.items()}


def assert_same_bits(actual, expected, hint=""):
    """Equal as bits, -0 apart from 0, except that any NaN is as good as another."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype, hint
    assert actual.shape == expected.shape, hint
    if actual.tobytes() == expected.tobytes():
        return
    wrong = (actual != expected) & ~(np.isnan(actual) & np.isnan(expected))
    wrong |= (actual == 0) & (expected == 0) & (np.signbit(actual) != np.signbit(expected))
    assert not wrong.any(), f"{hint}: {np.argwhere(wrong)[:5].tolist()}, {actual[wrong]}, {expected[wrong]}"


STEPS = 50


@cache
def plain_gradients(dtype):
    """Never near 0, and turning every seventh step, so that the updates are well conditioned."""
    rng = np.random.default_rng(1)
    size = rng.uniform(0.5, 1.5, (STEPS, 3, 7)) * rng.choice([-1, 1], (3, 7))
    return (size * np.where(np.arange(STEPS) % 7 == 3, -1, 1)[:, None, None]).astype(dtype)


@cache
def hard_values(seed, dtype, count):
    """Normal numbers, both zeros, subnormals, huge ones whose squares overflow, infinities and NaN."""
    rng, info = np.random.default_rng(seed), np.finfo(dtype)
    x = rng.normal(size=count).astype(dtype)
    kind = np.random.default_rng(0).integers(0, 20, count)  # that of an element stays over all seeds
    x[kind == 0] = rng.choice([0.0, -0.0], (kind == 0).sum())
    x[kind == 1] *= info.tiny  # subnormal
    x[kind == 2] *= np.sqrt(info.tiny)  # squares are subnormal
    x[kind == 3] *= info.max / 8
    rare = rng.random(count) < 1e-3
    x[rare] = rng.choice([np.inf, -np.inf, np.nan], rare.sum())
    x.setflags(write=False)
    return x


def snapshot(optimizer, *arrays):
    """All that a failed call could have changed, as comparable bytes."""

    def frozen(value):
        if isinstance(value, np.ndarray):
            return value.dtype.str, value.shape, value.tobytes()
        if isinstance(value, dict):
            return {key: frozen(v) for key, v in value.items()}
        return [frozen(v) for v in value] if isinstance(value, list) else value

    params = [p for group in optimizer.param_groups for p in group["params"]]
    return frozen([optimizer.state_dict(), params, list(arrays), optimizer.skipped])


# Also for PyTorch's: see test_torch.py.
NO_STATE_DICTS = [
    *(None, [], 3, "state", {}, {"foo": 1}, {"state": {}}, {"param_groups": []}),
    *({"state": {}, "param_groups": groups} for groups in (None, 3, {}, "x", [1], [{}], [{"params": None}])),
    *({"state": {}, "param_groups": [{"params": keys}]} for keys in ("0", ["0"], [[0]], [0.0], 0)),
    *(
        {"state": state, "param_groups": [{"params": [0]}]}
        for state in (None, 3, [], [{}], {0: None}, {0: 1})
    ),
]
