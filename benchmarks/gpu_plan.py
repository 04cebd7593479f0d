"""The steps of a GPU session: what each shows, which program it runs, and how long it may take.

Each part fits one call of ten minutes. Every step is a process of its own; time that one leaves over goes to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CALL_SECONDS = 570  # of one part: ten minutes, and a margin for starting and writing
PARTS = ("check", "tune", "measure")


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    program: str  # in benchmarks/
    task: str
    limit: int  # seconds
    shows: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tiles:
    """One tiling of GEMM 1. Storing and sums-only launches share it, and differ in stages alone: the same bits."""

    bm: int
    bn: int
    bk: int
    warps: int
    store_stages: tuple[int, ...]
    sums_stages: tuple[int, ...]
    specialised: bool = False
    group: int = 16
    cuda: bool = False  # the product of csrc/, whose tiles are fixed

    @property
    def name(self) -> str:
        if self.cuda:
            return "cuda"
        special = "s" if self.specialised else ""
        return f"{self.bm}x{self.bn}x{self.bk}w{self.warps}{special}g{self.group}"


HEADS = {"2B": (1536, 151936), "3B": (2048, 151936), "7B": (3584, 152064)}  # H, V
CHUNK_ROWS = (4096, 4224, 5632, 8448)
ROW_BLOCKS = (2048, 4096, 8192, 16384)
ROW_WARPS = (8, 16, 32)
TILINGS = (
    Tiles(128, 256, 64, 4, (2, 3), (3, 4), specialised=True),
    Tiles(128, 256, 64, 12, (4,), (4,), specialised=True, cuda=True),
    Tiles(128, 256, 64, 8, (2, 3), (3, 4)),
    Tiles(128, 256, 64, 4, (3,), (4,), specialised=True, group=8),
    Tiles(128, 256, 64, 4, (3,), (4,), specialised=True, group=32),
    Tiles(128, 128, 64, 8, (4, 5), (5, 6)),
    Tiles(128, 128, 64, 4, (4,), (5,), specialised=True),
    Tiles(256, 128, 64, 8, (2, 3), (3, 4)),
    Tiles(128, 128, 128, 8, (2,), (3,)),
)

# Files alone: collecting the others would import what a GPU machine may not have.
MARKED = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in path.read_text()
)
_CHECK = (
    Step(
        "environment", "gpu_checks", "environment", 45, "GPU, driver, clocks, versions, kernels present, two ceilings"
    ),
    Step("tests", "gpu_checks", "tests", 100, "the GPU-marked tests", ("-m", "gpu and not cuda_product", *MARKED)),
    Step(
        "kernel_tests",
        "gpu_checks",
        "tests",
        75,
        "the kernels' tests, compiled",
        ("-m", "not cuda_product", "tests/kernels"),
    ),
    Step(
        "cuda_product",
        "gpu_checks",
        "tests",
        25,
        "the product of csrc/ by itself: what hangs there costs this step",
        ("-m", "cuda_product", "tests/kernels"),
    ),
    Step("accuracy", "gpu_exact", "accuracy", 55, "log-probs and gradients against fp64 on peaky logits"),
    Step("determinism", "gpu_exact", "determinism", 30, "two runs, and other companies of rows, bit-identical"),
    Step("on_policy", "gpu_exact", "on_policy", 30, "the ratio is exactly 1 on policy"),
    Step("sync", "gpu_checks", "sync", 30, "no host sync around loss and backward"),
    Step("graph", "gpu_checks", "graph", 30, "loss and backward captured in a CUDA graph, replayed on new data"),
    Step("memory", "gpu_checks", "memory", 40, "extra memory at N = 65 536 within the byte budget"),
    Step("memcheck", "gpu_checks", "sanitizer", 65, "compute-sanitizer on small shapes", ("memcheck",)),
    Step("racecheck", "gpu_checks", "sanitizer", 45, "the same for shared memory", ("racecheck",)),
)

_TUNE = (
    Step("ahead_of_time", "gpu_tune", "ahead_of_time", 120, "every tiling compiled and judged, in parallel"),
    Step("products", "gpu_tune", "products", 35, "cuBLAS times of the three products by chunk size"),
    *(
        Step(f"tiles/{tiles.name}", "gpu_tune", "tiles", 32, "GEMM 1 against cuBLAS, correct first", (tiles.name,))
        for tiles in TILINGS
    ),
    Step("rows", "gpu_tune", "rows", 50, "the row pass in GB/s"),
    Step("chunks", "gpu_tune", "chunks", 75, "the whole loss by chunk size"),
)

_PEERS = {"trl": ("torch", "trl", "trl_fp32"), "liger": ("liger", "liger_whole"), "cce": ("cce", "cce_filtered"),
          "verl": ("verl",)}  # fmt: skip
_MEASURE = (
    *(
        Step(
            f"loss_peers/{name}",
            "gpu_measure",
            "loss_peers",
            30,
            "the loss beside this peer's, N = 8192, 2B head",
            peers,
        )
        for name, peers in _PEERS.items()
    ),
    Step("loss_sizes", "gpu_measure", "loss_sizes", 95, "ours against the bare products, three heads, N = 1k to 64k"),
    Step("step_trl", "gpu_measure", "step_trl", 90, "optimisation step beside TRL's, Qwen2-VL-2B, G = 8"),
    Step("decode", "gpu_measure", "decode", 130, "512 completions decoding: share of the bandwidth floor, and a trace"),
    Step("trace_loss", "gpu_traces", "loss", 25, "where the loss spends its time"),
    Step("trace_step", "gpu_traces", "step", 35, "where the optimisation step spends its time"),
    Step("train", "gpu_measure", "train", 75, "whole training step beside TRL's trainer, one prompt"),
)

STEPS: dict[str, tuple[Step, ...]] = {"check": _CHECK, "tune": _TUNE, "measure": _MEASURE}


def limit_of(step: Step, after: Sequence[Step], left: float) -> float:
    """Seconds for this step: its own and what earlier ones left over, never more than the call still has."""
    spare = left - step.limit - sum(one.limit for one in after)
    return min(left, step.limit + max(0.0, spare))


def describe(parts: Sequence[str], budget: float | None = None) -> str:
    lines = []
    for part in parts:
        steps = STEPS[part]
        lines.append(f"{part}: {sum(step.limit for step in steps)} s of {budget or CALL_SECONDS:g} s")
        lines += [f"  {step.limit:4} s  {step.name:28} {step.shows}" for step in steps]
    return "\n".join(lines)
