"""The layout of the project: which C++ folder may include which, and that documents and files agree.

`lint-imports` holds for Python what the first tests hold for C++.
"""

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
SEES["examples"] = {"include/pyoptim"}
SEES["peers"] = {"include/pyoptim", "peers"}
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
            yield (file.parent / name).resolve().relative_to(CSRC)


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


def test_bindings_read_no_array_while_other_threads_may_reshape_it():
    reads = re.compile(r"(\.|->)(data|mutable_data|size|shape|ndim|nbytes)\(|data_or_null")
    wrong, blocks = [], 0
    for file in sorted((CSRC / "python").glob("*.?pp")):
        text = file.read_text("utf-8")
        for found in re.finditer(r"(Unlocked|gil_scoped_release)(> release| release;)", text):
            depth, end = 1, found.end()
            while depth > 0:  # to the end of the block
                depth += {"{": 1, "}": -1}.get(text[end], 0)
                end += 1
            blocks += 1
            wrong += [
                f"{file.name}: {line.strip()}"
                for line in text[found.end() : end].splitlines()
                if reads.search(line)
            ]
    assert blocks > 15
    assert not wrong, "\n".join(wrong)


def test_every_source_is_listed_in_a_cmake_file():
    lists = [SOURCE / "CMakeLists.txt", *CSRC.rglob("CMakeLists.txt")]
    text = "\n".join(file.read_text("utf-8") for file in lists)
    missing = [f for f in SOURCES if f.suffix in (".cpp", ".cu") and not re.search(rf"\b{f.name}\b", text)]
    assert not missing


@pytest.fixture(scope="module")
def committed():
    """The paths of the project's files, relative to the checkout."""
    if not (SOURCE / ".git").exists():
        pytest.skip("needs a git checkout, which tells the project's files from what was made beside them")
    done = subprocess.run(["git", "ls-files"], cwd=SOURCE, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.splitlines() if (SOURCE / name).is_file()]


def test_the_top_level_is_what_it_should_be(committed):
    top = {name.split("/")[0] for name in committed}
    fixed = {"pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "csrc", "pyoptim", "tests"}
    assert {name for name in top if not name.startswith(".")} == fixed


def test_contributors_are_told_of_every_folder(committed):
    guide = (SOURCE / ".github" / "CONTRIBUTING.md").read_text("utf-8")
    walk = guide.split("## A walk through the tree")[1].split("\n## ")[0]
    first_columns = [
        "".join(re.findall(r"^\| (`.*?) \|", half, re.MULTILINE)) for half in walk.split("In C++")
    ]
    told = [set(re.findall("`([^`]*?)/`", column)) for column in first_columns]
    packages = {name.split("/")[1] for name in committed if re.match("pyoptim/.*/", name)}
    folders = {str(Path(name).parent) for name in committed if name.startswith("csrc/")} - {"csrc"}
    assert told == [packages, {folder.removeprefix("csrc/") for folder in folders}]


def test_hooks_and_ci_use_the_same_versions(committed):
    ci = (SOURCE / ".ci" / "run").read_text("utf-8")
    hooks = (SOURCE / ".pre-commit-config.yaml").read_text("utf-8")
    versions = dict(re.findall(r"/(?:mirrors-)?([\w-]+?)(?:-pre-commit)?\n    rev: v(\S+)", hooks))
    assert versions.keys() == {"ruff", "clang-format"}
    for tool, version in versions.items():
        assert re.findall(rf"\b{tool}==(\S+)", ci) == [version]


def test_lines_end_where_their_text_does(committed):
    files = [SOURCE / name for name in committed if name.startswith(("csrc/", "pyoptim/", "tests/"))]
    texts = {file: data for file in files if b"\0" not in (data := file.read_bytes())}
    assert not [file for file, data in texts.items() if re.search(rb"[ \t\r]\n|\n\n\Z|[^\n]\Z", data)]


def test_tests_share_by_way_of_support_alone():
    files = list((SOURCE / "tests").rglob("*.py"))
    names = "|".join(file.stem for file in files if file.stem.startswith("test_"))
    sharing = re.compile(rf"^\s*(from|import) ({names})\b", re.MULTILINE)
    assert not [file for file in files if sharing.search(file.read_text("utf-8"))]


def test_oracles_share_no_code_with_the_package():
    oracles = list((SOURCE / "tests" / "oracles").glob("*.py"))
    assert len(oracles) >= 3
    for file in oracles:
        assert not re.search(r"^\s*(from|import) pyoptim", file.read_text("utf-8"), re.MULTILINE), file


def test_the_wheels_of_parts_are_built_as_the_whole():
    tomllib = pytest.importorskip("tomllib")
    whole, *parts = (
        tomllib.loads((SOURCE / folder / "pyproject.toml").read_text("utf-8"))
        for folder in (".", "csrc/api", "csrc/cuda")
    )
    for part in parts:
        assert part["build-system"] == whole["build-system"]
        assert part["project"]["requires-python"] == whole["project"]["requires-python"]
        assert part["tool"]["scikit-build"]["cmake"]["build-type"] == "Release"
