"""Intervals against published values, scipy and simulation."""

from __future__ import annotations

import numpy as np
import pytest

from grpo_fast.evaluate.stats import Interval, macro, paired_bootstrap, wilson


# Newcombe 1998, table I, method 3
@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(k: int, n: int, low: float, high: float) -> None:
    assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_as_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for n in (1, 2, 7, 97, 5000):
        for k in sorted({0, 1, n // 3, n - 1, n}):
            for confidence in (0.9, 0.95, 0.99):
                truth = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
                assert wilson(k, n, confidence) == pytest.approx((truth.low, truth.high), abs=1e-12)


def test_wilson_at_its_ends() -> None:
    assert wilson(0, 0) == Interval(0.0, 1.0)
    assert wilson(0, 10).low == 0.0 and wilson(10, 10).high == 1.0
    low, high = wilson(3, 10)
    assert wilson(7, 10) == pytest.approx((1 - high, 1 - low))
    with pytest.raises(ValueError, match="3 right ones of 2"):
        wilson(3, 2)


def test_macro_of_one_group_is_wilson() -> None:
    mean, interval = macro([(81, 263)])
    assert mean == 81 / 263 and interval == pytest.approx(wilson(81, 263))


def test_macro_covers_the_mean_of_the_groups() -> None:
    sizes, shares = np.array([12, 40, 150, 25]), np.array([0.9, 0.35, 0.6, 0.02])
    drawn = np.random.default_rng(0).binomial(sizes, shares, size=(4000, 4))
    inside = 0
    for counts in drawn:
        _, (low, high) = macro(list(zip(counts.tolist(), sizes.tolist(), strict=True)))
        inside += low <= shares.mean() <= high
    assert 0.94 < inside / len(drawn) < 0.98
    with pytest.raises(ValueError, match="at least one group"):
        macro([(0, 0)])


def test_bootstrap_is_that_of_drawn_questions() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random(300) < 0.7, rng.random(300) < 0.6
    found = paired_bootstrap(a, b, seed=3, resamples=20_000)
    places = rng.integers(0, 300, size=(20_000, 300))
    truth = np.quantile((a.astype(float) - b)[places].mean(1), [0.025, 0.975])
    assert found.difference == pytest.approx(a.mean() - b.mean())
    assert (found.low, found.high) == pytest.approx(truth, abs=0.005)
    assert paired_bootstrap(a, b, seed=3, resamples=20_000) == found != paired_bootstrap(a, b, seed=4)


def test_bootstrap_is_symmetric_and_knows_equals() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random(200) < 0.5, rng.random(200) < 0.5
    forth, back = paired_bootstrap(a, b), paired_bootstrap(b, a)
    assert (forth.difference, forth.p) == pytest.approx((-back.difference, back.p), abs=0.02)
    assert paired_bootstrap(a, a)[:4] == (0.0, 0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="at least one question"):
        paired_bootstrap([], [])


def test_bootstrap_of_lengths_takes_any_numbers() -> None:
    rng = np.random.default_rng(3)
    a = rng.normal(10, 2, 500)
    found = paired_bootstrap(a + 1, a + rng.normal(0, 1, 500))
    assert found.low < 1 < found.high and found.p < 0.001
    half = 1.96 / np.sqrt(500)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


def test_p_and_interval_hold_what_they_promise() -> None:
    """Models that agree on most questions: under no difference p < 0.05 happens about one time in twenty."""
    rng = np.random.default_rng(4)
    rejected = covered = 0
    for trial in range(600):
        hard = rng.random(250)
        a, b = rng.random(250) < hard, rng.random(250) < hard
        found = paired_bootstrap(a, b, seed=trial, resamples=1000)
        rejected += found.p < 0.05
        covered += found.low <= 0 <= found.high
    assert 0.02 < rejected / 600 < 0.09
    assert 0.92 < covered / 600 < 0.98


@pytest.mark.parametrize(("better", "worse", "equal"), [(30, 14, 100), (1, 0, 0), (4, 0, 0), (5, 0, 40), (6, 1, 3)])
def test_p_is_close_to_the_exact_test(better: int, worse: int, equal: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    a = np.array([1] * better + [0] * worse + [1] * equal)
    b = np.array([0] * better + [1] * worse + [1] * equal)
    exact = stats.binomtest(better, better + worse).pvalue  # McNemar's
    assert paired_bootstrap(a, b).p == pytest.approx(exact, abs=0.012)
