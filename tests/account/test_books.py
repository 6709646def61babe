"""What calls of several attempts cost."""

from __future__ import annotations

import pytest

from observability.catalog import Outcome
from service.account.books import Books
from service.account.estimate import NOTHING
from service.account.prices import Prices
from service.record import Answered, Attempt, Certainty, Cost, Usage

MODEL, DEAR = "claude-sonnet-5-5", "claude-opus-5-5"
AT = 1_795_000_000.0
LOST, OVERLOADED, UNSENT, GOOD = (
    Attempt("no_answer"),
    Attempt("http_error", 529),
    Attempt("not_sent"),
    Attempt("ok", 200),
)


@pytest.fixture(scope="module")
def books() -> Books:
    return Books(Prices())


def of(books: Books, *attempts: Attempt, model: str = DEAR, estimate: int | None = 1000) -> Cost:
    good = attempts[-1].reason == "ok"
    found = books.cost(
        provider="anthropic",
        model=model,
        wanted=DEAR,
        answered=Answered(model=model, finish_reason="end_turn", usage=Usage(10, 5)) if good else Answered(),
        outcome=Outcome.OK if good else Outcome.UPSTREAM_ERROR,
        inference=True,
        attempts=attempts,
        cached=False,
        input_estimate=estimate,
        at=AT,
    )
    assert found is not None
    return found


def test_refused_attempts_cost_nothing_whatever_follows(books: Books) -> None:
    alone = of(books, GOOD)
    assert alone.certainty is Certainty.EXACT
    assert of(books, OVERLOADED, UNSENT, GOOD) == alone
    assert of(books, OVERLOADED, UNSENT) == NOTHING
    assert of(books, UNSENT, OVERLOADED) == NOTHING


def test_an_attempt_without_an_answer_has_cost_its_input_although_another_followed(books: Books) -> None:
    lost, good = of(books, LOST), of(books, GOOD)
    assert lost.input > 0
    assert of(books, LOST, GOOD) == Cost(Certainty.ESTIMATED, input=lost.input + good.input, output=good.output)
    assert of(books, LOST, OVERLOADED) == lost
    assert of(books, LOST, LOST).input == 2 * lost.input


def test_it_is_priced_by_the_model_that_it_asked(books: Books) -> None:
    good = of(books, GOOD, model=MODEL)
    assert of(books, LOST, GOOD, model=MODEL).input == of(books, LOST).input + good.input


def test_without_a_guess_of_its_size_the_cost_is_no_longer_exact(books: Books) -> None:
    assert of(books, LOST, GOOD, estimate=None).certainty is Certainty.ESTIMATED
