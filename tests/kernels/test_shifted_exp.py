"""The head product with exp in its epilogue, in Triton by descriptors and by pointers and in CUDA, against fp64."""

from __future__ import annotations

import math
from typing import TypedDict

import pytest
import torch
from torch import Tensor

from grpo_fast.kernels import launch
from grpo_fast.kernels.head_gemm import why_unavailable
from grpo_fast.kernels.launch import INTERPRETED, launch_for
from grpo_fast.kernels.shifted_exp import shifted_exp, supports
from grpo_fast.rowstats import RowStats

BF16_ROUNDING = 2**-7 if INTERPRETED else 2**-8  # the interpreter truncates fp32 to bf16


IN_CUDA = (pytest.mark.gpu, pytest.mark.cuda_product)


class Route(TypedDict):
    descriptors: bool
    cuda: bool


@pytest.fixture(params=["descriptors", "pointers", pytest.param("cuda", marks=IN_CUDA)])
def route(request: pytest.FixtureRequest, device: torch.device) -> Route:
    if request.param == "descriptors" and not launch_for(device)[0].descriptors:
        pytest.skip("this GPU has no TMA")
    if request.param == "cuda" and (reason := why_unavailable(device)):
        pytest.skip(reason)
    return {"descriptors": request.param == "descriptors", "cuda": request.param == "cuda"}


def operands(N: int, K: int, V: int, device: torch.device, spread: float = 4.0) -> tuple[Tensor, Tensor, Tensor]:
    h = torch.randn(N, K, device=device).bfloat16()
    w = (torch.randn(V, K, device=device) * spread / math.sqrt(K)).bfloat16()
    return h, w, torch.randint(V, (N,), device=device)


