"""The thread pool by itself: random regions, callers, nesting and forks, with pauses where threads meet."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
COMPILER = shutil.which("c++") or shutil.which("g++")


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("sanitizer", "arguments"),
    [("", ["3000", "fork"]), ("-fsanitize=thread", ["1000"]), ("-fsanitize=address,undefined", ["1000"])],
    ids=["plain", "thread", "address"],
)
def test_every_part_runs_once(tmp_path, sanitizer, arguments):
    program = tmp_path / "pool"
    flags = ["-std=c++17", "-O1", "-g", "-pthread", "-Wall", "-Wextra", *sanitizer.split()]
    build = [COMPILER, *flags, "-I", HERE.parents[1] / "csrc", "-o", program, HERE / "pool.cpp"]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    if sanitizer and "cannot find" in built.stderr:
        pytest.skip(f"this compiler has no {sanitizer}")
    assert built.returncode == 0, built.stderr
    for seed in ("1", "2"):
        done = subprocess.run(
            [program, seed, *arguments], capture_output=True, text=True, timeout=300, check=False
        )
        assert (done.returncode, done.stdout) == (0, "every part ran once\n"), done.stderr
