"""Square roots by multiply-adds, with AVX-512, are those of the processor, for all rules that have one."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
COMPILER = shutil.which("c++") or shutil.which("g++")


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_every_root_is_correctly_rounded(tmp_path):
    native = pytest.importorskip("pyoptim.runtime._native")
    if "avx512" not in native.instruction_sets():
        pytest.skip("this build on this processor has no avx512")
    program = tmp_path / "root"
    flags = ["-std=c++17", "-O1", "-march=x86-64-v4", "-ffp-contract=off", "-Wall", "-Wextra"]
    names = ["-DPYOPTIM_ISA=avx512", "-DPYOPTIM_VECTOR_BYTES=64", "-I", CSRC]
    subprocess.run([COMPILER, *flags, *names, "-o", program, HERE / "root.cpp"], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "every root is correctly rounded\n"), done.stderr


def test_the_step_knows_which_rules_take_a_root():
    rules = (CSRC / "formulas/rules.hpp").read_text("utf-8").split("namespace rules")[1]
    bodies = re.findall(r"(?s)\nstruct (\w+) {(.*?)\n};", rules)
    rooted = {name for name, body in bodies if "square_root(" in body}
    step = (CSRC / "cpu/step.hpp").read_text("utf-8")
    [known] = re.findall(r"(?s)kTakesRoot =\s*kIsOneOf<Rule,(.*?)>;", step)
    assert "Adam" in rooted
    assert set(re.findall(r"rules::(\w+)", known)) == rooted
