"""Counted FLOPs, in units of one product of the head with all rows: 2 * N * H * V."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from grpo_fast import GRPOLoss, linear_logprobs

S, T, H, V = 8, 24, 32, 257
N = S * T
WHOLE = {}  # everything in one chunk
CHUNKED = {"chunk_bytes": 48 * (V + 3 * H) * 4}  # 48 rows: two whole sequences
TINY = {"chunk_bytes": 16 * (V + 3 * H) * 4}  # 16 rows: no whole sequence


def gemms(
    options: dict[str, Any], *, trained: bool = True, grad: bool = True, zero: int = 0, old: bool = True, **call: Any
) -> float:
    gen = torch.Generator().manual_seed(0)
    hidden = torch.randn(S, T, H, generator=gen, requires_grad=grad)
    weight = torch.randn(V, H, generator=gen, requires_grad=grad and trained)
    targets = torch.randint(V, (S, T), generator=gen)
    advantages = torch.randn(S, generator=gen)
    advantages[:zero] = 0.0
    old_logps = -5 + 0.1 * torch.randn(S, T, generator=gen) if old else None
    loss_fn = GRPOLoss(**options)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(grad):
        out = loss_fn(
            hidden, weight, targets, advantages=advantages, mask=torch.ones(S, T), old_logps=old_logps,
            ref_logps=old_logps, **call,
        )  # fmt: skip
        if grad:
            out.loss.backward()
    if grad:
        assert hidden.grad is not None and (weight.grad is not None) == trained
    return counter.get_total_flops() / (2 * N * H * V)


@pytest.mark.parametrize("chunks", [WHOLE, CHUNKED, TINY], ids=["whole", "chunked", "tiny"])
@pytest.mark.parametrize("options", [{}, {"beta": 0.1}, {"entropy_coef": 0.1}, {"loss_type": "cispo"}], ids=str)
def test_token_coupling_takes_three_products(options: dict[str, Any], chunks: dict[str, Any]) -> None:
    assert gemms({**options, **chunks}) == 3.0


@pytest.mark.parametrize("chunks", [WHOLE, CHUNKED, TINY], ids=["whole", "chunked", "tiny"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_frozen_head_takes_two(level: str, chunks: dict[str, Any]) -> None:
    assert gemms({"importance_sampling_level": level, **chunks}, trained=False) == 2.0


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_without_gradients_one(level: str) -> None:
    assert gemms({"importance_sampling_level": level, **TINY}, grad=False) == 1.0


SEQUENCE_COUPLED = {
    "sequence-level ratios": {"importance_sampling_level": "sequence"},
    "vespo": {"loss_type": "vespo"},
    "off-policy mask": {"off_policy_mask_threshold": 0.1},
}


@pytest.mark.parametrize("name", SEQUENCE_COUPLED)
def test_sequence_coupling_takes_three_while_sequences_fit_a_chunk(name: str) -> None:
    options = SEQUENCE_COUPLED[name]
    assert gemms({**options, **WHOLE}) == 3.0
    assert gemms({**options, **CHUNKED}) == 3.0
    assert gemms({**options, **TINY}) == 4.0
    assert gemms({**options, **TINY}, old=False) == 3.0


def test_sequence_sampler_correction_couples_too() -> None:
    sampler = torch.full((S, T), -5.0)
    assert gemms({**CHUNKED}, sampler_logps=sampler) == 3.0
    assert gemms({**TINY}, sampler_logps=sampler) == 4.0
    assert gemms({**TINY, "importance_sampling_mode": "token_truncate"}, sampler_logps=sampler) == 3.0


def test_the_entropy_quantile_couples_the_batch() -> None:
    options = {"top_entropy_quantile": 0.5}
    assert gemms({**options, **WHOLE}) == 3.0
    assert gemms({**options, **CHUNKED}) == 4.0
    assert gemms({**options, **CHUNKED}, trained=False) == 2.0


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"])
def test_rows_of_zero_advantage_cost_nothing(loss_type: str) -> None:
    assert gemms({"loss_type": loss_type}, zero=S // 2) == 1.5
    assert gemms({"loss_type": loss_type}, zero=S // 2, trained=False) == 1.0
    assert gemms({"loss_type": loss_type}, zero=S) == 0.0
    assert gemms({"loss_type": loss_type}, zero=S // 2, compact=False) == 3.0


@pytest.mark.parametrize("options", [{"beta": 0.1}, {"entropy_coef": 0.1}, {"top_entropy_quantile": 0.5}], ids=str)
def test_rows_of_zero_advantage_stay_where_they_have_a_gradient(options: dict[str, Any]) -> None:
    assert gemms(options, zero=S // 2) == 3.0


def logprob_gemms(hidden_grad: bool, weight_grad: bool, **options: Any) -> float:
    hidden, weight = torch.randn(N, H, requires_grad=hidden_grad), torch.randn(V, H, requires_grad=weight_grad)
    with FlopCounterMode(display=False) as counter:
        logps: Tensor = linear_logprobs(hidden, weight, torch.zeros(N, dtype=torch.long), **options)
        if logps.requires_grad:
            logps.sum().backward()
    return counter.get_total_flops() / (2 * N * H * V)


def test_logprobs_of_a_trained_head_keep_e_within_the_budget_or_recompute_it() -> None:
    assert logprob_gemms(True, True) == 3.0
    assert logprob_gemms(True, True, **TINY) == 4.0


def test_logprobs_of_a_frozen_head_take_two_and_scoring_one() -> None:
    assert logprob_gemms(True, False) == 2.0
    assert logprob_gemms(True, False, **TINY) == 2.0
    assert logprob_gemms(False, False, **TINY) == 1.0
