"""What holds for every batch, whatever is in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses.eager import Rollout, rollout
from torch import Tensor

from grpo_fast import GRPOLoss, linear_logprobs

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
lengths = st.lists(st.integers(1, 7), min_size=1, max_size=5).map(tuple)
options = st.fixed_dictionaries(
    {
        "loss_type": st.sampled_from(LOSS_TYPES),
        "importance_sampling_level": st.sampled_from(["token", "sequence"]),
        "beta": st.sampled_from([0.0, 0.1]),
        "entropy_coef": st.sampled_from([0.0, 0.05]),
        "top_entropy_quantile": st.sampled_from([1.0, 0.5]),
        "off_policy_mask_threshold": st.sampled_from([None, 0.05]),
    }
)


def run(loss_fn: GRPOLoss, r: Rollout, **call: Any) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = r.hidden.clone().requires_grad_(), r.weight.clone().requires_grad_()
    out = loss_fn(
        hidden, weight, r.targets, advantages=r.advantages, mask=r.mask, old_logps=r.old_logps, ref_logps=r.ref_logps,
        **call,
    )  # fmt: skip
    return out.loss.detach(), *torch.autograd.grad(out.loss, (hidden, weight))


def packed(r: Rollout) -> tuple[Rollout, Tensor]:
    m = r.mask
    cu = torch.cat([torch.zeros(1, dtype=torch.long), m.sum(1).cumsum(0)])
    rows = Rollout(r.hidden[m], r.weight, r.targets[m], r.advantages, m[m], r.old_logps[m], r.ref_logps[m])
    return rows, cu


def close(a: Tensor, b: Tensor, tolerance: float = 2e-5) -> None:
    assert (a - b).norm() <= tolerance * b.norm() + 1e-7


@given(lengths=lengths, options=options, seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_packed_equals_padded(lengths: tuple[int, ...], options: dict[str, Any], seed: int) -> None:
    r = rollout(lengths, seed=seed)
    rows, cu = packed(r)
    loss, grad_hidden, grad_weight = run(GRPOLoss(**options), r)
    packed_loss, packed_hidden, packed_weight = run(GRPOLoss(**options), rows, cu_seqlens=cu)
    close(packed_loss, loss)
    close(packed_hidden, grad_hidden[r.mask])
    close(packed_weight, grad_weight)
    assert not grad_hidden[~r.mask].any()


@given(lengths=lengths, options=options, seed=st.integers(0, 99), data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_order_of_sequences_does_not_matter(
    lengths: tuple[int, ...], options: dict[str, Any], seed: int, data: st.DataObject
) -> None:
    r = rollout(lengths, seed=seed)
    order = torch.tensor(data.draw(st.permutations(range(len(lengths)))))
    moved = Rollout(
        r.hidden[order], r.weight, r.targets[order], r.advantages[order], r.mask[order], r.old_logps[order],
        r.ref_logps[order],
    )  # fmt: skip
    loss, grad_hidden, grad_weight = run(GRPOLoss(**options), r)
    moved_loss, moved_hidden, moved_weight = run(GRPOLoss(**options), moved)
    close(moved_loss, loss)
    close(moved_hidden, grad_hidden[order])
    close(moved_weight, grad_weight)


@given(lengths=lengths, options=options, seed=st.integers(0, 99), shift=st.floats(-30, 30))
@settings(max_examples=40, deadline=None)
def test_a_shift_of_all_logits_changes_nothing(
    lengths: tuple[int, ...], options: dict[str, Any], seed: int, shift: float
) -> None:
    # the shift rounds the logits: keep what reacts to a threshold out of this one
    options = {**options, "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None}
    r = rollout(lengths, seed=seed, drift=0.02)
    v = len(r.weight)
    plain = run(GRPOLoss(**options), r, bias=torch.zeros(v))
    moved = run(GRPOLoss(**options), r, bias=torch.full((v,), shift))
    for a, b in zip(moved, plain, strict=True):
        assert (a - b).norm() <= 2e-4 * b.norm() + 1e-5


@pytest.mark.parametrize("loss_type", ["grpo", "sapo", "dr_grpo", "luspo", "dapo", "cispo", "vespo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_equal_micro_batches_give_the_whole_batchs_gradient(loss_type: str, level: str, beta: float) -> None:
    r = rollout((5, 2, 7, 1, 4, 6))
    settings_ = {"loss_type": loss_type, "importance_sampling_level": level, "beta": beta}
    total = int(r.mask.sum())
    whole = run(GRPOLoss(**settings_), r, num_items_in_batch=total)
    loss_fn = GRPOLoss(**settings_, gradient_accumulation_steps=3)
    parts = []
    for i in range(0, 6, 2):
        s = slice(i, i + 2)
        part = Rollout(r.hidden[s], r.weight, r.targets[s], r.advantages[s], r.mask[s], r.old_logps[s], r.ref_logps[s])
        parts.append(run(loss_fn, part, num_items_in_batch=total))
    close(torch.stack([p[0] for p in parts]).sum(), whole[0])
    close(torch.cat([p[1] for p in parts]), whole[1])
    close(torch.stack([p[2] for p in parts]).sum(0), whole[2])


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("source", ["linear_logprobs", "previous call"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_bytes", [None, 1 << 14])
@pytest.mark.parametrize("left_out", [0, 2])
def test_on_policy_the_ratio_is_exactly_one(
    level: str, source: str, dtype: torch.dtype, chunk_bytes: int | None, left_out: int
) -> None:
    # the log-probs of a row are the same bits in whatever chunk and beside whatever rows they are made
    r = rollout((40, 23, 37, 1), h=48, v=211).to(dtype)
    loss_fn = GRPOLoss(importance_sampling_level=level, chunk_bytes=chunk_bytes)
    batch = {"advantages": r.advantages, "mask": r.mask}
    if source == "linear_logprobs":
        old = linear_logprobs(r.hidden, r.weight, r.targets)
    else:
        old = loss_fn(r.hidden, r.weight, r.targets, **batch).logps
    r.advantages[:left_out] = 0.0
    out = loss_fn(r.hidden, r.weight, r.targets, **batch, old_logps=old)
    metrics = out.metrics.as_dict()
    assert metrics["ratio_min"] == 1.0 == metrics["ratio_max"]
    assert torch.equal(out.logps, torch.where(out.scored, old, 0.0))
    assert torch.equal(out.scored, r.mask & (r.advantages != 0)[:, None])


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), float("-inf"), -1e4])
@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_failure_3_garbage_at_masked_positions_changes_no_bit(garbage: float, compact: bool, loss_type: str) -> None:
    r = rollout((5, 3, 6, 1))
    r.mask[0, 2] = False
    holes = ~r.mask
    sampler = r.old_logps + 0.1
    loss_fn = GRPOLoss(
        loss_type=loss_type, beta=0.1, importance_sampling_mode="token_truncate", top_entropy_quantile=0.6,
        entropy_coef=0.01, off_policy_mask_threshold=0.3,
    )  # fmt: skip
    clean = run(loss_fn, r, sampler_logps=sampler, compact=compact)

    def spoil(x: Tensor) -> Tensor:
        return torch.where(holes.view(*holes.shape, *[1] * (x.dim() - 2)), garbage, x)

    targets = torch.where(holes, -100, r.targets)  # the usual label of an ignored token
    dirty = Rollout(spoil(r.hidden), r.weight, targets, r.advantages, r.mask, spoil(r.old_logps), spoil(r.ref_logps))
    spoiled = run(loss_fn, dirty, sampler_logps=spoil(sampler), compact=compact)
    for a, b in zip(spoiled, clean, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("on_policy", [True, False])
def test_leaving_rows_out_changes_nothing(loss_type: str, level: str, on_policy: bool) -> None:
    r = rollout((5, 3, 6, 1, 4))
    r.advantages[1] = r.advantages[3] = 0.0
    if on_policy:
        r = Rollout(r.hidden, r.weight, r.targets, r.advantages, r.mask, None, r.ref_logps)  # type: ignore[arg-type]
    loss_fn = GRPOLoss(loss_type=loss_type, importance_sampling_level=level)
    for a, b in zip(run(loss_fn, r, compact=True), run(loss_fn, r, compact=False), strict=True):
        close(a, b)
