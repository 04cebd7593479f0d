"""The language-model head over chunks of rows: GEMM 1 with the row pass, then the two gradient products.

One chunk holds the unit gradient rows E' (ops/rows.py), so that with v = -g * inv_temp / s

    dH = diag(v) (E' @ W)      dW += E'^T @ diag(v) H      db += E'^T v

Nothing of size N * V outlives a chunk. bf16 products on CUDA run in bf16 with fp32 accumulation and fp32 results; a
CPU has no such product, and fp16 cannot hold E', so there the weights are widened, a block of the vocabulary at a time.
Suffixes: N rows, n rows of one chunk, H hidden, V vocabulary, r LoRA rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from grpo_fast.ops.backends import choose
from grpo_fast.ops.layout import CPU_ROW_MULTIPLE, WIDEN_BYTES, layout
from grpo_fast.ops.rows import exp_rows, grad_rows, stats_rows
from grpo_fast.rowstats import RowStats


@dataclass(frozen=True, slots=True)
class HeadWeights:
    weight: Tensor  # [V, H]
    bias: Tensor | None = None  # [V]
    lora_a: Tensor | None = None  # [r, H]
    lora_b: Tensor | None = None  # [V, r]
    lora_scale: float = 1.0
    temperature: float = 1.0
    softcap: float = 0.0  # 0: none


class HeadGrads(NamedTuple):
    """Gradients to fill; None where nobody wants one."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    lora_a: Tensor | None = None
    lora_b: Tensor | None = None


@dataclass(slots=True)
class Chunk:
    """What GEMM 1 left of one chunk: E' (or the logits, under `raw`) and the rows' statistics."""

    rows: Tensor  # [n, V]
    stats: RowStats
    targets: Tensor  # [n], -1 where not scored
    unit_hidden: Tensor | None = None  # [n, H] fp32: E' @ W


def grad_dtype(x: Tensor, unscaled: bool) -> torch.dtype:
    """Of x's gradient. One that a loss scale is yet to multiply waits in fp32: fp16 would lose its small values."""
    return torch.float32 if unscaled and x.dtype == torch.float16 else x.dtype


def fake_grads(
    wants: list[bool], hidden: Tensor, weight: Tensor, *others: Tensor | None, unscaled: bool = False
) -> list[Tensor]:
    """What an op's fake gives for its gradients: empty where none was wanted."""
    made = [torch.empty_like(hidden, dtype=grad_dtype(hidden, unscaled)) if wants[0] else hidden.new_empty(0)]
    for want, x in zip(wants[1:], (weight, *others), strict=True):  # contiguous, as `grads_for` makes them
        made.append(
            weight.new_empty(0) if x is None or not want else x.new_empty(x.shape, dtype=grad_dtype(x, unscaled))
        )
    return made


