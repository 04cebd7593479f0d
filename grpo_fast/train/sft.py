"""The supervised phase: demonstrations through the same fused head.

The gradient of a policy loss with advantage 1, on policy, is that of the mean negative log-prob of the completion's
tokens; prompt tokens are no targets, and conversations are packed as groups of one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from grpo_fast.data.prompts import PromptStyle
from grpo_fast.errors import BadSettings
from grpo_fast.losses.grpo import GRPOLoss
from grpo_fast.policy.processor import Processor
from grpo_fast.train.draws import Draws
from grpo_fast.train.optim import build_optimizer, rate, set_rate
from grpo_fast.train.session import Session
from grpo_fast.train.update import Updater
from grpo_fast.types import Group, Prompt, Sample

THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)
CHECK_EVERY = 5  # steps between looks at whether a warm start has come far enough


def supervised_loss() -> GRPOLoss:
    return GRPOLoss(loss_type="dapo", beta=0.0, temperature=1.0)


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """Questions drawn together with the completion to imitate."""

    draws: Draws
    processor: Processor
    style: PromptStyle
    stop_token: int
    as_it_stands: bool  # the file's own turns, whatever their form

    def take(self, count: int) -> list[Group]:
        return [self._group(drawn.prompt) for drawn in self.draws.take(count)]

    def _group(self, prompt: Prompt) -> Group:
        assert prompt.sample is not None
        text = demonstrated(prompt.sample, self.style, as_it_stands=self.as_it_stands)
        ids = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens = torch.tensor([*ids, self.stop_token], dtype=torch.int64)
        return Group(prompt, (tokens,), finished=(True,), advantages=torch.ones(1))


def demonstrated(sample: Sample, style: PromptStyle, *, as_it_stands: bool) -> str:
    """The file's own assistant turn, as it stands or in the form that is asked for; else the gold answer in it."""
    response = str(sample.meta.get("response") or "")
    if response and as_it_stands:
        return response
    thought = THOUGHT.search(response)
    return style.demonstration(str(sample.answer), thought[1].strip() if thought else "")


def stop_token_of(stops: Sequence[int], tokenizer: Any) -> int:
    if tokenizer.eos_token_id in stops:
        return tokenizer.eos_token_id
    if not stops:
        raise BadSettings("the model names no end-of-sequence token: supervised completions could not end")
    return stops[0]


def run_supervised(
    session: Session, demonstrations: Demonstrations, steps: int, *, enough: Callable[[], bool] | None = None
) -> None:
    """`enough` is asked every few steps whether to stop early."""
    settings, position, ranks = session.settings, session.position, session.ranks
    own, draws = settings.warm_start, demonstrations.draws
    kept, session.policy.loss = session.policy.loss, supervised_loss()
    optimizer = build_optimizer(session.wrapped, settings.optim, own.sft_learning_rate)
    updater = Updater(
        session.wrapped, optimizer, ranks, token_budget=settings.optim.token_budget,
        max_grad_norm=settings.optim.max_grad_norm, watch=session.view.update,
    )  # fmt: skip
    session.resume(optimizer, draws)
    session.view.phase("sft", steps, position.step)
    with session.keeping(optimizer):
        while position.step < steps or position.owes:
            if not position.owes:
                _step(session, demonstrations, updater, position.step + 1, steps if enough is None else None)
            if enough is not None and position.step % CHECK_EVERY == 0 and enough():
                break
            session.after_step(optimizer, evaluates=enough is None, last=position.step >= steps, name="sft")
        if enough is not None:
            session.evaluate(position.step, "sft")
    session.policy.loss = kept


def _step(session: Session, demonstrations: Demonstrations, updater: Updater, step: int, steps: int | None) -> None:
    """`steps`: of all; None in a warm start, whose end is not known."""
    settings, position, draws = session.settings, session.position, demonstrations.draws
    own, began = settings.warm_start, time.perf_counter()
    learning_rate = own.sft_learning_rate
    if steps is not None:
        learning_rate = rate(step, steps, settings.optim, learning_rate)
    set_rate(updater.optimizer, learning_rate)
    groups = demonstrations.take(own.sft_batch)
    session.note_skipped(draws.skipped)
    session.midway = True
    with session.naming("updating", f"lower token_budget ({settings.optim.token_budget}) or sft_batch"):
        done = updater(groups).metrics
    position.step, position.cursor, position.owes = step, draws.cursor, True
    position.skipped = draws.skipped.count
    values = {"loss": -done["logp"], "grad_norm": done["grad_norm"], "learning_rate": learning_rate}
    session.record(step, "sft", values, {"seconds": time.perf_counter() - began})
    session.midway = False
