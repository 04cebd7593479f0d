"""GEMM 1 of shifted_exp in CUDA (csrc/head_gemm_sm90.cu), through ctypes: for Hopper, where nvcc built it."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from grpo_fast.libraries import FOLDER, load

ABI = 1
LIBRARY = FOLDER / "libhead_gemm_sm90.so"
COLUMNS = 256  # of a tile: what one partial sum covers

_P, _I = ctypes.c_void_p, ctypes.c_int64
_FUNCTIONS = {
    "gf_head_gemm": (ctypes.c_int, [ctypes.c_int, *[_P] * 7, *[_I] * 6, ctypes.c_float, ctypes.c_int]),
    "gf_head_gemm_message": (ctypes.c_char_p, [ctypes.c_int]),
}


@functools.cache
def why_unavailable(device: torch.device) -> str | None:
    """The reason why this product cannot run on a device, None where it can."""
    if device.type != "cuda":
        return f"{device} is not a CUDA device"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) != (9, 0):
        return f"built for sm_90, this GPU is sm_{major}{minor}"
    library = _load()
    return library if isinstance(library, str) else None


def head_gemm(
    h: Tensor,  # [N, K] bf16
    w: Tensor,  # [V, K] bf16
    e: Tensor | None,  # [N, V] bf16
    shift: Tensor,  # [N] fp32
    sums: Tensor,  # [ceil(V / COLUMNS), N] fp32
    weighted: Tensor | None,  # the same
    scale: float,
    group: int,  # row tiles that share a column tile in L2
) -> None:
    """What _gemm_exp_kernel does, on operands that shifted_exp has checked; fills `e` and `weighted` where given."""
    library = _load()
    if isinstance(library, str):
        raise RuntimeError(library)
    device = shift.device
    code = library.gf_head_gemm(
        device.index, torch.cuda.current_stream(device).cuda_stream,
        *(None if t is None else t.data_ptr() for t in (h, w, e, shift, sums, weighted)), len(h), len(w), h.shape[1],
        h.stride(0), w.stride(0), 0 if e is None else e.stride(0), scale, max(1, group // 2),
    )  # fmt: skip
    if code:
        message = library.gf_head_gemm_message(code).decode()
        raise RuntimeError(f"head_gemm on {tuple(h.shape)} x {tuple(w.shape)}: {message} (CUDA error {code})")


@functools.cache
def _load() -> ctypes.CDLL | str:
    return load(LIBRARY, ABI, _FUNCTIONS, "nvcc of CUDA 12.5 or later")
