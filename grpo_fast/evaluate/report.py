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
from grpo_fast.evaluate.stats import CONFIDENCE, PAIRED
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
            parts += [f"{PAIRED}.", ""]
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

    def rich_tables(self, width: int = 80) -> list[Table]:
        """For each source one with a section for each facet, or several, whose models fit `width`; lenient columns only
        where they say something else."""
        tables = []
        models = list(dict.fromkeys(row.model for row in self.rows))
        for source in dict.fromkeys(row.source for row in self.rows):
            own = [row for row in self.rows if row.source == source]
            agree = all(row.accuracy == row.lenient_accuracy for row in own)
            each = SHARE_WIDTH + GAP + (0 if agree else len("lenient") + GAP)
            most = max(1, (width - NAME_WIDTH - len("10000") - 3 * GAP) // each)
            for start in range(0, len(models), most):
                shown = models[start : start + most]
                tables.append(_rich_table(source, [row for row in own if row.model in shown], agree))
        return [*tables, _rich_comparisons(self.comparisons)] if self.comparisons else tables


KINDS = ("strict", "lenient")
COMPARED = ("data", "a", "b", "extraction", "n", "a − b", "p")
NAME_WIDTH = 16  # at least, of the groups' names in a terminal
SHARE_WIDTH = len("100.0 [100.0, 100.0]")
GAP = 3  # between columns


def _rich_table(source: str, rows: Sequence[Row], agree: bool) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = Text(f"{source} (strict and lenient extraction agree)" if agree else source)
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("", overflow="fold")
    table.add_column("n", justify="right", no_wrap=True)
    for model in dict.fromkeys(row.model for row in rows):
        name = Text(model, no_wrap=False, overflow="fold")
        table.add_column(name, justify="right", no_wrap=True, max_width=SHARE_WIDTH)
        if not agree:
            table.add_column("lenient", justify="right", no_wrap=True)
    for _, facet, _, body in _tables(rows):
        for group, n, *cells in body:
            shown = cells[::2] if agree else [c.partition(" ")[0] if i % 2 else c for i, c in enumerate(cells)]
            name = f"mean over {TITLES[facet]}" if group == "macro" else group or TITLES[facet]
            table.add_row(*map(Text, [name, n, *shown]))
        table.add_section()
    return table


def _rich_comparisons(comparisons: Sequence[Comparison]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title="differences", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("", overflow="fold")
    for name in ("n", "points", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    said: dict[tuple[str, str, str], Comparison] = {}
    for one in comparisons:
        strict = said.setdefault((one.source, one.a, one.b), one)
        if one is strict or one.paired != strict.paired:
            name = f"{one.source}: {one.a} − {one.b}" + ("" if one is strict else ", lenient")
            table.add_row(*map(Text, [name, *_compared(one)[4:]]))
    return table


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
