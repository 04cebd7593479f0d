"""A matrix as a picture, where matplotlib is installed."""

from __future__ import annotations

from pathlib import Path

from grpo_fast.matrix.output import OVERALL, shown, unit
from grpo_fast.matrix.table import Matrix

FORMATS = ("svg", "png")


def draw(one: Matrix, folder: Path, name: str) -> list[Path]:
    """Nothing, without matplotlib: the report page draws the JSON too."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    import numpy as np

    rows, columns = [*one.rows, OVERALL], [*one.columns, OVERALL]
    lines = [*zip(one.values, one.row_overall, strict=True), (one.column_overall, one.overall)]
    values = [[*line, last] for line, last in lines]
    grid = np.array([[np.nan if value is None else 100 * value for value in line] for line in values])
    known = np.abs(grid[~np.isnan(grid)])
    reach = max(float(known.max()) if known.size else 0.0, 1.0)
    low, high, colours = (-reach, reach, "RdBu") if one.signed else (0.0, 100.0, "Blues")
    figure = Figure(figsize=(2.5 + 0.85 * len(columns), 1.8 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(np.ma.masked_invalid(grid), cmap=colours, vmin=low, vmax=high, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    axes.axhline(len(rows) - 1.5, color="white", linewidth=4)
    axes.axvline(len(columns) - 1.5, color="white", linewidth=4)
    for i, line in enumerate(values):
        for j, value in enumerate(line):
            dark = value is not None and abs(100 * value) > 0.6 * high
            axes.text(j, i, shown(one, value), ha="center", va="center", color="white" if dark else "black", size=9)
    axes.set(xlabel="asked about", ylabel="trained on")
    score = "" if one.score is None else f"\ngeneralisation score {shown(one, one.score)}"
    axes.set_title(f"{one.title}{score}", fontsize="medium", loc="left")
    figure.colorbar(image, ax=axes, label=unit(one), shrink=0.8)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{name}.{kind}" for kind in FORMATS]
    for file in written:
        figure.savefig(file, dpi=160)
    return written
