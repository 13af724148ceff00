"""The CUDA module built for the host: the same kernels and bindings, with the emulator in place of a GPU."""

import ctypes
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
HERE = SOURCE / "tests" / "gpu" / "emulator"
FILES = [
    "module.cpp",
    "bind_launch.cpp",
    "bind_device.cpp",
    "bind_graph.cpp",
    "steps.cu",
    "packed.cu",
    "layers.cu",
]


def why_not():
    """Why it cannot be built here, or None."""
    if compiler() is None:
        return "needs a C++ compiler"
    if sys.platform != "linux":
        return "the emulator's fibers need Linux"
    try:
        import pybind11  # noqa: F401
    except ImportError:
        return "needs pybind11"
    return None


def compiler():
    return shutil.which("c++") or shutil.which("g++")


def build(folder):
    """Compile ``_cuda`` into ``folder``."""
    import pybind11

    flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]
    flags += ["-Wall", "-Wextra", "-Werror", "-include", "emulator.hpp"]
    paths = [HERE, SOURCE / "csrc", SOURCE / "csrc" / "include", pybind11.get_include(),
             sysconfig.get_path("include")]  # fmt: skip
    flags += [f"-I{path}" for path in paths]

    def compile_one(name):
        made = folder / f"{name}.o"
        run(compiler(), *flags, "-x", "c++", "-c", SOURCE / "csrc" / "cuda" / name, "-o", made)
        return made

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, FILES))
    run(
        compiler(),
        "-shared",
        *objects,
        "-o",
        folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}",
        "-ldl",
    )


def build_cublaslt(folder):
    """Compile the stand-in for libcublasLt: its path."""
    made = folder / "libcublasLt.so"
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off"]
    run(compiler(), *flags, HERE / "cublaslt.cpp", "-o", made)
    return made


def run(*command):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def nvrtc():
    """The library of the nvidia-cuda-nvrtc package, or the toolkit's; None without."""
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations) if spec is not None else []
    for file in [str(file) for folder in folders for file in Path(folder).glob("*/lib/libnvrtc.so.*")] + [
        "libnvrtc.so.13", "libnvrtc.so.12"
    ]:  # fmt: skip
        try:
            return ctypes.CDLL(file)
        except OSError:
            continue
    return None
