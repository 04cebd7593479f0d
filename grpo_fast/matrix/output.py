"""A matrix as JSON, CSV, Markdown and a table in the terminal."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_fast.evaluate.stats import wilson
from grpo_fast.matrix.study import write
from grpo_fast.matrix.table import Matrix, Value

if TYPE_CHECKING:
    from rich.table import Table

OVERALL, GENERALISATION = "overall", "generalisation"
EMPTY = "–"
ROW_WIDTH = 10  # of the rows' names in a terminal
MEANING = (
    "Overall (all): right answers over questions asked (micro average). Generalisation (others): plain mean of a row's "
    "accuracies on what it was not trained on; of the whole matrix, plain mean of all such cells. Empty cells are left "
    "out of both."
)


def as_json(one: Matrix) -> dict[str, Any]:
    """What the report page draws (title, rows, columns, values, n), and the rest by name."""
    return {
        "title": one.title,
        "by": one.by,
        "rows": one.rows,
        "columns": one.columns,
        "values": one.values,
        "n": one.n,
        "correct": one.correct,
        "difference": one.signed,
        "overall": {
            "average": "micro",
            "rows": dict(zip(one.rows, one.row_overall, strict=True)),
            "columns": dict(zip(one.columns, one.column_overall, strict=True)),
            "all": one.overall,
        },
        "generalisation": {
            "average": "mean over off-diagonal cells",
            "rows": dict(zip(one.rows, one.generalisation, strict=True)),
            "score": one.score,
        },
        "empty_cells": one.empty_cells,
        "empty": one.empty,
    }


def write_matrix(one: Matrix, folder: Path, name: str) -> list[Path]:
    texts = {
        f"{name}.json": json.dumps(as_json(one), indent=1, ensure_ascii=False) + "\n",
        f"{name}.csv": _csv(["trained on", *one.columns, OVERALL, GENERALISATION], _plain(one)),
        f"{name}.md": markdown(one),
    }
    if one.correct is not None:
        texts[f"{name}-cells.csv"] = _csv(
            ["trained_on", "asked_about", "correct", "n", "accuracy", "low", "high"], _long(one)
        )
    for file, text in texts.items():
        write(folder / file, text)
    return [folder / file for file in texts]


def markdown(one: Matrix) -> str:
    head = [f"trained on ↓ asked about → ({unit(one)})", *one.columns, OVERALL, GENERALISATION]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body(one)]
    table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([f"# {one.title}", "", *table, "", *notes(one)]).rstrip() + "\n"


def notes(one: Matrix) -> list[str]:
    found = [f"Generalisation score: {shown(one, one.score)} ({unit(one)}). {MEANING}"]
    if one.empty_cells:
        found.append(f"{one.empty_cells} of {len(one.rows) * len(one.columns)} cells are empty, and in no average.")
    found += [f"- {row} could not be asked: {reason}" for row, reason in one.empty.items()]
    return found


def body(one: Matrix) -> list[list[str]]:
    """A line for each row, one for all rows, one with the number of questions."""
    lines = [
        [name, *(shown(one, value) for value in [*values, overall, general])]
        for name, values, overall, general in zip(
            one.rows, one.values, one.row_overall, one.generalisation, strict=True
        )
    ]
    lines.append([OVERALL, *(shown(one, value) for value in [*one.column_overall, one.overall, one.score])])
    most = [max(line) for line in zip(*one.n, strict=True)]
    return [*lines, ["questions", *map(str, most), str(sum(most)), ""]]


def rich_table(one: Matrix, width: int = 80) -> Table:
    """Eight columns fit `width` characters; words that are too long for that are folded."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = Text(f"{one.title}, {unit(one)}")
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("", overflow="fold", min_width=ROW_WIDTH)
    heads = [*one.columns, "all", "others"]
    most = max(len("100.0"), (width - ROW_WIDTH - 2) // len(heads) - 1)
    for name in heads:
        table.add_column(Text(name.replace("-", " ")), justify="right", overflow="fold", max_width=most)
    lines = body(one)
    for name, *cells in lines[:-2]:
        own = one.columns.index(name) if name in one.columns else -1
        shown_cells = [Text(cell, "bold" if place == own else "") for place, cell in enumerate(cells)]
        table.add_row(Text(name.replace("-", " ")), *shown_cells)
    table.add_section()
    for line in lines[-2:]:
        table.add_row(*map(Text, line))
    return table


def unit(one: Matrix) -> str:
    return "difference in points" if one.signed else "accuracy in %"


def shown(one: Matrix, value: Value) -> str:
    if value is None:
        return EMPTY
    return f"{100 * value + 0.0:+.1f}" if one.signed else f"{100 * value:.1f}"


def _plain(one: Matrix) -> Iterable[Sequence[Any]]:
    for name, values, overall, general in zip(one.rows, one.values, one.row_overall, one.generalisation, strict=True):
        yield [name, *values, overall, general]
    yield [OVERALL, *one.column_overall, one.overall, one.score]


def _long(one: Matrix) -> Iterable[Sequence[Any]]:
    assert one.correct is not None
    for row, rights, asked, values in zip(one.rows, one.correct, one.n, one.values, strict=True):
        for column, right, n, value in zip(one.columns, rights, asked, values, strict=True):
            yield [row, column, right, n, value, *(wilson(right, n) if n else (None, None))]


def _csv(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return text.getvalue()
