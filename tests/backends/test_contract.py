"""What must agree: the registries of both languages, the backends with each other, names and documents."""

import inspect
import re
from pathlib import Path

import pytest
from oracles import optimizers as oracles
from support.backends import LIVE, _native
from support.optimizers import OPTIMIZERS

import pyoptim as po
from pyoptim import backends
from pyoptim.backends import reference
from pyoptim.backends.gpu import products, steps
from pyoptim.backends.gpu.constants import (
    CHUNK,
    ELEMENTS,
    PART_ROWS,
    ROW_LENGTH,
    STEP_ROWS,
    SUM_BLOCK,
    THREADS,
    WARP,
)
from pyoptim.formulas import storage
from pyoptim.formulas.losses import POINTWISE
from pyoptim.formulas.rules import RULES, Common
from pyoptim.optim import hyperparameters
from pyoptim.runtime import dispatch

native = pytest.mark.skipif(_native is None, reason="without the compiled kernels")
CONTRACT = {
    name
    for name, value in vars(reference).items()
    if getattr(value, "__module__", "").startswith(reference.__name__) and not name.startswith("_")
}
BACKENDS = sorted({backend.partition("-")[0] for backend in LIVE})


@native
def test_rules_of_both_languages():
    python = {name: (", ".join(r.states), ", ".join(r.coefficients._fields)) for name, r in RULES.items()}
    assert _native.rules() == python
    assert list(_native.rules()) == list(python)
    assert _native.common_coefficients == ", ".join(Common._fields)


def source(name):
    """The text of the C++ files of that name."""
    return "".join(path.read_text() for path in (Path(__file__).parents[2] / "csrc").rglob(name))


def constants(name):
    return {n: int(value) for n, value in re.findall(r"\b(k\w+) = (\d+)[,;]", source(name))}


def test_constants_of_both_languages():
    assert constants("launch.hpp") == {
        "kThreads": THREADS,
        "kElements": ELEMENTS,
        "kChunk": CHUNK,
        "kSumBlock": SUM_BLOCK,
        "kTile": products.TILE,
        "kSlice": products.SLICE,
        "kPartRows": PART_ROWS,
        "kStepRows": STEP_ROWS,
        "kRowLength": ROW_LENGTH,
        "kColumnSpace": steps.COLUMN_SPACE,
    }
    assert constants("reduce.hpp")["kSumBlock"] == SUM_BLOCK
    assert constants("device.cuh")["kWarp"] == WARP
    assert constants("storage.hpp")["kScaleBlock"] == storage.BLOCK


def test_pointwise_losses_of_both_languages():
    text = (Path(__file__).parents[2] / "csrc/formulas/losses.hpp").read_text()
    (listed,) = re.findall(r"define PYOPTIM_FOR_EACH_POINTWISE_LOSS\(X\) (.*)", text)
    names = re.findall(r"X\((\w+)\)", listed)
    assert names == re.findall(r"^PYOPTIM_LOSS\((\w+),", text, re.MULTILINE) == list(POINTWISE)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_rule(rule):
    arguments = list(inspect.signature(rule.function).parameters)
    assert arguments == ["c", "p", "g", *rule.states]
    assert rule.name == rule.function.__name__


def argument_names(function):
    """Of each overload."""
    try:
        return [list(inspect.signature(function).parameters)]
    except ValueError:  # pybind11's, which are in the docstring: "f(x: ..., y: ...) -> ..."
        signatures = re.findall(rf"\b{function.__name__}\((.*)\) -> ", function.__doc__)
        own = [re.sub(r"\[[^\[\]]*(\[[^\[\]]*\])*[^\[\]]*\]", "", s) for s in signatures if "*args" not in s]
        return [re.findall(r"(\w+): ", s) for s in own]


@pytest.mark.parametrize("name", BACKENDS)
def test_backends_have_the_functions_of_the_reference(name):
    module = dispatch.get(name)
    assert module.name == name
    public = set(getattr(module, "__all__", CONTRACT | {"name"}))
    assert public == CONTRACT | {"name"}
    for function in CONTRACT - {"Stepper"}:
        overloads = argument_names(getattr(module, function))
        assert overloads
        for names in overloads:
            assert [names] == argument_names(getattr(reference, function)), function
    assert isinstance(module.Stepper.checks, bool)
    for method in ("__init__", "step"):
        wanted = list(inspect.signature(getattr(backends.Stepper, method)).parameters)
        for names in argument_names(getattr(module.Stepper, method)):
            assert names[: len(wanted)] == wanted  # the compiled one takes averages along
            assert module.Stepper.checks or len(names) == len(wanted)


def test_every_optimizer_is_public_and_tested():
    def below(cls):
        return {cls, *(s for c in cls.__subclasses__() for s in below(c))}

    ours = {c for c in below(po.Optimizer) - {po.Optimizer} if c.__module__.startswith("pyoptim.")}
    assert {c for c in ours if not c.__name__.startswith("_")} == set(OPTIMIZERS.values())
    assert set(oracles.ORACLES) == set(OPTIMIZERS)
    assert set(po.__all__) <= set(dir(po))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_hyperparameters(name):
    """Documented by name, with the default the oracle has, checked, and each tried by a case."""
    cls = OPTIMIZERS[name]
    documents = "\n".join(c.__doc__ for c in cls.__mro__ if issubclass(c, po.Optimizer))
    own = "\n".join(c.__doc__ for c in cls.__mro__ if issubclass(c, po.Optimizer) and c is not po.Optimizer)
    function, decay, cases, _ = oracles.ORACLES[name]
    oracle = {k: v.default for k, v in inspect.signature(function).parameters.items()} | decay
    made = cls([])
    for option, default in made.param_groups[0].items():
        if option == "params":
            continue
        assert re.search(rf"\b{option}\b", documents), f"{option} is not documented"
        assert hyperparameters.checked({option: default}, made.param_groups[0]) == {option: default}
        shared = option in ("weight_decay", "decoupled_weight_decay", "maximize")
        assert default == oracle.get(option, 0 if shared else None), option
        if option in cls.defaults and option != "lr" and not (shared or name in ("AMSGrad", "AdamW")):
            assert any(option in case for case in cases), f"no case tries {option}"
        if option in cls.defaults and not isinstance(default, bool | str) and not shared:
            assert re.search(rf"\b{option}\b.* : ", own), f"{option} has no entry under Parameters"
    assert list(inspect.signature(cls).parameters)[:2] == ["params", "lr"]
    assert repr(made) == f"{name}(lr={cls.defaults['lr']!r})"


def test_names_of_backends():
    there = [name for name in po.available_backends() if name in dispatch.DEVICE_MODULES]
    assert po.available_backends() == [name for name in dispatch.MODULES if name in BACKENDS] + there
    assert po.show_config()["backends"] == po.available_backends()
    assert "backend" in repr(po.show_config())
    for name in BACKENDS:
        with po.use_backend(name):
            assert po.show_config()["backend"] == name
