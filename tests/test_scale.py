"""`throughput.py scale` at a tiny size: its JSON, what a process holds, and its refusal to time wrong gradients."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_json_contract() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/throughput.py", "scale", "--json", "--quick", "--most", "2", "--device", "cpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"efficiency_ddp", "efficiency_fsdp2", "machine", "versions", "commit"} <= result.keys()
    if (os.cpu_count() or 1) < 2:
        assert result["scale"] == [] and result["efficiency_ddp"] is result["efficiency_fsdp2"] is None
        return
    alone, ddp, fsdp2 = result["scale"]
    assert [(row["kind"], row["processes"]) for row in result["scale"]] == [
        ("one process", 1), ("ddp", 2), ("fsdp2", 2)
    ]  # fmt: skip
    group = len(result["shape"]["completions"])
    for row in (alone, ddp, fsdp2):
        assert 0 < row["seconds_min"] <= row["seconds"] <= row["seconds_max"]
        assert row["completions_per_s"] == pytest.approx(group * row["processes"] / row["seconds"])
        assert row["efficiency"] == pytest.approx(alone["seconds"] / row["seconds"])
    assert result["efficiency_ddp"] == ddp["efficiency"] and result["efficiency_fsdp2"] == fsdp2["efficiency"]
    assert ddp["state_mb"] == alone["state_mb"]
    assert fsdp2["state_mb"] == pytest.approx(alone["state_mb"] / 2, rel=0.02)


def test_wrong_gradients_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    scale = importlib.import_module("scale")

    def launch(request: dict[str, Any], world: int) -> dict[str, Any]:
        figures = [0.5, 2.0, 3.0 if world == 1 or request["kind"] == "ddp" else 3.001]
        asked = [{"groups": count, "figures": figures} for count in request["worlds"]]
        return {"seconds": [1.0], "figures": figures, "asked": asked, "state_mb": 1.0}

    monkeypatch.setattr(scale, "launch", launch)
    with pytest.raises(RuntimeError, match=r"fsdp2 on 2 processes: .* differ by 3\.3e-04 .* no time is reported"):
        scale.run(argparse.Namespace(quick=True, device="cpu", most=2, steps=1, rounds=1))