def exact(h: Tensor, w: Tensor, y: Tensor, inv_temp: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs, entropies and d logp / d z in fp64."""
    log_p = (inv_temp * h.double() @ w.double().T).log_softmax(1)
    target = torch.zeros_like(log_p).scatter_(1, y[:, None], 1.0)
    others = (log_p.exp() * (1 - target)).sum(1, keepdim=True)  # 1 - p without the rounding of p
    grad = inv_temp * torch.where(target > 0, others, -log_p.exp())
    return log_p.gather(1, y[:, None])[:, 0], -(log_p.exp() * log_p).sum(1), grad


def gradient(e: Tensor, stats: RowStats, inv_temp: float) -> Tensor:
    return -inv_temp * e.double() / stats.s.double()[:, None]


# one column; a prime vocabulary over several tiles, K with a tail; more row tiles than one L2 group holds
@pytest.mark.parametrize(("N", "K", "V"), [(3, 16, 1), (17, 40, 97), (50, 24, 64)])
@pytest.mark.parametrize("inv_temp", [1.0, 1 / 0.7])
def test_log_probs_entropy_and_gradient(
    N: int, K: int, V: int, inv_temp: float, route: Route, device: torch.device
) -> None:
    h, w, y = operands(N, K, V, device)
    logp, entropy, grad = exact(h, w, y, inv_temp)
    e, stats = shifted_exp(h, w, y, inv_temp, **route)
    assert e is not None and e.shape == (N, V) and e.stride(0) % 8 == 0 and stats.entropy is None
    torch.testing.assert_close(stats.logp.double(), logp, rtol=0, atol=1e-5)
    lse = (inv_temp * h.double() @ w.double().T).logsumexp(1)
    torch.testing.assert_close(stats.m.double() + stats.s.double().log(), lse, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(gradient(e, stats, inv_temp), grad, rtol=1.5 * BF16_ROUNDING, atol=1e-5)

    none, sums = shifted_exp(h, w, y, inv_temp, store=False, **route)
    _, with_entropy = shifted_exp(h, w, y, inv_temp, store=False, entropy=True, **route)
    assert none is None
    assert torch.equal(sums.logp, stats.logp) and torch.equal(with_entropy.logp, stats.logp)  # the ratio is exactly 1
    torch.testing.assert_close(with_entropy.entropy.double(), entropy, rtol=1e-5, atol=2e-5)

    # what the docstring promises for the variant that stores
    product = (h.double() * (e.double() @ w.double())).sum(1)
    derived = -stats.logp.double() - inv_temp * product / stats.s.double()
    span = (inv_temp * h.double() @ w.double().T).abs().max().item()
    torch.testing.assert_close(derived, entropy, rtol=0, atol=1e-5 + 2 * BF16_ROUNDING * span)


def test_descriptors_and_pointers_agree_to_the_bit(device: torch.device) -> None:
    if not launch_for(device)[0].descriptors:
        pytest.skip("this GPU has no TMA")
    tiles = launch.TABLES[80].store if not INTERPRETED else None
    h, w, y = operands(19, 40, 71, device)
    a, b = (shifted_exp(h, w, y, 0.9, descriptors=d, tiles=tiles) for d in (True, False))
    assert a[0] is not None and b[0] is not None and torch.equal(a[0], b[0])
    assert torch.equal(a[1].logp, b[1].logp) and torch.equal(a[1].s, b[1].s)


def test_rows_that_are_not_scored_are_zero_whatever_they_hold(route: Route, device: torch.device) -> None:
    h, w, y = operands(6, 16, 40, device)
    y[1], y[4] = -1, -100
    h[1], h[4] = float("nan"), float("inf")
    e, stats = shifted_exp(h, w, y, 1.0, **route)
    assert e is not None and not e[[1, 4]].any() and e.isfinite().all()
    picked = torch.stack([stats.logp, stats.m, stats.s])[:, [1, 4]].cpu()
    assert torch.equal(picked, torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]))
    _, stats = shifted_exp(h, w, y, 1.0, store=False, entropy=True, **route)
    assert stats.entropy[[1, 4]].tolist() == [0.0, 0.0] and stats.entropy.isfinite().all()


def planted(margin: float, V: int, K: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Rows whose target stands `margin` above logits of 0.1's order: targets at both ends of a tile and in the tail."""
    y = torch.tensor([0, 31, 32, V - 1], device=device)
    h = torch.zeros(4, K, device=device)
    h[:, 0] = 1.0
    h[:, 1:] = torch.randn(4, K - 1, device=device)
    w = torch.randn(V, K, device=device) * 0.01
    w[y, 0] += margin
    return h.bfloat16(), w.bfloat16(), y


@pytest.mark.parametrize("margin", [6.0, 12.0, 17.0, 22.0, 30.0])
def test_a_confident_token_keeps_its_gradient(margin: float, route: Route, device: torch.device) -> None:
    V = 43
    for row in range(4):  # alone: planted targets would compete with one another
        h, w, y = planted(margin, V, 16, device)
        h, y = h[row : row + 1], y[row : row + 1]
        w[:, 0] = 0.0
        w[y, 0] = margin
        logp, _, grad = exact(h, w, y, 1.0)
        e, stats = shifted_exp(h, w, y, 1.0, **route)
        assert e is not None
        got = gradient(e, stats, 1.0)
        torch.testing.assert_close(got, grad, rtol=1e-2, atol=0)
        assert got[0, y[0]] > 0
        torch.testing.assert_close(stats.logp.double(), logp, rtol=0, atol=1e-5)


# beyond a threshold each: none, none yet, raised, saturated where nothing was expected, far below all
@pytest.mark.parametrize("depth", [20.0, 39.0, 55.0, 90.0, 400.0])
@pytest.mark.parametrize("expected", ["unknown", "right", "too low", "too high", "nan"])
def test_improbable_targets(depth: float, expected: str, route: Route, device: torch.device) -> None:
    V, K = 43, 16
    h, w, y = planted(0.0, V, K, device)
    w[7, 0] = depth  # some other token takes the mass
    logp, entropy, grad = exact(h, w, y, 1.0)
    said = {"right": logp, "too low": logp - 300.0, "too high": logp * 0 - 1.0, "nan": logp * float("nan")}
    hint = None if expected == "unknown" else said[expected].float()
    e, stats = shifted_exp(h, w, y, 1.0, hint, **route)
    assert e is not None and e.isfinite().all()
    torch.testing.assert_close(stats.logp.double(), logp, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(gradient(e, stats, 1.0), grad, rtol=1.5 * BF16_ROUNDING, atol=1e-6)
    _, stats = shifted_exp(h, w, y, 1.0, hint, store=False, entropy=True, **route)
    torch.testing.assert_close(stats.logp.double(), logp, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(stats.entropy.double(), entropy, rtol=1e-4, atol=1e-4)


def test_a_saturated_row_leaves_its_neighbours_alone(device: torch.device) -> None:
    h, w, y = operands(5, 16, 43, device)
    _, before = shifted_exp(h, w, y, 1.0, store=False)
    h[2] *= 400
    y[2] = (h[2].double() @ w.double().T).argmin()
    _, after = shifted_exp(h, w, y, 1.0, store=False)
    keep = torch.tensor([0, 1, 3, 4], device=device)
    assert torch.equal(before.logp[keep], after.logp[keep])
    torch.testing.assert_close(after.logp.double(), exact(h, w, y, 1.0)[0], rtol=1e-6, atol=1e-5)


def test_what_cannot_be_right_is_nan_not_a_number(route: Route, device: torch.device) -> None:
    h, w, y = operands(3, 16, 40, device)
    h[0, 5] = float("nan")
    y[1] = 40  # outside the vocabulary
    for store in (True, False):
        _, stats = shifted_exp(h, w, y, 1.0, store=store, **route)
        assert stats.logp.isnan().tolist() == [True, True, False]


def test_a_row_has_the_same_bits_in_any_company(route: Route, device: torch.device) -> None:
    h, w, y = operands(21, 24, 43, device)
    e, stats = shifted_exp(h, w, y, 1.0, **route)
    assert e is not None
    for part in (slice(0, 1), slice(5, 21)):
        some, part_stats = shifted_exp(h[part], w, y[part], 1.0, **route)
        assert some is not None and torch.equal(some, e[part])
        assert torch.equal(part_stats.logp, stats.logp[part]) and torch.equal(part_stats.s, stats.s[part])


def test_padded_rows_and_unaligned_labels(route: Route, device: torch.device) -> None:
    h, w, y = operands(5, 24, 43, device)
    wide_h, wide_w = torch.randn(5, 40, device=device).bfloat16(), torch.randn(43, 32, device=device).bfloat16()
    wide_h[:, 8:32], wide_w[:, :24] = h, w
    labels = torch.cat([y[:1], y])
    e, stats = shifted_exp(h, w, y, 1.0, **route)
    again, again_stats = shifted_exp(wide_h[:, 8:32], wide_w[:, :24], labels[1:], 1.0, **route)
    assert e is not None and again is not None and torch.equal(e, again) and torch.equal(stats.logp, again_stats.logp)


def test_no_rows(device: torch.device) -> None:
    h, w, y = operands(0, 16, 40, device)
    e, stats = shifted_exp(h, w, y, 1.0)
    assert e is not None and e.shape == (0, 40) and stats.logp.shape == (0,)


def test_supports_says_why_not(device: torch.device) -> None:
    h, w, _ = operands(4, 16, 40, device)
    assert supports(h, w) is None
    assert "float32" in str(supports(h.float(), w))
    assert "multiple of 8" in str(supports(h[:, :12].contiguous(), w[:, :12].contiguous()))
    assert "strides" in str(supports(h, w.t().contiguous().t()))
    assert "16 bytes" in str(supports(torch.zeros(65, device=device).bfloat16()[1:].view(4, 16), w))
    assert "wide" in str(supports(h[:, :8], w))
    with pytest.raises(ValueError, match="bfloat16"):
        shifted_exp(h.half(), w, torch.zeros(4, dtype=torch.int64, device=device), 1.0)
    with pytest.raises(ValueError, match="entropy"):
        shifted_exp(h, w, torch.zeros(4, dtype=torch.int64, device=device), 1.0, entropy=True)


# 151 936 is not a multiple of 256, 152 064 is; K of the 2B model; N with a tail
@pytest.mark.gpu
@pytest.mark.parametrize("V", [32_003, 151_936, 152_064])
@pytest.mark.parametrize("K", [1000, 1536])
def test_specialised_equals_plain_equals_fp32(V: int, K: int) -> None:
    device = torch.device("cuda")
    table = launch_for(device)[0]
    if table.plain is None:
        pytest.skip(f"sm_{table.arch} has no specialised variant")
    h, w, y = operands(777, K, V, device)
    z = h.float() @ w.float().T
    truth = z.log_softmax(1).gather(1, y[:, None])[:, 0]
    entropy = torch.distributions.Categorical(logits=z).entropy()
    del z
    stored = [shifted_exp(h, w, y, 1.0, tiles=tiles) for tiles in (table.store, table.plain[0])]
    summed = [shifted_exp(h, w, y, 1.0, store=False, tiles=tiles)[1] for tiles in (table.sums, table.plain[1])]
    both = [shifted_exp(h, w, y, 1.0, store=False, entropy=True, tiles=t)[1] for t in (table.sums, table.plain[1])]
    for stats in (*(stats for _, stats in stored), *summed, *both):
        torch.testing.assert_close(stats.logp, truth, rtol=0, atol=1e-4)
    for stats in both:
        torch.testing.assert_close(stats.entropy, entropy, rtol=1e-5, atol=1e-4)
    (e, _), (plain_e, _) = stored
    assert e is not None and plain_e is not None
    torch.testing.assert_close(e, plain_e, rtol=2**-7, atol=0)
    # the on-policy ratio: the pass that stores and the passes that do not, one tiling
    assert torch.equal(stored[0][1].logp, summed[0].logp) and torch.equal(summed[0].logp, both[0].logp)


@pytest.mark.gpu
@pytest.mark.cuda_product
@pytest.mark.parametrize(("N", "K", "V"), [(777, 1536, 151_936), (129, 1000, 32_003), (4096, 3584, 152_064)])
def test_cuda_agrees_with_triton(N: int, K: int, V: int) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    reason = why_unavailable(device)
    if reason:
        pytest.skip(reason)
    h, w, y = operands(N, K, V, device)
    y[::7] = -1
    triton, cuda = (shifted_exp(h, w, y, 1.0, cuda=by_cuda) for by_cuda in (False, True))
    assert triton[0] is not None and cuda[0] is not None
    torch.testing.assert_close(cuda[0], triton[0], rtol=2**-7, atol=1e-30)
    torch.testing.assert_close(cuda[1].logp, triton[1].logp, rtol=0, atol=1e-5)
    again = shifted_exp(h, w, y, 1.0, cuda=True)
    assert again[0] is not None and torch.equal(again[0], cuda[0]) and torch.equal(again[1].logp, cuda[1].logp)
    for entropy in (False, True):
        theirs, ours = (shifted_exp(h, w, y, 1.0, store=False, entropy=entropy, cuda=c)[1] for c in (False, True))
        assert torch.equal(ours.logp, cuda[1].logp)  # the ratio is exactly 1
        if entropy:
            torch.testing.assert_close(ours.entropy, theirs.entropy, rtol=1e-5, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("cuda", [False, pytest.param(True, marks=pytest.mark.cuda_product)])
def test_rows_beyond_two_to_the_31_elements(cuda: bool) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    if cuda and (reason := why_unavailable(device)):
        pytest.skip(reason)
    h, w, y = operands(16_384, 64, 151_936, device)
    e, stats = shifted_exp(h, w, y, 1.0, cuda=cuda)
    last, its = shifted_exp(h[-130:], w, y[-130:], 1.0, cuda=cuda)
    assert e is not None and last is not None and e.numel() > 2**31
    assert torch.equal(e[-130:], last) and torch.equal(stats.logp[-130:], its.logp)
    product = torch.mm(e, w)[-130:]  # the gradient's product reads as far
    torch.testing.assert_close(product.float(), last.float() @ w.float(), rtol=2**-7, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("K", [1536, 3584])
def test_a_likely_token_is_as_exact_at_any_depth(K: int, device: torch.device) -> None:
    h, w, y = operands(256, K, 4096, device, spread=1.0)
    h = (h.float() + 30 * w[y].float()).bfloat16()  # logits about 30 above the others
    logp, _, _ = exact(h, w, y, 1.0)
    _, stats = shifted_exp(h, w, y, 1.0)
    likely = logp > -0.1
    assert likely.sum() > 200
    torch.testing.assert_close(stats.logp.double()[likely], logp[likely], rtol=0, atol=5e-6)
