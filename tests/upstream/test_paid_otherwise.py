"""What OpenAI and Gemini bill otherwise than as text: audio, images, searches, tools, tiers. Costs by hand, from their
price pages (dollars per million tokens, or per thousand searches)."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from observability.catalog import Outcome
from service.account.prices import Prices
from service.record import Answered, Certainty
from service.upstream.gemini import Gemini
from service.upstream.openai import OpenAI

NOVEMBER = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()
EXACT, ESTIMATED = Certainty.EXACT, Certainty.ESTIMATED
OPENAI, GEMINI = OpenAI(), Gemini()


@pytest.fixture(scope="module")
def prices() -> Prices:
    return Prices()


def nanos(*products: tuple[int, str], searches: str = "0") -> int:
    tokens = sum((Decimal(count) * Decimal(dollars) * 1000 for count, dollars in products), Decimal(0))
    return int(tokens + Decimal(searches) * 10**6)


def of_body(provider: Any, body: dict[str, Any]) -> Answered:
    reader = provider.whole_reader(200, inference=True, encoding="")
    reader.feed(json.dumps(body).encode())
    assert reader.ended() == (Outcome.OK, None)
    answered = reader.answered
    assert isinstance(answered, Answered)
    return answered


def of_events(provider: Any, *events: dict[str, Any] | str) -> Answered:
    reader = provider.stream_reader(lambda: 0.0, lambda: None, "text/event-stream", "")
    for each in events:
        reader.feed(b"data: " + (each if isinstance(each, str) else json.dumps(each)).encode() + b"\n\n")
    assert reader.ended() == (Outcome.OK, None)
    answered = reader.answered
    assert isinstance(answered, Answered)
    return answered


def chat(usage: dict[str, Any], model: str = "gpt-5.5", stream: bool = False, **message: Any) -> Answered:
    """A chat completion, whole or streamed."""
    head = {"id": "c", "model": model}
    if not stream:
        choices = [{"message": {"content": "x"} | message, "finish_reason": "stop"}]
        return of_body(OPENAI, head | {"object": "chat.completion", "choices": choices, "usage": usage})
    chunk = head | {"choices": [{"delta": {"content": "x"} | message, "finish_reason": "stop"}]}
    return of_events(OPENAI, chunk, head | {"choices": [], "usage": usage}, "[DONE]")


def response(
    output: list[dict[str, Any]], stream: bool = False, usage: dict[str, Any] | None = None, **more: Any
) -> Answered:
    """A response, whole or streamed."""
    usage = usage or {"input_tokens": 1000, "output_tokens": 100}
    body = {
        "id": "r",
        "object": "response",
        "model": "gpt-5.5",
        "status": "completed",
        "output": output,
        "usage": usage,
    } | more
    return of_events(OPENAI, {"type": "response.completed", "response": body}) if stream else of_body(OPENAI, body)


def gemini(usage: dict[str, Any], model: str = "gemini-3.8-flash", stream: bool = False, **candidate: Any) -> Answered:
    """A generateContent answer, whole or streamed; in a stream the last event has neither grounding nor text."""
    ends = {"index": 0, "content": {"parts": [{"text": "x"}]}, "finishReason": "STOP"}
    head = {"modelVersion": model}
    if not stream:
        return of_body(GEMINI, head | {"candidates": [ends | candidate], "usageMetadata": usage})
    first = head | {"candidates": [{"index": 0, "content": {"parts": [{"text": "x"}]}} | candidate]}
    return of_events(GEMINI, first, head | {"candidates": [ends | {"groundingMetadata": {}}], "usageMetadata": usage})


def cost(prices: Prices, provider: str, answered: Answered) -> tuple[Certainty, int]:
    assert answered.usage is not None
    assert answered.model is not None
    found = prices.cost(provider, answered.model, answered.usage, answered.variant, NOVEMBER)
    return found.certainty, found.total


BOTH = pytest.mark.parametrize("stream", [False, True])


@BOTH
def test_audio_of_openai_costs_as_audio(prices: Prices, stream: bool) -> None:
    usage = {
        "prompt_tokens": 1000, "completion_tokens": 500,
        "prompt_tokens_details": {"audio_tokens": 400, "cached_tokens": 0, "text_tokens": 600},
        "completion_tokens_details": {"audio_tokens": 300, "reasoning_tokens": 0, "text_tokens": 200},
    }  # fmt: skip
    answered = chat(usage, "gpt-audio", stream)
    assert answered.usage is not None
    assert (answered.usage.input_tokens, answered.usage.output_tokens) == (1000, 500)
    assert cost(prices, "openai", answered) == (EXACT, nanos((600, "2.5"), (400, "32"), (200, "10"), (300, "64")))


def test_audio_without_a_rate_or_of_which_some_was_cached_is_an_estimate(prices: Prices) -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"audio_tokens": 4, "cached_tokens": 0},
    }
    assert cost(prices, "openai", chat(usage))[0] is ESTIMATED
    usage["prompt_tokens_details"] = {"audio_tokens": 4, "cached_tokens": 6}
    assert cost(prices, "openai", chat(usage, "gpt-audio"))[0] is ESTIMATED
    usage["prompt_tokens_details"] = {"audio_tokens": 0, "cached_tokens": 6, "image_tokens": 3}
    assert cost(prices, "openai", chat(usage))[0] is EXACT


@pytest.mark.parametrize(("kept", "certainty"), [(0, EXACT), (5, ESTIMATED)])
def test_a_cache_kept_for_twelve_hours_has_no_price(prices: Prices, kept: int, certainty: Certainty) -> None:
    details = {
        "cached_tokens": 0,
        "cache_write_tokens": 8,
        "cache_write_tokens_details": {"ttl_30m_tokens": 8 - kept, "ttl_12h_tokens": kept},
    }
    usage = {"input_tokens": 10, "output_tokens": 5, "input_tokens_details": details}
    answered = response([], usage=usage, model="gpt-6.1-terra")
    assert cost(prices, "openai", answered) == (certainty, nanos((2, "1"), (8, "1.25"), (5, "5")))


TEXT = [(1000, "5"), (100, "30")]
SEARCH = {"type": "web_search_call", "action": {"type": "search", "query": "x"}}
OPEN = {"type": "web_search_call", "action": {"type": "open_page", "url": "https://example.org"}}


@BOTH
@pytest.mark.parametrize(
    ("output", "told", "certainty", "searches"),
    [
        ([{"type": "message", "content": []}, {"type": "reasoning"}, {"type": "function_call"}], None, EXACT, 0),
        ([SEARCH, OPEN, SEARCH], None, ESTIMATED, 2),
        ([{"type": "web_search_call"}], None, ESTIMATED, 1),
        # What it says itself of searches to be paid goes first.
        ([SEARCH, SEARCH, SEARCH], 2, ESTIMATED, 2),
        ([], 0, EXACT, 0),
        ([{"type": "file_search_call"}], 0, ESTIMATED, 0),
        ([{"type": "code_interpreter_call"}], None, ESTIMATED, 0),
        ([{"type": "image_generation_call"}], None, ESTIMATED, 0),
        ([{"type": "mcp_call"}], None, EXACT, 0),
    ],
)  # fmt: skip
def test_tools_that_openai_runs_make_an_estimate_with_the_searches_that_are_told(
    prices: Prices, stream: bool, output: list[dict[str, Any]], told: int | None, certainty: Certainty, searches: int
) -> None:
    more = (
        {} if told is None else {"tool_usage": {"web_search": {"num_requests": told}, "image_gen": {"total_tokens": 0}}}
    )
    answered = response(output, stream, **more)
    assert cost(prices, "openai", answered) == (certainty, nanos(*TEXT, searches=str(10 * searches)))


@BOTH
def test_a_loop_of_tools_beyond_the_long_context_edge_is_an_estimate(prices: Prices, stream: bool) -> None:
    usage = {"input_tokens": 300_000, "output_tokens": 100}
    assert cost(prices, "openai", response([{"type": "mcp_call"}], stream, usage)) == (
        ESTIMATED, nanos((300_000, "10"), (100, "45")),
    )  # fmt: skip
    assert cost(prices, "openai", response([], stream, usage))[0] is EXACT


@BOTH
def test_a_chat_that_names_sources_has_searched_for_a_fee(prices: Prices, stream: bool) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    source = {"type": "url_citation", "url_citation": {"url": "https://example.org"}}
    assert cost(prices, "openai", chat(usage, stream=stream, annotations=[source]))[0] is ESTIMATED
    assert cost(prices, "openai", chat(usage, stream=stream, annotations=[]))[0] is EXACT
    assert cost(prices, "openai", chat(usage, "gpt-5-search-api", stream))[0] is ESTIMATED


def tokens(**counts: int) -> list[dict[str, Any]]:
    return [{"modality": kind.upper(), "tokenCount": count} for kind, count in counts.items()]


@BOTH
def test_audio_of_gemini_costs_as_audio_and_what_was_cached_of_it_as_cached_audio(prices: Prices, stream: bool) -> None:
    usage = {
        "promptTokenCount": 1000, "cachedContentTokenCount": 300, "candidatesTokenCount": 100, "thoughtsTokenCount": 50,
        "promptTokensDetails": tokens(text=200, audio=700, image=100),
        "cacheTokensDetails": tokens(text=100, audio=200),
        "candidatesTokensDetails": tokens(text=100),
    }  # fmt: skip
    answered = gemini(usage, "gemini-2.5-flash", stream)
    assert answered.usage is not None
    assert (answered.usage.input_tokens, answered.usage.cache_read_tokens) == (1000, 300)
    assert cost(prices, "gcp.gemini", answered) == (
        EXACT, nanos((200, "0.30"), (500, "1"), (100, "0.03"), (200, "0.10"), (150, "2.50")),
    )  # fmt: skip


def test_an_image_that_gemini_makes_costs_as_an_image(prices: Prices) -> None:
    usage = {"promptTokenCount": 300, "candidatesTokenCount": 1300, "candidatesTokensDetails": tokens(image=1290)}
    made = cost(prices, "gcp.gemini", gemini(usage, "gemini-2.5-flash-image"))
    assert made == (EXACT, nanos((300, "0.30"), (10, "2.50"), (1290, "30")))


@pytest.mark.parametrize(
    ("details", "certainty"),
    [
        ({"promptTokensDetails": tokens(audio=5, text=5)}, ESTIMATED),
        ({"promptTokensDetails": tokens(document=5, image=5, video=1)}, EXACT),
        ({"toolUsePromptTokensDetails": tokens(audio=5), "toolUsePromptTokenCount": 5}, ESTIMATED),
        ({"candidatesTokensDetails": tokens(audio=5)}, ESTIMATED),
        ({"candidatesTokensDetails": tokens(image=5)}, ESTIMATED),
        ({"promptTokensDetails": []}, EXACT),
    ],
)
def test_audio_and_images_of_a_model_without_a_rate_for_them_are_an_estimate(
    prices: Prices, details: dict[str, Any], certainty: Certainty
) -> None:
    usage = {"promptTokenCount": 10, "candidatesTokenCount": 10} | details
    assert cost(prices, "gcp.gemini", gemini(usage))[0] is certainty


def test_how_much_of_a_cache_was_audio_if_nobody_says_is_an_estimate(prices: Prices) -> None:
    usage = {
        "promptTokenCount": 10,
        "cachedContentTokenCount": 4,
        "candidatesTokenCount": 1,
        "promptTokensDetails": tokens(audio=6),
    }
    assert cost(prices, "gcp.gemini", gemini(usage, "gemini-2.5-flash"))[0] is ESTIMATED


USAGE = {"promptTokenCount": 1000, "candidatesTokenCount": 100}


@BOTH
@pytest.mark.parametrize(
    ("model", "grounding", "certainty", "dollars"),
    [
        ("gemini-3.8-flash", None, EXACT, "0"),
        ("gemini-3.8-flash", {}, EXACT, "0"),
        ("gemini-3.8-flash", {"webSearchQueries": ["a", "b", ""]}, ESTIMATED, "28"),
        ("gemini-2.5-flash", {"webSearchQueries": ["a", "b"]}, ESTIMATED, "35"),
        ("gemini-3.8-flash", {"groundingChunks": [{"maps": {"uri": "x"}}]}, ESTIMATED, "0"),
        ("gemini-3.8-flash", {"imageSearchQueries": ["a"]}, ESTIMATED, "0"),
        ("gemini-3.8-flash", {"webSearchQueries": "tomorrow"}, ESTIMATED, "0"),
    ],
)
def test_what_gemini_looked_up_is_an_estimate_at_the_list_price_of_its_searches(
    prices: Prices, stream: bool, model: str, grounding: dict[str, Any] | None, certainty: Certainty, dollars: str
) -> None:
    more = {} if grounding is None else {"groundingMetadata": grounding}
    rates = ("0.75", "3.75") if model == "gemini-3.8-flash" else ("0.30", "2.50")
    expected = nanos((1000, rates[0]), (100, rates[1]), searches=dollars)
    assert cost(prices, "gcp.gemini", gemini(USAGE, model, stream, **more)) == (certainty, expected)


@BOTH
@pytest.mark.parametrize(
    ("model", "tier", "certainty", "rates"),
    [
        ("gemini-3.8-flash", "standard", EXACT, ("0.75", "3.75")),
        ("gemini-3.8-flash", "unspecified", EXACT, ("0.75", "3.75")),
        ("gemini-3.8-flash-lite-tts", "flex", EXACT, ("0.25", "3")),
        ("gemini-3.8-flash-lite-tts", "priority", EXACT, ("0.90", "10.80")),
        # Not in the list by model: half, and eight tenths more, as everywhere.
        ("gemini-3.8-flash", "flex", ESTIMATED, ("0.375", "1.875")),
        ("gemini-3.8-flash", "priority", ESTIMATED, ("1.35", "6.75")),
        ("gemini-3.8-flash", "gold", ESTIMATED, ("0.75", "3.75")),
    ],
)
def test_geminis_tier_moves_the_price(
    prices: Prices, stream: bool, model: str, tier: str, certainty: Certainty, rates: tuple[str, str]
) -> None:
    answered = gemini(USAGE | {"serviceTier": tier}, model, stream)
    assert cost(prices, "gcp.gemini", answered) == (certainty, nanos((1000, rates[0]), (100, rates[1])))


@BOTH
def test_the_tier_by_which_gemini_answered_may_stand_in_the_headers_alone(prices: Prices, stream: bool) -> None:
    answered = gemini(USAGE, "gemini-3.8-flash-lite-tts", stream)
    assert GEMINI.told(answered, {"content-type": "application/json"}) is answered
    for tier, rates in (("flex", ("0.25", "3")), ("priority", ("0.90", "10.80")), ("standard", ("0.50", "6"))):
        told = GEMINI.told(answered, {"x-gemini-service-tier": tier})
        assert cost(prices, "gcp.gemini", told) == (EXACT, nanos((1000, rates[0]), (100, rates[1])))
    assert OPENAI.told(answered, {"x-gemini-service-tier": "flex"}) is answered
