"""Statistics as bars in the terminal, and as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_fast.data.stats import Stats
from grpo_fast.errors import BadSettings

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 12  # bars of one group


def show(stats: Stats, console: Console) -> None:
    from rich.table import Table

    console.print(
        f"{stats.records} records, {stats.bad} of them bad; {stats.responses} with a response to imitate",
        highlight=False,
    )
    by_type = stats.by(1)
    table = Table(title="records by modality and question type", title_justify="left")
    table.add_column("modality", no_wrap=True, min_width=max(map(len, (*stats.by(0), "modality"))))
    for question_type in by_type:
        table.add_column(question_type.replace("-", " "), justify="right")  # so that it can wrap
    table.add_column("all", justify="right")
    for modality, total in stats.by(0).items():
        cells = [str(stats.cells[modality, question_type] or "–") for question_type in by_type]
        table.add_row(modality, *cells, str(total))
    table.add_row("all", *map(str, by_type.values()), str(by_type.total()), style="bold")
    console.print(table)
    _bars("modality", stats.by(0), console)
    _bars("question type", stats.by(1), console)
    _bars("answer", dict(stats.answers.most_common(SHOWN)), console, left=len(stats.answers) - SHOWN)
    _bars("images of a question", {str(n): count for n, count in sorted(stats.images.items())}, console)
    _bars("words of a question", _binned(stats.words), console)
    found = stats.as_dict()
    for name in ("image_width", "image_height"):
        if values := found[name]:
            said = ", ".join(f"{key} {value:g}" for key, value in values.items())
            console.print(f"{name.replace('_', ' ')}: {said} ({len(stats.sizes)} images opened)", highlight=False)
    if stats.unreadable_images:
        console.print(f"{stats.unreadable_images} of the images opened cannot be read: grpo-fast data check --images")


def draw(stats: Stats, path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BadSettings("--chart needs matplotlib: pip install matplotlib") from error
    by_modality, by_type = stats.by(0), stats.by(1)
    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    done = [0] * len(by_modality)
    for question_type in by_type:
        counts = [stats.cells[modality, question_type] for modality in by_modality]
        axes[0, 0].barh(list(by_modality), counts, left=done, label=question_type)
        done = [one + more for one, more in zip(done, counts, strict=True)]
    axes[0, 0].invert_yaxis()
    axes[0, 0].legend(fontsize="small")
    axes[0, 0].set(title="modality and question type", xlabel="records")
    answers = dict(stats.answers.most_common(SHOWN))
    axes[0, 1].bar([_short(answer) for answer in answers], list(answers.values()))
    axes[0, 1].tick_params(axis="x", rotation=30)
    axes[0, 1].set(title="answers", ylabel="records")
    words = sorted(stats.words)
    axes[1, 0].hist(words, bins=min(40, len(words)) or 1, weights=[stats.words[count] for count in words])
    axes[1, 0].set(title="question length", xlabel="words", ylabel="records")
    axes[1, 1].scatter([w for w, _ in stats.sizes], [h for _, h in stats.sizes], s=12, alpha=0.5)
    axes[1, 1].set(title=f"image sizes ({len(stats.sizes)} opened)", xlabel="width", ylabel="height")
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise BadSettings(f"--chart {path}: {error}") from error


def _bars(title: str, counts: Mapping[str, int], console: Console, left: int = 0) -> None:
    from rich.bar import Bar
    from rich.table import Table

    if not counts:
        return
    table = Table.grid(padding=(0, 1))
    top = max(counts.values())
    for name, count in list(counts.items())[:SHOWN]:
        table.add_row(_short(name), f"{count}", Bar(top, 0, count, width=40))
    console.print(f"\n[bold]{title}[/]")
    console.print(table)
    if left > 0:
        console.print(f"and {left} more", highlight=False)


def _binned(counts: Mapping[int, int]) -> dict[str, int]:
    if not counts:
        return {}
    low, high = min(counts), max(counts)
    width = max(1, -(-(high - low + 1) // SHOWN))
    bins: dict[str, int] = {}
    for start in range(low, high + 1, width):
        name = str(start) if width == 1 else f"{start}–{start + width - 1}"
        bins[name] = sum(counts.get(value, 0) for value in range(start, start + width))
    return bins


def _short(text: str) -> str:
    from rich.markup import escape

    line = " ".join(text.split())
    return escape(line if len(line) <= 32 else line[:31] + "…")
