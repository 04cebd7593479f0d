"""Two processes: the same update as one, the same run as one, and a run that goes on with another number of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import ranks
from train.small import ROOT, SMALL, start

BOUND = 5e-6


def test_updates_are_those_of_one_rank() -> None:
    """However groups, lengths and zeros are spread: every rank joins every collective."""
    first, second = ranks.results_of(Path(__file__).with_name("two_ranks.py"))
    for case, one in [*first.items(), *second.items()]:
        assert one["error"] < BOUND and one["loss"] < 1e-6 and one["tokens"] == 0, (case, one)
    assert all(first[case]["micro_batches"] == second[case]["micro_batches"] for case in first)
    assert max(one["micro_batches"] for one in first.values()) > 1


def torchrun(output: Path, *flags: str) -> None:
    script = ["-m", "grpo_fast", "train", "--output", str(output), *SMALL, *flags]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *script],
        capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def as_torchrun(output: Path, *flags: str) -> None:
    """Two processes with the environment that torchrun would give them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    ranks = [start(output, *flags, RANK=str(rank), LOCAL_RANK=str(rank), **place) for rank in range(2)]
    for rank in ranks:
        code, _, err = rank.wait()
        assert code == 0, err[-3000:]


def metrics(output: Path) -> list[dict]:
    """Without what the run that ended at step 4 looked at there."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if (line["phase"], line["step"]) != ("eval", 4)]


@pytest.mark.parametrize(("parallel", "launch"), [("ddp", torchrun), ("fsdp2", as_torchrun)])
def test_two_ranks_learn_as_one_and_one_goes_on_from_two(
    parallel: str, launch: Callable[..., None], straight: Path, tmp_path: Path
) -> None:
    output = tmp_path / "both"
    launch(output, "--parallel", parallel, "--steps", "4")
    code, _, err = start(output).wait()
    assert code == 0, err
    alone, together = metrics(straight), metrics(output)
    assert len(alone) == len(together) > 12
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys()
        for name in {"loss", "grad_norm", "reward", "length", "accuracy"} & one.keys():
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), (one["phase"], one["step"], name)
