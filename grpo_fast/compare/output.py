"""A comparison as JSON, CSV, Markdown and tables in the terminal."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_fast.compare.plan import STAGES, Seed
from grpo_fast.compare.result import SEEN, UNSEEN, Line, Part, differences, evaluation_rows, lengths, lines, verdict
from grpo_fast.evaluate.report import Report
from grpo_fast.evaluate.sources import ALL
from grpo_fast.evaluate.stats import CONFIDENCE, PAIRED
from grpo_fast.evaluate.tables import Comparison
from grpo_fast.matrix.study import write

if TYPE_CHECKING:
    from rich.table import Table

MEANING = (
    f"Accuracy in %, answers of all seeds together, with Wilson's {CONFIDENCE:.0%} interval; ± is the standard "
    f"deviation of the seeds' own accuracies. {PAIRED}; "
    "over all seeds it holds the trained models fixed, so look at the single seeds too."
)
COMPARED = ("data", "seed", "difference", "n", "points", "p")


@dataclass(frozen=True, slots=True)
class Comparing:
    seeds: Sequence[Seed]
    found: Mapping[str, Part]
    lines: Sequence[Line]
    differences: Mapping[str, Sequence[Comparison]]
    skipped: int
    settings: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        return {
            "settings": dict(self.settings),
            "budget": {str(one.number): asdict(one.budget) for one in self.seeds},
            "left_out": {str(one.number): one.left_out for one in self.seeds},
            "confidence": CONFIDENCE,
            "lines": [asdict(line) for line in self.lines],
            "differences": [
                {"part": part, "seed": _seed(one), "a": one.a, "b": one.b, "extraction": one.extraction,
                 **one.paired._asdict()}
                for part, every in self.differences.items() for one in every
            ],
            "lengths": {part: lengths(own) for part, own in self.found.items()},
            "skipped": self.skipped,
            "verdict": self.verdict(),
        }  # fmt: skip

    def verdict(self) -> list[str]:
        return verdict(self.lines, self.differences)

    def notes(self) -> list[str]:
        found = [*self.seeds[0].budget.lines()]
        for one in self.seeds:
            if one.left_out:
                cells = ", ".join(" × ".join(cell) for cell in one.left_out)
                found.append(f"seed {one.number} was trained without {cells}")
        if self.skipped:
            found.append(f"{self.skipped} answers are missing: their questions could not be asked")
        return found

    def write(self, folder: Path) -> list[Path]:
        """Also results.json as `grpo-fast eval` writes it, for the report page."""
        texts = {
            "comparison.json": json.dumps(self.as_json(), indent=1, ensure_ascii=False) + "\n",
            "comparison.csv": self._csv(),
            "comparison.md": self.markdown(),
        }
        for name, text in texts.items():
            write(folder / name, text)
        report = Report(self.settings, evaluation_rows(self.found), [])
        return [folder / name for name in texts] + report.write(folder)

    def markdown(self) -> str:
        said = ["# Baseline, SFT and RL", "", *(f"- {note}" for note in self.notes()), ""]
        said += [f"- {text}" for text in self.verdict()]
        said += ["", "| | " + " | ".join(STAGES) + " |", "| --- |" + " ---: |" * len(STAGES)]
        said += ["| " + " | ".join(line) + " |" for line in self.body()]
        said += ["", "| " + " | ".join(COMPARED) + " |", "| --- " * len(COMPARED) + "|"]
        said += ["| " + " | ".join(line) + " |" for line in self.compared()]
        return "\n".join([*said, "", MEANING]) + "\n"

    def body(self, digits: int = 1) -> list[list[str]]:
        """A line for each part, modality and question type, a cell for each stage; `digits` of the intervals."""
        groups: dict[tuple[str, str, str], dict[str, Line]] = {}
        for line in self.lines:
            groups.setdefault((line.part, line.facet, line.group), {})[line.stage] = line
        return [
            [f"{part}: {group}" if group else part, *(_share(own.get(stage), digits) for stage in STAGES)]
            for (part, _, group), own in groups.items()
        ]

    def compared(self) -> list[list[str]]:
        """Strict extraction; the JSON has the lenient one too."""
        return [
            [part, str(_seed(one)), f"{one.a} − {one.b}", str(p.n),
             f"{100 * p.difference:+.1f} [{100 * p.low:+.1f}, {100 * p.high:+.1f}]", f"{p.p:.4f}"]
            for part, every in self.differences.items() for one in every
            if one.extraction == "strict" and (p := one.paired)
        ]  # fmt: skip

    def rich_tables(self) -> list[Table]:
        from rich import box
        from rich.table import Table

        accuracy = Table("", title="accuracy in %", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for stage in STAGES:
            accuracy.add_column(stage, justify="right", no_wrap=True)
        for name, *cells in self.body(digits=0):
            accuracy.add_row(name.replace("-", " "), *cells)  # so that it can wrap
        compared = Table(title="differences", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for name in COMPARED:
            compared.add_column(name, no_wrap=name == "points")
        for row in self.compared():
            if row[1] == ALL or len(self.seeds) == 1:
                compared.add_row(*row)
        return [accuracy, compared]

    def _csv(self) -> str:
        names = [field.name for field in fields(Line) if field.name != "seeds"]
        numbers = [one.number for one in self.seeds]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*names, *(f"seed_{number}" for number in numbers)])
        for line in self.lines:
            writer.writerow([*(getattr(line, name) for name in names), *(line.seeds.get(one) for one in numbers)])
        return text.getvalue()


def comparing(seeds: Sequence[Seed], found: Mapping[str, Part], settings: Mapping[str, Any], seed: int) -> Comparing:
    skipped = sum(
        bool(a.skipped)
        for name, part in found.items() if name not in (SEEN, UNSEEN)
        for given in part.values() for a in given
    )  # fmt: skip
    return Comparing(seeds, found, lines(found), differences(found, seed), skipped, settings)


def _seed(one: Comparison) -> str:
    return one.source.removeprefix("seed ")


def _share(line: Line | None, digits: int) -> str:
    if line is None:
        return "–"
    spread = "" if line.spread is None else f" ±{100 * line.spread:.1f}"
    return f"{100 * line.accuracy:.1f} [{100 * line.low:.{digits}f}, {100 * line.high:.{digits}f}]{spread}"
