"""Metrics as curves over one axis of steps: phases laid end to end, smoothed, thinned to what a screen can show."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from grpo_fast.report.accuracy import interval
from grpo_fast.report.folder import RunFolder, number, text

MAX_POINTS = 2000
SMOOTHED_FROM = 24  # points; fewer are shown as they are


@dataclass(slots=True)
class Phase:
    name: str
    start: int
    end: int
    offset: int  # x = offset + the phase's own step
    last: int  # where the row read last stands; after a resume it can lie before the end


@dataclass(slots=True)
class Curve:
    """x and value of one metric of one run, by training phase (a line is never smoothed across phases)."""

    xs: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    phases: list[int] = field(default_factory=list)
    intervals: list[tuple[float, float]] = field(default_factory=list)

    def only(self, phases: set[int]) -> Curve:
        keep = [i for i, phase in enumerate(self.phases) if phase in phases]
        return Curve([self.xs[i] for i in keep], [self.values[i] for i in keep], [self.phases[i] for i in keep])


@dataclass(slots=True)
class RunCurves:
    phases: list[Phase]
    curves: dict[tuple[str, str], Curve]  # (train, eval or timing, name)


def run_curves(run: RunFolder, asked: int | None = None) -> RunCurves:
    phases: list[Phase] = []
    rows: dict[tuple[str, int, int], dict[str, Any]] = {}  # (part, phase number, x): after a resume the last one counts
    for row in run.metrics:
        step = number(row.get("step"))
        if step is None:
            continue
        part = "eval" if row.get("phase") == "eval" else "train"
        if part == "train":
            x = _place(phases, text(row.get("phase")), int(step))
        else:  # an evaluation that counts from 0 stands where the training before it ended
            x = max(phases[-1].offset + int(step), phases[-1].last) if phases else int(step)
        rows[part, len(phases), x] = row
    curves: dict[tuple[str, str], Curve] = {}
    for (part, phase, x), row in sorted(rows.items(), key=lambda item: (item[0][2], item[0][1])):
        for name, value in row.items():
            _append(curves, part, name, x, phase, value)
    if asked and (curve := curves.get(("eval", "accuracy"))):
        curve.intervals = [interval(value, asked) for value in curve.values]
    offsets = {phase.name: (place, phase.offset) for place, phase in enumerate(phases, 1)}
    timing = {}
    for row in run.timing:
        step, found = number(row.get("step")), offsets.get(text(row.get("phase")))
        if step is not None and found:
            timing[found[1] + int(step), found[0]] = row
    for (x, phase), row in sorted(timing.items(), key=lambda item: item[0]):
        for name, value in row.items():
            _append(curves, "timing", name, x, phase, value)
    return RunCurves(phases, curves)


def _place(phases: list[Phase], name: str, step: int) -> int:
    """A phase that counts its steps anew goes on where the one before it ended."""
    if not phases or phases[-1].name != name:
        offset = 0 if not phases or step > phases[-1].end else phases[-1].end
        phases.append(Phase(name, offset + step, offset + step, offset, offset + step))
    phase = phases[-1]
    x = phase.offset + step
    phase.start, phase.end, phase.last = min(phase.start, x), max(phase.end, x), x
    return x


def _append(curves: dict[tuple[str, str], Curve], part: str, name: str, x: int, phase: int, value: Any) -> None:
    found = number(value)
    if found is None or name in ("step", "phase"):
        return
    curve = curves.setdefault((part, name), Curve())
    curve.xs.append(x)
    curve.values.append(found)
    curve.phases.append(phase)


def drawn(curve: Curve, *, smooth: bool) -> dict[str, list[Any]]:
    """Columns x, raw, smooth (absent for a short curve), low and high (absent without intervals)."""
    values = np.asarray(curve.values)
    smoothed = None
    if smooth and len(values) >= SMOOTHED_FROM:
        phases = np.asarray(curve.phases)
        smoothed = np.concatenate([_smoothed(values[phases == phase]) for phase in dict.fromkeys(curve.phases)])
    keep = _thinned(values)
    columns: dict[str, list[Any]] = {"x": [curve.xs[i] for i in keep], "raw": [_short(values[i]) for i in keep]}
    if smoothed is not None:
        columns["smooth"] = [_short(smoothed[i]) for i in keep]
    if curve.intervals:
        columns["low"], columns["high"] = ([_short(curve.intervals[i][end]) for i in keep] for end in (0, 1))
    return columns


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Three running means, which come close to a Gaussian; the window narrows at the ends."""
    n = len(values)
    width = max(2, n // 25)
    low = np.maximum(np.arange(n) - width, 0)
    high = np.minimum(np.arange(n) + width + 1, n)
    for _ in range(3):
        sums = np.concatenate([[0.0], np.cumsum(values)])
        values = (sums[high] - sums[low]) / (high - low)
    return values


def _thinned(values: np.ndarray) -> list[int]:
    """Indices of at most MAX_POINTS: the lowest and highest of each stretch, so that no spike is lost."""
    n = len(values)
    if n <= MAX_POINTS:
        return list(range(n))
    edges = np.linspace(0, n, MAX_POINTS // 2 + 1).astype(int)
    keep: set[int] = set()
    for start, end in pairwise(edges.tolist()):
        keep |= {start + int(values[start:end].argmin()), start + int(values[start:end].argmax())}
    return sorted(keep)


def _short(value: float) -> float:
    return float(f"{value:.5g}")
