"""The row pass in C++ (csrc/row_pass.cpp) through ctypes: fp32 logits on a CPU, in place.

Raw pointers: nothing here records a gradient, and z must not be a leaf that requires one.
"""

from __future__ import annotations

import ctypes
import functools
import math
import sys

import torch
from torch import Tensor

from grpo_fast.libraries import FOLDER, load
from grpo_fast.rowstats import RowStats

ABI = 1
LIBRARY = FOLDER / "librow_pass.so"

_P, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_ROWS = [_P, _I, _I, _I, _P, _F, _F]  # z, row stride, n, V, y, inv_temp, softcap
_FUNCTIONS = {
    "gf_exp_rows": (_I, [*_ROWS, _P, _P, _P, _P, ctypes.c_int]),
    "gf_stats_rows": (_I, [*_ROWS, _P, _P, _P, _P, ctypes.c_int]),
    "gf_grad_rows": (_I, [*_ROWS, _P, _P, _P, _P, _P, ctypes.c_int]),
}


class NativeUnavailable(RuntimeError):
    """The compiled library is missing or does not load."""


def why_unavailable() -> str | None:
    """The reason why the native backend cannot be used here, None where it can."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def exp_rows(z: Tensor, y: Tensor, inv_temp: float, softcap: float) -> RowStats:
    """z [n, V] becomes the unit gradient rows; y [n], negative = not scored."""
    return _stats("gf_exp_rows", z, y, inv_temp, softcap)


def stats_rows(z: Tensor, y: Tensor, inv_temp: float, softcap: float) -> RowStats:
    """The statistics alone; z is left as it was."""
    return _stats("gf_stats_rows", z, y, inv_temp, softcap)


def grad_rows(
    z: Tensor,  # [n, V]
    y: Tensor,  # [n]
    stats: RowStats,
    g: Tensor,  # [n] dL/dlogp
    g_entropy: Tensor,  # [n] dL/dentropy
    inv_temp: float,
    softcap: float,
) -> None:
    """z becomes dL/dz; stats are those of these rows under the same inv_temp and softcap."""
    per_row = {"logp": stats.logp, "entropy": stats.entropy, "s": stats.s, "g": g, "g_entropy": g_entropy}
    for name, t in per_row.items():
        if t.shape != (z.shape[0],) or t.dtype != torch.float32 or t.device != z.device:
            raise ValueError(f"grad_rows: {name} must be fp32 [{z.shape[0]}] on {z.device}, got {_describe(t)}")
    _call("gf_grad_rows", z, y, inv_temp, softcap, [t.contiguous() for t in per_row.values()])


def _stats(function: str, z: Tensor, y: Tensor, inv_temp: float, softcap: float) -> RowStats:
    stats = RowStats(*(torch.empty(len(z), dtype=torch.float32) for _ in RowStats._fields))
    _call(function, z, y, inv_temp, softcap, stats)
    return stats


def _call(
    function: str, z: Tensor, y: Tensor, inv_temp: float, softcap: float, per_row: RowStats | list[Tensor]
) -> None:
    if z.dtype != torch.float32 or z.device.type != "cpu" or z.ndim != 2:
        raise ValueError(f"{function}: logits must be fp32 [n, V] on the CPU, got {_describe(z)}")
    n, v = z.shape
    if (v > 1 and z.stride(1) != 1) or (n > 1 and z.stride(0) < v):
        raise ValueError(
            f"{function}: logits must have stride 1 along V and rows that do not overlap, got {z.stride()}"
        )
    if y.dtype != torch.int64 or y.device.type != "cpu" or y.shape != (n,):
        raise ValueError(f"{function}: targets must be int64 [{n}] on the CPU, got {_describe(y)}")
    if not (math.isfinite(inv_temp) and inv_temp > 0):
        raise ValueError(f"{function}: inv_temp must be finite and above 0, got {inv_temp}")
    if not (math.isfinite(softcap) and softcap >= 0):
        raise ValueError(f"{function}: softcap must be finite and at least 0 (0: none), got {softcap}")
    library = _load()
    if isinstance(library, str):
        raise NativeUnavailable(library)
    y = y.contiguous()
    bad_row = getattr(library, function)(
        z.data_ptr(), z.stride(0), n, v, y.data_ptr(), inv_temp, softcap,
        *(t.data_ptr() for t in per_row), torch.get_num_threads(),
    )  # fmt: skip
    if bad_row:
        row = bad_row - 1
        raise IndexError(f"{function}: target {int(y[row])} of row {row} lies outside the vocabulary of {v}")


def _describe(t: Tensor) -> str:
    return f"{t.dtype} {tuple(t.shape)} on {t.device}"


@functools.cache
def _load() -> ctypes.CDLL | str:
    return load(LIBRARY, ABI, _FUNCTIONS, "a C++ compiler", _open)


def _open(path: str) -> ctypes.CDLL:
    """Torch has put its OpenMP runtime into the global scope; a torch without one needs the compiler's."""
    try:
        return ctypes.CDLL(path)
    except OSError:
        suffix = ".dylib" if sys.platform == "darwin" else ".so"
        for runtime in ("libgomp.so.1", f"libomp{suffix}", "libomp.so.5"):
            try:
                ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)
                return ctypes.CDLL(path)
            except OSError:
                continue
        raise
