"""Two gloo ranks, DDP and FSDP2, against one rank that holds both ranks' groups."""

import json
import os
import subprocess
import sys
from pathlib import Path

import grpo_fast


def test_two_ranks_have_the_gradients_of_one():
    root = str(Path(grpo_fast.__path__[0]).parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("two_ranks.py"))],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads(done.stdout.strip().splitlines()[-1])
    assert len(results) == 14
    for case, found in results.items():
        assert found["missing"] == [], case
        assert found["parameters"] > 0, case
        assert found["error"] < 1e-6, (case, found)
        assert found["logps"] < 1e-9, (case, found)
