"""What torch asks of custom ops: schemas, fake tensors, autograd registration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from losses.eager import rollout
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from grpo_fast import GRPOLoss, linear_logprobs


class Recorder(TorchDispatchMode):
    """Every call of an op of ours, with its arguments as they came."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "grpo_fast":
            copy = torch.utils._pytree.tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, args)
            self.calls.append((func, copy, dict(kwargs or {})))
        return func(*args, **(kwargs or {}))


def recorded(what: str, weight_strides: str) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    r = rollout()
    weight = r.weight if weight_strides == "rows" else r.weight.T.contiguous().T
    hidden, weight = r.hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    with Recorder() as recorder:
        if what == "loss":
            out = GRPOLoss(beta=0.1)(
                hidden, weight, r.targets, advantages=r.advantages, mask=r.mask, old_logps=r.old_logps,
                ref_logps=r.ref_logps, bias=torch.zeros(37),
            )  # fmt: skip
            out.loss.backward()
        else:
            logps, entropy = linear_logprobs(hidden, weight, r.targets, entropy=True)
            (logps.sum() + entropy.sum()).backward()
    return recorder.calls


@pytest.mark.parametrize("weight_strides", ["rows", "columns"])
@pytest.mark.parametrize("what", ["loss", "logprobs"])
def test_opcheck(what: str, weight_strides: str) -> None:
    calls = recorded(what, weight_strides)
    assert calls, "no op of the grpo_fast namespace was dispatched"
    for func, args, kwargs in calls:
        torch.library.opcheck(
            func, args, kwargs, test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
        )
