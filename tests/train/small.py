"""A whole run that takes seconds."""

from __future__ import annotations

from pathlib import Path

from forks import Fork

ROOT = Path(__file__).parents[2]
SMALL = [
    "--max-samples", "64", "--eval-samples", "12", "--sft-steps", "4", "--sft-batch", "8", "--steps", "6",
    "--prompts-per-step", "4", "--group-size", "4", "--eval-every", "3", "--save-every", "2", "--threads", "1",
    "--max-completion-length", "12", "--use-adaptive-entropy", "true", "--entropy-target", "9",
]  # fmt: skip


def start(output: Path, *flags: str, **environment: str) -> Fork:
    return Fork(output, "train", "--output", str(output), *SMALL, *flags, **environment)
