"""Intervals of shares, and whether two models that answered the same questions differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000
PAIRED = f"Differences: paired bootstrap over questions; p by swapping the two answers to each; {RESAMPLES} resamples"
DRAWS_AT_ONCE = 1 << 22  # counts held in memory by a bootstrap


class Interval(NamedTuple):
    low: float
    high: float


class Paired(NamedTuple):
    """The mean of a - b over the questions both answered, its percentile interval, and a two-sided p."""

    difference: float
    low: float
    high: float
    p: float
    n: int


def wilson(k: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of k right ones of n; all of [0, 1] where nothing was asked."""
    if not 0 <= k <= n:
        raise ValueError(f"{k} right ones of {n}")
    if n == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, z2 = k / n, z * z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = 0.0 if k == 0 else max(0.0, centre - half)
    high = 1.0 if k == n else min(1.0, centre + half)
    return Interval(low, high)


def macro(counts: Sequence[tuple[int, int]], confidence: float = CONFIDENCE) -> tuple[float, Interval]:
    """The mean of the groups' shares, given (k, n) of each, and its interval.

    Groups are independent, so the distances from each share to its Wilson limits add in squares (the method of
    variance estimates recovery); with one group it is Wilson's interval.
    """
    if not counts or any(n == 0 for _, n in counts):
        raise ValueError("a macro average needs at least one group, and a question in each")
    shares = [k / n for k, n in counts]
    limits = [wilson(k, n, confidence) for k, n in counts]
    mean = math.fsum(shares) / len(shares)
    below = math.sqrt(math.fsum((s - one.low) ** 2 for s, one in zip(shares, limits, strict=True))) / len(shares)
    above = math.sqrt(math.fsum((one.high - s) ** 2 for s, one in zip(shares, limits, strict=True))) / len(shares)
    return mean, Interval(max(0.0, mean - below), min(1.0, mean + above))


def paired_bootstrap(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    seed: int = 0,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Paired:
    """Questions are drawn with replacement, both models' answers together.

    Equal differences are interchangeable, so a resample is one multinomial draw over the distinct ones: three for
    right and wrong. p is the share of resamples in which each question's two answers change places by the toss of a
    coin that lie as far out as what was seen: of right and wrong McNemar's exact test, for few questions too.
    """
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    n = len(differences)
    if n == 0 or differences.ndim != 1:
        raise ValueError("a comparison needs at least one question that both models answered")
    values, counts = np.unique(differences, return_counts=True)
    sizes, of_size = np.unique(np.abs(differences), return_counts=True)
    rng = np.random.default_rng(seed)
    at_once = max(1, DRAWS_AT_ONCE // len(values))
    parts = [min(at_once, resamples - start) for start in range(0, resamples, at_once)]
    means = np.concatenate([rng.multinomial(n, counts / n, size=part) @ values / n for part in parts])
    swapped = np.concatenate([(2 * rng.binomial(of_size, 0.5, (part, len(sizes))) - of_size) @ sizes for part in parts])
    seen = float(counts @ values / n)
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    extreme = int((np.abs(swapped / n) >= abs(seen) - 1e-12).sum())
    return Paired(seen, float(low), float(high), (1 + extreme) / (1 + resamples), n)
