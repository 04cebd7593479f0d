"""The loss benchmark at tiny sizes: its JSON, its truth, its floor, and its refusal to time what is wrong."""

from __future__ import annotations

import importlib
import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's modules by name, as its scripts see them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "benchmarks/throughput.py", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_json_contract(tmp_path: Path) -> None:
    done = _command(
        "loss", "--json", "--quick", "--only", "ours,torch", "--threads", "1", "--device", "cpu", "--out", str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert json.loads((tmp_path / "loss.json").read_text()) == result
    assert (tmp_path / "loss.csv").read_text().count("\n") == len(result["loss"]) + 1

    assert {"loss", "machine", "versions", "commit"} <= result.keys()
    assert {"cpu", "cores", "threads", "gpu"} <= result["machine"].keys()
    assert result["versions"]["torch"] == torch.__version__
    for private in (socket.gethostname(), str(ROOT), str(tmp_path), os.path.expanduser("~") + "/"):
        assert private not in done.stdout

    timed = [row for row in result["loss"] if row["status"] == "ok"]
    assert {row["impl"] for row in timed} == {"ours", "torch"}
    assert {row["head"] for row in timed} == {"trained", "frozen", "no_grad"}
    assert {row["layout"] for row in timed} == {"compact", "padded", "half_zero"}
    for row in timed:
        assert 0 < row["ms_min"] <= row["ms"] <= row["ms_max"]
        assert row["share_of_floor"] == pytest.approx(row["floor_ms"] / row["ms"])
        assert row["logp_error"] <= row["logp_allowed"]
        assert (row["grad_error"] is None) == (row["head"] == "no_grad")
        assert row["peak_mb"] is not None or not os.access("/proc/self/clear_refs", os.W_OK)

    accuracy = {row["impl"]: row for row in result["loss"] if row["status"] == "accuracy only"}
    assert accuracy["ours"]["dtype"] == "bfloat16" and accuracy["ours"]["ms"] is None
    assert accuracy["ours"]["logp_error"] <= 1e-4 < 1e-2 < accuracy["torch"]["logp_error"]


def test_a_usage_error_in_the_shell() -> None:
    done = _command("lose")
    assert done.returncode == 2
    assert "invalid choice" in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""


def test_usage_errors() -> None:
    """Several in one process, whose imports take longest."""
    complaints = {
        "loss --shape 12,0,7": "is not N,H,V",
        "loss --only ours,nobody": "no implementation nobody",
        "--json --no-such-option": "unrecognized arguments: --no-such-option",
    }
    script = (
        "import sys; sys.path.insert(0, 'benchmarks'); import throughput\n"
        "for line in sys.argv[1:]:\n"
        "    try: throughput.main(line.split())\n"
        "    except SystemExit as ended: print('ended with', ended.code, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script, *complaints], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "", done.stderr
    *said, rest = done.stderr.split("ended with 2\n")
    assert len(said) == len(complaints) and not rest.strip()
    assert all(complaint in one for complaint, one in zip(complaints.values(), said, strict=True))


def test_the_parts_that_are_named_can_be_run(bench: Any) -> None:
    parts = bench("throughput").PARTS
    assert [name for name in parts if (BENCHMARKS / f"{name}.py").is_file()] == list(parts)
    for page in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        named = re.findall(r"benchmarks/throughput\.py \[?([a-z|]+)", text)
        assert {name for one in named for name in one.split("|")} == set(parts), page


# 24 = 8 sequences of 3; 13 is prime: one sequence, whose advantage half_zero must not empty
@pytest.mark.parametrize("rows", [24, 13])
@pytest.mark.parametrize("policy", ["on", "off"])
@pytest.mark.parametrize("layout", ["compact", "padded", "half_zero"])
def test_truth_is_what_autograd_gives_in_fp64(bench: Any, rows: int, policy: str, layout: str) -> None:
    cases = bench("cases")
    inputs = cases.make_inputs(cases.Case(rows, 8, 61, policy=policy, layout=layout), CPU)
    exact = cases.compute(inputs, torch.float64)

    hidden = inputs.hidden.detach().double().requires_grad_()
    weight = inputs.weight.detach().double().requires_grad_()
    logps = (hidden @ weight.T).log_softmax(-1).gather(-1, inputs.targets[..., None])[..., 0]
    cases.policy_loss(logps, inputs).backward()

    assert inputs.mask.sum() == rows and len(exact.logps) == rows
    torch.testing.assert_close(exact.logps, logps.detach()[inputs.mask], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(exact.grad_hidden, hidden.grad[inputs.mask], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(exact.grad_weight, weight.grad, rtol=1e-9, atol=1e-12)
    assert exact.grad_weight.abs().max() > 0


@pytest.mark.parametrize("head", ["trained", "frozen", "no_grad"])
def test_floor_runs_the_gemms_it_counts(bench: Any, monkeypatch: pytest.MonkeyPatch, head: str) -> None:
    cases, measure = bench("cases"), bench("measure")
    case = cases.Case(24, 8, 64, head=head)
    inputs = cases.make_inputs(case, CPU, realistic=False)
    with FlopCounterMode(display=False) as counter:
        measure.bare_gemms(case, inputs)()
    assert counter.get_total_flops() == case.flops


def _twice_the_loss(loss: torch.Tensor, logps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return 2 * loss, logps


def _shifted_logps(loss: torch.Tensor, logps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return loss, logps + 0.1


def _nan_gradient(loss: torch.Tensor, logps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return loss * torch.nan, logps


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (_twice_the_loss, "refused: gradient error 1.0e+00"),
        (_shifted_logps, "refused: log-prob error 1.0e-01"),
        (_nan_gradient, "refused: gradient error inf"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_implementation_gets_no_speed(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spoil: Any, complaint: str, dtype: torch.dtype
) -> None:
    cases, loss, peers, render = bench("cases"), bench("loss"), bench("peers"), bench("render")
    plain = peers.IMPLEMENTATIONS["torch"]
    calls = 0

    def wrong(inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal calls
        calls += 1
        return spoil(*plain.loss(inputs))

    if dtype == torch.bfloat16 and spoil is _shifted_logps:
        spoil = lambda value, logps: (value, logps + 1.0)  # noqa: E731 - 0.1 is bf16's own size of error
        complaint = "refused: log-prob error"
    monkeypatch.setitem(peers.IMPLEMENTATIONS, "wrong", replace(plain, label="wrong on purpose", loss=wrong))
    case = cases.Case(32, 16, 512, dtype)
    rows = {row["impl"]: row for row in loss.measure_case(case, ["wrong", "torch"], CPU, 2, lambda: None)}

    assert rows["torch"]["status"] == "ok" and rows["torch"]["ms"] > 0
    assert rows["wrong"]["status"] == "refused" and complaint in rows["wrong"]["reason"]
    assert rows["wrong"]["ms"] is rows["wrong"]["share_of_floor"] is rows["wrong"]["gflops_per_s"] is None
    assert calls == 3, "two warm-ups and the check, nothing timed"

    shown = _report(render, list(rows.values()))
    assert complaint in shown


def test_an_implementation_that_raises_does_not_stop_the_others(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cases, loss, peers = bench("cases"), bench("loss"), bench("peers")
    plain = peers.IMPLEMENTATIONS["torch"]

    def broken(inputs: Any) -> tuple[torch.Tensor, None]:
        raise NotImplementedError("only on Tuesdays")

    monkeypatch.setitem(peers.IMPLEMENTATIONS, "broken", replace(plain, loss=broken))
    rows = {row["impl"]: row for row in loss.measure_case(cases.Case(32, 16, 512), ["broken", "torch"], CPU, 1, int)}
    assert rows["broken"]["status"] == "failed" and "only on Tuesdays" in rows["broken"]["reason"]
    assert rows["torch"]["status"] == "ok"


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no resettable high-water mark here")
def test_peak_memory_is_what_was_allocated(bench: Any) -> None:
    cases, peak, peers = bench("cases"), bench("peak"), bench("peers")
    plain = peers.IMPLEMENTATIONS["torch"]
    block = 64_000_000

    def hungry(inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        torch.ones(block, dtype=torch.uint8)
        return plain.loss(inputs)

    case = cases.Case(32, 16, 512)
    (before,) = peak.peaks_of(plain, [case])
    (measured,) = peak.peaks_of(replace(plain, loss=hungry), [case])
    assert before < 8
    assert 0.98 * block <= measured * 1e6 <= 1.15 * block


def test_chart_is_drawn(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    cases, loss, render = bench("cases"), bench("loss"), bench("render")
    rows = loss.measure_case(cases.Case(32, 16, 512), ["torch"], CPU, 1, int)
    render.save(_result(rows), tmp_path)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def _result(rows: list[dict[str, Any]]) -> dict[str, Any]:
    machine = {"cpu": "a processor", "cpu_capability": "AVX2", "threads": 1, "gpu": None}
    return {"loss": rows, "unavailable": {}, "machine": machine, "versions": {"torch": "2"}, "commit": "unknown"}


def _report(render: Any, rows: list[dict[str, Any]]) -> str:
    from rich.console import Console

    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115 - closed with the process
    render.print_tables(_result(rows), console)
    return console.export_text()
