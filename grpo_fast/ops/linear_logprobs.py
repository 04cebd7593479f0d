"""Log-probs (and entropies) of tokens from hidden states and head weight, without full logits.

    logp_i = log softmax(inv_temp * softcap(W h_i + b))[y_i]

Frozen head: the forward makes the unit gradient of every row beside its log-prob, 2 GEMMs, and the backward none.
Trained head: 3 GEMMs where one chunk holds all rows and is kept for the backward, otherwise 4, the logits made twice.
A gradient through the entropy makes the logits again: 3 GEMMs frozen beyond the forward's, 4 trained.
Suffixes: M rows, H hidden, V vocabulary, r LoRA rank.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from grpo_fast.ops import flops
from grpo_fast.ops.head import Chunk, Head, HeadWeights, fake_grads
from grpo_fast.ops.inputs import Lora, check_head, compute_dtype, refuse_outside, wanted_grads
from grpo_fast.ops.layout import Layout, chunk_budget, layout
from grpo_fast.rowstats import RowStats

WORK = 5  # among the outputs of both ops
WANTS = 3  # among the settings: all that follows the targets


def reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies by full logits, differentiable: the definition."""
    z = torch.nn.functional.linear(hidden, weight, bias)
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    log_p = torch.log_softmax(z / temperature, -1)
    return log_p.gather(-1, targets[..., None])[..., 0], -(log_p.exp() * log_p).sum(-1)


