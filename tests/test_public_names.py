"""`dir` of a public module shows the names that it is for, and no others."""

import importlib
import re
from pathlib import Path

import pytest
from support import public

import pyoptim as po
from pyoptim.optim.optimizer import SHARED


@pytest.mark.parametrize("name", public.MODULES)
def test_public_names(name):
    if name in ("sklearn", "torch"):
        pytest.importorskip(name)
    module = importlib.import_module(f"pyoptim.{name}")
    assert dir(module) == sorted(set(module.__all__))
    for word in module.__all__:
        assert not word.startswith("_")
        assert getattr(module, word) is not None


def test_names_of_the_package():
    assert len(po.__all__) == len(set(po.__all__))
    assert dir(po) == sorted([*po.__all__, "sklearn", "torch"])  # not in __all__: they need what they name
    assert "TYPE_CHECKING" not in dir(po)
    assert {"schedules", "torch", "Adam", "Trainer"} <= set(dir(po))


PAGE = Path(__file__).resolve().parents[1] / "pyoptim" / "docs" / "pages" / "reference" / "optimizers.md"


@pytest.mark.skipif(not PAGE.is_file(), reason="needs the sources")
def test_every_optimizer_has_a_row_in_the_reference():
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    listed = {name: options for name, _, options in rows if hasattr(po, name)}
    classes = [c for name in po.__all__ if isinstance(c := getattr(po, name), type)]
    assert set(listed) == {c.__name__ for c in classes if issubclass(c, po.Optimizer)} - {"Optimizer"}
    for name, options in listed.items():
        own = [o for o in getattr(po, name).defaults if o not in {"lr", *SHARED}]
        assert options == "as `Adam`" or set(own) == set(options.strip("`").split(", ")), name


def test_import_loads_nothing_slow(run_python):
    """Beyond NumPy the import takes 13 ms; each of these modules would add 2 to 100."""
    slow = "email pathlib urllib numpy.typing importlib.metadata importlib.resources numba torch scipy"
    code = f"""
import sys, numpy
before = set(sys.modules)
import pyoptim
print([name for name in "{slow}".split() if name in set(sys.modules) - before])
"""
    result = run_python(code, PYTHONWARNINGS="ignore:pyoptim runs without")
    assert (result.stdout.strip(), result.stderr) == ("[]", "")
