"""cuBLASLt through ctypes, for both launchers, since CuPy's own products cannot be captured into CUDA graphs.

Numbers and signatures are those of cublasLt.h (CUDA 12 and 13), which do not change between versions.
"""

from __future__ import annotations

import ctypes
import threading
from ctypes import POINTER, byref, c_double, c_float, c_int, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any, NamedTuple

_COMPUTE = {False: 68, True: 70}  # CUBLAS_COMPUTE_32F: no TF32; CUBLAS_COMPUTE_64F
_TYPE = {False: 0, True: 1}  # CUDA_R_32F, CUDA_R_64F
_TRANS_A, _TRANS_B, _EPILOGUE, _BIAS_POINTER = 3, 4, 7, 8  # CUBLASLT_MATMUL_DESC_
_EPILOGUE_BIAS = 4
_MAX_WORKSPACE = 1  # CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES
_MIN_ALIGNMENT = (5, 6, 7, 8)  # CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, B, C, D
_TRANSPOSED = 1  # CUBLAS_OP_T
_NOT_SUPPORTED = 15  # CUBLAS_STATUS_NOT_SUPPORTED


class _Algorithm(ctypes.Structure):
    _fields_ = (("data", c_uint64 * 8),)


class _Heuristic(ctypes.Structure):
    _fields_ = (
        ("algorithm", _Algorithm),
        ("workspace", c_size_t),
        ("status", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


_SET = (c_void_p, c_int, c_void_p, c_size_t)  # object, attribute, value, size of the value
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cublasLtCreate": (POINTER(c_void_p),),
    "cublasLtMatmulDescCreate": (POINTER(c_void_p), c_int, c_int),
    "cublasLtMatmulDescSetAttribute": _SET,
    "cublasLtMatrixLayoutCreate": (POINTER(c_void_p), c_int, c_uint64, c_uint64, c_int64),
    "cublasLtMatmulPreferenceCreate": (POINTER(c_void_p),),
    "cublasLtMatmulPreferenceDestroy": (c_void_p,),
    "cublasLtMatmulPreferenceSetAttribute": _SET,
    # handle, description, four layouts, preference, how many are wanted, results, how many there are
    "cublasLtMatmulAlgoGetHeuristic": (*(c_void_p,) * 7, c_int, POINTER(_Heuristic), POINTER(c_int)),
    # handle, description, alpha, A, B, beta, C, D: each with its layout; algorithm, workspace, size, stream
    "cublasLtMatmul": (*(c_void_p,) * 12, POINTER(_Algorithm), c_void_p, c_size_t, c_void_p),
}


class _Plan(NamedTuple):
    """A kind of product, whose algorithm is chosen once, so that results repeat."""

    description: c_void_p
    first: c_void_p
    second: c_void_p
    result: c_void_p
    algorithm: _Algorithm
    one: Any
    zero: Any


class Blas:
    """cuBLASLt loaded from a file, for the GPU in use. It and its plans live as long as the process.

    Raises
    ------
    OSError
        The file cannot be loaded, or is not cuBLASLt.
    RuntimeError
        The library does not work with the driver.
    """

    workspace_bytes = 32 << 20

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        try:
            self._library.cublasLtGetVersion.restype = c_size_t
            for name, types in _SIGNATURES.items():
                getattr(self._library, name).argtypes = types
        except AttributeError as error:
            raise OSError(str(error)) from error
        self._handle = self._made("cublasLtCreate")
        self._plans: dict[Any, _Plan | None] = {}
        self._lock = threading.Lock()  # a plan holds the address of the bias

    @property
    def version(self) -> int:
        return int(self._library.cublasLtGetVersion())

    def product(
        self,
        shape: tuple[int, int, int],
        a: tuple[int, bool],
        b: tuple[int, bool],
        bias: int,
        y: int,
        is_double: bool,
        workspace: int,
        stream: int,
    ) -> bool:
        """Queue y (m, n) = a (m, k) b (k, n) + bias on the stream; bias has n elements, address 0 means none.

        The result is False, and nothing is queued, if cuBLASLt has no algorithm for this kind of product, and
        it stays so. Matrices are row-major. shape is (m, n, k), none of them 0; a and b are pairs of an
        address and whether the matrix is stored transposed; workspace is ``workspace_bytes`` of GPU memory.
        Products in double take no bias.
        """
        # An algorithm may need arrays that lie on 16 bytes; the bias is one of them.
        aligned = (a[0] | b[0] | bias | y) % 16 == 0
        key = shape, a[1], b[1], bias != 0, is_double, aligned
        with self._lock:
            if key not in self._plans:
                self._plans[key] = self._plan(*key)
            plan = self._plans[key]
            if plan is None:
                return False
            if bias:
                self._set(plan.description, _BIAS_POINTER, c_void_p(bias))
            done = self._can(
                "cublasLtMatmul", self._handle, plan.description, byref(plan.one), b[0], plan.first, a[0],
                plan.second, byref(plan.zero), y, plan.result, y, plan.result, plan.algorithm, workspace,
                self.workspace_bytes, stream,
            )  # fmt: skip
            if not done:
                self._plans[key] = None
            return done

    def _plan(
        self,
        shape: tuple[int, int, int],
        a_transposed: bool,
        b_transposed: bool,
        has_bias: bool,
        is_double: bool,
        aligned: bool,
    ) -> _Plan | None:
        # cuBLASLt's matrices are column-major: it computes y^T (n, m) = b^T (n, k) a^T (k, m), in the same
        # memory, where the bias belongs to y^T's rows. Its ReLU, max(x, 0), may make 0 of NaN: not used.
        m, n, k = shape
        kind = _TYPE[is_double]
        description = self._made("cublasLtMatmulDescCreate", _COMPUTE[is_double], kind)
        if b_transposed:
            self._set(description, _TRANS_A, c_int(_TRANSPOSED))
        if a_transposed:
            self._set(description, _TRANS_B, c_int(_TRANSPOSED))
        number = c_double if is_double else c_float
        alignment = c_uint32(16 if aligned else ctypes.sizeof(number))
        if has_bias:
            self._set(description, _EPILOGUE, c_int(_EPILOGUE_BIAS))
            # Only the alignment of this address counts, since the algorithm will serve every later bias.
            self._set(description, _BIAS_POINTER, c_void_p(alignment.value))

        def layout(rows: int, cols: int) -> c_void_p:
            return self._made("cublasLtMatrixLayoutCreate", kind, rows, cols, rows)

        first = layout(k, n) if b_transposed else layout(n, k)
        second = layout(m, k) if a_transposed else layout(k, m)
        result = layout(n, m)
        found, choice, preference = c_int(), _Heuristic(), self._made("cublasLtMatmulPreferenceCreate")
        try:
            wishes = [(_MAX_WORKSPACE, c_uint64(self.workspace_bytes))]
            for attribute, value in [*wishes, *((at, alignment) for at in _MIN_ALIGNMENT)]:
                size = ctypes.sizeof(value)
                self._call("cublasLtMatmulPreferenceSetAttribute", preference, attribute, byref(value), size)
            fine = self._can(
                "cublasLtMatmulAlgoGetHeuristic", self._handle, description, first, second, result, result,
                preference, 1, choice, found,
            )  # fmt: skip
        finally:
            self._call("cublasLtMatmulPreferenceDestroy", preference)
        if not fine or not found.value or choice.status:
            return None
        return _Plan(description, first, second, result, choice.algorithm, number(1), number(0))

    def _made(self, function: str, *arguments: Any) -> c_void_p:
        made = c_void_p()
        self._call(function, byref(made), *arguments)
        return made

    def _set(self, description: c_void_p, attribute: int, value: Any) -> None:
        size = ctypes.sizeof(value)
        self._call("cublasLtMatmulDescSetAttribute", description, attribute, byref(value), size)

    def _call(self, function: str, *arguments: Any) -> None:
        if not self._can(function, *arguments):
            raise RuntimeError(f"{function} failed: it is not supported")

    def _can(self, function: str, *arguments: Any) -> bool:
        """Call a function of the library; return False if it answers that the request is not supported."""
        status = getattr(self._library, function)(*arguments)
        if status and status != _NOT_SUPPORTED:
            raise RuntimeError(f"{function} failed with status {status}")
        return not status
