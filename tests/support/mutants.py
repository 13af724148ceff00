"""Small mistakes in kernels that a test should notice: ``.ci/mutate`` calls this in a clone.

Each mistake replaces an operator, a comparison or a number of one line. It counts as noticed if it does not
compile, or if a test fails or does not end. Those that nothing noticed are printed; the exit status is 1 if
they are more than a tenth, since some changes have no effect.
"""

import argparse
import random
import re
import shlex
import subprocess
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
FOLDERS = ("csrc/formulas", "csrc/cpu")
SWAPS = {
    " + ": " - ", " - ": " + ", " * ": " / ", " / ": " * ", " += ": " -= ", " < ": " <= ", " <= ": " < ",
    " > ": " >= ", " >= ": " > ", " == ": " != ", " && ": " || ", " || ": " && ", "T(1)": "T(2)",
    "std::max": "std::min", "PYOPTIM_C(fmax": "PYOPTIM_C(fmin", "true": "false",
}  # fmt: skip
PLACES = re.compile("|".join(map(re.escape, sorted(SWAPS, key=len, reverse=True))))
TESTS = "tests/optim/test_optimizers.py tests/nn tests/ops tests/formulas tests/train/test_engine.py"


def mistakes():
    """Every (file, line number, column, what stands there) that can be replaced, in order."""
    for folder in FOLDERS:
        for path in sorted((SOURCE / folder).glob("*.[ch]pp")):
            for number, line in enumerate(path.read_text("utf-8").splitlines()):
                code = line.split("//")[0]
                if not code.lstrip().startswith(("#", "template", "static_assert", "using")):
                    for found in PLACES.finditer(code):
                        yield path, number, found.start(), found.group()


def with_mistake(text, number, column, old):
    """The text of a file with one mistake, and the line that has it."""
    lines = text.splitlines(keepends=True)
    line = lines[number]
    assert line[column : column + len(old)] == old
    lines[number] = line[:column] + SWAPS[old] + line[column + len(old) :]
    return "".join(lines), lines[number].strip()


def is_noticed(build, seconds):
    """Whether the sources as they are do not compile, or fail a test."""
    for command in (build, f"pytest -q -x -k 'not numba and not [numpy' {TESTS}"):
        try:
            done = subprocess.run(
                shlex.split(command), cwd=SOURCE, capture_output=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:  # such as a loop without an end
            return True
        if done.returncode != 0:
            return True
    return False


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--build", required=True, help="the command that compiles and installs the sources")
    parser.add_argument("--seconds", type=float, default=900, help="after which a test has failed")
    arguments = parser.parse_args()
    if is_noticed(arguments.build, 4 * arguments.seconds):
        raise SystemExit("the tests fail without a mistake")
    every = list(mistakes())
    chosen = random.Random(arguments.seed).sample(every, min(arguments.number, len(every)))
    missed = 0
    for path, number, column, old in chosen:
        before = path.read_text("utf-8")
        changed, line = with_mistake(before, number, column, old)
        path.write_text(changed, "utf-8")
        try:
            noticed = is_noticed(arguments.build, arguments.seconds)
        finally:
            path.write_text(before, "utf-8")
        missed += not noticed
        word = "noticed" if noticed else "MISSED "
        print(f"{word} {path.relative_to(SOURCE)}:{number + 1}: {line}", flush=True)
    found = f"{len(chosen) - missed} of {len(chosen)} mistakes were noticed"
    print(f"{found} (seed {arguments.seed}, {len(every)} places)")
    raise SystemExit(missed > len(chosen) / 10)


if __name__ == "__main__":
    main()
