"""Log-probs (and entropies) of tokens from hidden states and head weight, without full logits.

    logp_i = log softmax(inv_temp * softcap(W h_i + b))[y_i]

Frozen head: the forward makes the unit gradient of every row beside its log-prob, 2 GEMMs, and the backward none.
Trained head: 3 GEMMs where one chunk holds all rows and is kept for the backward, otherwise 4, the logits made twice.
A gradient through the entropy makes the logits again: 3 GEMMs frozen beyond the forward's, 4 trained.
Suffixes: M rows, H hidden, V vocabulary, r LoRA rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_fast.ops import flops
from grpo_fast.ops.head import Chunk, Head, HeadGrads, HeadWeights, default_chunk_bytes, layout
from grpo_fast.ops.inputs import Lora, check_head, compute_dtype, refuse_outside
from grpo_fast.rowstats import RowStats

WORK = 5


def reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0, bias: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies by full logits, differentiable: the definition."""
    z = torch.nn.functional.linear(hidden, weight, bias)
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    log_p = torch.log_softmax(z / temperature, -1)
    return log_p.gather(-1, targets[..., None])[..., 0], -(log_p.exp() * log_p).sum(-1)


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
    wants = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (hidden, weight, bias, lora_a, lora_b)]
    logps, entropies, *_ = torch.ops.grpo_fast.linear_logprobs(
        rows, weight, bias, lora_a, lora_b, y, lora_scale, temperature, softcap or 0.0, wants,
        compute_dtype(hidden), default_chunk_bytes(hidden.device) if chunk_bytes is None else chunk_bytes, backend,
    )  # fmt: skip
    logps = logps.view(targets.shape)
    return (logps, entropies.view(targets.shape)) if entropy else logps


def _kept(m: int, v: int, h: int, wants: list[bool], device: torch.device, dtype: torch.dtype, chunk_bytes: int) -> str:
    """What the forward keeps for the backward: nothing, the unit gradients [M, H], or the chunk's rows [M, V]."""
    if not any(wants):
        return "nothing"
    if not any(wants[1:]):
        return "unit"
    return "rows" if m <= layout(device, dtype).chunk_rows(v, h, chunk_bytes) else "nothing"


@torch.library.custom_op("grpo_fast::linear_logprobs", mutates_args=())
def _forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor | None, lora_b: Tensor | None, targets: Tensor,
    lora_scale: float, temperature: float, softcap: float, wants: list[bool], dtype: torch.dtype, chunk_bytes: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(hidden.device.type, enabled=False):
        head = Head(HeadWeights(weight, bias, lora_a, lora_b, lora_scale, temperature, softcap), dtype, chunk_bytes, backend)
        keep = _kept(len(hidden), *weight.shape, wants, hidden.device, dtype, chunk_bytes)
        stats = RowStats(*(torch.empty(len(hidden), dtype=head.wide, device=hidden.device) for _ in range(4)))
        unit = torch.empty_like(hidden) if keep == "unit" else hidden.new_empty(0)
        kept = unit
        for rows in head.chunks(len(hidden)):
            h = head.hidden(hidden[rows])
            if keep == "nothing":
                part = head.stats(h, targets[rows])
            else:
                chunk = head.score(h, targets[rows])
                part = chunk.stats
                if keep == "unit":
                    unit[rows] = head.grad_hidden(chunk).mul_(head.factor(chunk, torch.ones_like(part.s))[:, None])
                else:
                    kept = chunk.rows
            for whole, piece in zip(stats, part, strict=True):
                whole[rows] = piece
        return stats.logp, stats.entropy, stats.s, stats.m, kept, flops.work_tensor(head.flop)


@_forward.register_fake
def _(hidden, weight, bias, lora_a, lora_b, targets, lora_scale, temperature, softcap, wants, dtype, chunk_bytes, backend):  # type: ignore[no-untyped-def] # noqa: E501
    m, (v, h) = len(hidden), weight.shape
    form = layout(hidden.device, dtype)
    rows = [hidden.new_empty(m, dtype=form.wide) for _ in range(4)]
    keep = _kept(m, v, h, wants, hidden.device, dtype, chunk_bytes)
    kept = hidden.new_empty(0)
    if keep == "unit":
        kept = torch.empty_like(hidden)
    elif keep == "rows" and m:
        kept = hidden.new_empty(m, v, dtype=form.rows)
    return (*rows, kept, torch.empty((), dtype=torch.int64, device="cpu"))


