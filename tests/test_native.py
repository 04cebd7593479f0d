"""The C++ row pass against fp64: values, gradients, accuracy, threads, strides, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from grpo_fast import native
from grpo_fast.rowstats import RowStats

UNAVAILABLE = native.why_unavailable()
REQUIRED = os.environ.get("GRPO_FAST_REQUIRE_NATIVE", "0") not in ("", "0")
needs_native = pytest.mark.skipif(UNAVAILABLE is not None and not REQUIRED, reason=str(UNAVAILABLE))

EPS = torch.finfo(torch.float32).eps
SCALES = [(1.0, 0.0), (0.7, 0.0), (1.3, 30.0), (1.0, 2.0)]  # (inv_temp, softcap), the last one saturates


def squashed(z: Tensor, inv_temp: float, softcap: float) -> Tensor:
    return inv_temp * (softcap * torch.tanh(z / softcap) if softcap else z)


def eager(z: Tensor, y: Tensor, inv_temp: float, softcap: float) -> tuple[Tensor, Tensor]:
    log_p = torch.log_softmax(squashed(z, inv_temp, softcap), -1)
    return log_p.gather(1, y[:, None])[:, 0], torch.special.entr(log_p.exp()).sum(-1)


def gradient(z: Tensor, y: Tensor, g: Tensor, g_entropy: Tensor, inv_temp: float, softcap: float) -> Tensor:
    leaf = z.clone().requires_grad_()
    logp, entropy = eager(leaf, y, inv_temp, softcap)
    (g.to(z) * logp + g_entropy.to(z) * entropy).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def rows(n: int, v: int, spread: float = 4.0) -> tuple[Tensor, Tensor]:
    """Every second target is the row's largest logit, as a sampled token often is."""
    z = torch.randn(n, v) * spread
    y = torch.randint(0, v, (n,))
    y[::2] = z[::2].argmax(-1)
    return z, y


def no_worse_than(actual: Tensor, other: Tensor, truth: Tensor, times: float = 2.0) -> None:
    scale = truth.abs().max()
    assert (actual - truth).abs().max() <= times * (other - truth).abs().max() + 4 * EPS * scale


def test_native_is_built_where_it_is_required() -> None:
    if REQUIRED:
        assert UNAVAILABLE is None


# one, a prime, a whole summing block and its neighbours, a real vocabulary; no row, one row, more rows than threads
@needs_native
@pytest.mark.parametrize("v", [1, 2, 7, 511, 512, 513, 1009, 4096 + 5, 151_936])
@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize(("inv_temp", "softcap"), SCALES)
def test_no_worse_than_eager(n: int, v: int, inv_temp: float, softcap: float) -> None:
    z, y = rows(n, v)
    g, g_entropy = torch.randn(n), torch.randn(n)
    unit, grad = z.clone(), z.clone()
    stats = native.exp_rows(unit, y, inv_temp, softcap)
    native.grad_rows(grad, y, stats, g, g_entropy, inv_temp, softcap)
    if n == 0:
        assert all(s.shape == (0,) for s in stats)
        return
    truth, fp32 = eager(z.double(), y, inv_temp, softcap), eager(z, y, inv_temp, softcap)
    no_worse_than(stats.logp, fp32[0], truth[0])
    no_worse_than(stats.entropy, fp32[1], truth[1])
    torch.testing.assert_close(stats.m.double(), squashed(z.double(), inv_temp, softcap).amax(-1), rtol=4 * EPS, atol=0)

    none = torch.zeros(n)
    of_logp = -inv_temp / stats.s[:, None] * unit
    no_worse_than(
        g[:, None] * of_logp,
        gradient(z, y, g, none, inv_temp, softcap),
        gradient(z.double(), y, g, none, inv_temp, softcap),
    )
    no_worse_than(
        grad,
        gradient(z, y, g, g_entropy, inv_temp, softcap),
        gradient(z.double(), y, g, g_entropy, inv_temp, softcap),
    )


