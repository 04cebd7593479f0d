"""A step's update: what must not change it, what it must leave alone, and whose gradient it is."""

from __future__ import annotations

import pytest
import torch
from train import lab

from grpo_fast.errors import RunFailed
from grpo_fast.losses.grpo import GRPOLoss
from grpo_fast.train.sft import supervised_loss
from grpo_fast.types import Group

ROUNDING = 2e-6


@pytest.mark.parametrize("entropy_coef", [0.0, 0.1])
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo"])
def test_micro_batches_do_not_change_the_gradient(loss_type: str, entropy_coef: float) -> None:
    chosen = lab.settings(loss_type=loss_type, entropy_coef=entropy_coef)
    found = []
    for budget in (2**20, 90):
        policy = lab.policy(chosen)
        done = lab.updater(policy, budget=budget)(lab.groups(5))
        found.append((lab.gradients(policy), done))
    assert found[0][1].micro_batches == 1 and found[1][1].micro_batches > 2
    assert lab.distance(found[1][0], found[0][0]) < ROUNDING
    assert found[1][1].metrics["loss"] == pytest.approx(found[0][1].metrics["loss"], abs=1e-6)


def test_supervised_gradient_is_that_of_cross_entropy() -> None:
    """Against transformers' own loss on each conversation, prompt tokens masked with -100."""
    policy = lab.policy(lab.settings())
    policy.loss = supervised_loss()
    random = torch.Generator().manual_seed(0)
    answers = [torch.randint(20, 200, (n,), generator=random) for n in (3, 7, 1)]
    taught = [
        Group(prompt, (answer,), finished=(True,), advantages=torch.ones(1))
        for prompt, answer in zip(lab.prompts(3), answers, strict=True)
    ]
    done = lab.updater(policy)(taught)

    plain = lab.policy(lab.settings()).model
    plain.set_attn_implementation("eager")
    total = sum(map(len, answers))
    loss = torch.zeros(())
    for group in taught:
        prompt, (answer,) = group.prompt, group.completions
        ids = torch.cat([prompt.input_ids, answer])[None]
        labels = torch.cat([torch.full_like(prompt.input_ids, -100), answer])[None]
        out = plain(
            input_ids=ids, labels=labels, attention_mask=torch.ones_like(ids), pixel_values=prompt.vision[0].pixels,
            image_grid_thw=torch.tensor([prompt.vision[0].grid]),
            mm_token_type_ids=(ids == plain.config.image_token_id).int(),
        )  # fmt: skip
        loss = loss + out.loss * len(answer) / total
    loss.backward()
    expected = {f"model.{name}": p.grad for name, p in plain.named_parameters() if p.grad is not None}
    assert lab.distance(lab.gradients(policy), expected) < 1e-5
    assert -done.metrics["logp"] == pytest.approx(loss.item(), rel=1e-5)


def test_equal_rewards_everywhere_leave_the_weights_alone() -> None:
    policy = lab.policy(lab.settings())
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    done = lab.updater(policy)(lab.groups(3, advantages=[[0.0] * 4] * 3))
    assert done.metrics["grad_norm"] == 0.0
    assert all(torch.equal(p, before[name]) for name, p in policy.named_parameters())


def test_further_passes_are_off_policy_and_the_first_is_not() -> None:
    """Ratios move away from 1 from the second pass on; two passes with old log-probs from a pass of their own agree."""
    policy = lab.policy(lab.settings())
    done = lab.updater(policy, rate=3e-3)(lab.groups(4), passes=3)
    assert done.metrics["ratio_max"] > 1.01
    assert lab.updater(lab.policy(lab.settings()))(lab.groups(4)).metrics["ratio_max"] == 1.0

    again = lab.policy(lab.settings())
    update = lab.updater(again, rate=3e-3)
    given = lab.with_old(update, lab.groups(4))
    for _ in range(3):
        update(given)
    ours, theirs = dict(policy.named_parameters()), dict(again.named_parameters())
    assert lab.distance({n: p.detach() for n, p in ours.items()}, {n: p.detach() for n, p in theirs.items()}) < 1e-5


def test_minibatches_are_updates_of_their_own() -> None:
    """The second one's old log-probs are those from before the first."""
    policy = lab.policy(lab.settings())
    done = lab.updater(policy, rate=3e-3)(lab.groups(4), minibatches=2)
    by_hand = lab.policy(lab.settings())
    update = lab.updater(by_hand, rate=3e-3)
    given = lab.with_old(update, lab.groups(4))
    update(given[:2])
    update(given[2:])
    found = {name: p.detach() for name, p in policy.named_parameters()}
    assert lab.distance(found, {name: p.detach() for name, p in by_hand.named_parameters()}) < ROUNDING
    assert done.micro_batches == 2


def test_reference_holds_the_policy_back() -> None:
    chosen = lab.settings(beta=0.1)
    policy, reference = lab.policy(chosen), lab.policy(chosen)
    update = lab.updater(policy, reference=reference)
    assert update(lab.groups(3)).metrics["kl"] == pytest.approx(0.0, abs=1e-6)
    assert update(lab.groups(3)).metrics["kl"] > 1e-6


def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_move() -> None:
    policy = lab.policy(lab.settings())
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    with torch.no_grad():
        policy.core.language_model.norm.weight[0] = float("nan")
    with pytest.raises(RunFailed, match="weights were left as they are"):
        lab.updater(policy)(lab.groups(2))
    moved = [name for name, p in policy.named_parameters() if not torch.equal(p, before[name])]
    assert moved == ["model.model.language_model.norm.weight"]


def test_adaptive_entropy_is_measured_over_the_step() -> None:
    policy = lab.policy(lab.settings())
    policy.loss = GRPOLoss(use_adaptive_entropy=True, entropy_target=100.0, entropy_coef_delta=0.25)
    update = lab.updater(policy, budget=90)
    assert update(lab.groups(5)).metrics["entropy_coef"] == 0.25
    assert update(lab.groups(5)).metrics["entropy_coef"] == 0.5


def test_no_update_without_a_group() -> None:
    """Two groups in four updates are two updates: an empty one would move the weights by momentum alone."""
    given = lab.groups(2)
    four, two = (lab.updater(lab.policy(lab.settings())) for _ in range(2))
    found, expected = four(given, spare=given[0], minibatches=4), two(given, minibatches=2)
    assert found.metrics == expected.metrics
    for name, weight in two.policy.named_parameters():
        assert torch.equal(weight, dict(four.policy.named_parameters())[name]), name