@torch.library.custom_op("grpo_fast::linear_logprobs_backward", mutates_args=())
def _backward_op(
    grad: Tensor, grad_entropy: Tensor | None, kept: Tensor, logps: Tensor, entropy: Tensor, s: Tensor, m: Tensor,
    hidden: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor | None, lora_b: Tensor | None, targets: Tensor,
    lora_scale: float, temperature: float, softcap: float, wants: list[bool], dtype: torch.dtype, chunk_bytes: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(hidden.device.type, enabled=False):
        head = Head(HeadWeights(weight, bias, lora_a, lora_b, lora_scale, temperature, softcap), dtype, chunk_bytes, backend)
        several = len(hidden) > head.chunk_rows
        grad_hidden = torch.empty_like(hidden) if wants[0] else hidden.new_empty(0)
        parameters = (weight, bias, lora_a, lora_b)
        grads = HeadGrads(*(
            torch.zeros(x.shape, dtype=head.wide if several else x.dtype, device=x.device) if want and x is not None else None
            for want, x in zip(wants[1:], parameters, strict=True)
        ))  # fmt: skip
        for at, rows in enumerate(head.chunks(len(hidden))):
            h, y, g = head.hidden(hidden[rows]), targets[rows], grad[rows]
            v: Tensor | None = None
            if grad_entropy is not None:
                chunk = head.entropy_rows(head.score(h, y, raw=True), g, grad_entropy[rows])
            else:
                whole = kept.dim() == 2 and kept.shape[1] == head.v and kept.shape[0] == len(hidden)
                stats = RowStats(logps[rows], entropy[rows], m[rows], s[rows])
                chunk = Chunk(kept, stats, y) if whole else head.score(h, y)
                v = head.factor(chunk, g)
            if wants[0]:
                dh = head.grad_hidden(chunk)
                grad_hidden[rows] = dh if v is None else dh.mul_(v[:, None])
            if any(wants[1:]):
                head.add_grads(chunk, h, v, grads, first=at == 0)
        made = [
            hidden.new_empty(0) if x is None or like is None else x.to(like.dtype)
            for x, like in zip(grads.tensors(), parameters, strict=True)
        ]
        return (grad_hidden, *made, flops.work_tensor(head.flop))  # type: ignore[return-value]


@_backward_op.register_fake
def _(grad, grad_entropy, kept, logps, entropy, s, m, hidden, weight, bias, lora_a, lora_b, targets, lora_scale, temperature, softcap, wants, dtype, chunk_bytes, backend):  # type: ignore[no-untyped-def] # noqa: E501
    made = [
        torch.empty_like(x) if want and x is not None else hidden.new_empty(0)
        for want, x in zip(wants, (hidden, weight, bias, lora_a, lora_b), strict=True)
    ]
    return (*made, torch.empty((), dtype=torch.int64, device="cpu"))


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    hidden, weight, bias, lora_a, lora_b, targets, *settings = inputs
    logps, entropy, s, m, kept, _ = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(s, m, kept)
    ctx.settings = settings
    ctx.save_for_backward(kept, logps, entropy, s, m, hidden, weight, bias, lora_a, lora_b, targets)


def _backward(ctx, grad, grad_entropy, *_):  # type: ignore[no-untyped-def]
    kept, logps, entropy, s, m, hidden, weight, bias, lora_a, lora_b, targets = ctx.saved_tensors
    wants = ctx.settings[3]
    none = (None,) * (13 - len(wants))
    if grad is None and grad_entropy is None:
        return (*(None for _ in wants), *none)
    if grad is None:
        grad = torch.zeros_like(logps)
    if grad_entropy is None and not any(wants[1:]):
        return (grad[:, None].to(kept.dtype) * kept, *(None for _ in wants[1:]), *none)
    made = torch.ops.grpo_fast.linear_logprobs_backward(
        grad, grad_entropy, kept, logps, entropy, s, m, hidden, weight, bias, lora_a, lora_b, targets, *ctx.settings
    )
    return (*(x if want else None for x, want in zip(made[:WORK], wants, strict=True)), *none)


_forward.register_autograd(_backward, setup_context=_setup_context)
flops.count_work_of(torch.ops.grpo_fast.linear_logprobs, WORK)
flops.count_work_of(torch.ops.grpo_fast.linear_logprobs_backward, WORK)
