"""The Triton row pass against fp64 autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from grpo_fast.kernels import rows as kernels
from grpo_fast.kernels.launch import launch_for
from grpo_fast.kernels.rows import exp_rows, grad_rows, stats_rows

Exact = tuple[Tensor, Tensor, Tensor]


def exact(
    z: Tensor, y: Tensor, inv_temp: float, softcap: float, g: Tensor | float = 1.0, g_entropy: Tensor | float = 0.0
) -> Exact:
    """Log-probs, entropies and the gradient of sum(g * logp + g_entropy * entropy), in z's dtype."""
    z = z.detach().requires_grad_()
    x = inv_temp * (softcap * torch.tanh(z / softcap) if softcap else z)
    log_p = x.log_softmax(1)
    logp = log_p.gather(1, y.clamp(min=0)[:, None])[:, 0]
    entropy = -(log_p.exp() * log_p).sum(1)
    (grad,) = torch.autograd.grad((g * logp + g_entropy * entropy).sum(), z)
    return logp.detach(), entropy.detach(), grad


def assert_no_worse(actual: Tensor, eager: Tensor, truth: Tensor, floor: float) -> None:
    error = (actual.double() - truth).abs().max().item()
    assert error <= 4 * (eager.double() - truth).abs().max().item() + floor


def vocabulary(size: str, device: torch.device) -> int:
    block = launch_for(device)[0].row_block
    return {"one": 1, "prime": 97, "block": block, "blocks and a tail": 2 * block + 5}[size]


