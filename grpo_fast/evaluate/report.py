"""What an evaluation found, as JSON, CSV, Markdown and a table in the terminal."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_fast.errors import RunFailed
from grpo_fast.evaluate.leaks import Leaks
from grpo_fast.evaluate.stats import CONFIDENCE, RESAMPLES
from grpo_fast.evaluate.tables import Comparison, Row

if TYPE_CHECKING:
    from rich.table import Table

NAMED = 20  # ids shown of what can be long; the JSON has them all
TITLES = {
    "overall": "all questions",
    "modality": "modality",
    "question_type": "question type",
    "answer_type": "answer type",
    "training_data": "in the training data",
    "source": "data",
}


@dataclass(frozen=True, slots=True)
class Report:
    settings: Mapping[str, Any]
    rows: Sequence[Row]
    comparisons: Sequence[Comparison]
    leaks: Leaks | None = None
    duplicate_ids: Mapping[str, Mapping[str, int]] | None = None  # by source
    skipped: Mapping[str, Mapping[int, str]] | None = None  # by source: place and reason

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "settings": dict(self.settings),
            "confidence": CONFIDENCE,
            "rows": [asdict(row) for row in self.rows],
            "comparisons": [_flat(one) for one in self.comparisons],
            "duplicate_ids": self.duplicate_ids or {},
            "skipped": self.skipped or {},
        }
        if self.leaks is not None:
            found["in_training_data"] = {
                name: [asdict(one) for one in leaks] for name, leaks in self.leaks.found.items()
            }
            found["not_compared"] = self.leaks.unreadable
        return found

    def write(self, folder: Path) -> list[Path]:
        """results.json, results.csv, comparisons.csv and results.md."""
        texts = {
            "results.json": json.dumps(self.as_json(), indent=1, ensure_ascii=False) + "\n",
            "results.csv": _csv([field.name for field in fields(Row)], (asdict(row) for row in self.rows)),
            "results.md": self.markdown(),
        }
        if self.comparisons:
            flat = [_flat(one) for one in self.comparisons]
            texts["comparisons.csv"] = _csv(list(flat[0]), flat)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in texts.items():
                (folder / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise RunFailed(f"{folder} cannot be written: {error}") from error
        return [folder / name for name in texts]

    def markdown(self) -> str:
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items() if value not in (None, "", []))
        parts = ["# Evaluation", "", settings, ""]
        for source, facet, models, body in _tables(self.rows):
            parts += [f"## {source}: by {TITLES[facet]}" if facet != "overall" else f"## {source}", ""]
            head = [TITLES[facet], "n", *(f"{model}: {kind}" for model in models for kind in KINDS)]
            parts += _markdown_table(head, body)
        if self.comparisons:
            parts += ["## Differences", ""]
            parts += _markdown_table(COMPARED, map(_compared, self.comparisons))
            parts += [f"Paired bootstrap over questions, {RESAMPLES} resamples.", ""]
        parts += [f"Accuracy in %, with {CONFIDENCE:.0%} intervals (Wilson; macro averages: its limits combined).", ""]
        parts += [f"- {note}" for note in self.notes()]
        return "\n".join(parts).rstrip() + "\n"

    def notes(self) -> list[str]:
        found = []
        for source, reasons in (self.skipped or {}).items():
            if reasons:
                found.append(f"{source}: {len(reasons)} questions could not be asked: {_some(reasons.values())}")
        for source, counts in (self.duplicate_ids or {}).items():
            if counts:
                found.append(f"{source}: {len(counts)} ids stand for several questions: {_some(counts)}")
        if self.leaks is not None:
            for source, leaks in self.leaks.found.items():
                ids = f": {_some(leak.id for leak in leaks)}" if leaks else ""
                found.append(f"{source}: {len(leaks)} questions are in the training data{ids}")
            if self.leaks.unreadable:
                found.append(
                    f"{len(self.leaks.unreadable)} pictures could not be compared with the training data: "
                    f"{_some(self.leaks.unreadable)}"
                )
        return found

    def rich_tables(self) -> list[Table]:
        """One for each source, with a section for each facet; lenient columns only where they say something else."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        made: dict[str, Table] = {}
        for source, facet, models, body in _tables(self.rows):
            agree = all(r.accuracy == r.lenient_accuracy for r in self.rows if r.source == source)
            if source not in made:
                title = f"{source} (strict and lenient extraction agree)" if agree else source
                made[source] = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
                made[source].add_column("")
                made[source].add_column("n", justify="right", no_wrap=True)
                for model in models:
                    made[source].add_column(Text(model), justify="right", no_wrap=True)
                    if not agree:
                        made[source].add_column("lenient", justify="right", no_wrap=True)
            for group, n, *cells in body:
                shown = cells[::2] if agree else [c.partition(" ")[0] if i % 2 else c for i, c in enumerate(cells)]
                name = f"mean over {TITLES[facet]}" if group == "macro" else group or TITLES[facet]
                made[source].add_row(*map(Text, [name, n, *shown]))
            made[source].add_section()
        tables = list(made.values())
        if self.comparisons:
            table = Table(*COMPARED, title="differences", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
            for one in self.comparisons:
                table.add_row(*map(Text, _compared(one)))
            tables.append(table)
        return tables


KINDS = ("strict", "lenient")
COMPARED = ("data", "a", "b", "extraction", "n", "a − b", "p")


def _compared(one: Comparison) -> list[str]:
    found = one.paired
    difference = f"{100 * found.difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return [one.source, one.a, one.b, one.extraction, str(found.n), difference, f"{found.p:.4f}"]


def _tables(rows: Sequence[Row]) -> Iterable[tuple[str, str, list[str], list[list[str]]]]:
    """(source, facet, models, body): a line for each group, a pair of cells for each model."""
    models = list(dict.fromkeys(row.model for row in rows))
    for source, facet in dict.fromkeys((row.source, row.facet) for row in rows):
        here = [row for row in rows if (row.source, row.facet) == (source, facet)]
        body = []
        for group in dict.fromkeys(row.group for row in here):
            by_model = {row.model: row for row in here if row.group == group}
            counts = sorted({row.n for row in by_model.values()})
            cells = [group if facet != "overall" else "", "–".join(map(str, counts[:: len(counts) - 1 or 1]))]
            for model in models:
                cells += _cells(by_model.get(model))
            body.append(cells)
        yield source, facet, models, body


def _cells(row: Row | None) -> list[str]:
    if row is None or row.n == 0:
        return ["", ""]
    return [
        _share(row.accuracy, row.low, row.high),
        _share(row.lenient_accuracy, row.lenient_low, row.lenient_high),
    ]


def _share(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _markdown_table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *body]
    return [*("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines), ""]


def _flat(one: Comparison) -> dict[str, Any]:
    found = asdict(one)
    return found | dict(zip(one.paired._fields, found.pop("paired"), strict=True))


def _csv(names: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _some(names: Iterable[str]) -> str:
    every = list(names)
    more = f", and {len(every) - NAMED} more" if len(every) > NAMED else ""
    return ", ".join(every[:NAMED]) + more
