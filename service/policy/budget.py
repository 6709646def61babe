"""How many retries there may be: a share of recent traffic, so that retries cannot become the storm."""

from __future__ import annotations

import math

WINDOW = 60.0
"""Seconds that traffic counts for: what is older fades out."""
FLOOR = 10.0
"""Retries that are always allowed in a window: with little traffic a share of it would be none."""


def faded(count: float, seconds: float) -> float:
    """What is left of a count after so many seconds; the clock may have gone back."""
    return count * math.exp(-max(0.0, seconds) / WINDOW)
