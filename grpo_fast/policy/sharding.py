"""FSDP2 for a GRPOPolicy: every block on its own, then the policy.

Embedding and head belong to the policy's own group, whether tied or not: sharding a tied embedding alone raises.
"""

from __future__ import annotations

from typing import Any

from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from grpo_fast.policy.model import GRPOPolicy


def shard(policy: GRPOPolicy, **options: Any) -> GRPOPolicy:
    """`options` are those of `torch.distributed.fsdp.fully_shard` (mesh, mp_policy, reshard_after_forward, …)."""
    core = policy.core
    for block in (*core.language_model.layers, *core.visual.blocks):
        fully_shard(block, **options)
    fully_shard(policy, **options)
    for name in ("logps", "encode"):
        register_fsdp_forward_method(policy, name)
    return policy
