"""Whatever is wrong with a value, the message names the argument that has it.

PYOPTIM_WRONG_VALUES=100000 tries so many calls with several wrong values, and another seed each time.
"""

import itertools
import os
import random
import re
import traceback
from pathlib import Path

import numpy as np
import pytest
from support import valid_calls
from support.valid_calls import invoke, valid

import pyoptim as po
from pyoptim import nn

PUBLIC = valid_calls.public()

# Made anew for each call.
WRONG = {
    "None": lambda: None,
    "text": lambda: "wrong",
    "bytes": lambda: b"wrong",
    "3": lambda: 3,
    "-1": lambda: -1,
    "0": lambda: 0,
    "2.5": lambda: 2.5,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "complex": lambda: 1j,
    "True": lambda: True,
    "object": object,
    "list": list,
    "dict": dict,
    "tuple": lambda: (1,),
    "texts": lambda: ["wrong", "values"],
    "set": lambda: {1},
    "function": lambda: lambda *_: None,
    "class": lambda: int,
    "generator": lambda: iter([1.0, 2.0]),
    "array of text": lambda: np.array(["a", "b"]),
    "array of objects": lambda: np.array([object(), None]),
    "array of complex": lambda: np.array([1j, 2]),
    "array of structs": lambda: np.zeros(2, "f4,i4"),
    "array of dates": lambda: np.zeros(2, "M8[s]"),
    "0-d array": lambda: np.array(1.5),
    "empty array": lambda: np.zeros(0, np.float32),
    "array of another shape": lambda: np.zeros((7, 5, 3), np.float32),
    "array of integers": lambda: np.arange(3),
    "ragged list": lambda: [[1.0], [2.0, 3.0]],
}
# What Python and NumPy say of a value where nobody has looked at it.
LEAKS = re.compile(
    r"not supported between|has no attribute|object is not|object does not|unsupported operand|ambiguous|"
    r"positional argument|cannot unpack|must be real number|not all arguments|unhashable|could not convert|"
    r"object cannot be|only (integer|length|0-dim)|expected str, bytes|argument must be"
)


def of_sklearn(error):
    """Whether scikit-learn looked at the data. Its users know its words; the argument stands before them."""
    while error.__cause__ is not None:
        error = error.__cause__
        files = [Path(frame.filename).parts for frame in traceback.extract_tb(error.__traceback__)]
        if any("sklearn" in parts and "pyoptim" not in parts for parts in files):
            return True
    return False


def unclear(name, function, wrong):
    """What is unclear about the refusal of wrong values of some arguments; None also where they are taken."""
    call, arguments = valid(name, function)
    arguments |= {key: (value,) if key.startswith("*") else value for key, value in wrong.items()}
    try:
        invoke(call, arguments)
    except (ValueError, TypeError) as error:
        said = str(error)
        names = "|".join(key.lstrip("*") for key in wrong)
        if not re.search(rf"\b({names})\b", said) or (LEAKS.search(said) and not of_sklearn(error)):
            return f"{type(error).__name__}: {said}"
    except OSError as error:
        texts = [value for value in wrong.values() if isinstance(value, str)]
        return None if error.filename in texts else f"{type(error).__name__}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize("name", PUBLIC)
def test_messages_name_the_argument(name, tmp_path, monkeypatch):
    for part, needed in (
        ("diagnostics.", "scipy"),
        ("metrics.", "sklearn"),
        ("metrics.plot", "matplotlib"),
        ("train.history.", "matplotlib"),
        (".compare", "matplotlib"),
    ):
        if name.startswith(part):
            pytest.importorskip(needed)
    monkeypatch.chdir(tmp_path)  # a path such as "wrong" is a file there
    function = PUBLIC[name]
    call, arguments = valid(name, function)
    invoke(call, arguments)
    found = []
    for argument, (kind, make) in itertools.product(arguments, WRONG.items()):
        said = unclear(name, function, {argument: make()})
        if said is not None:
            found.append(f"{argument} = {kind}: {said:.300}")
    assert not found, f"{name}\n" + "\n".join(found)


