"""Each example runs, and shows what it says."""

import ast
import functools
import json
import runpy
import sys
import tempfile

import numpy as np
import pytest

from pyoptim.examples import __main__ as examples


def is_consistent(loss):
    """Whether the gradient for several outputs is that of the value, which doubles as the error does."""
    error = np.array([[1.0, -2.0], [3.0, 0.5], [-1.0, 4.0]])
    gradient = np.zeros_like(error)
    value = loss.compute(error, np.zeros_like(error), gradient)
    return np.isclose((gradient * error).sum(), value)


# What an example imports beside NumPy, and what its names are at the end.
EXAMPLES = {
    "custom_loss": (
        [],
        lambda r: is_consistent(r["Pinball"](0.9)) and all(0.87 < s < 0.93 for s in r["shares"].values()),
    ),
    "experiment_tracking": (["tensorboardX"], lambda r: min(r["accuracy"].values()) > 0.9),
    "jax_gradients": (["jax"], lambda r: r["losses"][-1] < 0.004),
    "mnist": ([], lambda r: r["accuracy"] > 0.95),
    "online_stream": (
        [],
        lambda r: r["accuracy"][1] > 0.95 and r["accuracy"][2] < 0.5 and r["accuracy"][3] > 0.95,
    ),
    "optuna_search": (["optuna"], lambda r: r["accuracy"] > 0.93 and r["pruned"] > 2),
    "policy_gradient": ([], lambda r: r["steps"] > 120),
    "pytorch": (["torch"], lambda r: r["accuracy"] > 0.95),
    "scipy_minimiser": (["scipy"], lambda r: r["by_scipy"] == r["by_minimize"] < r["by_adam"] / 2),
    "tabular": (
        ["sklearn", "pandas"],
        lambda r: r["accuracy"]["network"] > 0.9 and r["accuracy"]["line"] < 0.75,
    ),
    "transfer": ([], lambda r: r["accuracy"]["transferred"] > r["accuracy"]["from nothing"] + 0.02),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_shows_what_it_says(name, tmp_path, monkeypatch, capsys, request):
    needed, shows = EXAMPLES[name]
    for module in needed:
        pytest.importorskip(module)
    if name == "pytorch":
        import torch

        request.addfinalizer(functools.partial(torch.set_num_threads, torch.get_num_threads()))
    monkeypatch.delenv("PYOPTIM_DATA", raising=False)  # the digits that ship
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    result = runpy.run_module(f"pyoptim.examples.{name}", run_name="__main__")
    assert shows(result), capsys.readouterr().out
    assert capsys.readouterr().out


def test_the_example_of_a_gpu_says_what_it_needs(capsys):
    result, code = {}, None
    try:
        result = runpy.run_module("pyoptim.examples.cupy_arrays", run_name="__main__")
    except SystemExit as end:
        code = end.code
    told = capsys.readouterr().out
    assert (code == 77 and "pyoptim[cuda]" in told) or (result["same"] and result["distance"] < 1e-3), told


def test_every_example_is_listed_and_tested(capsys):
    assert set(examples.FILES) == {*EXAMPLES, "cupy_arrays"}
    assert examples.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(examples.FILES)
    assert all(len(line.split()) > 5 for line in lines)


def test_an_example_says_what_is_not_installed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert examples.main(["optuna_search"]) == 77
    assert "optuna" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["wrong"], ["--notebook", "a.ipynb"], ["--notebook", ""]])
def test_a_wrong_command_is_an_error(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        examples.main(arguments)
    assert exit.value.code == 2
    assert "NAME" in capsys.readouterr().err


def test_a_mistake_in_the_package_is_not_taken_for_what_is_not_installed(monkeypatch):
    def fails(name, run_name):
        raise ImportError("cannot import name 'Dense' from 'pyoptim.nn'", name="pyoptim.nn")

    monkeypatch.setattr(runpy, "run_module", fails)
    with pytest.raises(ImportError, match="cannot import name 'Dense'"):
        examples.main(["custom_loss"])


@pytest.mark.parametrize("name", examples.FILES)
def test_a_notebook_has_the_whole_example(name, tmp_path):
    file = tmp_path / "example.ipynb"
    assert examples.main([name, "--notebook", str(file)]) == 0
    book = json.loads(file.read_text("utf-8"))
    source = examples.FILES[name].read_text("utf-8")
    text, *_ = cells = ["".join(cell["source"]) for cell in book["cells"]]
    assert text == ast.get_docstring(ast.parse(source), clean=False).strip()
    code = "\n".join(cell for cell, of in zip(cells, book["cells"], strict=True) if of["cell_type"] == "code")
    assert ast.dump(ast.parse(code)) == ast.dump(ast.Module(ast.parse(source).body[1:], []))
    assert len(source.splitlines()) <= 60
