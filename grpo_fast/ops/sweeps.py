"""The sweeps over chunks of rows that make a loss and its gradients together.

Per chunk: GEMM 1 and row pass, policy loss, the two gradient products. What couples rows decides the sweeps:
rows alone, or sequences that fit a chunk whole: one sweep (3 GEMMs trained, 2 frozen, 1 without gradients);
otherwise the log-probs of all rows come first (4 trained; a frozen head still 2, as dH takes its row factor late).
Suffixes: M rows of the input, N scored rows, n rows of a chunk, S sequences, H hidden, V vocabulary.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grpo_fast.config import LossOptions
from grpo_fast.ops.backends import choose
from grpo_fast.ops.head import Chunk, Head, grad_dtype
from grpo_fast.ops.metrics import metrics_vector
from grpo_fast.ops.policy_loss import policy_loss
from grpo_fast.ops.quantile import high_entropy_rows
from grpo_fast.ops.scored_rows import ScoredRows
from grpo_fast.types import PolicyRows, PolicyTerms


@dataclass(frozen=True, slots=True)
class Span:
    """Rows of one chunk, and its sequences where it holds them whole."""

    rows: slice
    sequences: slice | None = None


class Sweeps:
    """One call of the loss: the rows, what is wanted of them, and the buffers that the sweeps fill."""

    def __init__(
        self,
        options: LossOptions,
        head: Head,
        hidden: Tensor,
        targets: Tensor,
        scored: ScoredRows,
        rows: PolicyRows,
        entropy_coef: float,
        coupled: bool,
        wants: list[bool],
        backend: str,
    ) -> None:
        self.options, self.head, self.scored, self.rows = options, head, scored, rows
        self.hidden, self.entropy_coef, self.coupled = hidden, entropy_coef, coupled
        self.want_hidden, self.want_head = wants[0], any(wants[1:])
        if entropy_coef == 0.0 and (self.want_hidden or not self.want_head):  # see _score
            head.expect(scored.count, self.want_head)
        self.policy_backend = choose("policy_loss", hidden.device, head.wide, backend)
        n, device, dtype = scored.count, hidden.device, head.wide
        self.targets = scored.pick_targets(targets)
        self.logps, self.entropy = (torch.empty(n, dtype=dtype, device=device) for _ in range(2))
        self.terms = PolicyTerms(*(torch.empty(n, dtype=dtype, device=device) for _ in PolicyTerms._fields))
        self.grad_hidden = hidden.new_empty(0)
        if self.want_hidden:
            new = torch.empty_like if scored.index is None else torch.zeros_like
            self.grad_hidden = new(hidden, dtype=grad_dtype(hidden, unscaled=True))
        self.grads = head.grads_for(n, wants[1:], unscaled=True)

    def run(self) -> None:
        single = self.scored.count <= self.head.chunk_rows
        by_batch = self.options.top_entropy_quantile < 1.0
        if self.scored.count == 0:
            if by_batch:  # the other ranks wait for this one's entropies, none though they are
                self._choose_by_entropy()
            return
        aligned = self._aligned_chunks() if self.coupled and not single else None
        if single or not (by_batch or self.coupled) or (aligned is not None and not by_batch):
            for at, span in enumerate(aligned or self._even_chunks()):
                self._fused(span, first=at == 0)
        else:
            self._two_sweeps()

    def _even_chunks(self) -> list[Span]:
        n = self.scored.count
        if n <= self.head.chunk_rows:
            return [Span(slice(0, n), slice(0, len(self.rows.lengths)))]
        return [Span(rows) for rows in self.head.chunks(n)]

    def _aligned_chunks(self) -> list[Span] | None:
        """Chunks of whole sequences, or None where one does not fit or the host does not know their ends."""
        starts, most = self.scored.starts, self.head.chunk_rows
        if starts is None or max(b - a for a, b in itertools.pairwise(starts)) > most:
            return None
        spans, first = [], 0
        for last in range(1, len(starts)):
            if last + 1 == len(starts) or starts[last + 1] - starts[first] > most:
                spans.append(Span(slice(starts[first], starts[last]), slice(first, last)))
                first = last
        return spans

    def _hidden_rows(self, span: Span) -> Tensor:
        index = self.scored.index
        rows = self.hidden[span.rows] if index is None else self.hidden.index_select(0, index[span.rows])
        return self.head.cast(rows)

    def _policy(self, span: Span) -> Tensor:
        """dL/dlogp of these rows; fills their share of the terms."""
        rows, s = self.rows, span.sequences
        if s is None:  # rows alone: any sequence will do, as each ratio needs only its own row
            lengths = rows.lengths.new_full((1,), span.rows.stop - span.rows.start)
            rows = rows.slice(span.rows, lengths, rows.tokens.new_ones(1))
        else:
            rows = rows.slice(span.rows, rows.lengths[s], rows.tokens[s])
        terms = policy_loss(self.options, self.logps[span.rows], rows, self.policy_backend)
        if len(terms.loss) == self.scored.count:
            self.terms = terms
        else:
            for whole, part in zip(self.terms, terms, strict=True):
                whole[span.rows] = part
        return terms.grad

    def _entropy_grad(self, span: Span) -> Tensor | None:
        if self.entropy_coef == 0.0:
            return None
        active = self._active()
        share = -self.entropy_coef / (active.sum().clamp(min=1.0) * self.options.gradient_accumulation_steps)
        return active[span.rows] * share

    def _active(self) -> Tensor:
        live = torch.ones_like(self.entropy) if self.scored.mask is None else self.scored.mask.to(self.entropy.dtype)
        return live if self.rows.keep is None else live * self.rows.keep

    def _score(self, span: Span, keep: bool) -> tuple[Tensor, Chunk | None]:
        """GEMM 1 of these rows; `keep` makes what the gradients need."""
        hidden, targets, chunk = self._hidden_rows(span), self.targets[span.rows], None
        expected = None if self.rows.old_logps is None else self.rows.old_logps[span.rows]
        if keep:
            raw = self.entropy_coef != 0.0
            chunk = self.head.score(hidden, targets, expected, raw=raw, unit=self.want_hidden)
        stats = self.head.stats(hidden, targets, expected) if chunk is None else chunk.stats
        self.logps[span.rows], self.entropy[span.rows] = stats.logp, stats.entropy
        return hidden, chunk

    def _fused(self, span: Span, first: bool) -> None:
        hidden, chunk = self._score(span, keep=self.want_hidden or self.want_head)
        if self.options.top_entropy_quantile < 1.0:
            self._choose_by_entropy()
        grad = self._policy(span)
        if chunk is not None:
            self._products(span, hidden, chunk, grad, first)

    def _products(self, span: Span, hidden: Tensor, chunk: Chunk, grad: Tensor, first: bool) -> None:
        entropy_grad, v = self._entropy_grad(span), None
        if entropy_grad is None:
            v = self.head.factor(chunk, grad)
        else:
            chunk = self.head.entropy_rows(chunk, grad, entropy_grad, unit=self.want_hidden)
        if chunk.unit_hidden is not None:
            self._store_hidden(span, chunk.unit_hidden if v is None else chunk.unit_hidden.mul_(v[:, None]))
        if self.want_head:
            self.head.add_grads(chunk, hidden, v, self.grads, first)

    def _store_hidden(self, span: Span, rows: Tensor) -> None:
        if self.scored.index is None:
            self.grad_hidden[span.rows] = rows
        else:
            self.grad_hidden.index_copy_(0, self.scored.index[span.rows], rows.to(self.grad_hidden.dtype))

    def _choose_by_entropy(self) -> None:
        keep = high_entropy_rows(self.entropy, self.scored.mask, self.options.top_entropy_quantile)
        self.rows = replace(self.rows, keep=keep)

    def _two_sweeps(self) -> None:
        spans = self._even_chunks()
        late = self.want_hidden and not self.want_head and self.entropy_coef == 0.0
        for span in spans:
            _, chunk = self._score(span, keep=late)
            if chunk is not None and chunk.unit_hidden is not None:
                unit = self.head.factor(chunk, torch.ones_like(chunk.stats.s))
                self._store_hidden(span, chunk.unit_hidden.mul_(unit[:, None]))
        if self.options.top_entropy_quantile < 1.0:
            self._choose_by_entropy()
        grad = self._policy(Span(slice(0, self.scored.count), slice(0, len(self.rows.lengths))))
        if late:
            self.grad_hidden.mul_(self.spread(grad)[:, None])
        elif self.want_hidden or self.want_head:
            for at, span in enumerate(spans):
                hidden, chunk = self._score(span, keep=True)
                assert chunk is not None
                self._products(span, hidden, chunk, grad[span.rows], first=at == 0)

    def results(self) -> tuple[Tensor, Tensor]:
        """The loss and the metrics vector."""
        loss = self.terms.loss.sum()
        if self.entropy_coef != 0.0:
            active = self._active()
            mean = (self.entropy * active).sum() / active.sum().clamp(min=1.0)
            loss = loss - self.entropy_coef * mean / self.options.gradient_accumulation_steps
        return loss, metrics_vector(self.options, loss, self.terms, self.entropy, self.rows, self.scored)

    def spread(self, x: Tensor) -> Tensor:
        """Scored rows [N] back among the input's rows [M], 0 elsewhere."""
        if self.scored.index is None:
            return x
        return x.new_zeros(len(self.hidden)).index_copy_(0, self.scored.index, x)
