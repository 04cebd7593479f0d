"""One rollout from its prompts to its groups: prompts enter as room frees, finished completions leave at once."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from grpo_fast.errors import Diverged
from grpo_fast.ops.decode_attention import is_fused
from grpo_fast.rollout.attention import run_layers
from grpo_fast.rollout.cache import GroupCache, KVPool
from grpo_fast.rollout.decode import FusedStep, GroupedStep, GroupRows
from grpo_fast.rollout.logits import LogitsHead
from grpo_fast.rollout.prefill import ImageKey, image_key, pad_rows, prefill
from grpo_fast.rollout.sampling import Sampler, SamplingParams, row_keys, uniforms
from grpo_fast.rollout.static import StaticDecoder
from grpo_fast.rollout.stops import StopStrings
from grpo_fast.types import Group, Prompt, VisionFeatures, VisionInput

if TYPE_CHECKING:
    from grpo_fast.rollout.engine import Engine, Watch


@dataclass(slots=True)
class Running:
    """A group with completions still to decode. Slot i of its cache belongs to completion `slots[i]`."""

    number: int  # of its prompt
    cache: GroupCache
    slots: list[int]
    length: int  # tokens sampled so far by each of them; the last one's keys are not in the cache yet


@dataclass(frozen=True, slots=True)
class Request:
    prompts: Sequence[Prompt]
    group_size: int
    params: SamplingParams
    seeds: Sequence[int]  # one per prompt
    room: Sequence[int]  # rows of keys and values for each prompt, at least its length
    watch: Watch | None = None


class Rollout:
    def __init__(self, engine: Engine, pool: KVPool, request: Request) -> None:
        self.engine, self.pool, self.request = engine, pool, request
        self.prompts, self.group_size, self.params = request.prompts, request.group_size, request.params
        self.policy, self.core, self.spec = engine.policy, engine.policy.core, engine.policy.prompt_spec
        self.stats = engine.stats
        banned, self.stops = (
            engine.banned_tokens(self.params),
            np.array(engine.stop_tokens(self.params), dtype=np.int64),
        )
        self.sampler = Sampler(self.params, banned, engine.vocab_size, pool.shape.device)
        self.logits = LogitsHead(engine.base_model.lm_head)
        self.stop_strings = StopStrings.of(self.params.stop_strings, engine.tokenizer)
        self.waiting = deque(range(len(self.prompts)))
        self.running: list[Running] = []
        self.features: dict[ImageKey, VisionFeatures] = {}
        self.fused = is_fused(pool.shape.device, pool.shape.dtype, pool.shape.head_dim)
        self.static = None
        if engine.options.static_shapes:
            sizes = (max(request.room), self.group_size, self.params.max_tokens)
            self.static = StaticDecoder(self.core.language_model, pool, *sizes, fused=self.fused)

        # Row prompt * G + completion of everything that is kept for a completion.
        rows, tokens = len(self.prompts) * self.group_size, self.params.max_tokens
        self.keys = np.concatenate([row_keys(seed, self.group_size) for seed in request.seeds])
        ends = [int(prompt.positions.max()) + 1 for prompt in self.prompts]
        self.next_position = np.repeat(ends, self.group_size)
        self.tokens = np.zeros((rows, tokens), dtype=np.int64)
        self.logps = np.zeros((rows, tokens), dtype=np.float32)
        self.lengths = np.zeros(rows, dtype=np.int64)
        self.stopped = np.zeros(rows, dtype=bool)
        self.seen = self._seen_tokens() if self.params.repetition_penalty != 1.0 else None

    def run(self) -> list[Group]:
        while self.waiting or self.running:
            start = time.perf_counter()
            while wave := self._next_wave():
                self._prefill(wave)
            middle = time.perf_counter()
            if self.running:
                self._decode()
            self.stats.prefill_seconds += middle - start
            self.stats.decode_seconds += time.perf_counter() - middle
            self.stats.kv_rows, self.stats.kv_bytes = self.pool.peak, self.pool.peak * self.pool.shape.row_bytes
            if self.request.watch is not None:
                self.request.watch(self.stats)
        return [self._group(number) for number in range(len(self.prompts))]

    def _next_wave(self) -> list[Running]:
        """Prompts to prefill together: in their order, as many as rows, tokens and memory allow."""
        wave: list[Running] = []
        tokens, rows = 0, sum(len(group.slots) for group in self.running)
        while self.waiting:
            number = self.waiting[0]
            length = self.prompts[number].input_ids.numel()
            if wave and tokens + length > self.engine.options.prefill_tokens:
                break
            if rows and rows + self.group_size > self.engine.options.max_rows:
                break
            cache = self.pool.take(self.request.room[number], self.group_size, self.params.max_tokens)
            if cache is None:
                break
            wave.append(Running(self.waiting.popleft(), cache, list(range(self.group_size)), 0))
            tokens, rows = tokens + length, rows + self.group_size
        return wave

    def _prefill(self, wave: list[Running]) -> None:
        prompts = [self.prompts[group.number] for group in wave]
        self._encode(prompts)
        hidden = prefill(
            self.core.language_model, self.spec, prompts, [group.cache for group in wave], self.features,
            self.policy.attention,
        )  # fmt: skip
        self.stats.prefilled_tokens += sum(prompt.input_ids.numel() for prompt in prompts)
        self.running += wave
        self._sample(wave, hidden, draws=self.group_size)

    def _decode(self) -> None:
        ids = self._rows(self.running)
        places = self.lengths[ids] - 1  # of the tokens whose successors are sampled now
        inputs = torch.from_numpy(np.stack([self.tokens[ids, places], self.next_position[ids] + places]))
        if self.static is None:
            hidden = self._eager(inputs)
        else:
            lengths = [self.prompts[group.number].input_ids.numel() for group in self.running]
            hidden = self.static.hidden(self.running, lengths, *inputs)
        self.stats.decode_steps += 1
        self.stats.decode_rows += len(ids)
        self._sample(self.running, hidden, draws=1)

    def _eager(self, inputs: Tensor) -> Tensor:  # [2, M] ids and positions to [M, H]
        groups, start = [], 0
        for group in self.running:
            groups.append(GroupRows(group.cache, slice(start, start + len(group.slots)), group.length - 1))
            start += len(group.slots)
        ids, positions = pad_rows(inputs.T).T.to(self.pool.shape.device, non_blocking=True)
        language_model = self.core.language_model
        step = FusedStep(self.pool, groups, len(ids)) if self.fused else GroupedStep(groups)
        hidden = run_layers(language_model, language_model.embed_tokens(ids), positions.expand(3, -1), step)
        return hidden[: inputs.shape[1]]

    def _sample(self, groups: list[Running], hidden: Tensor, draws: int) -> None:
        """The next token of every running completion of `groups`, `draws` from each row of [N, H] hidden states."""
        ids = self._rows(groups)
        places = self.lengths[ids]
        uniform = torch.from_numpy(uniforms(self.keys[ids], places)).view(-1, draws)
        uniform, seen = uniform.to(hidden.device, non_blocking=True), None
        if self.seen is not None:
            rows = torch.from_numpy(ids).to(hidden.device, non_blocking=True)
            seen = self.seen[rows[::draws]]
        drawn, logps = self._draw(hidden, uniform, seen)
        if self.seen is not None:
            self.seen[rows, drawn.flatten().clamp_min(0)] = True
        packed = torch.stack([drawn.double(), logps.double()]).flatten(1).cpu().numpy()  # the step's one wait
        tokens = packed[0].astype(np.int64)
        self._refuse_diverged(ids, tokens)
        self.tokens[ids, places], self.logps[ids, places] = tokens, packed[1]
        self.lengths[ids] = places + 1
        self.stats.sampled_tokens += len(ids)
        for group in groups:
            group.length += 1
        stopped = np.isin(tokens, self.stops)
        if self.stop_strings is not None:
            stopped |= [self.stop_strings.ends(self.tokens[row, : self.lengths[row]]) for row in ids]
        self.stopped[ids] = stopped
        over = stopped | (places + 1 == self.params.max_tokens)
        if over.any():
            self._leave(groups, over)

    def _draw(self, hidden: Tensor, uniform: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        rows = self.logits.chunk_rows
        some_seen = repeat(None) if seen is None else seen.split(rows)
        parts = [
            self.sampler.draw(self.logits(h), u, s)
            for h, u, s in zip(hidden.split(rows), uniform.split(rows), some_seen, strict=False)
        ]
        tokens, logps = zip(*parts, strict=True)
        return torch.cat(tokens), torch.cat(logps)

    def _leave(self, groups: list[Running], over: np.ndarray) -> None:
        """Finished completions give their slots to the last ones, so that the running ones stay side by side."""
        start = 0
        for group in groups:
            count = len(group.slots)
            for slot in reversed(np.flatnonzero(over[start : start + count]).tolist()):
                last = group.slots.pop()
                if slot < len(group.slots):
                    group.cache.move(len(group.slots), slot, group.length - 1)
                    group.slots[slot] = last
            start += count
            if not group.slots:
                self.pool.give_back(group.cache)
        self.stats.finished += int(over.sum())
        self.running = [group for group in self.running if group.slots]

    def _rows(self, groups: list[Running]) -> np.ndarray:
        return np.concatenate([np.array(group.slots) + group.number * self.group_size for group in groups])

    def _encode(self, prompts: Sequence[Prompt]) -> None:
        missing: dict[ImageKey, VisionInput] = {}
        for prompt in prompts:
            for place, one in enumerate(prompt.vision):
                if image_key(one) in self.features:
                    continue
                if prompt.features is not None and not self._tower_is_trained:
                    self.features[image_key(one)] = prompt.features[place]
                else:
                    missing[image_key(one)] = one
        part: list[VisionInput] = []
        for number, one in enumerate(missing.values(), 1):
            part.append(one)
            patches = sum(len(image.pixels) for image in part)
            if number == len(missing) or patches >= self.engine.options.encode_patches:
                self.features |= zip(map(image_key, part), self.policy.encode(part), strict=True)
                part = []
        self.stats.images += len(missing)

    @property
    def _tower_is_trained(self) -> bool:
        return any(parameter.requires_grad for parameter in self.core.visual.parameters())

    def _seen_tokens(self) -> Tensor:
        seen = torch.zeros(len(self.prompts), self.engine.vocab_size, dtype=torch.bool)
        for row, prompt in zip(seen, self.prompts, strict=True):
            row[prompt.input_ids] = True
        return seen.to(self.pool.shape.device).repeat_interleave(self.group_size, 0)

    def _refuse_diverged(self, ids: np.ndarray, tokens: np.ndarray) -> None:
        if (tokens >= 0).all():
            return
        row = int(ids[tokens < 0][0])
        number, completion = divmod(row, self.group_size)
        sample = self.prompts[number].sample
        name = f"prompt {number}" if sample is None else f"sample {sample.id!r}"
        raise Diverged(
            f"{name}, completion {completion}, token {self.lengths[row]}: the logits are not finite; the weights have "
            "diverged (or overflow in this dtype): go back to an earlier checkpoint and lower the learning rate"
        )

    def _group(self, number: int) -> Group:
        rows = range(number * self.group_size, (number + 1) * self.group_size)
        prompt = self.prompts[number]
        if prompt.vision and not self._tower_is_trained:
            prompt = replace(prompt, features=tuple(self.features[image_key(one)] for one in prompt.vision))
        return Group(
            prompt,
            tuple(torch.from_numpy(self.tokens[row, : self.lengths[row]].copy()) for row in rows),
            tuple(torch.from_numpy(self.logps[row, : self.lengths[row]].copy()) for row in rows),
            tuple(bool(self.stopped[row]) for row in rows),
        )
