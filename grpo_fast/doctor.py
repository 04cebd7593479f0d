"""What works on this machine: versions, devices, backends, and the loss end to end against plain torch in fp64."""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

import grpo_fast
from grpo_fast.ops import backends
from grpo_fast.policy.attention import usable_attention

PACKAGES = (
    "torch", "triton", "numpy", "transformers", "trl", "peft", "liger-kernel", "flash-attn", "xformers", "torchvision",
)  # fmt: skip
BATCH, LENGTH, HIDDEN, VOCABULARY = 8, 32, 256, 8192
EPSILON = 0.2


@dataclass(frozen=True, slots=True)
class Backend:
    name: str
    usable: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Choice:
    op: str
    backend: str | None  # None: refused
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LossCheck:
    """Largest relative error against fp64, of the loss and its two gradients; median milliseconds of both."""

    device: str
    dtype: str
    error: float
    torch_error: float
    ms: float
    torch_ms: float

    @property
    def passed(self) -> bool:
        return self.error <= 2 * self.torch_error + torch.finfo(torch.float32).eps


@dataclass(frozen=True, slots=True)
class Report:
    version: str
    python: str
    platform: str
    packages: dict[str, str | None]
    devices: dict[str, str]
    backends: list[Backend]
    choices: list[Choice]
    attention: list[Backend]  # by preference: the first usable one serves, for bf16 and head size 128
    loss: LossCheck | None
    failure: str | None  # why the loss did not run

    @property
    def passed(self) -> bool:
        return self.loss is not None and self.loss.passed


def run(as_json: bool) -> int:
    report = examine()
    if as_json:
        print(json.dumps({**asdict(report), "passed": report.passed}, indent=2))
    else:
        show(report)
    return 0 if report.passed else 1


def examine() -> Report:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    loss = failure = None
    try:
        loss = check_loss(device, dtype)
    except (ImportError, RuntimeError, ValueError) as error:
        failure = f"{type(error).__name__}: {error}"
    return Report(
        version=grpo_fast.__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: installed(name) for name in PACKAGES},
        devices=devices(),
        backends=[*(Backend(name, *backends.usable(name)) for name in backends.BACKENDS), *hopper(device)],
        choices=[choice(op, device, dtype) for op in backends.OPS],
        attention=[Backend(name, why is None, why or "usable") for name, why in usable_attention().items()],
        loss=loss,
        failure=failure,
    )


def hopper(device: torch.device) -> list[Backend]:
    """The head product of csrc/, where there is a GPU for it."""
    if device.type != "cuda" or torch.cuda.get_device_capability() != (9, 0):
        return []
    from grpo_fast.kernels.head_gemm import why_unavailable
    from grpo_fast.kernels.launch import TABLES

    reason = why_unavailable(torch.device("cuda", torch.cuda.current_device()))
    taken = "GEMM 1 takes it" if TABLES[90].cuda else "built; GEMM 1 takes Triton's by the launch table"
    return [Backend("sm_90a (csrc/)", reason is None, reason or taken)]


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def devices() -> dict[str, str]:
    found = {"cpu": f"{platform.machine()}, {torch.get_num_threads()} threads"}
    for index in range(torch.cuda.device_count()):
        props = torch.cuda.get_device_properties(index)
        memory = props.total_memory / 2**30
        found[f"cuda:{index}"] = f"{props.name}, sm_{props.major}{props.minor}, {memory:.0f} GiB"
    return found


def choice(op: str, device: torch.device, dtype: torch.dtype) -> Choice:
    try:
        return Choice(op, backends.choose(op, device, dtype))
    except (RuntimeError, ValueError) as error:
        return Choice(op, None, str(error))


