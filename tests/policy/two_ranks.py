"""Run by test_distributed.py: two gloo ranks train one step under DDP or FSDP2 and compare with one rank's gradients.

Each rank gives case -> {"error": worst relative gradient difference, "logps": worst difference, …}.
"""

import copy

import peft
import ranks
import torch
import torch.distributed as dist
from policy_lab import group, picture, prompt, tiny_model
from ranks import WORLD
from torch.nn.parallel import DistributedDataParallel

from grpo_fast.policy.model import GRPOPolicy
from grpo_fast.policy.packing import Packer
from grpo_fast.policy.sharding import shard

CASES = [
    (wrap, kind, variant)
    for wrap, kind in (("ddp", "qwen2_vl"), ("fsdp2", "qwen2_vl"))
    for variant in ("tied", "untied", "lora", "frozen tower", "text on one rank", "text on one rank, frozen tower")
] + [("fsdp2", "qwen2_5_vl", "checkpointing"), ("fsdp2", "qwen3_vl", "text on one rank")]


def build(kind, variant):
    model = tiny_model(kind, tied=variant != "untied")
    if "frozen tower" in variant:
        model.model.visual.requires_grad_(False)
    if variant == "lora":
        target = r".*(q_proj|lm_head|visual.*qkv)"
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=target, init_lora_weights=False))
    return GRPOPolicy(model.train(), checkpointing=variant == "checkpointing")


def groups_of(policy, variant):
    model = policy.model.get_base_model() if hasattr(policy.model, "get_base_model") else policy.model
    second = [6] if "text on one rank" in variant else [2, picture(2, (1, 6, 4)), 3]
    return [group(prompt(model, [3, picture(1), 2], 0), [3, 6, 2], 0), group(prompt(model, second, 1), [4, 1], 1)]


def packed(policy, groups, items):
    packer = Packer(policy.prompt_spec, 10**6, policy.loss.options)
    return packer.pack(groups, num_items_in_batch=items).batches[0]


def compare(rank, wrap, kind, variant):
    single = build(kind, variant)
    policy = copy.deepcopy(single)
    groups = groups_of(single, variant)
    tokens = sum(len(c) for one in groups for c in one.completions)
    single(packed(single, groups, tokens)).loss.backward()
    truth = {name: p.grad for name, p in single.named_parameters() if p.grad is not None}

    mine = packed(policy, [groups[rank]], tokens / WORLD)
    expected = single.logps(mine)
    if wrap == "ddp":
        wrapped = DistributedDataParallel(policy)
    else:
        wrapped = shard(policy, mesh=dist.init_device_mesh("cpu", (WORLD,)))
    logps = policy.logps(mine)
    wrapped(mine).loss.backward()
    found = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    found = {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in found.items()}
    error = max(((found[n] - g).norm() / g.norm().clamp_min(1e-12)).item() for n, g in truth.items() if n in found)
    difference = torch.tensor((logps - expected).abs().max().item())
    dist.all_reduce(difference, dist.ReduceOp.MAX)
    missing = sorted(truth.keys() ^ found.keys())
    return {"error": error, "logps": difference.item(), "missing": missing, "parameters": len(found)}


def work(rank):
    return {", ".join(case): compare(rank, *case) for case in CASES}


if __name__ == "__main__":
    ranks.run(work)
