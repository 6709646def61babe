"""Rate limits as the API keeps them: token buckets per key and model class, refilled continuously.

Source of the rules and numbers: the Rate limits page.
"""

import math
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

from service.simulator.config import Limits
from service.simulator.errors import ApiError
from service.simulator.models import Model

START_TIER = Limits(requests=1_000, input_tokens=2_000_000, output_tokens=400_000)
START_TIER_LARGE = Limits(requests=1_000, input_tokens=500_000, output_tokens=100_000)  # Fable and Mythos
_NAMES = tuple(
    f"anthropic-ratelimit-{dimension}-{field}"
    for dimension in ("requests", "input-tokens", "output-tokens", "tokens")
    for field in ("limit", "remaining", "reset")
)


@lru_cache(maxsize=1024)
def rfc3339(second: int) -> str:
    """A time as the API writes it: UTC, whole seconds, `Z`."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Bucket:
    """One limit: holds a minute's worth, refills evenly, may go below zero when more was used than foreseen."""

    __slots__ = ("_level", "_rate", "_updated", "limit")

    def __init__(self, per_minute: int, now: float) -> None:
        self.limit = per_minute
        self._rate = per_minute / 60
        self._level = float(per_minute)
        self._updated = now

    def level(self, now: float) -> float:
        """What is left."""
        level = self._level + (now - self._updated) * self._rate
        self._updated = now
        self._level = level if level < self.limit else float(self.limit)
        return self._level

    def share(self, now: float) -> float:
        """What is left, as a share of the limit."""
        return self.level(now) / self.limit

    def take(self, amount: float, now: float) -> None:
        """Use `amount`."""
        self._level = self.level(now) - amount

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` will be there, 0 when it is; more than the limit is had as soon as it is full."""
        lacking = min(amount, self.limit) - self.level(now)
        return lacking / self._rate if lacking > 0 else 0.0

    def shown(self, now: float, step: int) -> tuple[str, str, str]:
        """Limit, what remains (rounded to `step`) and when it will be full again (RFC 3339), as headers show them."""
        left = self.level(now)
        full = rfc3339(math.ceil(now + (self.limit - left) / self._rate))
        whole = int(max(0.0, left) / step + (0.5 if step > 1 else 0.0)) * step
        return str(self.limit), str(min(whole, self.limit)), full


class Pool:
    """The three buckets that one key has for one class of models."""

    def __init__(self, limits: Limits, now: float) -> None:
        self._requests = Bucket(limits.requests, now)
        self._input = Bucket(limits.input_tokens, now)
        self._output = Bucket(limits.output_tokens, now)

    def admit(self, input_tokens: int, now: float) -> None:
        """Count a request and its uncached input, or raise the 429 that names the limit in the way.

        Output is not reserved: a request may start while any output tokens are left.
        """
        wanted = (("requests", self._requests, 1), ("input-tokens", self._input, input_tokens))
        for name, bucket, amount in (*wanted, ("output-tokens", self._output, 1)):
            seconds = bucket.wait(amount, now)
            if seconds > 0:
                raise self._refusal(name, bucket.limit, math.ceil(seconds), now)
        self._requests.take(1, now)
        self._input.take(input_tokens, now)

    def produced(self, output_tokens: int, now: float) -> None:
        """Count output as it is made."""
        self._output.take(output_tokens, now)

    def pretend(self, name: str, retry_after: float, now: float) -> ApiError:
        """The 429 for the limit `name` (as in its headers) with nothing remaining, although there is."""
        limit = {"requests": self._requests, "input-tokens": self._input, "output-tokens": self._output}[name].limit
        error = self._refusal(name, limit, retry_after, now)
        error.headers[f"anthropic-ratelimit-{name}-remaining"] = "0"
        error.headers[f"anthropic-ratelimit-{name}-reset"] = rfc3339(math.ceil(now + 60))
        return error

    def _refusal(self, name: str, limit: int, retry_after: float, now: float) -> ApiError:
        message = (
            f"This request would exceed your organization's rate limit of {limit:,} {name.replace('-', ' ')} per "
            "minute. For details, refer to: https://docs.claude.com/en/api/rate-limits."
        )
        headers = {**self.headers(now), "retry-after": f"{retry_after:g}"}
        return ApiError(429, "rate_limit_error", message, headers=headers)

    def headers(self, now: float) -> dict[str, str]:
        """The `anthropic-ratelimit-*` headers; `tokens` is the scarcer of the two token limits."""
        requests, incoming = self._requests.shown(now, 1), self._input.shown(now, 1000)
        outgoing = self._output.shown(now, 1000)
        scarce = incoming if self._input.share(now) < self._output.share(now) else outgoing
        return dict(zip(_NAMES, requests + incoming + outgoing + scarce, strict=True))


class RateLimits(Protocol):
    """What one key may use of one model, as its API counts it."""

    def admit(self, input_tokens: int, now: float) -> None:
        """Count a request and its input, or raise the 429 of the limit in the way."""

    def produced(self, output_tokens: int, now: float) -> None:
        """Count output as it is made."""

    def pretend(self, name: str, retry_after: float, now: float) -> ApiError:
        """The 429 for the limit `name`, although something is left of it."""

    def headers(self, now: float) -> dict[str, str]:
        """The rate-limit headers of an answer."""


class Limiter:
    """All pools, made when first needed; `limits` overrides the tier's numbers for every class."""

    def __init__(self, limits: Limits | None) -> None:
        self._limits = limits
        self._pools: dict[tuple[str, str], Pool] = {}

    def pool(self, key: str, model: Model, now: float) -> Pool:
        """The pool that `key` has for the class of `model`."""
        found = self._pools.get((key, model.limit_class))
        if found is None:
            tier = START_TIER_LARGE if model.line in ("fable", "mythos") else START_TIER
            found = self._pools[key, model.limit_class] = Pool(self._limits or tier, now)
        return found
