"""Waiting for something to become true, with a bound."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import httpx

T = TypeVar("T")


def poll(check: Callable[[], T | None], *, what: str, seconds: float = 30.0) -> T:
    """What `check` returns once it is truthy; an exception of it in between counts as not yet. Fails after `seconds`."""
    deadline = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = check()
            if last:
                return last
        except (OSError, httpx.TransportError, AssertionError, LookupError, ValueError) as error:
            last = error
        time.sleep(0.01)
    raise AssertionError(f"waited {seconds} s for {what}; last seen: {last!r}")
