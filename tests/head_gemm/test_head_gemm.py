"""csrc/head_gemm_sm90.cuh against fp64, on emulated instructions; and that a broken kernel does not pass there."""

from __future__ import annotations

import ctypes
import math
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import grpo_fast.kernels.shifted_exp as shifted_exp
from grpo_fast.kernels.launch import INTERPRETED

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
SOURCE = "head_gemm_sm90.cuh"
COLUMNS = 256  # that one partial sum covers
EPS = torch.finfo(torch.float32).eps
NAN, INF = float("nan"), float("inf")
UNTOUCHED = 7.0

CXX = shlex.split(os.environ.get("CXX", "")) or [shutil.which("c++") or shutil.which("g++") or "clang++"]


def why_not() -> str | None:
    if sys.platform != "linux":
        return "the emulator's fibers are made of Linux's ucontext"
    if not shutil.which(CXX[0]):
        return f"no C++ compiler (CXX={os.environ.get('CXX', '')!r}; looked for c++, g++, clang++)"
    return None


pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

NS = (1, 127, 128, 129, 300, 520)
VS = (1, 8, 255, 256, 300, 600)
KS = (8, 64, 72, 200, 320, 584)  # one stage to ten, of a ring of four


def build(into: Path, source: Path = CSRC, optimise: str = "-O2") -> ctypes.CDLL:
    library = into / "emulated.so"
    flags = ["-std=c++17", optimise, "-shared", "-fPIC", "-I", source, "-I", CSRC, "-I", HERE]
    made = subprocess.run([*CXX, *flags, HERE / "emulated.cpp", "-o", library], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="session")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(tmp_path_factory.mktemp("emulated"))


@dataclass
class Problem:
    h: Tensor  # [N, K], rows further apart than K, NaN between and below
    w: Tensor  # [V, K], likewise
    shift: Tensor  # [N]
    scale: float = 1.25

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.h), len(self.w), self.h.shape[1]


@dataclass
class Result:
    message: str  # what went wrong
    e: Tensor | None  # [N + 2, a multiple of 8 above V]
    sums: Tensor  # [ceil(V / COLUMNS) + 1, N]
    weighted: Tensor | None


def same_bits(a: Tensor | None, b: Tensor) -> bool:
    return a is not None and a.contiguous().view(torch.int16).equal(b.contiguous().view(torch.int16))


def spaced(rows: Tensor, gap: int) -> Tensor:
    around = torch.full((len(rows) + 2, rows.shape[1] + gap), NAN, dtype=torch.bfloat16)
    around[: len(rows), : rows.shape[1]] = rows
    return around[: len(rows), : rows.shape[1]]


def problem(n: int, v: int, k: int) -> Problem:
    h, w = torch.randn(n, k), torch.randn(v, k) * 2 / math.sqrt(k)
    return Problem(spaced(h.bfloat16(), 8), spaced(w.bfloat16(), 24), torch.randn(n) * 3)


def launch(
    library: ctypes.CDLL, h: Tensor, w: Tensor, e: Tensor | None, shift: Tensor, sums: Tensor, weighted: Tensor | None,
    scale: float, group: int, clusters: int, seed: int,
) -> str:  # fmt: skip
    """What went wrong; the arguments up to `group` are head_gemm's."""
    pointers = [t if t is None else ctypes.c_void_p(t.data_ptr()) for t in (h, w, e, shift, sums, weighted)]
    strides = (h.stride(0), w.stride(0), 0 if e is None else e.stride(0))
    sizes = map(ctypes.c_int64, (len(h), len(w), h.shape[1], *strides))
    message = ctypes.create_string_buffer(2000)
    how = (ctypes.c_float(scale), group, clusters, ctypes.c_uint64(seed), message, len(message))
    failed = library.gf_emulated(*pointers, *sizes, *how)
    assert bool(failed) == bool(message.value)
    return message.value.decode()