# one column; less than a block; exactly one; several blocks with a masked tail
@pytest.mark.parametrize("size", ["one", "prime", "block", "blocks and a tail"])
@pytest.mark.parametrize(("inv_temp", "softcap"), [(1.0, 0.0), (1 / 0.7, 0.0), (0.8, 30.0)])
def test_exp_stats_and_grad_rows_equal_autograd(
    size: str, inv_temp: float, softcap: float, device: torch.device
) -> None:
    n, V = 5, vocabulary(size, device)  # more rows than the interpreter's programs
    z = torch.randn(n, V, device=device) * 6
    y = torch.randint(V, (n,), device=device)
    g, g_entropy = torch.randn(n, device=device), torch.randn(n, device=device)
    truth = exact(z.double(), y, inv_temp, softcap)
    eager = exact(z, y, inv_temp, softcap)

    rows = z.clone()
    stats = exp_rows(rows, y, inv_temp, softcap)
    assert_no_worse(stats.logp, eager[0], truth[0], 2e-6)
    assert_no_worse(stats.entropy, eager[1], truth[1], 2e-6)
    grad = -inv_temp * rows / stats.s[:, None]
    assert_no_worse(grad, eager[2], truth[2], 1e-6)
    lse = (inv_temp * (softcap * torch.tanh(z.double() / softcap) if softcap else z.double())).logsumexp(1)
    assert_no_worse(stats.m.double() + stats.s.double().log(), lse.float(), lse, 4e-6)

    kept = z.clone()
    alone = stats_rows(kept, y, inv_temp, softcap)
    assert torch.equal(kept, z)
    assert all(torch.equal(a, b) for a, b in zip(alone, stats, strict=True))

    rows = z.clone()
    grad_rows(rows, y, stats, g, g_entropy, inv_temp, softcap)
    truth = exact(z.double(), y, inv_temp, softcap, g.double(), g_entropy.double())
    eager = exact(z, y, inv_temp, softcap, g, g_entropy)
    assert_no_worse(rows, eager[2], truth[2], 2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scoring_alone_is_the_same_binary(
    dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one may sum in another order, and the ratio would not be exactly 1 on policy."""
    z, y = torch.randn(3, 160, device=device) * 4, torch.tensor([0, 7, 159], device=device)
    launched, kernel = [], kernels._exp_rows_kernel

    class Recorded:
        def __getitem__(self, grid: Any) -> Any:
            def launch(*args: Any, **constants: Any) -> None:
                launched.append(([x.dtype if isinstance(x, Tensor) else x for x in args[:-1]], constants))
                kernel[grid](*args, **constants)

            return launch

    monkeypatch.setattr(kernels, "_exp_rows_kernel", Recorded())
    alone = stats_rows(z, y, 0.9, 0.0, dtype)
    stats = exp_rows(z, y, 0.9, 0.0, out=torch.empty(3, 160, dtype=dtype, device=device))
    assert launched[0] == launched[1]
    assert all(torch.equal(a, b) for a, b in zip(alone, stats, strict=True))


# a row as long as one block and a tail, wide strides, labels that start 8 bytes off a 16-byte boundary
@pytest.mark.parametrize("V", [1, 69])
def test_row_strides_and_unaligned_labels(V: int, device: torch.device) -> None:
    wide = torch.randn(4, V + 7, device=device) * 4
    labels = torch.randint(V, (5,), device=device)
    z, y = wide[:, 3 : 3 + V], labels[1:]
    expected = z.clone()
    stats = exp_rows(expected, y.clone(), 1.0, 0.0)
    outside = wide.clone()
    out = torch.empty(4, V + 2, device=device)[:, :V]
    for got in (exp_rows(z, y, 1.0, 0.0, out=out), exp_rows(z, y, 1.0, 0.0)):
        assert all(torch.equal(a, b) for a, b in zip(got, stats, strict=True))
    assert torch.equal(out, expected) and torch.equal(z, expected)
    assert torch.equal(wide[:, :3], outside[:, :3]) and torch.equal(wide[:, 3 + V :], outside[:, 3 + V :])


def test_rows_that_are_not_scored_become_zeros_whatever_they_hold(device: torch.device) -> None:
    z = torch.randn(4, 70, device=device)
    z[1], z[3] = float("nan"), float("inf")
    y = torch.tensor([5, -1, 69, -100], device=device)
    rows = z.clone()
    stats = exp_rows(rows, y, 1.0, 0.0)
    assert torch.equal(
        torch.stack(stats)[:, [1, 3]].cpu(), torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    )
    assert not rows[[1, 3]].any() and rows.isfinite().all() and rows[[0, 2]].any(1).all()
    rows = z.clone()
    grad_rows(rows, y, stats, torch.ones(4, device=device), torch.ones(4, device=device), 1.0, 0.0)
    assert not rows[[1, 3]].any() and rows.isfinite().all() and rows[[0, 2]].any(1).all()


@pytest.mark.parametrize("margin", [12.0, 17.0, 22.0, 30.0, 60.0])
def test_a_confident_token_keeps_its_gradient(margin: float, device: torch.device) -> None:
    z = torch.randn(2, 130, device=device) * 0.1
    y = torch.tensor([3, 129], device=device)
    z[torch.arange(2), y] += margin
    log_p = z.double().log_softmax(1)
    target = torch.nn.functional.one_hot(y, 130)
    others = (log_p.exp() * (1 - target)).sum(1, keepdim=True)  # 1 - p, which fp64 itself rounds to 0 at 60
    grad = torch.where(target > 0, others, -log_p.exp())
    stats = exp_rows(rows := z.clone(), y, 1.0, 0.0)
    torch.testing.assert_close((-rows / stats.s[:, None]).double(), grad, rtol=1e-4, atol=0)
    torch.testing.assert_close(stats.logp.double(), -torch.log1p(others / (1 - others))[:, 0], rtol=1e-4, atol=0)
    grad_rows(z, y, stats, torch.ones(2, device=device), torch.zeros(2, device=device), 1.0, 0.0)
    torch.testing.assert_close(z.double(), grad, rtol=1e-4, atol=0)


# where a running maximum that starts at 0, or an exponential without one, loses everything
@pytest.mark.parametrize("shift", [-104.0, -1000.0, 3000.0])
def test_rows_far_from_zero(shift: float, device: torch.device) -> None:
    z = (torch.randn(3, 133, device=device) * 3).mul(64).round().div(64) + shift  # exact in fp32
    y = torch.tensor([0, 64, 132], device=device)
    truth = exact(z.double(), y, 1.0, 0.0)
    stats = exp_rows(z, y, 1.0, 0.0)
    torch.testing.assert_close(stats.logp.double(), truth[0], rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(stats.entropy.double(), truth[1], rtol=1e-6, atol=4e-6)
    torch.testing.assert_close((-z / stats.s[:, None]).double(), truth[2], rtol=1e-5, atol=1e-7)


def test_banned_tokens_count_for_nothing(device: torch.device) -> None:
    z = torch.randn(2, 140, device=device)
    allowed = torch.arange(1, 140, 3, device=device)
    banned = torch.full_like(z, float("-inf"))
    banned[:, allowed] = z[:, allowed]
    y = torch.tensor([0, 20], device=device)
    few = z[:, allowed].clone()
    expected, stats = exp_rows(few, y, 1.0, 0.0), exp_rows(rows := banned.clone(), allowed[y], 1.0, 0.0)
    torch.testing.assert_close(torch.stack(stats), torch.stack(expected), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(rows[:, allowed], few, rtol=1e-6, atol=1e-6)
    assert rows.count_nonzero() == few.count_nonzero()
    grad_rows(banned, allowed[y], stats, torch.ones(2, device=device), torch.ones(2, device=device), 1.0, 0.0)
    assert banned.isfinite().all()


def test_what_cannot_be_right_is_nan_not_a_number(device: torch.device) -> None:
    z = torch.randn(3, 70, device=device)
    z[0, 66] = float("nan")
    y = torch.tensor([1, 70, 2], device=device)  # a NaN beside the target; a target outside the vocabulary; a good row
    stats = exp_rows(z, y, 1.0, 0.0)
    assert stats.logp.isnan().tolist() == [True, True, False]
    assert stats.entropy.isnan().tolist() == [True, True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_outputs_are_rounded_once(dtype: torch.dtype, device: torch.device) -> None:
    z = torch.randn(3, 70, device=device) * 4
    y, g = torch.tensor([0, 3, 69], device=device), torch.tensor([0.5, -2.0, 1.0], device=device)
    kept, out = z.clone(), torch.empty(3, 70, dtype=dtype, device=device)
    stats = stats_rows(z, y, 1.0, 0.0)
    if dtype == torch.float16:  # E' reaches V: beyond 65504
        with pytest.raises(ValueError, match="float16"):
            exp_rows(z, y, 1.0, 0.0, out=out)
    else:
        exp_rows(z, y, 1.0, 0.0, out=out)
        exp_rows(wide := z.clone(), y, 1.0, 0.0)
        torch.testing.assert_close(out.float(), wide, rtol=2**-7, atol=0)  # the interpreter truncates
    grad_rows(z, y, stats, g, torch.zeros(3, device=device), 1.0, 0.0, out=out)
    assert torch.equal(z, kept)
    truth = exact(z.double(), y, 1.0, 0.0, g.double())[2]
    torch.testing.assert_close(out.double(), truth, rtol=2**-7, atol=6e-8)  # fp16's smallest step


def test_no_rows(device: torch.device) -> None:
    z, y, none = torch.empty(0, 5, device=device), torch.empty(0, dtype=torch.int64, device=device), torch.empty(0)
    stats = exp_rows(z, y, 1.0, 0.0)
    assert all(x.shape == (0,) for x in stats)
    grad_rows(z, y, stats, none.to(device), none.to(device), 1.0, 0.0)


def test_a_row_has_the_same_bits_in_any_company(device: torch.device) -> None:
    z, y = torch.randn(7, 133, device=device), torch.randint(133, (7,), device=device)
    together = exp_rows(all_rows := z.clone(), y, 0.9, 0.0)
    for i in (0, 6):
        alone = exp_rows(row := z[i : i + 1].clone(), y[i : i + 1], 0.9, 0.0)
        assert torch.equal(row[0], all_rows[i])
        assert all(torch.equal(a[0], b[i]) for a, b in zip(alone, together, strict=True))


def test_an_expanded_gradient(device: torch.device) -> None:
    z, y = torch.randn(4, 9, device=device), torch.randint(9, (4,), device=device)
    stats = stats_rows(z, y, 1.0, 0.0)
    zero = torch.zeros(4, device=device)
    grad_rows(a := z.clone(), y, stats, torch.ones((), device=device).expand(4), zero, 1.0, 0.0)
    grad_rows(b := z.clone(), y, stats, torch.ones(4, device=device), zero, 1.0, 0.0)
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("z", "y", "named"),
    [
        (torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.int64), "float32"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int32), "int64"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), "targets"),
        (torch.zeros(3, 2).t(), torch.zeros(2, dtype=torch.int64), "contiguous"),
    ],
    ids=["logits", "label type", "label count", "transposed"],
)
def test_bad_input_is_refused_by_name(z: Tensor, y: Tensor, named: str, device: torch.device) -> None:
    with pytest.raises(ValueError, match=named):
        exp_rows(z.to(device), y.to(device), 1.0, 0.0)
