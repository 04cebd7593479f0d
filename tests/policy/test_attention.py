"""Segment attention against attention written out in fp64, forward and backward."""

import numpy as np
import pytest
import torch

from grpo_fast.policy import attention, plan
from grpo_fast.policy.attention import BACKENDS, AttentionBackendError, choose_attention, segment_attention
from grpo_fast.types import AttentionPlan, RowGather

# Grouped and not; completions of one token and of equal lengths; one group alone; a prompt of one token.
SHAPES = [
    ([5], [3], [1], 2, 2),
    ([7, 1, 33], [3, 3, 1, 4, 9, 40, 1], [3, 1, 3], 4, 2),
    ([64, 70], [65, 64, 20], [2, 1], 6, 1),
]


def written_out(q, k, v, found: AttentionPlan):
    """Row by row: softmax over exactly the keys that a query may see."""
    keys, values = (k, v) if found.kv is None else (k[found.kv.index.long()], v[found.kv.index.long()])
    copies, outs = q.shape[1] // k.shape[1], []
    keys, values = keys.repeat_interleave(copies, 1), values.repeat_interleave(copies, 1)
    for i in range(len(found.host_q) - 1):
        first, last = found.host_k[i], found.host_k[i + 1]
        for row in range(found.host_q[i], found.host_q[i + 1]):
            end = last - (found.host_q[i + 1] - 1 - row) if found.causal else last
            scores = torch.einsum("hd,khd->hk", q[row], keys[first:end]) * q.shape[-1] ** -0.5
            outs.append(torch.einsum("hk,khd->hd", scores.softmax(-1), values[first:end]))
    return torch.stack(outs)


def case(prompts, completions, sizes, heads, kv_heads, dim=16, device="cpu", dtype=torch.float64):
    lay = plan.layout(np.array(prompts), np.array(completions), np.array(sizes))
    made = plan.attention_plan(lay)
    tensors = [
        torch.randn(lay.tokens, h, dim, device=device, dtype=dtype, requires_grad=True)
        for h in (heads, kv_heads, kv_heads)
    ]
    return made, tensors, torch.randn(lay.tokens, heads, dim, device=device, dtype=dtype)


def results(function, tensors, grad):
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


@pytest.mark.parametrize("shape", SHAPES)
def test_sdpa_equals_attention_written_out(shape):
    made, tensors, grad = case(*shape)
    ours = results(lambda q, k, v: segment_attention(q, k, v, made, backend="sdpa"), tensors, grad)
    truth = results(lambda q, k, v: written_out(q, k, v, made), tensors, grad)
    for mine, exact in zip(ours, truth, strict=True):
        assert (mine - exact).abs().max() < 1e-12


def test_windows_without_gather_or_mask():
    lengths = np.array([4, 4, 2, 4, 1])
    made = plan.plan_of(lengths, lengths, causal=False)
    tensors = [torch.randn(15, 2, 8, dtype=torch.float64) for _ in range(3)]
    ours = results(lambda q, k, v: segment_attention(q, k, v, made, backend="sdpa"), tensors, tensors[0])
    truth = results(lambda q, k, v: written_out(q, k, v, made), tensors, tensors[0])
    for mine, exact in zip(ours, truth, strict=True):
        assert (mine - exact).abs().max() < 1e-12


class Torch210:
    @staticmethod
    def varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, is_causal=False, return_aux=None):
        raise AssertionError("not to be called")


class Torch211:
    @staticmethod
    def varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)):
        return torch.tensor([k.shape[1], scale, *window_size])


class Torch212:
    @staticmethod
    def varlen_attn(
        q, k, v, cu_q, cu_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1), enable_gqa=False
    ):
        assert enable_gqa == (q.shape[1] != k.shape[1])
        return torch.tensor([k.shape[1], scale, *window_size])


@pytest.fixture
def varlen_of(monkeypatch):
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))

    def patched(function):
        monkeypatch.setattr(varlen, "varlen_attn", function)
        choose_attention.cache_clear()
        attention._varlen_parameters.cache_clear()

    yield patched
    choose_attention.cache_clear()
    attention._varlen_parameters.cache_clear()


@pytest.mark.parametrize("version", [Torch211, Torch212])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_varlen_serves_grouped_queries_in_every_torch_that_has_it(version, kv_heads, varlen_of):
    varlen_of(version.varlen_attn)
    assert choose_attention("varlen", "cuda", torch.bfloat16, 64) == "varlen"
    made, (q, k, v), _ = case([7], [3, 4], [2], 4, kv_heads)
    assert attention._varlen(q, k, v, made, 0.5).tolist() == [kv_heads, 0.5, -1, 0]
    made = plan.plan_of(np.array([9]), np.array([9]), causal=False)
    assert attention._varlen(q, k, v, made, 0.5).tolist() == [kv_heads, 0.5, -1, -1]


def test_varlen_without_a_scale_is_refused(varlen_of):
    varlen_of(Torch210.varlen_attn)
    with pytest.raises(AttentionBackendError, match="scale"):
        choose_attention("varlen", "cuda", torch.bfloat16, 64)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "sdpa"])
def test_gpu_backends_are_as_near_as_eager(backend, shape):
    try:
        choose_attention(backend, "cuda", torch.bfloat16, 64)
    except AttentionBackendError as error:
        pytest.skip(str(error))
    host, tensors, grad = case(*shape, dim=64, device="cuda", dtype=torch.bfloat16)
    assert host.kv is not None
    kv = RowGather(*(x.cuda() for x in (host.kv.index, host.kv.offsets, host.kv.dest)))
    made = AttentionPlan(
        host.cu_q.cuda(), host.cu_k.cuda(), host.host_q, host.host_k, host.max_q, host.max_k, kv, host.causal
    )
    wide = [x.detach().double() for x in tensors]
    truth = results(lambda q, k, v: written_out(q, k, v, made), wide, grad)
    eager = results(lambda q, k, v: segment_attention(q, k, v, made, backend="sdpa"), tensors, grad)
    ours = results(lambda q, k, v: segment_attention(q, k, v, made, backend=backend), tensors, grad)
    for mine, theirs, exact in zip(ours, eager, truth, strict=True):
        assert (mine - exact).abs().max() <= 2 * (theirs - exact).abs().max() + 1e-3
