"""Questions to chains to files: what is not on disk yet is asked, then everything on disk is judged and written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from grpo_fast.data.dataset import Dataset
from grpo_fast.data.prompts import PromptStyle
from grpo_fast.errors import BadData, BadImage, BadSettings, RunFailed
from grpo_fast.synth.chains import ChainFile, Outcome
from grpo_fast.synth.exclude import HeldOut
from grpo_fast.synth.judge import KEPT, verdicts
from grpo_fast.synth.pictures import references
from grpo_fast.synth.progress import progress_of
from grpo_fast.synth.report import Report, Row
from grpo_fast.synth.settings import ChainSettings, Filters
from grpo_fast.synth.write import Writer
from grpo_fast.types import Sample


class Model(Protocol):
    def ask(
        self, data: Sequence[Sample], places: Sequence[int], style: PromptStyle, settings: ChainSettings
    ) -> Iterator[list[Outcome]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    data: Dataset
    places: Sequence[int]  # in the data, of the questions that are asked
    style: PromptStyle
    chains: ChainSettings
    filters: Filters
    who: Mapping[str, Any]  # whatever identifies the model
    output: Path
    name: str = "synth"  # of the two files
    image_root: Path | None = None  # None: the output folder
    every_question: bool = False  # in the file of direct answers, not only those with a kept chain
    held_out: HeldOut | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # as the report shows them


def chosen(size: int, most: int, seed: int) -> list[int]:
    """`most` places drawn by the seed (0: all), ascending. More of them hold the fewer."""
    if most == 0 or most >= size:
        return list(range(size))
    # RandomState's stream is frozen by numpy.
    return sorted(np.random.RandomState(seed).permutation(size)[:most].tolist())


def synthesise(job: Job, model: Callable[[], Model], *, fresh: bool = False) -> Report:
    """`model` is called where something is unasked. RunFailed says how far it came; what was asked is kept."""
    _check(job)
    report = Report({**job.settings, **asdict(job.chains), **asdict(job.filters)})
    with ChainFile(job.output, _identity(job), fresh=fresh) as file:
        asked = _questions(job, report)
        for place in [place for place in asked if place in file]:
            file.chains(place, job.data[place])
        missing = [place for place in asked if place not in file]
        if missing:
            _sample(job, model(), file, missing, len(asked), report)
        _write(job, file, asked, report)
    report.write(job.output / "report.json")
    return report


def _check(job: Job) -> None:
    if Path(job.name).name != job.name:
        raise BadSettings(f"--name {job.name!r} is no part of a file name")
    if job.image_root is not None and not job.image_root.is_dir():
        raise BadSettings(f"--image-root {job.image_root} is no folder")
    if job.style.form == "no-think" and job.filters.min_words:
        raise BadSettings(f"--prompt {job.style.name} asks for no reasoning, whose words would count: --min-words 0")


def _identity(job: Job) -> dict[str, Any]:
    return {**job.who, "prompt": job.style.template, **asdict(job.chains)}


def _questions(job: Job, report: Report) -> list[int]:
    """Without those that cannot be read and those that are held out."""
    found = []
    with progress_of("reading", len(job.places)) as progress:
        for number, place in enumerate(job.places, 1):
            try:
                sample = job.data[place]
                why = job.held_out.reason(sample) if job.held_out is not None else ""
            except (BadData, BadImage) as error:
                report.skipped[_where(job, place)] = str(error)
            else:
                if why:
                    report.held_out[_where(job, place)] = why
                else:
                    found.append(place)
            progress(number, "")
    if job.held_out is not None:
        report.not_compared = job.held_out.unreadable
    return found


def _where(job: Job, place: int) -> str:
    file, line = job.data.place(place)
    return f"{file}:{line}"


def _sample(job: Job, model: Model, file: ChainFile, missing: Sequence[int], total: int, report: Report) -> None:
    here, done, row = total - len(missing), 0, Row()
    try:
        with progress_of("asking", len(missing)) as progress:
            progress(0, f"{here} found on disk" if here else "")
            for outcomes in model.ask(job.data, missing, job.style, job.chains):
                answered = [(job.data[one.place], one) for one in outcomes if not one.skipped]
                if answered:
                    file.append(answered)
                for sample, one in answered:
                    row.add(verdicts(sample, one.chains, job.style.form, job.filters))
                for one in outcomes:
                    if one.skipped:
                        report.skipped[_where(job, one.place)] = one.skipped
                done += len(outcomes)
                progress(done, f"{row.acceptance:.0%} of the chains are good")
    except (RunFailed, KeyboardInterrupt) as error:
        why = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        raise RunFailed(
            f"{why}; the chains of {len(file)} of {total} questions are kept in {file.path}: the same command goes on"
        ) from None


def _write(job: Job, file: ChainFile, asked: Sequence[int], report: Report) -> None:
    root = job.image_root or job.output
    with Writer(job.output, job.name) as writer:
        for place in asked:
            if place not in file:
                continue
            sample = job.data[place]
            chains = file.chains(place, sample)
            judged = verdicts(sample, chains, job.style.form, job.filters)
            report.add(sample.meta.get("modality"), judged, [chain.text for chain in chains])
            if KEPT not in judged and not job.every_question:
                continue
            try:
                images = references(sample, place, root, job.output / "images")
            except BadImage as error:
                report.skipped[_where(job, place)] = str(error)
                continue
            writer.answer(sample, images)
            for number, (chain, verdict) in enumerate(zip(chains, judged, strict=True)):
                if verdict == KEPT:
                    writer.chain(sample, images, chain.text, number)
    report.files = dict(zip(map(str, writer.paths), writer.lines, strict=True))