@needs_native
@pytest.mark.parametrize(("inv_temp", "softcap"), SCALES)
def test_stats_rows_equals_exp_rows_and_writes_nothing(inv_temp: float, softcap: float) -> None:
    z, y = rows(4, 1009)
    before = z.clone()
    alone = native.stats_rows(z, y, inv_temp, softcap)
    assert torch.equal(z, before)
    for a, b in zip(alone, native.exp_rows(z, y, inv_temp, softcap), strict=True):
        assert torch.equal(a, b)


@needs_native
def test_exp_is_accurate_over_its_whole_range() -> None:
    d = torch.linspace(-86.9, 0, 60_001)
    z = torch.cat([d, torch.zeros(1)])[None]
    native.exp_rows(z, torch.tensor([60_001]), 1.0, 0.0)
    truth = d.double().exp()
    assert ((z[0, :-1] - truth) / truth).abs().max() <= 1.5 * EPS
    z = torch.tensor([[-87.5, -104.0, -1e4, -3e38, -float("inf"), 0.0]])
    native.exp_rows(z, torch.tensor([5]), 1.0, 0.0)
    assert torch.equal(z, torch.zeros(1, 6))


@needs_native
def test_softcap_is_accurate_near_zero_and_when_saturated() -> None:
    magnitude = torch.logspace(-6, 1.4, 20_001)
    u = torch.cat([-magnitude, magnitude])
    stats = native.stats_rows(u[:, None].clone(), torch.zeros(len(u), dtype=torch.int64), 1.0, 1.0)
    torch.testing.assert_close(stats.m.double(), u.double().tanh(), rtol=3 * EPS, atol=0)

    z = torch.cat([u, torch.zeros(1)])[None]  # the target is 0: its slope is 1
    native.exp_rows(z, torch.tensor([len(u)]), 1.0, 1.0)
    t = u.double().tanh()
    top = t.max()
    torch.testing.assert_close(z[0, :-1].double(), (t - top).exp() / u.double().cosh() ** 2, rtol=1e-6, atol=0)


@needs_native
@pytest.mark.parametrize("softcap", [0.0, 30.0])
def test_sums_over_equal_logits_are_exact(softcap: float) -> None:
    v = 151_936
    stats = native.stats_rows(torch.full((1, v), 7.3), torch.tensor([5]), 0.7, softcap)
    assert stats.s.item() == v
    torch.testing.assert_close(stats.entropy, torch.tensor([v]).log())


@needs_native
def test_sums_over_a_large_vocabulary_keep_their_accuracy() -> None:
    z = torch.full((1, 151_936), -1.1)  # e is no sum of powers of two: a running fp32 sum would be off by 1e-3
    z[0, 0] = 0.0
    stats = native.stats_rows(z, torch.tensor([0]), 1.0, 0.0)
    truth = 1 + 151_935 * z[0, 1].double().exp()
    assert abs(stats.s.double() / truth - 1) <= 3e-7


@needs_native
@pytest.mark.parametrize("margin", [10.0, 30.0, 60.0])
def test_confident_token_keeps_its_gradient(margin: float) -> None:
    z = torch.full((1, 1009), -margin)
    z[0, 3] = 0.0
    y = torch.tensor([3])
    others = 1008 * torch.tensor(-margin, dtype=torch.float64).exp()
    unit, grad = z.clone(), z.clone()
    stats = native.exp_rows(unit, y, 1.0, 0.0)
    native.grad_rows(grad, y, stats, torch.ones(1), torch.zeros(1), 1.0, 0.0)
    for found, truth in (
        (stats.logp[0], -torch.log1p(others)),
        (unit[0, 3], -others),
        (grad[0, 3], others / (1 + others)),
    ):
        torch.testing.assert_close(found.double(), truth, rtol=1e-6, atol=0)


@needs_native
def test_rows_far_below_zero() -> None:
    z, y = rows(3, 257)
    shifted = native.stats_rows(z - 1024.0, y, 1.0, 0.0)  # verl's running maximum starts at 0
    truth = eager((z - 1024.0).double(), y, 1.0, 0.0)
    torch.testing.assert_close(shifted.logp.double(), truth[0], rtol=1e-6, atol=1e-6)


