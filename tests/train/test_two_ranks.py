"""Two processes: the same update as one, the same run as one, and a run that goes on with another number of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
from train.test_run import ROOT, SMALL

BOUND = 5e-6


def test_updates_are_those_of_one_rank() -> None:
    """However groups, lengths and zeros are spread: every rank joins every collective."""
    first, second = ranks.results_of(Path(__file__).with_name("two_ranks.py"))
    for case, one in [*first.items(), *second.items()]:
        assert one["error"] < BOUND and one["loss"] < 1e-6 and one["tokens"] == 0, (case, one)
    assert all(first[case]["micro_batches"] == second[case]["micro_batches"] for case in first)
    assert max(one["micro_batches"] for one in first.values()) > 1


def launch(output: Path, processes: int, *flags: str) -> list[dict]:
    script = ["-m", "grpo_fast", "train", "--output", str(output), *SMALL, *flags]
    if processes > 1:
        script = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *script]
    done = subprocess.run(
        [sys.executable, *script], capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_ranks_learn_as_one_and_one_goes_on_from_two(parallel: str, tmp_path: Path) -> None:
    alone = launch(tmp_path / "alone", 1)
    launch(tmp_path / "both", 2, "--parallel", parallel, "--steps", "4")
    together = launch(tmp_path / "both", 1)
    # The first launch ended at step 4, and looked at the held-out questions there.
    together = [line for line in together if (line["phase"], line["step"]) != ("eval", 4)]
    alone = [line for line in alone if (line["phase"], line["step"]) != ("eval", 4)]
    assert len(alone) == len(together) > 12
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys()
        for name in {"loss", "grad_norm", "reward", "length", "accuracy"} & one.keys():
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), (one["phase"], one["step"], name)