@overload
def linear_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = ..., entropy: Literal[False] = ...,
    bias: Tensor | None = ..., lora: Lora | None = ..., softcap: float | None = ..., chunk_bytes: int | None = ...,
    backend: str = ...,
) -> Tensor: ...  # fmt: skip
@overload
def linear_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = ..., entropy: Literal[True],
    bias: Tensor | None = ..., lora: Lora | None = ..., softcap: float | None = ..., chunk_bytes: int | None = ...,
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def linear_logprobs(
    hidden: Tensor,  # [..., H]
    weight: Tensor,  # [V, H]
    targets: Tensor,  # [...] int; hidden[..., t] predicts targets[..., t], below 0: not scored
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    bias: Tensor | None = None,  # [V]
    lora: Lora | None = None,
    softcap: float | None = None,
    chunk_bytes: int | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Log-probs of the targets, fp32 (fp64 for fp64 inputs); with `entropy` also the entropies, both differentiable."""
    rows, y, lora_a, lora_b, lora_scale = check_head(hidden, weight, targets, bias, lora, temperature, softcap)
    refuse_outside(targets, weight.shape[0])
    wants = wanted_grads(hidden, weight, bias, lora_a, lora_b)
    logps, entropies, *_ = torch.ops.grpo_fast.linear_logprobs(
        rows, weight, bias, lora_a, lora_b, y, lora_scale, temperature, softcap or 0.0, wants, entropy,
        compute_dtype(hidden), chunk_budget(chunk_bytes, hidden.device), backend,
    )  # fmt: skip
    logps = logps.view(targets.shape)
    return (logps, entropies.view(targets.shape)) if entropy else logps


def _keeps_rows(m: int, v: int, h: int, wants: list[bool], form: Layout, chunk_bytes: int) -> bool:
    """Whether E' of all rows is kept for the gradient of the head."""
    return any(wants[1:]) and 0 < m <= form.chunk_rows(v, h, chunk_bytes)


def _keeps_unit(keeps_rows: bool, wants: list[bool]) -> bool:
    """Whether the forward makes dlogp/dhidden: with a frozen head, or beside rows that are there anyway."""
    return wants[0] and (keeps_rows or not any(wants[1:]))


@torch.library.custom_op("grpo_fast::linear_logprobs", mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    targets: Tensor,
    lora_scale: float,
    temperature: float,
    softcap: float,
    wants: list[bool],
    entropy_wanted: bool,
    dtype: torch.dtype,
    chunk_bytes: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(hidden.device.type, enabled=False):
        head = Head(
            HeadWeights(weight, bias, lora_a, lora_b, lora_scale, temperature, softcap), dtype, chunk_bytes, backend
        )
        keeps_rows = _keeps_rows(len(hidden), head.v, head.h, wants, head.layout, chunk_bytes)
        keeps_unit = _keeps_unit(keeps_rows, wants)
        logps, entropy, s = (torch.empty(len(hidden), dtype=head.wide, device=hidden.device) for _ in range(3))
        unit = torch.empty_like(hidden) if keeps_unit else hidden.new_empty(0)
        kept = hidden.new_empty(0)
        for rows in head.chunks(len(hidden)):
            h, y = head.cast(hidden[rows]), targets[rows]
            if keeps_rows or keeps_unit:
                chunk = head.score(h, y, unit=keeps_unit, exact_entropy=entropy_wanted)
                stats = chunk.stats
                if chunk.unit_hidden is not None:
                    unit[rows] = chunk.unit_hidden.mul_(head.factor(chunk, torch.ones_like(stats.s))[:, None])
                kept = chunk.rows if keeps_rows else kept
            else:
                stats = head.stats(h, y)
            logps[rows], entropy[rows], s[rows] = stats.logp, stats.entropy, stats.s
        return logps, entropy, s, unit, kept, flops.work_tensor(head.flop)


@_forward.register_fake
def _(hidden, weight, bias, lora_a, lora_b, targets, *settings):  # type: ignore[no-untyped-def]
    wants, _, dtype, chunk_bytes, backend = settings[WANTS:]
    m, (v, h) = len(hidden), weight.shape
    form = layout(hidden.device, dtype, backend)
    keeps_rows = _keeps_rows(m, v, h, wants, form, chunk_bytes)
    rows = [hidden.new_empty(m, dtype=form.wide) for _ in range(3)]
    unit = torch.empty_like(hidden) if _keeps_unit(keeps_rows, wants) else hidden.new_empty(0)
    kept = hidden.new_empty(m, v, dtype=form.rows) if keeps_rows else hidden.new_empty(0)
    return (*rows, unit, kept, torch.empty((), dtype=torch.int64, device="cpu"))


@torch.library.custom_op("grpo_fast::linear_logprobs_backward", mutates_args=())
def _backward_op(
    grad: Tensor,
    grad_entropy: Tensor | None,
    logps: Tensor,
    entropy: Tensor,
    s: Tensor,
    unit: Tensor,
    kept: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    targets: Tensor,
    lora_scale: float,
    temperature: float,
    softcap: float,
    wants: list[bool],
    entropy_wanted: bool,
    dtype: torch.dtype,
    chunk_bytes: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(hidden.device.type, enabled=False):
        head = Head(
            HeadWeights(weight, bias, lora_a, lora_b, lora_scale, temperature, softcap), dtype, chunk_bytes, backend
        )
        use_rows, use_unit = len(kept) > 0 and grad_entropy is None, len(unit) > 0 and grad_entropy is None
        grad_hidden = torch.empty_like(hidden) if wants[0] and not use_unit else hidden.new_empty(0)
        if use_unit:
            grad_hidden = (grad[:, None] * unit).to(hidden.dtype)
        grads = head.grads_for(len(hidden), wants[1:])
        for at, rows in enumerate(head.chunks(len(hidden)) if any(wants[1:]) or not use_unit else ()):
            h, y, g, v = head.cast(hidden[rows]), targets[rows], grad[rows], None
            unit_wanted = wants[0] and not use_unit
            if grad_entropy is not None:
                raw = head.score(h, y, raw=True, unit=unit_wanted)
                chunk = head.entropy_rows(raw, g, grad_entropy[rows], unit=unit_wanted)
            else:
                stats = RowStats(logps[rows], entropy[rows], s[rows], s[rows])
                chunk = Chunk(kept, stats, y) if use_rows else head.score(h, y, unit=unit_wanted)
                v = head.factor(chunk, g)
            if chunk.unit_hidden is not None:
                grad_hidden[rows] = chunk.unit_hidden if v is None else chunk.unit_hidden.mul_(v[:, None])
            if any(wants[1:]):
                head.add_grads(chunk, h, v, grads, first=at == 0)
        return (grad_hidden, *head.finished(grads), flops.work_tensor(head.flop))  # type: ignore[return-value]


@_backward_op.register_fake
def _(grad, grad_entropy, logps, entropy, s, unit, kept, hidden, weight, bias, lora_a, lora_b, targets, *settings):  # type: ignore[no-untyped-def]
    wants = settings[WANTS]
    return (*fake_grads(wants, hidden, weight, bias, lora_a, lora_b), torch.empty((), dtype=torch.int64, device="cpu"))


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    hidden, weight, bias, lora_a, lora_b, targets, *settings = inputs
    logps, entropy, s, unit, kept, _ = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(s, unit, kept)
    ctx.settings = settings
    ctx.save_for_backward(logps, entropy, s, unit, kept, hidden, weight, bias, lora_a, lora_b, targets)


def _backward(ctx, grad, grad_entropy, *_):  # type: ignore[no-untyped-def]
    wants = ctx.settings[WANTS]
    none = (None,) * 9
    if grad is None and grad_entropy is None:
        return (*(None for _ in wants), *none)
    logps, *saved = ctx.saved_tensors
    grad = torch.zeros_like(logps) if grad is None else grad
    made = torch.ops.grpo_fast.linear_logprobs_backward(grad, grad_entropy, logps, *saved, *ctx.settings)
    return (*(x if want else None for x, want in zip(made[:WORK], wants, strict=True)), *none)


_forward.register_autograd(_backward, setup_context=_setup_context)
flops.count_work_of(torch.ops.grpo_fast.linear_logprobs, WORK)
flops.count_work_of(torch.ops.grpo_fast.linear_logprobs_backward, WORK)
