"""How a completion is drawn: the settings, the seeds, and one draw for every row of a batch at once.

A token's uniform number is a hash of (seed, completion, place), so it never depends on what else is in the batch. The
recorded log-prob is that of the full softmax after temperature: bans, top-k, top-p, min-p and the repetition penalty
steer the draw and leave it alone, so that it is what a trainer computes for the same tokens.
Suffixes: N rows of logits, G draws from each, V vocabulary, B blocks of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from grpo_fast.errors import BadSampling
from grpo_fast.ops.backends import choose

BLOCK = 256  # tokens: a draw finds its block first, then its token, so that only block sums are accumulated
SHORTLIST = 1024  # top-p sorts that many tokens, and the whole vocabulary only where they do not hold its mass


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    temperature: float = 1.0
    greedy: bool = False  # the most probable token; log-probs still those after temperature
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0  # of the most probable token's probability
    repetition_penalty: float = 1.0
    max_tokens: int = 512
    stop_tokens: tuple[int, ...] | None = None  # None: the model's end-of-sequence tokens; (): none
    stop_strings: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if _finite("temperature", self.temperature) <= 0:
            hint = "; for the most probable token ask for greedy=True" if self.temperature == 0 else ""
            raise BadSampling(f"temperature must be above 0, got {self.temperature}{hint}")
        if not 0 < _finite("top_p", self.top_p) <= 1:
            raise BadSampling(f"top_p must lie in (0, 1], got {self.top_p}")
        if not 0 <= _finite("min_p", self.min_p) <= 1:
            raise BadSampling(f"min_p must lie in [0, 1], got {self.min_p}")
        if _finite("repetition_penalty", self.repetition_penalty) <= 0:
            raise BadSampling(f"repetition_penalty must be above 0 (1: off), got {self.repetition_penalty}")
        for name, low in (("top_k", 0), ("max_tokens", 1)):
            if not _is_int(getattr(self, name)) or getattr(self, name) < low:
                raise BadSampling(f"{name} must be an integer of at least {low}, got {getattr(self, name)!r}")
        if not _is_int(self.seed):
            raise BadSampling(f"seed must be an integer, got {self.seed!r}")
        if isinstance(self.stop_strings, str) or not all(isinstance(s, str) and s for s in self.stop_strings):
            raise BadSampling(f"stop_strings must be a tuple of non-empty strings, got {self.stop_strings!r}")
        if self.stop_tokens is not None and not all(_is_int(token) and token >= 0 for token in self.stop_tokens):
            raise BadSampling(f"stop_tokens must be a tuple of token ids, got {self.stop_tokens!r}")

    @property
    def whole_vocabulary(self) -> bool:
        return not self.top_k and self.top_p == 1.0 and self.min_p == 0.0


def row_keys(seed: int, completions: int) -> np.ndarray:
    """[completions] uint64, one for each completion of a request."""
    return _splitmix(_splitmix(_seed_bits(seed)) ^ np.arange(1, completions + 1, dtype=np.uint64))


def uniforms(keys: np.ndarray, places: np.ndarray) -> np.ndarray:
    """fp64 in [0, 1), each a hash of its row's key and of the token's place in the completion."""
    bits = _splitmix(keys ^ _splitmix(places.astype(np.uint64)))
    return (bits >> np.uint64(11)) * 2.0**-53


def prompt_seeds(seed: int, prompts: int) -> list[int]:
    """A seed for each place in a list of prompts, so that equal prompts get different completions."""
    return row_keys(seed, prompts).tolist()


def _seed_bits(seed: int) -> np.ndarray:
    return np.array([int(seed) & (1 << 64) - 1], dtype=np.uint64)


def _splitmix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64, wrapping modulo 2^64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


class Sampler:
    """`banned`: tokens never drawn. Owns nothing of the batch."""

    def __init__(self, params: SamplingParams, banned: Sequence[int], vocab: int, device: torch.device) -> None:
        self.params = params
        self.banned = torch.tensor(sorted(banned), dtype=torch.int64, device=device)
        self.allowed = torch.ones(vocab, dtype=torch.bool, device=device).index_fill_(0, self.banned, False)
        if len(self.banned) >= vocab:
            raise BadSampling(f"all {vocab} tokens are banned: nothing can be sampled")
        plain = params.whole_vocabulary and not params.greedy
        self.fused = plain and choose("draw", device, torch.float32) == "triton"

    def draw(
        self,
        logits: Tensor,  # [N, V], overwritten
        uniform: Tensor,  # [N, G] fp64
        seen: Tensor | None = None,  # [N, V] bool: prompt and completion so far, for the repetition penalty
    ) -> tuple[Tensor, Tensor]:  # [N, G] int64, -1 where the logits are not finite; [N, G] fp32
        params = self.params
        z = logits.float()
        if self.fused and seen is None:
            from grpo_fast.kernels import draw

            return draw.draw(z, uniform, self.allowed, 1.0 / params.temperature)
        z = z if params.temperature == 1.0 else z.div_(params.temperature)
        steered = z if seen is None else torch.where(seen, penalised(z, params.repetition_penalty), z)
        lse = z[:, self.banned].logsumexp(1) if seen is None else z.logsumexp(1)
        steered.index_fill_(1, self.banned, -math.inf)
        best = steered.amax(1, keepdim=True)
        weights = (steered - best).exp_()
        if seen is None:
            lse = torch.logaddexp(lse, best[:, 0] + weights.sum(1).log())
        if params.greedy:
            tokens = steered.argmax(1, keepdim=True).expand(uniform.shape)
        else:
            if not params.whole_vocabulary:
                weights.masked_fill_(steered < threshold(steered, best, weights, params), 0.0)
            tokens = pick(weights, uniform)
        logps = z.gather(1, tokens) - lse[:, None]
        return tokens.masked_fill(~lse.isfinite()[:, None], -1), logps


def penalised(z: Tensor, penalty: float) -> Tensor:
    return torch.where(z > 0, z / penalty, z * penalty)


def threshold(z: Tensor, best: Tensor, weights: Tensor, params: SamplingParams) -> Tensor:
    """[N, 1] the least logit that top-k, top-p (of what top-k leaves) and min-p all keep; ties stay in together."""
    lowest = best + math.log(params.min_p) if params.min_p > 0 else torch.full_like(best, -math.inf)
    if params.top_k:
        top = z.topk(min(params.top_k, z.shape[1]), 1).values
        lowest = torch.maximum(lowest, top[:, -1:])
    if params.top_p < 1.0:
        if params.top_k:
            mass = (top - best).exp().sum(1, keepdim=True)
        else:
            mass = weights.sum(1, keepdim=True)
            top = z.topk(min(SHORTLIST, z.shape[1]), 1).values
            if not bool(((top - best).exp().sum(1, keepdim=True) >= params.top_p * mass).all()):
                top = z.sort(1, descending=True).values
        share = (top - best).exp() / mass
        before = share.double().cumsum(1) - share
        kept = (before < params.top_p).sum(1, keepdim=True).clamp_min(1)
        lowest = torch.maximum(lowest, top.gather(1, kept - 1))
    return lowest


def pick(weights: Tensor, uniform: Tensor) -> Tensor:
    """[N, G] tokens by inverse CDF; a token of weight 0 is never picked while its row holds any weight."""
    vocab = weights.shape[1]
    whole = vocab - vocab % BLOCK
    sums_NB = weights[:, :whole].unflatten(1, (-1, BLOCK)).sum(2)
    if whole < vocab:
        sums_NB = torch.cat([sums_NB, weights[:, whole:].sum(1, keepdim=True)], 1)
    ends = sums_NB.double().cumsum(1)
    goal = uniform * ends[:, -1:]
    block = _first_above(ends, goal)
    goal = goal - torch.where(block > 0, ends.gather(1, (block - 1).clamp_min(0)), 0.0)

    token = block[..., None] * BLOCK + torch.arange(BLOCK, device=weights.device)  # [N, G, BLOCK]
    inside = weights.gather(1, token.clamp_max(vocab - 1).flatten(1)).view(token.shape)
    ends = inside.masked_fill(token >= vocab, 0.0).double().cumsum(2)
    return block * BLOCK + _first_above(ends.flatten(0, 1), goal.flatten()[:, None]).view(block.shape)


def _first_above(ends: Tensor, goal: Tensor) -> Tensor:
    """[N, G] first entry of each ascending row above the goal, at most the one where the row reaches its end."""
    last = (ends < ends[:, -1:]).sum(1, keepdim=True)
    if goal.shape[1] == 1:
        return torch.minimum((ends <= goal).sum(1, keepdim=True), last)
    return torch.minimum(torch.searchsorted(ends, goal.contiguous(), right=True), last)


def _finite(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BadSampling(f"{name} must be a finite number, got {value!r}")
    return value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
