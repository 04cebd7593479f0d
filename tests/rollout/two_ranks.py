"""Run by test_distributed.py: two gloo ranks generate under DDP or FSDP2 as one rank does alone.

Each rank gives a list of {"tokens": all equal, "sharded": shards again, "gathers": all-gathers, …}.
"""

import copy
from dataclasses import replace

import ranks
import torch
import torch.distributed as dist
from policy_lab import tiny_model
from ranks import WORLD
from rollout_lab import mixed_prompts
from torch.distributed.fsdp._fully_shard import _fsdp_param_group
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from grpo_fast.policy import GRPOPolicy, Packer
from grpo_fast.policy.sharding import shard
from grpo_fast.rollout import Engine, SamplingParams

CASES = [("ddp", {}), ("fsdp2", {}), ("fsdp2", {"reshard_after_forward": False}), ("fsdp2", {"trained first": True})]


def compare(rank, wrap, options):
    trained_first = options.pop("trained first", False)
    single = GRPOPolicy(tiny_model("qwen2_vl", torch.float32))
    policy = copy.deepcopy(single)
    prompts, params = mixed_prompts(single.model, 5)[rank * 2 : rank * 3 + 2], SamplingParams(max_tokens=9 - 3 * rank)
    expected = Engine(single).generate(prompts, 2, params)
    if wrap == "ddp":
        model = DistributedDataParallel(policy)
    else:
        model = shard(policy, mesh=dist.init_device_mesh("cpu", (WORLD,)), **options)
    (batch,) = (
        Packer(policy.prompt_spec, 10**6, policy.loss.options).pack([_with_advantages(one) for one in expected]).batches
    )
    if trained_first:
        model(batch).loss.backward()
    engine = Engine(model)
    gathers = 0
    gather = _fsdp_param_group.foreach_all_gather

    def counted(*arguments, **keywords):
        nonlocal gathers
        gathers += 1
        return gather(*arguments, **keywords)

    _fsdp_param_group.foreach_all_gather = counted
    found = engine.generate(prompts, 2, params)
    _fsdp_param_group.foreach_all_gather = gather
    same = all(
        torch.equal(x, y)
        for a, b in zip(expected, found, strict=True)
        for x, y in zip(a.completions, b.completions, strict=True)
    )
    sharded = [isinstance(parameter, DTensor) for parameter in policy.parameters()]
    single.zero_grad()
    model.zero_grad()
    model(batch).loss.backward()  # the step after a rollout still gathers, reduces and frees
    modules = len(policy.core.language_model.layers) + len(policy.core.visual.blocks) + 1 if wrap == "fsdp2" else 0
    restored = all(sharded) if wrap == "fsdp2" else not any(sharded)
    return {"tokens": same, "sharded": restored, "gathers": gathers, "sharded_modules": modules}


def _with_advantages(one):
    return replace(one, advantages=torch.tensor([1.0, -1.0]))


def work(rank):
    return [{"case": f"{wrap} {options}", **compare(rank, wrap, dict(options))} for wrap, options in CASES]


if __name__ == "__main__":
    ranks.run(work)
