"""fp64 gradcheck of the reference of the policy loss, and of the whole loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from grpo_fast import GRPOLoss
from grpo_fast.config import loss_options
from grpo_fast.ops.policy_loss import PolicyRows, policy_loss, policy_rows

LENGTHS = (3, 1, 4, 2)


def rows(seed: int = 0, sampler: bool = False) -> tuple[Tensor, PolicyRows]:
    gen = torch.Generator().manual_seed(seed)
    n = sum(LENGTHS)

    def randn() -> Tensor:
        return torch.randn(n, generator=gen, dtype=torch.float64)

    lengths = torch.tensor(LENGTHS)
    logps = -2 + 0.5 * randn()
    return logps, PolicyRows(
        advantages=randn(),
        weights=torch.rand(n, generator=gen, dtype=torch.float64),
        lengths=lengths,
        tokens=lengths.double(),
        old_logps=logps + 0.15 * randn(),
        ref_logps=logps + 0.5 * randn(),
        sampler_logps=logps + 0.3 * randn() if sampler else None,
    )


CHECKED: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo"},
    "sapo": {"loss_type": "sapo"},
    "luspo": {"loss_type": "luspo"},
    "delta": {"loss_type": "dapo", "delta": 1.1},
    "kl": {"loss_type": "bnpo", "beta": 0.3},
    "kl uncorrected": {"loss_type": "dr_grpo", "beta": 0.3, "use_bias_correction_kl": False},
    "sapo kl": {"loss_type": "sapo", "beta": 0.3},
    "cispo at its cap": {"loss_type": "cispo", "epsilon_high": 0.1, "beta": 0.2},
    "off-policy mask": {"loss_type": "grpo", "off_policy_mask_threshold": 0.02},
    "sampler token": {"loss_type": "grpo", "importance_sampling_mode": "token_truncate"},
    "sampler sequence": {"loss_type": "grpo", "importance_sampling_mode": "sequence_truncate"},
}


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("name", CHECKED)
def test_gradcheck_of_the_policy_loss(name: str, level: str) -> None:
    options = loss_options(**CHECKED[name], importance_sampling_level=level)
    logps, given = rows(sampler=name.startswith("sampler"))
    assert torch.autograd.gradcheck(
        lambda x: policy_rows(options, x, given)[0].loss, logps.requires_grad_(), eps=1e-6, atol=1e-7, rtol=1e-6
    )
    terms = policy_loss(options, logps.detach(), given)
    (expected,) = torch.autograd.grad(policy_rows(options, logps, given)[0].loss.sum(), logps)
    torch.testing.assert_close(terms.grad, expected, rtol=1e-12, atol=1e-15)  # the derivative by hand


@pytest.mark.parametrize("loss_type", ["cispo", "vespo"])
def test_detached_weights_carry_no_gradient(loss_type: str) -> None:
    # finite differences would see the weight move: the gradient is the weight itself
    options = loss_options(loss_type=loss_type, epsilon_high=1.1)
    logps, given = rows()
    terms = policy_loss(options, logps, given)
    weight = (logps - given.old_logps).exp().clamp(max=1.1) if loss_type == "cispo" else terms.phi
    torch.testing.assert_close(terms.grad, -weight * given.advantages * given.weights, rtol=1e-12, atol=0)


@pytest.mark.parametrize("chunk_rows", [None, 16])
@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": "grpo", "beta": 0.2},
        {"loss_type": "dapo", "importance_sampling_level": "sequence", "entropy_coef": 0.3},
        {"loss_type": "sapo", "top_entropy_quantile": 0.5, "entropy_coef": -0.2, "temperature": 0.7, "softcap": 5.0},
    ],
    ids=lambda options: options["loss_type"],
)
def test_gradcheck_of_the_whole_loss(options: dict[str, Any], chunk_rows: int | None) -> None:
    gen = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 18, 5, generator=gen, dtype=torch.float64).requires_grad_()
    weight = torch.randn(7, 5, generator=gen, dtype=torch.float64).requires_grad_()
    targets = torch.randint(7, (2, 18), generator=gen)
    old = -2 + 0.1 * torch.randn(2, 18, generator=gen)
    mask = torch.arange(18) < torch.tensor([[18], [11]])
    mask[1, 3] = False
    chunk_bytes = None if chunk_rows is None else chunk_rows * (7 + 3 * 5) * 8
    loss_fn = GRPOLoss(**options, chunk_bytes=chunk_bytes)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return loss_fn(
            hidden, weight, targets, advantages=torch.tensor([0.7, -0.4]), mask=mask,
            old_logps=old, ref_logps=old - 0.2,
        ).loss  # fmt: skip

    # the loss itself is fp32: a wide step and fp32-sized tolerances
    assert torch.autograd.gradcheck(loss, (hidden, weight), eps=1e-3, atol=2e-3, rtol=2e-3)
