"""The processes of one run: this one's place among them, and the few collectives that the loop needs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from grpo_fast.errors import BadSettings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Every world-th item from this rank's on: all ranks' shares together are all items."""
        return items[self.rank :: self.world]

    def merged(self, shares: Sequence[Sequence[T]]) -> list[T]:
        """The inverse of `share`, over the shares of all ranks."""
        found: list[Any] = [None] * sum(map(len, shares))
        for rank, share in enumerate(shares):
            found[rank :: self.world] = share
        return found

    def gather(self, value: T) -> list[T]:
        """What every rank has, in their order, on every rank. Small objects only."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def stack(self, values: Tensor) -> Tensor:
        """[world, …] the tensor of every rank."""
        if self.world == 1:
            return values[None]
        found = [torch.zeros_like(values) for _ in range(self.world)]
        dist.all_gather(found, values.contiguous())
        return torch.stack(found)

    def any(self, flag: bool) -> bool:
        return flag if self.world == 1 else bool(self.stack(torch.tensor([float(flag)], device=self.device)).any())

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()


@contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """Joins the process group that torchrun describes in the environment; without one, a world of its own."""
    world, rank, local = (
        int(os.environ.get(name, default))
        for name, default in (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"))
    )
    cuda = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        raise BadSettings(f"device is {device}, but torch finds no CUDA device; `grpo-fast doctor` says more")
    if device not in ("auto", "cpu") and not device.startswith("cuda"):
        raise BadSettings(f"device must be auto, cpu or cuda, got {device!r}")
    if cuda and world > 1 and local >= torch.cuda.device_count():
        raise BadSettings(
            f"process {local} of this machine has no GPU of its own: torch sees {torch.cuda.device_count()}; "
            "lower --nproc-per-node"
        )
    here = torch.device(f"cuda:{local}" if world > 1 or ":" not in device else device) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(here)
    joins = world > 1 and not dist.is_initialized()
    if joins:
        dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(minutes=60))
    try:
        yield Ranks(rank, world, here)
    finally:
        if joins:
            dist.destroy_process_group()
