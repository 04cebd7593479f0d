"""The Triton policy loss against its definition in differentiable fp64 torch, for every option."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from grpo_fast.config import CLIPPED, LossOptions, LossType
from grpo_fast.kernels.policy_loss import policy_loss
from grpo_fast.ops.policy_loss import policy_rows
from grpo_fast.types import PolicyRows, PolicyTerms

# an empty sequence, one of a single row, one longer than the kernel's block, rows dropped (tokens > length)
LENGTHS = (3, 0, 1, 261, 6)
TOKENS = (5.0, 1.0, 1.0, 261.0, 6.0)


def batch(device: torch.device) -> tuple[Tensor, PolicyRows]:
    n = sum(LENGTHS)
    logps = -torch.rand(n, device=device) * 4

    def near(spread: float) -> Tensor:
        return logps + torch.randn(n, device=device) * spread

    sampler = near(0.1)
    sampler[2] = float("nan")  # the sampler could not say
    per_sequence = torch.randn(len(LENGTHS), device=device)
    counts = torch.tensor(LENGTHS, device=device)
    return logps, PolicyRows(
        advantages=per_sequence.repeat_interleave(counts),
        weights=torch.rand(n, device=device) + 0.1,
        lengths=counts,
        tokens=torch.tensor(TOKENS, device=device),
        old_logps=near(0.2),
        ref_logps=near(0.3),
        sampler_logps=sampler,
        keep=(torch.rand(n, device=device) > 0.3).float(),
    )


def exact(options: LossOptions, logps: Tensor, rows: PolicyRows) -> PolicyTerms:
    def wide(x: Tensor | None) -> Any:
        return x.double() if x is not None and x.is_floating_point() else x

    rows = PolicyRows(*(wide(getattr(rows, name)) for name in PolicyRows.__slots__))
    leaf = logps.double().requires_grad_()
    terms, _ = policy_rows(options, leaf, rows)
    (grad,) = torch.autograd.grad(terms.loss.sum(), leaf, allow_unused=True, materialize_grads=True)
    return terms._replace(grad=grad)


def assert_equal(options: LossOptions, logps: Tensor, rows: PolicyRows) -> None:
    got, truth = policy_loss(options, logps, rows), exact(options, logps, rows)
    for name in got._fields:
        wanted = getattr(truth, name).detach()
        scale = wanted.abs().max().item()
        torch.testing.assert_close(
            getattr(got, name).double(), wanted, rtol=2e-5, atol=1e-6 * (1 + scale), msg=lambda m, n=name: f"{n}: {m}"
        )


BARE = dict(old_logps=None, ref_logps=None, sampler_logps=None, keep=None)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # name: what the rows lack, the options
    "on policy": (BARE, {}),
    "old policy": (BARE | {"old_logps": ...}, {}),
    "kl": (BARE | {"ref_logps": ...}, {"beta": 0.1, "use_bias_correction_kl": False}),
    "kl, bias corrected": (BARE | {"old_logps": ..., "ref_logps": ...}, {"beta": 0.1}),
    "delta": (BARE | {"old_logps": ...}, {"delta": 1.1}),
    "token truncate": ({}, {"importance_sampling_mode": "token_truncate", "importance_sampling_clip_max": 1.05}),
    "token mask": ({"keep": None}, {"importance_sampling_mode": "token_mask", "importance_sampling_clip_min": 0.95}),
    "sequence truncate": ({}, {"importance_sampling_mode": "sequence_truncate", "importance_sampling_clip_max": 1.2}),
    "sequence mask": ({"old_logps": None}, {"importance_sampling_mode": "sequence_mask"}),
    "no bounds": ({}, {"importance_sampling_mode": "token_mask", "importance_sampling_clip_max": None}),
    "off-policy mask": ({}, {"off_policy_mask_threshold": 0.01, "importance_sampling_correction": False}),
    "off-policy mask by the old policy": ({"sampler_logps": None}, {"off_policy_mask_threshold": 0.0}),
    "everything": ({}, {"beta": 0.1, "delta": 1.2, "off_policy_mask_threshold": 0.02, "epsilon_high": 0.28}),
}


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", get_args(LossType))
def test_every_loss_with_every_option(loss_type: str, level: str, device: torch.device) -> None:
    logps, rows = batch(device)
    brief = loss_type in CLIPPED - {"grpo"}  # they share their rows' loss and differ in the weights
    for name, (without, given) in CASES.items():
        if brief and name not in ("on policy", "everything"):
            continue
        if loss_type not in CLIPPED:
            given = {k: v for k, v in given.items() if k != "delta"}
        if loss_type == "cispo":
            given = given | {"epsilon_high": 1.1}
        options = LossOptions(loss_type=loss_type, importance_sampling_level=level, **given)  # type: ignore[arg-type]
        lacking = {k: v for k, v in without.items() if v is None}
        try:
            assert_equal(options, logps, replace(rows, **lacking))
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def test_at_the_ends_of_the_clip_range_the_gradient_is_torchs(device: torch.device) -> None:
    """clamp passes the gradient at both ends, min halves it at a tie: inside the range all of it, in two halves."""
    logps = torch.full((6,), -1.0, device=device)
    step = torch.tensor([0.0, 0.1, -0.1, 0.5, -0.5, 0.0], device=device)
    advantages = torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0, 0.0], device=device)
    rows = PolicyRows(
        advantages, torch.ones(6, device=device), torch.tensor([6], device=device), torch.tensor([6.0], device=device),
        old_logps=logps - step,
    )  # fmt: skip
    options = LossOptions(loss_type="grpo")
    assert_equal(options, logps, rows)
    grad = policy_loss(options, logps, rows).grad
    assert grad[3] == 0 and grad[4] == 0 and grad[5] == 0 and grad[0] == -1.0


def test_on_policy_the_ratio_is_exactly_one(device: torch.device) -> None:
    logps, rows = batch(device)
    for level in ("token", "sequence"):
        terms = policy_loss(LossOptions(importance_sampling_level=level), logps, replace(rows, **BARE))  # type: ignore[arg-type]
        assert torch.equal(terms.ratio, torch.ones_like(logps)) and torch.equal(
            terms.correction, torch.ones_like(logps)
        )


def test_a_sequence_alone_or_in_company(device: torch.device) -> None:
    logps, rows = batch(device)
    options = LossOptions(importance_sampling_level="sequence", beta=0.1, off_policy_mask_threshold=0.02)
    together = policy_loss(options, logps, rows)
    alone = policy_loss(options, logps[-6:], rows.slice(slice(265, 271), rows.lengths[-1:], rows.tokens[-1:]))
    assert all(torch.equal(a, b[-6:]) for a, b in zip(alone, together, strict=True))


def test_no_rows(device: torch.device) -> None:
    empty = torch.empty(0, device=device)
    rows = PolicyRows(empty, empty, torch.zeros(2, dtype=torch.int64, device=device), torch.ones(2, device=device))
    assert policy_loss(LossOptions(), empty, rows).grad.shape == (0,)


def test_bad_input_is_refused_by_name(device: torch.device) -> None:
    logps, rows = batch(device)
    with pytest.raises(ValueError, match="ref_logps"):
        policy_loss(LossOptions(beta=0.1), logps, replace(rows, ref_logps=None))
    with pytest.raises(ValueError, match="weights"):
        policy_loss(LossOptions(), logps, replace(rows, weights=rows.weights[1:]))