def call(library: ctypes.CDLL, p: Problem, variant: str, seed: int = 0, clusters: int = 1, group: int = 1) -> Result:
    n, v, _ = p.shape
    e = torch.full((n + 2, -(-v // 8) * 8 + 8), UNTOUCHED, dtype=torch.bfloat16) if variant == "e" else None
    sums, weighted = (torch.full((-(-v // COLUMNS) + 1, n), UNTOUCHED) for _ in range(2))
    moments = weighted if variant == "weighted" else None
    message = launch(library, p.h, p.w, e, p.shift, sums, moments, p.scale, group, clusters, seed)
    return Result(message, e, sums, moments)


def by_tile(t: Tensor) -> Tensor:
    return torch.stack([columns.sum(1) for columns in t.split(COLUMNS, 1)])


def differences(p: Problem, got: Result) -> list[str]:
    """What of a result is further from fp64 than fp32's sums and bf16's rounding explain."""
    n, v, k = p.shape
    h, w, shift = p.h.double(), p.w.double(), p.shift.double()[:, None]
    scored = shift != INF
    h = torch.where(scored, h, 0.0)
    shift = torch.where(scored, shift, 0.0)
    raw = p.scale * h @ w.T - shift
    x = raw.clamp(max=100.0)
    p_true = torch.where(scored, torch.exp2(x), 0.0)
    x = torch.where(scored, x, 0.0)
    off = (k / 16 + 4) * EPS * (p.scale * h.abs() @ w.abs().T + shift.abs())  # of x; each wgmma rounds once
    off = torch.where((raw > 100.0 + off) | raw.isinf(), 0.0, off)
    p_off = p_true * (torch.expm1(off * math.log(2)) + 4 * EPS) + 2**-126  # below that fp32 is flushed to 0
    x_off = p_off * x.abs() + p_true * off

    expected = {"sums": (got.sums[:-1], by_tile(p_true), by_tile(p_off + 70 * EPS * p_true))}
    if got.weighted is not None:
        moment = p_true * x
        expected["weighted"] = (got.weighted[:-1], by_tile(moment), by_tile(x_off + 70 * EPS * moment.abs()))
    if got.e is not None:
        expected["E"] = (got.e[:n, :v], p_true, p_off + 2**-8 * (p_true + p_off))
    wrong = [
        name
        for name, (actual, truth, bound) in expected.items()
        if not torch.where(truth.isnan(), actual.isnan(), (actual - truth).abs() <= bound).all()
    ]
    beside = [got.sums[-1:], *([] if got.weighted is None else [got.weighted[-1:]])]
    beside += [] if got.e is None else [got.e[:n, v:], got.e[n:]]
    return wrong + ["outside"] * any((t != UNTOUCHED).any() for t in beside)


def check(library: ctypes.CDLL, p: Problem, variant: str, seed: int = 0, clusters: int = 1, group: int = 1) -> Result:
    got = call(library, p, variant, seed, clusters, group)
    assert not got.message
    assert not differences(p, got)
    return got


# Every N with every V, either with every K.
@pytest.mark.parametrize("at_v", range(len(VS)))
@pytest.mark.parametrize("at_n", range(len(NS)))
def test_sizes(kernel: ctypes.CDLL, at_n: int, at_v: int) -> None:
    p = problem(NS[at_n], VS[at_v], KS[(at_n + at_v) % len(KS)])
    group, clusters = (1, 2, 8)[at_n % 3], (1, 2, 3)[at_v % 3]
    for seed in (2 * at_n + at_v, 2 * at_n + at_v + 5):
        check(kernel, p, ("e", "weighted", "sums")[seed % 3], seed, clusters, group)


def test_one_value_for_all_variants_seeds_and_places(kernel: ctypes.CDLL) -> None:
    p = problem(520, 300, 200)
    first = check(kernel, p, "e")
    for seed in range(1, 12):
        clusters, group, variant = 1 + seed % 3, (1, 2, 8)[seed % 3], ("e", "weighted", "sums")[seed // 3 % 3]
        other = call(kernel, p, variant, seed, clusters, group)
        assert not other.message
        assert same_bits(other.sums, first.sums)
        assert other.e is None or same_bits(first.e, other.e)


def test_a_row_has_the_same_bits_whatever_n_is(kernel: ctypes.CDLL) -> None:
    whole = problem(300, 264, 72)
    stored, entropy = (check(kernel, whole, variant) for variant in ("e", "weighted"))
    for rows in (slice(0, 1), slice(299, 300), slice(77, 206), slice(5, 262)):
        p = Problem(spaced(whole.h[rows], 16), whole.w, whole.shift[rows].clone())
        part, moments = check(kernel, p, "e", seed=1), check(kernel, p, "weighted", seed=2)
        assert same_bits(part.sums[:-1], stored.sums[:-1, rows])
        assert same_bits(part.e[: len(p.h)], stored.e[:300][rows])
        assert same_bits(moments.weighted[:-1], entropy.weighted[:-1, rows])


@pytest.mark.parametrize("variant", ["e", "weighted", "sums"])
def test_rows_that_are_not_scored_and_rows_that_are_not_numbers(kernel: ctypes.CDLL, variant: str) -> None:
    p = problem(140, 300, 72)
    p.shift[[0, 9, 130]] = INF
    p.h[0], p.h[9, 3], p.h[130, 71] = NAN, INF, -INF
    p.shift[20], p.h[139, 5] = NAN, NAN
    got = check(kernel, p, variant, seed=3)
    for t in (got.sums[:-1].T, *([] if got.weighted is None else [got.weighted[:-1].T])):
        assert (t[[0, 9, 130]] == 0).all()
        assert t[[20, 139]].isnan().all() and t.isnan().any(1).sum() == 2
    if got.e is not None:
        assert (got.e[[0, 9, 130], :300] == 0).all()
        assert got.e[[20, 139], :300].isnan().all() and got.e[:140, :300].isnan().any(1).sum() == 2


@pytest.mark.parametrize("variant", ["e", "weighted", "sums"])
def test_what_is_above_the_limit_is_clamped(kernel: ctypes.CDLL, variant: str) -> None:
    p = problem(33, 300, 64)
    p.shift[:16] -= 120.0
    p.shift[16:20] += 160.0  # to below fp32's normal numbers
    got = check(kernel, p, variant)
    assert got.e is None or (got.e[:16, :300] == 2.0**100).all()
    assert (got.sums[0, :16] == 256 * 2.0**100).all()
    assert (got.sums[1, 16:20] == 0).all()


@pytest.mark.parametrize("variant", ["e", "weighted", "sums"])
def test_a_target_of_minus_infinity_raises_no_column_past_the_end(kernel: ctypes.CDLL, variant: str) -> None:
    p = problem(3, 300, 64)
    p.shift[1] = -INF
    got = check(kernel, p, variant)
    assert got.sums[:2, 1].tolist() == [256 * 2.0**100, 44 * 2.0**100]


def test_matrices_that_tma_cannot_describe(kernel: ctypes.CDLL) -> None:
    p = problem(8, 8, 16)
    assert "apart" in call(kernel, Problem(spaced(p.h, 4), p.w, p.shift), "sums").message
    assert "start at" in call(kernel, Problem(p.h[:, 4:12], p.w[:, 4:12], p.shift), "sums").message
    assert "empty" in call(kernel, Problem(p.h, p.w[:0], p.shift), "sums").message


@pytest.mark.skipif(not INTERPRETED, reason="the guards around the product run on the GPU here")
def test_log_probs_and_gradients_with_this_product(kernel: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreted guards of shifted_exp around the emulated product: targets at a tile's ends and in the last."""

    def emulated(*arguments: Any) -> None:
        assert not launch(kernel, *arguments, clusters=2, seed=7)

    monkeypatch.setattr(shifted_exp, "head_gemm", emulated)
    n, v, k, inv_temp = 12, 300, 40, 0.8
    h, w = torch.randn(n, k).bfloat16(), (torch.randn(v, k) * 4 / math.sqrt(k)).bfloat16()
    y = torch.randint(v, (n,))
    y[:5] = torch.tensor([0, 255, 256, 299, -1])
    h[4], h[5] = NAN, 30 * w[7]  # not scored; and one whose target is far below another token
    h[6] = 6 * w[int(y[6])]  # and a confident one
    log_p = (inv_temp * h.double() @ w.double().T).log_softmax(1)
    live = y >= 0
    truth = log_p.gather(1, y.clamp_min(0)[:, None])[:, 0]
    e, stats = shifted_exp.shifted_exp(h, w, y, inv_temp, cuda=True)
    assert e is not None and not e[4].any() and stats.logp[4] == 0
    torch.testing.assert_close(stats.logp.double()[live], truth[live], rtol=1e-6, atol=1e-5)
    one_hot = torch.nn.functional.one_hot(y.clamp_min(0), v)
    others = (log_p.exp() * (1 - one_hot)).sum(1, keepdim=True)
    exact = inv_temp * torch.where(one_hot > 0, others, -log_p.exp())
    found = -inv_temp * e.double() / stats.s.double()[:, None]
    torch.testing.assert_close(found[live], exact[live], rtol=1e-2, atol=1e-6)
    for entropy in (False, True):
        _, sums = shifted_exp.shifted_exp(h, w, y, inv_temp, store=False, entropy=entropy, cuda=True)
        assert torch.equal(sums.logp, stats.logp)
    expected = torch.special.entr(log_p.exp()).sum(1)
    torch.testing.assert_close(sums.entropy.double()[live], expected[live], rtol=1e-4, atol=1e-4)


WAIT = "    sm90::wgmma_wait<1>();\n"
TELL = "    if (step > 0 && tells) sm90::barrier_arrive(&shared.empty[before], to);\n"
REREAD = "        if (lane == 0) sm90::tma_store_wait<1>();  // the slab before the last has been read\n"

# What is broken, the text that does it, and a word of what is then said; none where only the values are wrong.
BROKEN = {
    "a stage released before its products are done": (WAIT + TELL, TELL + WAIT, "wgmma may still read"),
    "no fence before TMA reads": ("        sm90::fence_async_proxy();\n", "", "without a fence"),
    "the peer's half not announced": ("(kRows + kColumns) * kDepth", "(kRows + kColumns / kCluster) * kDepth", ""),
    "a block that leaves early": (
        "  sm90::cluster_sync();  // the other block may still send here\n",
        "",
        "may still send",
    ),
    "one block's consumers release for both": ("kConsumers * kCluster);", "kConsumers);", ""),
    "E staged without the swizzle": ("8 * (chunk ^ row % 8)", "8 * chunk", None),
    "half the stride between groups of rows": ("uint64_t{1024 >> 4}", "uint64_t{512 >> 4}", None),
    "a slab written while it leaves": (REREAD, "", "TMA store may still read"),
    "a ring that starts full": ("Place place{0, 1};", "Place place{0, 0};", "deadlock"),
    "accumulators read under their products": ("  sm90::wgmma_wait<0>();\n", "", "may still read"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_kernel_is_seen(tmp_path: Path, what: str) -> None:
    text, instead, said = BROKEN[what]
    whole = (CSRC / SOURCE).read_text()
    assert whole.count(text) == 1
    (tmp_path / SOURCE).write_text(whole.replace(text, instead))
    library = build(tmp_path, tmp_path, "-O0")
    p = problem(200, 300, 328)
    for seed in range(4):
        got = call(library, p, "e", seed)
        if said is None:
            assert not got.message and "E" in differences(p, got)
        else:
            assert got.message and said in got.message
