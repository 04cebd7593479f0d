"""A tiny run to save and go on with; as a script, run by test_state.py, the same on two gloo ranks.

The script's folder (STATE_FOLDER) holds what one process saved, `one/<variant>`, and gets `ddp/…`, `fsdp2/…` and
`exported/…`. Each rank gives case -> what it found.
"""

from __future__ import annotations

import hashlib
import os
import resource
from pathlib import Path
from typing import Any

import peft
import ranks
import torch
import torch.distributed as dist
from policy.policy_lab import group, picture, prompt, tiny_model
from ranks import WORLD
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from grpo_fast.errors import BadSettings, RunFailed
from grpo_fast.policy import GRPOPolicy, Packer
from grpo_fast.policy.sharding import shard
from grpo_fast.train.export import export
from grpo_fast.train.state import Position, latest, load, save

VARIANTS = ("full", "lora")
WRAPPERS = ("ddp", "fsdp2")


def build(variant: str, seed: int = 0, kind: str = "qwen2_vl", dtype: torch.dtype = torch.float64) -> GRPOPolicy:
    """Two ranks share 47 rows unevenly, and one of them gets nothing of an adapter of rank 1."""
    base = 0 if variant == "lora" else seed
    model = tiny_model(kind, dtype, tied=variant != "untied", seed=base, intermediate_size=47)
    if variant == "lora":
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=1, target_modules=r".*(q_proj|down_proj)", init_lora_weights=False)
        model = peft.get_peft_model(model, config)
    return GRPOPolicy(model.train())


def optimizer_of(policy: GRPOPolicy) -> torch.optim.AdamW:
    trained = [p for p in policy.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [{"params": [p for p in trained if p.dim() > 1]}, {"params": [p for p in trained if p.dim() <= 1]}],
        lr=1e-2, weight_decay=0.1,
    )  # fmt: skip


def batch_of(policy: GRPOPolicy, step: int = 0, rank: int = 0, world: int = 1) -> Any:
    model = policy.model.get_base_model() if hasattr(policy.model, "get_base_model") else policy.model
    dtype = next(model.parameters()).dtype
    made = [
        group(prompt(model, [2, picture(seed, dtype=dtype), 3], seed), [3, 5, 2], seed)
        for seed in (10 * step, 10 * step + 1)
    ]
    tokens = sum(len(c) for one in made for c in one.completions)
    packer = Packer(policy.prompt_spec, 10**6, policy.loss.options)
    return packer.pack(made[rank::world], num_items_in_batch=tokens / world).batches[0]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    policy = model.module if isinstance(model, DistributedDataParallel) else model
    together = model is not policy or hasattr(model, "unshard")
    rank, world = (dist.get_rank(), WORLD) if together else (0, 1)
    losses = []
    for step in steps:
        out = model(batch_of(policy, step, rank, world))  # pyright: ignore[reportArgumentType]
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(out.loss.item())
    return losses


def tensors_of(policy: GRPOPolicy, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every parameter and all of its optimizer state, whole, on every rank."""
    found = {}
    for name, parameter in policy.named_parameters():
        found[name] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{name} {key}"] = torch.as_tensor(value)
    return {name: (t.full_tensor() if isinstance(t, DTensor) else t).clone() for name, t in found.items()}


def bits(tensors: dict[str, Tensor]) -> str:
    text = [f"{n} {t.dtype} {hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest()}" for n, t in tensors.items()]
    return hashlib.sha256("\n".join(sorted(text)).encode()).hexdigest()


def norms(tensors: dict[str, Tensor]) -> dict[str, float]:
    return {name: t.double().norm().item() for name, t in tensors.items()}


def wrapped(policy: GRPOPolicy, wrapper: str) -> nn.Module:
    if wrapper == "ddp":
        return DistributedDataParallel(policy)
    return shard(policy, mesh=dist.init_device_mesh("cpu", (WORLD,)))


def two_save(folder: Path, wrapper: str, variant: str) -> dict[str, Any]:
    policy = build(variant)
    model = wrapped(policy, wrapper)
    optimizer = optimizer_of(policy)
    train(model, optimizer, range(2))
    saved = bits(tensors_of(policy, optimizer))
    policy.logps(batch_of(policy))  # FSDP2 leaves the root's weights gathered after it
    save(folder / wrapper / variant, model, optimizer, Position("grpo", 2, cursor=8), keep=1)
    train(model, optimizer, range(2, 4))
    policy.logps(batch_of(policy))
    exported = folder / "exported" / wrapper
    export(model, folder / "source", exported / variant)
    if variant == "lora":
        export(model, folder / "source", exported / "merged", merge=True)
    return {"saved": saved, "end": norms(tensors_of(policy, optimizer))}


def two_load(folder: Path, wrapper: str, variant: str, source: str) -> dict[str, Any]:
    policy = build(variant, seed=7)
    model = wrapped(policy, wrapper)
    optimizer = optimizer_of(policy)
    path = latest(folder / source / variant)
    assert path is not None
    position = load(path, model, optimizer)
    loaded = bits(tensors_of(policy, optimizer))
    train(model, optimizer, range(2, 4))
    return {"step": position.step, "loaded": loaded, "end": norms(tensors_of(policy, optimizer))}


def refused(folder: Path) -> str:
    """A plain tensor beside a sharded weight is one rank's own, as 8-bit optimizers would have it."""
    policy = build("full")
    model = wrapped(policy, "fsdp2")
    optimizer = optimizer_of(policy)
    train(model, optimizer, range(1))
    for state in optimizer.state.values():
        state["exp_avg"] = state["exp_avg"].to_local()
    try:
        save(folder / "refused", model, optimizer, Position("grpo", 1), keep=1)
    except BadSettings as error:
        return str(error)
    return "saved"


def without_room(folder: Path, rank: int) -> list[str]:
    """Only rank 1's disk is full; every rank hears of it."""
    policy = build("lora")
    model = wrapped(policy, "fsdp2")
    optimizer = optimizer_of(policy)
    train(model, optimizer, range(1))
    save(folder / "full", model, optimizer, Position("sft", 1), keep=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    said = ["saved"]
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        save(folder / "full", model, optimizer, Position("grpo", 1), keep=1)
    except RunFailed as error:
        said = [str(error)]
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    dist.barrier()
    return said + sorted(path.name for path in (folder / "full").iterdir())


def work(rank: int) -> dict[str, Any]:
    folder = Path(os.environ["STATE_FOLDER"])
    found: dict[str, Any] = {}
    for variant in VARIANTS:
        for wrapper in WRAPPERS:
            found[f"save {wrapper} {variant}"] = two_save(folder, wrapper, variant)
        for wrapper in WRAPPERS:
            for source in ("one", WRAPPERS[wrapper == "ddp"]):  # one process, or two with the other wrapper
                found[f"load {wrapper} {variant} {source}"] = two_load(folder, wrapper, variant, source)
    return found | {"refused": refused(folder), "no room": without_room(folder, rank)}


if __name__ == "__main__":
    ranks.run(work)
