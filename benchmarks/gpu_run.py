"""Running a plan: each step in a process of its own, killed at its limit, its findings kept whatever becomes of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpu_child import ABSENT
from gpu_plan import Step, limit_of

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LEAST_SECONDS = 5  # below that a step is not worth starting
ANSWER_SECONDS = 15  # for nvidia-smi to answer, and for a killed process to go: a driver that hangs holds both
_TAIL = 1500  # characters of a step's output in its record; session.log has all of it
_SMI = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "power.limit",
        "temperature.gpu")  # fmt: skip


def gpu_state() -> dict[str, str] | None:
    """Name, driver, clocks and power as nvidia-smi reads them; nothing is set."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", f"--query-gpu={','.join(_SMI)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        return None
    if answer.returncode != 0 or not answer.stdout.strip():
        return None
    return dict(zip(_SMI, (value.strip() for value in answer.stdout.splitlines()[0].split(",")), strict=False))


def run_steps(
    part: str, steps: Sequence[Step], out: Path, budget: float, stamp: dict[str, Any], child_flags: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Records of the steps, each appended to out/steps.jsonl as it ends. `stamp` (commit, GPU) goes into every one."""
    end = time.monotonic() + budget
    records = []
    for number, step in enumerate(steps):
        limit = limit_of(step, steps[number + 1 :], end - time.monotonic())
        record = {"part": part, "step": step.name, "shows": step.shows, **stamp}
        if limit < LEAST_SECONDS:
            record |= {"status": "skipped", "reason": "the call's budget was spent", "seconds": 0.0, "rows": []}
        else:
            print(f"{part}/{step.name} ({limit:.0f} s at most): {step.shows}", file=sys.stderr, flush=True)
            record |= run_step(step, out, limit, child_flags)
        with (out / "steps.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(
            f"  {record['status']}, {record['seconds']:.1f} s {record.get('reason', '')}", file=sys.stderr, flush=True
        )
        records.append(record)
    return records


def run_step(step: Step, out: Path, limit: float, child_flags: Sequence[str] = ()) -> dict[str, Any]:
    """ok, failed, timeout, or absent where the machine lacks what it needs; with every row written until then."""
    handle, name = tempfile.mkstemp(suffix=".jsonl")
    os.close(handle)
    rows, log = Path(name), out / "session.log"
    command = [sys.executable, str(HERE / f"{step.program}.py"), step.task, *child_flags, "--rows", str(rows),
               "--session", str(out / "steps.jsonl"), *step.arguments]  # fmt: skip
    start = time.monotonic()
    with log.open("ab") as output:
        output.write(f"\n=== {step.name}\n".encode())
        output.flush()
        begin = output.tell()
        child = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT, start_new_session=True)
        try:
            code: int | None = child.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        _end_session(child)
    seconds = time.monotonic() - start
    found = [_loads(line) for line in rows.read_text().splitlines()]
    rows.unlink()
    status = "timeout" if code is None else {0: "ok", ABSENT: "absent"}.get(code, "failed")
    record = {"status": status, "seconds": round(seconds, 2), "limit": round(limit, 1), "rows": found}
    if status == "timeout":
        record["reason"] = f"killed after {limit:.0f} s"
    elif status == "absent":
        record["reason"] = found[-1]["absent"] if found else ""
    elif status == "failed":
        record["reason"] = f"killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with {code}"
    if status in ("timeout", "failed"):
        record["output"] = log.read_bytes()[begin:].decode(errors="replace")[-_TAIL:]
    if state := gpu_state():
        record["gpu_state"] = state
    return record


def _end_session(child: subprocess.Popen[bytes]) -> None:
    """What the step started goes with it: the step leads its own process group."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        child.wait(ANSWER_SECONDS)


def _loads(line: str) -> dict[str, Any]:
    try:
        return json.loads(line)
    except json.JSONDecodeError:  # the step died while it wrote
        return {"broken": line[:200]}


def read_records(path: Path) -> list[dict[str, Any]]:
    """The last record of every step, of the last record's commit and GPU alone."""
    if not path.exists():
        return []
    records = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    if not records:
        return []
    same = [one for one in records if all(one.get(key) == records[-1].get(key) for key in ("commit", "gpu"))]
    return list({(one["part"], one["step"]): one for one in same}.values())
