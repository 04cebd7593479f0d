"""Odd shapes and empty things."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from losses.eager import Rollout, eager_loss, full_logps, rollout
from torch import Tensor

from grpo_fast import GRPOLoss

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")


def run(loss_fn: GRPOLoss, r: Rollout, **call: Any) -> tuple[Any, Tensor, Tensor]:
    hidden, weight = r.hidden.clone().requires_grad_(), r.weight.clone().requires_grad_()
    out = loss_fn(
        hidden, weight, r.targets, advantages=r.advantages, mask=r.mask, old_logps=r.old_logps, ref_logps=r.ref_logps,
        **call,
    )  # fmt: skip
    return out, *torch.autograd.grad(out.loss, (hidden, weight))


def check_against_eager(r: Rollout, loss_type: str = "grpo", **options: Any) -> None:
    out, grad_hidden, grad_weight = run(GRPOLoss(loss_type=loss_type, beta=0.1, **options), r)
    h64, w64 = r.hidden.double().requires_grad_(), r.weight.double().requires_grad_()
    truth = eager_loss(r, full_logps(h64, w64, r.targets), loss_type=loss_type, beta=0.1)
    torch.testing.assert_close(out.loss.double(), truth.detach(), rtol=1e-5, atol=1e-6)
    h32, w32 = r.hidden.clone().requires_grad_(), r.weight.clone().requires_grad_()
    plain = eager_loss(r, full_logps(h32, w32, r.targets), loss_type=loss_type, beta=0.1)
    for actual, theirs, expected in zip(
        (grad_hidden, grad_weight), torch.autograd.grad(plain, (h32, w32)), torch.autograd.grad(truth, (h64, w64)),
        strict=True,
    ):  # fmt: skip
        assert (actual - expected).norm() <= 2 * (theirs - expected).norm() + 1e-6 * expected.norm()


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_failure_13_everything_masked_is_a_differentiable_zero(loss_type: str, level: str, compact: bool) -> None:
    r = rollout()
    r.mask[:] = False
    loss_fn = GRPOLoss(loss_type=loss_type, importance_sampling_level=level, beta=0.1, entropy_coef=0.1)
    out, grad_hidden, grad_weight = run(loss_fn, r, compact=compact)
    assert out.loss == 0 and out.loss.requires_grad
    assert not grad_hidden.any() and not grad_weight.any()
    assert not out.logps.any() and not out.scored.any()
    assert all(not math.isnan(value) or "_m" in name for name, value in out.metrics.as_dict().items())


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_all_advantages_zero_is_a_differentiable_zero(loss_type: str) -> None:
    r = rollout()
    r.advantages[:] = 0.0
    out, grad_hidden, grad_weight = run(GRPOLoss(loss_type=loss_type), r)
    assert out.loss == 0
    assert not grad_hidden.any() and not grad_weight.any()


@pytest.mark.parametrize("where", [0, 2, 3])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_failure_13_an_empty_sequence(where: int, level: str) -> None:
    r = rollout((5, 3, 20, 1))  # in chunks of 16 rows the third is cut
    r.mask[where] = False
    options = {"loss_type": "grpo", "importance_sampling_level": level, "beta": 0.1}
    out, grad_hidden, grad_weight = run(GRPOLoss(**options), r)
    if level == "token":
        check_against_eager(r)
    # packed, the empty sequence is an empty span
    lengths = r.mask.sum(1)
    cu = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    m = r.mask
    packed = Rollout(r.hidden[m], r.weight, r.targets[m], r.advantages, m[m], r.old_logps[m], r.ref_logps[m])
    for tight in ({}, {"chunk_bytes": 16 * (37 + 3 * 16) * 4}):
        packed_out, packed_hidden, packed_weight = run(GRPOLoss(**options, **tight), packed, cu_seqlens=cu)
        torch.testing.assert_close(packed_out.loss, out.loss, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(packed_hidden, grad_hidden[m], rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(packed_weight, grad_weight, rtol=1e-4, atol=1e-7)


def test_failure_13_a_group_of_one_and_one_token_rows() -> None:
    check_against_eager(rollout((1,)))
    check_against_eager(rollout((6,)))
    check_against_eager(rollout((1, 1, 1)))
    check_against_eager(rollout((1, 1, 1)), "dapo")


# a single token in the vocabulary, a prime one, a hidden size that no tile divides, one just past a tile
@pytest.mark.parametrize(("h", "v"), [(16, 1), (16, 1021), (131, 64), (129, 257), (1, 2)])
def test_failure_10_odd_sizes(h: int, v: int) -> None:
    r = rollout((5, 3), h=h, v=v)
    if v > 1:
        check_against_eager(r)
        return
    out, grad_hidden, grad_weight = run(GRPOLoss(loss_type="grpo"), r)
    assert not out.logps.any() and not out.entropy.any()
    assert not grad_hidden.any() and not grad_weight.any()


@pytest.mark.parametrize("v", [151_936, 152_064])
def test_failure_10_real_vocabularies(v: int) -> None:
    check_against_eager(rollout((20, 3), h=8, v=v), chunk_bytes=16 * v * 4)


@pytest.mark.parametrize("how", ["transposed hidden", "strided hidden", "transposed weight", "strided targets"])
def test_failure_10_tensors_that_are_not_contiguous(how: str) -> None:
    r = rollout((4, 4, 2))
    expected = run(GRPOLoss(beta=0.1), r)
    if how == "transposed hidden":
        hidden = r.hidden.transpose(0, 1).contiguous().transpose(0, 1)
        r = Rollout(hidden, r.weight, r.targets, r.advantages, r.mask, r.old_logps, r.ref_logps)
    elif how == "strided hidden":
        hidden = torch.stack([r.hidden, r.hidden], -1)[..., 0]
        r = Rollout(hidden, r.weight, r.targets, r.advantages, r.mask, r.old_logps, r.ref_logps)
    elif how == "transposed weight":
        r = Rollout(r.hidden, r.weight.T.contiguous().T, r.targets, r.advantages, r.mask, r.old_logps, r.ref_logps)
    else:
        strided = torch.stack([r.targets, r.targets], -1)[..., 0]
        r = Rollout(r.hidden, r.weight, strided, r.advantages, r.mask, r.old_logps, r.ref_logps)
    assert not (r.hidden.is_contiguous() and r.weight.is_contiguous() and r.targets.is_contiguous())
    actual = run(GRPOLoss(beta=0.1), r)
    torch.testing.assert_close(actual[0].loss, expected[0].loss, rtol=1e-6, atol=1e-7)
    for a, b in zip(actual[1:], expected[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_failure_10_an_expanded_incoming_gradient() -> None:
    r = rollout()
    hidden, weight = r.hidden.clone().requires_grad_(), r.weight.clone().requires_grad_()
    out = GRPOLoss()(hidden, weight, r.targets, advantages=r.advantages, mask=r.mask, old_logps=r.old_logps)
    plain = torch.autograd.grad(out.loss, weight, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(out.loss.expand(5).sum(), weight)[0], 5 * plain)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.int64, torch.float32, torch.bfloat16])
def test_masks_of_any_dtype(dtype: torch.dtype) -> None:
    r = rollout()
    expected = run(GRPOLoss(), r)
    other = Rollout(r.hidden, r.weight, r.targets, r.advantages, r.mask.to(dtype), r.old_logps, r.ref_logps)
    actual = run(GRPOLoss(), other)
    assert torch.equal(actual[0].loss, expected[0].loss) and torch.equal(actual[1], expected[1])


@pytest.mark.parametrize("empty", ["sequences", "tokens", "packed"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_an_empty_batch_is_a_differentiable_zero(loss_type: str, empty: str) -> None:
    b, t = {"sequences": (0, 4), "tokens": (3, 0), "packed": (0, 0)}[empty]
    hidden, weight = torch.zeros(b, t, 8, requires_grad=True), torch.zeros(11, 8, requires_grad=True)
    mask, targets, advantages, call = torch.ones(b, t), torch.zeros(b, t, dtype=torch.long), torch.ones(b), {}
    if empty == "packed":
        hidden = torch.zeros(0, 8, requires_grad=True)
        mask, targets, call = mask.flatten(), targets.flatten(), {"cu_seqlens": torch.tensor([0])}
    out = GRPOLoss(loss_type=loss_type)(hidden, weight, targets, advantages=advantages, mask=mask, **call)
    grad_hidden, grad_weight = torch.autograd.grad(out.loss, (hidden, weight))
    assert out.loss == 0 and grad_hidden.shape == hidden.shape and not grad_weight.any()


def test_without_a_mask_every_row_counts() -> None:
    r = rollout((4, 4, 4))
    out = GRPOLoss()(r.hidden, r.weight, r.targets, advantages=r.advantages, old_logps=r.old_logps)
    assert torch.equal(out.loss, run(GRPOLoss(), r)[0].loss.detach())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_cu_seqlens_of_either_integer(dtype: torch.dtype) -> None:
    r = rollout((4, 4))
    cu = torch.tensor([0, 4, 8], dtype=dtype)
    flat = Rollout(r.hidden.flatten(0, 1), r.weight, r.targets.flatten(), r.advantages, r.mask.flatten(),
                   r.old_logps.flatten(), r.ref_logps.flatten())  # fmt: skip
    assert torch.equal(run(GRPOLoss(), flat, cu_seqlens=cu)[0].loss, run(GRPOLoss(), r)[0].loss)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_failure_9_every_logit_below_minus_104(sign: float) -> None:
    r = rollout()
    shifted = run(GRPOLoss(beta=0.1), r, bias=torch.full((37,), -150.0 if sign < 0 else 150.0))
    plain = run(GRPOLoss(beta=0.1), r)
    assert (shifted[0].logps - plain[0].logps).abs().max() <= 1e-4
    for a, b in zip(shifted[1:], plain[1:], strict=True):
        assert (a - b).norm() <= 1e-3 * b.norm()


def test_failure_9_targets_of_very_low_probability() -> None:
    r = rollout((4, 4))
    r.weight[:, 0] = torch.linspace(0, -300, 37)
    r.hidden[..., 0] = 1.0
    r.targets[:] = torch.tensor([[36, 30, 36, 20], [1, 36, 18, 35]])
    logps = full_logps(r.hidden.double(), r.weight.double(), r.targets)
    assert logps.min() < -250
    near = Rollout(r.hidden, r.weight, r.targets, r.advantages, r.mask, (logps + 0.1).float(), (logps - 0.2).float())
    h64, w64 = r.hidden.double().requires_grad_(), r.weight.double().requires_grad_()
    # old and reference log-probs of this size leave 1e-5 of a ratio in fp32
    truth = eager_loss(near, full_logps(h64, w64, r.targets), beta=0.1)
    out, grad_hidden, grad_weight = run(GRPOLoss(loss_type="grpo", beta=0.1), near)
    assert (out.loss - truth).abs() <= 1e-4 * truth.abs()
    for actual, expected in zip((grad_hidden, grad_weight), torch.autograd.grad(truth, (h64, w64)), strict=True):
        assert (actual - expected).norm() <= 1e-3 * expected.norm()


def test_failure_4_luspo_sums_each_completion() -> None:
    r = rollout((5, 3))
    out, *_ = run(GRPOLoss(loss_type="luspo", importance_sampling_level="sequence"), r)
    logps = full_logps(r.hidden.double(), r.weight.double(), r.targets)
    losses = []
    for i, n in enumerate((5, 3)):
        ratio = (logps[i, :n] - r.old_logps[i, :n]).mean().exp()
        a = r.advantages[i]
        losses.append(-n * torch.min(ratio * a, ratio.clamp(0.8, 1.2) * a))
    assert out.loss.item() == pytest.approx(sum(losses).item() / 2, rel=1e-5)


@pytest.mark.parametrize("chunk_bytes", [None, 1 << 12])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_failure_5_token_advantages_do_not_double_the_loss(loss_type: str, chunk_bytes: int | None) -> None:
    r = rollout((5, 3, 20, 1))
    tokens = r.advantages[:, None].expand(4, 20)
    wide = Rollout(r.hidden, r.weight, r.targets, tokens, r.mask, r.old_logps, r.ref_logps)
    loss_fn = GRPOLoss(loss_type=loss_type, chunk_bytes=chunk_bytes)
    for a, b in zip(run(loss_fn, wide)[1:], run(loss_fn, r)[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_failure_7_normalisers_under_gradient_accumulation(loss_type: str) -> None:
    r = rollout()
    single = run(GRPOLoss(loss_type=loss_type), r)
    quarter = run(GRPOLoss(loss_type=loss_type, gradient_accumulation_steps=4), r)
    for a, b in zip(quarter[1:], single[1:], strict=True):
        torch.testing.assert_close(4 * a, b, rtol=1e-6, atol=1e-9)
    if loss_type in ("dapo", "cispo", "vespo"):  # a given count is the only divisor
        total = int(r.mask.sum())
        given = run(GRPOLoss(loss_type=loss_type, gradient_accumulation_steps=4), r, num_items_in_batch=4 * total)
        for a, b in zip(given[1:], quarter[1:], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_torchs_default_dtype_changes_no_bit(loss_type: str, dtype: torch.dtype) -> None:
    r = rollout()
    loss_fn = GRPOLoss(loss_type=loss_type, beta=0.1, entropy_coef=0.01, top_entropy_quantile=0.7, vespo_k_pos=1.3)
    expected = run(loss_fn, r)
    torch.set_default_dtype(dtype)
    try:
        actual = run(loss_fn, r)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(actual[0].loss, expected[0].loss)
    assert all(torch.equal(a, b) for a, b in zip(actual[1:], expected[1:], strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("entropy_coef", [0.0, 0.01])
def test_log_probs_of_another_dtype_count_as_fp32(dtype: torch.dtype, entropy_coef: float) -> None:
    r = rollout()
    given = Rollout(r.hidden, r.weight, r.targets, r.advantages, r.mask, r.old_logps.to(dtype), r.ref_logps.to(dtype))
    same = Rollout(
        r.hidden, r.weight, r.targets, r.advantages, r.mask, given.old_logps.float(), given.ref_logps.float()
    )
    loss_fn = GRPOLoss(beta=0.1, entropy_coef=entropy_coef)
    actual, expected = run(loss_fn, given), run(loss_fn, same)
    assert actual[0].loss.dtype == torch.float32 and torch.equal(actual[0].loss, expected[0].loss)
    assert all(torch.equal(a, b) for a, b in zip(actual[1:], expected[1:], strict=True))
