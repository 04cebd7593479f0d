import sys
from typing import Any

import numpy as np
import pytest
import torch

from grpo_fast.ops.kv_gather import gather_backward_reference, kv_gather
from grpo_fast.policy import plan
from grpo_fast.types import RowGather


def brute_force(prompts, completions, sizes):
    """Packed rows, key rows and scored rows by walking over every token."""
    keys, cu_q, cu_k, scored, text = [], [0], [0], [], []
    base, completions = 0, iter(completions)
    for length, size in zip(prompts, sizes, strict=True):
        prefix = list(range(base, base + length))
        keys, row = keys + prefix, base + length
        cu_q, cu_k, text = [*cu_q, row], [*cu_k, cu_k[-1] + length], text + list(range(length))
        for _ in range(size):
            own = next(completions)
            keys += prefix + list(range(row, row + own))
            cu_q, cu_k = [*cu_q, row + own], [*cu_k, cu_k[-1] + length + own]
            scored += [base + length - 1, *range(row, row + own - 1)]
            text += range(length, length + own)
            row += own
        base = row
    return keys, cu_q, cu_k, scored, text


# One group, one completion, one token; unequal groups; a prompt of one token.
@pytest.mark.parametrize(
    ("prompts", "completions", "sizes"),
    [([1], [1], [1]), ([5], [3, 1, 7], [3]), ([4, 1, 9], [2, 5, 1, 1, 6, 3], [2, 1, 3])],
)
def test_equals_a_walk_over_tokens(prompts, completions, sizes):
    lay = plan.layout(np.array(prompts), np.array(completions), np.array(sizes))
    found, scored = plan.attention_plan(lay), plan.scored_rows(lay)
    keys, cu_q, cu_k, rows, text = brute_force(prompts, completions, sizes)
    assert found.kv is not None
    assert found.kv.index.tolist() == keys
    assert (found.cu_q.tolist(), found.cu_k.tolist()) == (cu_q, cu_k)
    assert (found.max_q, found.max_k) == (int(np.diff(cu_q).max()), int(np.diff(cu_k).max()))
    assert scored.index.tolist() == rows
    positions = [torch.arange(n).expand(3, -1) + 10 for n in prompts]
    made = plan.positions(lay, positions)
    assert made[0].tolist() == text
    assert made[1].tolist() == [t + 10 for t in text]
    for gather, source in ((found.kv, keys), (scored, rows)):
        inverse = [np.flatnonzero(np.array(source) == row).tolist() for row in range(lay.tokens)]
        assert gather.offsets.tolist() == [0, *np.cumsum([len(i) for i in inverse]).tolist()]
        assert gather.dest.tolist() == [k for i in inverse for k in i]


def test_gather_backward_sums_copies_in_fp32():
    lay = plan.layout(np.array([3, 2]), np.array([2, 4, 1] * 4), np.array([9, 3]))
    rows = plan.attention_plan(lay).kv
    assert rows is not None
    x = torch.randn(lay.tokens, 2, 4, dtype=torch.bfloat16, requires_grad=True)
    grad = torch.randn(len(rows.index), 2, 4, dtype=torch.bfloat16)
    kv_gather(x, rows).backward(grad)
    exact = torch.zeros(lay.tokens, 2, 4, dtype=torch.float64).index_add_(0, rows.index.long(), grad.double())
    assert x.grad is not None
    assert torch.equal(x.grad, exact.float().bfloat16())  # one rounding, at the end
    assert torch.equal(gather_backward_reference(grad, rows.offsets, rows.dest), x.grad)


def test_gather_gradcheck():
    lay = plan.layout(np.array([3]), np.array([2, 1]), np.array([2]))
    rows = plan.attention_plan(lay).kv
    x = torch.randn(lay.tokens, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: kv_gather(t, rows), (x,))


def test_gather_through_the_kernel(monkeypatch):
    """The launcher as the op calls it; interpreted where there is no GPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lay = plan.layout(np.array([3, 2]), np.array([2, 4, 1]), np.array([2, 1]))
    rows = plan.attention_plan(lay).kv
    assert rows is not None
    rows = RowGather(*(x.to(device) for x in (rows.index, rows.offsets, rows.dest)))
    x = torch.randn(lay.tokens, 2, 4, device=device)
    grad = torch.randn(len(rows.index), 2, 4, device=device)
    found = {}
    for backend in ("torch", "triton"):
        monkeypatch.setenv("GRPO_FAST_BACKEND", backend)
        leaf = x.clone().requires_grad_()
        out = kv_gather(leaf, rows)
        out.backward(grad)
        found[backend] = (out.detach(), leaf.grad)
    assert torch.equal(found["torch"][0], found["triton"][0])
    assert torch.equal(found["torch"][1], found["triton"][1])


def test_the_plan_loops_over_no_tokens():
    """Ten times the tokens run not one more line of Python."""
    generator = np.random.default_rng(0)
    prompts, sizes = generator.integers(20, 40, 16), np.full(16, 4)
    completions = generator.integers(1, 16, 16 * 4)

    def lines(factor: int) -> int:
        count = 0

        def trace(frame: Any, event: str, arg: Any) -> Any:
            nonlocal count
            count += event == "line" and frame.f_code.co_filename == plan.__file__
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            lay = plan.layout(prompts * factor, completions * factor, sizes)
            plan.attention_plan(lay)
            plan.scored_rows(lay)
        finally:
            sys.settrace(before)
        return count

    assert 0 < lines(10) == lines(1)
