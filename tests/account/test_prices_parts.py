"""Tokens with a price of their own, inferences within a call, and what nobody can be sure of: each figure by hand."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from msgspec.structs import replace

from service.account import prices_override
from service.account.prices import UNPRICED, Prices
from service.record import Certainty, Cost, Inner, Usage, Variant

NOVEMBER = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()
EXACT, ESTIMATED = Certainty.EXACT, Certainty.ESTIMATED
Products = list[tuple[int, str]]


@pytest.fixture(scope="module")
def prices() -> Prices:
    return Prices()


def nanos(*products: tuple[int, str]) -> int:
    """Tokens times dollars per million, summed: a token at $1 per million is 1,000 nano-dollars."""
    total = sum((Decimal(tokens) * Decimal(dollars) * 1000 for tokens, dollars in products), Decimal(0))
    assert total == int(total)
    return int(total)


@pytest.mark.parametrize(
    ("provider", "model", "usage", "input_", "read", "output"),
    [
        # Dollars per million of text and audio: gpt-audio 2.5/32 in, 10/64 out; mini 0.6/10, 2.4/20.
        (
            "openai", "gpt-audio", Usage(1000, 500, media=(("input_audio", 400), ("output_audio", 300))),
            [(600, "2.5"), (400, "32")], [], [(200, "10"), (300, "64")],
        ),
        (
            "openai", "gpt-audio-mini", Usage(10, 20, media=(("output_audio", 20),)),
            [(10, "0.6")], [], [(20, "20")],
        ),
        # gemini-2.5-flash: text 0.30, audio 1, cached text 0.03, cached audio 0.10, out 2.50.
        (
            "gcp.gemini", "gemini-2.5-flash",
            Usage(1000, 100, cache_read_tokens=300, media=(("input_audio", 500), ("cache_read_audio", 200))),
            [(200, "0.30"), (500, "1")], [(100, "0.03"), (200, "0.10")], [(100, "2.50")],
        ),
        # gemini-2.5-flash-image: an image of 1,290 tokens at 30, text at 2.50; images that go in cost as text.
        (
            "gcp.gemini", "gemini-2.5-flash-image",
            Usage(300, 1300, media=(("input_image", 258), ("output_image", 1290))),
            [(300, "0.30")], [], [(10, "2.50"), (1290, "30")],
        ),
        # gpt-realtime has a rate for images that go in: 5, text 4.
        (
            "openai", "gpt-realtime", Usage(100, 0, media=(("input_image", 60),)),
            [(40, "4"), (60, "5")], [], [],
        ),
    ],
)  # fmt: skip
def test_audio_and_images_cost_their_own_rate_where_the_list_has_one(
    prices: Prices, provider: str, model: str, usage: Usage, input_: Products, read: Products, output: Products
) -> None:
    cost = prices.cost(provider, model, usage, Variant(), NOVEMBER)
    assert cost == Cost(EXACT, input=nanos(*input_), cache_read=nanos(*read), output=nanos(*output))


def test_audio_in_a_batch_costs_half_and_cached_audio_what_it_always_does(prices: Prices) -> None:
    usage = Usage(1000, 0, cache_read_tokens=300, media=(("input_audio", 500), ("cache_read_audio", 200)))
    cost = prices.cost("gcp.gemini", "gemini-2.5-flash", usage, Variant("batch"), NOVEMBER)
    expected = nanos((200, "0.15"), (500, "0.50")), nanos((100, "0.03"), (200, "0.10"))
    assert (cost.certainty, cost.input, cost.cache_read) == (EXACT, *expected)


@pytest.mark.parametrize(
    ("provider", "model", "kind", "sure"),
    [
        ("openai", "gpt-4o-audio-preview", "input_audio", False),
        ("openai", "gpt-4o-audio-preview", "output_audio", False),
        ("gcp.gemini", "gemini-3.8-flash", "input_audio", False),
        ("gcp.gemini", "gemini-3.8-flash", "cache_read_audio", False),
        ("gcp.gemini", "gemini-3.8-flash", "output_image", False),
        ("gcp.gemini", "gemini-3.8-flash", "input_image", True),
        ("gcp.gemini", "gemini-3.8-flash", "input_video", True),
    ],
)
def test_where_the_list_has_no_rate_text_stands_in_and_that_is_an_estimate_for_what_never_costs_as_text(
    prices: Prices, provider: str, model: str, kind: str, sure: bool
) -> None:
    usage = Usage(1000, 100, cache_read_tokens=10)
    plain = prices.cost(provider, model, usage, Variant(), NOVEMBER)
    cost = prices.cost(provider, model, replace(usage, media=((kind, 5),)), Variant(), NOVEMBER)
    assert plain.certainty is EXACT
    assert cost == replace(plain, certainty=EXACT if sure else ESTIMATED)


def test_none_of_a_kind_is_no_doubt(prices: Prices) -> None:
    usage = Usage(10, 10, media=(("input_audio", 0), ("output_audio", 0)))
    assert prices.cost("openai", "gpt-5.5", usage, Variant(), NOVEMBER).certainty is EXACT


def test_more_audio_than_tokens_never_makes_a_cost_negative(prices: Prices) -> None:
    usage = Usage(10, 10, media=(("input_audio", 500), ("output_audio", 500)))
    cost = prices.cost("openai", "gpt-audio", usage, Variant(), NOVEMBER)
    assert (cost.input, cost.output) == (nanos((10, "32")), nanos((10, "64")))


def test_an_owners_price_may_tell_what_audio_costs(tmp_path: Path) -> None:
    rates = {"input": 1, "output": 2, "input_audio": 30, "cache_read_audio": 3, "output_audio": 40, "output_image": 50}
    (tmp_path / "prices.json").write_text(json.dumps({"openai/mine": rates}))
    usage = Usage(100, 30, 20, media=(("input_audio", 40), ("cache_read_audio", 20), ("output_audio", 10)))
    cost = Prices(prices_override.load(tmp_path / "prices.json")).cost("openai", "mine", usage, Variant(), NOVEMBER)
    parts = nanos((40, "1"), (40, "30")), nanos((20, "3")), nanos((20, "2"), (10, "40"))
    assert cost == Cost(EXACT, input=parts[0], cache_read=parts[1], output=parts[2])


COMPACTION = Inner(
    Usage(180_000, 3_500, cache_read_tokens=30_000, cache_write_tokens=10_000, cache_write_1h_tokens=4_000)
)
WITH_COMPACTION = Usage(203_000, 4_500, 30_000, 10_000, cache_write_1h_tokens=4_000, inner=(COMPACTION,))


def test_a_compaction_is_priced_as_an_inference_of_the_calls_model(prices: Prices) -> None:
    # Opus 5.5: 4 in, 20 out, 0.20 read, 5 and 8 written. The call itself: 23,000 in, 1,000 out.
    cost = prices.cost("anthropic", "claude-opus-5-5", WITH_COMPACTION, Variant(), NOVEMBER)
    assert cost == Cost(
        EXACT,
        input=nanos((23_000, "4"), (140_000, "4")),
        cache_read=nanos((30_000, "0.20")),
        cache_write=nanos((6_000, "5"), (4_000, "8")),
        output=nanos((1_000, "20"), (3_500, "20")),
    )


def test_each_inference_within_a_call_is_in_the_band_of_its_own_length(prices: Prices) -> None:
    # Haiku 5.5 costs five times as much above 100,000 tokens: the compaction was that long, the call was not.
    cost = prices.cost("anthropic", "claude-haiku-5-5", WITH_COMPACTION, Variant(), NOVEMBER)
    assert cost == Cost(
        EXACT,
        input=nanos((23_000, "0.10"), (140_000, "0.50")),
        cache_read=nanos((30_000, "0.05")),
        cache_write=nanos((6_000, "0.625"), (4_000, "1.00")),
        output=nanos((1_000, "0.50"), (3_500, "2.50")),
    )


ADVICE = Usage(1_000, 200, cache_read_tokens=400)


@pytest.mark.parametrize(
    ("variant", "certainty", "factor"),
    [
        (Variant(), EXACT, "1"),
        (Variant(geo="us"), EXACT, "1.1"),
        (Variant("batch"), ESTIMATED, "0.5"),
        (Variant(speed="fast"), ESTIMATED, "2"),
    ],
)
def test_an_advisor_costs_its_own_models_rates(
    prices: Prices, variant: Variant, certainty: Certainty, factor: str
) -> None:
    # Fable 5.2 calls, Opus 5.5 advises. Tier and speed are the call's: whether they are the advisor's, nobody says.
    usage = Usage(11_000, 700, 400, inner=(Inner(ADVICE, "claude-opus-5-5"),))
    cost = prices.cost("anthropic", "claude-fable-5-2", usage, variant, NOVEMBER)
    plain = nanos((10_000, "8"), (600, "4")), nanos((400, "0.20")), nanos((500, "40"), (200, "20"))
    assert (cost.certainty, cost.input, cost.cache_read, cost.output) == (
        certainty,
        *(int(part * Decimal(factor)) for part in plain),
    )


def test_an_advisor_without_a_price_costs_as_the_call_and_that_is_an_estimate(prices: Prices) -> None:
    usage = Usage(11_000, 700, 400, inner=(Inner(ADVICE, "claude-opus-9"),))
    cost = prices.cost("anthropic", "claude-opus-5-5", usage, Variant(), NOVEMBER)
    assert cost == replace(
        prices.cost("anthropic", "claude-opus-5-5", replace(usage, inner=()), Variant(), NOVEMBER),
        certainty=ESTIMATED,
    )


def test_a_call_of_an_unknown_model_is_unpriced_whatever_is_in_it(prices: Prices) -> None:
    usage = Usage(11_000, 700, 400, inner=(Inner(ADVICE, "claude-opus-5-5"),))
    assert prices.cost("anthropic", "claude-opus-9", usage, Variant(), NOVEMBER) == UNPRICED


def test_what_a_batch_saves_is_half_of_everything_within_too(prices: Prices) -> None:
    whole = prices.cost("anthropic", "claude-opus-5-5", WITH_COMPACTION, Variant(), NOVEMBER).total
    saved = prices.batch_saving("anthropic", "claude-opus-5-5", WITH_COMPACTION, Variant(), NOVEMBER)
    assert saved == whole // 2


@pytest.mark.parametrize(("tokens", "certainty"), [(100_000, EXACT), (100_001, ESTIMATED)])
def test_several_prompts_added_up_beyond_a_bands_edge_may_each_have_been_below_it(
    prices: Prices, tokens: int, certainty: Certainty
) -> None:
    one = prices.cost("anthropic", "claude-haiku-5-5", Usage(tokens, 10), Variant(), NOVEMBER)
    several = prices.cost("anthropic", "claude-haiku-5-5", Usage(tokens, 10, summed=True), Variant(), NOVEMBER)
    assert (one.certainty, several) == (EXACT, replace(one, certainty=certainty))
    flat = prices.cost("anthropic", "claude-opus-5-5", Usage(tokens, 10, summed=True), Variant(), NOVEMBER)
    assert flat.certainty is EXACT


def test_a_doubt_of_the_usage_makes_the_cost_an_estimate_of_the_same_amount(prices: Prices) -> None:
    sure = prices.cost("anthropic", "claude-opus-5-5", Usage(10, 10), Variant(), NOVEMBER)
    unsure = prices.cost("anthropic", "claude-opus-5-5", Usage(10, 10, unsure=True), Variant(), NOVEMBER)
    assert (sure.certainty, unsure) == (EXACT, replace(sure, certainty=ESTIMATED))
    assert prices.cost("anthropic", "claude-opus-9", Usage(10, 10, unsure=True), Variant(), NOVEMBER) == UNPRICED


def test_what_the_provider_says_it_does_not_bill_is_estimated_at_nothing(prices: Prices) -> None:
    cost = prices.cost("anthropic", "claude-opus-5-5", Usage(412, 0, unbilled=True), Variant(), NOVEMBER)
    assert cost == Cost(ESTIMATED)
    assert prices.cost("anthropic", "claude-opus-9", Usage(412, 0, unbilled=True), Variant(), NOVEMBER) == UNPRICED
