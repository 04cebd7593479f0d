"""linear_logprobs against plain torch: values, gradients, accuracy, shapes and bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grpo_fast import linear_logprobs


def eager(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    softcap: float | None = None,
    bias: Tensor | None = None,
    lora: tuple[Tensor, Tensor, float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Full logits in the dtype of the inputs, then fp64 only where the inputs are."""
    logits = hidden @ weight.T
    if lora is not None:
        a, b, scale = lora
        logits = logits + hidden @ a.T @ b.T * scale
    if bias is not None:
        logits = logits + bias
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logp = (logits / temperature).log_softmax(-1)
    return logp.gather(-1, targets[..., None])[..., 0], -(logp.exp() * logp.nan_to_num(neginf=0.0)).sum(-1)


def inputs(n: int, h: int, v: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, h, generator=gen, dtype=torch.float64)
    weight = torch.randn(v, h, generator=gen, dtype=torch.float64) * (2 / math.sqrt(h))
    targets = torch.randint(v, (n,), generator=gen)
    return hidden.to(dtype), weight.to(dtype), targets


def grads(out: Tensor, wrt: list[Tensor], seed: int = 9) -> list[Tensor]:
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(out.dtype)
    return list(torch.autograd.grad(out, wrt, g, retain_graph=True))


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-300)).item()


def widened(options: dict[str, Any]) -> dict[str, Any]:
    """The same bias and adapter as fp64 leaves."""
    wide = dict(options)
    if "bias" in wide:
        wide["bias"] = wide["bias"].detach().double().requires_grad_()
    if "lora" in wide:
        a, b, scale = wide["lora"]
        wide["lora"] = (a.detach().double().requires_grad_(), b.detach().double().requires_grad_(), scale)
    return wide


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "softcap": {"softcap": 3.0},
    "bias": {"bias": 0.5},
    "lora": {"lora": 3},
    "all": {"temperature": 1.4, "softcap": 5.0, "bias": 0.5, "lora": 2},
}


def materialise(options: dict[str, Any], h: int, v: int, dtype: torch.dtype) -> dict[str, Any]:
    gen = torch.Generator().manual_seed(5)
    made = dict(options)
    if "bias" in made:
        made["bias"] = (torch.randn(v, generator=gen, dtype=torch.float64) * made["bias"]).to(dtype).requires_grad_()
    if "lora" in made:
        a = torch.randn(made["lora"], h, generator=gen, dtype=torch.float64).to(dtype).requires_grad_()
        b = torch.randn(v, made["lora"], generator=gen, dtype=torch.float64).to(dtype).requires_grad_()
        made["lora"] = (a, b, 0.3)
    return made


def leaves(hidden: Tensor, weight: Tensor, options: dict[str, Any]) -> list[Tensor]:
    return [hidden, weight, *([options["bias"]] if "bias" in options else []), *options.get("lora", ())[:2]]


