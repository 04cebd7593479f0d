"""Chains from a model in this process: each picture encoded once, each prompt computed once for all its chains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from grpo_fast.data.prompts import PromptStyle
from grpo_fast.evaluate.models import load_engine, load_processor
from grpo_fast.evaluate.run import UNASKABLE
from grpo_fast.rewards.accuracy import check_gold
from grpo_fast.rollout import Engine, SamplingParams
from grpo_fast.synth.chains import Chain, Outcome
from grpo_fast.synth.settings import ChainSettings
from grpo_fast.types import Prompt, Sample

Prepared = tuple[int, Prompt | str]  # place; or why the question cannot be asked


class LocalModel:
    def __init__(
        self, name: str, *, batch: int, max_pixels: int | None = None, dtype: str = "auto", device: str | None = None
    ) -> None:
        self.processor = load_processor(name, max_pixels)
        self.engine: Engine = load_engine(name, self.processor.tokenizer, dtype=dtype, device=device)
        self.batch = batch  # questions asked together: what a crash can lose

    def ask(
        self, data: Sequence[Sample], places: Sequence[int], style: PromptStyle, settings: ChainSettings
    ) -> Iterator[list[Outcome]]:
        """A batch's outcomes at a time; the next batch's pictures are read while one is answered."""
        params = SamplingParams(
            temperature=settings.temperature, top_p=settings.top_p, max_tokens=settings.max_tokens, seed=settings.seed
        )
        parts = [places[at : at + self.batch] for at in range(0, len(places), self.batch)]

        def prepare(part: Sequence[int]) -> list[Prepared]:
            return [(place, self._prompt(data, place, style)) for place in part]

        with ThreadPoolExecutor(1) as ahead:
            waiting = ahead.submit(prepare, parts[0]) if parts else None
            for number in range(len(parts)):
                assert waiting is not None
                prepared = waiting.result()
                waiting = ahead.submit(prepare, parts[number + 1]) if number + 1 < len(parts) else None
                yield self._answered(prepared, params, settings)

    def _prompt(self, data: Sequence[Sample], place: int, style: PromptStyle) -> Prompt | str:
        try:
            sample = data[place]
            check_gold(sample)
            return self.processor(style(sample))
        except UNASKABLE as error:
            return str(error)

    def _answered(self, prepared: Sequence[Prepared], params: SamplingParams, settings: ChainSettings) -> list[Outcome]:
        asked = [(place, prompt) for place, prompt in prepared if isinstance(prompt, Prompt)]
        seeds = [settings.seed_of(place) for place, _ in asked]
        groups = self.engine.generate([prompt for _, prompt in asked], settings.k, params, seeds=seeds)
        decode = self.processor.tokenizer.decode
        outcomes = [Outcome(place, skipped=prompt) for place, prompt in prepared if isinstance(prompt, str)]
        for (place, _), group in zip(asked, groups, strict=True):
            texts = [str(decode(tokens, skip_special_tokens=True)) for tokens in group.completions]
            chains = (Chain(text, finished) for text, finished in zip(texts, group.finished, strict=True))
            outcomes.append(Outcome(place, tuple(chains)))
        return outcomes
