"""The page: sections of tables and cases as HTML, chart data as JSON, style and scripts from this folder.

A Content-Security-Policy with the hashes of exactly these scripts and this style forbids all else,
the network included.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_fast.report.accuracy import (
    OVERALL,
    Groups,
    Row,
    asked_of,
    interval,
    is_complete,
    rows_of_results,
    rows_of_run,
)
from grpo_fast.report.cases import case, filters
from grpo_fast.report.charts import bars, charts_of, histogram
from grpo_fast.report.curves import run_curves
from grpo_fast.report.folder import RunFolder
from grpo_fast.report.markup import Child, Markup, embedded_json, join, tag
from grpo_fast.report.names import label, percent
from grpo_fast.report.samples import SampleIndex, choose, index_samples, late_rollouts, rows_at
from grpo_fast.report.tables import (
    COLOURS,
    accuracy_table,
    count_map,
    environment_table,
    held_out,
    matrix_map,
    overview,
    settings_tables,
    swatch,
)

HERE = Path(__file__).parent
SCRIPTS = ("drawing.js", "lines.js", "bars.js", "charts.js", "page.js")
COLLAPSED = ("Held-out accuracy by group", "Other metrics")
PARTS = {"eval": "held-out, last evaluation", "train": "training rollouts that were recorded"}


class Charts:
    """Gathers chart data; a figure points to its own by number."""

    def __init__(self) -> None:
        self.data: list[dict[str, Any]] = []

    def figure(self, chart: dict[str, Any], title: str, note: str = "") -> Markup:
        self.data.append(chart | {"title": title})
        return tag(
            "figure",
            tag("figcaption", tag("b", title), tag("span", f" {note}", class_="note") if note else None),
            class_="chart wide" if chart.get("wide") else "chart",
            data_chart=len(self.data) - 1,
        )


def build(folders: Sequence[RunFolder], *, cases: int, refresh: float | None = None) -> str:
    """The whole page. The same folders give the same text."""
    runs = [folder for folder in folders if folder.is_run]
    indices = [index_samples(run) for run in runs]
    asked = [asked_of(run, index.last_evaluation) for run, index in zip(runs, indices, strict=True)]
    questions = [one.get((OVERALL, "")) for one in asked]
    curves = [run_curves(run, n) for run, n in zip(runs, questions, strict=True)]
    charts = Charts()
    sections = [
        ("Overview", [overview(runs, questions)] if runs else []),
        ("Curves", _curves(runs, charts_of(curves), charts)),
        ("Accuracy", _accuracy(folders, runs, indices, asked)),
        ("Heat maps", _heat_maps(folders, runs, indices)),
        ("Answer lengths", _lengths(runs, indices, charts)),
        ("Modalities", _modalities(runs, indices, charts)),
        ("Case studies", _cases(runs, indices, cases)),
        ("Settings", settings_tables(runs) if any(run.settings for run in runs) else []),
        ("Environment", [environment_table(runs)] if any(run.summary for run in runs) else []),
        ("Notes", _notes(folders)),
    ]
    phases = [
        [[phase.name, phase.start, phase.end, phase.offset] for phase in one.phases if phase.name] for one in curves
    ]
    data = {"runs": [run.name for run in runs], "phases": phases, "charts": charts.data}
    return _assembled(folders, sections, data, _abstract(runs, questions), refresh)


def _assembled(
    folders: Sequence[RunFolder],
    sections: Sequence[tuple[str, Sequence[Child]]],
    data: dict[str, Any],
    abstract: Sequence[Markup],
    refresh: float | None,
) -> str:
    title = ", ".join(folder.name for folder in folders[:4]) + (", …" if len(folders) > 4 else "")
    kept = [(name, content) for name, content in sections if content]
    style, *scripts = [(HERE / name).read_text(encoding="utf-8") for name in ("report.css", *SCRIPTS)]
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {' '.join(map(_hash, scripts))}; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": tag("span", content=policy)[len("<span ") : -len("></span>")],
        "title": join(title),
        "refresh": Markup(f' data-refresh="{refresh:g}"') if refresh else Markup(""),
        "contents": join(*[tag("a", name, href=f"#{_slug(name)}") for name, _ in kept]),
        "abstract": join(*abstract),
        "main": join(
            *[
                tag("section", tag("h2", name, id=f"{_slug(name)}-title"), *content, id=_slug(name),
                    aria_labelledby=f"{_slug(name)}-title")
                for name, content in kept
            ]
        ),
        "data": embedded_json(data),
        "style": style,
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }  # fmt: skip
    pieces = (HERE / "report.html").read_text(encoding="utf-8").split("@@")
    # every second piece is the name of a part: what is put in is never searched for names again
    return "".join(parts[piece] if place % 2 else piece for place, piece in enumerate(pieces))


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def _slug(name: str) -> str:
    return name.lower().replace(" ", "-")


def _abstract(runs: Sequence[RunFolder], asked: Sequence[int | None]) -> list[Markup]:
    said = []
    for run, n in list(zip(runs, asked, strict=True))[:8]:
        start, end = held_out(run)
        if start is None or end is None:
            continue
        verb = "rose" if end > start else "fell" if end < start else "stayed"
        course = f"from {percent(start)} to {percent(end)} %" if start != end else f"at {percent(end)} %"
        if n:
            low, high = interval(end, n)
            course += f" (n = {n:,}; 95 % interval {percent(low)} to {percent(high)})"
        name = f"{run.name}: held-out" if len(runs) > 1 else "Held-out"
        said.append(tag("p", f"{name} accuracy {verb} {course}{'' if run.summary else ' so far'}."))
    return said


def _curves(runs: Sequence[RunFolder], found: dict[str, list[dict[str, Any]]], charts: Charts) -> list[Markup]:
    if not found:
        return []
    legend = [
        tag("button", swatch(place), run.name, type="button", aria_pressed="true", data_run=place)
        for place, run in enumerate(runs)
    ]
    made = [tag("div", *legend, class_="legend", role="group", aria_label="runs")] if len(runs) > 1 else []
    for section, group in found.items():
        figures = [
            charts.figure(chart, chart["title"], ", ".join(filter(None, (chart["unit"], chart["note"]))))
            for chart in group
        ]
        grid = tag("div", *figures, class_="grid")
        if section in COLLAPSED:
            made.append(tag("details", tag("summary", f"{section} ({len(figures)})"), grid))
        else:
            made.append(join(tag("h3", section), grid))
    return made


def _accuracy(
    folders: Sequence[RunFolder], runs: Sequence[RunFolder], indices: Sequence[SampleIndex], asked: Sequence[Groups]
) -> list[Markup]:
    from grpo_fast.data.names import QUESTION_TYPES

    rows: list[Row] = []
    for run, index, groups in zip(runs, indices, asked, strict=True):
        rows += rows_of_run(run, groups, index.question_types | set(QUESTION_TYPES))
    for folder in folders:
        rows += rows_of_results(folder)
    if not rows:
        return []
    series = list(dict.fromkeys([run.name for run in runs] + [row.series for row in rows]))
    note = "Last evaluation, greedy; n is the number of questions, intervals are at 95 % (Wilson)."
    if any(row.before is not None for row in rows):
        note += " The hollow mark is the first evaluation."
    if any(row.n is None for row in rows):
        note += " While a run goes on it does not tell how many questions it asks: no interval is given yet."
    return [tag("p", note, class_="muted"), accuracy_table(rows, series)]


def _heat_maps(folders: Sequence[RunFolder], runs: Sequence[RunFolder], indices: Sequence[SampleIndex]) -> list[Markup]:
    found = []
    for run, index in zip(runs, indices, strict=True):
        of = f" · {run.name}" if len(runs) > 1 else ""
        if index.last_evaluation and is_complete(run, index.last_evaluation):
            found.append(count_map(f"Held-out accuracy, last evaluation{of}", index.last_evaluation.cells))
        else:
            title = f"Right completions of the recorded training rollouts, last third of the steps{of}"
            found.append(count_map(title, late_rollouts(index)))
    found += [matrix_map(folder, matrix) for folder in folders for matrix in folder.matrices if matrix]
    made = [one for one in found if one]
    return [tag("div", *made, class_="maps")] if made else []


def _lengths(runs: Sequence[RunFolder], indices: Sequence[SampleIndex], charts: Charts) -> list[Markup]:
    figures = []
    for place, (run, index) in enumerate(zip(runs, indices, strict=True)):
        for part, said in PARTS.items():
            if words := index.words.get(part):
                title = (f"{run.name}: " if len(runs) > 1 else "") + said
                figures.append(
                    charts.figure(
                        histogram(words, place % COLOURS), title[:1].upper() + title[1:], f"{len(words):,} answers"
                    )
                )
    if not figures:
        return []
    note = "Words of an answer: all answers light, correct ones dark."
    return [tag("p", note, class_="muted"), tag("div", *figures, class_="grid two")]


def _modalities(runs: Sequence[RunFolder], indices: Sequence[SampleIndex], charts: Charts) -> list[Markup]:
    figures = []
    for run, index in zip(runs, indices, strict=True):
        for part, said in (("train", "training questions"), ("eval", "held-out questions")):
            if counts := index.questions.get(part):
                title = (f"{run.name}: " if len(runs) > 1 else "") + said
                ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
                note = f"{sum(counts.values()):,} distinct"
                rows = [(label(name), count) for name, count in ordered[:24]]
                figures.append(charts.figure(bars(rows), title[:1].upper() + title[1:], note))
    if not figures:
        return []
    note = "Distinct questions among the recorded samples."
    return [tag("p", note, class_="muted"), tag("div", *figures, class_="grid two")]


def _cases(runs: Sequence[RunFolder], indices: Sequence[SampleIndex], wanted: int) -> list[Markup]:
    with_samples = [(run, index) for run, index in zip(runs, indices, strict=True) if index.entries]
    rows = []
    for place, (run, index) in enumerate(with_samples):
        share = wanted * (place + 1) // len(with_samples) - wanted * place // len(with_samples)
        rows += [(run, row) for row in rows_at(run, choose(index, share))]
    if not rows:
        return []
    total = sum(len(index.entries) for _, index in with_samples)
    note = f"{len(rows)} of {total:,} recorded groups, spread over the run." if total > len(rows) else ""
    named = len(with_samples) > 1
    return [
        tag("p", note, class_="muted") if note else Markup(""),
        filters(rows),
        tag("div", *[case(run, row, place, named=named) for place, (run, row) in enumerate(rows)], class_="cases"),
    ]


def _notes(folders: Sequence[RunFolder]) -> list[Markup]:
    said = [f"{folder.name}: {problem}" for folder in folders for problem in dict.fromkeys(folder.problems)]
    return [tag("ul", *[tag("li", one) for one in said])] if said else []
