"""Chains from a server: a request a chain, several at a time; a question is handed on with its last chain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any

from grpo_fast.data.prompts import PromptStyle
from grpo_fast.errors import GRPOFastError, RunFailed
from grpo_fast.evaluate.run import UNASKABLE
from grpo_fast.rewards.accuracy import check_gold
from grpo_fast.synth.chains import Chain, Outcome
from grpo_fast.synth.client import Abandoned, Client, Refused, ServerSettings
from grpo_fast.synth.pictures import data_uri, pictures
from grpo_fast.synth.settings import ChainSettings
from grpo_fast.types import Sample

REFUSED_IN_A_ROW = 3  # questions: then it is not the questions
Task = tuple[int, int, Mapping[str, Any]]  # place, number of the chain, the request's body
Result = tuple[int, int, "Chain | Exception"]


@dataclass(slots=True)
class _Pending:
    """A question some of whose chains are still to come."""

    chains: dict[int, Chain] = field(default_factory=dict)
    refused: str = ""
    back: int = 0  # answers, refusals among them


class ServerModel:
    def __init__(self, settings: ServerSettings, say: Callable[[str], None] = lambda word: None) -> None:
        self.settings = settings
        self._stopped = Event()
        self._client = Client(settings, self._stopped, say)

    def ask(
        self, data: Sequence[Sample], places: Sequence[int], style: PromptStyle, settings: ChainSettings
    ) -> Iterator[list[Outcome]]:
        """Outcomes as they come in. RunFailed comes after those that were there before it."""
        tasks: SimpleQueue[Task | None] = SimpleQueue()
        results: SimpleQueue[Result] = SimpleQueue()
        workers = [
            Thread(target=self._work, args=(tasks, results), daemon=True) for _ in range(self.settings.concurrency)
        ]
        for worker in workers:
            worker.start()
        pending: dict[int, _Pending] = {}
        asked = iter(places)
        out, refused = 0, 0
        try:
            while True:
                while out < 2 * self.settings.concurrency and (place := next(asked, None)) is not None:
                    body = _body(data, place, style, settings)
                    if isinstance(body, str):
                        yield [Outcome(place, skipped=body)]
                        continue
                    pending[place] = _Pending()
                    for number in range(settings.k):
                        seed = (settings.seed_of(place) + number) % (1 << 31)
                        tasks.put((place, number, {**body, "seed": seed}))
                    out += settings.k
                if not pending:
                    return
                place, number, result = results.get()
                out -= 1
                if isinstance(result, Exception) and not isinstance(result, Refused):
                    yield _whole(results, pending, settings.k)
                    raise result
                if (outcome := _received(pending, place, number, result, settings.k)) is None:
                    continue
                yield [outcome]
                refused = refused + 1 if outcome.skipped else 0
                if refused == REFUSED_IN_A_ROW:
                    raise RunFailed(
                        f"the server {self.settings.address} refused {refused} questions in a row, the last with "
                        f"{outcome.skipped}; is a setting wrong, --server-model {self.settings.model!r} for one?"
                    )
        finally:
            self._stopped.set()
            for _ in workers:
                tasks.put(None)

    def _work(self, tasks: SimpleQueue[Task | None], results: SimpleQueue[Result]) -> None:
        while (task := tasks.get()) is not None and not self._stopped.is_set():
            place, number, body = task
            try:
                results.put((place, number, self._client.chat(body)))
            except Abandoned:
                return
            except Refused as error:
                results.put((place, number, error))
            except GRPOFastError as error:
                self._stopped.set()
                results.put((place, number, error))


def _received(
    pending: dict[int, _Pending], place: int, number: int, result: Chain | Exception, k: int
) -> Outcome | None:
    """The question's outcome where this was its last chain."""
    question = pending[place]
    question.back += 1
    if isinstance(result, Chain):
        question.chains[number] = result
    else:
        question.refused = f"refused by the server: {result}"
    if question.back < k:
        return None
    del pending[place]
    if question.refused:
        return Outcome(place, skipped=question.refused)
    return Outcome(place, tuple(question.chains[n] for n in range(k)))


def _whole(results: SimpleQueue[Result], pending: dict[int, _Pending], k: int) -> list[Outcome]:
    """Questions that what has come in meanwhile completes."""
    found = []
    while True:
        try:
            place, number, result = results.get_nowait()
        except Empty:
            return found
        if isinstance(result, Chain) and (outcome := _received(pending, place, number, result, k)) is not None:
            found.append(outcome)


def _body(data: Sequence[Sample], place: int, style: PromptStyle, settings: ChainSettings) -> dict[str, Any] | str:
    """The request, or why the question cannot be asked."""
    try:
        sample = data[place]
        check_gold(sample)
        shown = iter([data_uri(image, settings.max_pixels) for image in pictures(sample)])
        messages = [{**turn, "content": _content(turn["content"], shown)} for turn in style(sample).messages]
    except UNASKABLE as error:
        return str(error)
    return {
        "messages": messages,
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
    }


def _content(content: str | Sequence[Mapping[str, Any]], shown: Iterator[str]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    return [
        {"type": "image_url", "image_url": {"url": next(shown)}} if part["type"] == "image" else dict(part)
        for part in content
    ]
