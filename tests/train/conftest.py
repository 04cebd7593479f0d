from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from train.small import ROOT, SMALL


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run that nothing interrupted, as a shell starts it."""
    output = tmp_path_factory.mktemp("runs") / "straight"
    done = subprocess.run(
        [sys.executable, "-m", "grpo_fast", "train", "--output", str(output), *SMALL], capture_output=True, text=True,
        timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "held-out accuracy" in done.stdout
    return output
