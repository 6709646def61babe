"""A call's money and its place in the ledger: what it cost, its start and its row in the journal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from observability.catalog import Outcome
from service.account.estimate import NOTHING, priced, together
from service.account.journal import Journal
from service.account.prices import Prices
from service.account.rows import Started, row_of
from service.record import Answered, Attempt, Cost, Record

_COMPLETE = (Outcome.OK, Outcome.REFUSED)
_LOST = frozenset(("no_answer", "timeout", "died_mid_body", "stalled"))
"""Attempts that the provider may have worked on and billed, although another one followed."""


class Books:
    """Prices calls, and writes them down before anybody hears of them. Without a journal nothing is written."""

    def __init__(self, prices: Prices, journal: Journal | None = None) -> None:
        self._prices = prices
        self._journal = journal

    def began(self, started: Started) -> None:
        """A call is about to be sent."""
        if self._journal is not None:
            self._journal.began(started)

    def cost(
        self,
        *,
        provider: str,
        model: str | None,
        answered: Answered,
        outcome: Outcome,
        inference: bool,
        attempts: Sequence[Attempt],
        cached: bool,
        input_estimate: int | None,
        at: float,
        wanted: str | None = None,
    ) -> Cost | None:
        """What a call cost that ended like this; None where nothing is sold. `at`: Unix time.

        The last attempt tells the outcome; one before it that got no answer has cost its input, as far as anybody knows.
        `model` is the one asked last, `wanted` the one asked first if that was another.
        """
        if cached:
            return NOTHING
        price = partial(
            priced, self._prices, provider=provider, inference=inference, input_estimate=input_estimate, at=at
        )
        last = attempts[-1] if attempts else None
        cost = price(
            model=model,
            answered=answered,
            outcome=outcome,
            sent=last is not None and last.reason != "not_sent",
            status=None if last is None else last.status,
            complete=outcome in _COMPLETE,
        )
        for lost in attempts[:-1]:
            if lost.reason in _LOST:
                also = price(
                    model=lost.model or wanted or model,
                    answered=Answered(),
                    outcome=Outcome.UPSTREAM_ERROR,
                    sent=True,
                    status=lost.status,
                    complete=False,
                )
                cost = together(cost, also)
        return cost

    def batch_saving(self, record: Record) -> int | None:
        """Nano-dollars that the call would have cost less in a message batch: nobody watched it arrive."""
        usage = record.answered.usage
        if record.streaming or usage is None or record.outcome is not Outcome.OK or record.provider is None:
            return None
        model = record.answered.model or record.model
        if model is None:
            return None
        return self._prices.batch_saving(record.provider, model, usage, record.answered.variant, record.started)

    def ended(self, record: Record) -> None:
        """A record is closed: its row, before the client has the last byte."""
        if self._journal is not None:
            ended = record.started + record.timings.total
            self._journal.ended(
                row_of(record, record.call_id, record.started, ended, record.cost, cached=record.cache == "hit")
            )
