"""Whose price a name gets: the list knows some models by how their names begin, and a new one may begin like an old one."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from service.account.prices import Prices
from service.record import Certainty, Usage, Variant
from service.upstream import anthropic, gemini, openai

NOVEMBER = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()


@pytest.fixture(scope="module")
def prices() -> Prices:
    return Prices()


@pytest.mark.parametrize(
    ("provider", "name", "input_"),
    [
        ("anthropic", "claude-opus-4-8", 5000), ("anthropic", "claude-opus-4-8-20260528", 5000),
        ("anthropic", "claude-opus-4-8@20260528", 5000), ("anthropic", "claude-opus-4-8-preview", 5000),
        ("anthropic", "claude-haiku-4-5-20251001", 1000), ("anthropic", "claude-sonnet-4-5-latest", 3000),
        ("anthropic", "claude-4-8-opus", 5000), ("anthropic", "claude-opus-5-5-20260922", 4000),
        ("gcp.gemini", "gemini-3.8-flash", 750), ("gcp.gemini", "gemini-3.8-flash-001", 750),
        ("gcp.gemini", "gemini-3.8-flash-latest", 750), ("gcp.gemini", "gemini-3.8-flash-preview-11-2026", 750),
        ("openai", "gpt-4o-audio-preview-2025-06-03", 2500), ("openai", "gpt-5-nano-2025-08-07", 50),
        ("openai", "ft:gpt-4o-2024-08-06:org:name:id", 3750),
    ],
)  # fmt: skip
def test_a_model_under_another_day_or_a_usual_ending_has_its_price(
    prices: Prices, provider: str, name: str, input_: int
) -> None:
    cost = prices.cost(provider, name, Usage(1, 0), Variant(), NOVEMBER)
    assert (cost.certainty, cost.input) == (Certainty.EXACT, input_)


@pytest.mark.parametrize(
    ("provider", "name"),
    [
        ("anthropic", "claude-opus-4-10"),
        ("anthropic", "claude-opus-4-80"),
        ("anthropic", "claude-haiku-4-5-turbo"),
        ("gcp.gemini", "gemini-3.8-flash-lite"),
        ("gcp.gemini", "gemini-3.8-flash-image"),
        ("gcp.gemini", "gemini-2.5-pro-exp-03-25"),
    ],
)
def test_a_name_that_only_begins_like_one_with_a_price_is_an_estimate(prices: Prices, provider: str, name: str) -> None:
    cost = prices.cost(provider, name, Usage(1000, 1000), Variant(), NOVEMBER)
    assert cost.certainty is Certainty.ESTIMATED
    assert cost.total > 0


@pytest.mark.parametrize("api", [anthropic, gemini, openai])
def test_every_model_with_a_label_of_its_own_has_an_exact_price_or_none(prices: Prices, api: object) -> None:
    provider = {anthropic: "anthropic", gemini: "gcp.gemini", openai: "openai"}[api]  # type: ignore[index]
    for name in sorted(api.MODELS):  # type: ignore[attr-defined]
        cost = prices.cost(provider, name, Usage(10, 10), Variant(), NOVEMBER)
        assert cost.certainty is not Certainty.ESTIMATED, name
