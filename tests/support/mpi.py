"""Starting a test's program as several processes."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STARTER = shutil.which(
    "mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
)
has_mpi = STARTER is not None and importlib.util.find_spec("mpi4py") is not None
needs_mpi = pytest.mark.skipif(not has_mpi, reason="mpi4py or mpiexec is missing")


def start(ranks, program, *arguments):
    """Run a program of this folder by so many processes."""
    command = [STARTER, "-n", str(ranks), sys.executable, Path(__file__).parent / program, *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)


def succeeds(ranks, program, *arguments):
    """Run a program of which each rank says at the end that it is done."""
    ended = start(ranks, program, *arguments)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert all(f"rank {rank} is done" in ended.stdout for rank in range(ranks))
