"""What is left of a client's own limits, as each provider would say it: their clients read it back."""

from __future__ import annotations

import pytest

from service.record import Quota
from service.upstream.anthropic import Anthropic
from service.upstream.gemini import Gemini
from service.upstream.openai import OpenAI, duration, written

NOW = 1_700_000_000.25
LEFT = {
    "requests": (60.0, 58.9, 1.1),
    "tokens": (1_000_000.0, 0.0, 60.0),
    "concurrency": (2.0, 1.0, 0.0),
    "budget": (5e9, 1e9, 3600.0),
}


def test_claudes_are_whole_numbers_and_a_time_and_nothing_is_told_of_what_is_no_rate() -> None:
    assert dict(Anthropic().limit_headers(LEFT, NOW)) == {
        "anthropic-ratelimit-requests-limit": "60",
        "anthropic-ratelimit-requests-remaining": "58",
        "anthropic-ratelimit-requests-reset": "2023-11-14T22:13:22Z",
        "anthropic-ratelimit-tokens-limit": "1000000",
        "anthropic-ratelimit-tokens-remaining": "0",
        "anthropic-ratelimit-tokens-reset": "2023-11-14T22:14:21Z",
    }


def test_openais_are_read_back_as_they_were_meant() -> None:
    told = dict(OpenAI().limit_headers(LEFT, NOW))
    assert told["x-ratelimit-reset-requests"] == "1.1s"
    assert OpenAI().quotas(told, NOW) == (
        Quota("requests", 60, 58, NOW + 1.1, NOW),
        Quota("tokens", 1_000_000, 0, NOW + 60, NOW),
    )


def test_who_has_no_such_limit_is_told_none() -> None:
    for provider in (Anthropic(), OpenAI()):
        assert provider.limit_headers({"budget": LEFT["budget"]}, NOW) == []
    assert Gemini().limit_headers(LEFT, NOW) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.0001, "1ms"), (0.12, "120ms"), (1, "1s"), (59.9999, "1m0s"), (360, "6m0s"), (3723.5, "1h2m3.5s")],
)
def test_a_duration_is_written_as_openai_does(seconds: float, text: str) -> None:
    assert written(seconds) == text
    assert duration(text) == pytest.approx(seconds, abs=0.001)
