"""What the compiled modules show to other libraries of the process."""

import re
import shutil
import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("nm") is None, reason="needs Linux and nm")
@pytest.mark.parametrize("name", ["pyoptim.runtime._native", "pyoptim.backends.gpu._cuda"])
def test_modules_export_their_entry_points_alone(name):
    """Exported copies of a C++ runtime, say, would be mixed with those of others, and crash."""
    module = pytest.importorskip(name, exc_type=ImportError)
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", module.__file__], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[-1] for line in listed.splitlines()}
    assert f"PyInit_{name.rpartition('.')[2]}" in names
    assert all(re.fullmatch("PyInit_.*|pyoptim_.*", own) for own in names), sorted(names)
