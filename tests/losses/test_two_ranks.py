"""The entropy quantile and the adaptive coefficient see every rank's tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from losses.two_ranks import LENGTHS, entropies

import grpo_fast


def test_quantile_and_adaptive_entropy_over_two_ranks() -> None:
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
    found = json.loads(done.stdout.strip().splitlines()[-1])
    everything = torch.cat(entropies())
    expected = (everything >= torch.quantile(everything, 0.7)).float().split(LENGTHS)
    assert 0 < expected[0].sum() < LENGTHS[0]  # each rank alone would choose others
    for rank in (0, 1):
        assert found[rank]["keep"] == expected[rank].tolist()
        assert found[rank]["coef"] == pytest.approx(0.105)
