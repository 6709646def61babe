"""What an error means: whose fault it is and which limit said no.

Statuses are the same in all APIs; the rest here is Claude's. Source: its pages on errors and limits.
"""

from __future__ import annotations

from collections.abc import Mapping

from observability.catalog import Outcome


def outcome_of_error(kind: str) -> Outcome:
    """Outcome of an `error` event inside a stream, by its type."""
    match kind:
        case "overloaded_error":
            return Outcome.UPSTREAM_OVERLOADED
        case "rate_limit_error":
            return Outcome.UPSTREAM_429
        case "timeout_error":
            return Outcome.UPSTREAM_TIMEOUT
        case "invalid_request_error" | "not_found_error" | "request_too_large":
            return Outcome.CLIENT_INVALID
        case _:
            return Outcome.UPSTREAM_ERROR


OVERLOADED = frozenset((529,))
"""Claude's status for being overloaded; other APIs say 503."""


def outcome_of_status(status: int, kind: str | None, overloaded: frozenset[int] = OVERLOADED) -> Outcome:
    """Outcome of an HTTP error answer. 401 and 403 are the client's only if its own credential went up: see pipeline."""
    if kind == "overloaded_error" or status in overloaded:
        return Outcome.UPSTREAM_OVERLOADED
    match status:
        case 429:
            return Outcome.UPSTREAM_429
        case 401 | 403:
            return Outcome.CLIENT_AUTH
        case 402:
            return Outcome.UPSTREAM_ERROR
        case 408 | 504:
            return Outcome.UPSTREAM_TIMEOUT
        case _:
            return Outcome.CLIENT_INVALID if status < 500 else Outcome.UPSTREAM_ERROR


_SPEND = frozenset({"enforced_spend_limit_reached", "contract_spend_limit_reached"})


def limit_of_429(headers: Mapping[str, str], error_code: str) -> str:
    """Which limit said 429, one of `catalog.LIMITS_429`: by `error.details.error_code`, else the exhausted bucket."""
    if error_code in _SPEND:
        return "spend"
    if error_code == "ramp_limit_exceeded":
        return "acceleration"
    for dimension in ("requests", "input-tokens", "output-tokens"):
        if headers.get(f"anthropic-ratelimit-{dimension}-remaining") == "0":
            return dimension.replace("-", "_")
    for dimension in ("input-tokens", "output-tokens"):
        if headers.get(f"anthropic-fast-{dimension}-remaining") == "0":
            return dimension.replace("-", "_")
    return "unknown"
