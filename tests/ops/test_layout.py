"""How many rows a byte budget holds and the sweeps take, and hidden rows that lie where kernels cannot read them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from grpo_fast import GRPOLoss, linear_logprobs
from grpo_fast.ops.head import Head
from grpo_fast.ops.layout import Layout

ON_GPU = Layout(torch.float32, torch.bfloat16, widen=False, multiple=128)
GB = 10**9


@pytest.mark.parametrize(("h", "v"), [(1536, 151_936), (2048, 151_936), (3584, 152_064)])
@pytest.mark.parametrize("budget", [2_500_000_000, 4_700_000_000])
@pytest.mark.parametrize("n", [1024, 8192, 65_536])
@pytest.mark.parametrize("trained", [True, False])
def test_chunks_without_logits_fill_the_budget_and_no_more(h: int, v: int, budget: int, n: int, trained: bool) -> None:
    rows = ON_GPU.chunk_rows_without_logits(v, h, budget, n, trained)
    row = 2 * v + 12 * h  # E' in bf16; E' @ W in fp32, and two copies of the hidden rows at most as wide
    accumulated = 4 * v * h if trained and n > rows else 0
    assert rows % 128 == 0 and rows * row + min(accumulated, budget // 2) <= budget
    assert (rows + 128) * row + min(accumulated, budget // 2) > budget
    assert rows > 1.5 * ON_GPU.chunk_rows(v, h, budget) or accumulated


def test_8192_rows_of_the_2b_model_are_one_chunk_on_an_h200() -> None:
    assert ON_GPU.chunk_rows_without_logits(151_936, 1536, 140 * GB // 32, 8192, True) >= 8192


V, H, ROWS = 96, 16, 64
BUDGET = 40 * (2 * V + 12 * H) + 4 * V * H  # 40 rows of E' and the head's gradient, or 28 rows with their logits


@pytest.mark.parametrize(
    ("options", "frozen", "chunks"),
    [({}, False, 2), ({}, True, 2), ({"entropy_coef": 0.1}, False, 4)],
    ids=["trained", "frozen", "entropy gradient"],
)
def test_the_loss_takes_as_many_rows_as_fit(
    options: dict[str, float], frozen: bool, chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    score = Head.score

    def counted(self: Head, hidden: Tensor, *arguments: object, **keywords: object) -> object:
        taken.append(len(hidden))
        return score(self, hidden, *arguments, **keywords)  # type: ignore[arg-type]

    def gradients(chunk_bytes: int | None) -> list[Tensor]:
        torch.manual_seed(0)
        hidden = torch.randn(4, ROWS // 4, H).bfloat16().requires_grad_()
        weight = torch.randn(V, H).bfloat16().requires_grad_(not frozen)
        loss_fn = GRPOLoss(chunk_bytes=chunk_bytes, backend="triton", **options)
        out = loss_fn(hidden, weight, torch.randint(V, (4, ROWS // 4)), advantages=torch.randn(4))
        return [out.logps, *torch.autograd.grad(out.loss, [hidden] if frozen else [hidden, weight])]

    whole = gradients(None)
    monkeypatch.setattr(Head, "score", counted)
    several = gradients(BUDGET)
    assert len(taken) == chunks and sum(taken) == ROWS
    for a, b in zip(whole, several, strict=True):
        torch.testing.assert_close(b.float(), a.float(), rtol=2**-6, atol=2**-9)


@pytest.mark.parametrize("at", ["an odd address", "an odd distance"])
def test_hidden_rows_that_tma_cannot_read_are_copied(at: str) -> None:
    torch.manual_seed(0)
    rows = torch.randn(4, 8, H).bfloat16()
    wide = torch.zeros(4, 8, H + 1).bfloat16()
    where = torch.zeros(rows.numel() + 1).bfloat16()[1:].view(4, 8, H) if at == "an odd address" else wide[..., :H]
    weight, targets = torch.randn(V, H).bfloat16(), torch.randint(V, (4, 8))
    advantages = torch.randn(4)

    def found(hidden: Tensor) -> list[Tensor]:
        leaf = hidden.detach().requires_grad_()
        out = GRPOLoss(backend="triton")(leaf, weight, targets, advantages=advantages)
        return [
            out.logps,
            linear_logprobs(hidden, weight, targets, backend="triton"),
            *torch.autograd.grad(out.loss, leaf),
        ]

    for a, b in zip(found(rows), found(where.copy_(rows)), strict=True):
        assert torch.equal(a, b)
