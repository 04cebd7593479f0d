"""Loss, gradients and metrics of every option against the installed TRL's `GRPOTrainer._compute_loss`."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

pytest.importorskip("trl", minversion="1.16")

from parity.batch import Batch, make_batch
from parity.compare import relative_errors
from parity.our_side import our_options, our_result, run_loss
from parity.table import CASES, LAYOUTS, LOSS_TYPES, TOLERANCE, Case, Row, refused_by_trl, refused_by_us
from parity.trl_side import make_config, make_trainer, run_trainer, trl_result

from grpo_fast import GRPOLoss

RUNNABLE = [case for case in CASES if not refused_by_trl(case) and not refused_by_us(case)]


@pytest.mark.parametrize("case", RUNNABLE, ids=lambda case: case.id)
def test_loss_gradients_and_metrics_equal_trl(case: Case) -> None:
    batch = make_batch(seed=case.id, **case.row.batch)
    expected = trl_result(case, batch)
    for layout, chunk_rows in LAYOUTS:
        errors = relative_errors(our_result(case, batch, layout, chunk_rows), expected)
        named = dict(zip(("loss", "grad_hidden", "grad_weight"), errors, strict=True))
        assert max(errors) <= TOLERANCE, (layout, chunk_rows, named)
    for layout in ("padded", "packed"):
        ours = our_result(case, batch, layout, compact=False).metrics
        for name, value in expected.metrics.items():
            if name in ("policy_loss", "entropy_coef"):  # of the trainer's log, not of the batch
                continue
            value = without_empty_sequences(name, value, case, batch)
            assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-6), (layout, name)


def without_empty_sequences(name: str, value: float, case: Case, batch: Batch) -> float:
    """TRL's means over sequences count one without a scored token as if its ratio were 1; ours leave it out."""
    if math.isnan(value):  # TRL's extremes over no sequence at all
        return 0.0
    empty = batch.scored.sum(1) == 0
    by_sequence = {
        "cispo_clip_ratio": case.level == "sequence" and batch.advantages.dim() == 1,
        "vespo/phi_seq_mean": batch.advantages.dim() == 1,
    }
    if not by_sequence.get(name, False) or not empty.any():
        return value
    total, left = value * len(empty), int((~empty).sum())
    if name == "vespo/phi_seq_mean":
        return (total - int(empty.sum())) / left if left else 0.0
    clipped = empty & (batch.advantages > 0)  # epsilon_high stays below 1 in these rows
    return (total - int(clipped.sum())) / len(empty)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_least_clipped_sequence_is_found_beside_an_empty_one(level: str, compact: bool, layout: str) -> None:
    # every token of every completion is clipped below, but one completion has no token at all
    row = Row("all clipped low", {"mask_truncated_completions": True}, {"old": 0.1, "truncated": (2,)})
    case = Case(row, "grpo", level)
    batch = make_batch(seed=case.id, **row.batch)
    assert batch.old_logps is not None
    batch = dataclasses.replace(batch, advantages=-batch.advantages.abs(), old_logps=batch.old_logps + 2)
    expected = trl_result(case, batch).metrics["clip_ratio/low_min"]
    assert our_result(case, batch, layout, compact=compact).metrics["clip_ratio/low_min"] == expected


@pytest.mark.parametrize("case", [case for case in CASES if refused_by_us(case)], ids=lambda case: case.id)
def test_options_without_effect_are_refused_by_name(case: Case) -> None:
    with pytest.raises(ValueError, match=refused_by_us(case)):
        GRPOLoss(**our_options(case))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_adaptive_entropy_follows_trl_over_optimizer_steps(loss_type: str) -> None:
    # a target between the entropies of the two batches: the coefficient rises, is gated, falls and meets both ends
    adaptive = {
        "loss_type": loss_type, "use_adaptive_entropy": True, "entropy_coef": 0.1, "entropy_target": 2.2,
        "entropy_coef_delta": 0.08, "entropy_coef_min": 0.05, "entropy_coef_max": 0.25,
    }  # fmt: skip
    trainer = make_trainer(make_config(**adaptive, gradient_accumulation_steps=2), accumulation=2)
    loss_fn = GRPOLoss(**adaptive, gradient_accumulation_steps=2)
    spread = make_batch(seed="spread", old=0.3)
    peaked = Batch(spread.hidden * 3, *(getattr(spread, name) for name in Batch.__slots__[1:]))
    coefficients = []
    for step, batch in enumerate([peaked] * 4 + [spread] * 5 + [peaked]):
        for micro in range(2):
            trainer.accelerator.gradient_state._set_sync_gradients(micro == 1)
            theirs = run_trainer(trainer, batch, 2 * int(batch.mask.sum()))
            ours = run_loss(loss_fn, batch, num_items_in_batch=2 * int(batch.mask.sum()))
            assert max(relative_errors(ours, theirs)) <= TOLERANCE, (step, micro)
        loss_fn.update_entropy_coef()
        coefficients.append(trainer.entropy_coef)
        assert loss_fn.entropy_coef == pytest.approx(trainer.entropy_coef)
    assert max(coefficients) == 0.25 and min(coefficients) == 0.05  # both bounds were met


@pytest.mark.parametrize("loss_type", ["dapo", "cispo", "vespo"])
def test_without_num_items_the_local_count_times_accumulation_divides(loss_type: str) -> None:
    batch = make_batch(seed="local", old=0.3, tool_holes=True)
    loss_fn = GRPOLoss(loss_type=loss_type, gradient_accumulation_steps=4)
    given = run_loss(loss_fn, batch, num_items_in_batch=4 * int(batch.mask.sum()))
    absent = run_loss(loss_fn, batch)
    assert torch.equal(given.loss, absent.loss) and torch.equal(given.grad_hidden, absent.grad_hidden)
