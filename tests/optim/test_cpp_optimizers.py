"""Optimizers of the C++ API have Python's hyperparameters: names, defaults, ranges, and what they compute."""

import math

import numpy as np
import pytest
from oracles import optimizers as oracles

import pyoptim as po
from pyoptim.optim import elementwise
from pyoptim.train import engine

native = pytest.importorskip("pyoptim.runtime._native")
CASES = [case for case in oracles.CASES if case[0] in elementwise.__all__ and not callable(case[1].get("lr"))]
TINY = math.ulp(0.0)
LARGEST = float(np.finfo(float).max)
EDGES = [
    -math.inf, -1.0, -TINY, 0.0, TINY, 0.5, 1 - 2**-53, 1.0, 1 + 2**-52, 50.0, LARGEST, math.inf, math.nan,
]  # fmt: skip
NUMBERS = [
    (name, option)
    for name in elementwise.__all__
    for option, default in getattr(po, name)([]).param_groups[0].items()
    if option != "params" and not isinstance(default, bool | str)
]
OLD_NAMES = [
    ("Adam", {"beta1": 0.8, "beta2": 0.99}, {"betas": (0.8, 0.99)}),
    ("Rprop", {"eta_minus": 0.4, "eta_plus": 1.3}, {"etas": (0.4, 1.3)}),
    ("Rprop", {"smallest": 1e-3, "largest": 2.0}, {"step_sizes": (1e-3, 2.0)}),
    ("SGD", {"momentum": 0.9, "classical": True}, {"momentum": 0.9, "velocity": "classical"}),
    (
        "Adam",
        {"amsgrad": True, "amsgrad_corrected": True},
        {"amsgrad": True, "amsgrad_max": "corrected"},
    ),
]


def coefficients(name, options, steps):
    """The rule of an optimizer of the C++ API, and its coefficients at the first steps."""
    rates = [options.get("lr", getattr(po, name).defaults["lr"])] * steps
    rule, rows, _ = native.next_coefficients(name.lower(), options, 0, 1.0, rates)
    return rule, rows.tolist()


def refusal_in_python(name, option, value):
    """What a hyperparameter may be instead of this, or None if it may be this."""
    try:
        getattr(po, name)([], **{option: value})
    except ValueError as error:
        return str(error).partition(", expected ")[2]
    return None


def refusal_in_cpp(name, option, value):
    try:
        coefficients(name, {option: value}, 0)
    except ValueError as error:
        return str(error).partition(", expected ")[2]
    return None


def test_names_and_defaults():
    options = native.optimizer_options()
    assert set(options) == set(elementwise.__all__)
    for name, own in options.items():
        expected = {k: v for k, v in getattr(po, name)([]).param_groups[0].items() if k != "params"}
        assert own.pop("max_grad_norm") == 0  # Python's None, an argument of the optimizer
        assert {k: tuple(v) if isinstance(v, list) else v for k, v in own.items()} == expected, name
        assert all(type(own[k]) is type(v) for k, v in expected.items() if not isinstance(v, tuple)), name


@pytest.mark.parametrize(("name", "option"), NUMBERS)
def test_ranges(name, option):
    pair = isinstance(getattr(po, name).defaults.get(option), tuple)
    for value in [(a, b) for a in EDGES for b in EDGES] if pair else EDGES:
        python, cpp = refusal_in_python(name, option, value), refusal_in_cpp(name, option, value)
        if option == "momentum_decay" and -math.inf < value < 0:  # None in C++
            assert python is not None
            assert cpp is None
            continue
        assert (python is None) == (cpp is None), value
        if python is not None and option != "momentum_decay":
            assert cpp in python


def test_choices():
    for name, options in native.optimizer_options().items():
        for option, default in options.items():
            if isinstance(default, str):
                assert refusal_in_cpp(name, option, "x") == refusal_in_python(name, option, "x")


@pytest.mark.parametrize(("name", "options"), CASES, ids=map(oracles.case_id, CASES))
def test_coefficients_are_python_s(name, options):
    optimizer = getattr(po, name)(np.ones(1), **options)
    rule, rows = coefficients(name, options, 300)
    assert rule == optimizer._rules[0].name
    scalars = optimizer._scalars
    for row in rows:
        scalars, (expected,) = optimizer._next_rows(scalars)
        assert tuple(row) == expected


@pytest.mark.parametrize(("name", "options"), CASES, ids=map(oracles.case_id, CASES))
def test_plans_of_epochs_are_python_s(name, options):
    """Two groups, schedules, the middle of a training, and stops anywhere within a plan."""
    p = [np.ones(2), np.ones(3)]
    groups = [{"params": p[0]}, {"params": p[1], "lr": po.schedules.Cosine(0.1, steps=9), "weight_decay": 1}]
    optimizer = getattr(po, name)(groups, **options)
    for _ in range(3):
        optimizer.step([np.ones(2), np.ones(3)])
    rows, scalars_after = engine._plan(optimizer, 5)
    expected, expected_scalars = engine._plan_in_python(optimizer, 5)
    assert rows.tolist() == expected.tolist()
    for done in range(6):
        assert scalars_after(done) == expected_scalars(done)


@pytest.mark.parametrize(("name", "old", "new"), OLD_NAMES)
def test_older_names_in_cpp_still_work(name, old, new):
    assert coefficients(name, old, 5) == coefficients(name, new, 5)
    assert coefficients(name, old, 5) != coefficients(name, {}, 5)


def test_unknown_names_are_refused():
    for option, value, message in (
        ("speed", 1.0, "no hyperparameter named 'speed'"),
        ("betas", 0.9, "no hyperparameter named 'betas'"),
        ("velocity", 1.0, "velocity is 1, expected a word"),
        ("momentum", "classical", "momentum"),
    ):
        with pytest.raises(ValueError, match=message):
            coefficients("SGD", {option: value}, 1)