def check_loss(device: torch.device, dtype: torch.dtype) -> LossCheck:
    """Clipped GRPO, off policy, every fourth completion cut short; gradients for the hidden states and the head."""
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(BATCH, LENGTH, HIDDEN, generator=random)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=random) * (3 / HIDDEN**0.5)
    targets = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=random)
    advantages = torch.randn(BATCH, generator=random)
    mask = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    mask[::4, LENGTH // 2 :] = False
    hidden, weight = hidden.to(device, dtype), weight.to(device, dtype)
    targets, advantages, mask = targets.to(device), advantages.to(device), mask.to(device)
    with torch.no_grad():
        on_policy = torch.log_softmax(hidden.double() @ weight.double().T, -1).gather(-1, targets[..., None])[..., 0]
    old_logps = (on_policy + 0.1 * torch.randn(BATCH, LENGTH, generator=random).to(device)).float()
    loss_fn = grpo_fast.GRPOLoss(loss_type="dapo", epsilon=EPSILON)

    def ours() -> list[Tensor]:
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        out = loss_fn(h, w, targets, advantages=advantages, mask=mask, old_logps=old_logps)
        return [out.loss.detach(), *torch.autograd.grad(out.loss, (h, w))]

    def plain(precision: torch.dtype) -> list[Tensor]:
        h, w = hidden.to(precision).requires_grad_(), weight.to(precision).requires_grad_()
        logits = (h @ w.T).to(torch.promote_types(precision, torch.float32))
        logps = torch.log_softmax(logits, -1).gather(-1, targets[..., None])[..., 0]
        ratio = (logps - old_logps).exp()
        each = torch.minimum(ratio * advantages[:, None], ratio.clamp(1 - EPSILON, 1 + EPSILON) * advantages[:, None])
        loss = -each[mask].sum() / mask.sum()
        return [loss.detach(), *torch.autograd.grad(loss, (h, w))]

    truth = plain(torch.float64)
    return LossCheck(
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        error=largest_error(ours(), truth),
        torch_error=largest_error(plain(dtype), truth),
        ms=milliseconds(ours, device),
        torch_ms=milliseconds(lambda: plain(dtype), device),
    )


def largest_error(found: list[Tensor], truth: list[Tensor]) -> float:
    errors = [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, truth, strict=True)]
    return max(errors) if all(error == error for error in errors) else float("inf")  # max() would lose a NaN


def milliseconds(step: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def show(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)

    def table(title: str, rows: list[tuple[str | Text, str, str]]) -> None:
        grid = Table(box=None, show_header=False, pad_edge=False)
        for mark, name, found in rows:
            grid.add_row(mark, Text(name), Text(found))
        console.print(Text(title, "bold"), grid, "", sep="\n")

    def verdict(good: bool) -> Text:
        return Text("ok", "green") if good else Text("no", "bold red")

    console.print(f"grpo-fast {report.version}, Python {report.python}, {report.platform}\n", style="bold")
    table("Packages", [("", name, found or "not installed") for name, found in report.packages.items()])
    table("Devices", [("", *device) for device in report.devices.items()])
    table("Backends", [(verdict(b.usable), b.name, b.reason) for b in report.backends])
    table("Each op takes", [(verdict(c.backend is not None), c.op, c.backend or c.reason) for c in report.choices])
    serving = next(a.name for a in report.attention if a.usable)
    table(
        f"Attention of GRPOPolicy: {serving} serves",
        [(verdict(a.usable), a.name, a.reason) for a in report.attention],
    )
    check = report.loss
    if check is None:
        console.print(f"The loss did not run: {report.failure}", style="bold red")
        return
    table(
        f"The loss and its gradients, {check.dtype} on {check.device}, {BATCH}×{LENGTH} tokens, hidden {HIDDEN}, "
        f"vocabulary {VOCABULARY}: error against fp64, time",
        [
            (verdict(check.passed), "grpo-fast", f"{check.error:.1e}, {check.ms:.0f} ms"),
            ("", "plain torch", f"{check.torch_error:.1e}, {check.torch_ms:.0f} ms"),
        ],
    )
    if check.passed:
        console.print("The loss works and is as accurate as plain torch.", style="green")
    else:
        console.print("The loss is less accurate than plain torch.", style="bold red")
