"""Costs equal an independent calculation in Decimal from hand-written rates, to the nano-dollar."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal

import pytest
from msgspec.structs import replace

from service.account.prices import UNPRICED, Prices
from service.record import Certainty, Cost, Usage, Variant

NOVEMBER = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()
STANDARD = Variant()

Row = tuple[str, str, str, str, str]
"""Dollars per million tokens: input, output, cache write (5 minutes), cache write (1 hour), cache read."""

CLAUDE: dict[str, Row] = {
    "claude-fable-5-2": ("8", "40", "10", "16", "0.20"),
    "claude-mythos-5-2": ("8", "40", "10", "16", "0.20"),
    "claude-fable-5-1": ("10", "50", "12.5", "20", "0.25"),
    "claude-mythos-5-1": ("10", "50", "12.5", "20", "0.25"),
    "claude-fable-5": ("10", "50", "12.5", "20", "1.00"),
    "claude-mythos-5": ("10", "50", "12.5", "20", "1.00"),
    "claude-opus-5-5": ("4", "20", "5", "8", "0.20"),
    "claude-opus-5": ("5", "25", "6.25", "10", "0.50"),
    "claude-opus-4-8": ("5", "25", "6.25", "10", "0.50"),
    "claude-opus-4-7": ("5", "25", "6.25", "10", "0.50"),
    "claude-opus-4-6": ("5", "25", "6.25", "10", "0.50"),
    "claude-opus-4-5-20251101": ("5", "25", "6.25", "10", "0.50"),
    "claude-sonnet-5-5": ("2", "10", "2.5", "4", "0.10"),
    "claude-sonnet-5": ("2", "10", "2.5", "4", "0.20"),
    "claude-sonnet-4-6": ("3", "15", "3.75", "6", "0.30"),
    "claude-haiku-5-5": ("0.10", "0.50", "0.125", "0.20", "0.01"),
    "claude-haiku-4-5-20251001": ("1", "5", "1.25", "2", "0.10"),
}
CLAUDE_FAST = ("claude-fable-5-2", "claude-mythos-5-2", "claude-opus-5-5", "claude-opus-5", "claude-opus-4-8")
CLAUDE_WITHOUT_GEO = ("claude-opus-4-5-20251101", "claude-haiku-4-5-20251001")
GPT: dict[str, Row] = {
    "gpt-6.1-sol": ("2", "10", "2.5", "2.5", "0.10"),
    "gpt-6.1-terra": ("1", "5", "1.25", "1.25", "0.05"),
    "gpt-6-sol": ("2", "10", "2.5", "2.5", "0.20"),
    "gpt-6-luna": ("0.10", "0.50", "0.125", "0.125", "0.01"),
    "gpt-6-astra": ("10", "50", "12.5", "12.5", "1"),
    "gpt-5.6-sol": ("4", "20", "5", "5", "0.40"),
    "gpt-5.6-terra": ("2", "12", "2.5", "2.5", "0.20"),
    "gpt-5.6-luna": ("0.20", "1.20", "0.25", "0.25", "0.02"),
}
"""All of them: above 272,000 tokens input costs double and output half as much again; flex and batch half, priority
and fast double."""
GEMINI: dict[str, Row] = {
    "gemini-4-argon": ("2", "10", "2", "2", "0.10"),
    "gemini-3.8-flash": ("0.75", "3.75", "0.75", "0.75", "0.075"),
    "gemini-3.6-flash": ("0.75", "3.75", "0.75", "0.75", "0.075"),
}
WEB_SEARCH = {"anthropic": "10", "openai": "10", "gcp.gemini": "14"}
"""Dollars per thousand."""


def by_hand(provider: str, model: str, usage: Usage, variant: Variant = STANDARD) -> Cost:
    """What a usage costs on 2026-11-22, from the tables above."""
    total, out = usage.input_tokens or 0, usage.output_tokens or 0
    read, written, hour = usage.cache_read_tokens or 0, usage.cache_write_tokens or 0, usage.cache_write_1h_tokens or 0
    factor = out_factor = Decimal(1)
    if provider == "anthropic":
        if model == "claude-haiku-5-5" and total > 100_000:
            factor = out_factor = Decimal(5)
        if variant.geo == "us" and model not in CLAUDE_WITHOUT_GEO:
            factor, out_factor = factor * Decimal("1.1"), out_factor * Decimal("1.1")
    elif provider == "openai" and total > 272_000:
        factor, out_factor = Decimal(2), Decimal("1.5")
    of_variant = Decimal(1)
    if variant.tier in ("batch", "flex"):
        of_variant = Decimal("0.5")
    elif variant.tier in ("priority", "fast") or variant.speed == "fast":
        of_variant = Decimal(2)
    in_, out_, five, one_hour, read_ = map(Decimal, {**CLAUDE, **GPT, **GEMINI}[model])

    def nanos(thousandths: Decimal) -> int:
        return int((thousandths * 1000).quantize(Decimal(1), ROUND_HALF_EVEN))

    return Cost(
        Certainty.EXACT,
        input=nanos((total - read - written) * in_ * factor * of_variant),
        cache_read=nanos(read * read_ * factor * of_variant),
        cache_write=nanos(((written - hour) * five + hour * one_hour) * factor * of_variant),
        output=nanos(out * out_ * out_factor * of_variant),
        tools=nanos((usage.web_searches or 0) * Decimal(WEB_SEARCH[provider]) * 1000),
    )


def shapes() -> list[tuple[str, str, Usage, Variant]]:
    """200 usages with their models and variants, the same ones every time."""
    dice = random.Random(20261122)
    found: list[tuple[str, str, Usage, Variant]] = []
    while len(found) < 200:
        provider = dice.choice(("anthropic", "anthropic", "openai", "gcp.gemini"))
        model = dice.choice(list({"anthropic": CLAUDE, "openai": GPT, "gcp.gemini": GEMINI}[provider]))
        read, five, hour = (dice.choice((0, dice.randrange(1, 150_000))) for _ in range(3))
        if provider == "gcp.gemini":
            five = hour = 0
        if provider == "openai":
            hour = 0
        usage = Usage(
            input_tokens=dice.randrange(1, 120_000) + read + five + hour,
            output_tokens=dice.choice((0, 1, dice.randrange(1, 64_000))),
            cache_read_tokens=read or dice.choice((None, 0)),
            cache_write_tokens=five + hour or dice.choice((None, 0)),
            cache_write_1h_tokens=hour or dice.choice((None, 0)),
            reasoning_tokens=dice.choice((None, 1)),
            web_searches=dice.choice((None, 0, dice.randrange(1, 20))),
        )
        match provider:
            case "anthropic":
                speeds = [None, "standard", *(["fast"] if model in CLAUDE_FAST else [])]
                variant = Variant(dice.choice((None, "standard", "batch")), None, dice.choice((None, "global", "us")))
                if variant.tier != "batch":
                    variant = replace(variant, speed=dice.choice(speeds))
            case "openai":
                variant = Variant(dice.choice((None, "default", "flex", "priority", "fast", "batch")))
            case _:
                variant = Variant(dice.choice((None, "standard", "batch")))
        found.append((provider, model, usage, variant))
    return found


SHAPES = shapes()


@pytest.fixture(scope="module")
def prices() -> Prices:
    return Prices()


@pytest.mark.parametrize("number", range(200))
def test_two_hundred_usages_cost_what_a_calculation_by_hand_says(prices: Prices, number: int) -> None:
    provider, model, usage, variant = SHAPES[number]
    assert prices.cost(provider, model, usage, variant, NOVEMBER) == by_hand(provider, model, usage, variant)


def dollars(cost: Cost) -> tuple[Certainty, Decimal]:
    return cost.certainty, Decimal(cost.total) / 10**9


A_MILLION_EACH = Usage(2_000_000, 1_000_000, cache_read_tokens=1_000_000)
"""A million tokens each of fresh input, cache read and output."""


@pytest.mark.parametrize(
    ("provider", "model", "variant", "day", "expected"),
    [
        # Facts B1 to B3, added up by hand; a name's date is UTC, and belongs to what is new.
        ("gcp.gemini", "gemini-4-argon", STANDARD, "2026-11-30T23:59:59", "12.10"),
        ("gcp.gemini", "gemini-4-argon", STANDARD, "2026-12-01T00:00:00", "24.20"),
        ("gcp.gemini", "gemini-4-argon", Variant("batch"), "2026-11-30T23:59:59", "6.05"),
        ("gcp.gemini", "gemini-4-argon", Variant("batch"), "2026-12-01T00:00:00", "12.10"),
        ("gcp.gemini", "gemini-3.8-flash", STANDARD, "2026-12-31T23:59:59", "4.575"),
        ("gcp.gemini", "gemini-3.8-flash", STANDARD, "2027-01-01T00:00:00", "9.15"),
        ("gcp.gemini", "gemini-flash-latest", STANDARD, "2027-01-01T00:00:00", "9.15"),
        ("gcp.gemini", "models/gemini-2.5-pro", STANDARD, "2026-11-22T00:00:00", "17.75"),
        ("anthropic", "claude-sonnet-5-5", STANDARD, "2026-10-06T23:59:59", "12.20"),
        ("anthropic", "claude-sonnet-5-5", STANDARD, "2026-10-07T00:00:00", "12.10"),
        ("anthropic", "claude-sonnet-5-5", Variant("batch"), "2026-10-06T23:59:59", "6.10"),
        ("anthropic", "claude-opus-4-6", STANDARD, "2026-03-12T23:59:59", "48.50"),
        ("anthropic", "claude-opus-4-6", STANDARD, "2026-03-13T00:00:00", "30.50"),
        ("openai", "gpt-5.6-sol", STANDARD, "2026-08-20T23:59:59", "56.00"),
        ("openai", "gpt-5.6-sol", STANDARD, "2026-08-21T00:00:00", "38.80"),
    ],
)
def test_a_dated_change_holds_from_its_first_second(
    prices: Prices, provider: str, model: str, variant: Variant, day: str, expected: str
) -> None:
    at = datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()
    cost = prices.cost(provider, model, A_MILLION_EACH, variant, at)
    assert dollars(cost) == (Certainty.EXACT, Decimal(expected))


OTHERS = [
    # Provider, model, variant, then dollars per million: input, output, cache read.
    ("anthropic", "claude-sonnet-4-5-20250929", STANDARD, "3", "15", "0.30"),
    ("anthropic", "claude-3-5-haiku-20241022", STANDARD, "0.80", "4", "0.08"),
    ("anthropic", "claude-opus-5-5", Variant(speed="fast"), "8", "40", "0.40"),
    ("anthropic", "claude-fable-5-2", Variant(speed="fast"), "16", "80", "0.40"),
    ("anthropic", "claude-opus-5-5", Variant("batch", None, "us"), "2.2", "11", "0.11"),
    ("anthropic", "claude-fable-5-2", Variant(None, "fast", "us"), "17.6", "88", "0.44"),
    ("anthropic", "claude-haiku-4-5", Variant(geo="us"), "1", "5", "0.10"),
    ("anthropic", "claude-sonnet-4-6", Variant(geo="us"), "3.3", "16.5", "0.33"),
    ("openai", "gpt-5.5", STANDARD, "5", "30", "0.5"),
    ("openai", "gpt-5.5", Variant("priority"), "12.5", "75", "1.25"),
    ("openai", "gpt-5.5", Variant("flex"), "2.5", "15", "0.25"),
    ("openai", "gpt-5.4", STANDARD, "2.5", "15", "0.25"),
    ("openai", "gpt-5.2", STANDARD, "1.75", "14", "0.175"),
    ("openai", "gpt-5-2025-08-07", STANDARD, "1.25", "10", "0.125"),
    ("openai", "gpt-5-mini", STANDARD, "0.25", "2", "0.025"),
    ("openai", "gpt-5-nano", STANDARD, "0.05", "0.40", "0.005"),
    ("openai", "gpt-4o-2024-08-06", STANDARD, "2.5", "10", "1.25"),
    ("openai", "gpt-4o-mini", STANDARD, "0.15", "0.60", "0.075"),
    ("gcp.gemini", "gemini-3.5-flash", STANDARD, "1.5", "9", "0.15"),
    ("gcp.gemini", "gemini-3.1-pro-preview", STANDARD, "2", "12", "0.2"),
    ("gcp.gemini", "gemini-pro-latest", STANDARD, "2", "12", "0.2"),
    ("gcp.gemini", "gemini-3-flash-preview", STANDARD, "0.5", "3", "0.05"),
    ("gcp.gemini", "gemini-2.5-flash", STANDARD, "0.30", "2.50", "0.03"),
    ("gcp.gemini", "gemini-2.5-flash-lite", STANDARD, "0.10", "0.40", "0.01"),
    ("gcp.gemini", "gemini-2.5-pro", Variant("batch"), "0.625", "5", "0.125"),
]


@pytest.mark.parametrize(("provider", "model", "variant", "input_", "output", "read"), OTHERS)
def test_other_models_and_variants_cost_what_their_price_pages_say(
    prices: Prices, provider: str, model: str, variant: Variant, input_: str, output: str, read: str
) -> None:
    cost = prices.cost(provider, model, Usage(3000, 1000, cache_read_tokens=1000), variant, NOVEMBER)
    expected = (int(Decimal(input_) * 2 * 10**6), int(Decimal(read) * 10**6), int(Decimal(output) * 10**6))
    assert (cost.certainty, (cost.input, cost.cache_read, cost.output)) == (Certainty.EXACT, expected)


def test_a_price_that_was_looked_up_before_a_change_is_not_used_after_it_nor_the_other_way_round(
    prices: Prices,
) -> None:
    change = datetime(2026, 12, 1, tzinfo=UTC).timestamp()
    costs = [
        prices.cost("gcp.gemini", "gemini-4-argon", Usage(1000, 0), STANDARD, change + step).total
        for step in (-1, 0, 1, -0.001, 86_400)
    ]
    assert costs == [2_000_000, 4_000_000, 4_000_000, 2_000_000, 4_000_000]


@pytest.mark.parametrize(
    ("provider", "model", "tokens", "cheap", "dear"),
    [
        ("anthropic", "claude-haiku-5-5", 100_000, ("0.10", "0.50"), ("0.50", "2.50")),
        ("openai", "gpt-5.5", 272_000, ("5", "30"), ("10", "45")),
        ("gcp.gemini", "gemini-2.5-pro", 200_000, ("1.25", "10"), ("2.5", "15")),
    ],
)
def test_one_token_more_puts_the_whole_request_into_the_dearer_band(
    prices: Prices, provider: str, model: str, tokens: int, cheap: tuple[str, str], dear: tuple[str, str]
) -> None:
    for total, (input_, output) in ((tokens, cheap), (tokens + 1, dear)):
        cost = prices.cost(provider, model, Usage(total, 1000), STANDARD, NOVEMBER)
        assert (cost.input, cost.output) == (int(total * Decimal(input_) * 1000), int(Decimal(output) * 10**6))


def test_cached_tokens_count_for_the_band(prices: Prices) -> None:
    usage = Usage(100_001, 10, cache_read_tokens=100_000, cache_write_tokens=1)
    cost = prices.cost("anthropic", "claude-haiku-5-5", usage, STANDARD, NOVEMBER)
    assert cost == Cost(Certainty.EXACT, input=0, cache_read=5_000_000, cache_write=625, output=25_000)


@pytest.mark.parametrize(("tokens", "nanos"), [(1, 2), (3, 8), (5, 12), (7, 18)])
def test_half_a_nano_dollar_is_rounded_to_the_even_one_once_for_each_part(
    prices: Prices, tokens: int, nanos: int
) -> None:
    # gpt-5-nano in flex: a cached token costs 2.5 nano-dollars.
    usage = Usage(tokens, 0, cache_read_tokens=tokens)
    assert prices.cost("openai", "gpt-5-nano", usage, Variant("flex"), NOVEMBER).cache_read == nanos


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("anthropic", "claude-opus-9"),
        ("anthropic", "claude-mythos-preview"),
        ("anthropic", ""),
        ("openai", "gpt-6.2-sol"),
        ("openai", "claude-opus-5-5"),
        ("aws.bedrock", "claude-opus-5-5"),
        ("anthropic", "claude-opus-4-8" + "8" * 10_000),
    ],
)
def test_an_unknown_model_is_unpriced(prices: Prices, provider: str, model: str) -> None:
    assert prices.cost(provider, model, Usage(1000, 1000), STANDARD, NOVEMBER) == UNPRICED


def test_a_model_whose_output_is_not_text_is_unpriced_when_it_gave_some(prices: Prices) -> None:
    assert prices.cost("gcp.gemini", "gemini-embedding-001", Usage(1000, 1), STANDARD, NOVEMBER) == UNPRICED
    embedded = prices.cost("gcp.gemini", "gemini-embedding-001", Usage(1000), STANDARD, NOVEMBER)
    assert embedded == Cost(Certainty.EXACT, input=150_000)


@pytest.mark.parametrize(
    ("spelling", "model"),
    [
        ("claude-opus-5-5[1m]", "claude-opus-5-5"),
        ("Claude-Opus-5-5", "claude-opus-5-5"),
        ("claude-haiku-5-5-20261007", "claude-haiku-5-5"),
        ("claude-fable-5-2@20261109", "claude-fable-5-2"),
        ("claude-mythos-5-1-20261101", "claude-mythos-5-1"),
        ("claude-mythos-5-20260630", "claude-mythos-5"),
        ("claude-haiku-4-5", "claude-haiku-4-5-20251001"),
        ("claude-opus-4-8-20260528[1m]", "claude-opus-4-8"),
    ],
)
def test_a_claude_model_is_known_under_its_other_spellings(prices: Prices, spelling: str, model: str) -> None:
    usage = Usage(5000, 700, 3000, 1000)
    assert prices.cost("anthropic", spelling, usage, STANDARD, NOVEMBER) == by_hand("anthropic", model, usage)


@pytest.mark.parametrize(
    ("model", "variant", "expected"),
    [
        ("claude-opus-4-7", Variant(speed="fast"), "61.00"),  # twice, as every fast mode that is listed
        ("claude-opus-5-5", Variant("priority"), "24.20"),  # by contract: the list price stands in
        ("claude-opus-5-5", Variant(geo="moon"), "24.20"),
    ],
)
def test_a_variant_without_a_listed_price_is_estimated(
    prices: Prices, model: str, variant: Variant, expected: str
) -> None:
    cost = prices.cost("anthropic", model, A_MILLION_EACH, variant, NOVEMBER)
    assert dollars(cost) == (Certainty.ESTIMATED, Decimal(expected))


def test_tokens_that_nobody_said_make_the_cost_an_estimate(prices: Prices) -> None:
    cost = prices.cost("anthropic", "claude-opus-5-5", Usage(1000), STANDARD, NOVEMBER)
    assert (cost.certainty, cost.total) == (Certainty.ESTIMATED, 4_000_000)


def test_absurd_usage_never_makes_a_cost_negative(prices: Prices) -> None:
    usage = Usage(10, 0, cache_read_tokens=50, cache_write_tokens=5, cache_write_1h_tokens=20)
    cost = prices.cost("anthropic", "claude-opus-5-5", usage, STANDARD, NOVEMBER)
    assert (cost.input, cost.cache_read, cost.cache_write) == (0, 50 * 200, 20 * 8000)


def test_a_batch_saves_half_and_a_single_call_forgoes_as_much(prices: Prices) -> None:
    for tier in ("batch", None):
        saved = prices.batch_saving("anthropic", "claude-opus-5-5", A_MILLION_EACH, Variant(tier), NOVEMBER)
        assert saved == 12_100_000_000
    assert prices.batch_saving("anthropic", "claude-opus-9", A_MILLION_EACH, STANDARD, NOVEMBER) is None


def test_names_made_up_by_clients_do_not_grow_memory(prices: Prices) -> None:
    for number in range(1200):
        prices.cost("nobody", f"model-{number}", Usage(1, 1), STANDARD, NOVEMBER)
    assert len(prices._resolved) <= 1024
