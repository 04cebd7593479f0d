"""The live picture of a run on a terminal: at most 80 columns of trends and 22 lines, redrawn in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import RLock
from typing import TYPE_CHECKING, Any

import rich.live
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from grpo_fast.train.ending import ending
from grpo_fast.train.progress import (
    PHASES,
    WINDOW,
    Doing,
    Progress,
    Trend,
    duration,
    figure,
    machine,
    pace,
    percent,
    speed,
)

if TYPE_CHECKING:
    from grpo_fast.rollout import RolloutStats

WIDEST = 100
TALLEST = 22  # so that a prompt and a line above fit on 24
NAME = 19
NOW = 11
PER_SECOND = 2  # a picture costs about 7 ms of a core
SHARES = {"clipped", "truncated", "groups_without_spread"}
LABELS = {
    "loss": "loss",
    "grad_norm": "gradient norm",
    "kl": "KL",
    "entropy": "entropy",
    "clipped": "clipped",
    "length": "length",
    "truncated": "cut at the limit",
    "groups_without_spread": "zero-spread groups",
}
OF_SFT_ALONE = {"loss", "grad_norm"}  # under GRPO the loss is about zero whatever happens


class Live:
    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress()
        self._lock = RLock()  # the picture is drawn by a thread
        self._live = rich.live.Live(
            get_renderable=self.picture, console=console, refresh_per_second=PER_SECOND, vertical_overflow="crop"
        )

    def start(self, settings_lines: Sequence[str]) -> None:
        for line in settings_lines:
            self.console.print(line)
        self._live.start()

    def earlier(self, accuracy: Mapping[str, float]) -> None:
        with self._lock:
            self.progress.remember(accuracy)

    def phase(self, name: str, total_steps: int, start: int = 0) -> None:
        self._tell_phase()
        with self._lock:
            self.progress.enter(name, total_steps, start)

    def rollout(self, stats: RolloutStats) -> None:
        scoring = stats.finished >= stats.completions
        self.progress.doing = Doing("scoring") if scoring else _sampling("rollout", stats)

    def asking(self, stats: RolloutStats) -> None:
        self.progress.doing = _sampling("held-out", stats)

    def update(self, done: int, total: int) -> None:
        self.progress.doing = Doing("update", done, total)

    def step(self, step: int, values: Mapping[str, float], timing: Mapping[str, float]) -> None:
        with self._lock:
            self.progress.advance(step, values, timing)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        with self._lock:
            self.progress.evaluated(step, values)

    def note(self, text: str) -> None:
        self.console.print(Text(text, "dim"))

    def done(self, summary: Mapping[str, Any]) -> None:
        self._stop()
        self.console.print(ending(summary), soft_wrap=True)

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        """The last picture stays, without what was going on within a step."""
        if self._live.is_started:
            self.progress.doing = None
            self._live.stop()

    def _tell_phase(self) -> None:
        progress = self.progress
        if not progress.phase:
            return
        steps = progress.step - progress.first
        said = f"{progress.title}: {steps} steps in {duration(progress.clock() - progress.began)}"
        if progress.evaluations:
            said += f", held-out accuracy {percent(progress.evaluations[-1].accuracy)}"
        self.console.print(said)

    def picture(self) -> RenderableType:
        with self._lock:
            width = min(self.console.width - 1, WIDEST)
            table, below = self._trends(width), self._below(width)
            parts: list[RenderableType] = [Text(""), self._bars(width), Text("")]
            room = min(self.console.height - 1, TALLEST) - 4 - len(below)
            if self.progress.evaluations:
                parts += [_grid(width, [self._accuracy(width)]), Text("")]
                room -= 2
            if table:
                parts.append(_grid(width, table[: max(room, 0)]))
            return Group(*parts, *below)

    def _bars(self, width: int) -> Table:
        """The phase, and below it what goes on within a step."""
        progress, now = self.progress, self.progress.doing or Doing("")
        roomy = width > 70
        right = (9, 13, 12) if roomy else (9, 12)  # steps, pace, time left
        size = max(width - len("held-out") - sum(right) - 2 * (len(right) + 1), 6)
        grid = Table.grid(padding=(0, 2, 0, 0))
        for one in (len("held-out"), size):
            grid.add_column(width=one, no_wrap=True)
        for one in right:
            grid.add_column(width=one, no_wrap=True, justify="right")

        def add(name: str, done: int, total: int, rate: str, left: str, style: str) -> None:
            bar = ProgressBar(total, done, size, complete_style=f"{style} cyan", finished_style=f"{style} cyan")
            cells = [name, bar if total else "", f"{done}/{total}" if total else "", *([rate] if roomy else []), left]
            grid.add_row(*(Text(cell, style) if isinstance(cell, str) else cell for cell in cells))

        each, left = progress.seconds_per_step(), progress.seconds_left()
        when = f"{duration(left)} left" if left is not None else ""
        add(progress.title or "ready", progress.step, progress.total, pace(each) if each else "", when, "bold")
        add(now.name, now.done, now.total, now.pace, "", "dim")
        return grid

    def _accuracy(self, width: int) -> tuple[Text, Text, Text]:
        evaluations, best = self.progress.evaluations, self.progress.best
        trend = Trend()
        for one in evaluations:
            trend.add(one.accuracy)
        since = Text.assemble((trend.line(10) if width > 70 else "", "green"))
        if len(evaluations) > 1:
            where = f" at {PHASES.get(best.phase, best.phase)} {best.step}" if best.phase and width > 88 else ""
            first = evaluations[0].accuracy
            since.append(f"  start {percent(first)}, best {percent(best.accuracy)}{where}", "dim")
        return Text("held-out accuracy", "bold"), Text(percent(evaluations[-1].accuracy), "bold green"), since

    def _trends(self, width: int) -> list[tuple[Text, Text, Text]]:
        values, trends = self.progress.values, self.progress.trends
        room = min(WINDOW, width - NAME - NOW - 6)
        found: list[tuple[Text, Text, Text]] = []

        def row(name: str, label: str, style: str) -> None:
            now = percent(values[name]) if name in SHARES else figure(values[name])
            line = trends[name].line(room) if room >= 8 else ""
            found.append((Text(label), Text(now, style), Text(line, "cyan" if style else "dim cyan")))

        if "reward" in values:
            row("reward", "reward", "bold")
        for name in values:
            if name.startswith("reward/"):
                row(name, f"  {name.partition('/')[2]}", "")
        for name, label in LABELS.items():
            if name in values and not (name in OF_SFT_ALONE and "reward" in values):
                row(name, label, "")
        return found

    def _below(self, width: int) -> list[RenderableType]:
        timing = self.progress.timing
        gpu = "GPU" if "gpu_memory_mb" in timing else "memory"
        told = [(label, said) for label, said in (("speed", speed(timing)), (gpu, machine(timing))) if said]
        lines = [Text(f"{label:<{NAME + 2}}{said}", "dim") for label, said in told]
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        return [Text(""), *lines] if lines else []


def _grid(width: int, rows: Sequence[tuple[Text, Text, Text]]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=NAME, no_wrap=True, overflow="ellipsis")
    grid.add_column(width=NOW, no_wrap=True, justify="right")
    grid.add_column(width=max(width - NAME - NOW - 6, 1), no_wrap=True, overflow="ellipsis")
    for one in rows:
        grid.add_row(*one)
    return grid


def _sampling(name: str, stats: RolloutStats) -> Doing:
    return Doing(name, stats.finished, stats.completions, f"{figure(stats.tokens_per_second)} tokens/s")
