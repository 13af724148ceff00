"""_native.pyi and _cuda.pyi say what the compiled modules have: they are generated, never edited."""

import ast
import importlib.util
from pathlib import Path

import pytest

import pyoptim

pytest.importorskip("pyoptim._native")
stubgen = pytest.importorskip("pybind11_stubgen")

REGENERATE = """
pyoptim/{0}.pyi is not what the bindings say. From the root of the repository, with pyoptim installed
from it (pip install '.[test]'):

    pybind11-stubgen pyoptim.{0} -o .
"""


def declarations(stub):
    """The lines of a stub, without the values of constants: some depend on the build."""
    tree = ast.parse(stub.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign):
            node.value = None
    return ast.unparse(tree).splitlines()


@pytest.mark.parametrize("name", ["_native", "_cuda"])
def test_stubs_are_what_the_bindings_say(tmp_path, name):
    if name == "_cuda" and importlib.util.find_spec("pyoptim._cuda") is None:
        pytest.skip("this install was built without nvcc")
    stubgen.main([f"pyoptim.{name}", "-o", str(tmp_path)])
    kept = Path(pyoptim.__file__).with_name(f"{name}.pyi")
    assert kept.is_file(), REGENERATE.format(name)
    assert declarations(kept) == declarations(tmp_path / "pyoptim" / f"{name}.pyi"), REGENERATE.format(name)
