"""Message batches on the books: once each, at half the price, and whoever waits to be fetched is shown."""

from __future__ import annotations

import sqlite3
import time
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from observability import catalog
from observability.catalog import Outcome
from service.account import ledger_batches
from service.account.batches import BatchBooks, Counting, Fetch
from service.account.journal import Journal
from service.account.ledger import FILE, Ledger
from service.account.ledger_batches import RESULTS_SECONDS, Waiting
from service.account.ledger_schema import BATCHES, CALLS, VERSION
from service.account.ledger_writer import Hooks, LedgerWriter
from service.account.prices import Prices
from service.account.rows import BatchSeen, Row
from service.record import Answered, Usage, Variant
from tests.support.book import NOON, row
from tests.support.inside import Told, telemetry

PRICES = Prices()
OPUS = "claude-opus-5-5"
USAGE = Usage(1_000_000, 200_000, 100_000, 50_000, 10_000, 20_000)
DAY = 86_400.0


def fetch(batch_id: str = "msgbatch_1", client: str | None = "alice") -> Fetch:
    """One request for a batch's results."""
    route = "/v1/messages/batches/<batch_id>/results"
    return Fetch("cp_1", "a" * 32, route, "anthropic", "chat", batch_id, client)


def answered(usage: Usage | None = USAGE, model: str | None = OPUS, **variant: str) -> Answered:
    """What a result's message says."""
    return Answered(model=model, response_id="msg_1", usage=usage, variant=Variant(**variant or {"tier": "batch"}))


