"""`throughput.py loss`: the GRPO loss beside its peers in time, memory and accuracy, on the same rows.

No time is taken before log-probs and gradients have been compared with fp64, and none is reported for an
implementation that is wrong beyond what its dtype explains: four times the error of full logits in that dtype.
"""

from __future__ import annotations

import argparse
import gc
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from cases import Case, Inputs, Result, compute, make_inputs
from measure import Errors, Timing, bare_gemms, commit, compare, interleave, machine, versions
from peak import peak_cuda, peaks_cpu, step, warm_up
from peers import IMPLEMENTATIONS, Implementation
from progress import Progress
from render import save, show

__all__ = ["BRIEF", "add_arguments", "run", "save", "show"]

Shape = tuple[int, int, int]  # N, H, V

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FLOOR = "floor"
_ALLOWED_OVER_EAGER = 4.0
_LOGP_SLACK = {torch.float32: 1e-5}  # any other dtype: 1e-3
_GRAD_SLACK = {torch.float32: 1e-5}  # any other dtype: 4e-3, one rounding of the result

QWEN_HEADS = {"Qwen2-VL-2B": (1536, 151936), "Qwen2.5-VL-3B": (2048, 151936), "Qwen2.5-VL-7B": (3584, 152064)}
CPU_SHAPES = [(1024, 512, 32768), (512, 256, 151936)]


@dataclass(frozen=True, slots=True)
class Checked:
    """One implementation on one case after the comparison with fp64."""

    run: Callable[[], object]
    errors: Errors
    refused: str | None
    peak_mb: float | None


HEADS = ("trained", "frozen")
BRIEF = {
    "cpu": ["--rounds", "5", "--shape", "512,512,32768", "--heads", "trained", "--no-variants", "--no-peak"],
    "cuda": ["--rounds", "5", "--shape", "8192,1536,151936", "--no-variants"],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", type=_shape, action="append", metavar="N,H,V", help="rows, hidden size, vocabulary")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--only", type=_names, default=list(IMPLEMENTATIONS), metavar="NAME,…",
                        help=f"implementations to run, of {','.join(IMPLEMENTATIONS)}")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--no-variants", action="store_true", help="leave the on-policy, padded, half-zero and no-gradient cases out"
    )
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS), help="default: both")
    parser.add_argument(
        "--no-peak", action="store_true", help="leave memory out; on a CPU it takes processes of its own"
    )
    parser.add_argument("--quick", action="store_true", help="one small shape and two rounds: checks, not numbers")


def run(args: argparse.Namespace) -> dict[str, object]:
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    info = {"machine": machine(device), "versions": versions(), "commit": commit()}
    cases = plan(args)
    usable, unavailable = _usable(args.only, device, cases)
    timed = [case for case in cases if case.timed]
    rounds = 2 if args.quick else args.rounds
    with Progress() as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own
        for case in cases:
            names = [name for name in usable if IMPLEMENTATIONS[name].unavailable(device, case.dtype) is None]
            progress.expect(len(names) * (1 + (rounds if case.timed else 0)) + (rounds if case.timed else 0))
        peaks = device.type == "cpu" and not args.no_peak
        if peaks:
            progress.expect(len(usable) * len(timed))
        rows = []
        for case in cases:
            progress.say(str(case))
            rows += measure_case(case, usable, device, rounds, progress.tick)
        if peaks:
            _add_cpu_peaks(rows, timed, usable, args.threads, progress)
    return {"loss": rows, "unavailable": unavailable, **info}


def plan(args: argparse.Namespace) -> list[Case]:
    cuda = args.device == "cuda"
    dtype = DTYPES[args.dtype or ("bf16" if cuda else "fp32")]
    accuracy: list[Case] = []
    shapes: list[Shape] = args.shape
    with_variants = shapes
    if args.quick:
        shapes = with_variants = args.shape or [(64, 64, 4096)]
        accuracy = [Case(64, 64, 4096, torch.bfloat16, policy="on", timed=False)]
    elif not args.shape and cuda:
        shapes = [(rows, *head) for head in QWEN_HEADS.values() for rows in (1024, 4096, 16384, 65536)]
        with_variants = [shape for shape in shapes if shape[0] == 4096]
    elif not args.shape:
        shapes, with_variants = CPU_SHAPES, CPU_SHAPES[:1]
        accuracy = [Case(192, 1024, 32768, torch.bfloat16, policy="on", timed=False)]
    cases: list[Case] = []
    for shape in shapes:
        cases += [Case(*shape, dtype, head) for head in args.heads]
        if shape in with_variants and not args.no_variants:
            cases += _variants(shape, dtype)
    return cases + accuracy


def _variants(shape: Shape, dtype: torch.dtype) -> list[Case]:
    return [
        Case(*shape, dtype, "no_grad"),
        Case(*shape, dtype, policy="on"),
        Case(*shape, dtype, layout="padded"),
        Case(*shape, dtype, layout="half_zero"),
    ]


