"""Python in processes of their own, which import the installed package and never the checkout's folder."""

import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").exists())


def start(*arguments, cwd, **options):
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=cwd, text=True, **options)


def run(*arguments, cwd, **options):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, **options)


def forbid_the_checkout():
    """From now on this process cannot start Python where ``import pyoptim`` would find the checkout's folder.

    Nothing is compiled there, so such a child tests something else than what was installed, or fails.
    """
    sys.addaudithook(_refuse_the_checkout)


def _refuse_the_checkout(event, arguments):
    if event != "subprocess.Popen":
        return
    executable, command, cwd, env = arguments
    program = os.fsdecode(executable or command[0])
    if not Path(program).name.startswith("python"):
        return
    path = os.fsdecode((os.environ if env is None else env).get("PYTHONPATH", ""))
    folders = [os.fsdecode(cwd or "."), *filter(None, path.split(os.pathsep))]
    if any(Path(folder).resolve() == CHECKOUT for folder in folders):
        raise AssertionError(
            f"{program} would import pyoptim from the checkout; use run_python or start_python"
        )
