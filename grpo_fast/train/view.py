"""What a run shows: a live picture on a terminal, plain lines in a pipe, one JSON object for programs."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from grpo_fast.train.ending import ending
from grpo_fast.train.folder import summary_text
from grpo_fast.train.progress import Progress, duration, figure, machine, pace, percent, speed

if TYPE_CHECKING:
    from grpo_fast.rollout import RolloutStats

WIDTH = 80
PAUSE = 5.0  # seconds between two lines about steps


class View(Protocol):
    def start(self, settings_lines: Sequence[str]) -> None: ...

    def earlier(self, accuracy: Mapping[str, float]) -> None:
        """Held-out accuracy that an interrupted run had reached, by stage."""
        ...

    def phase(self, name: str, total_steps: int, start: int = 0) -> None: ...

    def rollout(self, stats: RolloutStats) -> None: ...

    def asking(self, stats: RolloutStats) -> None:
        """The rollout of an evaluation."""
        ...

    def update(self, done: int, total: int) -> None:
        """Micro-batches of the step's update."""
        ...

    def step(self, step: int, values: Mapping[str, float], timing: Mapping[str, float]) -> None: ...

    def evaluation(self, step: int, values: Mapping[str, float]) -> None: ...

    def note(self, text: str) -> None: ...

    def done(self, summary: Mapping[str, Any]) -> None:
        """Keys that are shown where given: accuracy, intervals, by_modality, seconds, completions_per_second, model,
        folder, next; see `ending`."""
        ...

    def __enter__(self) -> View: ...

    def __exit__(self, *_: object) -> None: ...


def view(json: bool, terminal: bool) -> View:
    """`terminal`: whether stdout is one. One that cannot move its cursor or show bars gets lines."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    if json:
        return Silent(sys.stdout, sys.stderr)
    if terminal:
        from rich.console import Console

        from grpo_fast.train.live import Live

        console = Console(highlight=False, markup=False)
        if not console.is_dumb_terminal and console.encoding.lower().startswith("utf"):
            return Live(console)
    return Lines(sys.stdout)


class Lines:
    """A line for each evaluation and note, and for a step at most every five seconds."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.progress = Progress()
        self._said = -PAUSE

    def start(self, settings_lines: Sequence[str]) -> None:
        for line in settings_lines:
            self._say(line)

    def earlier(self, accuracy: Mapping[str, float]) -> None:
        self.progress.remember(accuracy)

    def phase(self, name: str, total_steps: int, start: int = 0) -> None:
        self.progress.enter(name, total_steps, start)
        self._said = -PAUSE
        begin = f", from step {start} on" if start else ""
        self._say(f"{self.progress.title}: {total_steps} steps{begin}")

    def rollout(self, stats: RolloutStats) -> None: ...

    def asking(self, stats: RolloutStats) -> None: ...

    def update(self, done: int, total: int) -> None: ...

    def step(self, step: int, values: Mapping[str, float], timing: Mapping[str, float]) -> None:
        progress = self.progress
        progress.advance(step, values, timing)
        now = progress.clock()
        if step < progress.total and now - self._said < PAUSE:
            return
        self._said = now
        self._say(_fitting([f"{progress.title} {step}/{progress.total}", *_parts(progress)]))

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        progress = self.progress
        progress.evaluated(step, values)
        start, best = progress.evaluations[0], progress.best
        when = f" after {progress.title} step {step}" if progress.phase else ""
        since = f" (start {percent(start.accuracy)}, best {percent(best.accuracy)})"
        now = progress.evaluations[-1].accuracy
        self._say(f"held-out accuracy{when}: {percent(now)}{since if len(progress.evaluations) > 1 else ''}")

    def note(self, text: str) -> None:
        self._say(text)

    def done(self, summary: Mapping[str, Any]) -> None:
        from rich.console import Console

        console = Console(file=self.out, width=WIDTH, color_system=None, force_terminal=False, highlight=False)
        console.print(ending(summary), soft_wrap=True)
        self.out.flush()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None: ...

    def _say(self, line: str) -> None:
        """Where nobody reads any more (a pipe's end closed, a log's disk full) the run ends as after Ctrl-C: saved."""
        try:
            print(line, file=self.out, flush=True)
        except OSError as error:
            with suppress(OSError):
                print(f"grpo-fast: the output cannot be written ({error.strerror}): the run ends", file=sys.stderr)
            with open(os.devnull, "w") as null:  # for what is still in the buffer, and for what follows
                os.dup2(null.fileno(), self.out.fileno())
            signal.raise_signal(signal.SIGINT)


class Silent(Lines):
    """Nothing but the summary as JSON; notes go to stderr."""

    def __init__(self, out: TextIO, notes: TextIO) -> None:
        super().__init__(out)
        self.notes = notes

    def note(self, text: str) -> None:
        print(text, file=self.notes, flush=True)

    def done(self, summary: Mapping[str, Any]) -> None:
        self.out.write(summary_text(summary))
        self.out.flush()

    def _say(self, line: str) -> None: ...


def _parts(progress: Progress) -> list[str]:
    """The most telling first: what does not fit is left out."""
    values, left, each = progress.values, progress.seconds_left(), progress.seconds_per_step()
    rewards = [f"{name.partition('/')[2]} {figure(x)}" for name, x in values.items() if name.startswith("reward/")]
    named = [("reward", "reward"), ("kl", "KL"), ("length", "length"), ("entropy", "entropy")]
    found = [f"{label} {figure(values[name])}" for name, label in named if name in values]
    if "reward" not in values:
        found = [f"loss {figure(values['loss'])}"] if "loss" in values else []
    when = [f"{duration(left)} left"] if left is not None else []
    how_fast = [pace(each)] if each is not None else []
    return [*found[:1], *when, *rewards, *how_fast, *found[1:], speed(progress.timing), machine(progress.timing)]


def _fitting(parts: Sequence[str]) -> str:
    line = parts[0]
    for part in parts[1:]:
        if part and len(line) + 2 + len(part) <= WIDTH:
            line += f"  {part}"
    return line
