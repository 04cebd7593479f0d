"""Compile every launchable kernel configuration for the GPUs of the launch tables, with none at hand, and judge them.

    python benchmarks/aot_report.py [--arch 90 ...] [--brief] [--check] [--json] [--output FILE]

Judged: no stack and no local loads or stores; shared memory within the GPU's limit; tensor-core instructions of the
right kind in the products; `setmaxnreg` where warp specialisation was asked for (Triton drops it silently); global
scratch only where the launcher provides it. `--check` ends with 1 on a violation. Options of the policy loss multiply
to thousands: each loss is compiled bare, and with everything on. The product in csrc/ is among them where nvcc is at
hand; its shared memory is asserted in its source.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import aot_cuda
from aot_entries import HEAVIEST, Entry, entries, type_of

os.environ.pop("TRITON_INTERPRET", None)  # an interpreted function cannot be compiled
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
REPORT = ROOT / "benchmarks" / "results" / "aot.md"


@dataclass(frozen=True)
class Binary:
    """What the compiler made of an entry."""

    arch: int
    kernel: str
    variant: str
    warps: int
    stages: int
    registers: int
    shared: int
    stack: int
    spills: int  # local loads and stores of a product; elsewhere no stack is proof enough
    hgmma: int
    hmma: int
    utcmma: int
    tma_loads: int
    wide_loads: int  # of 16 bytes a thread
    setmaxnreg: int
    scratch: int
    violations: tuple[str, ...]


def compile_entry(entry: Entry) -> Binary:
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from grpo_fast.kernels.launch import FUSED, TABLES

    fn = getattr(importlib.import_module(f"grpo_fast.kernels.{entry.module}"), entry.kernel)
    signature, constants, attributes = {}, {}, {}
    for i, p in enumerate(fn.params):
        if p.is_constexpr:
            signature[p.name] = "constexpr"
            constants[(i,)] = entry.constants[p.name]
        else:
            signature[p.name] = type_of(p.name, entry)
            if entry.aligned and signature[p.name] != "fp32" and not p.do_not_specialize:
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn, signature, constants, attributes)
    options = {"num_warps": entry.warps, "num_stages": entry.stages, **FUSED}
    compiled = triton.compile(source, target=GPUTarget("cuda", entry.arch, 32), options=options)
    usage, sass = _disassemble(compiled.asm["cubin"], code=entry.gemm)
    registers, stack = _usage(usage)

    def count(pattern: str) -> int:
        return len(re.findall(pattern, sass))

    figures = {
        "registers": registers, "shared": compiled.metadata.shared, "stack": stack,
        "spills": count(r"\b(?:LDL|STL)\b"), "hgmma": count(r"\bHGMMA\b"), "hmma": count(r"\bHMMA\b"),
        "utcmma": count(r"\bUTC\w*MMA\b"), "tma_loads": count(r"\bUTMALDG\b"),
        "wide_loads": len(re.findall(r"\bld\.global\S*\.(?:v4\.[bfu]32|v2\.[bfu]64)", compiled.asm["ptx"])),
        "setmaxnreg": len(re.findall(r"setmaxnreg", compiled.asm["ptx"])),
        "scratch": compiled.metadata.global_scratch_size,
    }  # fmt: skip
    violations = tuple(_violations(entry, TABLES[entry.arch].shared_limit, figures))
    return Binary(
        entry.arch,
        entry.kernel.removeprefix("_"),
        entry.variant,
        entry.warps,
        entry.stages,
        **figures,
        violations=violations,
    )


def _usage(line: str) -> tuple[int, int]:
    """Registers, and bytes of stack and of local memory."""
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", line)
    if found is None:
        raise RuntimeError(f"cuobjdump gave no resource usage: {line}")
    return int(found[1]), int(found[2]) + int(found[3])


def cuda_binaries(nvcc: str) -> Iterator[Binary]:
    for variant, (usage, counts) in aot_cuda.compiled(nvcc, _tools()).items():
        registers, stack = _usage(usage)
        figures = {
            "registers": registers, "shared": 0, "stack": stack, "spills": counts["LDL"] + counts["STL"],
            "hgmma": counts["HGMMA"], "hmma": counts["HMMA"], "utcmma": 0, "tma_loads": counts["UTMALDG"],
            "wide_loads": 0, "setmaxnreg": counts["USETMAXREG"], "scratch": 0,
        }  # fmt: skip
        entry = Entry(90, "", "head_gemm (csrc)", variant, {}, 12, 4, gemm=True, specialised=True, descriptors=True)
        violations = tuple(_violations(entry, 0, figures))
        yield Binary(90, entry.kernel, variant, entry.warps, entry.stages, **figures, violations=violations)


def _violations(entry: Entry, shared_limit: int, f: dict[str, int]) -> Iterator[str]:
    if f["stack"]:
        yield f"{f['stack']} bytes of stack"
    if f["spills"]:
        yield f"{f['spills']} local loads and stores"
    if f["shared"] > shared_limit:
        yield f"{f['shared']} bytes of shared memory, the limit is {shared_limit}"
    if entry.gemm:
        wanted = "hmma" if entry.arch < 90 else "hgmma" if entry.arch < 100 else "utcmma"
        if not f[wanted]:
            yield f"no {wanted.upper()}"
        if entry.arch >= 90 and f["hmma"]:
            yield f"{f['hmma']} HMMA: the product fell back to the previous generation's instruction"
        if entry.descriptors and not f["tma_loads"]:
            yield "no TMA loads"
    if entry.specialised and not f["setmaxnreg"]:
        yield "warp specialisation was dropped"
    if f["scratch"] and not entry.descriptors:
        yield f"{f['scratch']} bytes of global scratch, and the launcher provides none"


def _tools() -> Path:
    import triton.backends.nvidia as nvidia

    return Path(next(iter(nvidia.__path__))) / "bin"


def _disassemble(cubin: bytes, code: bool) -> tuple[str, str]:
    """Resource usage and, where asked for, instructions: half a second for each kernel, so of the products alone."""
    tools = _tools()
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [tools / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        )
        if not code:
            return usage.stdout + usage.stderr, ""
        sass = subprocess.run([tools / "nvdisasm", "-c", "-ndf", file.name], capture_output=True, text=True, check=True)
    return usage.stdout + usage.stderr, sass.stdout


def compile_all(archs: list[int], brief: bool = False) -> list[Binary]:
    wanted = [entry for arch in archs for entry in entries(arch)]
    if brief:
        wanted = [e for e in wanted if e.variant in HEAVIEST.get(e.kernel, (e.variant,))]
    wanted.sort(key=lambda entry: not entry.gemm)  # the slow ones first
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        jobs = pool.map(compile_entry, wanted)
        nvcc = shutil.which("nvcc")
        binaries = [*(cuda_binaries(nvcc) if nvcc and 90 in archs else ()), *jobs]
    return sorted(binaries, key=lambda b: (b.arch, b.kernel, b.variant))


def markdown(binaries: list[Binary]) -> str:
    import triton

    columns = ("GPU", "kernel", "variant", "warps", "stages", "registers", "shared B", "tensor-core instructions")
    columns += ("TMA loads", "setmaxnreg", "scratch B", "violations")
    lines = [
        "# Ahead-of-time compilation",
        "",
        f"Written by `benchmarks/aot_report.py` with Triton {triton.__version__}; nothing here was run. "
        f"{len(binaries)} binaries, {sum(bool(b.violations) for b in binaries)} with violations; "
        "the others have no stack and no spills.",
        "",
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
    ]
    for b in binaries:
        cores = ", ".join(
            f"{n} {name}" for name, n in (("HMMA", b.hmma), ("HGMMA", b.hgmma), ("UTCMMA", b.utcmma)) if n
        )
        lines.append(
            f"| sm_{b.arch} | {b.kernel} | {b.variant} | {b.warps} | {b.stages} | {b.registers} | {b.shared or ''} "
            f"| {cores} | {b.tma_loads or ''} | {b.setmaxnreg or ''} | {b.scratch or ''} | {'; '.join(b.violations)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    from grpo_fast.kernels.launch import TABLES

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", choices=sorted(TABLES), default=sorted(TABLES))
    parser.add_argument("--brief", action="store_true", help="GEMM 1, and the heaviest variants of the others")
    parser.add_argument("--check", action="store_true", help="end with 1 on a violation")
    parser.add_argument("--json", action="store_true", help="print the binaries as JSON and write no report")
    parser.add_argument("--output", type=Path, default=REPORT)
    options = parser.parse_args()
    binaries = compile_all(options.arch, options.brief)
    if options.json:
        print(json.dumps([asdict(b) for b in binaries]))
    else:
        options.output.write_text(markdown(binaries))
        print(f"{len(binaries)} binaries: {options.output}")
    bad = [b for b in binaries if b.violations]
    for b in bad:
        print(f"sm_{b.arch} {b.kernel} {b.variant}: {'; '.join(b.violations)}", file=sys.stderr)
    return 1 if options.check and bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