def measure_case(
    case: Case, names: Sequence[str], device: torch.device, rounds: int, tick: Callable[[], None]
) -> list[dict[str, object]]:
    torch.compiler.reset()  # what one case compiled must not exhaust the recompilation limit of the next
    inputs = make_inputs(case, device)
    exact = compute(inputs, torch.float64)
    eager = compute(inputs, case.dtype)
    allowed = _allowed(case, compare(eager.logps, eager.grad_hidden, eager.grad_weight, exact))
    del eager
    floor = bare_gemms(case, inputs) if case.timed else None  # its buffers weigh on the checks as on the timing

    checked: dict[str, Checked] = {}
    failed: dict[str, str] = {}
    for name in names:
        implementation = IMPLEMENTATIONS[name]
        if implementation.unavailable(device, case.dtype) is not None:
            continue
        try:
            checked[name] = _check(implementation, case, inputs, exact, allowed)
        except (ImportError, RuntimeError, ValueError, TypeError, AssertionError) as error:
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]
        inputs.hidden.grad = inputs.weight.grad = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        tick()
    del exact

    timings: dict[str, Timing] = {}
    if floor is not None:
        steps = {name: found.run for name, found in checked.items() if found.refused is None}
        timings = interleave({FLOOR: floor, **steps}, rounds, device, tick)
    return [
        *(_row(case, name, found, timings, allowed) for name, found in checked.items()),
        *(_row(case, name, None, timings, allowed, reason) for name, reason in failed.items()),
    ]


def _check(implementation: Implementation, case: Case, inputs: Inputs, exact: Result, allowed: Errors) -> Checked:
    warm_up(implementation, case, inputs.hidden.device)
    own = implementation.prepare(inputs)
    run = step(implementation, own, case)
    results: list[torch.Tensor | None] = []
    peak_mb = None
    if own.hidden.device.type == "cuda":
        peak_mb = peak_cuda(lambda: results.append(run()), own)
    else:
        results.append(run())
    logps = results[0]
    if logps is None:
        with torch.no_grad():
            logps = implementation.logps(own)
    if case.head != "no_grad" and own.hidden.grad is None:
        raise RuntimeError("no gradient reached the hidden states")
    if case.head == "trained" and own.weight.grad is None:
        raise RuntimeError("no gradient reached the head")
    grad_hidden = None if own.hidden.grad is None else own.hidden.grad.flatten(0, 1)[own.rows]
    # a loss may drop the rows that have no gradient: log-probs are compared on the others
    live = own.advantages.repeat_interleave(own.mask.shape[1])[own.rows] != 0
    logps = torch.where(live, logps.flatten()[own.rows].double(), exact.logps)
    errors = compare(logps, grad_hidden, own.weight.grad, exact)
    own.hidden.grad = own.weight.grad = None
    return Checked(run, errors, _refusal(errors, allowed), peak_mb)


def _allowed(case: Case, eager: Errors) -> Errors:
    grad = _ALLOWED_OVER_EAGER * (eager.grad or 0.0) + _GRAD_SLACK.get(case.dtype, 4e-3)
    return Errors(_ALLOWED_OVER_EAGER * eager.logp + _LOGP_SLACK.get(case.dtype, 1e-3), grad, grad)


def _refusal(errors: Errors, allowed: Errors) -> str | None:
    assert allowed.grad is not None
    if errors.logp > allowed.logp:
        return f"refused: log-prob error {errors.logp:.1e} (allowed {allowed.logp:.1e})"
    if errors.grad is not None and errors.grad > allowed.grad:
        return f"refused: gradient error {errors.grad:.1e} (allowed {allowed.grad:.1e})"
    return None


def _row(
    case: Case, name: str, found: Checked | None, timings: dict[str, Timing], allowed: Errors, reason: str | None = None
) -> dict[str, object]:
    floor, timing = timings.get(FLOOR), timings.get(name)
    errors = found.errors if found is not None else None
    status = "ok"
    if found is None:
        status = "failed"
    elif found.refused is not None:
        status, reason = "refused", found.refused
    elif timing is None:
        status = "accuracy only"
    return {
        "impl": name,
        **case.as_dict(),
        "ms": timing.median_ms if timing else None,
        "ms_min": timing.min_ms if timing else None,
        "ms_max": timing.max_ms if timing else None,
        "samples": timing.samples if timing else 0,
        "floor_ms": floor.median_ms if floor else None,
        "share_of_floor": floor.median_ms / timing.median_ms if floor and timing else None,
        "gflops_per_s": case.flops / timing.median_ms / 1e6 if timing else None,
        "peak_mb": found.peak_mb if found else None,
        "logp_error": errors.logp if errors else None,
        "grad_error": errors.grad if errors else None,
        "grad_hidden_error": errors.grad_hidden if errors else None,
        "grad_weight_error": errors.grad_weight if errors else None,
        "grad_worst_row_error": errors.grad_worst_row if errors else None,
        "logp_allowed": allowed.logp,
        "grad_allowed": None if case.head == "no_grad" else allowed.grad,
        "status": status,
        "reason": reason,
    }


def _add_cpu_peaks(
    rows: list[dict[str, object]], cases: Sequence[Case], names: Sequence[str], threads: int, progress: Progress
) -> None:
    for name in names:
        progress.say(f"peak memory of {IMPLEMENTATIONS[name].label}")
        for case, peak_mb in peaks_cpu(name, cases, threads, progress.tick).items():
            described = case.as_dict()
            for row in rows:
                if row["impl"] == name and row["status"] == "ok" and described.items() <= row.items():
                    row["peak_mb"] = peak_mb


def _usable(names: Sequence[str], device: torch.device, cases: Sequence[Case]) -> tuple[list[str], dict[str, str]]:
    unavailable: dict[str, str] = {}
    for name in names:
        reasons = [IMPLEMENTATIONS[name].unavailable(device, case.dtype) for case in cases]
        if reasons and all(reasons):
            unavailable[name] = str(reasons[0])
    return [name for name in names if name not in unavailable], unavailable


def _shape(text: str) -> Shape:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not N,H,V (three positive whole numbers)")
    rows, hidden, vocab = map(int, parts)
    return rows, hidden, vocab


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in IMPLEMENTATIONS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no implementation {', '.join(unknown)}; one of {', '.join(IMPLEMENTATIONS)}")
    return names
