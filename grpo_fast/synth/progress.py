"""Questions answered, how many a second, the share of their chains that is good, and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from grpo_fast.evaluate.progress import LINES_EVERY, pace

Progress = Callable[[int, str], None]  # done so far of what this run does; what else to say


@contextmanager
def progress_of(what: str, total: int) -> Iterator[Progress]:
    """A bar in a terminal, a line now and then elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    started = spoken = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[said]}"))
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total, said="")

        def progress(done: int, word: str = "") -> None:
            nonlocal spoken
            now = time.monotonic()
            said = ", ".join(filter(None, [pace(done, total - done, now - started), word]))
            bar.update(task, completed=done, said=said)
            if not console.is_terminal and now - spoken > LINES_EVERY:
                spoken = now
                print(f"{what}: {done}/{total} {said}", file=sys.stderr, flush=True)

        yield progress
