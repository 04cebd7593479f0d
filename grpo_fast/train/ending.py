"""The end of a run in words: what was learned, where it lies, what to type next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from grpo_fast.train.progress import duration, figure, percent

if TYPE_CHECKING:
    from rich.console import RenderableType

STAGES = {"start": "start", "sft": "after SFT", "grpo": "after GRPO"}
BEFORE = {"start": "the start", "sft": "SFT"}


def ending(summary: Mapping[str, Any]) -> RenderableType:
    """Reads of the summary, each where it is given:

    accuracy     {start, sft, grpo}, shares        intervals    {start: [low, high], …}, 95 %
    by_modality  {name: {accuracy, intervals}}     seconds, completions_per_second
    model, folder                                  next         {what for: command}
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text("")]
    stages = [stage for stage in STAGES if summary.get("accuracy", {}).get(stage) is not None]
    if stages:
        parts.append(_table(summary, stages))
        if summary.get("intervals"):
            parts.append(Text("in brackets: 95 % interval", "dim"))
        parts.append(Text(""))
    if said := _said(summary, stages):
        parts += [*map(Text, said), Text("")]
    for label, name in (("model", "model"), ("run folder", "folder")):
        if summary.get(name):
            parts.append(Text.assemble((f"{label:<12}", "dim"), (str(summary[name]), "bold")))
    if summary.get("next"):
        parts.append(Text("\nWhat to type next"))
        for purpose, command in summary["next"].items():
            parts += [Text(f"  # {purpose}", "dim"), Text(f"  {command}", "cyan")]
    return Group(*parts)


def _table(summary: Mapping[str, Any], stages: list[str]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("held-out accuracy", max_width=21, no_wrap=True)
    for stage in stages:
        table.add_column(STAGES[stage], justify="right", no_wrap=True)
    modalities = summary.get("by_modality") or {}
    rows = [("all questions", summary), *modalities.items()] if modalities else [("all questions", summary)]
    for name, row in rows:
        intervals = row.get("intervals") or {}
        cells = [_cell(row["accuracy"].get(stage), intervals.get(stage)) for stage in stages]
        table.add_row(Text(str(name)), *cells, style="bold" if row is summary else "")
    return table


def _cell(accuracy: float | None, interval: Any) -> str:
    if accuracy is None:
        return "–"
    if interval is None:
        return percent(accuracy)
    low, high = (f"{100 * end:.0f}" for end in interval)
    return f"{percent(accuracy)} {f'({low}–{high})':>8}"


def _said(summary: Mapping[str, Any], stages: list[str]) -> list[str]:
    accuracy, lines = summary.get("accuracy", {}), []
    if len(stages) > 1:
        last = accuracy[stages[-1]]
        gains = [f"{100 * (last - accuracy[stage]):+.1f} points over {BEFORE[stage]}" for stage in stages[:-1]]
        lines.append(", ".join(gains))
    costs = [f"took {duration(summary['seconds'])}"] if summary.get("seconds") else []
    if summary.get("completions_per_second"):
        costs.append(f"{figure(summary['completions_per_second'])} completions/s")
    return [*lines, ", ".join(costs)] if costs else lines
