"""How long an answer's headers ask to wait."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime


def retry_after(headers: Mapping[str, str]) -> float | None:
    """What `retry-after-ms`, else `retry-after` (seconds, or an HTTP date) asks for, in seconds; nonsense is None."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        text = headers.get(name, "")
        try:
            seconds = float(text) * unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(text).timestamp() - time.time()
            except (ValueError, OverflowError, TypeError):
                continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None
