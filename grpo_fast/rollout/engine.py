"""Completions of many prompts from one model in this process: each image encoded once, each prompt prefilled once,
all completions of all prompts decoded together.

    engine = Engine(policy, tokenizer=tokenizer)
    groups = engine.generate(prompts, 8, SamplingParams(temperature=1.0, max_tokens=256, seed=step))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from grpo_fast.errors import BadSampling, PromptTooLong
from grpo_fast.policy import GRPOPolicy
from grpo_fast.policy.checks import check_prompt
from grpo_fast.rollout.attention import rollout_attention
from grpo_fast.rollout.cache import CacheShape, KVPool
from grpo_fast.rollout.sampling import SamplingParams, prompt_seeds
from grpo_fast.rollout.schedule import Request, Rollout
from grpo_fast.rollout.static import prompt_room
from grpo_fast.rollout.weights import rollout_weights
from grpo_fast.types import Group, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CPU_KV_BYTES = 4 << 30
CUDA_KV_SHARE = 0.6  # of the memory that is free when a rollout starts


@dataclass(slots=True)
class RolloutStats:
    """What one call did. Seconds include waiting for the device."""

    completions: int  # asked for
    finished: int = 0
    images: int = 0  # distinct ones that came without features
    prefilled_tokens: int = 0
    sampled_tokens: int = 0
    decode_steps: int = 0
    decode_rows: int = 0  # summed over the steps
    kv_rows: int = 0  # most in use at once
    kv_bytes: int = 0  # of those rows
    prefill_seconds: float = 0.0  # images included
    decode_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.sampled_tokens / max(self.prefill_seconds + self.decode_seconds, 1e-9)


Watch = Callable[[RolloutStats], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    kv_bytes: int | None = None  # None: 4 GiB on a CPU, 60 % of the free memory on CUDA
    prefill_tokens: int = 8192  # prompt tokens of one packed forward; a longer prompt goes alone
    encode_patches: int = 16384  # of the images encoded in one go
    max_rows: int = 1024  # completions decoded together; a larger group goes alone
    merge_adapters: bool = False  # merge LoRA for the rollout and put the weights' bits back after it
    static_shapes: bool = False  # decode at fixed shapes (static.py): for CUDA, and for many tiny groups on a CPU

    def __post_init__(self) -> None:
        for name in ("kv_bytes", "prefill_tokens", "encode_patches", "max_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


class Engine:
    """`model`: a GRPOPolicy, a model that one can be made of, or either in DistributedDataParallel.

    `tokenizer` names the special tokens that are never sampled, and reads stop strings; without one only the special
    tokens of the model's config are known.
    """

    def __init__(self, model: nn.Module, *, tokenizer: PreTrainedTokenizerBase | None = None, **options: Any) -> None:
        model = model.module if isinstance(model, DistributedDataParallel) else model
        self.policy = model if isinstance(model, GRPOPolicy) else GRPOPolicy(model)
        self.tokenizer = tokenizer
        self.options = EngineOptions(**options)
        self.stats = RolloutStats(0)
        self._pool: KVPool | None = None

    def generate(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        sampling: SamplingParams | None = None,
        *,
        seeds: Sequence[int] | None = None,  # one per prompt; None: made of sampling.seed and the prompt's place
        watch: Watch | None = None,  # called after every step
    ) -> list[Group]:
        """A group for each prompt, in their order, with the log-prob of every token as it was sampled.

        A prompt with the same seed gets the same tokens whatever else is generated beside it, in fp32 on a CPU. A GPU
        picks its products by their shapes, so there the last bits, and with them a rare token, depend on the company.
        Where the tower is frozen, the prompts carry its features on to the training step.
        """
        params = SamplingParams() if sampling is None else sampling
        if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1:
            raise BadSampling(f"group_size must be an integer of at least 1, got {group_size!r}")
        seeds = prompt_seeds(params.seed, len(prompts)) if seeds is None else seeds
        if len(seeds) != len(prompts):
            raise BadSampling(f"{len(seeds)} seeds for {len(prompts)} prompts; give one per prompt")
        if params.stop_strings and self.tokenizer is None:
            raise BadSampling("stop_strings need the tokenizer: Engine(model, tokenizer=…)")
        for prompt in prompts:
            check_prompt(prompt, self.policy.prompt_spec)
        self.stats = RolloutStats(len(prompts) * group_size)
        core = self.policy.core
        with (
            rollout_weights(self.policy, self.options.merge_adapters),
            self.policy.precision(),
            rollout_attention(core.language_model),
        ):
            if not prompts:  # a rank without any still takes part in gathering sharded weights
                return []
            room = [prompt.input_ids.numel() for prompt in prompts]
            if self.options.static_shapes:
                room = [prompt_room(max(room))] * len(room)
            pool = self._pool_for([prompt + group_size * params.max_tokens for prompt in room])
            request = Request(prompts, group_size, params, seeds, room, watch)
            return Rollout(self, pool, request).run()

    def release(self) -> None:
        """Frees the buffers; the next rollout makes them anew."""
        self._pool = None

    def stop_tokens(self, params: SamplingParams) -> tuple[int, ...]:
        if params.stop_tokens is not None:
            outside = [token for token in params.stop_tokens if token >= self.vocab_size]
            if outside:
                raise BadSampling(f"stop tokens {outside} lie outside the vocabulary of {self.vocab_size}")
            return params.stop_tokens
        configs = (getattr(self.base_model, "generation_config", None), self.policy.config.text_config)
        ends = [getattr(config, "eos_token_id", None) for config in configs]
        found = _as_list(next((one for one in ends if one is not None), None))
        found += _as_list(getattr(self.tokenizer, "eos_token_id", None))
        return tuple(sorted({token for token in found if token < self.vocab_size}))

    def banned_tokens(self, params: SamplingParams) -> tuple[int, ...]:
        """Vision and other special tokens, and ids beyond the tokenizer's, except the stop tokens."""
        config = self.policy.config
        names = ("image", "video", "vision_start", "vision_end", "vision", "bos", "eos", "pad")
        found = [getattr(c, f"{name}_token_id", None) for c in (config, config.text_config) for name in names]
        banned = {token for one in found for token in _as_list(one)}
        if self.tokenizer is not None:
            added = self.tokenizer.added_tokens_decoder
            banned |= {index for index, token in added.items() if token.special} | set(self.tokenizer.all_special_ids)
            banned |= set(range(len(self.tokenizer), self.vocab_size))
        return tuple(sorted(token for token in banned - set(self.stop_tokens(params)) if 0 <= token < self.vocab_size))

    @property
    def base_model(self) -> Any:
        model: Any = self.policy.model
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    @property
    def vocab_size(self) -> int:
        return self.policy.config.text_config.vocab_size

    def _pool_for(self, rows: list[int]) -> KVPool:
        """Buffers for all groups at once, or for as many as the budget allows."""
        shape = self._cache_shape()
        free = self.options.kv_bytes
        if free is None:
            free = CPU_KV_BYTES
            if shape.device.type == "cuda":
                held = self._pool.rows * shape.row_bytes if self._pool is not None else 0
                free = int(CUDA_KV_SHARE * (free_on_gpu(shape.device) + held))
        budget = free // shape.row_bytes
        if max(rows) > budget:
            number = rows.index(max(rows))
            raise PromptTooLong(
                f"prompt {number}: its group needs {max(rows)} rows of keys and values "
                f"({max(rows) * shape.row_bytes / 1e6:.1f} MB: the prompt once, and max_tokens for each completion), "
                f"the budget holds {budget} ({free / 1e6:.1f} MB); raise kv_bytes, or lower max_tokens or group_size",
                tokens=max(rows),
            )
        wanted = min(sum(rows), budget)
        if self._pool is None or self._pool.shape != shape or self._pool.rows < wanted:
            self._pool = None  # before the new one: both might not fit
            self._pool = KVPool(shape, wanted)
        self._pool.clear()
        return self._pool

    def _cache_shape(self) -> CacheShape:
        text = self.policy.config.text_config
        weight = self.policy.core.language_model.embed_tokens.weight
        return CacheShape(
            layers=text.num_hidden_layers,
            kv_heads=text.num_key_value_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            dtype=self.policy.autocast_dtype or weight.dtype,
            device=weight.device,
        )


def free_on_gpu(device: torch.device) -> int:
    """Bytes, those included that torch keeps from tensors that are gone: after a training step most are."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def _as_list(tokens: int | list[int] | None) -> list[int]:
    return [] if tokens is None else [tokens] if isinstance(tokens, int) else list(tokens)
