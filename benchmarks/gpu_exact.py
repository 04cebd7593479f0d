"""What a GPU must not change: accuracy against fp64, bits that depend on nothing, a ratio of exactly 1 on policy."""

from __future__ import annotations

import bisect
import sys
from collections.abc import Callable
from typing import Any

import torch
from cases import EPSILON, Case, Inputs, Result, compute, make_inputs
from gpu_child import Job, main
from gpu_plan import HEADS
from measure import compare

LOGP_ERROR = 1e-4  # nats, against fp64
SEVERAL_CHUNKS = 3


def accuracy(job: Job) -> None:
    from loss import measure_case

    device, names = torch.device(job.device), ["ours", "ours_linear"]
    shapes = [(24, 64, 512)] if job.tiny else [(777, *HEADS["2B"]), (512, *HEADS["3B"]), (512, *HEADS["7B"])]
    for shape in shapes:
        for case in (Case(*shape, torch.bfloat16, head, timed=False) for head in ("trained", "frozen", "no_grad")):
            for row in measure_case(case, names, device, 0, lambda: None):
                job.row(**row)
                failed = row["logp_error"] is None or row["status"] not in ("ok", "accuracy only")
                error = float("inf") if failed else row["logp_error"]
                job.check(f"logp_error, {row['impl']}, {case}", error, LOGP_ERROR)  # type: ignore[arg-type]
    for shape in shapes:
        _confident(job, Case(*shape, torch.bfloat16))
        _chunks(job, Case(*shape, torch.bfloat16))


def _confident(job: Job, case: Case) -> None:
    """Logits twice as peaked: most tokens are certain, where an accumulator that truncates shows first."""
    from grpo_fast import linear_logprobs

    made = make_inputs(case, torch.device(job.device))
    hidden, weight = (2 * made.hidden.detach()).flatten(0, 1), made.weight.detach()
    targets = (hidden @ weight.T).argmax(1)
    log_p = (hidden.double() @ weight.double().T).log_softmax(1)
    exact = log_p.gather(1, targets[:, None])[:, 0]
    logps = linear_logprobs(hidden, weight, targets)
    assert isinstance(logps, torch.Tensor)
    job.check(f"logp_error, confident tokens, {case}", (logps.double() - exact).abs().max().item(), LOGP_ERROR)
    job.row(largest_logp=logps.max().item(), least_exact=exact.min().item(), case=case.as_dict())
    leaf = hidden.clone().requires_grad_()
    linear_logprobs(leaf, weight, targets).sum().backward()
    one_hot = torch.zeros_like(log_p).scatter_(1, targets[:, None], 1.0)
    truth = ((one_hot - log_p.exp()) @ weight.double()).norm(dim=1)
    assert leaf.grad is not None
    found = leaf.grad.double().norm(dim=1)
    sure = (1 - exact.exp() > 1e-6) & (exact > -1e-2)
    if sure.any():
        job.row(confident_gradient_error=((found - truth).abs() / truth)[sure].max().item(), rows=int(sure.sum()))


def _chunks(job: Job, case: Case) -> None:
    """Several chunks accumulate the head's gradient in fp32: no further from fp64, and the same log-probs."""
    device = torch.device(job.device)
    inputs = make_inputs(case, device)
    exact = compute(inputs, torch.float64)
    eager = compute(inputs, case.dtype)
    allowed = 4 * (compare(eager.logps, eager.grad_hidden, eager.grad_weight, exact).grad or 0.0) + 4e-3
    whole = gradients(inputs)
    from grpo_fast.ops.layout import layout

    form = layout(device, case.dtype, "auto")
    budget = bytes_for(form, case, case.rows // SEVERAL_CHUNKS)
    several = gradients(inputs, chunk_bytes=budget)
    job.row(chunk_rows=chunk_rows(form, case, budget), case=case.as_dict())
    for name, found in (("one chunk", whole), ("several chunks", several)):
        error = compare(found.logps, found.grad_hidden, found.grad_weight, exact)
        job.check(f"grad_error, {name}, {case}", error.grad or float("inf"), allowed)
    job.check(f"log-probs differ by chunks, {case}", float((whole.logps != several.logps).sum()), 0.0)


def chunk_rows(form: Any, case: Case, budget: int) -> int:
    """The rows of a chunk of the loss: on a GPU none is scored through logits."""
    if form.rows == form.wide:
        return form.chunk_rows(case.vocab, case.hidden, budget)
    return form.chunk_rows_without_logits(case.vocab, case.hidden, budget, case.rows, case.head == "trained")


def bytes_for(form: Any, case: Case, rows: int) -> int:
    """The least byte budget whose chunks hold that many rows."""
    return bisect.bisect_left(range(1 << 40), rows, lo=1, key=lambda budget: chunk_rows(form, case, budget))


def gradients(inputs: Inputs, **options: Any) -> Result:
    from grpo_fast import GRPOLoss

    inputs.hidden.grad = inputs.weight.grad = None
    out = GRPOLoss(loss_type="dapo", epsilon=EPSILON, **options)(
        inputs.hidden, inputs.weight, inputs.targets, advantages=inputs.advantages_cpu, mask=inputs.mask_cpu,
        old_logps=inputs.old_logps,
    )  # fmt: skip
    out.loss.backward()
    assert inputs.hidden.grad is not None
    grad_weight = torch.empty(0) if inputs.weight.grad is None else inputs.weight.grad
    return Result(out.logps.flatten()[inputs.rows], inputs.hidden.grad.flatten(0, 1)[inputs.rows], grad_weight)


def shape_of(job: Job, rows: int) -> tuple[int, int, int]:
    return (48, 64, 512) if job.tiny else (rows, *HEADS["2B"])


def determinism(job: Job) -> None:
    from grpo_fast import linear_logprobs

    for head in ("trained", "frozen"):
        inputs = make_inputs(Case(*shape_of(job, 16384), torch.bfloat16, head), torch.device(job.device))
        first, second = gradients(inputs), gradients(inputs)
        for name in ("logps", "grad_hidden", "grad_weight"):
            differ = (getattr(first, name) != getattr(second, name)).sum().item()
            job.check(f"{name} that differ between two runs, {head}", float(differ), 0.0)
        hidden, targets = inputs.hidden.detach().flatten(0, 1), inputs.targets.flatten()
        every = linear_logprobs(hidden, inputs.weight.detach(), targets)
        some = linear_logprobs(hidden[: len(hidden) // 3], inputs.weight.detach(), targets[: len(hidden) // 3])
        assert isinstance(every, torch.Tensor) and isinstance(some, torch.Tensor)
        job.check("logps that depend on the number of rows", float((every[: len(some)] != some).sum()), 0.0)


def on_policy(job: Job) -> None:
    from grpo_fast import GRPOLoss, linear_logprobs

    for head in ("trained", "frozen", "no_grad"):
        inputs = make_inputs(Case(*shape_of(job, 8192), torch.bfloat16, head), torch.device(job.device))
        old = linear_logprobs(inputs.hidden.detach(), inputs.weight.detach(), inputs.targets)
        out = GRPOLoss(loss_type="dapo", epsilon=EPSILON)(
            inputs.hidden, inputs.weight, inputs.targets, advantages=inputs.advantages_cpu, old_logps=old
        )
        metrics = out.metrics.as_dict()
        for name in ("ratio_min", "ratio_max"):
            job.check(f"|{name} - 1|, {head}", abs(metrics[name] - 1.0), 0.0)


TASKS: dict[str, Callable[[Job], None]] = {"accuracy": accuracy, "determinism": determinism, "on_policy": on_policy}

if __name__ == "__main__":
    sys.exit(main(TASKS))
