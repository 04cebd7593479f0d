from __future__ import annotations

from parity.trl_side import Result
from torch import Tensor


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Of the norm; an expected zero has to be met exactly."""
    difference = (actual.double() - expected.double()).norm().item()
    scale = expected.double().norm().item()
    return difference / scale if scale else (0.0 if difference == 0.0 else float("inf"))


def relative_errors(ours: Result, theirs: Result) -> tuple[float, float, float]:
    """Of the loss, of the gradient of the hidden states and of the gradient of the head."""
    return (
        relative_error(ours.loss, theirs.loss),
        relative_error(ours.grad_hidden, theirs.grad_hidden),
        relative_error(ours.grad_weight, theirs.grad_weight),
    )
