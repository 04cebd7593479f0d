"""Bars of accuracy and histograms of answer length, where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_fast.compare.plan import STAGES
from grpo_fast.compare.result import Line, Part, lengths

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("svg", "png")
COLOURS = dict(zip(STAGES, ("#9aa5b1", "#e0a458", "#2f6f9f"), strict=True))
LIGHT, DARK = "#bcd4e6", "#1f4e79"
BINS = 40


def draw(lines: Sequence[Line], found: Mapping[str, Part], folder: Path) -> list[Path]:
    try:
        from matplotlib.figure import Figure  # noqa: F401
    except ImportError:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"accuracy": bars(lines), "lengths": histograms(next(iter(found.values())))}
    written = []
    for name, figure in figures.items():
        for kind in FORMATS:
            written.append(folder / f"{name}.{kind}")
            figure.savefig(written[-1], dpi=160)
    return written


def bars(lines: Sequence[Line]) -> Figure:
    """Three bars for each part and each modality: all seeds together, Wilson's interval, a dot for each seed."""
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys((line.part, line.facet, line.group) for line in lines if line.facet != "question_type"))
    groups.sort(key=lambda group: group[1] != "overall")
    place = {group: number for number, group in enumerate(groups)}
    figure = Figure(figsize=(2.5 + 0.95 * len(groups), 4.2), layout="constrained")
    axes = figure.subplots()
    for number, stage in enumerate(STAGES):
        own = [line for line in lines if line.stage == stage and (line.part, line.facet, line.group) in place]
        at = [place[line.part, line.facet, line.group] + 0.27 * (number - 1) for line in own]
        height = [100 * line.accuracy for line in own]
        below, above = zip(*[(line.accuracy - line.low, line.high - line.accuracy) for line in own], strict=True)
        errors = [[100 * one for one in side] for side in (below, above)]
        axes.bar(at, height, 0.25, color=COLOURS[stage], label=stage, yerr=errors, ecolor="#444444", capsize=2)
        for x, line in zip(at, own, strict=True):
            if len(line.seeds) > 1:
                shares = [100 * share for share in line.seeds.values()]
                axes.scatter([x] * len(shares), shares, s=9, color="black", zorder=3)
    axes.set_xticks(range(len(groups)), [group or part for part, _, group in groups], rotation=30, ha="right")
    axes.set(ylabel="accuracy in %", ylim=(0, 100))
    axes.legend(frameon=False, ncols=len(STAGES), loc="upper left", bbox_to_anchor=(0, 1.12))
    return figure


def histograms(part: Part) -> Figure:
    """All answers light, correct ones dark, by length in words."""
    from matplotlib.figure import Figure

    counted = lengths(part)
    longest = max((max(own["all"], default=0) for own in counted.values()), default=0)
    width = max(1, -(-(longest + 1) // BINS))
    edges = [edge - 0.5 for edge in range(0, longest + 1 + width, width)]
    figure = Figure(figsize=(3.6 * len(STAGES), 3.2), layout="constrained")
    every = figure.subplots(1, len(STAGES), sharex=True, sharey=True)
    for axes, stage in zip(every, STAGES, strict=True):
        for name, colour in (("all", LIGHT), ("correct", DARK)):
            own = counted[stage][name]
            axes.hist(list(own), bins=edges, weights=list(own.values()), color=colour, label=f"{name} answers")
        axes.set(title=stage, xlabel="words in the answer")
    every[0].set_ylabel("answers")
    every[-1].legend(frameon=False)
    return figure