class Head:
    """One sweep's worth of products with one head. `flop` counts every large product as it runs."""

    def __init__(self, weights: HeadWeights, dtype: torch.dtype, chunk_bytes: int, backend: str) -> None:
        w = weights.weight
        self.weights, self.dtype, self.flop = weights, dtype, 0
        self.inv_temp = 1.0 / weights.temperature
        self.backend = choose("row_pass", w.device, dtype, backend)
        self.layout = layout(w.device, dtype, backend)
        self.wide, self.row_dtype = self.layout.wide, self.layout.rows
        self.v, self.h = w.shape
        self._w = None if self.layout.widen else w.to(dtype)
        self._shifted = self._shifted_operand(backend)
        self._scratch: Tensor | None = None
        self.chunk_bytes = chunk_bytes
        self.chunk_rows = self.layout.chunk_rows(self.v, self.h, chunk_bytes)

    def expect(self, n: int, trained: bool) -> None:
        """Chunks for n rows of which none will be scored through logits: larger ones, where shifted-exp serves."""
        if self._shifted is not None:
            form = self.layout
            self.chunk_rows = form.chunk_rows_without_logits(self.v, self.h, self.chunk_bytes, n, trained)

    def _shifted_operand(self, backend: str) -> Tensor | None:
        """The weight as the shifted-exp kernel takes it, or None where the portable path serves."""
        settings, w = self.weights, self._w
        if w is None or w.dtype != torch.bfloat16 or choose("head_gemm", w.device, self.dtype, backend) != "triton":
            return None
        if settings.bias is not None or settings.lora_a is not None or settings.softcap:
            return None
        from grpo_fast.kernels.shifted_exp import supports

        return w if supports(w, w) is None else None

    def chunks(self, n: int) -> Iterator[slice]:
        """Even chunks that cover n rows."""
        if n:
            size = -(-n // -(-n // self.chunk_rows))
            size = min(self.chunk_rows, -(-size // self.layout.multiple) * self.layout.multiple)
            for start in range(0, n, size):
                yield slice(start, min(start + size, n))

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """The weight in the dtype of the products: whole, or in widened blocks of the vocabulary, each in the place of
        the one before."""
        if self._w is not None:
            yield slice(0, self.v), self._w
            return
        weight = self.weights.weight
        rounded = 0 if weight.dtype == self.dtype else self.dtype.itemsize  # autocast: beside the widened block
        step = min(self.v, max(1, WIDEN_BYTES // (self.h * (self.wide.itemsize + rounded))))
        wide = torch.empty(step, self.h, dtype=self.wide, device=weight.device)
        for start in range(0, self.v, step):
            part = slice(start, min(start + step, self.v))
            yield part, wide[: part.stop - start].copy_(weight[part].to(self.dtype))

    def _mm(self, a: Tensor, b: Tensor, out: Tensor, accumulate: bool = False) -> None:
        """out (+)= a @ b, in fp32 (fp64 for fp64 operands), whatever the operands."""
        self.flop += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        if a.device.type == "cpu":  # has no product with a wider result
            a, b = a.to(out.dtype), b.to(out.dtype)
        if a.dtype == out.dtype:
            torch.addmm(out, a, b, out=out) if accumulate else torch.mm(a, b, out=out)
        elif accumulate:
            torch.addmm(out, a, b, out_dtype=out.dtype, out=out)  # type: ignore[call-overload]
        else:
            torch.mm(a, b, out_dtype=out.dtype, out=out)  # type: ignore[call-overload]

    def logits(self, hidden: Tensor) -> Tensor:
        """GEMM 1: [n, V] fp32 in the scratch that the chunks share."""
        n, lora = len(hidden), self.weights.lora_a
        if n < CPU_ROW_MULTIPLE and hidden.device.type == "cpu":
            hidden = torch.nn.functional.pad(hidden, (0, 0, 0, CPU_ROW_MULTIPLE - n))
        if self._scratch is None or len(self._scratch) < len(hidden):
            self._scratch = torch.empty(len(hidden), self.v, dtype=self.wide, device=hidden.device)
        z = self._scratch[: len(hidden)]
        for part, w in self.blocks():
            self._mm(hidden, w.t(), z[:, part])
        if lora is not None:
            u = self._lora_in(hidden) * self.weights.lora_scale
            self._mm(u, self.cast(self.weights.lora_b).t(), z, accumulate=True)
        if self.weights.bias is not None:
            z += self.weights.bias
        return z[:n]

    def cast(self, x: Tensor | None) -> Tensor:
        """In the dtype of the products."""
        assert x is not None
        return x.to(self.dtype).to(self.wide) if self.layout.widen else x.to(self.dtype)

    def _lora_in(self, hidden: Tensor) -> Tensor:
        return self._product(hidden, self.cast(self.weights.lora_a).t())

    def stats(self, hidden: Tensor, targets: Tensor, expected: Tensor | None = None) -> RowStats:
        """GEMM 1 without a trace: for scoring alone. `expected` log-probs, where known, steer the exponent's range."""
        if self._shifted is not None:
            return self._shifted_exp(self._shifted, hidden, targets, expected, store=False)[1]
        return self._stats_rows(self.logits(hidden), targets)

    def score(
        self, hidden: Tensor, targets: Tensor, expected: Tensor | None = None, raw: bool = False, unit: bool = True,
        exact_entropy: bool = False,
    ) -> Chunk:  # fmt: skip
        """GEMM 1 and the row pass, then E' @ W where `unit`; `raw` leaves the logits as they are, for `entropy_rows`.

        The shifted-exp path has the entropy from bf16 rows, good to about 1e-2, unless `exact_entropy` avoids it.
        """
        if self._shifted is not None and unit and not raw and not exact_entropy:
            rows, stats = self._shifted_exp(self._shifted, hidden, targets, expected, store=True)
            assert rows is not None
            unit_hidden = self._grad_hidden(rows)
            mean = (hidden * unit_hidden).sum(1) * (self.inv_temp / stats.s)  # of z' - z'_y
            stats = stats._replace(entropy=torch.where(targets < 0, 0.0, -stats.logp - mean))
            return Chunk(rows, stats, targets, unit_hidden)
        z = self.logits(hidden)
        if raw:
            return Chunk(z, self._stats_rows(z, targets), targets)
        out = self._row_buffer(z)
        stats = exp_rows(z, targets, self.inv_temp, self.weights.softcap, self.backend, out=out)
        rows = z if out is None else out
        return Chunk(rows, stats, targets, self._grad_hidden(rows) if unit else None)

    def _shifted_exp(
        self, w: Tensor, hidden: Tensor, targets: Tensor, expected: Tensor | None, store: bool
    ) -> tuple[Tensor | None, RowStats]:
        from grpo_fast.kernels.shifted_exp import shifted_exp, supports

        if supports(hidden, w) is not None:  # at an odd address, or an odd distance apart
            hidden = hidden.clone(memory_format=torch.contiguous_format)
        self.flop += 2 * len(hidden) * self.v * self.h
        return shifted_exp(hidden, w, targets, self.inv_temp, expected, store=store, entropy=not store)

    def _stats_rows(self, z: Tensor, targets: Tensor) -> RowStats:
        return stats_rows(z, targets, self.inv_temp, self.weights.softcap, self.backend, self.row_dtype)

    def _row_buffer(self, z: Tensor) -> Tensor | None:
        """Where E' goes when it is narrower than the logits."""
        return None if self.row_dtype == z.dtype else torch.empty(z.shape, dtype=self.row_dtype, device=z.device)

    def entropy_rows(self, chunk: Chunk, g: Tensor, g_entropy: Tensor, unit: bool = True) -> Chunk:
        """A raw chunk's logits become the gradient of g * logp + g_entropy * entropy, with row factor 1."""
        z = chunk.rows
        out = self._row_buffer(z)
        grad_rows(z, chunk.targets, chunk.stats, g, g_entropy, self.inv_temp, self.weights.softcap, self.backend, out)
        rows = z if out is None else out
        return Chunk(rows, chunk.stats, chunk.targets, self._grad_hidden(rows) if unit else None)

    def factor(self, chunk: Chunk, g: Tensor) -> Tensor:
        """v [n]: what turns E' into the gradient of sum(g * logp)."""
        return -g * self.inv_temp / chunk.stats.s

    def _grad_hidden(self, e: Tensor) -> Tensor:
        """E' @ W, [n, H] fp32, before the row factor."""
        out = torch.empty(len(e), self.h, dtype=self.wide, device=e.device)
        first = True
        for part, w in self.blocks():
            self._mm(e[:, part], w, out, accumulate=not first)
            first = False
        if self.weights.lora_a is not None:
            back = self._product(e, self.cast(self.weights.lora_b)) * self.weights.lora_scale
            self._mm(back, self.cast(self.weights.lora_a), out, accumulate=True)
        return out

    def add_grads(self, chunk: Chunk, hidden: Tensor, v: Tensor | None, grads: HeadGrads, first: bool) -> None:
        """Adds this chunk's part to every gradient of the head; v None stands for a factor of 1."""
        e, scale = chunk.rows, self.weights.lora_scale
        x = hidden if v is None else (hidden * v[:, None]).to(hidden.dtype)
        x = torch.where((chunk.targets >= 0)[:, None], x, 0.0)
        if grads.weight is not None:
            self._add_product(e.t(), x, grads.weight, first)
        if grads.bias is not None:
            ones = e.new_ones(len(e)) if v is None else v.to(e.dtype)
            self._add_product(e.t(), ones[:, None], grads.bias[:, None], first)
        if grads.lora_b is not None:
            self._add_product(e.t(), self._lora_in(x) * scale, grads.lora_b, first)
        if grads.lora_a is not None:
            self._add_product((self._product(e, self.cast(self.weights.lora_b)) * scale).t(), x, grads.lora_a, first)

    def grads_for(self, rows: int, wants: list[bool], unscaled: bool = False) -> HeadGrads:
        """Buffers for the gradients that are wanted: several chunks accumulate in fp32, no rows at all give zeros."""
        new = torch.zeros if rows == 0 else torch.empty

        def buffer(x: Tensor) -> Tensor:
            dtype = self.wide if rows > self.chunk_rows else grad_dtype(x, unscaled)
            return new(x.shape, dtype=dtype, device=x.device)

        pairs = zip(wants, self._parameters(), strict=True)
        return HeadGrads(*(buffer(x) if want and x is not None else None for want, x in pairs))

    def finished(self, grads: HeadGrads, unscaled: bool = False) -> list[Tensor]:
        """The gradients in their own dtypes; empty where none was wanted."""
        return [
            self.weights.weight.new_empty(0) if grad is None or x is None else grad.to(grad_dtype(x, unscaled))
            for grad, x in zip(grads, self._parameters(), strict=True)
        ]

    def _parameters(self) -> tuple[Tensor | None, ...]:
        w = self.weights
        return w.weight, w.bias, w.lora_a, w.lora_b

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        self.flop += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        return a @ b

    def _add_product(self, a: Tensor, b: Tensor, out: Tensor, first: bool) -> None:
        """out (+)= a @ b; 16-bit gradients are written once, several chunks accumulate in fp32."""
        if out.dtype in (self.wide, a.dtype):
            self._mm(a, b, out, accumulate=not first)
            return
        assert first
        step = max(1, WIDEN_BYTES // (b.shape[1] * self.wide.itemsize))
        for start in range(0, len(out), step):
            out[start : start + step] = self._product(a[start : start + step], b)
