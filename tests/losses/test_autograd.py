"""The loss as a citizen of autograd: scaling, repetition, precision contexts, tied and adapted heads, compilation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from losses.eager import Rollout, eager_loss, full_logps, rollout
from torch import Tensor

from grpo_fast import GRPOLoss, linear_logprobs

OPTIONS = {"loss_type": "grpo", "beta": 0.1}


def call(r: Rollout, hidden: Tensor, weight: Tensor, loss_fn: GRPOLoss | None = None, **more: Any) -> Any:
    return (loss_fn or GRPOLoss(**OPTIONS))(
        hidden, weight, r.targets, advantages=r.advantages, mask=r.mask, old_logps=r.old_logps, ref_logps=r.ref_logps,
        **more,
    )  # fmt: skip


def leaves(r: Rollout, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return r.hidden.to(dtype, copy=True).requires_grad_(), r.weight.to(dtype, copy=True).requires_grad_()


def equal(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_failure_6_the_incoming_gradient_scales_the_gradients() -> None:
    r = rollout()
    hidden, weight = leaves(r)
    plain = torch.autograd.grad(call(r, hidden, weight).loss, (hidden, weight))
    double = torch.autograd.grad(2 * call(r, hidden, weight).loss, (hidden, weight))
    assert equal(double, tuple(2 * g for g in plain))
    third = torch.autograd.grad((call(r, hidden, weight).loss / 3).exp(), (hidden, weight))
    factor = (call(r, hidden, weight).loss.detach() / 3).exp() / 3
    for actual, expected in zip(third, plain, strict=True):
        torch.testing.assert_close(actual, factor * expected, rtol=1e-5, atol=1e-8)


def test_backward_twice_with_retain_graph() -> None:
    r = rollout()
    hidden, weight = leaves(r)
    loss = call(r, hidden, weight).loss
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    kept = tuple(g.clone() for g in first)
    scaled = torch.autograd.grad(3 * loss, (hidden, weight), retain_graph=True)
    again = torch.autograd.grad(loss, (hidden, weight))
    assert equal(first, kept)  # the later passes did not write into gradients handed out before
    assert equal(again, kept)
    for actual, expected in zip(scaled, kept, strict=True):
        torch.testing.assert_close(actual, 3 * expected, rtol=1e-6, atol=0)


def test_a_second_derivative_is_refused_rather_than_left_out() -> None:
    r = rollout()
    hidden, weight = leaves(r)
    loss = call(r, hidden, weight).loss
    (grad,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        (loss + grad.square().sum()).backward()


def test_gradients_accumulate_over_backwards() -> None:
    r = rollout()
    hidden, weight = leaves(r)
    call(r, hidden, weight).loss.backward()
    once = (hidden.grad.clone(), weight.grad.clone())
    call(r, hidden, weight).loss.backward()
    assert equal((hidden.grad, weight.grad), tuple(2 * g for g in once))


def test_two_calls_before_one_backward() -> None:
    r, other = rollout(seed=1), rollout((4, 4), seed=2)
    hidden, weight = leaves(r)
    hidden2 = other.hidden.clone().requires_grad_()
    loss_fn = GRPOLoss(**OPTIONS)
    apart = torch.autograd.grad(call(r, hidden, weight, loss_fn).loss, weight)[0]
    apart2 = torch.autograd.grad(call(other, hidden2, weight, loss_fn).loss, weight)[0]
    both = call(r, hidden, weight, loss_fn).loss + call(other, hidden2, weight, loss_fn).loss
    together = torch.autograd.grad(both, weight)[0]
    torch.testing.assert_close(together, apart + apart2, rtol=1e-6, atol=1e-8)


def test_the_same_call_gives_the_same_bits() -> None:
    r = rollout((30, 41, 17), h=64, v=509)
    hidden, weight = leaves(r)
    loss_fn = GRPOLoss(**OPTIONS, chunk_bytes=1 << 17)
    runs = []
    for _ in range(3):
        out = call(r, hidden, weight, loss_fn)
        runs.append((out.loss.detach(), out.logps, out.entropy, out.metrics.values,
                     *torch.autograd.grad(out.loss, (hidden, weight))))  # fmt: skip
    assert equal(runs[0], runs[1]) and equal(runs[0], runs[2])


def test_chunks_do_not_change_the_result() -> None:
    r = rollout((30, 41, 17), h=64, v=509)
    hidden, weight = leaves(r)
    whole = call(r, hidden, weight)
    cut = call(r, hidden, weight, GRPOLoss(**OPTIONS, chunk_bytes=1 << 16))
    torch.testing.assert_close(cut.loss, whole.loss, rtol=1e-6, atol=1e-7)
    for a, b in zip(
        torch.autograd.grad(cut.loss, (hidden, weight)), torch.autograd.grad(whole.loss, (hidden, weight)), strict=True
    ):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_no_grad_gives_the_same_loss_and_no_graph() -> None:
    r = rollout()
    hidden, weight = leaves(r)
    with_graph = call(r, hidden, weight)
    with torch.no_grad():
        without = call(r, hidden, weight)
    assert with_graph.loss.requires_grad and not without.loss.requires_grad
    assert torch.equal(with_graph.loss.detach(), without.loss) and torch.equal(with_graph.logps, without.logps)
    with torch.inference_mode():
        assert torch.equal(call(r, r.hidden, r.weight).loss, without.loss)


def test_outputs_besides_the_loss_are_detached_and_zero_where_not_scored() -> None:
    r = rollout()
    out = call(r, *leaves(r))
    truth = full_logps(r.hidden.double(), r.weight.double(), r.targets)
    assert out.loss.dim() == 0 and out.loss.dtype == torch.float32
    for x in (out.logps, out.entropy):
        assert x.shape == r.targets.shape and x.dtype == torch.float32 and not x.requires_grad
        assert not x[~r.mask].any()
    assert torch.equal(out.scored, r.mask)
    torch.testing.assert_close(out.logps[r.mask].double(), truth[r.mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_only_what_wants_a_gradient_gets_one(frozen: str) -> None:
    r = rollout()
    hidden, weight = leaves(r)
    full = dict(
        zip(("hidden", "weight"), torch.autograd.grad(call(r, hidden, weight).loss, (hidden, weight)), strict=True)
    )
    tensors = {"hidden": hidden, "weight": weight}
    tensors[frozen].requires_grad_(False)
    call(r, hidden, weight).loss.backward()
    other = "weight" if frozen == "hidden" else "hidden"
    assert tensors[frozen].grad is None
    torch.testing.assert_close(tensors[other].grad, full[other], rtol=1e-5, atol=1e-8)


def test_tied_head_and_embedding_add_their_gradients() -> None:
    r = rollout(h=16, v=37)
    ids = torch.randint(37, r.targets.shape, generator=torch.Generator().manual_seed(4))
    tied = r.weight.clone().requires_grad_()
    call(r, torch.tanh(tied[ids]), tied).loss.backward()
    embedding, head = r.weight.clone().requires_grad_(), r.weight.clone().requires_grad_()
    call(r, torch.tanh(embedding[ids]), head).loss.backward()
    assert embedding.grad.norm() > 0 and head.grad.norm() > 0
    torch.testing.assert_close(tied.grad, embedding.grad + head.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("chunk_bytes", [None, 1 << 13])
def test_failure_12_lora_on_the_head_trains_the_adapter(chunk_bytes: int | None) -> None:
    r = rollout((5, 9, 4), h=16, v=37)
    gen = torch.Generator().manual_seed(7)
    a, b = torch.randn(3, 16, generator=gen).requires_grad_(), torch.randn(37, 3, generator=gen).requires_grad_()
    hidden, weight = r.hidden.clone().requires_grad_(), r.weight.clone()
    loss_fn = GRPOLoss(**OPTIONS, chunk_bytes=chunk_bytes)
    loss = call(r, hidden, weight, loss_fn, lora=(a, b, 0.2)).loss
    wide = [x.detach().double().requires_grad_() for x in (hidden, a, b)]
    truth = eager_loss(
        r, full_logps(wide[0], weight.double(), r.targets, lora=(wide[1], wide[2], 0.2)), loss_type="grpo", beta=0.1
    )
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-6)
    for actual, expected in zip(
        torch.autograd.grad(loss, (hidden, a, b)), torch.autograd.grad(truth, wide), strict=True
    ):
        assert expected.norm() > 0
        torch.testing.assert_close(actual.double(), expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())
    assert weight.grad is None


@pytest.mark.parametrize(
    "head",
    [{"bias": True}, {"softcap": 4.0}, {"temperature": 0.6}, {"bias": True, "softcap": 4.0, "temperature": 1.7}],
    ids=str,
)
def test_bias_softcap_and_temperature(head: dict[str, Any]) -> None:
    r = rollout()
    bias = torch.randn(37, generator=torch.Generator().manual_seed(3)).requires_grad_() if "bias" in head else None
    settings = {name: value for name, value in head.items() if name != "bias"}
    hidden, weight = leaves(r)
    loss = call(r, hidden, weight, GRPOLoss(**OPTIONS, **settings), **({} if bias is None else {"bias": bias})).loss
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight, *([] if bias is None else [bias]))]
    extra = {} if bias is None else {"bias": wide[2]}
    truth = eager_loss(r, full_logps(wide[0], wide[1], r.targets, **settings, **extra), loss_type="grpo", beta=0.1)
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-6)
    wrt = (hidden, weight) if bias is None else (hidden, weight, bias)
    for actual, expected in zip(torch.autograd.grad(loss, wrt), torch.autograd.grad(truth, wide), strict=True):
        assert (actual - expected).norm() <= 1e-5 * expected.norm()


def test_autocast_with_fp32_master_weights() -> None:
    r = rollout((9, 12), h=32, v=101)
    weight = (r.weight + 1e-4).requires_grad_()  # not a bf16 value
    hidden = r.hidden.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = call(r, hidden, weight)
    out.loss.backward()
    assert weight.grad.dtype == torch.float32 and hidden.grad.dtype == torch.float32 and out.loss.dtype == torch.float32
    # exactly the products of the rounded operands, not of rounded logits
    truth = full_logps(hidden.detach().bfloat16().double(), weight.detach().bfloat16().double(), r.targets)
    assert (out.logps.double() - truth)[r.mask].abs().max() <= 1e-4
    fp32 = full_logps(hidden.detach().double(), weight.detach().double(), r.targets)
    assert (fp32 - truth)[r.mask].abs().max() > 1e-5  # autocast did choose bf16 operands
    h64, w64 = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    loss = eager_loss(r, full_logps(h64, w64, r.targets), loss_type="grpo", beta=0.1)
    for actual, expected in zip((hidden.grad, weight.grad), torch.autograd.grad(loss, (h64, w64)), strict=True):
        assert (actual - expected).norm() <= 0.02 * expected.norm()


def test_autocast_under_mixed_dtypes_of_hidden_and_weight() -> None:
    r = rollout((9, 12), h=32, v=101)
    hidden, weight = r.hidden.bfloat16().requires_grad_(), r.weight.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = call(r, hidden, weight).loss
    grad_hidden, grad_weight = torch.autograd.grad(loss, (hidden, weight))
    assert grad_hidden.dtype == torch.bfloat16 and grad_weight.dtype == torch.float32


@pytest.mark.parametrize(("what", "compact"), [("loss", True), ("loss", False), ("logprobs", True)])
def test_code_around_it_compiles_to_one_graph(what: str, compact: bool) -> None:
    r = rollout()
    loss_fn = GRPOLoss(**OPTIONS)

    def step(hidden: Tensor, weight: Tensor) -> Tensor:
        body = torch.tanh(hidden) * 1.5
        if what == "loss":
            return call(r, body, weight, loss_fn, compact=compact).loss * 2.0
        return (linear_logprobs(body, weight, r.targets) * r.mask).sum()

    hidden, weight = leaves(r)
    eager = step(hidden, weight)
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(hidden, weight)
    torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-7)
    for a, b in zip(
        torch.autograd.grad(compiled, (hidden, weight)), torch.autograd.grad(eager, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_failure_8_a_new_completion_length_does_not_recompile() -> None:
    loss_fn = GRPOLoss(**OPTIONS)

    def step(r: Rollout, hidden: Tensor, weight: Tensor) -> Tensor:
        return call(r, hidden * 2.0, weight, loss_fn, compact=False).loss

    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter, dynamic=True)
    for t in (5, 9, 13, 17):
        r = rollout((t, t - 2, 3))
        compiled(r, *leaves(r))
    assert counter.frame_count <= 2


def test_failure_8_logits_temperature_and_inputs_are_left_alone() -> None:
    r = rollout()
    before = [x.clone() for x in (r.hidden, r.weight, r.targets, r.advantages, r.mask, r.old_logps, r.ref_logps)]
    hidden, weight = leaves(r)
    call(r, hidden, weight).loss.backward()
    after = (hidden.detach(), weight.detach(), r.targets, r.advantages, r.mask, r.old_logps, r.ref_logps)
    assert equal(tuple(before), after)
    explicit = call(r, r.hidden, r.weight, GRPOLoss(**OPTIONS, temperature=1.0)).loss
    assert torch.equal(call(r, r.hidden, r.weight).loss, explicit)
