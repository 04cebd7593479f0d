"""One token's attention for every running completion: to its group's prompt, stored once, and to its own tokens.

The first kernel takes a group's queries to the prompt's keys, a share of them each program, and leaves unfinished
softmaxes. The second finishes them, one completion and key head a program: it takes up the shares, goes on over the
completion's own keys and the token's own, and writes the latter into the cache. Each key and value is read once.
"""

# A jit function is typed as the Python it is written in: pyright knows neither launches nor constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from grpo_fast.kernels.launch import FUSED, UPCAST, launch_for, on
from grpo_fast.kernels.numerics import LOG2_E

COLUMNS = tl.constexpr(8)  # of the table of groups: the fields of ops.decode_attention.GroupPlace, in their order
_QUERIES = 64  # of a group and key head that one program takes
_KEYS = 64  # that it looks at in one go
_WAVES = 2  # programs for each multiprocessor, before the prompt's keys are shared out among more


@triton.jit
def _over(
    keys,
    values,
    start,
    length,
    first_tile,
    end_tile,
    queries,
    scale,
    top,
    total,
    acc,
    D: tl.constexpr,
    KEYS: tl.constexpr,
):
    """The softmax of `queries` goes on over some tiles of the `length` keys that lie from `start` on."""
    lanes = tl.arange(0, D)
    if UPCAST:
        queries = queries.to(tl.float32)
    for tile in range(first_tile, end_tile):
        at = tile * KEYS + tl.arange(0, KEYS)
        valid = at < length
        where = (start + at)[:, None] * D + lanes[None, :]
        k = tl.load(keys + where, mask=valid[:, None], other=0.0)
        v = tl.load(values + where, mask=valid[:, None], other=0.0)
        if UPCAST:
            k, v = k.to(tl.float32), v.to(tl.float32)
        x = tl.where(valid[None, :], tl.dot(queries, k.T) * scale, -1e30)
        new_top = tl.maximum(top, tl.max(x, 1))
        keep = tl.exp2(top - new_top)
        p = tl.exp2(x - new_top[:, None])
        total = total * keep + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * keep[:, None])
        top = new_top
    return top, total, acc


@triton.jit(do_not_specialize=["groups", "rows", "scale"])
def _prompt_kernel(
    q,  # [rows, Hk * HEADS, D] contiguous
    keys,  # [.., D]: one layer of the cache
    values,
    groups,  # [S, COLUMNS] int64
    acc_part,  # [SHARES, rows, Hk * HEADS, D] fp32: sums of values, relative to 2^top
    top_part,  # [SHARES, rows, Hk * HEADS] fp32: largest logit in bits
    sum_part,
    rows,
    scale,  # of the logits, in bits
    KEY_HEADS: tl.constexpr,
    HEADS: tl.constexpr,  # query heads a key head
    D: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    SHARES: tl.constexpr,
):
    group = tl.program_id(0) // KEY_HEADS
    key_head = tl.program_id(0) % KEY_HEADS
    share = tl.program_id(1)
    entry = groups + group.to(tl.int64) * COLUMNS
    first, count = tl.load(entry), tl.load(entry + 1)
    prompt_at, room, prompt = tl.load(entry + 2), tl.load(entry + 3), tl.load(entry + 4)
    start = prompt_at + key_head * room

    query = tl.program_id(2) * QUERIES + tl.arange(0, QUERIES)
    inside = query // HEADS < count
    row = (first + query // HEADS) * (KEY_HEADS * HEADS) + key_head * HEADS + query % HEADS
    lanes = tl.arange(0, D)
    queries = tl.load(q + row[:, None] * D + lanes[None, :], mask=inside[:, None], other=0.0)
    top = tl.full([QUERIES], -1e30, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, D], tl.float32)
    tiles = tl.cdiv(prompt, KEYS)
    first_tile, end_tile = tiles * share // SHARES, tiles * (share + 1) // SHARES
    top, total, acc = _over(keys, values, start, prompt, first_tile, end_tile, queries, scale, top, total, acc, D, KEYS)
    part = share.to(tl.int64) * rows * (KEY_HEADS * HEADS) + row
    tl.store(top_part + part, top, mask=inside)
    tl.store(sum_part + part, total, mask=inside)
    tl.store(acc_part + part[:, None] * D + lanes[None, :], acc, mask=inside[:, None])