def test_messages_name_one_of_several_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for needed in ("sklearn", "matplotlib"):
        pytest.importorskip(needed)
    count = int(os.environ.get("PYOPTIM_WRONG_VALUES", 0))
    seed = random.randrange(2**32) if count else 0
    chosen, found = random.Random(seed), []
    several = {name: keys for name in PUBLIC if len(keys := list(valid(name, PUBLIC[name])[1])) > 1}
    for _ in range(count or 500):
        name = chosen.choice(list(several))
        keys = chosen.sample(several[name], chosen.randint(2, min(4, len(several[name]))))
        kinds = {key: chosen.choice(list(WRONG)) for key in keys}
        said = unclear(name, PUBLIC[name], {key: WRONG[kind]() for key, kind in kinds.items()})
        if said is not None:
            found.append(f"{name} with {kinds}: {said:.300}")
    assert not found, f"seed {seed}\n" + "\n".join(found)


def test_every_call_is_of_something_public():
    for needed in ("sklearn", "torch"):
        pytest.importorskip(needed)
    assert set(valid_calls.CALLS) <= set(PUBLIC)


def masked(value):
    """The value with a mask on the first array in it, or None if there is none."""
    if isinstance(value, np.ndarray) and value.size > 1:
        return np.ma.masked_array(value, np.arange(value.size).reshape(value.shape) == 0)
    if isinstance(value, dict):
        found = {key: masked(part) for key, part in value.items()}
        first = next((key for key, part in found.items() if part is not None), None)
        return None if first is None else {**value, first: found[first]}
    if isinstance(value, list | tuple):
        found = masked(dict(enumerate(value)))
        if found is None:
            return None
        return value._make(found.values()) if hasattr(value, "_fields") else type(value)(found.values())
    return None


def with_arrays():
    """Name and argument of every public function that takes arrays."""
    for name, function in PUBLIC.items():
        if not name.startswith("torch."):
            for argument, value in valid(name, function)[1].items():
                if masked(value) is not None:
                    yield name, argument
    yield "train.trainer.Trainer.fit", "validation_data"


@pytest.mark.parametrize(("name", "argument"), list(with_arrays()))
def test_masked_arrays_are_refused(name, argument):
    for backend in ("native", "numpy"):
        if backend in po.available_backends():
            with po.use_backend(backend):
                call, arguments = valid(name, PUBLIC[name])
                value = (
                    (arguments["x"], arguments["y"]) if argument == "validation_data" else arguments[argument]
                )
                arguments[argument] = masked(value)
                with pytest.raises(TypeError, match=rf"\b{argument.lstrip('*')}\b.* is a masked array"):
                    invoke(call, arguments)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("structure", [lambda g: g, lambda g: [g], lambda g: {"w": g}])
def test_masked_gradients_are_refused_in_every_step(backend, structure, dtype):
    p = np.ones(40, dtype)
    for make in (po.Adam, po.LAMB, po.Adafactor) if dtype != np.float16 else (po.Adam,):
        optimizer = make(structure(p))
        optimizer.step(structure(np.zeros(40, dtype)))  # from here on steps take the shortest way
        before = p.copy()
        with pytest.raises(TypeError, match=r"grads.* is a masked array"):
            optimizer.step(structure(np.ma.masked_array(np.ones(40, dtype), np.arange(40) < 3)))
        assert (p == before).all()


def test_no_other_arrays_are_refused():
    """Of a class that NumPy derives from its own, as of files in memory, and of users'."""

    class Named(np.ndarray):
        pass

    p = np.ones(4)
    optimizer = po.SGD(p, lr=1.0)
    optimizer.step(np.ones(4).view(Named))
    assert (p == 0).all()
    assert nn.Sequential(nn.Identity())(np.ones((2, 4)).view(Named)).shape == (2, 4)


def test_masked_arrays_in_lists_are_refused():
    row = np.ma.masked_array([1.0, 2.0], [True, False])
    with pytest.raises(TypeError, match="x has a masked array"):
        nn.Sequential(nn.Identity())([row, row])
