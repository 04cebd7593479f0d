"""GRPOPolicy: a Qwen-VL model that scores and trains on packed groups.

One `nn.Module` whose forward holds everything from embedding to loss, so that DDP and FSDP2 hooks fire around it.
What it does differently from the model's own forward: every image is encoded once, every prompt is computed once for
its G completions, and no logits are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from grpo_fast.errors import BadCheckpoint
from grpo_fast.losses.grpo import GRPOLoss
from grpo_fast.ops.kv_gather import kv_gather
from grpo_fast.ops.linear_logprobs import linear_logprobs
from grpo_fast.policy import vision
from grpo_fast.policy.attention import ATTENTION, register
from grpo_fast.policy.cache import FeatureCache
from grpo_fast.policy.checks import PromptSpec
from grpo_fast.policy.head import HeadOperands, head_operands
from grpo_fast.types import LossOutput, PackedBatch, VisionFeatures, VisionInput

MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


class GRPOPolicy(nn.Module):
    """`model`: Qwen2-VL, Qwen2.5-VL or Qwen3-VL for conditional generation, plain or as a peft model.

    Its attention is set to one that understands packed groups and serves plain calls as SDPA does.
    """

    def __init__(
        self,
        model: Any,
        loss: GRPOLoss | None = None,
        *,
        autocast: torch.dtype | None = None,
        checkpointing: bool = False,
        attention: str = "auto",
        feature_cache_bytes: int = 2**30,
    ) -> None:
        super().__init__()
        _refuse_unsupported(_base(model).config)
        self.model = model
        self.loss = GRPOLoss() if loss is None else loss
        if self.loss.options.gradient_accumulation_steps != 1:
            raise ValueError(
                "the packer weighs micro-batches itself: leave the loss's gradient_accumulation_steps at 1, "
                f"not {self.loss.options.gradient_accumulation_steps}"
            )
        self.autocast_dtype, self.attention = autocast, attention
        self.features = FeatureCache(feature_cache_bytes)
        register()
        for part in (self.core.language_model, self.core.visual):
            part.config._attn_implementation = ATTENTION
        if checkpointing:
            _recompute_activations(_base(model))
            self.train()  # transformers recomputes in this mode alone, and loads checkpoints in the other

    @property
    def config(self) -> Any:
        return _base(self.model).config

    @property
    def core(self) -> Any:
        """The model below its head: `visual` and `language_model`."""
        return _base(self.model).model

    @property
    def prompt_spec(self) -> PromptSpec:
        return PromptSpec.of(self.config)

    def forward(self, batch: PackedBatch) -> LossOutput:
        if batch.advantages is None:
            raise ValueError("the batch has no advantages: give them in its groups, or ask for logps(batch)")
        with self.precision():
            hidden, head = self._scored_hidden(batch)
            out = self.loss(
                hidden,
                head.weight,
                batch.targets,
                advantages=batch.advantages,
                cu_seqlens=batch.cu_seqlens,
                old_logps=batch.old_logps,
                ref_logps=batch.ref_logps,
                sampler_logps=batch.sampler_logps,
                truncated=None if batch.finished is None else ~batch.finished,
                num_items_in_batch=batch.num_items_in_batch,
                entropy_scale=batch.entropy_scale,
                bias=head.bias,
                lora=head.lora,
            )
        return out if batch.scale == 1.0 else replace(out, loss=out.loss * batch.scale)

    @torch.no_grad()
    def logps(self, batch: PackedBatch, *, reference: bool = False) -> Tensor:
        """[N] fp32 log-probs of the targets under this policy, 0 for completions that are not in the model.

        `reference`: under the model with its adapters turned off.
        """
        with evaluating(self), self.precision(), self._adapters_off() if reference else nullcontext():
            hidden, head = self._scored_hidden(batch)
            options = self.loss.options
            scored = batch.scored.index.shape[0]
            logps = linear_logprobs(
                hidden[:scored],
                head.weight,
                batch.targets[:scored],
                temperature=options.temperature,
                softcap=options.softcap,
                bias=head.bias,
                lora=head.lora,
            )
        assert isinstance(logps, Tensor)
        return F.pad(logps, (0, batch.targets.shape[0] - scored))

    def encode(self, inputs: Sequence[VisionInput]) -> tuple[VisionFeatures, ...]:
        """Features of each image or video under the tower as it is, without gradient; frozen towers remember them."""
        with torch.no_grad(), self.precision():
            return self._encode(inputs, [None] * len(inputs))

    def precision(self) -> AbstractContextManager[Any]:
        """The autocast that every forward of the policy runs under."""
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.core.language_model.embed_tokens.weight.device.type, self.autocast_dtype)

    def _adapters_off(self) -> AbstractContextManager[Any]:
        if not hasattr(self.model, "disable_adapter"):
            raise ValueError(
                "a reference policy from the same model needs a peft adapter to turn off; "
                "without one, build a second GRPOPolicy from the reference model"
            )
        return self.model.disable_adapter()

    def _scored_hidden(self, batch: PackedBatch) -> tuple[Tensor, HeadOperands]:
        """[N, H] hidden states that predict the targets; zeros where a completion is not in the model."""
        language_model = self.core.language_model
        embeds, extra = self._embeds(batch)
        hidden = language_model(
            inputs_embeds=embeds[None],
            position_ids=batch.positions[:, None],
            attention_mask=_no_mask(self.config.model_type, embeds),
            use_cache=False,
            plan=batch.plan,
            attention_backend=self.attention,
            **extra,
        ).last_hidden_state[0]
        rows = kv_gather(hidden, batch.scored)
        rows = F.pad(rows, (0, 0, 0, batch.targets.shape[0] - rows.shape[0]))
        return rows, head_operands(_base(self.model).lm_head)

    def _embeds(self, batch: PackedBatch) -> tuple[Tensor, dict[str, Any]]:
        """[T, H] token embeddings with vision features in their places, and Qwen3-VL's later features."""
        visual = self.core.visual
        embeds = self.core.language_model.embed_tokens(batch.input_ids)
        inputs, cached = batch.vision, batch.features
        blank = not inputs and _tower_is_collective(visual)
        if blank:
            inputs, cached = (_blank_image(self.config.vision_config),), (None,)
        if not inputs:
            return embeds, {}
        found = self._encode(inputs, cached)
        levels = [torch.cat(parts) for parts in zip(*([f.embeds, *f.deepstack] for f in found), strict=True)]
        if blank:
            return embeds + sum(0.0 * level.sum() for level in levels), {}
        first, *later = (level.index_select(0, batch.vision_source).to(embeds.dtype) for level in levels)
        embeds = embeds.index_copy(0, batch.vision_rows, first)
        if not later:
            return embeds, {}
        places = torch.zeros(1, len(embeds), dtype=torch.bool, device=embeds.device)
        places[:, batch.vision_rows] = True
        return embeds, {"visual_pos_masks": places, "deepstack_visual_embeds": later}

    def _encode(
        self, inputs: Sequence[VisionInput], given: Sequence[VisionFeatures | None]
    ) -> tuple[VisionFeatures, ...]:
        visual = self.core.visual
        if _trained(visual):
            return vision.encode(visual, inputs, self.attention)

        def encode(missing: Sequence[VisionInput]) -> tuple[VisionFeatures, ...]:
            with torch.no_grad():
                return vision.encode(visual, missing, self.attention)

        if _sharded(visual):  # every rank has to run it as often as the others
            return encode(inputs)
        return self.features.lookup(inputs, given, visual, encode)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """In eval mode; afterwards every part is in the mode that it was found in, which need not be one for all."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _recompute_activations(model: Any) -> None:
    kwargs = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
    else:  # transformers 5.10's name, which version 6 will not have
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)


def _trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _sharded(visual: Any) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in visual.blocks.parameters())


def _tower_is_collective(visual: Any) -> bool:
    """Whether other ranks wait for this one's tower: its gradients are reduced, or its weights gathered."""
    together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return together and (_trained(visual) or _sharded(visual))


def _blank_image(config: Any) -> VisionInput:
    side = config.spatial_merge_size
    channels = getattr(config, "in_channels", None) or config.in_chans
    values = channels * config.temporal_patch_size * config.patch_size**2
    return VisionInput("image", torch.zeros(side**2, values), (1, side, side), "blank")


def _no_mask(model_type: str, embeds: Tensor) -> Any:
    """What each text model takes as "the mask is already made": the plan stands in its place."""
    return embeds.new_zeros(1, 1, 1, 1) if model_type == "qwen3_vl" else {"full_attention": None}


def _refuse_unsupported(config: Any) -> None:
    if config.model_type not in MODEL_TYPES:
        raise BadCheckpoint(f"model type {config.model_type!r} is not supported; known: {', '.join(MODEL_TYPES)}")
    text = config.text_config
    if "sliding_attention" in (getattr(text, "layer_types", None) or ()):
        raise BadCheckpoint(
            "the model has sliding-window attention layers, which the shared prompt cannot serve; "
            "set use_sliding_window to false in its text config"
        )
    if getattr(text, "attention_dropout", 0.0):
        raise BadCheckpoint(f"attention_dropout is {text.attention_dropout}; set it to 0: packed attention has none")
