"""Message batches on the books: a row for each result however often it is fetched, and which batches wait to be fetched.

A result's row has an id made from the batch and the result's own name. The ledger takes an id once; what it took is then
counted, in its thread and by whichever worker moved it. So a batch's money is in the metrics when it is in the ledger, and
without a ledger it is in neither.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from observability import catalog
from observability.catalog import Metric, Outcome
from observability.metrics import Labels, Metrics
from service.account.estimate import NOTHING
from service.account.journal import Dropped, Journal
from service.account.prices import BATCH, UNPRICED, Prices
from service.account.rows import BATCH_RESULT, BatchSeen, Row, batch_call_id
from service.record import Answered, Certainty, Cost, Usage, Variant

UNREADABLE = "unreadable"
"""Why a result is lost (`reason`): it could not be read as it passed."""
SHOWN_SECONDS = 12.0
"""How long a gauge stands after it was last seen: the ledger's thread looks every five seconds, and one look may fail."""
OLDEST = 30 * 86_400.0
"""Seconds that a batch's results can be old, at most and a little more: they can be fetched for 29 days."""
_MOST_REMEMBERED = 4096

if TYPE_CHECKING:
    from service.account.ledger_batches import Waiting  # with SQLAlchemy, which takes 0.3 s to import


class Fetch(NamedTuple):
    """Who fetches a batch's results, and by which request."""

    request_id: str
    trace_id: str
    route: str
    provider: str
    operation: str
    batch_id: str
    client: str | None


class BatchBooks:
    """Writes down what passes of message batches. `clock` tells Unix time."""

    def __init__(
        self, prices: Prices, journal: Journal, on_drop: Dropped, clock: Callable[[], float] = time.time
    ) -> None:
        self._prices, self._journal, self._on_drop, self._clock = prices, journal, on_drop, clock
        self._said: dict[str, BatchSeen] = {}

    def result(
        self, fetch: Fetch, custom_id: str, outcome: Outcome, error_type: str | None, sold: bool, answered: Answered
    ) -> None:
        """A result is passing: its row, priced by the day it is fetched. `sold` is false for one that costs nothing."""
        now = self._clock()
        cost, saved = self._cost(fetch.provider, answered, now) if sold else (NOTHING, None)
        priced = None if cost.certainty is Certainty.UNPRICED else cost
        usage = answered.usage or Usage()
        self._journal.ended(
            Row(
                call_id=batch_call_id(fetch.provider, fetch.batch_id, custom_id),
                request_id=fetch.request_id,
                trace_id=fetch.trace_id,
                started=now,
                ended=now,
                kind=BATCH_RESULT,
                route=fetch.route,
                outcome=outcome.value,
                provider=fetch.provider,
                model=answered.model,
                answered_model=answered.model,
                operation=fetch.operation,
                client=fetch.client,
                error_type=error_type,
                response_id=answered.response_id,
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cache_read_tokens=usage.cache_read_tokens,
                cache_write_tokens=usage.cache_write_tokens,
                cache_write_1h_tokens=usage.cache_write_1h_tokens,
                reasoning_tokens=usage.reasoning_tokens,
                tier=BATCH,
                certainty=cost.certainty.value,
                cost_input=priced.input if priced else None,
                cost_cache_read=priced.cache_read if priced else None,
                cost_cache_write=priced.cache_write if priced else None,
                cost_output=priced.output if priced else None,
                cost_tools=priced.tools if priced else None,
                saved=saved,
            )
        )

    def _cost(self, provider: str, answered: Answered, now: float) -> tuple[Cost, int | None]:
        """At the batch price whatever tier the answer names, and what it saved; unpriced without model or input tokens.

        Which day the batch was worked on is not told: if the price has changed since the earliest that it can have been,
        the cost is an estimate.
        """
        usage, model = answered.usage, answered.model
        if usage is None or usage.input_tokens is None or model is None:
            return UNPRICED, None
        geo = answered.variant.geo
        variant = Variant(BATCH, None, geo)
        cost = self._prices.cost(provider, model, usage, variant, now)
        if cost.certainty is Certainty.EXACT and self._prices.since(provider, model, variant, now) > now - OLDEST:
            cost = replace(cost, certainty=Certainty.ESTIMATED)
        if cost.certainty is Certainty.UNPRICED:
            return cost, None
        alone = self._prices.cost(provider, model, usage, Variant(None, None, geo), now)
        return cost, max(0, alone.total - cost.total)

    def fetched(self, fetch: Fetch, unreadable: int, *, whole: bool) -> None:
        """A batch's results have passed, all of them if `whole`; of so many no row could be made. A part begins and ends
        within lines: those are not lost, they come with the whole."""
        if not whole:
            return
        self._journal.batch_seen(BatchSeen(fetch.provider, fetch.batch_id, fetched_at=self._clock()))
        if unreadable:
            self._on_drop(UNREADABLE, unreadable)

    def deleted(self, provider: str, batch_id: str) -> None:
        """A batch is no more."""
        self.seen(BatchSeen(provider, batch_id, gone_at=self._clock()))

    def seen(self, seen: BatchSeen) -> None:
        """An answer has told of a batch; what it told before is not written again."""
        if self._said.get(seen.batch_id) == seen:
            return
        if len(self._said) >= _MOST_REMEMBERED:
            self._said.clear()
        self._said[seen.batch_id] = seen
        self._journal.batch_seen(seen)


