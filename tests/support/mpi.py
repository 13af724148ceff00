"""Starting a test's program as several processes."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from pyoptim.runtime.extras import mpiexec

STARTER = mpiexec()
has_mpi = STARTER is not None and importlib.util.find_spec("mpi4py") is not None
needs_mpi = pytest.mark.skipif(not has_mpi, reason="mpi4py or mpiexec is missing")


def command(ranks, *arguments):
    """What starts Python with these arguments as so many processes."""
    return [STARTER, "-n", str(ranks), sys.executable, *map(str, arguments)]


def run(ranks, *arguments, **options):
    """Run Python with these arguments as so many processes."""
    return subprocess.run(command(ranks, *arguments), capture_output=True, text=True, timeout=120, **options)


def program(name):
    """A program of this folder."""
    return Path(__file__).parent / name


def start(ranks, name, *arguments):
    """Run a program of this folder by so many processes."""
    return run(ranks, program(name), *arguments)


def succeeds(ranks, name, *arguments):
    """Run a program of which each rank says at the end that it is done."""
    ended = start(ranks, name, *arguments)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert all(f"rank {rank} is done" in ended.stdout for rank in range(ranks))


def ends_all(name, folder, message):
    """Run a program of three ranks of which the second one fails with this message, and ends the others."""
    ended = start(3, name, "fails", folder)
    assert ended.returncode != 0
    assert "went on" not in ended.stdout
    assert "rank 1 of 3 failed" in ended.stderr
    assert message in ended.stderr
