"""Launch tables and chunk sizes from measurements, each beside cuBLAS at the same shape, interleaved.

GEMM 1 is timed as a kernel, between events that Triton's launch hooks record, and as the whole op with its guards. A
tiling that the ahead-of-time judge refuses is not launched; one that is wrong is not timed.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from cases import Case, make_inputs
from gpu_child import Absent, Job, main
from gpu_exact import bytes_for, chunk_rows
from gpu_plan import CHUNK_ROWS, HEADS, ROW_BLOCKS, ROW_WARPS, TILINGS, Tiles
from measure import bare_gemms, interleave
from peak import step as unit_of_work
from peers import IMPLEMENTATIONS
from torch import Tensor

VARIANTS = {"store": "store_stages", "sums": "sums_stages", "entropy": "sums_stages"}
CHECKED_ROWS, TIMED_ROWS, ROUNDS = 777, 8448, 9
LOGP_ERROR = 1e-4
KERNEL = "_gemm_exp_kernel"


def ahead_of_time(job: Job) -> None:
    """Needs no GPU. What is compiled here also fills Triton's cache for the steps that launch it."""
    import aot_report

    arch = 90
    if job.device == "cuda":
        from grpo_fast.kernels.launch import table_for

        arch = table_for(torch.cuda.get_device_capability()).arch
    entries = {}
    triton = [tiles for tiles in TILINGS if not tiles.cuda]
    for tiles in triton[:1] if job.tiny else triton:
        for variant, stages in VARIANTS.items():
            for count in getattr(tiles, stages)[:1] if job.tiny else getattr(tiles, stages):
                constants = {
                    "BM": tiles.bm, "BN": tiles.bn, "BK": tiles.bk, "GROUP": tiles.group, "DESCRIPTORS": True,
                    "SPECIALISED": tiles.specialised, "STORE": variant == "store", "ENTROPY": variant == "entropy",
                }  # fmt: skip
                entries[tiles.name, variant, count] = aot_report.Entry(
                    arch, "shifted_exp", KERNEL, variant, constants, tiles.warps, count, gemm=True,
                    specialised=tiles.specialised, descriptors=True,
                )  # fmt: skip
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(aot_report.compile_entry, entry): key for key, entry in entries.items()}
        for done in as_completed(waiting):
            tiling, variant, count = waiting[done]
            error = done.exception()
            if error is not None:
                found: dict[str, Any] = {"violations": [f"{type(error).__name__}: {str(error)[:200]}"]}
            else:
                binary = done.result()
                found = {"registers": binary.registers, "shared": binary.shared, "violations": list(binary.violations)}
            job.row(tiling=tiling, variant=variant, stages=count, **found)


def refused(job: Job, tiles: Tiles) -> dict[tuple[str, int], str]:
    """(variant, stages) that an earlier step found not to compile well, and why."""
    if job.session is None or not job.session.exists():
        return {}
    found = {}
    for line in job.session.read_text().splitlines():
        record = json.loads(line)
        for row in record["rows"] if record["step"] == "ahead_of_time" else ():
            if row.get("tiling") == tiles.name and row["violations"]:
                found[row["variant"], row["stages"]] = "; ".join(row["violations"])
    return found


def products(job: Job) -> None:
    device = torch.device(job.device)
    for name, (h, v) in ({"tiny": (64, 512)} if job.tiny else HEADS).items():
        for n in (32,) if job.tiny else CHUNK_ROWS:
            hidden, weight, e = (torch.randn(*s, device=device).bfloat16() for s in ((n, h), (v, h), (n, v)))
            steps: dict[str, Callable[[], object]] = {}
            for out, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
                if out == "fp32" and job.device != "cuda":
                    continue  # a CPU has no product with a wider result
                kind = {} if out == "bf16" else {"out_dtype": dtype}
                z, d_hidden, d_weight = (torch.empty(*s, dtype=dtype, device=device) for s in ((n, v), (n, h), (v, h)))
                steps[f"logits {out}"] = partial(torch.mm, hidden, weight.T, out=z, **kind)
                steps[f"dH {out}"] = partial(torch.mm, e, weight, out=d_hidden, **kind)
                steps[f"dW {out}"] = partial(torch.mm, e.T, hidden, out=d_weight, **kind)
                if out == "fp32":
                    steps["dW fp32, added"] = partial(torch.addmm, d_weight, e.T, hidden, out=d_weight, **kind)
            timings = interleave(steps, 2 if job.tiny else 3, device, lambda: None)
            for product, timing in timings.items():
                job.row(
                    product=product,
                    head=name,
                    rows=n,
                    ms=timing.median_ms,
                    tflop_per_s=2e-9 * n * h * v / timing.median_ms,
                )


