"""Compile every launchable kernel configuration for the GPUs of the launch tables, with none at hand, and judge them.

    python benchmarks/aot_report.py [--arch 90 ...] [--brief] [--check] [--json] [--output FILE]

Judged: no stack and no local loads or stores; shared memory within the GPU's limit; tensor-core instructions of the
right kind in the products; `setmaxnreg` where warp specialisation was asked for (Triton drops it silently); global
scratch only where the launcher provides it. `--check` ends with 1 on a violation. Options of the policy loss multiply
to thousands: each loss is compiled bare, and with everything on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # an interpreted function cannot be compiled
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
REPORT = ROOT / "benchmarks" / "results" / "aot.md"

POINTERS = {
    **dict.fromkeys(("h", "w", "e"), "*bf16"),
    **dict.fromkeys(("y", "offsets", "lengths", "ends"), "*i64"),
    **dict.fromkeys(("index", "dest"), "*i32"),
}
INTEGERS = frozenset({"n", "N", "V", "tiles", "width", "width_blocks", "K8", "h_stride8", "w_stride8", "e_stride8"})
FLOATS = frozenset(
    {"inv_temp", "softcap", "scale", "epsilon", "clip_low", "clip_high", "delta", "beta", "threshold"}
    | {"cut_low", "cut_high", "k_pos", "k_neg", "lam_pos", "lam_neg"}
)


# The variants with most registers: --brief compiles these, and every product, for GPUs other than sm_90.
HEAVIEST = {
    "_exp_rows_kernel": ("softcap fp32 unaligned", "softcap fp32 aligned"),
    "_grad_rows_kernel": ("softcap fp32 aligned",),
    "shift_kernel": ("expected",),
    "_finish_kernel": ("expected entropy",),
    "target_kernel": ("expected",),
    "rescue_kernel": ("store",),
    "_advantages_kernel": ("batch",),
    "_gather_kernel": ("fp32 unaligned",),
    "_gather_backward_kernel": ("fp32 unaligned",),
    "_policy_loss_kernel": ("clipped sequence everything", "vespo sequence everything"),
}


@dataclass(frozen=True)
class Entry:
    """One binary that a launcher can ask for."""

    arch: int
    module: str
    kernel: str
    variant: str
    constants: Mapping[str, object]
    warps: int = 4
    stages: int = 3
    dtypes: Mapping[str, str] = field(default_factory=dict)  # of pointers, where they differ from POINTERS and *fp32
    aligned: bool = True  # pointers and strides that Triton specialises are multiples of 16
    gemm: bool = False
    specialised: bool = False
    descriptors: bool = False


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
    setmaxnreg: int
    scratch: int
    violations: tuple[str, ...]


def entries(arch: int) -> Iterator[Entry]:
    from grpo_fast.kernels import advantages, exp_guards, kv_gather, launch, policy_loss, shifted_exp

    table = launch.TABLES[arch]
    alignments = ((True, "aligned"), (False, "unaligned"))

    tilings = [("", table.store, table.sums)]
    if table.plain:
        tilings.append(("plain ", *table.plain))
    for name, store, sums in tilings:
        for what, gemm in (("store", store), ("sums", sums), ("entropy", sums)):
            constants = {
                "BM": gemm.bm, "BN": gemm.bn, "BK": gemm.bk, "GROUP": gemm.group, "DESCRIPTORS": table.descriptors,
                "SPECIALISED": gemm.specialised, "STORE": what == "store", "ENTROPY": what == "entropy",
            }  # fmt: skip
            yield Entry(
                arch, "shifted_exp", "_gemm_exp_kernel", f"{name}{what}", constants, gemm.warps, gemm.stages,
                gemm=True, specialised=gemm.specialised, descriptors=table.descriptors,
            )  # fmt: skip

    for expected in (False, True):
        dtypes = {} if expected else {"expected_logp": "*i64"}
        word = "expected" if expected else "bare"
        constants = {"EXPECTED": expected, "ROWS": 64, "BK": exp_guards.SHIFT_DEPTH}
        yield Entry(arch, "exp_guards", "shift_kernel", word, constants, dtypes=dtypes, gemm=True)
        for entropy in (False, True):
            constants = {
                "EXPECTED": expected, "ENTROPY": entropy, "ROWS": shifted_exp._ROWS, "TILES": exp_guards.TILES
            }  # fmt: skip
            variant = f"{word}{' entropy' if entropy else ''}"
            yield Entry(arch, "shifted_exp", "_finish_kernel", variant, constants, dtypes=dtypes)
        constants = {"EXPECTED": expected, "BN": table.store.bn, "TILES": exp_guards.TILES}
        yield Entry(arch, "exp_guards", "target_kernel", word, constants, dtypes=dtypes)
    for what in ("store", "sums", "entropy"):
        constants = {"STORE": what == "store", "ENTROPY": what == "entropy", "BLOCK_Y": 1024}
        constants |= {"BLOCK_V": exp_guards.RESCUE_BLOCK, "BLOCK_K": exp_guards.RESCUE_BLOCK}
        yield Entry(arch, "exp_guards", "rescue_kernel", what, constants)

    for softcap, (aligned, word) in itertools.product((False, True), alignments):
        cap = "softcap " if softcap else ""
        constants = {"SOFTCAP": softcap, "BLOCK": table.row_block}
        for out, write in (("fp32", False), ("fp32", True), ("bf16", True)):
            yield Entry(
                arch, "rows", "_exp_rows_kernel", f"{cap}{out if write else 'stats'} {word}",
                {**constants, "WRITE": write}, table.row_warps, dtypes={"out": f"*{out}"}, aligned=aligned,
            )  # fmt: skip
        for out in ("fp32", "bf16", "fp16"):
            yield Entry(
                arch, "rows", "_grad_rows_kernel", f"{cap}{out} {word}", constants, table.row_warps,
                dtypes={"out": f"*{out}"}, aligned=aligned,
            )  # fmt: skip

    for scale in ("group", "batch", "none"):
        constants = {"SCALE": scale, "BLOCK": advantages._BLOCK}
        yield Entry(arch, "advantages", "_advantages_kernel", scale, constants, warps=1)

    for dtype, (aligned, word) in itertools.product(("fp32", "bf16", "fp16"), alignments):
        dtypes = {"x": f"*{dtype}", "grad": f"*{dtype}", "out": f"*{dtype}"}
        for kernel in ("_gather_kernel", "_gather_backward_kernel"):
            constants = {"BLOCK": kv_gather._BLOCK}
            yield Entry(arch, "kv_gather", kernel, f"{dtype} {word}", constants, dtypes=dtypes, aligned=aligned)

    for loss in ("clipped", "cispo", "sapo", "vespo"):
        for sequence, everything in itertools.product((False, True), (False, True)):
            constants = {
                "LOSS": loss, "SEQUENCE_RATIO": sequence, "OLD": everything, "DELTA": everything and loss == "clipped",
                "KL": everything, "BIAS_CORRECTION": everything, "SAMPLER": "token" if everything else "none",
                "TRUNCATE": everything, "OFF_POLICY": everything, "OFF_POLICY_SAMPLER": everything, "KEEP": everything,
                "BLOCK": policy_loss._BLOCK,
            }  # fmt: skip
            variant = f"{loss} {'sequence' if sequence else 'token'} {'everything' if everything else 'bare'}"
            yield Entry(arch, "policy_loss", "_policy_loss_kernel", variant, constants)


def _type_of(name: str, entry: Entry) -> str:
    if name in FLOATS:
        return "fp32"
    if name in INTEGERS or name.endswith("_stride"):
        return "i32"
    return entry.dtypes.get(name, POINTERS.get(name, "*fp32"))


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
            signature[p.name] = _type_of(p.name, entry)
            if entry.aligned and signature[p.name] != "fp32" and not p.do_not_specialize:
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn, signature, constants, attributes)
    options = {"num_warps": entry.warps, "num_stages": entry.stages, **FUSED}
    compiled = triton.compile(source, target=GPUTarget("cuda", entry.arch, 32), options=options)
    usage, sass = _disassemble(compiled.asm["cubin"], code=entry.gemm)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(
            f"cuobjdump gave no resource usage for {entry.kernel} {entry.variant} sm_{entry.arch}: {usage}"
        )

    def count(pattern: str) -> int:
        return len(re.findall(pattern, sass))

    figures = {
        "registers": int(found[1]), "shared": compiled.metadata.shared, "stack": int(found[2]) + int(found[3]),
        "spills": count(r"\b(?:LDL|STL)\b"), "hgmma": count(r"\bHGMMA\b"), "hmma": count(r"\bHMMA\b"),
        "utcmma": count(r"\bUTC\w*MMA\b"), "tma_loads": count(r"\bUTMALDG\b"),
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


def _disassemble(cubin: bytes, code: bool) -> tuple[str, str]:
    """Resource usage and, where asked for, instructions: half a second for each kernel, so of the products alone."""
    import triton.backends.nvidia as nvidia

    tools = Path(next(iter(nvidia.__path__))) / "bin"
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
        wanted = [e for e in wanted if e.arch == 90 or e.gemm or e.variant in HEAVIEST[e.kernel]]
    wanted.sort(key=lambda entry: not entry.gemm)  # the slow ones first
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        binaries = list(pool.map(compile_entry, wanted))
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
            f"| sm_{b.arch} | {b.kernel} | {b.variant} | {b.warps} | {b.stages} | {b.registers} | {b.shared} "
            f"| {cores} | {b.tma_loads or ''} | {b.setmaxnreg or ''} | {b.scratch or ''} | {'; '.join(b.violations)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    from grpo_fast.kernels.launch import TABLES

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", choices=sorted(TABLES), default=sorted(TABLES))
    parser.add_argument("--brief", action="store_true", help="but for sm_90: the products and the heaviest variants")
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
