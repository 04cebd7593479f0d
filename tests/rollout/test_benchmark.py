"""The rollout benchmark at a tiny size: its JSON, and the greedy check before any time is taken."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def test_json_contract() -> None:
    options = ["rollout", "--json", "--quick", "--threads", "1", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "benchmarks/throughput.py", *options], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {
        "speedup_vs_hf_generate",
        "speedup_vs_num_return_sequences",
        "machine",
        "versions",
        "commit",
    } <= result.keys()
    rows = {row["side"]: row for row in result["rollout"]}
    caches = ("dynamic", "static")
    assert set(rows) == {"ours"} | {
        f"{kind}, {c} cache" for kind in ("repeated", "num_return_sequences") for c in caches
    }
    scale = result["scale"]
    prompt, group, tokens = scale["prompt"], scale["group"], scale["tokens"]
    assert result["kv_bytes_vs_hf"] == pytest.approx((prompt + group * tokens) / (group * (prompt + tokens)))
    for kind, name in (("repeated", "hf_generate"), ("num", "num_return_sequences")):
        best = min(row["seconds"] for side, row in rows.items() if side.startswith(kind))
        assert result[f"speedup_vs_{name}"] == pytest.approx(best / rows["ours"]["seconds"])


def test_different_tokens_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    bench = importlib.import_module("rollout")
    sides = {
        "ours": lambda tokens, greedy: torch.zeros(2, tokens),
        "other": lambda tokens, greedy: torch.ones(2, tokens),
    }
    with pytest.raises(RuntimeError, match="greedy tokens differ from those of other"):
        bench.check_greedy(sides, "float32")
