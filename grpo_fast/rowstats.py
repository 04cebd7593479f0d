"""What a row pass knows about each row of scaled logits z' = inv_temp * softcap(z)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class RowStats(NamedTuple):
    """One value per row, fp32; a row that is not scored (target < 0) has 0, 0, 0, 1."""

    logp: Tensor  # [n] of the target
    entropy: Tensor  # [n]
    m: Tensor  # [n] the largest z'
    s: Tensor  # [n] sum of exp(z' - m)
