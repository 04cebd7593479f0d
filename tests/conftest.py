"""For every test: fixed seeds, at most two threads, NaN in uninitialised memory, GPU tests skipped in sight.

Without a CUDA device the Triton kernels run interpreted. The variable must be set before a kernel is defined, hence
here; code that compiles kernels ahead of time needs a process of its own without it.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell starts what it puts in the background with Ctrl-C ignored, and children would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

# One thread for each of pytest-xdist's workers, in their children too: threads that wait for a core wait long.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(min(int(os.environ.get("OMP_NUM_THREADS", "2")), torch.get_num_threads()))


# The files that take longest, half a minute and more, in turn for one worker and the other.
LONG = (
    "train/test_run.py", "train/test_phantom_recipe.py", "train/test_two_ranks.py", "test_aot.py",
    "matrix/test_command.py", "train/test_state.py", "compare/test_command.py", "test_benchmarks.py",
)  # fmt: skip


def long_ones_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """pytest-xdist cuts the tests into a row for each worker, and who has done all takes from the end of another's."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    rank = {str(Path(__file__).parent / name): place for place, name in enumerate(LONG)}
    rest = [item for item in items if str(item.path) not in rank]
    long = sorted((item for item in items if str(item.path) in rank), key=lambda item: rank[str(item.path)])
    rows = [[item for item in long if rank[str(item.path)] % workers == row] for row in range(workers)]
    found: list[pytest.Item] = []
    for number, row in enumerate(rows, start=1):
        room = max(len(items) * number // workers - len(found) - len(row), 0)
        found += row + rest[:room]
        del rest[:room]
    return found + rest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = long_ones_first(items)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def _poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = allocate(*args, **kwargs)
        if tensor.is_floating_point() or tensor.is_complex():
            with torch.no_grad():
                tensor.fill_(float("nan"))
        return tensor

    return poisoned


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads memory that was never written gets NaN, not what happened to lie there."""
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, _poisoned(getattr(torch.Tensor, name)))
