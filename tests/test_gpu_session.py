"""The GPU session where there is no GPU: its plan, its isolation of steps, its verdict, and its steps in tiny form.

Records in here are made up, and marked so: nothing in this file was measured.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
MADE_UP = {"commit": "made-up", "gpu": "made-up GPU", "driver": "0", "date": "2000-01-01"}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def session(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/gpu_session.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_part_fits_one_call_of_ten_minutes(bench: Any) -> None:
    plan = bench("gpu_plan")
    assert tuple(plan.STEPS) == plan.PARTS and plan.CALL_SECONDS < 600
    for steps in plan.STEPS.values():
        assert len({step.name for step in steps}) == len(steps)
        assert sum(step.limit for step in steps) <= plan.CALL_SECONDS
    names = [step.name for steps in plan.STEPS.values() for step in steps]
    assert len(set(names)) == len(names)
    for step in (step for steps in plan.STEPS.values() for step in steps):
        assert step.task in bench(step.program).TASKS
    assert {one.step for one in bench("gpu_verdict").thresholds()} <= set(names)


def test_a_step_is_read_before_the_package_is_found(bench: Any) -> None:
    """A GPU machine has the checkout alone: `import_package` makes it importable, which a step calls once it runs."""
    programs = sorted({step.program for steps in bench("gpu_plan").STEPS.values() for step in steps})
    told = f"import sys, {', '.join(programs)}; print('grpo_fast' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", told], cwd=BENCHMARKS, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stdout + done.stderr


def test_what_a_step_leaves_over_goes_to_the_next(bench: Any) -> None:
    plan = bench("gpu_plan")
    first, second, third = (plan.Step(name, "p", "t", 10, "") for name in "abc")
    assert plan.limit_of(first, (second, third), 30) == 10
    assert plan.limit_of(second, (third,), 28) == 18
    assert plan.limit_of(third, (), 4) == 4
    assert plan.limit_of(first, (second, third), 12) == 10  # too little for all: the first still has its own


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without CUDA")
def test_without_a_gpu_it_says_what_it_would_do(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = session("--part", "check", "--out", str(out))
    assert done.returncode == 2 and not out.exists()
    assert "no CUDA device" in done.stdout and "sanitizer" in done.stdout


def test_dry_run_and_mistakes() -> None:
    done = session("--dry-run")
    assert done.returncode == 0, done.stderr
    for part in ("check", "tune", "measure"):
        assert f"\n{part}: " in f"\n{done.stdout}"
    assert "loss_peers/verl" in done.stdout and "570 s" in done.stdout
    done = session("--part", "tune", "--only", "sync")
    assert done.returncode == 2 and "no step sync in tune" in done.stderr


CHILD = """
import os, signal, subprocess, sys, time

task, rows = sys.argv[1], open(sys.argv[sys.argv.index("--rows") + 1], "a")
rows.write('{"before": 1}\\n')
rows.flush()
if task == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
if task == "half":
    rows.write('{"after')
    rows.flush()
    raise RuntimeError("told in the log")
if task == "hang":
    rows.write('{"child": %d}\\n' % subprocess.Popen(["sleep", "60"]).pid)
    rows.flush()
    print("the last word", flush=True)
    time.sleep(60)
