"""Whether to try again after a failed attempt, and when. Pure: time left and randomness are passed in.

Rules (design, policy): only before the first byte has gone to the client; only what another try can cure; never past the
deadline; the provider's own word (`x-should-retry`, `retry-after`) before ours; full jitter otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

BASE = 0.5
"""Seconds of the first pause at most; doubles with every try (the SDKs' own numbers)."""
LONGEST = 8.0
"""Seconds of a pause at most when the provider did not ask for one."""
PATIENCE = 60.0
"""Seconds of a pause at most when it did: whoever must wait longer is told so instead of being held."""

_CURABLE = frozenset((408, 409, 429))


class Stop(StrEnum):
    """Why there is no other try."""

    FINAL = "final"
    """Another try cannot help, or is not ours to make: the client may have its own view."""
    SPEND = "spend"
    """A spend limit: no try of anybody's can help."""
    USED_UP = "used_up"
    """As many tries as allowed have been made."""
    BUDGET = "budget"
    """Retries are a large share of the traffic already: more of them would be the storm."""
    DEADLINE = "deadline"
    """The pause that was asked for does not fit into the time left."""

    @property
    def is_ours(self) -> bool:
        """Whether clients should not retry either: we have done it for them, or it is pointless."""
        return self in (Stop.SPEND, Stop.USED_UP, Stop.BUDGET)


@dataclass(frozen=True, slots=True)
class Pause:
    """Another try after so many seconds; `asked_by` is who set the time: `provider` or `backoff`."""

    seconds: float
    asked_by: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed attempt, as far as trying again is concerned.

    `reason` is one of `catalog.RETRY_REASONS`. `status` is None when no answer came. `unanswered`: the call was sent, and
    may have been billed. `retry_after` in seconds and `should_retry` are the provider's word.
    """

    reason: str
    status: int | None = None
    overloaded: bool = False
    unanswered: bool = False
    limit: str | None = None
    retry_after: float | None = None
    should_retry: bool | None = None


@dataclass(frozen=True, slots=True)
class Retries:
    """What the owner allows: retries per call, and whether a call that was sent and not answered may be sent again."""

    most: int = 2
    unanswered: bool = False

    def after(
        self, failure: Failure, made: int, left: float, *, safe: bool, random: Callable[[], float]
    ) -> Pause | Stop:
        """What to do after `failure` with `made` retries made and `left` seconds until the deadline.

        `safe` calls change nothing and cost nothing, so they may be sent twice. `random` gives numbers in [0, 1).
        """
        if failure.limit == "spend":
            return Stop.SPEND
        if not self._is_curable(failure, safe) or self.most == 0:
            return Stop.FINAL
        if made >= self.most:
            return Stop.USED_UP
        if failure.retry_after:
            fits = failure.retry_after < min(left, PATIENCE)
            return Pause(failure.retry_after, "provider") if fits else Stop.DEADLINE
        seconds = random() * min(LONGEST, BASE * 2**made)
        return Pause(seconds, "backoff") if seconds < left else Stop.DEADLINE

    def _is_curable(self, failure: Failure, safe: bool) -> bool:
        if failure.unanswered and not safe and not self.unanswered:
            return False
        if failure.should_retry is not None:
            return failure.should_retry
        status = failure.status
        return status is None or failure.overloaded or status in _CURABLE or status >= 500
