"""One model, all questions: what is still unasked is asked, batch by batch, each batch safe on disk before the next."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from grpo_fast import __version__
from grpo_fast.data.prompts import PromptStyle, prompt_style
from grpo_fast.errors import BadData, BadImage, BadReward, BadSettings, PromptMismatch, PromptTooLong
from grpo_fast.evaluate.answers import Answer, AnswerFile
from grpo_fast.evaluate.ask import Asked, ask
from grpo_fast.evaluate.models import fingerprint, load_engine, load_processor
from grpo_fast.evaluate.sources import Source, slug
from grpo_fast.policy.processor import Processor
from grpo_fast.rewards.accuracy import check_gold, gold_of, question_of
from grpo_fast.rollout import Engine
from grpo_fast.types import Prompt, Sample

UNASKABLE = (BadData, BadImage, BadReward, PromptMismatch, PromptTooLong)
Progress = Callable[[str, int, int], None]  # source, answered so far, of them found on disk


@dataclass(frozen=True, slots=True, kw_only=True)
class AskSettings:
    prompt: str = "think"
    max_tokens: int = 256
    batch: int = 64  # prompts asked together
    max_pixels: int | None = None
    dtype: str = "auto"
    device: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "batch"):
            if getattr(self, name) < 1:
                raise BadSettings(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Result:
    """Every answer of one model, by source, aligned with the source's places whatever the model: skipped ones stand
    in their place too."""

    model: str
    answers: dict[str, list[Answer]]


def evaluate_model(
    model: str,
    sources: Sequence[Source],
    settings: AskSettings,
    output: Path,
    *,
    name: str = "",
    say: Callable[[str], None] = lambda word: None,
    progress: Progress = lambda source, done, found: None,
) -> Result:
    """Answers lie in `output/<model>/<source>/answers.jsonl`. Weights are only loaded where something is unasked.
    `name` stands for the model in tables."""
    folder = output / f"{slug(Path(model).name)}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"
    style = prompt_style(settings.prompt)
    processor = load_processor(model, settings.max_pixels)
    engine: Engine | None = None
    answers: dict[str, list[Answer]] = {}
    for source in sources:
        file = AnswerFile(folder / source.name, _identity(model, source, settings, style))
        kept, word = file.kept(settings.batch)
        usable = _usable(kept, source, style, processor)
        if usable < len(kept):
            kept = kept[: usable // settings.batch * settings.batch]
            word = f"{file.folder}: the data have changed: going on from question {len(kept) + 1}"
        if word:
            say(word)
        answers[source.name] = kept
        progress(source.name, len(kept), len(kept))
        if len(kept) == len(source):
            continue
        if engine is None:
            engine = load_engine(model, processor.tokenizer, dtype=settings.dtype, device=settings.device)
        file.begin(kept)
        found = len(kept)
        for batch in _batches(source, found, settings, style, engine, processor, progress):
            file.append(batch)
            kept += batch
            progress(source.name, len(kept), found)
    return Result(name or model, answers)


def _identity(model: str, source: Source, settings: AskSettings, style: PromptStyle) -> dict[str, object]:
    """What an answer depends on. The batch is not among it: its size moves memory and speed, not answers."""
    asked = {key: value for key, value in asdict(settings).items() if key not in ("batch", "prompt")}
    return asked | {
        "version": __version__,
        "model": model,
        "weights": fingerprint(model),
        "prompt": style.template,
        "data": source.spec,
        "questions": len(source),
        "places": [] if len(source) == len(source.samples) else list(source.places),
    }


def _usable(kept: Sequence[Answer], source: Source, style: PromptStyle, processor: Processor) -> int:
    """How many from the first on still belong to their question. One that could not be asked is tried again."""
    for number, (answer, place) in enumerate(zip(kept, source.places, strict=False)):
        if answer.skipped:
            if answer.place != place or not _prepared(place, source.samples, style, processor).reason:
                return number
            continue
        try:
            same = (answer.place, answer.id, answer.question, answer.gold) == _told(place, source.samples[place])
        except BadData:
            return number
        if not same:
            return number
    return len(kept)


def _told(place: int, sample: Sample) -> tuple[int, str, str, str]:
    return place, sample.id, question_of(sample), gold_of(sample)


@dataclass(frozen=True, slots=True)
class Prepared:
    place: int
    sample: Sample | None
    prompt: Prompt | None
    reason: str = ""


def _batches(
    source: Source,
    start: int,
    settings: AskSettings,
    style: PromptStyle,
    engine: Engine,
    processor: Processor,
    progress: Progress,
) -> Iterator[list[Answer]]:
    """The next batch's pictures are read while this one is answered."""
    parts = [source.places[at : at + settings.batch] for at in range(start, len(source), settings.batch)]

    def prepare(places: Sequence[int]) -> list[Prepared]:
        return [_prepared(place, source.samples, style, processor) for place in places]

    done = start
    with ThreadPoolExecutor(1) as ahead:
        waiting = ahead.submit(prepare, parts[0])
        for number in range(len(parts)):
            batch = waiting.result()
            if number + 1 < len(parts):
                waiting = ahead.submit(prepare, parts[number + 1])
            prompts = [one.prompt for one in batch if one.prompt is not None]
            asked = iter(
                ask(
                    engine, prompts, style=style.form, max_tokens=settings.max_tokens,
                    watch=lambda stats, done=done: progress(source.name, done + stats.finished, start),
                )
            )  # fmt: skip
            yield [_answer(one, None if one.prompt is None else next(asked)) for one in batch]
            done += len(batch)


def _prepared(place: int, samples: Sequence[Sample], style: PromptStyle, processor: Processor) -> Prepared:
    sample = None
    try:
        sample = samples[place]
        check_gold(sample)
        return Prepared(place, sample, processor(style(sample)))
    except UNASKABLE as error:
        return Prepared(place, sample, None, str(error))


def _answer(one: Prepared, asked: Asked | None) -> Answer:
    sample = one.sample or Sample(f"place {one.place}", ())
    place, id, text, gold = _told(one.place, sample)
    known = Answer(
        place=place,
        id=id,
        question=text,
        gold=gold,
        modality=str(sample.meta.get("modality") or ""),
        question_type=str(sample.meta.get("question_type") or ""),
        answer_type=str(sample.meta.get("answer_type") or ""),
        skipped=one.reason,
    )
    if asked is None:
        return known
    return replace(
        known,
        completion=asked.completion,
        tokens=asked.tokens,
        finished=asked.finished,
        strict=asked.strict,
        lenient=asked.lenient,
        formatted=asked.formatted,
    )