@triton.jit(do_not_specialize=["groups", "group_of", "rows", "scale"])
def _own_kernel(
    q,  # [rows, Hk * HEADS, D] contiguous
    new_k,  # [rows, Hk, D] contiguous
    new_v,
    keys,
    values,
    groups,
    group_of,  # [rows] int64, -1: padding
    acc_part,
    top_part,
    sum_part,
    out,  # [rows, Hk * HEADS, D] contiguous
    rows,
    scale,
    KEY_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    QUERIES: tl.constexpr,  # HEADS, rounded up to what a product takes
    KEYS: tl.constexpr,
    SHARES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    key_head = tl.program_id(1)
    head = tl.arange(0, QUERIES)
    lanes = tl.arange(0, D)
    inside = head < HEADS
    at_head = row * (KEY_HEADS * HEADS) + key_head * HEADS + head
    group = tl.load(group_of + row)
    real = group >= 0
    entry = groups + tl.maximum(group, 0) * COLUMNS
    first, own_at, room, place = tl.load(entry), tl.load(entry + 5), tl.load(entry + 6), tl.load(entry + 7)
    start = own_at + ((row - first) * KEY_HEADS + key_head) * room
    place = tl.where(real, place, 0)

    at_new = (row * KEY_HEADS + key_head) * D + lanes
    k_new, v_new = tl.load(new_k + at_new), tl.load(new_v + at_new)
    written = lanes < tl.where(real, D, 0)
    tl.store(keys + (start + place) * D + lanes, k_new, mask=written)
    tl.store(values + (start + place) * D + lanes, v_new, mask=written)
    queries = tl.load(q + at_head[:, None] * D + lanes[None, :], mask=inside[:, None], other=0.0)
    # The token itself comes first, from registers: what was just stored is not read back.
    wide_q = queries.to(tl.float32)
    top = tl.sum(wide_q * k_new.to(tl.float32)[None, :], 1) * scale
    total = tl.full([QUERIES], 1.0, tl.float32)
    acc = tl.zeros([QUERIES, D], tl.float32) + v_new.to(tl.float32)[None, :]
    for share in tl.static_range(SHARES):
        part = share * rows * (KEY_HEADS * HEADS) + at_head
        its_top = tl.load(top_part + part, mask=inside, other=-1e30)
        new_top = tl.maximum(top, its_top)
        keep, weight = tl.exp2(top - new_top), tl.exp2(its_top - new_top)
        total = total * keep + tl.load(sum_part + part, mask=inside, other=0.0) * weight
        its = tl.load(acc_part + part[:, None] * D + lanes[None, :], mask=inside[:, None], other=0.0)
        acc = acc * keep[:, None] + its * weight[:, None]
        top = new_top
    tiles = tl.cdiv(place, KEYS)
    top, total, acc = _over(keys, values, start, place, 0, tiles, queries, scale, top, total, acc, D, KEYS)
    done = tl.where(real, acc / total[:, None], 0.0).to(out.dtype.element_ty)
    tl.store(out + at_head[:, None] * D + lanes[None, :], done, mask=inside[:, None])


def decode_attention(
    q: Tensor,  # [T, Hq, D]
    k: Tensor,  # [T, Hk, D] of the tokens being decoded
    v: Tensor,
    keys: Tensor,  # one layer of the cache, flat; the new keys are written into it
    values: Tensor,
    groups: Tensor,  # [S, 8] int64
    group_of: Tensor,  # [T] int64, -1: padding, which gives zeros
    scale: float,
    longest: int,  # no prompt has more tokens
    most: int,  # no group has more completions
) -> Tensor:  # [T, Hq, D]
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    (rows, heads, size), key_heads = q.shape, k.shape[1]
    per_key = heads // key_heads
    out = torch.empty_like(q)
    if rows == 0:
        return out
    queries = max(16, min(_QUERIES, triton.next_power_of_2(most * per_key)))
    blocks = triton.cdiv(most * per_key, queries)
    programs = launch_for(q.device)[1]
    shares = min(triton.cdiv(longest, _KEYS), triton.cdiv(_WAVES * programs, len(groups) * key_heads * blocks))
    shares = triton.next_power_of_2(max(1, shares))  # few values, for each is compiled by itself
    acc = torch.empty(shares, rows, heads, size, dtype=torch.float32, device=q.device)
    top, total = torch.empty(2, shares, rows, heads, dtype=torch.float32, device=q.device)
    shape = {"KEY_HEADS": key_heads, "HEADS": per_key, "D": size, "KEYS": _KEYS, "SHARES": shares}
    bits = scale * LOG2_E
    with on(q.device):
        _prompt_kernel[(len(groups) * key_heads, shares, blocks)](
            q, keys, values, groups, acc, top, total, rows, bits, QUERIES=queries, **shape, **FUSED
        )  # fmt: skip
        _own_kernel[(rows, key_heads)](
            q, k, v, keys, values, groups, group_of, acc, top, total, out, rows, bits,
            QUERIES=max(16, triton.next_power_of_2(per_key)), **shape, **FUSED,
        )  # fmt: skip
    return out
