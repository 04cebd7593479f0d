"""What torch's FlopCounterMode cannot see: products inside our custom ops, and in-place or out= forms of addmm.

Each op returns a CPU tensor `work` with the FLOPs of the products it ran, counted where they ran; its formula reads it.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula


def work_tensor(flop: int) -> torch.Tensor:
    return torch.tensor(flop, dtype=torch.int64)


def count_work_of(op: Any, position: int) -> None:
    """Registers the FLOP formula of an op whose output at `position` is its `work`."""

    @register_flop_formula(op, get_raw=True)
    def formula(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return int(out_val[position])


def _addmm_(self_shape: Any, a_shape: Any, b_shape: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * prod(a_shape) * b_shape[-1]


if torch.ops.aten.addmm_ not in flop_registry:
    register_flop_formula(torch.ops.aten.addmm_)(_addmm_)
