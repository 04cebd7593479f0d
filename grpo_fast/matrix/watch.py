"""What several trainings at once show: a bar for each in a terminal, a line for each change elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from grpo_fast.matrix.jobs import Done
from grpo_fast.matrix.workers import Watch

LINES_EVERY = 15.0  # seconds


def say(word: str) -> None:
    print(f"grpo-fast: {word}", file=sys.stderr, flush=True)


@contextmanager
def watching() -> Iterator[Watch]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
    if not console.is_terminal:
        yield Lines()
        return
    with Progress(*columns, console=console) as progress:
        yield Bars(progress)


class Bars:
    def __init__(self, progress) -> None:  # rich.progress.Progress, which is imported where it is shown
        self._progress, self._tasks = progress, {}

    def at(self, job: str, doing: str, done: int, total: int) -> None:
        if job not in self._tasks:
            self._tasks[job] = self._progress.add_task(job)
        self._progress.update(self._tasks[job], description=f"{job}: {doing}", completed=done, total=max(total, 1))

    def ended(self, job: str, done: Done | None) -> None:
        if job in self._tasks:
            self._progress.remove_task(self._tasks.pop(job))
        self._progress.console.print(ending(job, done), markup=False, highlight=False)

    def note(self, text: str) -> None:
        self._progress.console.print(text, style="yellow", markup=False, highlight=False)


class Lines:
    def __init__(self) -> None:
        self._doing: dict[str, str] = {}
        self._said: dict[str, float] = {}

    def at(self, job: str, doing: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self._doing.get(job) != doing or now - self._said[job] > LINES_EVERY:
            self._doing[job], self._said[job] = doing, now
            say(f"{job}: {doing} {done}/{total}")

    def ended(self, job: str, done: Done | None) -> None:
        say(ending(job, done))

    def note(self, text: str) -> None:
        say(text)


def ending(job: str, done: Done | None) -> str:
    if done is None:
        return f"{job}: failed"
    asked = [answer for answers in done.answers.values() for answer in answers if not answer.skipped]
    right = sum(answer.strict for answer in asked)
    seconds = done.summary.get("seconds")
    took = [f"trained in {seconds:.0f} s"] if isinstance(seconds, int | float) else []
    share = [f"{100 * right / len(asked):.1f} % of {len(asked)} questions"] if asked else []
    return f"{job}: {', '.join([*took, *share]) or 'is there'}"
