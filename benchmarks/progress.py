"""A progress bar on stderr with the time left; a line for each step where stderr is not a terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bar = Bar(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            speed_estimate_period=120,
        )
        self._task = self._bar.add_task("", total=0)
        self._total = 0
        self._start = time.monotonic()

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def expect(self, steps: int) -> None:
        self._total += steps
        self._bar.update(self._task, total=self._total)

    def say(self, what: str) -> None:
        self._bar.update(self._task, description=what)
        if self._bar.disable:
            seconds = time.monotonic() - self._start
            print(f"{seconds:5.0f} s  {what}", file=sys.stderr, flush=True)

    def tick(self) -> None:
        self._bar.advance(self._task)
