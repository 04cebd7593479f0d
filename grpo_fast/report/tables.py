"""Tables: overview, accuracies with intervals, heat maps, settings, environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_fast.report.accuracy import MEAN, MODALITY, OVERALL, QUESTION_TYPE, Count, Row, evaluations_of
from grpo_fast.report.folder import RunFolder, items, number, text
from grpo_fast.report.markup import Child, Markup, join, tag
from grpo_fast.report.names import compact, duration, label, percent, signed
from grpo_fast.report.settings import defaults, flattened, shown

COLOURS = 7
HEADINGS = {
    OVERALL: "All questions",
    MODALITY: "By modality",
    QUESTION_TYPE: "By question type",
    "answer_type": "By answer type",
    "training_data": "By whether the training data hold the question",
    "source": "By data",
}
MOST_CELLS = 4000  # of a heat map


def table(head: Sequence[Child], body: Sequence[Child], caption: Child = None, class_: str = "") -> Markup:
    columns = [
        one if isinstance(one, Markup) and one.startswith("<th") else tag("th", one, scope="col") for one in head
    ]
    return tag(
        "div",
        tag(
            "table", tag("caption", caption) if caption else None, tag("thead", tag("tr", *columns)),
            tag("tbody", *body), class_=class_ or None,
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption if isinstance(caption, str) else "table",
    )  # fmt: skip


def over_numbers(name: str, more: str = "") -> Markup:
    return tag("th", name, scope="col", class_=f"num {more}".strip())


def swatch(place: int) -> Markup:
    return tag("span", class_=f"swatch s{place % COLOURS}", aria_hidden="true")


def accuracy_table(rows: Sequence[Row], series: Sequence[str]) -> Markup:
    several, with_before = len(series) > 1, any(row.before is not None for row in rows)
    numbers = [over_numbers("n")]
    numbers += [over_numbers("First, %", "spare")] if with_before else []
    numbers += [over_numbers("Accuracy, %"), over_numbers("95 % interval")]
    numbers += [over_numbers("Change", "spare")] if with_before else []
    scale = tag(
        "th", tag("div", *[tag("span", one) for one in ("0", "50", "100 %")], class_="scale"), class_="whiskers"
    )
    head: list[Child] = ["", *([""] if several else []), *numbers, scale]
    places = {name: place for place, name in enumerate(series)}
    facets = sorted({row.facet for row in rows}, key=lambda one: [*HEADINGS, one].index(one))
    order = sorted(
        rows, key=lambda row: (facets.index(row.facet), row.group == MEAN, row.group, places.get(row.series, 0))
    )
    body, last_facet, last_group = [], "", None
    for row in order:
        if row.facet != last_facet and row.facet != OVERALL:
            body.append(
                tag(
                    "tr",
                    tag("th", HEADINGS.get(row.facet, label(row.facet)), colspan=len(head), scope="rowgroup"),
                    class_="rowgroup",
                )
            )
        first = (row.facet, row.group) != (last_facet, last_group)
        last_facet, last_group = row.facet, row.group
        name = HEADINGS[OVERALL] if row.facet == OVERALL else label(row.group)
        gain = None if row.accuracy is None or row.before is None else 100 * (row.accuracy - row.before)
        cells = [tag("th", name if first else "", scope="row")]
        cells += [tag("td", swatch(places[row.series]), row.series, class_="series")] if several else []
        cells += [tag("td", "–" if row.n is None else f"{row.n:,}", class_="num")]
        cells += [tag("td", percent(row.before), class_="num spare")] if with_before else []
        cells += [
            tag("td", tag("strong", percent(row.accuracy)), class_="num"),
            tag("td", "–" if row.low is None else f"{percent(row.low)} – {percent(row.high)}", class_="num"),
        ]
        cells += [tag("td", signed(gain, 1), class_="num spare")] if with_before else []
        graph = tag("td", whiskers(row, places[row.series]), class_="whiskers")
        body.append(tag("tr", *cells, graph, class_=None if first else "more"))
    return table(head, body, class_="accuracy several" if several else "accuracy")


def whiskers(row: Row, place: int) -> Markup:
    """From 0 to 100 %: the interval as a bar, the accuracy as a dot, where it began as a hollow one."""
    assert row.accuracy is not None
    marks = [tag("line", x1="0%", x2="100%", y1=8, y2=8, class_="track")]
    if row.low is not None and row.high is not None:
        marks.append(tag("line", x1=_at(row.low), x2=_at(row.high), y1=8, y2=8, class_="interval"))
    if row.before is not None:
        marks.append(tag("circle", cx=_at(row.before), cy=8, r=3, class_="before"))
    marks.append(tag("circle", cx=_at(row.accuracy), cy=8, r=3.6, class_="dot"))
    return tag("svg", *marks, class_=f"s{place % COLOURS}", aria_hidden="true")


def _at(share: float) -> str:
    return f"{100 * min(1.0, max(0.0, share)):.1f}%"


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[str, str], Any],
    *,
    differences: bool = False,
) -> Markup:
    """Cells are (value, n or None); shares are shown in percent, and a map with negative ones as differences."""
    values = [value for value, _ in cells.values() if value is not None]
    scale = 100.0 if all(abs(value) <= 1 for value in values) else 1.0
    differences = differences or any(value < 0 for value in values)
    reach = max((abs(value * scale) for value in values), default=1.0) or 1.0 if differences else 100.0
    body = []
    for row in rows:
        drawn = [tag("th", label(row), scope="row")]
        for column in columns:
            value, n = cells.get((row, column), (None, None))
            if value is None:
                drawn.append(tag("td", "–", class_="none"))
                continue
            level = min(20, round(20 * abs(value * scale) / reach))
            said = signed(value * scale, 1) if differences else f"{value * scale:.0f}"
            drawn.append(
                tag(
                    "td", said, tag("small", f"n {n:,.0f}") if n is not None else None,
                    class_=f"h{level}{' below' if value < 0 else ''}",
                    title=f"{label(row)} × {label(column)}: {value * scale:.2f}" + (f", n = {n:.0f}" if n else ""),
                )
            )  # fmt: skip
        body.append(tag("tr", *drawn))
    unit = "difference in points" if differences else "%"
    head = [Markup(""), *[tag("span", label(column)) for column in columns]]
    return tag("figure", table(head, body, f"{title}, {unit}", "heat"), class_="heatmap")


def count_map(title: str, counts: Mapping[tuple[str, str], Count]) -> Markup | None:
    """Accuracy by modality (rows) and question type (columns)."""
    rows, columns = sorted({row for row, _ in counts}), sorted({column for _, column in counts})
    if not rows or len(rows) * len(columns) > MOST_CELLS:
        return None
    return heat_map(title, rows, columns, {key: (one.accuracy, one.n) for key, one in counts.items()})


def matrix_map(folder: RunFolder, matrix: dict[str, Any]) -> Markup | None:
    """A matrix file: rows, columns, values and, as one number or for each cell, n."""
    rows, columns = (
        [text(one) for one in items(matrix.get("rows"))],
        [text(one) for one in items(matrix.get("columns"))],
    )
    values, counts = items(matrix.get("values")), matrix.get("n")
    fits = len(values) == len(rows) and all(len(items(line)) == len(columns) for line in values)
    if not rows or not columns or not fits or len(rows) * len(columns) > MOST_CELLS:
        folder.problems.append("a matrix file whose rows, columns and values do not fit together was left out")
        return None
    cells = {}
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            cells[row, column] = (number(values[i][j]), _count(counts, i, j))
    title = text(matrix.get("title")) or f"{folder.name}: rows trained on, columns asked"
    return heat_map(title, rows, columns, cells, differences=matrix.get("difference") is True)


def _count(counts: Any, i: int, j: int) -> float | None:
    for place in (i, j):
        if isinstance(counts, list):
            counts = counts[place] if place < len(counts) else None
    return number(counts)


def overview(runs: Sequence[RunFolder], asked: Sequence[int | None]) -> Markup:
    body = []
    for place, (run, n) in enumerate(zip(runs, asked, strict=True)):
        start, end = held_out(run)
        model = text(flattened(run.settings).get("model")) or "–"
        cells = [
            tag("th", swatch(place) if len(runs) > 1 else None, run.name, scope="row"),
            tag("td", model),
            tag("td", "finished" if run.summary else "not finished"),
            tag("td", _steps(run) or "–", class_="num"),
            tag("td", percent(start), class_="num"),
            tag("td", tag("strong", percent(end)), class_="num"),
            tag("td", "–" if n is None else f"{n:,}", class_="num"),
            tag("td", duration(number(run.summary.get("seconds"))), class_="num"),
            tag("td", compact(number(run.summary.get("completions_per_second"))), class_="num"),
        ]
        body.append(tag("tr", *cells))
    numbers = ("Steps", "First, %", "Last, %", "Asked", "Time", "Completions / s")
    head = ["Run", "Model", "State", *map(over_numbers, numbers)]
    return table(head, body, "Held-out accuracy, first and last")


def _steps(run: RunFolder) -> str:
    """The last step of each phase of training."""
    last: dict[str, float] = {}
    for row in run.metrics:
        phase, step = text(row.get("phase")), number(row.get("step"))
        if step is not None and phase != "eval":
            last[phase] = max(step, last.get(phase, step))
    return ", ".join(f"{label(phase)} {compact(step)}".strip() for phase, step in last.items())


def held_out(run: RunFolder) -> tuple[float | None, float | None]:
    """Accuracy at the first and at the last evaluation."""
    looks = evaluations_of(run)
    return (looks[0]["accuracy"], looks[-1]["accuracy"]) if looks else (None, None)


def settings_tables(runs: Sequence[RunFolder]) -> list[Markup]:
    """What differs from the defaults, or between the runs; then all of it."""
    flat, usual = [flattened(run.settings) for run in runs], defaults()
    names = list(dict.fromkeys(name for one in flat for name in one))
    missing = object()
    changed = [
        name for name in names
        if any(one.get(name, missing) != usual.get(name, missing) for one in flat if name in one)
        or len({shown(one.get(name)) for one in flat}) > 1
    ]  # fmt: skip
    head = [
        "Setting",
        *[join(swatch(i), run.name) if len(runs) > 1 else "Value" for i, run in enumerate(runs)],
        "Default",
    ]

    def lines(chosen: Sequence[str]) -> list[Markup]:
        return [
            tag(
                "tr", tag("th", tag("code", name), scope="row"),
                *[tag("td", shown(one[name]) if name in one else "–", class_="value") for one in flat],
                tag("td", shown(usual[name]) if name in usual else "no such default", class_="muted value"),
            )
            for name in chosen
        ]  # fmt: skip

    found = [
        table(head, lines(changed), "Differences from the defaults" + (", or between runs" if len(runs) > 1 else ""))
    ]
    rest = [name for name in names if name not in changed]
    if rest:
        found.append(
            tag("details", tag("summary", f"{len(rest)} settings at their defaults"), table(head, lines(rest)))
        )
    return found


def environment_table(runs: Sequence[RunFolder]) -> Markup:
    facts = [_facts(run.summary) for run in runs]
    names = list(dict.fromkeys(name for one in facts for name in one))
    head = ["Name", *[join(swatch(i), run.name) if len(runs) > 1 else "Value" for i, run in enumerate(runs)]]
    body = [
        tag("tr", tag("th", name, scope="row"), *[tag("td", one.get(name, "–"), class_="value") for one in facts])
        for name in names
    ]
    return table(head, body)


def _facts(summary: dict[str, Any]) -> dict[str, str]:
    """Versions, and what else the summary tells and no other table does."""
    facts: dict[str, str] = {}
    for name, value in sorted(summary.items(), key=lambda item: item[0] != "versions"):
        if name in ("settings", "accuracy", "intervals", "next") or name.startswith("by_"):
            continue
        if isinstance(value, dict):
            prefix = "" if name == "versions" else f"{name} · "
            facts |= {f"{prefix}{inner}": shown(one) for inner, one in value.items()}
        else:
            facts[name] = shown(value)
    return facts
