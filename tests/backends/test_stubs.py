"""_native.pyi and _cuda.pyi say what the compiled modules have: they are generated, never edited."""

import ast
import importlib.util
from pathlib import Path

import pytest

import pyoptim

pytest.importorskip("pyoptim.runtime._native")
stubgen = pytest.importorskip("pybind11_stubgen")

REGENERATE = """
{0}.pyi is not what the bindings say. From the root of the repository, with pyoptim installed
from it (pip install '.[test]'):

    pybind11-stubgen {0} -o .
"""


def declarations(stub):
    """The lines of a stub, without the values of constants: some depend on the build."""
    tree = ast.parse(stub.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign):
            node.value = None
    return ast.unparse(tree).splitlines()


@pytest.mark.parametrize("name", ["pyoptim.runtime._native", "pyoptim.backends.gpu._cuda"])
def test_stubs_are_what_the_bindings_say(tmp_path, name):
    if importlib.util.find_spec(name) is None:
        pytest.skip("this install was built without nvcc")
    stubgen.main([name, "-o", str(tmp_path)])
    stub = Path(*name.split(".")).with_suffix(".pyi")
    kept = Path(pyoptim.__file__).parents[1] / stub
    assert kept.is_file(), REGENERATE.format(name)
    assert declarations(kept) == declarations(tmp_path / stub), REGENERATE.format(name)
