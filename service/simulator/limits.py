"""Rate limits as the API keeps them: token buckets per key and model class, refilled continuously.

Source of the rules and numbers: the Rate limits page.
"""

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache

from service.simulator.config import Limits
from service.simulator.errors import ApiError
from service.simulator.models import Model

START_TIER = Limits(requests=1_000, input_tokens=2_000_000, output_tokens=400_000)
START_TIER_LARGE = Limits(requests=1_000, input_tokens=500_000, output_tokens=100_000)  # Fable and Mythos


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
        self._level = min(float(self.limit), self._level + (now - self._updated) * self._rate)
        self._updated = now
        return self._level

    def take(self, amount: float, now: float) -> None:
        """Use `amount`."""
        self._level = self.level(now) - amount

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` will be there; 0 when it is there now."""
        return max(0.0, (min(amount, self.limit) - self.level(now)) / self._rate)

    def full_at(self, now: float) -> float:
        """When the bucket will be full again, in seconds since the epoch."""
        return now + (self.limit - self.level(now)) / self._rate


class Pool:
    """The three buckets that one key has for one class of models."""

    def __init__(self, limits: Limits, now: float) -> None:
        self._buckets = {
            "requests": Bucket(limits.requests, now),
            "input-tokens": Bucket(limits.input_tokens, now),
            "output-tokens": Bucket(limits.output_tokens, now),
        }

    def admit(self, input_tokens: int, now: float) -> None:
        """Count a request and its uncached input, or raise the 429 that names the limit in the way.

        Output is not reserved: a request may start while any output tokens are left.
        """
        wanted = {"requests": 1, "input-tokens": input_tokens, "output-tokens": 1}
        for name, bucket in self._buckets.items():
            seconds = bucket.wait(wanted[name], now)
            if seconds > 0:
                raise self.refusal(name, math.ceil(seconds), now)
        self._buckets["requests"].take(1, now)
        self._buckets["input-tokens"].take(input_tokens, now)

    def produced(self, output_tokens: int, now: float) -> None:
        """Count output as it is made."""
        self._buckets["output-tokens"].take(output_tokens, now)

    def refusal(self, name: str, retry_after: float, now: float, *, pretend: bool = False) -> ApiError:
        """The 429 for the limit `name`; `pretend` shows it as used up although it is not."""
        unit = name.replace("-", " ")
        message = (
            f"This request would exceed your organization's rate limit of {self._buckets[name].limit:,} {unit} per "
            "minute. For details, refer to: https://docs.claude.com/en/api/rate-limits."
        )
        headers = {**self.headers(now), "retry-after": f"{retry_after:g}"}
        if pretend:
            headers[f"anthropic-ratelimit-{name}-remaining"] = "0"
            headers[f"anthropic-ratelimit-{name}-reset"] = rfc3339(math.ceil(now + 60))
        return ApiError(429, "rate_limit_error", message, headers=headers)

    def headers(self, now: float) -> dict[str, str]:
        """The `anthropic-ratelimit-*` headers; `tokens` is the scarcer of the two token limits."""
        headers: dict[str, str] = {}
        for name, bucket in self._buckets.items():
            headers.update(_lines(name, bucket, now))
        tokens = (self._buckets["input-tokens"], self._buckets["output-tokens"])
        headers.update(_lines("tokens", min(tokens, key=lambda bucket: bucket.level(now) / bucket.limit), now))
        return headers


def _lines(name: str, bucket: Bucket, now: float) -> Iterable[tuple[str, str]]:
    left = max(0.0, bucket.level(now))
    whole = int(left) if name == "requests" else round(left / 1000) * 1000
    prefix = f"anthropic-ratelimit-{name}-"
    yield prefix + "limit", str(bucket.limit)
    yield prefix + "remaining", str(min(whole, bucket.limit))
    yield prefix + "reset", rfc3339(math.ceil(bucket.full_at(now)))


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
