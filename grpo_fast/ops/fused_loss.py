"""`grpo_fast::fused_loss`: the loss of packed rows, with the gradients of everything it was asked for.

One custom op, opaque to torch.compile, whose autograd only scales what the op has made. Suffixes as in sweeps.py.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from grpo_fast.config import options_from_json
from grpo_fast.ops import flops
from grpo_fast.ops.head import Head, HeadWeights, fake_grads
from grpo_fast.ops.policy_loss import couples_sequences
from grpo_fast.ops.scored_rows import select_rows
from grpo_fast.ops.sweeps import Sweeps
from grpo_fast.types import MAXIMA, MINIMA, SUMS, PolicyRows

GRADS = ("hidden", "weight", "bias", "lora_a", "lora_b")
FIRST_GRAD, WORK = 5, 10


@torch.library.custom_op("grpo_fast::fused_loss", mutates_args=())
def fused_loss(
    hidden: Tensor,  # [M, H]
    weight: Tensor,  # [V, H]
    bias: Tensor | None,  # [V]
    lora_a: Tensor | None,  # [r, H]
    lora_b: Tensor | None,  # [V, r]
    targets: Tensor,  # [M] int64
    cu_seqlens: Tensor,  # [S + 1]
    advantages: Tensor,  # [S] or [M]
    mask: Tensor | None,  # [M]
    old_logps: Tensor | None,  # [M]
    ref_logps: Tensor | None,  # [M]
    sampler_logps: Tensor | None,  # [M]
    truncated: Tensor | None,  # [S] bool
    num_items: Tensor | None,  # scalar
    options: str,  # LossOptions.to_json()
    entropy_coef: float,
    lora_scale: float,
    wants: list[bool],  # which of GRADS to make
    compact: bool,
    dtype: torch.dtype,  # of the products
    chunk_bytes: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    o = options_from_json(options)
    per_token = len(advantages) == len(hidden) and len(advantages) != len(cu_seqlens) - 1
    coupled = couples_sequences(o, old_logps is None, sampler_logps is not None, per_token)
    if not coupled and o.importance_sampling_level == "sequence":
        o = replace(o, importance_sampling_level="token")  # on policy both have the same gradient
    with torch.autocast(hidden.device.type, enabled=False):
        scored = select_rows(
            o, len(hidden), cu_seqlens, mask, advantages, truncated, num_items, hidden.device, coupled, compact
        )
        head_weights = HeadWeights(weight, bias, lora_a, lora_b, lora_scale, o.temperature, o.softcap or 0.0)
        head = Head(head_weights, dtype, chunk_bytes, backend)
        old, ref, sampler = (
            None if x is None else scored.pick(x.to(head.wide)) for x in (old_logps, ref_logps, sampler_logps)
        )
        rows = PolicyRows(
            scored.advantages, scored.weights, scored.lengths, scored.tokens.clamp(min=1.0), old, ref, sampler
        )
        sweeps = Sweeps(o, head, hidden, targets, scored, rows, entropy_coef, coupled, wants, backend)
        sweeps.run()
        loss, metrics = sweeps.results()
        live = torch.ones_like(sweeps.logps, dtype=torch.bool) if scored.mask is None else scored.mask.clone()
        grads = head.finished(sweeps.grads, unscaled=True)
    rows_out = (sweeps.spread(x) for x in (sweeps.logps, sweeps.entropy, live))
    return loss, *rows_out, metrics, sweeps.grad_hidden, *grads, flops.work_tensor(head.flop)  # type: ignore[return-value]


@fused_loss.register_fake
def _(hidden, weight, bias, lora_a, lora_b, targets, *rest):  # type: ignore[no-untyped-def]
    wants, dtype = rest[11], rest[13]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    rows = hidden.new_empty(hidden.shape[0], dtype=wide)
    metrics = hidden.new_empty(len(SUMS) + len(MINIMA) + len(MAXIMA), dtype=torch.float32)
    grads = fake_grads(wants, hidden, weight, bias, lora_a, lora_b, unscaled=True)
    scored, work = torch.empty_like(rows, dtype=torch.bool), torch.empty((), dtype=torch.int64, device="cpu")
    return hidden.new_empty((), dtype=wide), rows, torch.empty_like(rows), scored, metrics, *grads, work


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.set_materialize_grads(False)
    ctx.wants = inputs[17]
    ctx.dtypes = [None if x is None else x.dtype for x in inputs[: len(GRADS)]]
    ctx.save_for_backward(*(grad for grad, want in zip(output[FIRST_GRAD:WORK], ctx.wants, strict=True) if want))


def _backward(ctx, grad_loss, *others):  # type: ignore[no-untyped-def]
    if any(grad is not None for grad in others):
        raise RuntimeError(
            "GRPOLoss has no second derivative: its gradients are made in the forward pass. "
            "For a gradient penalty or a Hessian use the loss over full logits"
        )
    saved = iter(ctx.saved_tensors)
    grads: list[Tensor | None] = [None] * len(GRADS)
    if grad_loss is not None:
        grads = [
            scaled(next(saved), grad_loss).to(dtype) if want else None
            for want, dtype in zip(ctx.wants, ctx.dtypes, strict=True)
        ]
    return (*grads, *(None for _ in range(17)))


def scaled(grad: Tensor, factor: Tensor) -> Tensor:
    """grad * factor; in place where the graph is not kept, so that no second copy of dW is made."""
    if torch.compiler.is_compiling() or torch._C._autograd._get_current_graph_task_keep_graph():  # pyright: ignore
        return (grad * factor).to(grad.dtype)
    if factor.device.type == "cpu" and factor.item() == 1.0:
        return grad
    return grad.mul_(factor)


fused_loss.register_autograd(_backward, setup_context=_setup_context)
flops.count_work_of(torch.ops.grpo_fast.fused_loss, WORK)
