"""Small studies from the command line: a model that now and then answers, and two steps of each training."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL = [
    "--prompt", "no-think", "--max-completion-length", "6", "--max-samples", "24", "--eval-samples", "4",
    "--prompts-per-step", "2", "--group-size", "4", "--steps", "3", "--eval-every", "0", "--save-every", "1",
    "--learning-rate", "0.02", "--sft-learning-rate", "0.002", "--sft-batch", "4", "--threads", "1",
    "--samples-every", "0",
]  # fmt: skip
SCRIPT = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from matrix.matrix_lab import run; sys.exit(run(*sys.argv[1:]))"
)


def run(name: str, *flags: str) -> int:
    """`grpo-fast NAME …`."""
    command = import_module(f"grpo_fast.{name}.command")
    parser = argparse.ArgumentParser(prog=f"grpo-fast {name}")
    command.add_arguments(parser)
    return command.run(parser.parse_args([*SMALL, *flags]))


def start(name: str, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(ROOT / "tests"), name, *flags],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
