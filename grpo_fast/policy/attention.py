"""Attention over segments: one call for a whole packed batch, with the backend the machine offers.

Registered with transformers as `ATTENTION`; a model that is set to it and called without a plan (generate, a plain
forward) attends through transformers' own SDPA.
"""

from __future__ import annotations

import importlib.util
import inspect
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_fast.errors import BadSettings
from grpo_fast.ops.kv_gather import kv_gather
from grpo_fast.types import AttentionPlan

ATTENTION = "grpo_fast_segments"
BACKENDS = ("flash_attn", "varlen", "xformers", "sdpa")  # by preference


class AttentionBackendError(BadSettings):
    pass


def segment_attention(
    q: Tensor,  # [T, Hq, D]
    k: Tensor,  # [T, Hk, D]
    v: Tensor,  # [T, Hk, D]
    plan: AttentionPlan,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:  # [T, Hq, D]
    if plan.kv is not None:
        k, v = kv_gather(k, plan.kv), kv_gather(v, plan.kv)
    chosen = choose_attention(backend, q.device.type, v.dtype, q.shape[-1])
    return _RUN[chosen](q, k, v, plan, q.shape[-1] ** -0.5 if scale is None else scale)


@lru_cache
def choose_attention(backend: str, device: str, dtype: torch.dtype, head_dim: int) -> str:
    if backend not in (*BACKENDS, "auto"):
        raise AttentionBackendError(f"no attention backend {backend!r}; known: auto, {', '.join(BACKENDS)}")
    reasons = {name: _refusal(name, device, dtype, head_dim) for name in BACKENDS}
    if backend == "auto":
        return next(name for name in BACKENDS if reasons[name] is None)
    if reasons[backend] is not None:
        raise AttentionBackendError(
            f"attention backend {backend!r} cannot serve {device} tensors of {dtype}, head size {head_dim}: "
            f"{reasons[backend]}; take 'auto' or 'sdpa'"
        )
    return backend


def usable_attention() -> dict[str, str | None]:
    """Every backend, with the reason why this machine cannot use it (None: it can), for bf16 and head size 128."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {name: _refusal(name, device, torch.bfloat16, 128) for name in BACKENDS}


def _refusal(name: str, device: str, dtype: torch.dtype, head_dim: int) -> str | None:
    if name == "sdpa":
        return None
    if device != "cuda":
        return "needs a CUDA device"
    if dtype not in (torch.bfloat16, torch.float16) and not (name == "xformers" and dtype == torch.float32):
        return f"needs bf16 or fp16, not {dtype}"
    if name == "varlen":
        if importlib.util.find_spec("torch.nn.attention.varlen") is None:
            return "this torch has no torch.nn.attention.varlen"
        if not {"scale", "window_size"} <= _varlen_parameters():
            return "torch.nn.attention.varlen of this torch takes no scale or no window (2.11 takes both)"
        if torch.cuda.get_device_capability() < (8, 0):
            return "needs compute capability 8.0"
    elif importlib.util.find_spec(name) is None:
        return f"{name} is not installed"
    if name != "xformers" and head_dim > 256:
        return f"head size {head_dim} is above 256"
    return None


@lru_cache
def _varlen_parameters() -> frozenset[str]:
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def _flash_attn(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    return flash_attn_varlen_func(
        q, k, v, plan.cu_q, plan.cu_k, plan.max_q, plan.max_k, softmax_scale=scale, causal=plan.causal
    )


def _varlen(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    window = (-1, 0) if plan.causal else (-1, -1)
    # torch 2.11 has no such argument, and takes fewer key heads without
    gqa: dict[str, Any] = {"enable_gqa": q.shape[1] != k.shape[1]} if "enable_gqa" in _varlen_parameters() else {}
    out = varlen_attn(q, k, v, plan.cu_q, plan.cu_k, plan.max_q, plan.max_k, scale=scale, window_size=window, **gqa)
    return out if isinstance(out, Tensor) else out[0]


def _xformers(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    from xformers.ops import fmha  # pyright: ignore[reportMissingImports]

    if "xformers" not in plan.cache:
        biases = fmha.attn_bias
        kind = biases.BlockDiagonalCausalFromBottomRightMask if plan.causal else biases.BlockDiagonalMask
        plan.cache["xformers"] = kind.from_seqlens(_lengths(plan.host_q), _lengths(plan.host_k), device=q.device)
    copies = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(copies, 1), v.repeat_interleave(copies, 1)
    return fmha.memory_efficient_attention(q[None], k[None], v[None], plan.cache["xformers"], scale=scale)[0]


def _sdpa(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    """Segments of equal lengths go as one batch: a Qwen2.5-VL block's windows are a handful of calls, not hundreds."""
    if "sdpa" not in plan.cache:
        plan.cache["sdpa"] = _equal_length_runs(plan)
    outs = []
    for count, first_q, q_length, first_k, k_length in plan.cache["sdpa"]:
        q_rows = q[first_q : first_q + count * q_length].unflatten(0, (count, q_length)).transpose(1, 2)
        keys, values = (
            x[first_k : first_k + count * k_length].unflatten(0, (count, k_length)).transpose(1, 2) for x in (k, v)
        )
        square = q_length == k_length
        out = F.scaled_dot_product_attention(
            q_rows,
            keys,
            values,
            attn_mask=_bottom_right(plan, q_length, k_length, q.device) if plan.causal and not square else None,
            is_causal=plan.causal and square,
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        outs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outs)


def _equal_length_runs(plan: AttentionPlan) -> list[tuple[int, int, int, int, int]]:
    """(count, first query, query length, first key, key length) of neighbouring segments with equal lengths."""
    lengths = list(zip(_lengths(plan.host_q), _lengths(plan.host_k), strict=True))
    runs, start = [], 0
    for (q_length, k_length), group in groupby(lengths):
        count = len(list(group))
        runs.append((count, plan.host_q[start], q_length, plan.host_k[start], k_length))
        start += count
    return runs


def _bottom_right(plan: AttentionPlan, queries: int, keys: int, device: torch.device) -> Tensor | None:
    if queries == 1:
        return None
    if (queries, keys) not in plan.cache:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=device)
        plan.cache[queries, keys] = mask.tril(keys - queries)
    return plan.cache[queries, keys]


def _lengths(bounds: tuple[int, ...]) -> list[int]:
    return [end - start for start, end in pairwise(bounds)]


_RUN = {"flash_attn": _flash_attn, "varlen": _varlen, "xformers": _xformers, "sdpa": _sdpa}


def _transformers_attention(
    module: torch.nn.Module,
    query: Tensor,  # [1, Hq, T, D]
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    plan: AttentionPlan | None = None,
    attention_backend: str = "auto",
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    if plan is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    # Under autocast the rotation leaves q and k in fp32 while v is already low precision.
    return segment_attention(q.to(v.dtype), k.to(v.dtype), v, plan, scaling, attention_backend)[None], None


@lru_cache
def register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, _transformers_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
