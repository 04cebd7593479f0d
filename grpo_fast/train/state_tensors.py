"""The tensors of a run by name, and back: `model.<parameter>` and `optimizer.<parameter>.<key>`.

Tied weights have one name. A number of an optimizer's state is a tensor of no dimension; a quantized state is its
parts, each a plain tensor. Learning rates and the like come from the settings and are not among them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from grpo_fast.errors import BadSettings
from grpo_fast.policy import GRPOPolicy


def bare(policy: nn.Module) -> GRPOPolicy:
    """The policy itself, with the parameters that its optimizer has."""
    found = policy.module if isinstance(policy, DistributedDataParallel) else policy
    assert isinstance(found, GRPOPolicy), type(found)
    for module in found.modules():
        if isinstance(module, FSDPModule):  # a forward without a backward leaves the root's weights gathered
            module.reshard()
    return found


def is_adapter(policy: GRPOPolicy) -> bool:
    return hasattr(policy.model, "peft_config")


def model_tensors(policy: GRPOPolicy) -> dict[str, Tensor]:
    """Under peft only what is trained: the base is the checkpoint it was built from."""
    adapter = is_adapter(policy)
    return {f"model.{name}": p.detach() for p, name in _names(policy).items() if p.requires_grad or not adapter}


def optimizer_tensors(policy: GRPOPolicy, optimizer: Optimizer) -> dict[Tensor, dict[str, Tensor]]:
    names = _names(policy)
    found: dict[Tensor, dict[str, Tensor]] = {}
    for parameter, state in optimizer.state.items():
        parts = [
            _parts(f"optimizer.{names[parameter]}.{key}", value, parameter, optimizer) for key, value in state.items()
        ]
        found[parameter] = {name: tensor for part in parts for name, tensor in part.items()}
    return found


def take_numbers(policy: GRPOPolicy, optimizer: Optimizer, loaded: dict[str, Tensor]) -> None:
    """Tensors were loaded in place; numbers could not be."""
    names = _names(policy)
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, int | float):
                state[key] = type(value)(loaded[f"optimizer.{names[parameter]}.{key}"].item())


def make_state(optimizer: Optimizer) -> None:
    """Optimizers make their state in their first step: this one has no gradient and no learning rate."""
    optimizer.state.clear()
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], Tensor) else 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)


def _names(policy: GRPOPolicy) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in policy.model.named_parameters()}


def _parts(name: str, value: Any, parameter: Tensor, optimizer: Optimizer) -> dict[str, Tensor]:
    if value is None:
        return {}
    if isinstance(value, int | float):
        return {name: torch.tensor(value)}
    if isinstance(value, DTensor) and type(value.to_local()) is Tensor:
        return {name: value}
    if not isinstance(parameter, DTensor) and hasattr(value, "__tensor_flatten__"):
        return {f"{name}.{part}": getattr(value, part) for part in value.__tensor_flatten__()[0]}
    # Beside sharded weights, a plain tensor of one dimension or more would be one rank's own and pass for everyone's.
    if type(value) is Tensor and (value.ndim == 0 or not isinstance(parameter, DTensor)):
        return {name: value}
    raise BadSettings(
        f"the state of {type(optimizer).__name__} cannot be saved: {name} is a {type(value).__name__} beside a "
        f"{'sharded' if isinstance(parameter, DTensor) else 'plain'} weight; take optimizer: adamw, or parallel: ddp"
    )