"""


def test_a_step_that_crashes_or_hangs_loses_nothing_of_the_others(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, run = bench("gpu_plan"), bench("gpu_run")
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "limit_of", lambda step, after, left: step.limit)
    limits = {"crash": 30, "half": 30, "hang": 2, "good": 30}
    monkeypatch.setattr(run, "LEAST_SECONDS", 1)
    steps = [plan.Step(name, "child", name, limit, "") for name, limit in limits.items()]
    records = run.run_steps("check", steps, tmp_path, 1e4, MADE_UP)
    found = {record["step"]: record for record in records}
    statuses = {"crash": "failed", "half": "failed", "hang": "timeout", "good": "ok"}
    assert {name: record["status"] for name, record in found.items()} == statuses
    assert all(record["rows"][0] == {"before": 1} for record in records)
    assert "SIGSEGV" in found["crash"]["reason"]
    assert found["half"]["rows"][1] == {"broken": '{"after'} and "told in the log" in found["half"]["output"]
    assert found["hang"]["seconds"] < 30 and "the last word" in found["hang"]["output"]
    assert not alive(found["hang"]["rows"][1]["child"])  # what the step started went with it
    assert run.read_records(tmp_path / "steps.jsonl") == records


def test_a_driver_that_hangs_costs_seconds(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = bench("gpu_run")
    monkeypatch.setattr(run, "ANSWER_SECONDS", 0.2)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 30\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    start = time.monotonic()
    assert run.gpu_state() is None

    class Stuck:  # in the kernel, where no signal reaches it
        pid = subprocess.Popen(["true"], start_new_session=True).pid

        def wait(self, timeout: float) -> int:
            raise subprocess.TimeoutExpired("stuck", timeout)

    run._end_session(Stuck())
    assert time.monotonic() - start < 20


def test_how_a_task_ends(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = bench("gpu_child")

    def absent(job: Any) -> None:
        raise child.Absent("no such tool here")

    tasks = {
        "good": lambda job: job.check("small", 1.0, 2.0),
        "large": lambda job: job.check("small", 2.5, 2.0),
        "nan": lambda job: job.check("small", float("nan"), 2.0),
        "absent": absent,
    }
    for task, code in (("good", 0), ("large", 1), ("nan", 1), ("absent", child.ABSENT)):
        monkeypatch.setattr(sys, "argv", ["child", task, "--device", "cpu", "--rows", str(tmp_path / task)])
        assert child.main(tasks) == code
    assert json.loads((tmp_path / "nan").read_text()) == {
        "check": "small",
        "value": "nan",
        "most": 2.0,
        "passed": False,
    }
    assert json.loads((tmp_path / "absent").read_text()) == {"absent": "no such tool here"}


def alive(pid: int) -> bool:
    for _ in range(50):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return False
        time.sleep(0.1)
    return True


def test_a_spent_budget_skips_and_says_so(bench: Any, tmp_path: Path) -> None:
    plan, run = bench("gpu_plan"), bench("gpu_run")
    (record,) = run.run_steps("check", [plan.Step("late", "gpu_checks", "sync", 10, "")], tmp_path, 1.0, MADE_UP)
    assert record["status"] == "skipped" and "budget" in record["reason"]


def made_up(step: str, *rows: dict[str, Any], status: str = "ok", part: str = "check") -> dict[str, Any]:
    return {"part": part, "step": step, "status": status, "seconds": 1.0, "rows": list(rows), **MADE_UP}


def loss_row(impl: str, ms: float, head: str = "trained", h: int = 1536, v: int = 151936) -> dict[str, Any]:
    shape = {"rows": 8192, "hidden": h, "vocab": v, "head": head}
    return {"impl": impl, "ms": ms, "share_of_floor": 15.0 / ms, "status": "ok", **shape}


GREEN = [made_up("tests"), made_up("kernel_tests"), made_up("accuracy", {"check": "logp_error, x", "value": 1e-6})]


def results(bench: Any, *records: dict[str, Any]) -> dict[str, str]:
    verdict = bench("gpu_verdict").judge(records)
    return {row["name"]: row["result"] for row in verdict["thresholds"]}


def test_nothing_measured_is_never_a_pass(bench: Any) -> None:
    found = results(bench, made_up("environment"))
    assert len(found) >= 20 and set(found.values()) == {"not measured"}
    found = results(bench, *(made_up(one.step) for one in bench("gpu_verdict").thresholds()))  # all ran, none told
    assert set(found.values()) == {"not measured"}


def test_thresholds_on_both_sides(bench: Any) -> None:
    trained = "trained head, 2B: share of three cuBLAS products"
    for ms, expected in ((16.0, "pass"), (17.0, "fail")):  # 0.94 and 0.88 of a floor of 15 ms
        assert results(bench, *GREEN, made_up("loss_sizes", loss_row("ours", ms)))[trained] == expected
    other = "trained head, 7B: share of three cuBLAS products"
    assert results(bench, *GREEN, made_up("loss_sizes", loss_row("ours", 16.0)))[other] == "not measured"
    liger = "loss, trained head: times faster than Liger's GRPO loss"
    for slow, expected in ((50.0, "pass"), (40.0, "fail")):  # the faster of its two ways counts
        rows = loss_row("ours", 16.0), loss_row("liger", 99.0), loss_row("liger_whole", slow)
        assert results(bench, *GREEN, made_up("loss_peers/liger", *rows))[liger] == expected
    step = "optimisation step: peak memory over TRL's"
    for share, expected in ((0.5, "pass"), (0.51, "fail")):
        assert (
            results(bench, *GREEN, made_up("step_trl", {"step": "Qwen2-VL-2B", "peak_vs_trl": share}))[step] == expected
        )
    decode = "decode at 512 completions: share of the bandwidth floor"
    for count, expected in ((512, "pass"), (64, "not measured")):
        row = {"concurrent": count, "share_of_bandwidth_floor": 0.7}
        assert results(bench, *GREEN, made_up("decode", row, status="timeout"))[decode] == expected


def test_a_speed_without_green_tests_is_void(bench: Any) -> None:
    speed = made_up("step_trl", {"step": "Qwen2-VL-2B", "speedup_vs_trl": 9.0})
    name = "optimisation step: times faster than TRL's"
    assert results(bench, *GREEN, speed)[name] == "pass"
    assert results(bench, speed)[name] == "void"
    assert results(bench, *GREEN[1:], made_up("tests", status="failed"), speed)[name] == "void"


def test_a_check_that_broke_off_shows_violations_only(bench: Any) -> None:
    name = "log-prob error on peaky logits, nats"
    for value, status, expected in (
        (1e-5, "ok", "pass"), (1e-3, "failed", "fail"), ("nan", "failed", "fail"), ("inf", "failed", "fail"),
        (1e-5, "failed", "not measured"), (1e-5, "timeout", "not measured"), (1e-3, "timeout", "fail"),
    ):  # fmt: skip
        row = {"check": "logp_error, made up", "value": value}
        assert results(bench, made_up("accuracy", row, status=status))[name] == expected


def test_records_of_another_commit_do_not_count(bench: Any, tmp_path: Path) -> None:
    old, new = made_up("tests") | {"commit": "older"}, made_up("sync")
    again = made_up("sync", {"check": "host syncs", "value": 0.0})
    (tmp_path / "steps.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (old, new, again)))
    assert bench("gpu_run").read_records(tmp_path / "steps.jsonl") == [again]


def test_the_verdict_alone_needs_no_gpu(tmp_path: Path) -> None:
    done = session("--part", "verdict", "--out", str(tmp_path))
    assert done.returncode == 1 and "steps.jsonl" in done.stderr
    trace = {"trace": "made up", "rank": 1, "kernel": "k, with a comma", "calls": 1, "ms": 2.0, "share": 0.5}
    (tmp_path / "steps.jsonl").write_text("".join(json.dumps(one) + "\n" for one in [*GREEN, made_up("trace", trace)]))
    done = session("--part", "verdict", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "| not measured (not run) |" in (tmp_path / "verdict.md").read_text()
    assert json.loads((tmp_path / "verdict.json").read_text())["gpu"] == "made-up GPU"
    assert (tmp_path / "kernels.csv").read_text().splitlines()[1] == 'made up,1,"k, with a comma",1,2.0,0.5'
    assert not (tmp_path / "launch_table.txt").exists()


def tiling_rows(bench: Any, name: str, ms: float, heads: int = 3) -> list[dict[str, Any]]:
    tiles = next(one for one in bench("gpu_plan").TILINGS if one.name == name)
    stages = [("store", one) for one in tiles.store_stages] + [("entropy", one) for one in tiles.sums_stages]
    return [
        {"tiling": name, "head": head, "variant": variant, "stages": count, "kernel_ms": ms - 0.1 * count,
         "share_of_cublas": 0.8, "tflop_per_s": 1.0}
        for variant, count in stages for head in list(bench("gpu_plan").HEADS)[:heads]
    ]  # fmt: skip


def test_the_launch_table_is_the_fastest_that_was_right_everywhere(bench: Any) -> None:
    from grpo_fast.kernels.launch import Gemm

    table = bench("gpu_verdict").launch_table
    special, plain, narrow = "128x256x64w4sg16", "128x256x64w8g16", "128x128x64w8g16"

    def record(name: str, ms: float, status: str = "ok", heads: int = 3) -> dict[str, Any]:
        return made_up(f"tiles/{name}", *tiling_rows(bench, name, ms, heads), status=status)

    assert table([record(special, 5.0, heads=2)]) == ""
    rows = made_up("rows", *({"row_pass": key, "ms": ms} for key, ms in (("copy", 1), ("4096,16", 2), ("8192,8", 3))))
    text = table([record(special, 5.0), record(plain, 6.0), record(narrow, 1.0, status="failed"), rows])
    made = eval(f"dict({text})", {"Gemm": Gemm})  # as it is pasted
    assert made["store"] == Gemm(128, 256, 64, 4, 3, specialised=True)
    assert made["sums"] == Gemm(128, 256, 64, 4, 4, specialised=True)
    assert made["plain"] == (Gemm(128, 256, 64, 8, 3), Gemm(128, 256, 64, 8, 4))
    assert (made["row_block"], made["row_warps"]) == (4096, 16)
    assert "80.0 % of cuBLAS" in text
    for ms, chosen in ((4.0, True), (5.5, None)):  # the product in CUDA, faster and slower than Triton's
        text = table([record(special, 5.0), record(plain, 6.0), record("cuda", ms)])
        assert eval(f"dict({text})", {"Gemm": Gemm}) == {
            "store": Gemm(128, 256, 64, 4, 3, specialised=True),
            "sums": Gemm(128, 256, 64, 4, 4, specialised=True),
            "plain": (Gemm(128, 256, 64, 8, 3), Gemm(128, 256, 64, 8, 4)),
            **({"cuda": True} if chosen else {}),
        }


def test_a_tiling_refused_ahead_of_time_is_not_launched(bench: Any, tmp_path: Path) -> None:
    tune = bench("gpu_tune")
    name = tune.TILINGS[0].name
    rows = [{"tiling": name, "variant": "store", "stages": count, "violations": ["spills"]} for count in (2, 3)]
    (tmp_path / "steps.jsonl").write_text(json.dumps(made_up("ahead_of_time", *rows)) + "\n")
    with (tmp_path / "out").open("w") as out:
        job = bench("gpu_child").Job("cpu", True, [name], out, tmp_path / "steps.jsonl")
        with pytest.raises(bench("gpu_child").Absent, match="spills"):
            tune.tiles(job)
    written = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [row["refused"] for row in written] == ["spills", "spills"]


def test_tests_are_dealt_to_processes(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = bench("gpu_checks")
    monkeypatch.setattr(checks, "TEST_PROCESSES", 2)
    with (tmp_path / "rows").open("w") as out:
        job = bench("gpu_child").Job("cpu", True, ["-k", "old_gpu or cpu_tensor", "tests/kernels/test_launch.py"], out)
        checks.tests(job)
    row = json.loads((tmp_path / "rows").read_text().splitlines()[0])
    assert (row["passed"], row["skipped"]) == (1, 1) and not job.failed  # each in a process of its own


def test_a_test_file_that_cannot_be_read_costs_itself(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = bench("gpu_checks")
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    (tmp_path / "test_good.py").write_text("def test_one():\n    pass\n")
    (tmp_path / "test_lacking.py").write_text("import nobody_has_this\n\n\ndef test_two():\n    pass\n")
    with (tmp_path / "rows").open("w") as out:
        job = bench("gpu_child").Job("cpu", True, ["test_good.py", "test_lacking.py"], out)
        checks.tests(job)
    row = json.loads((tmp_path / "rows").read_text().splitlines()[0])
    assert row["passed"] == 1 and job.failed == ["pytest's exit code where it collects the tests"]


@pytest.mark.parametrize(
    ("program", "task", "lacking"),
    [("gpu_checks", "tests", "hypothesis"), ("gpu_measure", "step_trl", "trl"), ("gpu_measure", "train", "datasets")],
)
def test_what_is_not_installed_is_absent_by_name(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, task: str, lacking: str
) -> None:
    child, find = bench("gpu_child"), importlib.util.find_spec
    monkeypatch.setattr(child.importlib.util, "find_spec", lambda name: None if name == lacking else find(name))
    with (tmp_path / "rows").open("w") as out, pytest.raises(child.Absent, match=f"{lacking} not installed"):
        bench(program).TASKS[task](child.Job("cpu", True, [], out))


# what a step shows on a CPU is that it runs and how it ends; times of so small a shape mean nothing
@pytest.mark.parametrize(
    ("program", "task", "expected"),
    [
        ("gpu_exact", "on_policy", {"check", "passed"}),
        ("gpu_exact", "determinism", {"check", "passed"}),
        ("gpu_traces", "loss", {"trace", "wall_ms"}),
        ("gpu_tune", "chunks", {"chunk", "share"}),
        ("gpu_measure", "loss_sizes", {"impl", "share_of_floor"}),
    ],
)
def test_tiny_form(bench: Any, tmp_path: Path, program: str, task: str, expected: set[str]) -> None:
    path = tmp_path / "rows"
    with path.open("w") as out:
        job = bench("gpu_child").Job("cpu", True, [], out)
        bench(program).TASKS[task](job)
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found and expected <= found[0].keys() and not job.failed
    assert all(row["passed"] for row in found if "passed" in row)


def test_a_step_of_the_plan_as_the_session_runs_it(bench: Any, tmp_path: Path) -> None:
    (step,) = [one for one in bench("gpu_plan").STEPS["check"] if one.name == "sync"]
    record = bench("gpu_run").run_step(step, tmp_path, 60.0, ("--tiny", "--device", "cpu"))
    assert record["status"] == "absent" and record["reason"] == "needs a CUDA device"


def test_wrong_results_end_a_step_with_1(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = bench("gpu_exact")
    monkeypatch.setattr(exact, "LOGP_ERROR", 1e-12)  # what fp32 cannot meet
    with (tmp_path / "rows").open("w") as out:
        job = bench("gpu_child").Job("cpu", True, [], out)
        exact.accuracy(job)
    assert any(name.startswith("logp_error") for name in job.failed)
    assert os.path.getsize(tmp_path / "rows")
