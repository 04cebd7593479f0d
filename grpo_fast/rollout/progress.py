"""A bar on stderr while a rollout runs: completions done, tokens so far and a second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from grpo_fast.rollout.engine import RolloutStats, Watch


@contextmanager
def progress_bar() -> Iterator[Watch]:
    """Something to give to `Engine.generate(watch=…)`; silent where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def watch(stats: RolloutStats) -> None:
            said = f"{stats.sampled_tokens} tokens, {stats.tokens_per_second:.0f} a second"
            bar.update(task, total=stats.completions, completed=stats.finished, description=said)

        yield watch
