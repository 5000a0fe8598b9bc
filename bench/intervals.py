"""Means, shares and ratios over seeded drags, with bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .rows import rounded

RESAMPLES = 4000
LEVEL = 0.95


class Interval(NamedTuple):
    """A mean, and the bounds of its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Mean of the values (one a pair) and its percentile-bootstrap interval.

    Raises ValueError without values. The resampling is seeded: the same values give the same interval.
    """
    return ratio_interval(values, [1.0] * len(values), seed)


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> Interval:
    """Σ numerators / Σ denominators, resampled pair by pair.

    A ratio of sums, so that a pair in which next to nothing was asked does not count as much as a long way.
    Raises ValueError unless there is one positive denominator for each numerator.
    """
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if top.size == 0 or top.shape != bottom.shape or top.ndim != 1 or bottom.min() <= 0:
        raise ValueError("an interval needs one positive denominator for each numerator, and at least one of them")
    chosen = np.random.default_rng(seed).integers(0, top.size, size=(RESAMPLES, top.size))
    drawn = top[chosen].sum(axis=1) / bottom[chosen].sum(axis=1)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(top.sum() / bottom.sum()), float(low), float(high))


def with_interval(name: str, interval: Interval) -> dict[str, Any]:
    """As rows have it: {"after": mean, "after_ci": [low, high]}."""
    return {name: rounded(interval.mean), f"{name}_ci": [rounded(interval.low), rounded(interval.high)]}