# one prime vocabulary, one of a single token, one row, a hidden size that no tile divides, none at all
@pytest.mark.parametrize(("n", "h", "v"), [(7, 24, 31), (5, 131, 64), (1, 8, 257), (3, 5, 1), (0, 8, 11)])
@pytest.mark.parametrize("name", OPTIONS)
def test_equals_full_logits_in_fp64(n: int, h: int, v: int, name: str) -> None:
    hidden, weight, targets = inputs(n, h, v)
    hidden.requires_grad_(), weight.requires_grad_()
    options = materialise(OPTIONS[name], h, v, torch.float64)
    wrt = leaves(hidden, weight, options)
    logps, entropy = linear_logprobs(hidden, weight, targets, entropy=True, **options)
    expected, expected_entropy = eager(hidden, weight, targets, **options)
    # the outputs are fp32, whatever goes in
    torch.testing.assert_close(logps.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(entropy.double(), expected_entropy, rtol=1e-6, atol=1e-6)
    for which, (ours, theirs) in enumerate([(logps, expected), (entropy, expected_entropy)]):
        for mine, truth in zip(grads(ours, wrt), grads(theirs, wrt), strict=True):
            torch.testing.assert_close(mine, truth, rtol=1e-5, atol=1e-6, msg=lambda m: f"output {which}: {m}")  # noqa: B023


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OPTIONS)
def test_no_worse_than_eager_against_fp64(dtype: torch.dtype, name: str) -> None:
    n, h, v = 48, 96, 509
    hidden, weight, targets = inputs(n, h, v, dtype)
    options = materialise(OPTIONS[name], h, v, dtype)
    wide = widened(options)
    h64, w64 = hidden.double().requires_grad_(), weight.double().requires_grad_()
    hidden.requires_grad_(), weight.requires_grad_()
    truth, _ = eager(h64, w64, targets, **wide)
    ours = linear_logprobs(hidden, weight, targets, **options)
    plain, _ = eager(hidden, weight, targets, **options)
    eps = {torch.float32: 1e-6, torch.bfloat16: 1e-5, torch.float16: 1e-5}[dtype]
    assert (ours.double() - truth).abs().max() <= 1.5 * (plain.double() - truth).abs().max() + eps
    truths = grads(truth, leaves(h64, w64, wide))
    mine, theirs = grads(ours, leaves(hidden, weight, options)), grads(plain, leaves(hidden, weight, options))
    for actual, eager_grad, expected in zip(mine, theirs, truths, strict=True):
        assert actual.dtype == eager_grad.dtype
        assert relative(actual, expected) <= 1.5 * relative(eager_grad, expected) + 1e-6


def test_failure_1_logits_rounded_to_bf16() -> None:
    # peaky logits up to 20, where a bf16 logit is off by 0.06
    hidden, weight, targets = inputs(64, 256, 1031, torch.bfloat16)
    hidden = hidden + 3 * weight[targets]
    truth, _ = eager(hidden.double(), weight.double(), targets)
    rounded, _ = eager(hidden, weight, targets)
    assert (rounded.double() - truth).abs().max() > 1e-2  # the failure is there to be had
    assert (linear_logprobs(hidden, weight, targets).double() - truth).abs().max() <= 1e-4


@pytest.mark.parametrize("margin", [12.0, 18.0, 24.0, 30.0])
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_failure_2_confident_tokens_keep_their_gradient(margin: float, backend: str) -> None:
    hidden, weight = confident_token(margin)
    hidden.requires_grad_(), weight.requires_grad_()
    logps = linear_logprobs(hidden, weight, torch.tensor([3]), backend=backend)
    h64, w64 = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    truth, _ = eager(h64, w64, torch.tensor([3]))
    for actual, expected in zip(
        torch.autograd.grad(logps.sum(), (hidden, weight)), torch.autograd.grad(truth.sum(), (h64, w64)), strict=True
    ):
        assert expected.norm() > 0
        assert relative(actual, expected) <= 0.01
    assert logps.item() == pytest.approx(truth.item(), rel=0.01)


def confident_token(margin: float, v: int = 301) -> tuple[Tensor, Tensor]:
    """Exact logits: `margin` for token 3 and values in {-1, 0, 1} for the others."""
    hidden = torch.zeros(1, 8)
    hidden[0, 0] = 1.0
    weight = torch.randn(v, 8, generator=torch.Generator().manual_seed(1))
    weight[:, 0] = torch.arange(v) % 3 - 1.0
    weight[3, 0] = margin
    return hidden, weight