class Counting:
    """Counts batches' results as they come into the ledger, and shows which batches wait: hooks of the ledger's thread."""

    def __init__(self, metrics: Metrics, on_spent: Callable[[str, int], None]) -> None:
        """`on_spent` is told of a client and the nano-dollars that its batches' results cost."""
        self._metrics, self._on_spent = metrics, on_spent
        self._shown: set[str] = set()

    def on_new(self, rows: list[Row]) -> None:
        """Tokens, cost and savings of the results among rows that are new in the ledger."""
        sums: Counter[tuple[Metric, Labels]] = Counter()
        for row in rows:
            if row.kind == BATCH_RESULT:
                _add_tokens(sums, row)
                _add_cost(sums, row)
        for (metric, labels), amount in sums.items():
            self._metrics.add(metric, labels, amount / 1e9 if metric in _MONEY else amount)
            if metric is catalog.CLIENT_COST:
                self._on_spent(labels[0], amount)

    def on_waiting(self, waiting: list[Waiting]) -> None:
        """Age of the oldest batch and when the next one runs out; nothing once nobody waits any more."""
        now = time.time()
        for provider, oldest, next_expiry in waiting:
            self._show(provider, max(0.0, now - oldest), next_expiry, now + SHOWN_SECONDS, now)
        there = {each.provider for each in waiting}
        for provider in self._shown - there:
            self._show(provider, 0.0, 0.0, now, now)
        self._shown = there

    def _show(self, provider: str, age: float, next_expiry: float, until: float, now: float) -> None:
        self._metrics.see(catalog.BATCH_OLDEST, age, (provider,), until, now)
        self._metrics.see(catalog.BATCH_NEXT_EXPIRY, next_expiry, (provider,), until, now)


_MONEY = (catalog.COST, catalog.CLIENT_COST, catalog.BATCH_SAVED)


def _add_tokens(sums: Counter[tuple[Metric, Labels]], row: Row) -> None:
    call = (row.operation or "", row.provider or "", row.model or "")
    for metric, tokens in (
        (catalog.INPUT_TOKENS, row.input_tokens),
        (catalog.OUTPUT_TOKENS, row.output_tokens),
        (catalog.CACHE_READ_TOKENS, row.cache_read_tokens),
        (catalog.CACHE_WRITE_TOKENS, row.cache_write_tokens),
        (catalog.REASONING_TOKENS, row.reasoning_tokens),
    ):
        if tokens is not None:
            sums[metric, call] += tokens


def _add_cost(sums: Counter[tuple[Metric, Labels]], row: Row) -> None:
    who = (row.provider or "", row.model or "")
    if row.certainty == Certainty.UNPRICED:
        sums[catalog.UNPRICED, who[:1]] += 1
        return
    for token_type in catalog.TOKEN_TYPES:
        if nanos := getattr(row, f"cost_{token_type}"):
            sums[catalog.COST, (*who, token_type, row.certainty or "")] += nanos
    if row.client is not None and row.cost:
        sums[catalog.CLIENT_COST, (row.client,)] += row.cost
    if row.saved:
        sums[catalog.BATCH_SAVED, who] += row.saved