class Desk:
    """One worker's batch books, with its ledger's thread in the hands of the test; several share a directory."""

    def __init__(self, directory: Path, told: Told | None = None) -> None:
        self.dropped: list[tuple[str, int]] = []
        self.new: list[Row] = []
        self.journal = Journal(directory, lambda *_: None)
        counting = Counting(told.telemetry.metrics, lambda *_: None) if told is not None else None
        self.waiting: list[list[Waiting]] = []
        hooks = Hooks(
            on_new=counting.on_new if counting else self.new.extend,
            on_waiting=counting.on_waiting if counting else self.waiting.append,
        )
        self.writer = LedgerWriter(self.journal, Ledger(directory), hooks)
        self.books = BatchBooks(PRICES, self.journal, lambda *lost: self.dropped.append(lost))

    def sold(self, name: str = "a", said: Answered | None = None, by: Fetch | None = None) -> None:
        """A result that succeeded."""
        self.books.result(by or fetch(), name, Outcome.OK, None, True, said or answered())

    def rows(self) -> list[Row]:
        """What is new in the ledger since the last time."""
        self.writer.round()
        found, self.new[:] = list(self.new), []
        return found


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_result_costs_exactly_half_of_the_same_call_made_alone(desk: Desk) -> None:
    desk.sold()
    (found,) = desk.rows()
    alone = PRICES.cost("anthropic", OPUS, USAGE, Variant(), time.time())
    assert (found.certainty, found.cost, found.saved) == ("exact", alone.total // 2, alone.total // 2)
    assert alone.total % 2 == 0
    assert (found.cost_input, found.cost_output) == (alone.input // 2, alone.output // 2)
    assert (found.cost_cache_read, found.cost_cache_write) == (alone.cache_read // 2, alone.cache_write // 2)


@pytest.mark.parametrize(
    ("day", "certainty"), [("2026-10-20", "estimated"), ("2026-11-05", "estimated"), ("2026-11-22", "exact")]
)
def test_a_price_that_may_have_changed_since_the_batch_was_worked_on_is_an_estimate(
    tmp_path: Path, day: str, certainty: str
) -> None:
    # Sonnet 5.5's cache reads cost less since 7 October, its batch price is in the list since the 14th.
    now = datetime.fromisoformat(f"{day}T12:00:00+00:00").timestamp()
    journal = Journal(tmp_path, lambda *_: None)
    found: list[Row] = []
    writer = LedgerWriter(journal, Ledger(tmp_path), Hooks(on_new=found.extend))
    books = BatchBooks(PRICES, journal, lambda *_: None, clock=lambda: now)
    said = answered(Usage(1_000_000, 0, 1_000_000), "claude-sonnet-5-5")
    books.result(fetch(), "a", Outcome.OK, None, True, said)
    writer.round()
    assert [(row.certainty, row.cost) for row in found] == [(certainty, 50_000_000)]  # half of $0.10


@pytest.mark.parametrize("variant", [{"tier": "standard"}, {"speed": "fast"}, {"tier": "priority", "speed": "fast"}])
def test_the_price_is_the_batch_price_whatever_the_answer_says_of_its_tier(desk: Desk, variant: dict[str, Any]) -> None:
    desk.sold("a")
    desk.sold("b", answered(**variant))
    first, second = desk.rows()
    assert (first.cost, first.certainty, first.saved) == (second.cost, second.certainty, second.saved)


def test_where_the_answer_was_made_moves_the_price_and_the_saving(desk: Desk) -> None:
    desk.sold("a")
    desk.sold("b", answered(tier="batch", geo="us"))
    anywhere, us = desk.rows()
    assert Fraction(us.cost or 0, anywhere.cost or 1) == Fraction(11, 10)
    assert us.saved == us.cost


@pytest.mark.parametrize("outcome", [Outcome.CLIENT_INVALID, Outcome.CLIENT_ABORT, Outcome.UPSTREAM_TIMEOUT])
def test_what_failed_was_canceled_or_expired_costs_nothing_and_saves_nothing(desk: Desk, outcome: Outcome) -> None:
    desk.books.result(fetch(), "a", outcome, "expired", False, Answered())
    (found,) = desk.rows()
    assert (found.certainty, found.cost, found.saved, found.outcome) == ("exact", 0, None, outcome.value)
    assert (found.input_tokens, found.output_tokens) == (None, None)


@pytest.mark.parametrize(
    "said",
    [Answered(), answered(usage=None), answered(model=None), answered(Usage(output_tokens=5)), answered(model="?")],
)
def test_what_cannot_be_priced_is_unpriced_and_never_nothing(desk: Desk, said: Answered) -> None:
    desk.sold("a", said)
    (found,) = desk.rows()
    assert (found.certainty, found.cost, found.saved) == ("unpriced", None, None)


def test_a_result_is_new_once_however_often_and_wherever_it_is_fetched(tmp_path: Path) -> None:
    one, other = Desk(tmp_path), Desk(tmp_path)
    for desk in (one, one, other):
        for name in ("a", "b"):
            desk.sold(name)
    other.sold("a", by=fetch("msgbatch_2"))
    assert [len(one.rows()), len(other.rows()), len(one.rows())] == [2, 1, 0]


def test_what_is_new_is_counted_and_nothing_else_is(tmp_path: Path) -> None:
    with telemetry() as told:
        one, other = Desk(tmp_path, told), Desk(tmp_path, told)
        for desk in (one, other):
            desk.sold("a")
            desk.sold("b", answered(usage=None))
            desk.books.result(fetch(), "c", Outcome.CLIENT_ABORT, "canceled", False, Answered())
            desk.journal.ended(row())
            desk.writer.round()
        half = PRICES.batch_saving("anthropic", OPUS, USAGE, Variant("batch"), time.time())
        assert half is not None
        who = f'gen_ai_provider_name="anthropic",gen_ai_request_model="{OPUS}"'
        (saved,) = told.sample("claude_proxy_batch_saved_usd_total")
        assert saved == f"claude_proxy_batch_saved_usd_total{{{who}}} {half / 1e9}"
        assert [line.split()[1] for line in told.sample("claude_proxy_client_cost_usd_total")] == [str(half / 1e9)]
        assert sum(float(line.split()[1]) for line in told.sample("claude_proxy_cost_usd_total")) == pytest.approx(
            half / 1e9
        )
        assert [line.split()[1] for line in told.sample("claude_proxy_unpriced_requests_total")] == ["1.0"]
        tokens = {line.split("{")[0]: float(line.split()[1]) for line in told.sample("gen_ai_client_inference_usage")}
        names = {
            "input": 1e6,
            "output": 2e5,
            "cache_read_input": 1e5,
            "cache_write_input": 5e4,
            "reasoning_output": 1e4,
        }
        assert tokens == {f"gen_ai_client_inference_usage_{k}_tokens_total": v for k, v in names.items()}
        assert told.sample("claude_proxy_requests_total") == []


def test_lines_that_were_no_results_are_told_as_lost(desk: Desk) -> None:
    desk.books.fetched(fetch(), 2, whole=False)
    assert desk.dropped == []
    desk.books.fetched(fetch(), 3, whole=True)
    desk.books.fetched(fetch(), 0, whole=True)
    assert desk.dropped == [("unreadable", 3)]


def _see(directory: Path, *seen: BatchSeen, now: float = NOON) -> list[Waiting]:
    """Said in this order, or in any other, twice; then looked at."""
    ledger = Ledger(directory)
    with ledger.transaction() as connection:
        ledger_batches.see(connection, (*seen, *seen))
        found = ledger_batches.waiting(connection, now)
    ledger.close()
    return found


def _batch(name: str = "msgbatch_1", age: float = 3600.0, **facts: Any) -> BatchSeen:
    made = NOON - age
    return BatchSeen("anthropic", name, created_at=made, expires_at=made + DAY, **facts)


def test_a_batch_waits_from_its_creation_and_runs_out_after_a_day(tmp_path: Path) -> None:
    assert _see(tmp_path, _batch()) == [Waiting("anthropic", NOON - 3600, NOON - 3600 + DAY)]


@pytest.mark.parametrize("facts", [{"fetched_at": NOON}, {"gone_at": NOON}])
@pytest.mark.parametrize("order", [1, -1])
def test_fetched_and_gone_batches_wait_no_more_in_whatever_order_that_was_heard(
    tmp_path: Path, facts: dict[str, Any], order: int
) -> None:
    said = (_batch(), BatchSeen("anthropic", "msgbatch_1", **facts))[::order]
    assert _see(tmp_path, *said) == []


def test_an_ended_batch_waits_as_long_as_its_results_can_be_had(tmp_path: Path) -> None:
    ended = _batch(age=3 * DAY, ended_at=NOON - 2 * DAY)
    made = NOON - 3 * DAY
    assert _see(tmp_path, ended) == [Waiting("anthropic", made, made + RESULTS_SECONDS)]
    assert _see(tmp_path, now=made + RESULTS_SECONDS - 1) != []
    assert _see(tmp_path, now=made + RESULTS_SECONDS) == []


def test_a_batch_of_which_no_end_was_heard_has_ended_after_its_day(tmp_path: Path) -> None:
    made = NOON - 2 * DAY
    assert _see(tmp_path, _batch(age=2 * DAY)) == [Waiting("anthropic", made, made + RESULTS_SECONDS)]


def test_the_oldest_and_the_one_that_runs_out_next_need_not_be_the_same(tmp_path: Path) -> None:
    old, young = _batch("msgbatch_1", age=2 * DAY, ended_at=NOON - DAY), _batch("msgbatch_2")
    assert _see(tmp_path, old, young) == [Waiting("anthropic", NOON - 2 * DAY, NOON - 3600 + DAY)]


def test_a_list_brings_known_batches_up_to_date_and_takes_up_no_others(tmp_path: Path) -> None:
    listed: dict[str, Any] = {"listed": True, "provider": "anthropic", "created_at": NOON - 60, "expires_at": NOON + 60}
    assert _see(tmp_path, BatchSeen(batch_id="strangers", **listed)) == []
    ended = BatchSeen("anthropic", "msgbatch_1", ended_at=NOON, listed=True)
    ((_, _, next_expiry),) = _see(tmp_path, _batch(), ended)
    assert next_expiry == NOON - 3600 + RESULTS_SECONDS


def test_what_was_said_of_a_batch_reaches_the_ledger_and_is_said_once(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    now = time.time()
    for _ in range(3):
        desk.books.seen(BatchSeen("anthropic", "msgbatch_1", created_at=now, expires_at=now + DAY))
    batch = desk.journal.next_batch()
    assert batch is not None
    assert len(batch.seen) == 1
    desk.writer.round()
    assert desk.waiting[-1] == [Waiting("anthropic", now, now + DAY)]
    desk.books.fetched(fetch(), 0, whole=False)
    desk.writer.round()
    desk.books.fetched(fetch(), 0, whole=True)
    desk.writer.round()
    assert [bool(each) for each in desk.waiting] == [True, False]


def test_a_dead_workers_batches_are_taken_over(tmp_path: Path) -> None:
    dead, now = Desk(tmp_path), time.time()
    dead.books.seen(BatchSeen("anthropic", "msgbatch_1", created_at=now, expires_at=now + DAY))
    for segment in dead.journal._segments:
        segment.close()
    heir = Desk(tmp_path)
    heir.writer.round()
    assert heir.waiting[-1] == [Waiting("anthropic", now, now + DAY)]


def test_the_gauges_stand_while_a_batch_waits_and_go_when_none_does() -> None:
    with telemetry() as told:
        counting, now = Counting(told.telemetry.metrics, lambda *_: None), time.time()
        counting.on_waiting([Waiting("anthropic", now - 3600, now + 7200)])
        shown = {metric: value for metric, _, value, _ in told.telemetry.metrics.newest()}
        assert shown[catalog.BATCH_OLDEST] == pytest.approx(3600, abs=5)
        assert shown[catalog.BATCH_NEXT_EXPIRY] == now + 7200
        counting.on_waiting([])
        assert list(told.telemetry.metrics.newest()) == []


def test_the_first_fetch_is_the_one_that_is_remembered(tmp_path: Path) -> None:
    said = [BatchSeen("anthropic", "msgbatch_1", fetched_at=NOON + at) for at in (0, 5)]
    _see(tmp_path, _batch(), *said)
    with Ledger(tmp_path).transaction() as connection:
        assert connection.execute(BATCHES.select()).mappings().one()["fetched_at"] == NOON


def test_old_batches_are_forgotten(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with ledger.transaction() as connection:
        ledger_batches.see(
            connection, [_batch("old", age=DAY), _batch("new", age=1), BatchSeen("p", "b", fetched_at=1.0)]
        )
        ledger_batches.prune(connection, NOON - 3600)
        assert connection.execute(BATCHES.select()).mappings().one()["batch_id"] == "new"


def test_a_ledger_from_before_there_were_batches_takes_them(tmp_path: Path) -> None:
    before = Ledger(tmp_path, migrations=())
    before.add([row()])
    with before.transaction() as connection:
        connection.exec_driver_sql(f"DROP TABLE {BATCHES.name}")
        connection.exec_driver_sql(f"ALTER TABLE {CALLS.name} DROP COLUMN saved")
        assert connection.execute(VERSION.select()).scalar_one() == 1
    before.close()
    desk = Desk(tmp_path)
    desk.sold()
    desk.books.seen(_batch())
    assert len(desk.rows()) == 1
    with sqlite3.connect(tmp_path / FILE) as connection_now:
        assert connection_now.execute("SELECT count(*), count(saved) FROM calls").fetchone() == (2, 1)
    connection_now.close()
