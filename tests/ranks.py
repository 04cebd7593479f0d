"""Two gloo ranks for a test: a script defines `work(rank)`, a test runs the script and reads what rank 0 printed."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import grpo_fast

WORLD = 2
TESTS = Path(__file__).parent


def results_of(script: Path, *folders: Path) -> Any:
    """What the script's ranks gave, by rank. `folders` are importable there, beside tests/ and the script's own."""
    root = Path(grpo_fast.__path__[0]).parent
    path = os.pathsep.join([*map(str, (root, TESTS, *folders)), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def run(work: Callable[[int], Any]) -> None:
    """`work` on every rank; prints one JSON list with what each returned."""
    with tempfile.TemporaryDirectory() as folder:
        # forked: with everything imported
        mp.start_processes(_rank, (work, f"{folder}/rendezvous"), nprocs=WORLD, start_method="fork")


def _rank(rank: int, work: Callable[[int], Any], rendezvous: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD, init_method=f"file://{rendezvous}")
    found: list[Any] = [None] * WORLD
    dist.all_gather_object(found, work(rank))
    if rank == 0:
        print(json.dumps(found), flush=True)
    gc.collect()  # DDP and FSDP2 objects let go of the process group before it ends
    dist.barrier()
    dist.destroy_process_group()
    # Everything is checked and said. A thread of torch's that outlives its owner aborts the interpreter's own end,
    # about once in thirty runs on a busy machine.
    os._exit(0)
