"""What `throughput.py` without arguments ends with: every part's ratios in one table and one chart."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from peers import IMPLEMENTATIONS

Ratio = tuple[str, str, float]  # part, against what, how many times faster

AGAINST = {
    "step": (
        ("speedup_vs_repeated", "repeated prompt, tower frozen"),
        ("speedup_vs_repeated_trained", "repeated prompt, tower trained"),
        ("speedup_vs_trl", "TRL's GRPOTrainer, optimisation part"),
    ),
    "rollout": (
        ("speedup_vs_hf_generate", "generate, prompts repeated"),
        ("speedup_vs_num_return_sequences", "generate, num_return_sequences"),
    ),
    "train": (("speedup_vs_trl", "TRL's GRPOTrainer, whole step"),),
}


def ratios(results: dict[str, dict[str, Any]]) -> list[Ratio]:
    found = _of_the_loss(results["loss"]["loss"]) if "loss" in results else []
    for part, pairs in AGAINST.items():
        for name, what in pairs:
            value = results.get(part, {}).get(name)
            if value is not None:
                found.append((part, what, value))
    return found


def show(found: list[Ratio]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    table.add_column("part", style="dim")
    table.add_column("against")
    table.add_column("", justify="right", style="bold")
    last = ""
    for part, what, value in found:
        table.add_row("" if part == last else part, what, f"{value:.2f} ×")
        last = part
    console = Console()
    console.print("\nHow many times faster, each from one interleaved run")
    (console if console.is_terminal else Console(width=100)).print(table)


def save(found: list[Ratio], machine: dict[str, Any], path: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None or not found:
        return
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    labels = [f"{part}: {what}" for part, what, _ in found][::-1]
    values = [value for *_, value in found][::-1]
    figure, axes = pyplot.subplots(figsize=(8, 0.9 + 0.36 * len(found)), layout="constrained")
    bars = axes.barh(labels, values, color="#0b7a75", height=0.62)
    axes.bar_label(bars, [f"{value:.1f} ×" for value in values], padding=4, color="#1f2933", fontsize=9)
    axes.axvline(1.0, color="#66727f", linewidth=1, linestyle=":")
    axes.set_xlim(0, 1.12 * max(values))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=9)
    device = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    axes.set_title(f"grpo-fast: how many times faster ({device})", loc="left", fontsize=10)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _of_the_loss(rows: list[dict[str, Any]]) -> list[Ratio]:
    """Of the first case with a trained head, every implementation that was timed."""
    timed = [row for row in rows if row["ms"] is not None and row["status"] == "ok" and row["head"] == "trained"]
    if not timed:
        return []
    shape = ("rows", "hidden", "vocab", "dtype", "policy", "layout")
    case = [row for row in timed if [row[name] for name in shape] == [timed[0][name] for name in shape]]
    ours = next((row for row in case if row["impl"] == "ours"), None)
    if ours is None:
        return []
    return [
        ("loss", IMPLEMENTATIONS[row["impl"]].label, row["ms"] / ours["ms"])
        for row in case
        if not row["impl"].startswith("ours")
    ]
