"""The programs of tests/cpp/programs, built as a user would build them."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2]
CONSUMERS = SOURCE / "tests" / "cpp" / "programs"
C_ONLY = SOURCE / "tests" / "cpp" / "c_only"
needs_tools = pytest.mark.skipif(
    not (shutil.which("cmake") and (shutil.which("c++") or shutil.which("g++"))),
    reason="needs cmake and a C++ compiler",
)


def run(*command):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(folder):
    """Build them along with the library, in folder/sub, and with the installed one, in folder/found."""
    run("cmake", "-S", CONSUMERS, "-B", folder / "sub", f"-DPYOPTIM_SOURCE={SOURCE}", "-DPYOPTIM_INSTALL=ON")
    run("cmake", "--build", folder / "sub", "-j2")
    run("cmake", "--install", folder / "sub" / "_deps" / "pyoptim-build", "--prefix", folder / "prefix")
    for source, name in ((CONSUMERS, "found"), (C_ONLY, "c_only")):
        run("cmake", "-S", source, "-B", folder / name, f"-DCMAKE_PREFIX_PATH={folder / 'prefix'}")
        run("cmake", "--build", folder / name, "-j2")
