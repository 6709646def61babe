"""What Gemini's answers say of their usage: counts, tokens that are not text, and searches that are paid by the piece.

Source: the SDK's types (google-genai 3.4.0). The prompt's count includes what was cached; what tools put into it is counted
beside it, as thoughts are beside the candidates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from service.record import Usage
from service.upstream.reading import Count


class _Modality(msgspec.Struct, rename="camel"):
    modality: str = ""
    token_count: Count = 0


class Said(msgspec.Struct, rename="camel"):
    """`usageMetadata`."""

    prompt_token_count: Count | None = None
    cached_content_token_count: Count | None = None
    candidates_token_count: Count | None = None
    thoughts_token_count: Count | None = None
    tool_use_prompt_token_count: Count | None = None
    prompt_tokens_details: list[_Modality] | None = None
    cache_tokens_details: list[_Modality] | None = None
    candidates_tokens_details: list[_Modality] | None = None
    tool_use_prompt_tokens_details: list[_Modality] | None = None
    service_tier: str | None = None


class Grounding(msgspec.Struct, rename="camel"):
    """`groundingMetadata`: what was looked up for a candidate. Taken as it comes: it must not make an answer invalid."""

    web_search_queries: Any = None
    image_search_queries: Any = None
    grounding_chunks: Any = None
    google_maps_widget_context_token: Any = None

    @property
    def looked_up(self) -> bool:
        """Whether anything was, that may be paid for."""
        found = (self.web_search_queries, self.image_search_queries, self.grounding_chunks)
        return any(found) or bool(self.google_maps_widget_context_token)

    @property
    def queries(self) -> int:
        """How many went to the search engine."""
        asked = self.web_search_queries
        return sum(map(bool, asked)) if isinstance(asked, list) else 0


def total(usage: Said, groundings: Iterable[Grounding], model: str | None) -> Usage:
    """The GenAI conventions' usage. So many searches a day or month cost nothing, and whether one did is not told: they are
    counted, and the usage is not sure."""
    thoughts, tools = usage.thoughts_token_count, usage.tool_use_prompt_token_count
    looked_up = [grounding for grounding in groundings if grounding.looked_up]
    queries = sum(grounding.queries for grounding in looked_up)
    if (model or "").startswith("gemini-2"):
        queries = min(queries, 1)  # each prompt with one was paid for; since Gemini 3 each query is
    cached = _by_kind(usage.cache_tokens_details)
    given = _by_kind(usage.prompt_tokens_details) + _by_kind(usage.tool_use_prompt_tokens_details)
    media = {
        **{f"input_{kind}": tokens for kind, tokens in (given - cached).items()},
        **{f"cache_read_{kind}": tokens for kind, tokens in cached.items()},
        **{f"output_{kind}": tokens for kind, tokens in _by_kind(usage.candidates_tokens_details).items()},
    }
    mixed = bool(usage.cached_content_token_count and given["audio"] and usage.cache_tokens_details is None)
    return Usage(
        input_tokens=_sum(usage.prompt_token_count, tools),
        output_tokens=_sum(usage.candidates_token_count, thoughts),
        cache_read_tokens=usage.cached_content_token_count,
        reasoning_tokens=thoughts,
        web_searches=queries or None,
        media=tuple(media.items()),
        summed=bool(tools),
        unsure=mixed or bool(looked_up),
    )


def _by_kind(details: list[_Modality] | None) -> Counter[str]:
    """Tokens by modality, those whose price may differ from text's; a document is text."""
    found: Counter[str] = Counter()
    for each in details or ():
        kind = each.modality.lower()
        if kind in ("audio", "image", "video") and each.token_count:
            found[kind] += each.token_count
    return found


def _sum(*counts: int | None) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
