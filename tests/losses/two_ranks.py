"""Run by test_two_ranks.py: what the loss reduces over ranks, on two gloo ranks. Prints one JSON object."""

import json
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from grpo_fast import GRPOLoss
from grpo_fast.ops.quantile import high_entropy_rows

LENGTHS = (7, 12)  # rows of each rank


def entropies() -> tuple[torch.Tensor, ...]:
    return torch.rand(sum(LENGTHS), generator=torch.Generator().manual_seed(0)).split(LENGTHS)


def adaptive_step(rank: int) -> float:
    generator = torch.Generator().manual_seed(rank)
    hidden, weight = torch.randn(2, 3 + rank, 4, generator=generator, requires_grad=True), torch.randn(9, 4) / 9
    loss_fn = GRPOLoss(use_adaptive_entropy=True, entropy_coef=0.1, entropy_target=100.0)
    loss_fn(hidden, weight, torch.zeros(2, 3 + rank, dtype=torch.long), advantages=torch.ones(2))
    return loss_fn.update_entropy_coef()


def worker(rank: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{rendezvous}")
    keep = high_entropy_rows(entropies()[rank], None, 0.3)
    found = [None, None]
    dist.all_gather_object(found, {"keep": keep.tolist(), "coef": adaptive_step(rank)})
    if rank == 0:
        print(json.dumps(found), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, args=(f"{folder}/rendezvous",), nprocs=2)
