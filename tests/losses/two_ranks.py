"""Run by test_two_ranks.py: what the loss reduces over ranks, on two gloo ranks."""

import ranks
import torch

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


def truncated_batch(rank: int, truncated: tuple[bool, bool]) -> float:
    generator = torch.Generator().manual_seed(rank)
    hidden, weight = torch.randn(2, 5, 4, generator=generator), torch.randn(9, 4, generator=generator)
    loss_fn = GRPOLoss(loss_type="grpo", top_entropy_quantile=0.5, mask_truncated_completions=True)
    targets, advantages = torch.zeros(2, 5, dtype=torch.long), torch.ones(2)
    return loss_fn(hidden, weight, targets, advantages=advantages, truncated=torch.tensor(truncated)).loss.item()


def work(rank: int) -> dict[str, object]:
    keep = high_entropy_rows(entropies()[rank], None, 0.3)
    alone = truncated_batch(rank, (rank == 1, rank == 1))  # a rank whose completions were all cut off
    nobody = truncated_batch(rank, (True, True))
    return {"keep": keep.tolist(), "coef": adaptive_step(rank), "alone": alone, "nobody": nobody}


if __name__ == "__main__":
    ranks.run(work)
