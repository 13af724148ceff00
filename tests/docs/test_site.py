"""The pages of the site, and the README: what they say to type works; every public name has its place.

The blocks of a page run in order, in one namespace and an empty folder. A block of text right after one of
code is what that prints; its numbers may differ a little, as they do between processors. A block with a title
is a file of that name. Of shell commands, those of `pyoptim` run, but for some that take long, and those of
cmake on the page about C++; the others install something.
"""

import ast
import importlib
import inspect
import math
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from support import consumers, public

import pyoptim as po
from pyoptim import cli

PAGES = Path(__file__).resolve().parents[2] / "pyoptim" / "docs" / "pages"
if not PAGES.is_dir():
    pytest.skip("needs the sources", allow_module_level=True)

BLOCK = re.compile(r'^( *)```(\w+)(?: title="([^"]+)")?\n(.*?)^\1```$', re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
NEEDS = {
    "tutorials/train-and-save.md": ("matplotlib",),
    "tutorials/own-table.md": ("pandas",),
    "tutorials/scikit-learn.md": ("sklearn", "pandas"),
    "tutorials/pytorch.md": ("torch",),
    "lectures/curvature.md": ("scipy",),
    "reference/command-line.md": ("scipy",),
    "how-to/large-data.md": ("sklearn",),
    "how-to/gpu.md": ("pyoptim.runtime._native",),
}


def blocks(page):
    """The language, title, text and line of each block of code."""
    text = page.read_text("utf-8")
    for found in BLOCK.finditer(text):
        indent, language, title, code = found.groups()
        code = re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)
        yield language, title, code, text.count("\n", 0, found.start()) + 1


def names():
    pages = sorted(str(page.relative_to(PAGES)) for page in PAGES.rglob("*.md") if any(blocks(page)))
    return [*pages, "../../../README.md"]


def same(printed, told):
    """Whether both are the same words, and nearly the same numbers."""
    if NUMBER.sub("0", printed).split() != NUMBER.sub("0", told).split():
        return False
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(told), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=0.03, abs_tol=0.03) for a, b in pairs)


def commands(code):
    """The commands of a block of shell, without comments, as lists of words."""
    lines = code.replace("\\\n", " ").splitlines()
    words = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [command for command in words if command]


def is_long(command):
    """Whether a command of pyoptim takes too long: tests of `lab` and `bench` run these in short forms."""
    return command[1] in ("study", "bench", "check", "compare") or "mnist" in command


def run_shell(code, tmp_path, prefix):
    for command in commands(code):
        if command[0] == "pyoptim" and is_long(command):
            if command[1] != "bench":  # it has a parser of its own
                cli._parser().parse_args(command[1:])
        elif command[0] == "pyoptim":
            assert cli.main(command[1:]) == 0, command
        elif prefix:
            command = [word.replace("$(python -m pyoptim --cmake-dir)", str(prefix)) for word in command]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            print(done.stdout, end="")


@pytest.fixture
def prefix(request):
    """Where CMake finds the C++ library, for the page about it."""
    if request.node.callspec.params["name"] != "tutorials/cpp.md":
        return None
    pytest.importorskip("pyoptim.runtime._native")
    if not (shutil.which("cmake") and (shutil.which("c++") or shutil.which("g++"))):
        pytest.skip("needs cmake and a C++ compiler")
    try:
        return po.cmake_dir()
    except FileNotFoundError:  # an install for work on pyoptim
        return request.getfixturevalue("build_once")("cmake", consumers.build) / "prefix"


@pytest.fixture
def settings(request, tmp_path, monkeypatch):
    """An empty folder; what pages set for the whole process is set back. One page has an emulated GPU."""
    if request.node.callspec.params["name"] == "how-to/gpu.md":
        request.getfixturevalue("emulated")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    threads = po.get_num_threads()
    yield
    po.set_num_threads(threads)


@pytest.mark.parametrize("name", names())
def test_what_a_page_says_works(name, tmp_path, settings, prefix, capsys):
    for module in NEEDS.get(name, ()):
        needed = pytest.importorskip(module)
        if module == "torch":  # its threads wait for each other, which takes long beside other tests
            needed.set_num_threads(1)
    space, printed = {"__name__": "__main__"}, ""
    for language, title, code, line in blocks(PAGES / name):
        capsys.readouterr()
        if title:
            (tmp_path / title).write_text(code, "utf-8")
            if language == "python":  # for another machine
                compile(code, title, "exec")
        elif language == "python":
            exec(compile("\n" * line + code, str(PAGES / name), "exec"), space)
            printed = capsys.readouterr().out
        elif language == "sh":
            run_shell(code, tmp_path, prefix)
            printed = capsys.readouterr().out
        elif language == "text":
            assert same(printed, code), f"{name}:{line} prints\n{printed}"


def test_every_page_has_its_place_and_none_is_missing():
    config = (PAGES.parent / "mkdocs.yml").read_text("utf-8")
    told = re.findall(r"[\w/.-]+\.md", config[config.index("\nnav:") :])
    assert sorted(told) == sorted(str(page.relative_to(PAGES)) for page in PAGES.rglob("*.md"))


def test_every_extra_is_on_the_page_about_installing():
    project = (PAGES.parents[2] / "pyproject.toml").read_text("utf-8")
    section = re.search(r"^\[project.optional-dependencies\]\n(.*?)^\[", project, re.MULTILINE | re.DOTALL)[1]
    rows = re.findall(r"^\| (`.*?) \|", (PAGES / "install.md").read_text("utf-8"), re.MULTILINE)
    told = re.findall(r"`(\w+)`", " ".join(rows[: [r.startswith("`PYOPTIM") for r in rows].index(True)]))
    assert sorted(told) == sorted(re.findall(r"^(\w+) =", section, re.MULTILINE))


def words_of(module):
    """The public names of a module, without the import of PyTorch or scikit-learn, which takes seconds."""
    if module not in ("sklearn", "torch"):
        return importlib.import_module(f"pyoptim.{module}").__all__
    folder = Path(po.__file__).parent
    file = folder / module / "__init__.py" if (folder / module).is_dir() else folder / f"{module}.py"
    listed = re.search(r"^__all__ = (\[.*?\])", file.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return ast.literal_eval(listed[1])


def test_every_public_name_is_on_a_reference_page():
    told = [
        name
        for page in (PAGES / "reference").glob("*.md")
        for name in re.findall(r"^::: (\S+)$", page.read_text("utf-8"), re.MULTILINE)
    ]
    assert len(told) == len(set(told))
    own = {name for name in po.__all__ if not inspect.ismodule(getattr(po, name))}
    wanted = {f"pyoptim.{name}" for name in own}
    for module in public.MODULES:
        names = words_of(module)
        wanted |= {f"pyoptim.{module}.{name}" for name in names if module != "config" or name not in own}
    assert set(told) == wanted
