"""In which dtypes a device computes the head's products, and how many rows a byte budget holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from grpo_fast.ops.backends import choose

CPU_CHUNK_BYTES = 256 << 20
CUDA_SHARE = 32  # of the device's memory: 2.3 GB of 80, 4.4 of 141
WIDEN_BYTES = 32 << 20
CUDA_ROW_MULTIPLE = 128
CPU_ROW_MULTIPLE = 16  # below that many rows a product's bits depend on their number


def default_chunk_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // CUDA_SHARE
    return CPU_CHUNK_BYTES


def chunk_budget(chunk_bytes: int | None, device: torch.device) -> int:
    """The bytes asked for, or the device's default."""
    if chunk_bytes is None:
        return default_chunk_bytes(device)
    if not isinstance(chunk_bytes, int) or chunk_bytes < 1:
        raise ValueError(f"chunk_bytes must be a whole number of bytes, at least 1, got {chunk_bytes!r}")
    return chunk_bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """In which dtypes a device computes the products of a given dtype."""

    wide: torch.dtype  # of logits and accumulators
    rows: torch.dtype  # of E'
    widen: bool  # operands are widened, a block of the vocabulary at a time
    multiple: int  # rows of a chunk are a multiple of it

    def chunk_rows(self, v: int, h: int, chunk_bytes: int) -> int:
        """Rows whose logits, unit gradients, hidden copies and products fit the budget."""
        logits = 0 if self.rows == self.wide else v * self.wide.itemsize
        spare = chunk_bytes - (WIDEN_BYTES if self.widen else 0)
        return self._whole(spare // (logits + self._row_bytes(v, h)))

    def chunk_rows_without_logits(self, v: int, h: int, chunk_bytes: int, n: int, trained: bool) -> int:
        """The same where GEMM 1 leaves E' alone; what n rows in several chunks accumulate in counts as well."""
        row = self._row_bytes(v, h)
        if trained and n * row > chunk_bytes:
            chunk_bytes -= min(v * h * self.wide.itemsize, chunk_bytes // 2)
        return self._whole(chunk_bytes // row)

    def _row_bytes(self, v: int, h: int) -> int:
        return v * self.rows.itemsize + 3 * h * self.wide.itemsize

    def _whole(self, n: int) -> int:
        return max(1, n // self.multiple) * self.multiple


def layout(device: torch.device, dtype: torch.dtype, backend: str) -> Layout:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    on_gpu = device.type == "cuda" or (
        dtype == torch.bfloat16 and choose("head_gemm", device, dtype, backend) == "triton"
    )
    widen = dtype == torch.float16 or (dtype != wide and not on_gpu)
    return Layout(
        wide, wide if widen else dtype, widen, CUDA_ROW_MULTIPLE if device.type == "cuda" else CPU_ROW_MULTIPLE
    )
