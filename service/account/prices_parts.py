"""A call's usage taken apart for its price, and the costs of the parts put together again."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from service.record import Certainty, Cost, Usage


def without_inner(usage: Usage) -> Usage:
    """What is left of a call's tokens when those of the inferences within it are taken out."""

    def left(name: str) -> int | None:
        whole: int | None = getattr(usage, name)
        inside = sum(getattr(inner.usage, name) or 0 for inner in usage.inner)
        return None if whole is None else max(0, whole - inside)

    return replace(
        usage,
        input_tokens=left("input_tokens"),
        output_tokens=left("output_tokens"),
        cache_read_tokens=left("cache_read_tokens"),
        cache_write_tokens=left("cache_write_tokens"),
        cache_write_1h_tokens=left("cache_write_1h_tokens"),
        inner=(),
    )


def added(costs: Iterable[Cost]) -> Cost:
    """All of them, each with a price; `exact` if every one is."""
    parts = list(costs)
    sure = all(cost.certainty is Certainty.EXACT for cost in parts)
    return Cost(
        Certainty.EXACT if sure else Certainty.ESTIMATED,
        input=sum(cost.input for cost in parts),
        cache_read=sum(cost.cache_read for cost in parts),
        cache_write=sum(cost.cache_write for cost in parts),
        output=sum(cost.output for cost in parts),
        tools=sum(cost.tools for cost in parts),
    )
