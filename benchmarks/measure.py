"""How things are measured: interleaved timing, the bare-GEMM floor, errors against fp64, and what ran where."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from cases import Case, Inputs, Result
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
_FLOOR_BYTES = {"cpu": 1 << 30, "cuda": 4 << 30}
_SHORTEST_SAMPLE_S = 0.05
_PACKAGES = (
    "grpo-fast", "torch", "triton", "transformers", "trl", "liger-kernel", "cut-cross-entropy", "verl", "numpy",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Timing:
    median_ms: float
    min_ms: float
    max_ms: float
    samples: int


@dataclass(frozen=True, slots=True)
class Errors:
    logp: float  # largest |logp - exact| in nats
    grad_hidden: float | None = None  # |g - exact| / |exact|, Frobenius
    grad_weight: float | None = None
    grad_worst_row: float | None = None  # the largest relative error of one token's hidden gradient

    @property
    def grad(self) -> float | None:
        found = [error for error in (self.grad_hidden, self.grad_weight) if error is not None]
        return max(found) if found else None


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleave(
    steps: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, tick: Callable[[], None]
) -> dict[str, Timing]:
    """Each round runs every step once, in an order that rotates, so that drift of the machine falls on all alike.

    A step shorter than 50 ms is repeated within its round until it is not.
    """
    names = list(steps)
    repeats = {name: _repeats(step, device) for name, step in steps.items()}
    samples: dict[str, list[float]] = {name: [] for name in names}
    for round_index in range(rounds):
        for position in range(len(names)):
            name = names[(position + round_index) % len(names)]
            samples[name].append(_seconds(steps[name], repeats[name], device) * 1e3)
            tick()
    return {name: Timing(statistics.median(ms), min(ms), max(ms), len(ms)) for name, ms in samples.items()}


def _repeats(step: Callable[[], object], device: torch.device) -> int:
    return max(1, min(100, round(_SHORTEST_SAMPLE_S / _seconds(step, 1, device))))  # this run also warms up


def _seconds(step: Callable[[], object], repeats: int, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


def bare_gemms(case: Case, inputs: Inputs) -> Callable[[], None]:
    """The products that the loss cannot do without, on the scored rows, into outputs allocated beforehand."""
    hidden = inputs.hidden.detach().flatten(0, 1)[inputs.rows]
    weight = inputs.weight.detach()
    step = max(1, min(len(hidden), _FLOOR_BYTES[hidden.device.type] // (case.vocab * weight.element_size())))
    logits = hidden.new_empty(step, case.vocab)
    grad_hidden = torch.empty_like(hidden)
    grad_weight = torch.zeros_like(weight) if case.head == "trained" else None

    @torch.no_grad()
    def run() -> None:
        for start in range(0, len(hidden), step):
            chunk = hidden[start : start + step]
            z = logits[: len(chunk)]
            torch.mm(chunk, weight.T, out=z)
            if case.head != "no_grad":
                torch.mm(z, weight, out=grad_hidden[start : start + step])
            if grad_weight is not None and start == 0:
                torch.mm(z.T, chunk, out=grad_weight)
            elif grad_weight is not None:
                grad_weight.addmm_(z.T, chunk)

    return run


def compare(logps: Tensor, grad_hidden: Tensor | None, grad_weight: Tensor | None, exact: Result) -> Errors:
    """`logps [N]` and `grad_hidden [N, H]` of the scored rows against fp64. NaN counts as infinitely wrong."""
    worst_row = None
    if grad_hidden is not None:
        row_norm = exact.grad_hidden.norm(dim=1)
        row_error = (grad_hidden.double() - exact.grad_hidden).norm(dim=1)
        worst_row = _finite((row_error / row_norm)[row_norm > 0].max().item())
    return Errors(
        logp=_finite((logps.double() - exact.logps).abs().max().item()),
        grad_hidden=None if grad_hidden is None else _relative(grad_hidden, exact.grad_hidden),
        grad_weight=None if grad_weight is None else _relative(grad_weight, exact.grad_weight),
        grad_worst_row=worst_row,
    )


def _relative(value: Tensor, exact: Tensor) -> float:
    return _finite(((value.double() - exact).norm() / exact.norm()).item())


def _finite(error: float) -> float:
    return error if error == error else float("inf")


def import_package() -> None:
    """The installed grpo_fast, or else this checkout's, without putting the checkout (and its kernels/) on the path."""
    if importlib.util.find_spec("grpo_fast") is not None:
        return
    init = ROOT / "grpo_fast" / "__init__.py"
    spec = importlib.util.spec_from_file_location("grpo_fast", init, submodule_search_locations=[str(init.parent)])
    if spec is None or spec.loader is None or not init.exists():
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["grpo_fast"] = module
    spec.loader.exec_module(module)


def machine(device: torch.device) -> dict[str, object]:
    """What a reader needs to place the numbers, and nothing that names the machine or its user."""
    info: dict[str, object] = {
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "memory_gb": _memory_gb(),
        "load_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpu": None,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        info |= {
            "gpu": properties.name,
            "gpu_memory_gb": round(properties.total_memory / 2**30, 1),
            "gpu_driver": _gpu_driver(),
            "cuda": torch.version.cuda,
            "tf32": torch.backends.cuda.matmul.allow_tf32,
        }
    return info


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The checkout's commit, marked when the code that is measured or measures differs from it."""
    if shutil.which("git") is None:
        return "unknown"

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)

    head = git("rev-parse", "HEAD")
    if head.returncode != 0:
        return "unknown"
    code = ("grpo_fast", "kernels", "csrc", "benchmarks", ":(exclude)benchmarks/results")
    return head.stdout.strip() + ("-modified" if git("status", "--porcelain", "--", *code).stdout.strip() else "")


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


def _gpu_driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.splitlines()[0].strip() if answer.returncode == 0 and answer.stdout else None
