"""_native.pyi says what the compiled module has: it is generated, never edited."""

import ast
from pathlib import Path

import pytest

import pyoptim

pytest.importorskip("pyoptim._native")
stubgen = pytest.importorskip("pybind11_stubgen")

REGENERATE = """
pyoptim/_native.pyi is not what the bindings say. From the root of the repository, with pyoptim installed
from it (pip install '.[test]'):

    pybind11-stubgen pyoptim._native -o .
"""


def declarations(stub):
    """The lines of a stub, without the values of constants: some depend on the build."""
    tree = ast.parse(stub.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign):
            node.value = None
    return ast.unparse(tree).splitlines()


def test_stubs_are_what_the_bindings_say(tmp_path):
    stubgen.main(["pyoptim._native", "-o", str(tmp_path)])
    kept = Path(pyoptim.__file__).with_name("_native.pyi")
    assert kept.is_file(), REGENERATE
    assert declarations(kept) == declarations(tmp_path / "pyoptim" / "_native.pyi"), REGENERATE