@needs_native
@pytest.mark.parametrize(("inv_temp", "softcap"), [(1.0, 0.0), (0.7, 30.0)])
@pytest.mark.parametrize("where", [0, 3, 511, 512, 1008])  # 3 is the target
def test_nan_in_a_scored_row_is_never_hidden(where: int, inv_temp: float, softcap: float) -> None:
    z, y = rows(3, 1009)
    y[1] = 3
    z[1, where] = float("nan")
    stats = native.exp_rows(z.clone(), y, inv_temp, softcap)
    for value in (stats.logp, stats.entropy, stats.s):
        assert value.isnan().tolist() == [False, True, False]
    native.grad_rows(z, y, stats, torch.ones(3), torch.zeros(3), inv_temp, softcap)
    assert z.isnan().any(-1).tolist() == [False, True, False]


@needs_native
def test_infinite_logits_as_in_log_softmax() -> None:
    inf = float("inf")
    z = torch.tensor(
        [[0.0, -inf, 1.0], [-inf, 0.0, 1.0], [0.0, inf, 1.0], [-inf, -inf, -inf], [1.0, -3e38, 3e38], [0.0, inf, 1.0]]
    )
    y = torch.tensor([0, 0, 0, 0, 2, 1])
    unit, grad = z.clone(), z.clone()
    stats = native.exp_rows(unit, y, 1.0, 0.0)
    torch.testing.assert_close(
        stats.logp, torch.log_softmax(z, -1).gather(1, y[:, None])[:, 0], equal_nan=True, rtol=1e-6, atol=1e-7
    )
    native.grad_rows(grad, y, stats, torch.ones(6), torch.ones(6), 1.0, 0.0)
    assert unit[0, 1] == 0 and grad[0, 1] == 0  # a banned token gets no gradient
    assert stats.entropy[[0, 1, 4]].isfinite().all() and grad[0].isfinite().all()
    assert stats.entropy[5].isnan() and grad[5].isnan().any()


@needs_native
@pytest.mark.parametrize("softcap", [0.0, 30.0])
def test_unscored_rows_become_zeros_whatever_they_held(softcap: float) -> None:
    z, y = rows(4, 300)
    y[1], y[3] = -100, -1
    z[1], z[3] = float("nan"), float("inf")
    unit, grad = z.clone(), z.clone()
    stats = native.exp_rows(unit, y, 1.0, softcap)
    poison = torch.tensor([1.0, float("nan"), 1.0, float("nan")])
    native.grad_rows(grad, y, stats, poison, poison, 1.0, softcap)
    for written in (unit, grad):
        assert not written[[1, 3]].any() and written[[0, 2]].isfinite().all() and written[[0, 2]].any()
    for value, unscored in zip(stats, (0.0, 0.0, 0.0, 1.0), strict=True):
        assert value[[1, 3]].tolist() == [unscored, unscored]
    assert (native.stats_rows(z, y, 1.0, softcap).s[[1, 3]] == 1).all()


@needs_native
def test_a_row_has_the_same_bits_in_any_company() -> None:
    z, y = rows(9, 5003)
    g = torch.randn(9)

    def run(part: slice, threads: int) -> tuple[Tensor, ...]:
        torch.set_num_threads(threads)
        unit, grad = z[part].clone(), z[part].clone()
        stats = native.exp_rows(unit, y[part], 0.9, 0.0)
        native.grad_rows(grad, y[part], stats, g[part], g[part], 0.9, 0.0)
        return (*stats, unit, grad)

    threads = torch.get_num_threads()
    try:
        whole = run(slice(0, 9), 1)
        for part, count in ((slice(0, 9), 2), (slice(4, 5), 1), (slice(2, 9), 3)):
            for a, b in zip(whole, run(part, count), strict=True):
                assert torch.equal(a[part], b)
    finally:
        torch.set_num_threads(threads)


