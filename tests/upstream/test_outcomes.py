"""What Claude's errors mean: every status, every type, every limit."""

from __future__ import annotations

import httpx
import pytest

from observability import catalog
from observability.catalog import Outcome
from service.upstream.outcomes import limit_of_429, outcome_of_error, outcome_of_status


@pytest.mark.parametrize(
    ("status", "kind", "outcome"),
    [
        (400, "invalid_request_error", Outcome.CLIENT_INVALID),
        (401, "authentication_error", Outcome.CLIENT_AUTH),
        (402, "billing_error", Outcome.UPSTREAM_ERROR),
        (403, "permission_error", Outcome.CLIENT_AUTH),
        (404, "not_found_error", Outcome.CLIENT_INVALID),
        (408, None, Outcome.UPSTREAM_TIMEOUT),
        (409, "conflict_error", Outcome.CLIENT_INVALID),
        (413, "request_too_large", Outcome.CLIENT_INVALID),
        (413, None, Outcome.CLIENT_INVALID),
        (422, None, Outcome.CLIENT_INVALID),
        (429, "rate_limit_error", Outcome.UPSTREAM_429),
        (429, None, Outcome.UPSTREAM_429),
        (500, "api_error", Outcome.UPSTREAM_ERROR),
        (502, None, Outcome.UPSTREAM_ERROR),
        (503, "overloaded_error", Outcome.UPSTREAM_OVERLOADED),
        (503, "api_error", Outcome.UPSTREAM_ERROR),
        (504, "timeout_error", Outcome.UPSTREAM_TIMEOUT),
        (529, "overloaded_error", Outcome.UPSTREAM_OVERLOADED),
        (529, None, Outcome.UPSTREAM_OVERLOADED),
    ],
)
def test_an_error_answer_has_the_outcome_of_its_status(status: int, kind: str | None, outcome: Outcome) -> None:
    assert outcome_of_status(status, kind) is outcome


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("overloaded_error", Outcome.UPSTREAM_OVERLOADED),
        ("rate_limit_error", Outcome.UPSTREAM_429),
        ("timeout_error", Outcome.UPSTREAM_TIMEOUT),
        ("invalid_request_error", Outcome.CLIENT_INVALID),
        ("not_found_error", Outcome.CLIENT_INVALID),
        ("request_too_large", Outcome.CLIENT_INVALID),
        ("api_error", Outcome.UPSTREAM_ERROR),
        ("billing_error", Outcome.UPSTREAM_ERROR),
        ("a type of tomorrow", Outcome.UPSTREAM_ERROR),
    ],
)
def test_an_error_event_has_the_outcome_of_its_type(kind: str, outcome: Outcome) -> None:
    assert outcome_of_error(kind) is outcome


@pytest.mark.parametrize(
    ("error_code", "empty", "limit"),
    [
        ("enforced_spend_limit_reached", (), "spend"),
        ("contract_spend_limit_reached", ("requests",), "spend"),
        ("ramp_limit_exceeded", (), "acceleration"),
        ("", ("requests",), "requests"),
        ("", ("input-tokens",), "input_tokens"),
        ("", ("output-tokens",), "output_tokens"),
        ("", ("requests", "output-tokens"), "requests"),
        ("", ("tokens",), "unknown"),
        ("", (), "unknown"),
        ("a code of tomorrow", (), "unknown"),
    ],
)
def test_the_limit_of_a_429_is_named_by_its_code_else_by_the_bucket_that_is_empty(
    error_code: str, empty: tuple[str, ...], limit: str
) -> None:
    names = ("requests", "tokens", "input-tokens", "output-tokens")
    headers = httpx.Headers({f"Anthropic-RateLimit-{n}-Remaining": "0" if n in empty else "1000" for n in names})
    assert limit_of_429(headers, error_code) == limit
    assert limit in catalog.LIMITS_429


@pytest.mark.parametrize(
    ("empty", "limit"), [("fast-input-tokens", "input_tokens"), ("fast-output-tokens", "output_tokens")]
)
def test_a_429_of_fast_mode_is_named_by_its_own_bucket(empty: str, limit: str) -> None:
    names = ("ratelimit-requests", "ratelimit-input-tokens", "fast-input-tokens", "fast-output-tokens")
    headers = httpx.Headers({f"Anthropic-{n}-Remaining": "0" if n == empty else "1000" for n in names})
    assert limit_of_429(headers, "") == limit
