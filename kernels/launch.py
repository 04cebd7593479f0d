"""Launch tables: one per GPU architecture, chosen by compute capability; nothing is tuned while it runs.

Every entry is compiled ahead of time by tests/test_aot.py, which refuses spills and shared memory over the limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton import knobs

INTERPRETED: bool = knobs.runtime.interpret
# The interpreter keeps bf16 as raw uint16: a kernel casts to fp32 under this flag before any arithmetic.
UPCAST = tl.constexpr(INTERPRETED)
# Given at every launch: Triton 3.10 turns the default off, and the epilogues want their multiply-adds fused.
FUSED = {"enable_fp_fusion": True}


@dataclass(frozen=True, slots=True)
class Gemm:
    """Tiles of the head's first product. Store and sums-only share bm, bn, bk and warps: the same logits to the bit."""

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int
    specialised: bool = False  # producer and consumer warps; needs descriptors, 4 warps
    group: int = 16  # row tiles that share a column tile in L2


@dataclass(frozen=True, slots=True)
class Launch:
    arch: int  # 90: sm_90
    shared_limit: int  # bytes one program may use
    descriptors: bool  # TMA
    store: Gemm  # writes E
    sums: Gemm  # row sums only, with or without the entropy
    plain: tuple[Gemm, Gemm] | None = None  # unspecialised (store, sums): for pointers, and to compare against
    cuda: bool = False  # GEMM 1 from csrc/, where it was built: where measured to be faster than store and sums
    row_block: int = 8192
    row_warps: int = 16

    def product(self, store: bool, descriptors: bool) -> Gemm:
        """Triton specialises warps on loads by descriptor alone: by pointer its compiler fails."""
        pair = self.store, self.sums
        if not descriptors and self.store.specialised and self.plain is not None:
            pair = self.plain
        return pair[0] if store else pair[1]


_KB = 1024
_AMPERE = Gemm(bm=128, bn=128, bk=64, warps=8, stages=4)
_ADA = Gemm(bm=128, bn=128, bk=32, warps=8, stages=4)

TABLES: dict[int, Launch] = {
    80: Launch(80, 163 * _KB, False, store=_AMPERE, sums=_AMPERE),
    86: Launch(86, 99 * _KB, False, store=_ADA, sums=_ADA),
    89: Launch(89, 99 * _KB, False, store=_ADA, sums=_ADA),
    90: Launch(
        90,
        227 * _KB,
        True,
        store=Gemm(bm=128, bn=256, bk=64, warps=4, stages=3, specialised=True),
        sums=Gemm(bm=128, bn=256, bk=64, warps=4, stages=4, specialised=True),
        plain=(
            Gemm(bm=128, bn=256, bk=64, warps=8, stages=3),
            Gemm(bm=128, bn=256, bk=64, warps=8, stages=4),
        ),
    ),
    100: Launch(
        100,
        227 * _KB,
        True,
        store=Gemm(bm=128, bn=128, bk=64, warps=8, stages=4),  # the entropy spills at bn=256
        sums=Gemm(bm=128, bn=128, bk=64, warps=8, stages=5),
    ),
}

_TINY = Gemm(bm=16, bn=32, bk=16, warps=4, stages=1, group=2)
INTERPRETER = Launch(0, 0, True, store=_TINY, sums=_TINY, row_block=64)


def table_for(capability: tuple[int, int]) -> Launch:
    """The table of a compute capability, or of the nearest one whose binaries fit its shared memory."""
    major, minor = capability
    if major < 8:
        raise RuntimeError(
            f"Triton kernels need compute capability 8.0 or later, this GPU has {major}.{minor}; use backend='torch'"
        )
    if major == 8:
        return TABLES[{0: 80, 7: 80, 6: 86}.get(minor, 89)]
    if major == 9:
        return TABLES[90]
    return TABLES[100] if major in (10, 11) else TABLES[89]  # consumer Blackwell: 99 KB, and no tcgen05


@lru_cache
def _cuda_table(index: int) -> tuple[Launch, int]:
    properties = torch.cuda.get_device_properties(index)
    return table_for((properties.major, properties.minor)), properties.multi_processor_count


def launch_for(device: torch.device) -> tuple[Launch, int]:
    """The launch table of a device, and how many persistent programs fill it."""
    if INTERPRETED:
        return INTERPRETER, 3
    if device.type != "cuda":
        raise RuntimeError(f"Triton kernels run on CUDA, or interpreted under TRITON_INTERPRET=1; got {device}")
    return _cuda_table(torch.cuda.current_device() if device.index is None else device.index)


@contextmanager
def on(device: torch.device) -> Iterator[None]:
    """Launch on `device`, whichever is current."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield


def allow_scratch(device: torch.device) -> None:
    """Give Triton the memory in which device-side descriptors live.

    The setting belongs to the calling thread's context, and backward runs in another thread: call it at each launch.
    """
    if device.type != "cuda":
        return

    def scratch(size: int, alignment: int, stream: int | None) -> Any:
        return torch.empty(size, dtype=torch.int8, device=device)

    triton.set_allocator(scratch)
