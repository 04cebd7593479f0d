"""Questions answered, how many a second, and the time left: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINES_EVERY = 30.0  # seconds


@contextmanager
def progress_of(model: str, totals: dict[str, int]) -> Iterator[Callable[[str, int, int], None]]:
    """What `evaluate_model` calls with a source, how many of its questions are answered, and how many of those were
    found on disk (they say nothing of the rate)."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    started: dict[str, float] = {}
    spoken = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks = {name: bar.add_task(escape(f"{model}: {name}"), total=total, pace="") for name, total in totals.items()}

        def progress(source: str, done: int, found: int) -> None:
            nonlocal spoken
            now = time.monotonic()
            said = pace(done - found, totals[source] - done, now - started.setdefault(source, now))
            bar.update(tasks[source], completed=done, pace=said)
            if not console.is_terminal and now - spoken > LINES_EVERY:
                spoken = now
                print(f"{model}: {source}: {done}/{totals[source]} {said}", file=sys.stderr, flush=True)

        yield progress


def pace(done: int, left: int, seconds: float) -> str:
    if done < 1 or seconds <= 0:
        return ""
    remaining = round(left * seconds / done)
    hours, rest = divmod(remaining, 3600)
    clock = f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
    return f"{done / seconds:.1f} a second, {clock} left"