def test_failure_9_all_logits_below_minus_104() -> None:
    hidden, weight, targets = inputs(5, 16, 37, torch.float32)
    bias = torch.full((37,), -150.0)
    shifted = linear_logprobs(hidden, weight, targets, bias=bias)
    truth, _ = eager(hidden.double(), weight.double(), targets, bias=bias.double())
    torch.testing.assert_close(shifted.double(), truth, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("how", ["expanded", "transposed", "strided"])
def test_failure_10_incoming_gradients_that_are_not_contiguous(how: str) -> None:
    hidden, weight, targets = inputs(12, 20, 43, torch.float32)
    hidden.requires_grad_(), weight.requires_grad_()
    logps = linear_logprobs(hidden.view(3, 4, 20), weight, targets.view(3, 4))
    g = {
        "expanded": torch.tensor(0.7).expand(3, 4),
        "transposed": torch.randn(4, 3).T,
        "strided": torch.randn(3, 8)[:, ::2],
    }[how]
    actual = torch.autograd.grad(logps, (hidden, weight), g, retain_graph=True)
    expected = torch.autograd.grad(logps, (hidden, weight), g.contiguous())
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_failure_11_targets_with_an_odd_storage_offset() -> None:
    hidden, weight, targets = inputs(6, 8, 17, torch.float32)
    shifted = torch.cat([torch.tensor([99]), targets])[1:]
    assert shifted.storage_offset() == 1
    assert torch.equal(linear_logprobs(hidden, weight, shifted), linear_logprobs(hidden, weight, targets))
    # and with no alignment at all: int64 values at an odd byte
    raw = torch.zeros(6 * 8 + 1, dtype=torch.uint8).numpy()
    import numpy as np

    unaligned = np.frombuffer(raw.data, dtype=np.int64, count=6, offset=1)
    unaligned[:] = targets.numpy()
    assert torch.equal(
        linear_logprobs(hidden, weight, torch.from_numpy(unaligned)), linear_logprobs(hidden, weight, targets)
    )


@pytest.mark.parametrize("what", ["hidden", "weight", "targets"])
def test_non_contiguous_inputs(what: str) -> None:
    hidden, weight, targets = inputs(9, 16, 23, torch.float32)
    expected = linear_logprobs(hidden, weight, targets)
    if what == "hidden":
        hidden = torch.stack([hidden, hidden], -1)[..., 0]
    elif what == "weight":
        weight = weight.T.contiguous().T
    else:
        targets = torch.stack([targets, targets], -1)[..., 0]
    torch.testing.assert_close(linear_logprobs(hidden, weight, targets), expected, rtol=1e-6, atol=1e-6)


def test_leading_dimensions_are_kept() -> None:
    hidden, weight, targets = inputs(24, 8, 19, torch.float32)
    flat, flat_entropy = linear_logprobs(hidden, weight, targets, entropy=True)
    logps, entropy = linear_logprobs(hidden.view(2, 3, 4, 8), weight, targets.view(2, 3, 4), entropy=True)
    assert logps.shape == entropy.shape == (2, 3, 4)
    assert torch.equal(logps.flatten(), flat) and torch.equal(entropy.flatten(), flat_entropy)


@given(shift=st.floats(-50, 50), seed=st.integers(0, 10))
@settings(max_examples=25, deadline=None)
def test_a_shift_of_all_logits_changes_nothing(shift: float, seed: int) -> None:
    hidden, weight, targets = inputs(4, 12, 29, torch.float32, seed)
    plain = linear_logprobs(hidden, weight, targets, bias=torch.zeros(29))
    moved = linear_logprobs(hidden, weight, targets, bias=torch.full((29,), shift))
    torch.testing.assert_close(moved, plain, rtol=0, atol=4 * (abs(shift) + 10) * 2**-23)


@given(order=st.permutations(range(11)))
@settings(max_examples=20, deadline=None)
def test_rows_do_not_touch_each_other(order: list[int]) -> None:
    hidden, weight, targets = inputs(11, 12, 29, torch.float32)
    permuted = linear_logprobs(hidden[order], weight, targets[order])
    torch.testing.assert_close(permuted, linear_logprobs(hidden, weight, targets)[order], rtol=0, atol=2e-6)


def test_gradcheck_in_fp64() -> None:
    hidden, weight, targets = inputs(4, 6, 9)
    a, b = torch.randn(2, 6, dtype=torch.float64), torch.randn(9, 2, dtype=torch.float64)
    bias = torch.randn(9, dtype=torch.float64)
    leaves_ = [x.requires_grad_() for x in (hidden, weight, bias, a, b)]

    def scored(hidden: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return linear_logprobs(
            hidden, weight, targets, temperature=0.8, softcap=4.0, bias=bias, lora=(a, b, 0.7), entropy=True
        )

    # outputs are fp32: a wide step and fp32-sized tolerances
    assert torch.autograd.gradcheck(scored, leaves_, eps=1e-3, atol=2e-3, rtol=2e-3, nondet_tol=0.0)


def test_frozen_weight_gets_no_gradient() -> None:
    hidden, weight, targets = inputs(6, 8, 13, torch.float32)
    hidden.requires_grad_()
    linear_logprobs(hidden, weight, targets).sum().backward()
    assert weight.grad is None and hidden.grad is not None and hidden.grad.norm() > 0


def test_hidden_without_gradient_still_trains_the_head() -> None:
    hidden, weight, targets = inputs(6, 8, 13, torch.float32)
    weight.requires_grad_()
    linear_logprobs(hidden, weight, targets).sum().backward()
    expected = torch.autograd.grad(eager(hidden, weight, targets)[0].sum(), weight)[0]
    torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-5)


def test_second_backward_with_retain_graph_is_the_same() -> None:
    hidden, weight, targets = inputs(6, 8, 13, torch.float32)
    hidden.requires_grad_(), weight.requires_grad_()
    logps = linear_logprobs(hidden, weight, targets)
    first, second = grads(logps, [hidden, weight]), grads(logps, [hidden, weight])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_inputs_are_left_untouched() -> None:
    hidden, weight, targets = inputs(6, 8, 13, torch.float32)
    before = [x.clone() for x in (hidden, weight, targets)]
    hidden.requires_grad_(), weight.requires_grad_()
    linear_logprobs(hidden, weight, targets).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, (hidden, weight, targets), strict=True))


