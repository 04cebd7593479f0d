"""The GRPO phase: collect, update, look, keep."""

from __future__ import annotations

import math
import time

from grpo_fast.errors import BadSettings
from grpo_fast.policy import GRPOPolicy
from grpo_fast.rewards import RewardSet
from grpo_fast.train.draws import Draws
from grpo_fast.train.experience import Collector, sampling_of
from grpo_fast.train.optim import build_optimizer, rate, set_rate
from grpo_fast.train.ranks import Ranks
from grpo_fast.train.session import Session
from grpo_fast.train.settings import Settings
from grpo_fast.train.update import Updater

SILENT_STEPS = 10  # without a word about it


def steps_of(settings: Settings, questions: int) -> int:
    if settings.optim.steps is not None:
        return settings.optim.steps
    return math.ceil(settings.optim.epochs * questions / settings.rollout.prompts_per_step)


def check_grpo(settings: Settings, ranks: Ranks) -> None:
    """Refuses at the start what would otherwise fail after the warm start."""
    rollout = settings.rollout
    sampling_of(settings)
    if rollout.prompts_per_step < ranks.world * rollout.minibatches:
        raise BadSettings(
            f"prompts_per_step ({rollout.prompts_per_step}) must be at least ranks × minibatches "
            f"({ranks.world} × {rollout.minibatches}): every rank needs a question in every update"
        )


def run_grpo(session: Session, draws: Draws, rewards: RewardSet, reference: GRPOPolicy | None) -> None:
    settings, position, ranks = session.settings, session.position, session.ranks
    steps = steps_of(settings, len(draws.samples))
    optim = settings.optim
    optimizer = build_optimizer(session.wrapped, optim, optim.learning_rate)
    updater = Updater(
        session.wrapped, optimizer, ranks, token_budget=optim.token_budget, max_grad_norm=optim.max_grad_norm,
        reference=reference, watch=session.view.update,
    )  # fmt: skip
    session.resume(optimizer, draws)
    if position.entropy_coef is not None:
        updater.loss.entropy_coef = position.entropy_coef
    if position.last_entropy is not None:
        updater.loss.last_entropy = position.last_entropy
    collect = Collector(settings, session.engine, draws, rewards, ranks, session.watch)
    session.view.phase("grpo", steps, position.step)
    silent = 0
    with session.keeping(optimizer):
        while position.step < steps or position.owes:
            if not position.owes:
                metrics = _step(session, collect, updater, position.step + 1, steps)
                silent = silent + 1 if metrics["groups_without_spread"] == 1.0 else 0
                if silent == SILENT_STEPS:
                    session.view.note(_silence(metrics["reward"]))
            session.after_step(optimizer, evaluates=True, last=position.step >= steps, name="grpo")


def _silence(reward: float) -> str:
    return (
        f"for {SILENT_STEPS} steps no group had two different rewards (mean {reward:g}): they taught nothing. If the "
        "reward fell to this, start again with a lower learning_rate or with mask_truncated_completions; if it is the "
        "highest there is, the run may end"
    )


def _step(session: Session, collect: Collector, updater: Updater, step: int, steps: int) -> dict[str, float]:
    """What was collected, in figures."""
    settings, position = session.settings, session.position
    rollout, optim = settings.rollout, settings.optim
    began = time.perf_counter()
    with session.naming(
        "sampling",
        f"lower prompts_per_step ({rollout.prompts_per_step}), group_size, max_completion_length or kv_bytes",
    ):
        experience = collect()
    session.note_skipped(collect.draws.skipped)
    middle = time.perf_counter()
    learning_rate = rate(step, steps, optim, optim.learning_rate)
    set_rate(updater.optimizer, learning_rate)
    session.midway = True
    with session.naming("updating", f"lower token_budget ({optim.token_budget}) or turn activation_checkpointing on"):
        updated = updater(
            [one.group for one in experience.scored],
            spare=None if experience.spare is None else experience.spare.group,
            passes=rollout.updates_per_rollout,
            minibatches=rollout.minibatches,
        )
    end = time.perf_counter()
    # Everything that a resumed run needs moves on together, once the weights have.
    position.step, position.cursor, position.owes = step, collect.draws.cursor, True
    position.skipped, position.entropy_coef = collect.draws.skipped.count, updater.loss.entropy_coef
    position.last_entropy = updater.loss.last_entropy if math.isfinite(updater.loss.last_entropy) else None
    values = experience.metrics | updated.metrics | {"learning_rate": learning_rate, "drawn": float(experience.drawn)}
    completions = experience.drawn * rollout.group_size
    session.record(
        step, "grpo", values,
        experience.seconds | {
            "seconds": end - began, "update_seconds": end - middle,
            "completions_per_second": completions / (end - began),
            "tokens_per_second": experience.sampled_tokens * session.ranks.world / (end - began),
        },
    )  # fmt: skip
    session.look(step, "grpo", experience.scored)
    session.midway = False
    return experience.metrics
