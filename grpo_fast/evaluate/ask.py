"""Questions to a model, greedily, many at once, and what share of its answers is right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from grpo_fast.rewards.accuracy import gold_of, method_of, question_of
from grpo_fast.rewards.answers import is_correct
from grpo_fast.rewards.format import follows_format
from grpo_fast.types import Prompt, Sample

if TYPE_CHECKING:
    from grpo_fast.rollout import Engine
    from grpo_fast.rollout.engine import Watch

FACETS = ("modality", "question_type")


@dataclass(frozen=True, slots=True)
class Asked:
    sample: Sample
    completion: str
    tokens: int  # the stop token included
    finished: bool  # a stop was sampled; False: cut at the limit
    strict: bool  # right, as the text of the first answer tag
    lenient: bool  # right, also as "the answer is C", a bare "C", …
    formatted: bool


def ask(
    engine: Engine, prompts: Sequence[Prompt], *, style: str, max_tokens: int, watch: Watch | None = None
) -> list[Asked]:
    """One greedy completion of each prompt, in their order. `style` names the format that is asked for."""
    from grpo_fast.rollout import SamplingParams

    tokenizer = engine.tokenizer
    if tokenizer is None:
        raise ValueError("completions are read as text: Engine(model, tokenizer=…)")
    groups = engine.generate(prompts, 1, SamplingParams(greedy=True, max_tokens=max_tokens), watch=watch)
    texts = [str(tokenizer.decode(group.completions[0], skip_special_tokens=True)) for group in groups]
    samples = [_sample(prompt) for prompt in prompts]
    return [
        Asked(
            sample=sample,
            completion=text,
            tokens=group.completions[0].numel(),
            finished=group.finished[0],
            strict=right(sample, text),
            lenient=right(sample, text, lenient=True),
            formatted=follows_format(text, style),
        )
        for sample, text, group in zip(samples, texts, groups, strict=True)
    ]


def right(sample: Sample, completion: str, *, lenient: bool = False) -> bool:
    return is_correct(
        completion, gold_of(sample), question=question_of(sample), method=method_of(sample), lenient=lenient
    )


def scores(asked: Sequence[Asked]) -> dict[str, float]:
    """Shares, the mean length in words, and `accuracy/<name>` of every modality and question type; {} of nothing."""
    if not asked:
        return {}
    found = {
        "accuracy": fmean(one.strict for one in asked),
        "accuracy_lenient": fmean(one.lenient for one in asked),
        "format": fmean(one.formatted for one in asked),
        "length": fmean(len(one.completion.split()) for one in asked),
    }
    for facet in FACETS:
        for name, members in sorted(by_facet(asked, facet).items()):
            found[f"accuracy/{name}"] = fmean(one.strict for one in members)
    return found


def by_facet(asked: Iterable[Asked], facet: str) -> dict[str, list[Asked]]:
    """Questions whose `meta` does not name the facet are in none of the lists."""
    found: dict[str, list[Asked]] = defaultdict(list)
    for one in asked:
        if name := one.sample.meta.get(facet):
            found[str(name)].append(one)
    return dict(found)


def _sample(prompt: Prompt) -> Sample:
    if prompt.sample is None:
        raise ValueError("a prompt without its sample has no answer to compare with")
    return prompt.sample
