"""Which implementation each op takes: `torch` runs anywhere, `native` is C++ for the CPU, `triton` is for CUDA.

`GRPO_FAST_BACKEND` overrides every choice; a backend that cannot run where it is asked to is refused by name.
"""

from __future__ import annotations

import importlib.util
import os

import torch

BACKENDS = ("torch", "native", "triton")
OPS = ("row_pass", "head_gemm", "policy_loss", "group_advantages", "kv_gather", "decode_attention", "draw")
VARIABLE = "GRPO_FAST_BACKEND"


def interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def usable(name: str) -> tuple[bool, str]:
    """Whether a backend can run here, and the reason."""
    if name == "torch":
        return True, "always"
    if name == "native":
        from grpo_fast import native

        reason = native.why_unavailable()
        return reason is None, reason or "compiled library found"
    if importlib.util.find_spec("triton") is None:
        return False, "triton is not installed"
    if torch.cuda.is_available():
        return True, f"CUDA device {torch.cuda.get_device_name()}"
    if interpreting():
        return True, "TRITON_INTERPRET=1 (the interpreter: for tests, very slow)"
    return False, "no CUDA device"


def requested(backend: str = "auto") -> str:
    """The backend asked for: the environment variable first, then the argument."""
    name = os.environ.get(VARIABLE) or backend
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"backend must be one of auto, {', '.join(BACKENDS)}; got {name!r}")
    return name


def choose(op: str, device: torch.device, dtype: torch.dtype, backend: str = "auto") -> str:
    """The backend that `op` takes for tensors of this device and dtype."""
    if op not in OPS:
        raise ValueError(f"unknown op {op!r}; known: {', '.join(OPS)}")
    name = requested(backend)
    if name == "auto":
        if device.type == "cuda" and usable("triton")[0]:
            name = "triton"
        elif device.type == "cpu" and op == "row_pass" and usable("native")[0]:
            name = "native"
        else:
            return "torch"
    if name == "native" and (op != "row_pass" or device.type != "cpu" or dtype == torch.float64):
        return "torch"
    if name == "triton" and (dtype == torch.float64 or (device.type != "cuda" and not interpreting())):
        if dtype == torch.float64:
            return "torch"
        raise RuntimeError(f"backend 'triton' needs a CUDA tensor for {op}, got one on {device}; unset {VARIABLE}")
    ok, reason = usable(name)
    if not ok:
        raise RuntimeError(f"backend {name!r} was asked for, but {reason}")
    return name
