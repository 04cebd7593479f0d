"""Two gloo ranks with prompts of their own, against one rank without any wrapper."""

import json
import os
import subprocess
import sys
from pathlib import Path

import grpo_fast


def test_ranks_generate_as_one_does() -> None:
    here = Path(__file__).parent
    root = str(Path(grpo_fast.__path__[0]).parent)
    path = os.pathsep.join(filter(None, [root, str(here.parent / "policy"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(here / "two_ranks.py")],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads(done.stdout.strip().splitlines()[-1])
    assert len(results) == 8
    for found in results:
        assert found["tokens"] and found["sharded"], found
        assert found["gathers"] == found["sharded_modules"], found  # once a rollout, not once a step