def tiles(job: Job) -> None:
    tiling = next(one for one in TILINGS if one.name == job.arguments[0])
    if tiling.cuda:
        from grpo_fast.kernels.head_gemm import why_unavailable

        reason = why_unavailable(torch.device(job.device, 0 if job.device == "cuda" else None))
        if reason:
            raise Absent(reason)
    bad = refused(job, tiling)
    wanted = [(variant, stages) for variant, names in VARIANTS.items() for stages in getattr(tiling, names)]
    usable = [one for one in wanted if one not in bad]
    for variant, stages in (one for one in wanted if one in bad):
        job.row(tiling=tiling.name, variant=variant, stages=stages, refused=bad[variant, stages])
    if {variant for variant, _ in usable} != set(VARIANTS):
        raise Absent(f"refused ahead of time: {'; '.join(sorted(set(bad.values())))}")
    for name, (h, v) in ({"tiny": (64, 700)} if job.tiny else HEADS).items():
        right = _right(job, tiling, usable, name, h, v)
        if right and job.device == "cuda":
            _timed(job, tiling, right, name, h, v)


def _run(tiling: Tiles, variant: str, stages: int, operands: tuple[Tensor, Tensor, Tensor]) -> Any:
    from grpo_fast.kernels.launch import Gemm
    from grpo_fast.kernels.shifted_exp import shifted_exp

    gemm = Gemm(tiling.bm, tiling.bn, tiling.bk, tiling.warps, stages, tiling.specialised, tiling.group)
    return shifted_exp(
        *operands, 1.0, store=variant == "store", entropy=variant == "entropy", tiles=gemm, descriptors=True,
        cuda=tiling.cuda,
    )  # fmt: skip


