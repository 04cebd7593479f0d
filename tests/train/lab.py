"""Small runs for tests: a tiny model built once, phantom's questions, one rank in this process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from grpo_fast.config import LossOptions
from grpo_fast.data.phantom import phantom
from grpo_fast.data.prompts import PromptStyle, prompt_style
from grpo_fast.policy import GRPOPolicy, Packer, split_rows
from grpo_fast.policy.processor import Processor
from grpo_fast.train import assemble, tiny
from grpo_fast.train.optim import build_optimizer
from grpo_fast.train.ranks import Ranks
from grpo_fast.train.settings import Settings
from grpo_fast.train.update import Updater
from grpo_fast.types import Group, Prompt

ALONE = Ranks(0, 1, torch.device("cpu"))
FOLDER = "GRPO_FAST_TEST_TINY"
PLAIN: PromptStyle = prompt_style("plain")


@lru_cache
def tiny_folder() -> Path:
    """Built before ranks are joined: transformers lets only the first of them write."""
    if FOLDER in os.environ:
        return Path(os.environ[FOLDER])
    texts = [part["text"] for sample in phantom("train", 64) for part in sample.messages[0]["content"][1:]]
    return tiny.build(mkdtemp(), texts, seed=0, hidden=64, layers=2, vision_layers=1, vision_width=32)


@lru_cache
def processor() -> Processor:
    return Processor.from_pretrained(tiny_folder())


@lru_cache
def _prompt(number: int) -> Prompt:
    return processor()(PLAIN(phantom("train")[number]))


def prompts(count: int) -> list[Prompt]:
    return [_prompt(number) for number in range(count)]


def groups(count: int, advantages: Sequence[Sequence[float]] | None = None, size: int = 4) -> list[Group]:
    """Completions of unequal lengths; advantages at random unless given."""
    random = torch.Generator().manual_seed(7)
    found = []
    for number, prompt in enumerate(prompts(count)):
        lengths = torch.randint(1, 9, (size,), generator=random).tolist()
        completions = tuple(torch.randint(20, 200, (n,), generator=random) for n in lengths)
        own = torch.randn(size, generator=random) if advantages is None else torch.tensor(advantages[number])
        found.append(Group(prompt, completions, finished=(True,) * size, advantages=own))
    return found


def settings(**loss: Any) -> Settings:
    found = Settings()
    found.loss = LossOptions(**{"max_completion_length": 8, **loss})
    return found


def policy(chosen: Settings, ranks: Ranks = ALONE) -> GRPOPolicy:
    return assemble.build_policy(chosen, tiny_folder(), ranks)


def updater(made: Any, *, budget: int = 2**20, rate: float = 1e-3, ranks: Ranks = ALONE, **options: Any) -> Updater:
    optimizer = build_optimizer(made, Settings().optim, rate)
    return Updater(made, optimizer, ranks, token_budget=budget, max_grad_norm=0.0, **options)


def with_old(update: Updater, given: list[Group]) -> list[Group]:
    """The groups with the policy's log-probs as they are now."""
    found = {}
    for batch in Packer(update.policy.prompt_spec, 2**20).pack(given).batches:
        found |= split_rows(batch, update.policy.logps(batch))
    return [
        replace(group, old_logps=tuple(found[number, i] for i in range(len(group.completions))))
        for number, group in enumerate(given)
    ]


def gradients(made: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Relative, of all tensors as one vector."""
    assert found.keys() == expected.keys()
    a, b = (torch.cat([one[name].flatten() for name in sorted(one)]) for one in (found, expected))
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()
