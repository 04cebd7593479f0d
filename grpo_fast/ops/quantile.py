"""The entropy quantile over the batch, and over all ranks where torch.distributed runs."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def high_entropy_rows(entropy: Tensor, mask: Tensor | None, share: float) -> Tensor:
    """1 for the rows [N] whose entropy reaches the (1 - share) quantile of every row that counts, else 0."""
    live = torch.ones_like(entropy, dtype=torch.bool) if mask is None else mask
    everywhere = _gather(torch.where(live, entropy, -1.0))  # entropies are not negative: -1 marks what is left out
    if len(everywhere) == 0:
        return entropy
    threshold = _quantile(everywhere, 1.0 - share)
    return ((entropy >= threshold) & live).to(entropy.dtype)


def _quantile(x: Tensor, q: float) -> Tensor:
    """Linear interpolation between order statistics of the values >= 0, without a host sync or a size limit."""
    ordered = x.sort().values
    absent = (x < 0).sum()
    position = q * (len(x) - absent - 1).clamp(min=0).double()
    low = position.floor()
    at = torch.stack([low, low + 1]).long().add(absent).clamp(max=len(x) - 1)
    a, b = ordered.index_select(0, at).unbind()  # indexing with a scalar tensor would sync
    return torch.lerp(a, b, (position - low).to(x.dtype))


def _gather(x: Tensor) -> Tensor:
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    sizes = x.new_empty(dist.get_world_size(), dtype=torch.int64)
    dist.all_gather_into_tensor(sizes, torch.tensor([len(x)], device=x.device))
    most = int(sizes.max())
    padded = torch.full((most,), -1.0, dtype=x.dtype, device=x.device)
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in range(len(sizes))]
    dist.all_gather(parts, padded)
    return torch.cat(parts)