def _operands(n: int, h: int, v: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    weight = (torch.randn(v, h, device=device) / h**0.5).bfloat16()
    y = torch.randint(v, (n,), device=device)
    hidden = (3 * torch.randn(n, h, device=device) + 10 * weight[y].float()).bfloat16()
    return hidden, weight, y


def _right(job: Job, tiling: Tiles, usable: list[tuple[str, int]], name: str, h: int, v: int) -> list[tuple[str, int]]:
    """Those within bounds of fp64; all variants must also agree to the bit, or the ratio is not 1 on policy."""
    operands = _operands(24 if job.tiny else CHECKED_ROWS, h, v, job.device)
    exact = (operands[0].double() @ operands[1].double().T).log_softmax(1).gather(1, operands[2][:, None])[:, 0]
    found, first = [], None
    for variant, stages in usable:
        logp = _run(tiling, variant, stages, operands)[1].logp
        again = _run(tiling, variant, stages, operands)[1].logp
        first = logp if first is None else first
        error = (logp.double() - exact).abs().max().item()
        label = f"{tiling.name}, {variant}, {stages} stages, {name}"
        job.check(f"logp_error, {label}", error, LOGP_ERROR)
        job.check(f"logps that differ between two runs, {label}", float((logp != again).sum()), 0.0)
        job.check(f"logps that differ from the other variants', {label}", float((logp != first).sum()), 0.0)
        if error <= LOGP_ERROR and torch.equal(logp, again) and torch.equal(logp, first):
            found.append((variant, stages))
    return found


@contextmanager
def kernel_events() -> Iterator[list[tuple[Any, Any]]]:
    """Events around every launch of GEMM 1, Triton's or that of csrc/."""
    from triton import knobs

    import grpo_fast.kernels.shifted_exp as kernels

    head_gemm = kernels.head_gemm
    pairs: list[tuple[Any, Any]] = []

    def begin() -> None:
        pairs.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
        pairs[-1][0].record()

    def enter(metadata: Any) -> None:
        if metadata.get()["name"] == KERNEL:
            begin()

    def leave(metadata: Any) -> None:
        if metadata.get()["name"] == KERNEL:
            pairs[-1][1].record()

    def in_cuda(*arguments: Any) -> None:
        begin()
        head_gemm(*arguments)
        pairs[-1][1].record()

    knobs.runtime.launch_enter_hook.add(enter)
    knobs.runtime.launch_exit_hook.add(leave)
    kernels.head_gemm = in_cuda
    try:
        yield pairs
    finally:
        knobs.runtime.launch_enter_hook.remove(enter)
        knobs.runtime.launch_exit_hook.remove(leave)
        kernels.head_gemm = head_gemm


def _timed(job: Job, tiling: Tiles, right: list[tuple[str, int]], name: str, h: int, v: int) -> None:
    operands = _operands(TIMED_ROWS, h, v, job.device)
    logits = torch.empty(TIMED_ROWS, v, dtype=torch.bfloat16, device=job.device)
    times: dict[Any, list[float]] = {key: [] for key in ("cublas", *right, *(("op", *one) for one in right))}
    order: list[Any] = ["cublas", *right]
    for number in range(ROUNDS + 1):  # the first warms up
        pending = []
        with kernel_events() as pairs:
            for key in order[number % len(order) :] + order[: number % len(order)]:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                if key == "cublas":
                    torch.mm(operands[0], operands[1].T, out=logits)
                else:
                    _run(tiling, key[0], key[1], operands)
                end.record()
                pending.append((key, start, end, pairs[-1] if key != "cublas" else None))
        torch.cuda.synchronize()
        for key, start, end, inner in pending if number else ():
            times[key if key == "cublas" else ("op", *key)].append(start.elapsed_time(end))
            if inner is not None:
                times[key].append(inner[0].elapsed_time(inner[1]))
    cublas = statistics.median(times["cublas"])
    for variant, stages in right:
        kernel = statistics.median(times[variant, stages])
        job.row(
            tiling=tiling.name, head=name, variant=variant, stages=stages, kernel_ms=kernel, cublas_ms=cublas,
            op_ms=statistics.median(times["op", variant, stages]), share_of_cublas=cublas / kernel,
            kernel_spread=[min(times[variant, stages]), max(times[variant, stages])],
            tflop_per_s=2e-9 * TIMED_ROWS * h * v / kernel,
        )  # fmt: skip


def rows(job: Job) -> None:
    from grpo_fast.kernels import rows as kernels

    table, programs = kernels.launch_for(torch.device(job.device))
    n, widths = (4, [300]) if job.tiny else (4096, sorted({v for _, v in HEADS.values()}))
    for v in widths:
        z = torch.randn(n, v, device=job.device)
        out = torch.empty(n, v, dtype=torch.bfloat16, device=job.device)
        y = torch.randint(v, (n,), device=job.device)
        steps: dict[str, Callable[[], object]] = {"copy": partial(out.copy_, z)}
        for block in ROW_BLOCKS[:1] if job.tiny else ROW_BLOCKS:
            for warps in ROW_WARPS[:1] if job.tiny else ROW_WARPS:
                chosen = replace(table, row_block=block, row_warps=warps)
                steps[f"{block},{warps}"] = partial(_row_pass, (chosen, programs), z, y, out)
        timings = interleave(steps, 2 if job.tiny else 5, torch.device(job.device), lambda: None)
        for name, timing in timings.items():
            job.row(row_pass=name, vocab=v, rows=n, ms=timing.median_ms, gb_per_s=n * v * 6e-6 / timing.median_ms)


def _row_pass(launch: Any, z: Tensor, y: Tensor, out: Tensor) -> None:
    from grpo_fast.kernels import rows as kernels

    kernels.launch_for = lambda device: launch
    kernels.exp_rows(z, y, 1.0, 0.0, out=out)


def chunks(job: Job) -> None:
    """Every chunk size beside the bare products, at one and at many chunks, with the head trained and frozen."""
    from grpo_fast import GRPOLoss
    from grpo_fast.ops.layout import default_chunk_bytes, layout

    device = torch.device(job.device)
    form = layout(device, torch.bfloat16, "auto")
    for name, (h, v) in ({"tiny": (64, 512)} if job.tiny else HEADS).items():
        for n, head in ((64, "trained"),) if job.tiny else ((8192, "trained"), (65536, "trained"), (65536, "frozen")):
            case = Case(n, h, v, torch.bfloat16, head)  # type: ignore[arg-type]
            inputs = make_inputs(case, device, realistic=False)
            sizes = {"default": default_chunk_bytes(device)}
            sizes |= {
                str(size): bytes_for(form, case, size)
                for size in ((16, 32) if job.tiny else (2112, *CHUNK_ROWS, 16896))
            }
            steps: dict[str, Callable[[], object]] = {"floor": bare_gemms(case, inputs)}
            for size, budget in sizes.items():
                loss_fn = GRPOLoss(loss_type="dapo", epsilon=0.2, chunk_bytes=budget)

                def loss(made: Any, loss_fn: Any = loss_fn) -> tuple[Tensor, None]:
                    out = loss_fn(
                        made.hidden, made.weight, made.targets, advantages=made.advantages_cpu, mask=made.mask_cpu,
                        old_logps=made.old_logps,
                    )  # fmt: skip
                    return out.loss, None

                steps[size] = unit_of_work(replace(IMPLEMENTATIONS["ours"], loss=loss), inputs, case)
            timings = interleave(steps, 2 if job.tiny else 3, device, lambda: None)
            for size, timing in timings.items():
                fit = None if size == "floor" else chunk_rows(form, case, sizes[size])
                share = timings["floor"].median_ms / timing.median_ms
                job.row(chunk=size, chunk_rows=fit, head=name, rows=n, kind=head, ms=timing.median_ms, share=share)


TASKS: dict[str, Callable[[Job], None]] = {
    "ahead_of_time": ahead_of_time, "products": products, "tiles": tiles, "rows": rows, "chunks": chunks,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(TASKS))
