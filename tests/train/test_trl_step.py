"""One training step of ours and of TRL's GRPOTrainer, from the same weights, completions and rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", minversion="1.16")

from torch import Tensor
from train import trl_step

from grpo_fast import group_advantages
from grpo_fast.policy.processor import Processor
from grpo_fast.train import assemble, tiny
from grpo_fast.train.optim import build_optimizer
from grpo_fast.train.ranks import Ranks
from grpo_fast.train.settings import Settings
from grpo_fast.train.update import Updater
from grpo_fast.types import Group, Sample

LEARNING_RATE = 1e-4
BOUND = 1e-5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("tiny"), trl_step.QUESTIONS, seed=0)


# The losses that normalise alike under accumulation, with and without a reference. bnpo divides by each micro-batch's
# own tokens in TRL and by the step's here, so it is the same step only without accumulation.
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize(
    ("loss_type", "accumulation"),
    [("grpo", 1), ("grpo", 4), ("dapo", 1), ("dapo", 4), ("dr_grpo", 4), ("cispo", 4), ("sapo", 1), ("bnpo", 1)],
)
def test_one_step_is_trls(model: Path, tmp_path: Path, loss_type: str, accumulation: int, beta: float) -> None:
    options: dict[str, Any] = {"loss_type": loss_type, "beta": beta}
    theirs = trl_step.run(model, tmp_path, accumulation=accumulation, learning_rate=LEARNING_RATE, **options)
    ranks = Ranks(0, 1, torch.device("cpu"))
    settings = Settings()
    settings.loss = settings.loss.__class__(max_completion_length=trl_step.LIMIT, **options)
    policy = assemble.build_policy(settings, model, ranks)
    reference = assemble.build_policy(settings, model, ranks) if beta else None
    optimizer = build_optimizer(policy, settings.optim, LEARNING_RATE)
    groups = groups_of(theirs, Processor.from_pretrained(model))
    budget = 2**20 if accumulation == 1 else max(map(tokens, groups))
    update = Updater(policy, optimizer, ranks, token_budget=budget, max_grad_norm=1.0, reference=reference)

    done = update(groups)

    assert done.micro_batches == accumulation
    assert done.metrics["loss"] == pytest.approx(theirs.loss, abs=BOUND)
    assert done.metrics["grad_norm"] == pytest.approx(theirs.norm, rel=BOUND)
    gradients = {name: p.grad for name, p in policy.model.named_parameters() if p.grad is not None}
    assert worst(gradients, theirs.gradients) < BOUND
    # Adam's first step is the sign of the gradient: where that is rounding around 0 (the bias of keys), so is the sign.
    before = assemble.build_policy(settings, model, ranks).model.named_parameters()
    for (name, found), (_, start) in zip(policy.model.named_parameters(), before, strict=True):
        told = gradients[name].abs() > 1e-6
        assert not told.any() or (found - start)[told].abs().min() > 0.9 * LEARNING_RATE
        assert not told.any() or (found - theirs.weights[name])[told].abs().max() < BOUND * LEARNING_RATE + 2e-7
    assert sum(int((g.abs() > 1e-6).sum()) for g in gradients.values()) > 0.8 * sum(
        g.numel() for g in gradients.values()
    )


def tokens(group: Group) -> int:
    return group.prompt.input_ids.numel() + sum(c.numel() for c in group.completions)


def groups_of(step: trl_step.Step, processor: Processor) -> list[Group]:
    advantages = group_advantages(step.rewards.flatten(), trl_step.GROUP).view_as(step.rewards)
    found = []
    for ids, completions, finished, advantage in zip(
        step.prompts, step.completions, step.finished, advantages, strict=True
    ):
        prompt = next(p for p in prompts_of(processor) if p.input_ids.tolist() == ids.tolist())
        found.append(Group(prompt, completions, finished=finished, advantages=advantage))
    return found


def prompts_of(processor: Processor) -> list[Any]:
    content = [[{"type": "image"}, {"type": "text", "text": question}] for question in trl_step.QUESTIONS]
    return [
        processor(Sample(str(i), [{"role": "user", "content": one}], (lambda image=image: image,)))
        for i, (one, image) in enumerate(zip(content, trl_step.pictures(), strict=True))
    ]


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest relative difference of a tensor, in norms."""
    names = {name.removeprefix("module.") for name in expected}
    assert names == set(found)
    return max(
        ((found[name] - expected[name]).norm() / expected[name].norm().clamp_min(1e-12)).item() for name in names
    )