@needs_native
def test_row_stride_and_strided_vectors() -> None:
    z, y = rows(4, 101)
    wide = torch.full((4, 128), 5.5)
    wide[:, 8:109] = z
    g = torch.ones(()).expand(4)
    stats = native.exp_rows(wide[:, 8:109], y.repeat_interleave(2)[::2], 1.0, 0.0)
    grad = z.clone()
    native.grad_rows(grad, y, RowStats(*(s.repeat_interleave(2)[::2] for s in stats)), g, g * 0, 1.0, 0.0)
    expected = native.exp_rows(z, y, 1.0, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(stats, expected, strict=True)) and torch.equal(wide[:, 8:109], z)
    assert (wide[:, :8] == 5.5).all() and (wide[:, 109:] == 5.5).all()
    torch.testing.assert_close(grad, -z / stats.s[:, None], rtol=1e-5, atol=1e-7)


@needs_native
def test_refuses_what_it_cannot_read() -> None:
    z, y = rows(2, 10)
    for bad_z in (z.double(), z.bfloat16(), z[0], z.t().contiguous().t(), z[:1].expand(2, 10), z.to("meta")):
        with pytest.raises(ValueError, match="logits must"):
            native.exp_rows(bad_z, y, 1.0, 0.0)
    for bad_y in (y.int(), y[:1], y[:, None]):
        with pytest.raises(ValueError, match="targets must be int64 \\[2\\]"):
            native.stats_rows(z, bad_y, 1.0, 0.0)
    for inv_temp, softcap, name in ((0.0, 0.0, "inv_temp"), (float("nan"), 0.0, "inv_temp"), (1.0, -1.0, "softcap")):
        with pytest.raises(ValueError, match=name):
            native.exp_rows(z, y, inv_temp, softcap)
    stats = native.stats_rows(z, y, 1.0, 0.0)
    for g, g_entropy, name in (
        (torch.ones(1), torch.ones(2), " g must"),
        (torch.ones(2), torch.ones(2).double(), "g_e"),
    ):
        with pytest.raises(ValueError, match=name):
            native.grad_rows(z, y, stats, g, g_entropy, 1.0, 0.0)


@needs_native
def test_a_target_outside_the_vocabulary_is_named_and_nothing_written() -> None:
    z, _ = rows(3, 10)
    y, before = torch.tensor([1, 2, 10]), z.clone()
    stats = native.stats_rows(z, y.clamp(max=9), 1.0, 0.0)
    for call in (
        lambda: native.exp_rows(z, y, 1.0, 0.0),
        lambda: native.stats_rows(z, y, 1.0, 0.0),
        lambda: native.grad_rows(z, y, stats, torch.ones(3), torch.ones(3), 1.0, 0.0),
    ):
        with pytest.raises(IndexError, match="target 10 of row 2 lies outside the vocabulary of 10"):
            call()
    assert torch.equal(z, before)


@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_adds_no_second_openmp_and_keeps_subnormals() -> None:
    script = (
        "import torch; from grpo_fast import native\n"
        "torch.set_num_threads(2); native.exp_rows(torch.randn(8, 999), torch.zeros(8, dtype=torch.int64), 1.0, 0.0)\n"
        "maps = [line.split()[-1] for line in open('/proc/self/maps')]\n"
        "print(len({path for path in maps if 'libgomp' in path or 'libomp' in path or 'libiomp' in path}))\n"
        "print((torch.full((9,), 1e-40) * 1).min().item() > 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "True"]


@pytest.mark.parametrize("content", [None, b"no library"])
def test_says_why_it_is_unavailable(content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "librow_pass.so"
    if content is not None:
        library.write_bytes(content)
    monkeypatch.setattr(native, "LIBRARY", library)
    native._load.cache_clear()
    try:
        reason = native.why_unavailable() or ""
        assert str(library) in reason and ("was not built" if content is None else "does not load") in reason
        with pytest.raises(native.NativeUnavailable, match="GRPO_FAST_REQUIRE_NATIVE"):
            native.stats_rows(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), 1.0, 0.0)
    finally:
        native._load.cache_clear()
