"""Drawing tokens from logits by kernels: the distribution, the tokens of the path in torch, log-probs in fp64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from grpo_fast.kernels.draw import BLOCK, draw
from grpo_fast.rollout import SamplingParams, sampling

DRAWS = 400


def both(z: Tensor, uniform: Tensor, banned: list[int], temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """The kernels' tokens and log-probs, and the tokens of torch's path."""
    sampler = sampling.Sampler(SamplingParams(temperature=temperature), banned, z.shape[1], z.device)
    tokens, logps = draw(z, uniform, sampler.allowed, 1.0 / temperature)
    sampler.fused = False
    theirs, _ = sampler.draw(z.clone(), uniform)
    return tokens, logps, theirs


# below, at and above a block; a prime; many blocks with a tail
@pytest.mark.parametrize("vocab", [5, BLOCK, BLOCK + 1, 1009, 9 * BLOCK + 3])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_same_tokens_as_torch_and_exact_log_probs(vocab: int, temperature: float, device: torch.device) -> None:
    z = 3 * torch.randn(3, vocab, device=device)
    uniform = torch.rand(3, 12, dtype=torch.float64, device=device)
    tokens, logps, theirs = both(z, uniform, [0, vocab - 1], temperature)
    assert (tokens != theirs).sum() <= 1  # a uniform number on the border between two may fall either way
    exact = (z.double() / temperature).log_softmax(1).gather(1, tokens)
    torch.testing.assert_close(logps.double(), exact, rtol=0, atol=5e-6)


def test_the_distribution(device: torch.device) -> None:
    vocab, banned = 700, [3, 300, 699]
    z = 2 * torch.randn(1, vocab, device=device)
    uniform = ((torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS)[None].to(device)  # evenly: no luck in it
    tokens, _, _ = both(z, uniform, banned)
    z[:, banned] = -math.inf
    counts = torch.bincount(tokens[0].cpu(), minlength=vocab)
    assert (counts - DRAWS * z.double().softmax(1)[0].cpu()).abs().max() <= 1.0 + 1e-6


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_range_draw_what_has_weight(uniform: float, device: torch.device) -> None:
    z = torch.full((1, 1500), -math.inf, device=device)
    z[0, 257:259] = 0.0
    tokens, logps, theirs = both(z, torch.full((1, 1), uniform, dtype=torch.float64, device=device), [257])
    assert tokens.item() == theirs.item() == 258 and math.isclose(logps.item(), -math.log(2), rel_tol=1e-6)


def test_a_banned_token_far_above_all_others(device: torch.device) -> None:
    z = torch.randn(2, 600, device=device)
    z[:, 5] = 500.0
    uniform = torch.rand(2, 30, dtype=torch.float64, device=device)
    tokens, logps, theirs = both(z, uniform, [5])
    assert torch.equal(tokens, theirs) and tokens.unique().numel() > 20 and (logps < -490).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_give_no_token(bad: float, device: torch.device) -> None:
    z = torch.randn(2, 600, device=device)
    z[1, 400] = bad
    tokens, _, _ = both(z, torch.rand(2, 3, dtype=torch.float64, device=device), [])
    assert (tokens[0] >= 0).all() and (tokens[1] == -1).all()


def test_a_row_is_drawn_alike_in_any_company(device: torch.device) -> None:
    z = torch.randn(5, 600, device=device)
    uniform = torch.rand(5, 4, dtype=torch.float64, device=device)
    whole, part = both(z, uniform, [1]), both(z[2:4], uniform[2:4], [1])
    assert torch.equal(whole[0][2:4], part[0]) and torch.equal(whole[1][2:4], part[1])


def test_no_rows(device: torch.device) -> None:
    none = torch.empty(0, 7, device=device)
    tokens, logps = draw(none, none[:, :2].double(), torch.ones(7, dtype=torch.bool, device=device), 1.0)
    assert tokens.shape == logps.shape == (0, 2)
