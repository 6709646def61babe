"""A call's money and its place in the ledger: what it cost, its start and its row in the journal."""

from __future__ import annotations

from collections.abc import Sequence

from observability.catalog import Outcome
from service.account.estimate import NOTHING, priced
from service.account.journal import Journal
from service.account.prices import Prices
from service.account.rows import Started, row_of
from service.record import Answered, Attempt, Cost, Record

_COMPLETE = (Outcome.OK, Outcome.REFUSED)


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
    ) -> Cost | None:
        """What a call cost that ended like this; None where nothing is sold. `at`: Unix time."""
        if cached:
            return NOTHING
        status = attempts[-1].status if attempts else None
        return priced(
            self._prices,
            provider=provider,
            model=model,
            answered=answered,
            outcome=outcome,
            inference=inference,
            sent=any(attempt.reason != "not_sent" for attempt in attempts),
            status=status,
            complete=outcome in _COMPLETE,
            input_estimate=input_estimate,
            at=at,
        )

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
