"""The house: which floor may see which. `lint-imports` holds the same for what Python imports."""

import re
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1]
CSRC = SOURCE / "csrc"

# What the files of a folder may include: the folder itself and those below it.
FLOORS = ["formulas", "cpu", "runtime", "optim", "layers", "engine", "api", "python"]  # bottom up
SEES = {floor: set(FLOORS[: i + 1]) for i, floor in enumerate(FLOORS)}
for above in ("engine", "api", "python"):
    SEES[above].add("include/pyoptim")  # the public headers, which these make true
SEES["include/pyoptim"] = {"include/pyoptim"}
SEES["cuda/kernels"] = {"formulas", "cuda/kernels"}
SEES["cuda"] = {"formulas", "cuda/kernels", "cuda"}

if not CSRC.is_dir():
    pytest.skip("needs the sources", allow_module_level=True)


def room(path):
    """The folder of csrc that a path belongs to, as the table names it."""
    parts = path.parts
    return "/".join(parts[:2]) if parts[:2] in (("cuda", "kernels"), ("include", "pyoptim")) else parts[0]


def included(file):
    """The files of the project that a file includes, relative to csrc."""
    for name in re.findall(r'^\s*#\s*include\s+["<]([^">]+)[">]', file.read_text("utf-8"), re.MULTILINE):
        if name.startswith("pyoptim/"):
            yield Path("include") / name
        elif (CSRC / name).is_file():
            yield Path(name)
        elif (file.parent / name).is_file():
            yield (file.parent / name).relative_to(CSRC)


SOURCES = sorted(p for p in CSRC.rglob("*") if p.suffix in (".h", ".hpp", ".cpp", ".cu", ".cuh"))


def test_every_include_stays_on_its_floor_or_goes_down():
    wrong = [
        f"{file.relative_to(CSRC)} includes {other}"
        for file in SOURCES
        for other in included(file)
        if room(other) not in SEES[room(file.relative_to(CSRC))]
    ]
    assert len(SOURCES) > 50
    assert not wrong, "\n".join(wrong)


def test_no_header_includes_itself_by_way_of_others():
    graph = {file.relative_to(CSRC): set(included(file)) for file in SOURCES}
    done, path = set(), []

    def visit(file):
        assert file not in path, " -> ".join(map(str, [*path[path.index(file) :], file]))
        if file in done:
            return
        path.append(file)
        for other in graph[file]:
            visit(other)
        done.add(path.pop())

    for file in graph:
        visit(file)
    assert len(done) == len(graph)


def test_every_source_is_listed_in_a_cmake_file():
    lists = [SOURCE / "CMakeLists.txt", *CSRC.rglob("CMakeLists.txt")]
    text = "\n".join(file.read_text("utf-8") for file in lists)
    missing = [f for f in SOURCES if f.suffix in (".cpp", ".cu") and not re.search(rf"\b{f.name}\b", text)]
    assert not missing


def test_the_top_level_is_what_it_should_be():
    if not (SOURCE / ".git").exists():
        pytest.skip("needs a git checkout, which tells the project's files from what was made beside them")
    done = subprocess.run(["git", "ls-files"], cwd=SOURCE, capture_output=True, text=True, check=True)
    top = {name.split("/")[0] for name in done.stdout.splitlines()}
    fixed = {"pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "csrc", "pyoptim", "tests"}
    assert {name for name in top if not name.startswith(".")} == fixed


def test_oracles_share_no_code_with_the_package():
    oracles = list((SOURCE / "tests" / "oracles").glob("*.py"))
    assert len(oracles) >= 3
    for file in oracles:
        assert not re.search(r"^\s*(from|import) pyoptim", file.read_text("utf-8"), re.MULTILINE), file