HIDDEN, WEIGHT, TARGETS = torch.zeros(4, 8), torch.zeros(11, 8), torch.zeros(4, dtype=torch.long)
BAD: dict[str, tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any], str]] = {
    "weight's width": ((HIDDEN, torch.zeros(11, 7), TARGETS), {}, "weight"),
    "weight of one dimension": ((HIDDEN, torch.zeros(8), TARGETS), {}, "weight"),
    "one target too few": ((HIDDEN, WEIGHT, TARGETS[:3]), {}, "targets"),
    "targets of floats": ((HIDDEN, WEIGHT, TARGETS.float()), {}, "targets"),
    "target beyond the vocabulary": ((HIDDEN, WEIGHT, TARGETS + 11), {}, "targets"),
    "hidden of integers": ((HIDDEN.long(), WEIGHT, TARGETS), {}, "hidden"),
    "hidden on another device": ((HIDDEN.to("meta"), WEIGHT, TARGETS), {}, "hidden.*meta"),
    "targets on another device": ((HIDDEN, WEIGHT, TARGETS.to("meta")), {}, "targets.*meta"),
    "bias of another size": ((HIDDEN, WEIGHT, TARGETS), {"bias": torch.zeros(10)}, "bias"),
    "lora that does not chain": (
        (HIDDEN, WEIGHT, TARGETS), {"lora": (torch.zeros(2, 8), torch.zeros(11, 3), 1.0)}, "lora",
    ),
    "lora of two": ((HIDDEN, WEIGHT, TARGETS), {"lora": (torch.zeros(2, 8), torch.zeros(11, 2))}, "lora"),
    "temperature 0": ((HIDDEN, WEIGHT, TARGETS), {"temperature": 0.0}, "temperature"),
    "negative softcap": ((HIDDEN, WEIGHT, TARGETS), {"softcap": -1.0}, "softcap"),
    "unknown option": ((HIDDEN, WEIGHT, TARGETS), {"temperatur": 1.0}, "temperatur"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(name: str) -> None:
    args, options, named = BAD[name]
    with pytest.raises((ValueError, TypeError, IndexError), match=named):
        linear_logprobs(*args, **options)
