"""Peak memory beyond the gradients, as torch's own allocator reports it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from grpo_fast import GRPOLoss
from grpo_fast.ops import head, layout
from grpo_fast.ops.backends import usable
from grpo_fast.ops.rows import BLOCK_BYTES

H, V, T = 16, 4096, 64
BUDGET = 4 << 20  # 250 rows of fp32 logits: a fraction of the smallest batch
WORK = 0 if usable("native")[0] else 6 * BLOCK_BYTES  # torch's own row pass: temporaries of one block of rows


def peak_bytes(
    n: int, options: dict[str, Any], trained: bool = True, grad: bool = True,
    *, h: int = H, v: int = V, dtype: torch.dtype = torch.float32,
) -> int:  # fmt: skip
    """The highest sum of live allocations that one forward and backward made, without the two gradients."""
    gen = torch.Generator().manual_seed(0)
    hidden = torch.randn(n // T, T, h, generator=gen).to(dtype).requires_grad_(grad)
    weight = torch.randn(v, h, generator=gen).to(dtype).requires_grad_(grad and trained)
    targets = torch.randint(v, (n // T, T), generator=gen)
    advantages, mask = torch.randn(n // T, generator=gen), torch.ones(n // T, T)
    old = -8 + 0.1 * torch.randn(n // T, T, generator=gen)
    loss_fn = GRPOLoss(**options, chunk_bytes=BUDGET)

    def step() -> None:
        with torch.set_grad_enabled(grad):
            out = loss_fn(hidden, weight, targets, advantages=advantages, mask=mask, old_logps=old, ref_logps=old)
        if grad:
            out.loss.backward()

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    live = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert peak > 0
    return peak - sum(x.grad.nbytes for x in (hidden, weight) if x.grad is not None)


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta": 0.1},
        {"entropy_coef": 0.1},
        {"importance_sampling_level": "sequence"},
        {"top_entropy_quantile": 0.5},
    ],
    ids=str,
)
def test_peak_stays_within_the_budget_and_flat(options: dict[str, Any], trained: bool) -> None:
    peaks = {n: peak_bytes(n, options, trained) for n in (512, 8192)}
    rows = 300 * 8192  # some seventy five per-row numbers (log-probs, ratios, masks, weights), whatever V is
    assert peaks[512] <= BUDGET + WORK + rows // 16, peaks
    assert peaks[8192] <= BUDGET + WORK + rows, peaks
    assert peaks[8192] - peaks[512] <= WORK + rows, peaks
    assert 20 * (peaks[8192] - WORK) < 8192 * V * 4  # what full logits would take


def test_scoring_alone_stays_within_the_budget() -> None:
    assert peak_bytes(8192, {}, grad=False) <= BUDGET + WORK + 300 * 8192


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "autocast"])
def test_a_16_bit_head_is_widened_block_by_block(
    dtype: torch.dtype, trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One chunk of rows, so that the head's gradient is written as it is kept, from products in fp32."""
    for room in (head, layout):
        monkeypatch.setattr(room, "WIDEN_BYTES", 1 << 20)
    h, v = 256, 8192
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        peak = peak_bytes(T, {}, trained, h=h, v=v, dtype=dtype)
    assert peak <= BUDGET + WORK < v * h * 4, peak
