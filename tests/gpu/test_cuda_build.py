"""The CUDA sources compile, with nvcc and NVRTC, and the module imports, all without a GPU."""

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from support import emulator

import pyoptim as po
from pyoptim.backends.gpu import cublaslt, products
from pyoptim.backends.gpu.cublaslt import Blas

SOURCE = Path(__file__).resolve().parents[2]
CSRC = SOURCE / "csrc"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.skipif(
    importlib.util.find_spec("pyoptim.backends.gpu._cuda") is not None, reason="they have been compiled"
)
@pytest.mark.parametrize("name", ["steps", "packed", "layers"])
def test_nvcc_compiles(name, tmp_path):
    options = ["-std=c++17", "--fmad=false", "-arch=sm_80", "-Werror=all-warnings", "-I", SOURCE / "csrc"]
    file = SOURCE / "csrc" / "cuda" / f"{name}.cu"
    command = ["nvcc", *options, "-c", file, "-o", tmp_path / "out.o"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
@pytest.mark.parametrize("wanted", ["AUTO", "ON"])
def test_a_broken_nvcc_is_no_reason_not_to_build_the_rest(wanted, tmp_path):
    pybind11 = pytest.importorskip("pybind11")
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    nvcc.chmod(0o755)
    options = [f"-DPYOPTIM_CUDA={wanted}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    options += ["-DSKBUILD=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    command = ["cmake", "-S", SOURCE, "-B", tmp_path / "build", *options]
    env = {**os.environ, "CUDACXX": str(nvcc)}
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=600, check=False, env=env
    )
    if wanted == "AUTO":
        assert done.returncode == 0, done.stderr
        assert "no CUDA module: there is no nvcc that works" in done.stdout
    else:
        assert done.returncode != 0
        assert "PYOPTIM_CUDA is ON, but there is no nvcc that works" in done.stderr


def names_of_kernels():
    """The kernels by the names that NVRTC knows, as kernels.cuh lists them."""
    text = (CSRC / "cuda" / "kernels" / "kernels.cuh").read_text("utf-8")

    def listed(macro, source):
        (block,) = re.findall(rf"define {macro}\(X\)(.*?[^\\])\n", source + "\n", re.S)
        return re.findall(r"X\((\w+)", block)

    both, double, single, labels = (
        listed(f"PYOPTIM_FOR_EACH_{name}", text)
        for name in ("KERNEL", "DOUBLE_KERNEL", "FLOAT_KERNEL", "LABEL_KERNEL")
    )
    rules = listed("PYOPTIM_FOR_EACH_RULE", (CSRC / "formulas" / "rules.hpp").read_text("utf-8"))
    return [
        *(f"{kernel}<{t}>" for kernel in both for t in ("float", "double")),
        *(f"{kernel}<double>" for kernel in double),
        *(f"{kernel}<float>" for kernel in single),
        *(f"{kernel}<long long>" for kernel in labels),
        *(f"step<rule_named::{rule}, {t}>" for rule in rules for t in ("float", "double")),
        *(f"packed_step<rule_named::{rule}, float>" for rule in rules),
    ]


def test_nvrtc_compiles():
    library = emulator.nvrtc()
    if library is None:
        pytest.skip("needs NVRTC (pip install nvidia-cuda-nvrtc)")
    program = ctypes.c_void_p()
    source = b'#include "cuda/kernels/kernels.cuh"\nusing namespace pyoptim::cuda;\n'
    assert library.nvrtcCreateProgram(ctypes.byref(program), source, b"pyoptim.cu", 0, None, None) == 0
    names = [name.encode() for name in names_of_kernels()]
    assert len(names) > 80
    for name in names:
        assert library.nvrtcAddNameExpression(program, name) == 0
    options = [b"-std=c++17", b"--fmad=false", b"-arch=compute_80", f"-I{CSRC}".encode()]
    status = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()
    assert b"warning" not in log.value, log.value.decode()
    for name in names:
        lowered = ctypes.c_char_p()
        assert library.nvrtcGetLoweredName(program, name, ctypes.byref(lowered)) == 0, name
        assert lowered.value
    library.nvrtcDestroyProgram(ctypes.byref(program))


def test_cublaslt_takes_our_numbers(monkeypatch):
    """Descriptions of products need no GPU: a number or size that is not the library's is refused."""
    made = Blas._made
    without_device = "cublasLtCreate"  # the handle, which only the last call below would need
    monkeypatch.setattr(Blas, "_made", lambda *of: None if of[1] == without_device else made(*of))
    for path in products._candidates():
        with suppress(OSError):
            blas = Blas(path)
            break
    else:
        pytest.skip("needs cuBLASLt (pip install nvidia-cublas)")
    assert 12 <= blas.version // 10000 < 100
    for is_double, aligned in ((False, True), (False, False), (True, True)):
        with pytest.raises(RuntimeError, match="cublasLtMatmulAlgoGetHeuristic failed with status "):
            blas._plan((5, 1, 3), True, True, not is_double, is_double, aligned)
    description = made(blas, "cublasLtMatmulDescCreate", 68, 0)
    with pytest.raises(RuntimeError, match="cublasLtMatmulDescSetAttribute failed with status 7"):
        blas._set(description, cublaslt._TRANS_A, ctypes.c_uint64(1))


def test_the_module_imports_and_says_what_is_missing():
    try:
        from pyoptim.backends.gpu import _cuda
    except ImportError:
        pytest.skip("this install was built without nvcc")
    assert set(_cuda.kernels()) == set(names_of_kernels())
    if _cuda.device_count() > 0:
        assert _cuda.why_not() is None
        return
    assert _cuda.why_not()
    with pytest.raises(RuntimeError, match="no CUDA device can be used: "):
        _cuda.launch("total<double>", 1, (0, None, 1.0, None, None), 0)
    with pytest.raises(RuntimeError, match="no CUDA device can be used: "):
        _cuda.Memory(16)


def test_an_install_has_the_headers_that_cupy_compiles():
    package = Path(po.__file__).parent
    if (package.parent / "csrc").is_dir():
        pytest.skip("this is the source tree")
    assert (package / "backends" / "gpu" / "csrc" / "cuda" / "kernels" / "kernels.cuh").is_file()
