"""The checks of a GPU session, one a process: `gpu_checks.py accuracy`. What is not within its bounds ends with 1."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cases import EPSILON, Case, Inputs, make_inputs
from gpu_child import Absent, Job, main, needs_modules
from gpu_exact import gradients, shape_of
from measure import ROOT, commit, interleave, machine, versions
from peak import peak_cuda
from peers import IMPLEMENTATIONS

TEST_PROCESSES = 8
_SANITIZERS = ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer")


def environment(job: Job) -> None:
    device = torch.device(job.device)
    job.row(machine=machine(device), versions=versions(), commit=commit())
    found = (ROOT / "grpo_fast" / "kernels" / "shifted_exp.py").is_file()
    job.check("grpo_fast/kernels is a folder of kernels", 0.0 if found else 1.0, 0.0)
    from grpo_fast.ops.backends import BACKENDS, usable

    for name in BACKENDS:
        ok, reason = usable(name)
        job.row(backend=name, usable=ok, reason=reason)
    from grpo_fast.kernels.head_gemm import why_unavailable

    missing = why_unavailable(torch.device(job.device, 0 if job.device == "cuda" else None))
    job.row(backend="csrc/head_gemm_sm90.cu", usable=missing is None, reason=missing or "built for this GPU")
    side, size = (256, 1 << 20) if job.tiny else (8192, 4 << 30)
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    steps = {"matmul": lambda: torch.mm(a, b), "copy": lambda: target.copy_(source)}
    timings = interleave(steps, 2 if job.tiny else 5, device, lambda: None)
    job.row(ceiling=f"bf16 matmul {side}³", tflop_per_s=2 * side**3 / timings["matmul"].median_ms / 1e9)
    job.row(ceiling=f"copy of {size >> 20} MiB", gb_per_s=2 * size / timings["copy"].median_ms / 1e6)


def tests(job: Job) -> None:
    """pytest with what follows, dealt to several processes: kernels are compiled as they are met, each on one core.

    What is skipped throughout shows nothing, and fails; so does a file that cannot be read, beside the others.
    """
    needs_modules("pytest", "hypothesis")
    # without the settings that need pytest-xdist
    pytest = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-o", "addopts=--import-mode=importlib"]
    found = subprocess.run([*pytest, "-qq", "--collect-only", *job.arguments], cwd=ROOT, capture_output=True, text=True)
    names = [line for line in found.stdout.splitlines() if "::" in line and not line.startswith("ERROR")]
    if not names:
        raise RuntimeError(f"no tests collected:\n{found.stdout[-4000:]}{found.stderr[-2000:]}")
    if found.returncode:
        print(found.stdout[-4000:], found.stderr[-2000:])
    size = -(-len(names) // min(TEST_PROCESSES, os.cpu_count() or 1))
    shares = [names[at : at + size] for at in range(0, len(names), size)]
    with ThreadPoolExecutor(len(shares)) as pool:
        done = list(pool.map(_told, ([*pytest, *share] for share in shares)))
    counted: Counter[str] = Counter()
    for _, last in done:
        for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last):
            counted[word] += int(number)
    job.row(tests=" ".join(job.arguments), **counted)
    job.check("pytest's exit code where it collects the tests", float(found.returncode), 0.0)
    job.check("processes with a test that failed", float(sum(code != 0 for code, _ in done)), 0.0)
    job.check("tests passed, at least one", -float(counted["passed"]), -1.0)


def _told(command: list[str]) -> tuple[int, str]:
    """Exit code and last line; every line is shown as it comes, so that a test that hangs is the next one."""
    last = ""
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert child.stdout is not None
    with child:
        for last in child.stdout:
            print(last, end="", flush=True)
    return child.returncode, last


Call = Callable[[], torch.Tensor]


def _calls(inputs: Inputs) -> dict[str, Call]:
    """The loss as it is promised to run without a host sync: rows known to the host, or nothing left out."""
    from grpo_fast import GRPOLoss

    loss_fn = GRPOLoss(loss_type="dapo", epsilon=EPSILON)
    b, t = inputs.targets.shape
    cu = torch.arange(b + 1, device=inputs.hidden.device) * t

    def host() -> torch.Tensor:
        return loss_fn(
            inputs.hidden, inputs.weight, inputs.targets, advantages=inputs.advantages_cpu, mask=inputs.mask_cpu,
            old_logps=inputs.old_logps,
        ).loss  # fmt: skip

    def padded() -> torch.Tensor:
        return loss_fn(
            inputs.hidden, inputs.weight, inputs.targets, advantages=inputs.advantages, mask=inputs.mask,
            old_logps=inputs.old_logps, compact=False,
        ).loss  # fmt: skip

    def packed() -> torch.Tensor:
        old = None if inputs.old_logps is None else inputs.old_logps.flatten()
        return loss_fn(
            inputs.hidden.flatten(0, 1), inputs.weight, inputs.targets.flatten(), advantages=inputs.advantages,
            mask=inputs.mask.flatten(), cu_seqlens=cu, old_logps=old, compact=False,
        ).loss  # fmt: skip

    return {"host rows": host, "padded, compact=False": padded, "packed on the device, compact=False": packed}


def sync(job: Job) -> None:
    job.needs_cuda()
    inputs = make_inputs(Case(*shape_of(job, 4096), torch.bfloat16, layout="padded"), torch.device("cuda"))
    for name, call in _calls(inputs).items():
        call().backward()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call().backward()
            error = None
        except RuntimeError as found:
            error = str(found).splitlines()[0]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        job.check(f"host syncs, {name}", 0.0 if error is None else 1.0, 0.0, error=error)


def graph(job: Job) -> None:
    """Captured once, replayed on hidden states that changed since: the same gradients as launched one by one."""
    job.needs_cuda()
    inputs = make_inputs(Case(*shape_of(job, 4096), torch.bfloat16), torch.device("cuda"))
    for name, call in _calls(inputs).items():
        if name == "host rows":
            continue  # what the host decides cannot be replayed
        try:
            differ, error = _replay(inputs, call), None
        except RuntimeError as found:
            differ, error = float("inf"), str(found).splitlines()[0]
        job.check(f"replayed gradients that differ, {name}", differ, 0.0, error=error)


def _replay(inputs: Inputs, call: Call) -> float:
    def run() -> None:
        inputs.hidden.grad = inputs.weight.grad = None
        call().backward()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(side)
    inputs.hidden.grad = inputs.weight.grad = None
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        call().backward()
    static = (inputs.hidden.grad, inputs.weight.grad)
    with torch.no_grad():
        inputs.hidden.mul_(0.5)
    captured.replay()
    replayed = [one.clone() for one in static if one is not None]
    run()
    fresh = [one for one in (inputs.hidden.grad, inputs.weight.grad) if one is not None]
    return float(sum((a != b).sum().item() for a, b in zip(replayed, fresh, strict=True)))


def memory(job: Job) -> None:
    job.needs_cuda()
    from grpo_fast.ops.layout import default_chunk_bytes

    device = torch.device("cuda")
    budget = default_chunk_bytes(device) / 1e6
    for head in ("trained", "frozen", "no_grad"):
        case = Case(*shape_of(job, 65536), torch.bfloat16, head)
        inputs = make_inputs(case, device, realistic=False)
        calls = {"ours": IMPLEMENTATIONS["ours"], "ours_linear": IMPLEMENTATIONS["ours_linear"]}
        for name, implementation in calls.items():

            def run(implementation: Any = implementation, inputs: Inputs = inputs, case: Case = case) -> None:
                if case.head == "no_grad":
                    with torch.no_grad():
                        implementation.logps(inputs)
                else:
                    implementation.loss(inputs)[0].backward()

            run()
            peak = peak_cuda(run, inputs)
            job.check(f"extra MB at N = {case.rows}, {name}, {head}", peak, budget, peak_mb=peak, budget_mb=budget)


def sanitizer(job: Job) -> None:
    job.needs_cuda()
    tool = next((found for name in _SANITIZERS if (found := shutil.which(name))), None)
    if tool is None:
        raise Absent("compute-sanitizer is not installed")
    kind = job.arguments[0]
    program = [sys.executable, str(Path(__file__)), "small", "--device", "cuda"]
    subprocess.run(program, capture_output=True, check=False)  # compiles outside the tool, which slows everything down
    command = [tool, "--tool", kind, "--error-exitcode", "9", *program]
    uncached = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # an allocation for each tensor: overruns are seen
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=uncached)
    print(done.stdout[-8000:], done.stderr[-2000:])
    if "Device not supported" in done.stdout + done.stderr:
        raise Absent("compute-sanitizer does not support this machine")
    summary = [line for line in done.stdout.splitlines() if "SUMMARY" in line]
    job.check(f"{kind} ended with", float(done.returncode), 0.0, summary=summary)


def small(job: Job) -> None:
    """Every kernel once, at shapes with tails: what the sanitizer watches."""
    from grpo_fast import GRPOLoss, group_advantages, linear_logprobs
    from grpo_fast.ops.kv_gather import kv_gather
    from grpo_fast.types import RowGather

    device = torch.device(job.device)
    inputs = make_inputs(Case(40, 72, 1003, torch.bfloat16, layout="padded"), device)
    variants: list[dict[str, Any]] = [
        {}, {"softcap": 30.0}, {"importance_sampling_level": "sequence"}, {"entropy_coef": 0.01}
    ]  # fmt: skip
    for options in variants:
        out = GRPOLoss(loss_type="grpo", **options)(
            inputs.hidden, inputs.weight, inputs.targets, advantages=inputs.advantages_cpu, mask=inputs.mask_cpu,
            old_logps=inputs.old_logps,
        )  # fmt: skip
        out.loss.backward()
        job.row(small=str(options), loss=out.loss.item())
    low = replace(
        inputs, old_logps=torch.full_like(inputs.mask, -600.0, dtype=torch.float32)
    )  # raised too far: rescued
    job.row(small="rescued rows", loss=float(gradients(low).logps.sum()))
    linear_logprobs(inputs.hidden, inputs.weight, inputs.targets, entropy=True)
    group_advantages(torch.randn(40, device=device), 8)
    x = torch.randn(7, 3, 40, device=device, requires_grad=True)
    index = torch.tensor([0, 6, 6, 3], dtype=torch.int32, device=device)
    offsets = torch.tensor([0, 1, 1, 1, 2, 2, 2, 4], device=device)
    dest = torch.tensor([0, 3, 1, 2], dtype=torch.int32, device=device)
    kv_gather(x, RowGather(index, offsets, dest)).sum().backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    job.row(small="done")


TASKS: dict[str, Callable[[Job], None]] = {
    "environment": environment, "tests": tests, "sync": sync, "graph": graph, "memory": memory,
    "sanitizer": sanitizer, "small": small,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(TASKS))
