"""No worse than full logits in the same dtype, measured against fp64; confident tokens keep their gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from losses.eager import Rollout, eager_loss, full_logps, rollout
from torch import Tensor

from grpo_fast import GRPOLoss


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def gradients(r: Rollout, how: str, head: dict[str, Any], options: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    hidden, weight = r.hidden.clone().requires_grad_(), r.weight.clone().requires_grad_()
    if how == "ours":
        call = {name: head[name] for name in ("bias", "lora") if name in head}
        settings = {name: head[name] for name in ("temperature", "softcap") if name in head}
        loss = GRPOLoss(**options, **settings)(
            hidden, weight, r.targets, advantages=r.advantages, mask=r.mask, old_logps=r.old_logps,
            ref_logps=r.ref_logps if options.get("beta") else None, **call,
        ).loss  # fmt: skip
    else:
        loss = eager_loss(r, full_logps(hidden, weight, r.targets, **head), **options)
    return loss.detach(), list(torch.autograd.grad(loss, (hidden, weight)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "options", [{"loss_type": "grpo"}, {"loss_type": "dapo", "beta": 0.1}], ids=["grpo", "dapo-kl"]
)
@pytest.mark.parametrize("head", [{}, {"temperature": 0.7, "softcap": 6.0}], ids=["plain", "softcap"])
# a small drift keeps every ratio off the clip bounds, where rounding alone would switch a gradient off
def test_no_worse_than_eager(dtype: torch.dtype, options: dict[str, Any], head: dict[str, Any]) -> None:
    r = rollout((40, 17, 33), h=64, v=257, drift=0.03)
    truth, true_grads = gradients(r.to(torch.float64), "eager", head, options)
    ours, our_grads = gradients(r.to(dtype), "ours", head, options)
    plain, plain_grads = gradients(r.to(dtype), "eager", head, options)
    assert (ours.double() - truth).abs() <= 1.5 * (plain.double() - truth).abs() + 2e-6 * truth.abs()
    for actual, theirs, expected in zip(our_grads, plain_grads, true_grads, strict=True):
        assert actual.dtype == dtype
        assert relative(actual, expected) <= 1.5 * relative(theirs, expected) + 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_failure_1_logits_are_not_rounded_to_16_bits(dtype: torch.dtype) -> None:
    r = rollout((20, 30), h=128, v=1031).to(dtype)
    r.hidden.add_(6 * r.weight[r.targets])  # peaky: the target's logit near 24
    truth = full_logps(r.hidden.double(), r.weight.double(), r.targets)
    rounded = full_logps(r.hidden, r.weight, r.targets)
    assert (rounded.double() - truth)[r.mask].abs().max() > 2e-4  # the failure is there to be had
    out = GRPOLoss()(r.hidden, r.weight, r.targets, advantages=r.advantages, mask=r.mask)
    assert (out.logps.double() - truth)[r.mask].abs().max() <= 1e-4


@pytest.mark.parametrize("margin", [12.0, 18.0, 24.0, 30.0])
@pytest.mark.parametrize("sweeps", ["one", "two"])
def test_failure_2_confident_tokens_keep_their_gradient(margin: float, sweeps: str) -> None:
    hidden = torch.zeros(1, 2, 8)
    hidden[..., 0] = 1.0
    weight = torch.randn(301, 8, generator=torch.Generator().manual_seed(1))
    weight[:, 0] = torch.arange(301) % 3 - 1.0
    weight[3, 0] = margin
    targets, advantages = torch.full((1, 2), 3), torch.tensor([0.5])
    # an entropy bonus too small to see takes the other row pass
    loss_fn = GRPOLoss(loss_type="grpo", entropy_coef=0.0 if sweeps == "one" else 1e-30)
    hidden.requires_grad_(), weight.requires_grad_()
    out = loss_fn(hidden, weight, targets, advantages=advantages, mask=torch.ones(1, 2))
    h64, w64 = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    logps = full_logps(h64, w64, targets)
    truth = -(0.5 * (logps - logps.detach()).exp()).mean()
    for actual, expected in zip(
        torch.autograd.grad(out.loss, (hidden, weight)), torch.autograd.grad(truth, (h64, w64)), strict=True
    ):
        assert expected.norm() > 0
        assert relative(actual, expected) <= 0.01


@pytest.mark.parametrize("chunk_bytes", [None, 1])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_loss_scale_saves_small_fp16_gradients(chunk_bytes: int | None, level: str, frozen: bool) -> None:
    r = rollout((40, 17, 33), h=64, v=257).to(torch.float16)
    r.weight.mul_(2**-5)
    scale = 2.0**20
    hidden, weight = r.hidden.clone().requires_grad_(), r.weight.clone().requires_grad_(not frozen)
    loss_fn = GRPOLoss(loss_type="grpo", importance_sampling_level=level, chunk_bytes=chunk_bytes)
    small = r.advantages * 2**-10  # or a batch of a thousand times as many tokens
    (scale * loss_fn(hidden, weight, r.targets, advantages=small, mask=r.mask).loss).backward()
    h64, w64 = r.hidden.double().requires_grad_(), r.weight.double().requires_grad_()
    logps = full_logps(h64, w64, r.targets)
    exact = torch.where(r.mask, -(small[:, None] * (logps - logps.detach()).exp()), 0.0)
    (scale * (exact.sum(1) / r.mask.sum(1)).mean()).backward()
    for actual, expected in ((hidden.grad, h64.grad), *([] if frozen else [(weight.grad, w64.grad)])):
        assert actual.dtype == torch.float16
        assert relative(actual, expected) <= 1e-3
