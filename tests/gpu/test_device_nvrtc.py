"""What the CuPy backend gives NVRTC to compile."""

import ctypes
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from support import doubles, emulator
from support.device import INCLUDE, load, use_cupy
from support.doubles import There

import pyoptim as po


def test_what_nvrtc_is_given(cuda, no_gpu, monkeypatch):
    use_cupy(monkeypatch, cuda)
    own = po.Adam(There(np.ones(3, np.float32)))
    own.step(There(np.ones(3, np.float32)))
    own.step(There(np.ones(3, np.float32)))
    ((code, options, names),) = sys.modules["cupy"].compiled  # once
    assert names == ("step<rule_named::adam, float>",)
    assert options == ("--std=c++17", "--fmad=false", f"-I{INCLUDE}")
    assert code.splitlines() == ['#include "cuda/kernels/kernels.cuh"', "using namespace pyoptim::cuda;"]


def test_cupy_adds_no_option_that_changes_numbers(monkeypatch):
    compiler = pytest.importorskip("cupy.cuda.compiler")
    given = []

    class Program:
        def __init__(self, *args, **kwargs):
            pass

        def compile(self, options, log):
            given.extend(options)
            return b"", {}

    monkeypatch.setattr(compiler, "_NVRTCProgram", Program)
    monkeypatch.setattr(compiler, "_get_nvrtc_version", lambda: (12, 0))
    monkeypatch.setattr(compiler, "_get_arch_for_options_for_nvrtc", lambda arch: ("-arch=sm_90", "cubin"))
    compiler.compile_using_nvrtc("", ("--fmad=false",), "90", name_expressions=("a",))
    assert given == ["--fmad=false", "-arch=sm_90", "--device-as-default-execution-space"]


def test_an_install_without_headers(cuda, no_gpu, monkeypatch):
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    for name, module in doubles.cupy(cuda).items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(ImportError, match=r"this install has no CUDA headers: there is no folder '.*csrc'"):
        load(monkeypatch, "nvrtc")


def test_nvrtc_compiles_what_it_is_given(cuda, no_gpu, monkeypatch):
    library = emulator.nvrtc()
    if library is None:
        pytest.skip("needs NVRTC (pip install nvidia-cuda-nvrtc)")
    backend = use_cupy(monkeypatch, cuda)
    program, name = ctypes.c_void_p(), b"step<rule_named::adam, float>"
    source = backend.PROGRAM.encode()
    assert library.nvrtcCreateProgram(ctypes.byref(program), source, b"pyoptim.cu", 0, None, None) == 0
    assert library.nvrtcAddNameExpression(program, name) == 0
    options = [option.encode() for option in (*backend.options(INCLUDE), "-arch=compute_80")]
    assert library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options)) == 0
    size = ctypes.c_size_t()
    assert library.nvrtcGetPTXSize(program, ctypes.byref(size)) == 0
    ptx = ctypes.create_string_buffer(size.value)
    assert library.nvrtcGetPTX(program, ptx) == 0
    library.nvrtcDestroyProgram(ctypes.byref(program))
    assert b".entry" in ptx.value
    assert b"sqrt.rn.f32" in ptx.value
    assert b".ftz" not in ptx.value
    assert b"fma" not in ptx.value.replace(b"fmad", b"")  # the CPU's bits


def test_cupy_imports_without_a_driver(run_python):
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("needs CuPy")
    done = run_python("import pyoptim.backends.gpu.nvrtc")
    assert done.returncode == 0 or "ImportError: no CUDA device can be used: " in done.stderr, done.stderr
