"""The same tests run interpreted on a CPU and compiled on a GPU; tests/conftest.py sets TRITON_INTERPRET."""

from __future__ import annotations

import pytest
import torch

from grpo_fast.kernels.launch import INTERPRETED


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")
