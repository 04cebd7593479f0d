"""The policy that is trained, from a checkpoint: what is frozen, adapted, sharded, and what it is compared with."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from grpo_fast.config import LossOptions
from grpo_fast.errors import BadSettings
from grpo_fast.losses.grpo import GRPOLoss
from grpo_fast.policy import GRPOPolicy
from grpo_fast.policy.pretrained import first_line, load_model
from grpo_fast.policy.processor import Processor
from grpo_fast.train.ranks import Ranks
from grpo_fast.train.settings import DataSettings, ModelSettings, Settings

LANGUAGE_LINEARS = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def build_policy(settings: Settings, source: str | Path, ranks: Ranks) -> GRPOPolicy:
    """On this rank's device, not yet wrapped. Weights are kept in fp32, so that small updates are not rounded away;
    under an adapter the frozen ones are held in the dtype of the computation."""
    chosen = settings.model
    dtype = compute_dtype(chosen.dtype, ranks.device)
    model = load_model(
        source, torch.float32 if not chosen.lora_rank else dtype, trust_remote_code=chosen.trust_remote_code
    )
    model.config.use_cache = False
    _apply_liger(model, chosen, ranks.device)
    if chosen.freeze_vision:
        model.model.visual.requires_grad_(False)
    if chosen.lora_rank:
        model = _adapted(model, chosen)
    return policy_of(model, settings, ranks)


def policy_of(model: Any, settings: Settings, ranks: Ranks) -> GRPOPolicy:
    chosen = settings.model
    dtype = compute_dtype(chosen.dtype, ranks.device)
    return GRPOPolicy(
        model.to(ranks.device),
        GRPOLoss(**loss_of(settings.loss)),
        autocast=None if dtype == torch.float32 else dtype,
        checkpointing=chosen.activation_checkpointing,
        attention=chosen.attention,
    )


def loss_of(options: LossOptions) -> dict[str, Any]:
    return asdict(options)


def load_processor(settings: ModelSettings, data: DataSettings, source: str | Path) -> Processor:
    return Processor.from_pretrained(
        source,
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
        max_prompt_tokens=data.max_prompt_tokens,
    )


def wrapped(policy: GRPOPolicy, settings: Settings, ranks: Ranks) -> nn.Module:
    """What is called to train; the policy inside is changed in place."""
    if ranks.world == 1 or settings.run.parallel == "fsdp2":
        return sharded(policy, settings, ranks)
    return DistributedDataParallel(policy, device_ids=[ranks.device.index] if ranks.device.type == "cuda" else None)


def sharded(policy: GRPOPolicy, settings: Settings, ranks: Ranks) -> GRPOPolicy:
    """Over the ranks, where the settings ask for it."""
    if ranks.world == 1 or settings.run.parallel != "fsdp2":
        return policy
    from torch.distributed.device_mesh import init_device_mesh

    from grpo_fast.policy.sharding import shard

    return shard(policy, mesh=init_device_mesh(ranks.device.type, (ranks.world,)))


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.float32 if name == "float32" else torch.bfloat16


def _adapted(model: Any, settings: ModelSettings) -> Any:
    try:
        import peft
    except ImportError:
        raise BadSettings("lora_rank needs peft: pip install peft") from None
    targets: Any = settings.lora_targets or LANGUAGE_LINEARS
    if settings.lora_dropout:
        raise BadSettings(
            "lora_dropout must be 0 in GRPO: the completions would be sampled from another policy than is trained"
        )
    config = peft.LoraConfig(r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules=targets)  # pyright: ignore[reportArgumentType]
    try:
        adapted = peft.get_peft_model(model, config)
    except ValueError as error:
        raise BadSettings(f"lora_targets: {first_line(error)}") from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def _apply_liger(model: Any, settings: ModelSettings, device: torch.device) -> None:
    """Norms and feed-forward layers alone: the loss, the head and the positions are ours."""
    wanted = settings.liger == "on" or (settings.liger == "auto" and device.type == "cuda")
    if not wanted:
        return
    kind = model.config.model_type
    try:
        from liger_kernel.transformers import monkey_patch  # pyright: ignore[reportMissingImports]

        apply = getattr(monkey_patch, f"apply_liger_kernel_to_{kind}", None)
        if apply is not None:  # it imports more, and fails where it was written for another transformers
            apply(
                rope=False, cross_entropy=False, fused_linear_cross_entropy=False, rms_norm=True, swiglu=True,
                model=model,
            )  # fmt: skip
        elif settings.liger == "on":
            raise BadSettings(f"liger-kernel has no layers for {kind}")
    except ImportError as error:
        if settings.liger == "on":
            raise BadSettings(
                f"liger is on, but liger-kernel has no layers to import for {kind} ({first_line(error)}): "
                "pip install -U liger-kernel, or leave liger off"
            ) from error
