"""The arithmetic of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

__all__ = ["median", "percentile", "ratio_median"]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` percent of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share / 100 * len(ordered)) - 1)]


def ratio_median(values: Sequence[float], references: Sequence[float]) -> float:
    """Median over rounds of value / reference, each pair from the same round: noise that both saw cancels out."""
    return median(value / reference for value, reference in zip(values, references, strict=True))
