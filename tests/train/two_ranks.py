"""Run by test_two_ranks.py: the update of two gloo ranks against one rank's on all groups.

Each rank gives case -> {"error": relative distance of the gradients, "loss": difference, "micro_batches": how many}.
"""

from __future__ import annotations

import copy
import os
from functools import lru_cache

import ranks as two
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from train import lab

from grpo_fast.policy import GRPOPolicy
from grpo_fast.policy.sharding import shard
from grpo_fast.train.ranks import Ranks

ZERO = [0.0] * 4
SOME = [1.0, -1.0, 0.5, -0.5]
# advantages of each group, and which of them rank 0 has
SPREADS = {
    "even": ([SOME, ZERO, SOME, SOME], 2),
    "one rank all zero": ([SOME, SOME, ZERO, ZERO], 2),
    "uneven": ([SOME, SOME, ZERO, SOME], 3),
    "one rank without a group": ([SOME, SOME, SOME, SOME], 4),
    "nothing anywhere": ([ZERO, ZERO, ZERO, ZERO], 2),
}
LOSSES = [
    ("ddp", "dapo", 0.0), ("ddp", "grpo", 0.0), ("ddp", "bnpo", 0.0), ("fsdp2", "dapo", 0.0), ("fsdp2", "grpo", 0.0),
    ("ddp", "dapo", 0.1), ("ddp", "grpo", 0.1), ("fsdp2", "dapo", 0.1),
]  # fmt: skip
CASES = [(*loss, name) for loss in LOSSES for name in SPREADS]


@lru_cache
def untrained(loss_type: str, entropy_coef: float) -> GRPOPolicy:
    return lab.policy(lab.settings(loss_type=loss_type, beta=0.0, entropy_coef=entropy_coef))


@lru_cache
def alone(loss_type: str, entropy_coef: float, name: str) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Metrics and gradients of one rank that has all groups."""
    policy = copy.deepcopy(untrained(loss_type, entropy_coef))
    advantages, _ = SPREADS[name]
    done = lab.updater(policy)(lab.groups(len(advantages), advantages))
    return done.metrics, lab.gradients(policy)


def compare(rank: int, wrap: str, loss_type: str, entropy_coef: float, name: str) -> dict[str, float]:
    expected, truth = alone(loss_type, entropy_coef, name)
    policy = copy.deepcopy(untrained(loss_type, entropy_coef))
    advantages, first = SPREADS[name]
    given = lab.groups(len(advantages), advantages)

    here = Ranks(rank, two.WORLD, torch.device("cpu"))
    if wrap == "ddp":
        wrapped = DistributedDataParallel(policy)
    else:
        wrapped = shard(policy, mesh=dist.init_device_mesh("cpu", (two.WORLD,)))
    mine = given[:first] if rank == 0 else given[first:]
    done = lab.updater(wrapped, budget=120, ranks=here)(mine, spare=given[0])
    found = {
        name: p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
        for name, p in policy.named_parameters()
        if p.grad is not None
    }
    error = lab.distance(found, truth) if expected["grad_norm"] else max(
        p.abs().max().item() for p in found.values()
    )  # fmt: skip
    return {
        "error": error,
        "loss": abs(done.metrics["loss"] - expected["loss"]),
        "tokens": abs(done.metrics["tokens"] - expected["tokens"]),
        "micro_batches": done.micro_batches,
    }


def work(rank: int) -> dict[str, dict[str, float]]:
    return {", ".join(map(str, case)): compare(rank, *case) for case in CASES}


if __name__ == "__main__":
    os.environ[lab.FOLDER] = str(lab.tiny_folder())
    two.run(work)
