"""What OpenAI's answers say of their usage: counts, tokens that are not text, and tools that are paid by the piece.

Source: the SDK's types (openai 3.54.0). Cached tokens are part of the input here and reasoning part of the output, as in
the GenAI conventions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from service.record import Usage
from service.upstream.reading import Count


class _Retention(msgspec.Struct):
    ttl_12h_tokens: Count | None = None


class _InputDetails(msgspec.Struct):
    cached_tokens: Count | None = None
    cache_write_tokens: Count | None = None
    cache_write_tokens_details: _Retention | None = None
    audio_tokens: Count | None = None
    image_tokens: Count | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: Count | None = None
    audio_tokens: Count | None = None


class Said(msgspec.Struct):
    """Of both APIs: the first four fields are chat's, the others the responses'."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


class _WebSearch(msgspec.Struct):
    num_requests: Count = 0


class ToolUsage(msgspec.Struct):
    """What a response says of tools that OpenAI ran; searches that are billed at a discount are not in it."""

    web_search: _WebSearch | None = None


class Tools(msgspec.Struct):
    """What tools did within an answer: searches to be paid, and whether any was used that is paid otherwise, or looped."""

    searches: int | None = None
    used: bool = False
    looped: bool = False


_PAID = frozenset(
    ("web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "shell_call")
)
"""By the piece, the session, or at an image model's price."""
_LOOPED = _PAID | {"mcp_call", "tool_search_call"}
"""OpenAI calls the model again with what they gave."""


def tools(items: Iterable[tuple[str, Any]], usage: ToolUsage | None) -> Tools:
    """Of a response: its output's items, each by type and action, and what it says itself of tools."""
    found = list(items)
    kinds = {kind for kind, _ in found}
    counted = sum(kind == "web_search_call" and _searches(action) for kind, action in found)
    if usage is not None and usage.web_search is not None:
        counted = usage.web_search.num_requests
    return Tools(counted or None, bool(kinds & _PAID) or counted > 0, bool(kinds & _LOOPED))


def _searches(action: Any) -> bool:
    """And does not merely open a page."""
    return not isinstance(action, dict) or action.get("type", "search") == "search"


def total(usage: Said | None, did: Tools) -> Usage | None:
    """The GenAI conventions' usage."""
    if usage is None:
        return None
    given = (usage.prompt_tokens_details or usage.input_tokens_details) or _InputDetails()
    made = (usage.completion_tokens_details or usage.output_tokens_details) or _OutputDetails()
    kept = given.cache_write_tokens_details
    media = (
        ("input_audio", given.audio_tokens),
        ("input_image", given.image_tokens),
        ("output_audio", made.audio_tokens),
    )
    # How much of what a cache gave is audio is not told, nor is the price of what a cache keeps for twelve hours.
    unsure = bool((given.audio_tokens and given.cached_tokens) or (kept is not None and kept.ttl_12h_tokens))
    return Usage(
        input_tokens=usage.prompt_tokens if usage.prompt_tokens is not None else usage.input_tokens,
        output_tokens=usage.completion_tokens if usage.completion_tokens is not None else usage.output_tokens,
        cache_read_tokens=given.cached_tokens,
        cache_write_tokens=given.cache_write_tokens,
        reasoning_tokens=made.reasoning_tokens,
        web_searches=did.searches,
        media=tuple((kind, tokens) for kind, tokens in media if tokens),
        summed=did.looped,
        unsure=unsure or did.used,
    )
