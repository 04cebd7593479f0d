"""The loss benchmark for people: tables on the terminal, a CSV file and a chart."""

from __future__ import annotations

import csv
import importlib.util
import sys
from collections.abc import Iterator
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Any

from peers import IMPLEMENTATIONS
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
_CASE = ("rows", "hidden", "vocab", "dtype", "head", "policy", "layout")
_HEADS = {"trained": "forward + backward, head trained", "frozen": "forward + backward, head frozen",
          "no_grad": "log-probs only, no gradient"}  # fmt: skip
_LAYOUTS = {"compact": "", "padded": ", half of the positions padding", "half_zero": ", half of the advantages zero"}
_GEMMS = {"trained": 3, "frozen": 2, "no_grad": 1}

_HEADER_INCHES, _FOOTER_INCHES = 0.85, 0.55
_CPU_NOTE = "On a CPU, CCE takes its torch.compile path and TRL scores padding too (it drops those rows on GPUs)."
_OURS, _PEER, _INK, _MUTED, _REFUSED = "#0b7a75", "#b9c3cc", "#1f2933", "#66727f", "#c2410c"


def show(result: dict[str, Any]) -> None:
    console = Console()
    print_tables(result, console if console.is_terminal else Console(width=118))


def save(result: dict[str, Any], out: Path) -> None:
    rows: list[Row] = result["loss"]
    if rows:
        with (out / "loss.csv").open("w", newline="") as file:
            context = {
                "cpu": result["machine"]["cpu"],
                "gpu": result["machine"]["gpu"] or "",
                "threads": result["machine"]["threads"],
                "torch": result["versions"]["torch"],
                "commit": result["commit"],
            }
            writer = csv.DictWriter(file, fieldnames=[*rows[0], *context])
            writer.writeheader()
            writer.writerows(row | context for row in rows)
    if importlib.util.find_spec("matplotlib") is None:
        print("no chart: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
    elif any(row["ms"] is not None for row in rows):
        draw(result, out / "loss.png")


def print_tables(result: dict[str, Any], console: Console) -> None:
    for case, rows in _by_case(result["loss"]):
        console.print(_table(case, rows))
        for row in rows:
            if row["reason"] is not None:
                console.print(f"{IMPLEMENTATIONS[row['impl']].label}: {row['reason']}\n", style="red")
    for name, reason in result["unavailable"].items():
        console.print(f"not run: {IMPLEMENTATIONS[name].label} ({reason})", style="dim")
    console.print(
        "time: median of interleaved rounds (min – max); floor: the bare GEMMs that the loss cannot do without, on the "
        "scored rows, into preallocated outputs; GFLOP/s counts those GEMMs alone; peak: beyond inputs and returned "
        "gradients; errors against fp64: log-prob largest, gradient relative.",
        style="dim",
    )
    if not result["machine"]["gpu"]:
        console.print(_CPU_NOTE, style="dim")
    console.print(f"{describe_machine(result)}; commit {_short(result['commit'])}", style="dim")


def describe_machine(result: dict[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    if machine["gpu"]:
        where = f"{machine['gpu']}, driver {machine['gpu_driver']}, TF32 {'on' if machine['tf32'] else 'off'}"
    else:
        threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
        where = f"{machine['cpu']} ({machine['cpu_capability']}), {threads}"
    return f"{where}; torch {versions['torch']}"


def _short(commit: str) -> str:
    revision, *mark = commit.split("-", 1)
    return "-".join([revision[:12], *mark])


def _by_case(rows: list[Row]) -> Iterator[tuple[Row, list[Row]]]:
    for _, group in groupby(rows, key=lambda row: tuple(row[name] for name in _CASE)):
        members = list(group)
        yield members[0], members


def _title(case: Row) -> str:
    policy = "" if case["head"] == "no_grad" else f", {case['policy']}-policy"
    shape = f"N={case['rows']}  H={case['hidden']}  V={case['vocab']}  {case['dtype']}"
    return f"{shape}\n{_HEADS[case['head']]}{policy}{_LAYOUTS[case['layout']]}"


def _table(case: Row, rows: list[Row]) -> Table:
    table = Table(title=_title(case), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for heading in ("ms", "(min – max)", "share of\nfloor", "GFLOP/s", "peak\nMB", "log-prob\nerror",
                    "gradient\nerror", "worst\ntoken"):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
    if case["floor_ms"] is not None:
        gemms = _GEMMS[case["head"]]
        name = f"floor: {gemms} bare GEMM{'s' if gemms > 1 else ''}"
        table.add_row(name, _ms(case["floor_ms"]), "", "100 %", f"{_floor_rate(case):.0f}", style="dim")
    for row in sorted(rows, key=lambda row: row["ms"] or float("inf")):
        errors = [_error(row[name]) for name in ("logp_error", "grad_error", "grad_worst_row_error")]
        label = IMPLEMENTATIONS[row["impl"]].label
        style = "bold" if row["impl"].startswith("ours") else ""
        if row["status"] == "ok":
            spread = f"({_ms(row['ms_min'])} – {_ms(row['ms_max'])})"
            peak = "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"
            share = f"{100 * row['share_of_floor']:.0f} %"
            table.add_row(
                label, _ms(row["ms"]), spread, share, f"{row['gflops_per_s']:.0f}", peak, *errors, style=style
            )
        elif row["status"] == "accuracy only":
            table.add_row(label, "", "", "", "", "", *errors, style=style)
        else:
            table.add_row(label, row["status"], "", "", "", "", *errors, style="red")
    return table


def _floor_rate(case: Row) -> float:
    return _GEMMS[case["head"]] * 2 * case["rows"] * case["hidden"] * case["vocab"] / case["floor_ms"] / 1e6


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def draw(result: dict[str, Any], path: Path) -> None:
    """Time relative to the bare GEMMs and peak memory, one pair of panels for each shape and head."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    shown = [
        (case, rows)
        for case, rows in _by_case(result["loss"])
        if case["floor_ms"] is not None and case["head"] != "no_grad" and case["layout"] == "compact"
        and case["policy"] == "off"
    ]  # fmt: skip
    if not shown:
        return
    heights = [len(rows) + 1.6 for _, rows in shown]
    height = 0.36 * sum(heights) + _HEADER_INCHES + _FOOTER_INCHES
    figure, axes = pyplot.subplots(
        len(shown), 2, figsize=(12, height), squeeze=False,
        gridspec_kw={"height_ratios": heights, "width_ratios": [1.7, 1]}, layout="constrained",
    )  # fmt: skip
    body = (0.01, _FOOTER_INCHES / height, 0.98, 1 - (_HEADER_INCHES + _FOOTER_INCHES) / height)
    figure.set_layout_engine(ConstrainedLayoutEngine(rect=body, hspace=0.04, wspace=0.03))
    for (case, rows), (time_axis, memory_axis) in zip(shown, axes, strict=True):
        ordered = sorted(rows, key=lambda row: row["ms"] or float("inf"), reverse=True)
        _time_panel(time_axis, case, ordered)
        _memory_panel(memory_axis, ordered)
    for inches, size, color, weight, text in (
        (0.14, 17, _INK, "bold", "GRPO loss: one forward and backward"),
        (0.52, 10.5, _MUTED, "normal", _subtitle(result)),
        (height - 0.40, 8.5, _MUTED, "normal", _footer(result)),
    ):
        y = 1 - inches / height
        figure.text(0.015, y, text, fontsize=size, color=color, weight=weight, va="top", linespacing=1.5)
    figure.savefig(path, dpi=160, facecolor="white")
    pyplot.close(figure)


def _time_panel(axis: Any, case: Row, rows: list[Row]) -> None:
    slowest = max(row["ms"] or 0 for row in rows) / case["floor_ms"]
    for position, row in enumerate(rows):
        if row["ms"] is None:
            axis.text(
                0, position, row["reason"], va="center", fontsize=9.5, color=_REFUSED, zorder=3,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 2},
            )  # fmt: skip
            continue
        times = row["ms"] / case["floor_ms"]
        axis.barh(position, times, height=0.68, color=_color(row))
        label = axis.annotate(
            f"{times:.2f}×", (times, position), xytext=(6, 0), textcoords="offset points", va="center", fontsize=10,
            color=_INK, weight="bold" if _is_ours(row) else "normal",
        )  # fmt: skip
        axis.annotate(
            f"{_ms(row['ms'])} ms", (1, 0.5), xytext=(8, 0), xycoords=label, textcoords="offset points", va="center",
            fontsize=8.5, color=_MUTED,
        )  # fmt: skip
    axis.axvline(1, color=_INK, linewidth=1.2, linestyle=(0, (4, 3)))
    axis.set_xlim(0, slowest * 1.28)
    axis.set_yticks(range(len(rows)), [IMPLEMENTATIONS[row["impl"]].label for row in rows])
    shape = f"{case['rows']} tokens · hidden {case['hidden']} · vocabulary {case['vocab']} · {case['dtype']}"
    axis.set_title(f"Head {case['head']}   ", loc="left", fontsize=11.5, weight="bold", color=_INK)
    axis.set_title(shape, loc="right", fontsize=9.5, color=_MUTED)
    axis.set_xlabel(f"time ÷ the {_GEMMS[case['head']]} bare GEMMs ({_ms(case['floor_ms'])} ms, dashed)", color=_MUTED,
                    fontsize=9)  # fmt: skip
    _clean(axis, rows)


def _memory_panel(axis: Any, rows: list[Row]) -> None:
    largest = max((row["peak_mb"] or 0 for row in rows), default=0) or 1
    for position, row in enumerate(rows):
        if row["peak_mb"] is not None:
            axis.barh(position, row["peak_mb"], height=0.68, color=_color(row))
            axis.text(row["peak_mb"] + 0.02 * largest, position, _megabytes(row["peak_mb"]), va="center", fontsize=9.5,
                      color=_INK, weight="bold" if _is_ours(row) else "normal")  # fmt: skip
    axis.set_xlim(0, largest * 1.25)
    axis.set_yticks(range(len(rows)), [""] * len(rows))
    axis.set_title("Peak extra memory", loc="left", fontsize=11.5, weight="bold", color=_INK)
    axis.set_xlabel("beyond inputs and returned gradients", color=_MUTED, fontsize=9)
    _clean(axis, rows)


def _clean(axis: Any, rows: list[Row]) -> None:
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.tick_params(length=0, labelsize=10, colors=_INK)
    axis.tick_params(axis="x", labelsize=8.5, colors=_MUTED)
    axis.grid(axis="x", color="#e6eaee", linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right", "bottom", "left"):
        axis.spines[side].set_visible(False)
    for label, row in zip(axis.get_yticklabels(), rows, strict=True):
        label.set_weight("bold" if _is_ours(row) else "normal")


def _is_ours(row: Row) -> bool:
    return row["impl"].startswith("ours")


def _color(row: Row) -> str:
    return _OURS if row["impl"] == "ours" else "#7fbdb8" if _is_ours(row) else _PEER


def _megabytes(value: float) -> str:
    return f"{value / 1000:.2f} GB" if value >= 1000 else f"{value:.0f} MB"


def _subtitle(result: dict[str, Any]) -> str:
    return f"same rows, same dtype, off-policy; gradients checked against fp64 first · {describe_machine(result)}"


def _footer(result: dict[str, Any]) -> str:
    samples = max(row["samples"] for row in result["loss"])
    names = {"trl": "TRL", "liger-kernel": "Liger", "cut-cross-entropy": "CCE", "verl": "verl"}
    peers = ", ".join(f"{label} {result['versions'][name]}" for name, label in names.items()
                      if name in result["versions"])  # fmt: skip
    measured = f"medians of {samples} interleaved rounds · {peers} · commit {_short(result['commit'])} · {date.today()}"
    return measured if result["machine"]["gpu"] else f"{measured}\n{_CPU_NOTE}"
