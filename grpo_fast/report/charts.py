"""Which charts there are: plain data for charts.js, one entry for each `data-chart` of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grpo_fast.report.curves import RunCurves, drawn
from grpo_fast.report.names import label

MOST_CHARTS = 80  # a run that logs hundreds of names of its own still gives a page
BINS = 28


@dataclass(frozen=True, slots=True)
class Kind:
    """A chart of the catalogue. Further names are drawn dashed in the same panel."""

    title: str
    part: str  # train, eval or timing
    names: tuple[str, ...]
    unit: str = ""
    note: str = ""
    phase: str = ""  # only this phase's rows
    wide: bool = False


CATALOGUE: dict[str, tuple[Kind, ...]] = {
    "Learning": (
        Kind("Held-out accuracy", "eval", ("accuracy", "accuracy_lenient"), "%", "strict; dashed: lenient", wide=True),
        Kind("Reward", "train", ("reward",)),
        Kind("Spread of rewards", "train", ("reward_std",)),
        Kind("Groups without spread", "train", ("groups_without_spread",), "", "they teach nothing"),
        Kind("Held-out format", "eval", ("format",), "%"),
    ),
    "Policy": (
        Kind("KL to the reference", "train", ("kl",), "nats"),
        Kind("Entropy", "train", ("entropy",), "nats"),
        Kind("Clipped share", "train", ("clip_high", "clip_low"), "%", "above; dashed: below"),
        Kind("Policy loss", "train", ("loss",), phase="grpo"),
        Kind("Supervised loss", "train", ("loss",), phase="sft"),
        Kind("Gradient norm", "train", ("grad_norm",)),
        Kind("Learning rate", "train", ("learning_rate",)),
    ),
    "Completions": (
        Kind("Length", "train", ("length",), "tokens"),
        Kind("Cut at the limit", "train", ("truncated",), "%"),
        Kind("Held-out length", "eval", ("length",), "words"),
    ),
    "Speed": (
        Kind("Tokens a second", "timing", ("tokens_per_second",)),
        Kind("Completions a second", "timing", ("completions_per_second",)),
        Kind("Time of a step", "timing", ("seconds",), "s"),
        Kind("GPU memory", "timing", ("gpu_memory_mb",), "MB"),
    ),
}


def charts_of(runs: Sequence[RunCurves]) -> dict[str, list[dict[str, Any]]]:
    """Section → charts. What the catalogue does not know comes under its own name."""
    keys = sorted({key for run in runs for key in run.curves})
    found: dict[str, list[dict[str, Any]]] = {}
    used: set[tuple[str, str]] = set()
    for section, kinds in CATALOGUE.items():
        for kind in kinds:
            used |= {(kind.part, name) for name in kind.names}
            _add(found, section, line_chart(runs, kind))
            if kind.names == ("reward",):
                parts = [name for part, name in keys if part == "train" and name.startswith("reward/")]
                used |= {("train", name) for name in parts}
                for name in parts:
                    title = f"Reward · {name.partition('/')[2]}"
                    _add(found, section, line_chart(runs, Kind(title, "train", (name,))))
    for part, name in keys:
        if (part, name) in used:
            continue
        if part == "eval" and name.startswith("accuracy/"):
            title = label(name.partition("/")[2])
            _add(found, "Held-out accuracy by group", line_chart(runs, Kind(title, part, (name,), "%")))
        else:
            title = name if part == "train" else f"{name} ({'evaluation' if part == 'eval' else 'timing'})"
            _add(found, "Other metrics", line_chart(runs, Kind(title, part, (name,))))
    return _at_most(found, MOST_CHARTS)


def _add(found: dict[str, list[dict[str, Any]]], section: str, chart: dict[str, Any] | None) -> None:
    if chart:
        found.setdefault(section, []).append(chart)


def _at_most(found: dict[str, list[dict[str, Any]]], most: int) -> dict[str, list[dict[str, Any]]]:
    kept = {}
    for section, charts in found.items():
        if charts[:most]:
            kept[section] = charts[:most]
        most -= len(kept.get(section, ()))
    return kept


def line_chart(runs: Sequence[RunCurves], kind: Kind) -> dict[str, Any] | None:
    series = []
    for place, run in enumerate(runs):
        for dash, name in enumerate(kind.names):
            curve = run.curves.get((kind.part, name))
            if curve is None:
                continue
            if kind.phase:
                curve = curve.only({i for i, phase in enumerate(run.phases, 1) if phase.name == kind.phase})
            if curve.xs:
                smooth = kind.part != "eval" and name != "learning_rate"
                series.append({"run": place, "dash": bool(dash), "name": name, **drawn(curve, smooth=smooth)})
    if not series:
        return None
    return {
        "kind": "line", "title": kind.title, "unit": kind.unit, "note": kind.note, "series": series,
        "markers": kind.part == "eval", "wide": kind.wide,
    }  # fmt: skip


def histogram(words: Sequence[tuple[int, bool]], run: int) -> dict[str, Any]:
    """Lengths in words; the last bar takes all beyond the 99th percentile."""
    lengths = sorted(n for n, _ in words)
    top = lengths[min(len(lengths) - 1, math.ceil(0.99 * len(lengths)))] + 1
    width = max(1, math.ceil(top / BINS))
    bars = math.ceil(top / width)
    counts, right = [0] * bars, [0] * bars
    for n, is_right in words:
        place = min(n // width, bars - 1)
        counts[place] += 1
        right[place] += is_right
    middle = lengths[len(lengths) // 2]
    return {
        "kind": "histogram", "run": run, "width": width, "all": counts, "right": right, "median": middle,
        "open": lengths[-1] >= bars * width,
    }  # fmt: skip


def bars(counts: Sequence[tuple[str, int]]) -> dict[str, Any]:
    return {"kind": "bars", "rows": [[name, count] for name, count in counts]}
