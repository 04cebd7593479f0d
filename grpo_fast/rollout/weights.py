"""The policy's own weights, ready to be called many times: nothing is copied or synchronised.

Under FSDP2 every parameter is gathered once and freed at the end. Adapters are active because the modules themselves
are called; merging them is a choice, and puts back the very bits that were there before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from grpo_fast.policy import GRPOPolicy
from grpo_fast.policy.model import evaluating


@contextmanager
def rollout_weights(policy: GRPOPolicy, merge_adapters: bool = False) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(evaluating(policy))
        stack.enter_context(torch.inference_mode(False))  # what is made in that mode can be used in no other
        stack.enter_context(torch.no_grad())
        stack.enter_context(_gathered(policy))
        if merge_adapters:
            stack.enter_context(_merged(policy.model))
        yield


@contextmanager
def _gathered(policy: nn.Module) -> Iterator[None]:
    """Blocks are told not to free their weights after each call, and afterwards what they were told before; torch has
    a setter for that, but nothing that reads it."""
    sharded = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    states = [module._get_fsdp_state() for module in sharded]
    for state in states[:1]:
        state._lazy_init()  # the root has to come first; a block called on its own would take itself for it
    groups = [group for state in states for group in _param_groups(state)]
    before = [group.post_forward_mesh_info for group in groups]
    try:
        for group in groups:
            group.post_forward_mesh_info = None
        for module in sharded:
            module.unshard()
        yield
    finally:
        for module in sharded:
            module.reshard()
        for group, mesh_info in zip(groups, before, strict=True):
            group.post_forward_mesh_info = mesh_info


def _param_groups(state: Any) -> list[Any]:
    """torch 2.12 has several a module, earlier ones at most one."""
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    return [state._fsdp_param_group] if state._fsdp_param_group is not None else []


@contextmanager
def _merged(model: Any) -> Iterator[None]:
    if not hasattr(model, "merge_adapter"):
        raise ValueError("merge_adapters needs a peft model; this one has no adapters")
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "merged_adapters")}
    tied = model.get_base_model().get_input_embeddings().weight
    for name, layer in adapted.items():
        if layer.get_base_layer().weight is tied:
            raise ValueError(
                f"the adapter on {name} cannot be merged: its weight is tied to the embeddings; "
                "leave merge_adapters off, the rollout then runs with the adapters as they are"
            )
    weights = [layer.get_base_layer().weight for layer in adapted.values()]
    before = [weight.detach().clone() for weight in weights]
    try:
        model.merge_adapter()
        yield
    finally:
        model.unmerge_adapter()
        for weight, bits in zip(weights, before, strict=True):
            weight.copy_(bits)
