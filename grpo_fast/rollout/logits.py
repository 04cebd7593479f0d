"""Logits by the product that the trainer's log-probs come from: fp32 in every dtype, adapters on the head included."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from grpo_fast.ops.head import Head, HeadWeights
from grpo_fast.ops.inputs import compute_dtype
from grpo_fast.policy.head import head_operands

CPU_CHUNK_BYTES = 256 << 20  # of fp32 logits made and looked at in one go
CUDA_CHUNK_BYTES = 1 << 30  # a batch in one piece: each further one would read the whole weight again


class LogitsHead:
    """For as long as the weights stay as they are: under autocast it holds them in the lower precision."""

    def __init__(self, lm_head: nn.Module) -> None:
        operands = head_operands(lm_head)
        lora_a, lora_b, scale = operands.lora or (None, None, 1.0)
        self.weights = HeadWeights(operands.weight, operands.bias, lora_a, lora_b, scale)
        self.chunk_bytes = CUDA_CHUNK_BYTES if operands.weight.is_cuda else CPU_CHUNK_BYTES
        self.chunk_rows = max(16, self.chunk_bytes // (4 * len(operands.weight)) // 16 * 16)
        self._head: Head | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """[n, V] logits of [n, H], which the next call overwrites."""
        dtype = compute_dtype(hidden)
        if self._head is None or self._head.dtype != dtype:
            self._head = Head(self.weights, dtype, self.chunk_bytes, "auto")
        with torch.autocast(hidden.device.type, enabled=False):
            return self._head.logits(self._head.cast(hidden))
