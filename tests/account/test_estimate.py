"""What a call cost where the provider did not say everything."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from observability.catalog import Outcome
from service.account.estimate import NOTHING, priced, tokens_of
from service.account.prices import UNPRICED, Prices
from service.record import Answered, Certainty, Cost, Usage, Variant

AT = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()
IN, OUT = 4_000, 20_000
"""Nano-dollars a token of claude-opus-5-5."""


@pytest.fixture(scope="module")
def prices() -> Prices:
    return Prices()


def of(prices: Prices, answered: Answered = Answered(), **changed: Any) -> Cost | None:  # noqa: B008  # frozen
    told: dict[str, Any] = {
        "provider": "anthropic", "model": "claude-opus-5-5", "outcome": Outcome.OK, "inference": True, "sent": True,
        "status": 200, "complete": True, "input_estimate": 1000, "at": AT,
    }  # fmt: skip
    return priced(prices, answered=answered, **{**told, **changed})


def exact(input_: int, output: int) -> Cost:
    return Cost(Certainty.EXACT, input=input_ * IN, output=output * OUT)


def estimated(input_: int, output: int) -> Cost:
    return Cost(Certainty.ESTIMATED, input=input_ * IN, output=output * OUT)


def stream(usage: Usage | None = None, content_bytes: int = 0, **changed: Any) -> Answered:
    return Answered(streamed=True, usage=usage, content_bytes=content_bytes, **changed)


BROKEN = {"complete": False, "outcome": Outcome.CUT_OFF}


def test_a_whole_answer_costs_what_it_said(prices: Prices) -> None:
    assert of(prices, Answered(usage=Usage(10, 20), content_bytes=4000)) == exact(10, 20)


def test_a_call_that_makes_no_tokens_has_no_cost(prices: Prices) -> None:
    assert of(prices, inference=False) is None
    assert of(prices, inference=False, sent=False, status=None) is None


def test_a_call_that_was_never_sent_costs_nothing_for_certain(prices: Prices) -> None:
    assert of(prices, sent=False, status=None, outcome=Outcome.UPSTREAM_UNREACHABLE, complete=False) == NOTHING
    assert exact(0, 0) == NOTHING


@pytest.mark.parametrize("status", [400, 404, 429, 500, 529])
def test_an_error_answer_costs_nothing_even_of_an_unknown_model(prices: Prices, status: int) -> None:
    assert of(prices, status=status, model="claude-opus-9", outcome=Outcome.UPSTREAM_ERROR) == NOTHING


def test_a_stream_that_is_only_an_error_costs_nothing(prices: Prices) -> None:
    assert of(prices, stream(), complete=False, outcome=Outcome.UPSTREAM_OVERLOADED) == NOTHING


def test_an_error_in_the_middle_of_a_stream_leaves_what_came_to_pay(prices: Prices) -> None:
    answered = stream(Usage(10), 40)
    assert of(prices, answered, complete=False, outcome=Outcome.UPSTREAM_OVERLOADED) == estimated(10, 10)


def test_a_stream_that_broke_is_paid_by_the_content_that_came_rounded_up(prices: Prices) -> None:
    assert of(prices, stream(Usage(10), 41), **BROKEN) == estimated(10, 11)


def test_a_stream_that_broke_is_paid_for_at_least_what_it_had_said(prices: Prices) -> None:
    assert of(prices, stream(Usage(10, 50), 40), **BROKEN) == estimated(10, 50)
    assert of(prices, stream(Usage(10, 5), 40), **BROKEN) == estimated(10, 10)


def test_a_stream_that_broke_after_its_reason_to_stop_has_said_everything(prices: Prices) -> None:
    assert of(prices, stream(Usage(10, 5), 4000, finish_reason="end_turn"), **BROKEN) == exact(10, 5)


def test_a_reason_to_stop_is_not_all_of_a_stream_whose_api_marks_no_end(prices: Prices) -> None:
    answered = stream(Usage(10, 5), 400, finish_reason="STOP", unmarked=True)
    assert of(prices, answered, **BROKEN) == estimated(10, 100)
    assert of(prices, answered) == exact(10, 5)


def test_a_stream_without_usage_is_estimated_from_sizes(prices: Prices) -> None:
    """OpenAI without `include_usage`."""
    assert of(prices, stream(None, 400, finish_reason="stop")) == estimated(1000, 100)


def test_a_plain_call_given_up_after_sending_costs_its_input(prices: Prices) -> None:
    gone = {"status": None, "complete": False, "outcome": Outcome.CLIENT_ABORT}
    assert of(prices, Answered(), **gone) == estimated(1000, 0)


def test_an_answer_that_cannot_be_read_was_billed_all_the_same(prices: Prices) -> None:
    assert of(prices, Answered(), outcome=Outcome.UPSTREAM_ERROR) == estimated(1000, 0)


def test_a_stream_that_ended_but_could_not_be_read_was_billed_all_the_same(prices: Prices) -> None:
    assert of(prices, stream(), outcome=Outcome.UPSTREAM_ERROR) == estimated(1000, 0)


def test_without_anything_to_go_by_there_is_no_amount(prices: Prices) -> None:
    assert of(prices, Answered(), input_estimate=None) == UNPRICED


def test_an_embedding_says_everything_without_output_tokens(prices: Prices) -> None:
    cost = of(prices, Answered(usage=Usage(1000)), provider="gcp.gemini", model="gemini-embedding-001")
    assert cost == Cost(Certainty.EXACT, input=150_000)


def test_a_chat_that_keeps_its_output_to_itself_is_estimated(prices: Prices) -> None:
    assert of(prices, Answered(usage=Usage(1000))) == estimated(1000, 0)


def test_the_model_that_answered_is_paid(prices: Prices) -> None:
    answered = Answered(usage=Usage(1000, 0), model="claude-opus-5-5")
    assert of(prices, answered, model="claude-haiku-4-5") == exact(1000, 0)


def test_an_answer_by_an_unknown_model_is_estimated_by_the_one_asked_for(prices: Prices) -> None:
    assert of(prices, Answered(usage=Usage(1000, 0), model="claude-new")) == estimated(1000, 0)


def test_an_unknown_model_stays_unpriced_whatever_else_is_missing(prices: Prices) -> None:
    assert of(prices, stream(Usage(10), 40), model="claude-opus-9", **BROKEN) == UNPRICED
    assert of(prices, model=None) == UNPRICED


def test_the_variant_that_the_answer_named_moves_an_estimate_too(prices: Prices) -> None:
    assert of(prices, stream(Usage(10), 40, variant=Variant(speed="fast")), **BROKEN) == estimated(20, 20)


def test_four_bytes_make_a_token_and_a_part_of_one_is_one() -> None:
    assert [tokens_of(size) for size in (0, 1, 4, 5)] == [0, 1, 1, 2]
