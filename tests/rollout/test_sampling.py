"""Draws against exact distributions, and what is never drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from policy_lab import IMAGE, VIDEO, VISION_START, VOCAB, picture, prompt, tiny_model
from torch import Tensor

from grpo_fast.policy import GRPOPolicy
from grpo_fast.rollout import Engine, SamplingParams
from grpo_fast.rollout.sampling import BLOCK, Sampler, pick, row_keys, uniforms

DRAWS = 20_000


def chi_square(tokens: Tensor, expected: Tensor) -> tuple[float, float]:
    """The statistic, cells of fewer than 5 expected draws put together, and where a fair draw lands once in 3e5."""
    counts = torch.bincount(tokens, minlength=len(expected)).double()
    assert counts[expected == 0].sum() == 0
    expected = expected.double() * len(tokens)
    small = expected < 5
    observed = torch.cat([counts[~small], counts[small].sum()[None]])
    wanted = torch.cat([expected[~small], expected[small].sum()[None]])
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    free = len(wanted) - 1
    return ((observed - wanted) ** 2 / wanted).sum().item(), free + 4.5 * (2 * free) ** 0.5 + 7


def filtered(logits: Tensor, params: SamplingParams, banned: list[int]) -> Tensor:
    """The exact distribution, token by token as the settings are defined."""
    z = (logits.double() / params.temperature).tolist()
    order = sorted((i for i in range(len(z)) if i not in banned), key=lambda i: -z[i])
    if params.top_k:
        order = order[: params.top_k]
    p = {i: torch.tensor(z[i], dtype=torch.float64).exp().item() for i in order}
    total, kept, mass = sum(p.values()), [], 0.0
    for i in order:
        if mass / total < params.top_p:
            kept.append(i)
        mass += p[i]
    kept = [i for i in kept if p[i] >= params.min_p * p[order[0]]]
    out = torch.zeros(len(z), dtype=torch.float64)
    for i in kept:
        out[i] = p[i]
    return out / out.sum()


# Vocabularies below, at and above a block, a prime, and one whose best tokens are less than top_p asks for.
@pytest.mark.parametrize("vocab", [7, BLOCK, 1009, 4099])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.2},
        {"top_k": 6, "top_p": 0.8, "min_p": 0.1, "temperature": 1.3},
    ],
    ids=str,
)
def test_draws_have_the_exact_distribution(vocab: int, options: dict[str, float]) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = (0.3 if vocab == 4099 else 1.5) * torch.randn(1, vocab, generator=generator)
    params = SamplingParams(**options)
    banned = [0, vocab - 1]
    uniform = torch.from_numpy(uniforms(row_keys(1, DRAWS), torch.zeros(1).numpy()))[None]
    tokens, logps = Sampler(params, banned, vocab, logits.device).draw(logits.clone(), uniform)
    found, limit = chi_square(tokens[0], filtered(logits[0], params, banned))
    assert found < limit
    exact = (logits.double() / params.temperature).log_softmax(1)[0]
    assert (logps[0] - exact[tokens[0]]).abs().max() < 1e-5


@pytest.mark.parametrize("kind", [np.int64, np.uint64, np.int32])
def test_seeds_may_be_numpys(kind) -> None:
    assert np.array_equal(row_keys(kind(77), 4), row_keys(77, 4))


def test_samples_of_a_model_have_its_next_token_distribution() -> None:
    model = tiny_model("qwen2_vl", torch.float32)
    engine = Engine(model)
    one = prompt(model, [3, picture(1, dtype=torch.float32), 2])
    params = SamplingParams(max_tokens=2, stop_tokens=(), seed=4)
    (made,) = engine.generate([one], DRAWS, params)
    first, second = torch.stack(made.completions).unbind(1)
    with torch.no_grad():
        logits = _logits(model, one)
    allowed = torch.ones(VOCAB)
    allowed[list(engine.banned_tokens(params))] = 0
    exact = logits.softmax(-1) * allowed
    exact = exact / exact.sum()
    found, limit = chi_square(first, exact)
    assert found < limit
    assert len(second.unique()) > 20


def _logits(model, one) -> Tensor:
    image = one.vision[0]
    ids = one.input_ids[None]
    return model.eval()(
        input_ids=ids, pixel_values=image.pixels, image_grid_thw=torch.tensor([image.grid]),
        mm_token_type_ids=(ids == IMAGE).int(),
    ).logits[0, -1]  # fmt: skip


def test_uniform_numbers_are_uniform_and_independent() -> None:
    keys = row_keys(7, 300)
    table = torch.stack([torch.from_numpy(uniforms(keys, torch.full((300,), t).numpy())) for t in range(300)])
    assert table.unique().numel() == table.numel() and table.min() >= 0 and table.max() < 1
    counts = torch.histc(table, 100, 0, 1)
    assert ((counts - 900) ** 2 / 900).sum() < 99 + 4.5 * 198**0.5
    near = torch.corrcoef(torch.stack([table[:-1].flatten(), table[1:].flatten(), table[:-1].roll(1, 1).flatten()]))
    assert (near - torch.eye(3, dtype=near.dtype)).abs().max() < 0.015
    assert set(row_keys(7, 300).tolist()).isdisjoint(row_keys(8, 300).tolist())


@pytest.mark.parametrize("vocab", [1, 255, 256, 257, 151_936])
def test_a_pick_never_has_weight_zero(vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    weights = torch.rand(40, vocab, generator=generator) * (torch.rand(40, vocab, generator=generator) < 0.02)
    weights[torch.arange(40), torch.randint(vocab, (40,), generator=generator)] = 1e-6
    edges = torch.tensor([0.0, 2.0**-53, 0.5, 1 - 2.0**-53]).double().expand(40, 4)
    assert weights.gather(1, pick(weights, edges)).min() > 0


def test_a_draw_does_not_depend_on_the_rows_beside_it() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 3001, generator=generator)
    uniform = torch.rand(64, 1, dtype=torch.float64, generator=generator)
    sampler = Sampler(SamplingParams(top_p=0.9), [1], 3001, logits.device)
    whole = sampler.draw(logits.clone(), uniform)
    for rows in (slice(0, 1), slice(5, 22)):
        part = sampler.draw(logits[rows].clone(), uniform[rows])
        assert torch.equal(part[0], whole[0][rows]) and torch.equal(part[1], whole[1][rows])


def test_special_tokens_are_never_sampled_but_stops_are() -> None:
    model = tiny_model("qwen2_vl", torch.float32)
    with torch.no_grad():
        model.lm_head.weight[[IMAGE, VIDEO, VISION_START, 0, 1]] *= 20
    engine = Engine(GRPOPolicy(model))
    params = SamplingParams(max_tokens=40, stop_tokens=(VISION_START,))
    made = engine.generate([prompt(model, [5])], 16, params)[0]
    tokens = torch.cat(made.completions).tolist()
    assert not {IMAGE, VIDEO, 0, 1, 2} & set(tokens)
    assert VISION_START in tokens
    assert torch.cat(made.sampler_logps).min() < -3  # of the full softmax, the banned tokens' mass included
