"""The ledger: rows once, sums that agree with them, whatever else uses the database."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from service.account.ledger import FILE, Gone, Ledger, day_at
from service.account.ledger_schema import CALLS, MIGRATIONS
from service.account.ledger_writer import LedgerWriter
from service.account.rows import BATCH_RESULT, Row, batch_call_id
from service.errors import SettingsError
from tests.support.book import NOON, Book, outcomes, row
from tests.support.poll import poll

DAY = "2026-11-22"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Another connection holds the write lock."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def test_the_table_of_calls_has_the_fields_of_a_row() -> None:
    assert [column.name for column in CALLS.columns] == list(Row.__struct_fields__)


def test_a_row_is_held_as_it_came(tmp_path: Path) -> None:
    wanted = row(ttft_s=0.5, streaming=True, cache_read_tokens=None)
    ledger = Ledger(tmp_path)
    ledger.add([wanted])
    assert ledger.calls(None, None, 10) == [msgspec.structs.asdict(wanted)]


def test_a_call_is_taken_once_and_only_the_first_time_it_is_new(tmp_path: Path) -> None:
    ledger, first, second = Ledger(tmp_path), row(), row()
    assert ledger.add([first, first]) == [first]
    assert ledger.add([first, second]) == [second]
    (total,) = ledger.totals([])
    assert (total["calls"], total["input_tokens"], total["exact"]) == (2, 2000, 20_000_000)


def test_a_batchs_result_is_accounted_once_on_whichever_worker_it_is_fetched(tmp_path: Path) -> None:
    for book in (Book(tmp_path), Book(tmp_path)):
        for custom_id in ("a", "b"):
            call_id = batch_call_id("anthropic", "msgbatch_1", custom_id)
            book.journal.ended(row(call_id, kind=BATCH_RESULT))
        book.writer.round()
    assert len(outcomes(tmp_path)) == 2
    assert book.new == []


def test_batch_results_with_different_names_are_different_calls() -> None:
    ids = {batch_call_id(*names) for names in (("p", "b", "c"), ("p", "bc", ""), ("p", "b", "d"), ("q", "b", "c"))}
    assert len(ids) == 4


def test_what_is_unknown_stays_unknown_in_the_sums(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    unknown = {"input_tokens": None, "output_tokens": None, "certainty": "unpriced"}
    ledger.add(
        [
            row(
                **unknown,
                cost_input=None,
                cost_output=None,
                cost_cache_read=None,
                cost_cache_write=None,
                cost_tools=None,
            )
        ]
    )
    (total,) = ledger.totals([])
    assert (total["input_tokens"], total["exact"], total["estimated"], total["unpriced"]) == (None, None, None, 1)
    ledger.add([row()])
    (total,) = ledger.totals([])
    assert (total["input_tokens"], total["exact"], total["unpriced"]) == (1000, 10_000_000, 1)


def test_a_fan_outs_own_row_is_kept_but_not_counted_as_a_call(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add([row(kind="call"), row(kind="fan_out", certainty=None)])
    assert len(ledger.calls(None, None, 10)) == 2
    assert ledger.totals([])[0]["calls"] == 1


def test_a_call_counts_to_the_utc_day_of_its_end(tmp_path: Path) -> None:
    ledger, midnight = Ledger(tmp_path), NOON + 43_200
    ledger.add([row(started=midnight - 1, ended=midnight + 1), row(started=midnight - 2, ended=None)])
    assert [total["day"] for total in ledger.totals(["day"])] == ["2026-11-22", "2026-11-23"]
    assert day_at(midnight) == "2026-11-23"


def test_spend_is_what_a_clients_calls_of_a_day_cost(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add([row(), row(certainty="estimated"), row(client="team-b"), row(client=None), row(ended=NOON + 86_400)])
    assert ledger.spend("team-a", DAY) == 20_000_000
    assert ledger.spend("nobody", DAY) == 0
    assert ledger.spends(DAY) == {"team-a": 20_000_000, "team-b": 10_000_000, "": 10_000_000}


def test_old_calls_are_deleted_and_their_sums_stay(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    old, new = [row(started=NOON - day * 86_400) for day in (500, 450)], row()
    ledger.add([*old, new])
    assert [ledger.prune(NOON - 400 * 86_400, at_most=1) for _ in range(3)] == [1, 1, 0]
    assert [call["call_id"] for call in ledger.calls(None, None, 10)] == [new.call_id]
    assert ledger.totals([])[0]["calls"] == 3


def test_a_writer_keeps_rows_longer_than_a_batchs_results_can_be_fetched(tmp_path: Path) -> None:
    book = Book(tmp_path)
    assert LedgerWriter(book.journal, book.writer.ledger, book.writer._hooks, keep_days=1)._keep_days == 30


def _colour(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE calls ADD COLUMN colour VARCHAR"))
    connection.execute(text("UPDATE calls SET colour = 'red'"))


def test_a_database_of_an_older_version_becomes_one_of_the_next_with_its_data(tmp_path: Path) -> None:
    before = Ledger(tmp_path)
    before.add([row()])
    before.close()
    after = Ledger(tmp_path, migrations=(*MIGRATIONS, _colour))
    after.add([row()])
    after.open()
    with sqlite3.connect(tmp_path / FILE) as connection:
        assert connection.execute("SELECT version FROM schema_version").fetchall() == [(2 + len(MIGRATIONS),)]
        assert sorted(connection.execute("SELECT colour FROM calls").fetchall(), key=str) == [("red",), (None,)]
    connection.close()
    assert after.totals([])[0]["calls"] == 2


def _fail(connection: Connection) -> None:
    _colour(connection)
    raise RuntimeError("half way")


def test_an_upgrade_that_fails_leaves_the_database_as_it_was(tmp_path: Path) -> None:
    Ledger(tmp_path).add([row()])
    with pytest.raises(RuntimeError):
        Ledger(tmp_path, migrations=(*MIGRATIONS, _fail)).open()
    ledger = Ledger(tmp_path)
    ledger.add([row()])
    assert ledger.totals([])[0]["calls"] == 2


def test_a_newer_database_is_refused_with_a_word_on_what_to_do(tmp_path: Path) -> None:
    Ledger(tmp_path, migrations=(*MIGRATIONS, _colour)).add([row()])
    with pytest.raises(SettingsError, match="made by a newer one"):
        Ledger(tmp_path).open()


def test_writers_that_make_the_database_at_the_same_moment_all_succeed(tmp_path: Path) -> None:
    books = [Book(tmp_path) for _ in range(4)]
    calls = {book.call() for book in books for _ in range(50)}
    for book in books:
        book.writer.start()
    for book in books:
        book.writer.stop(20)
    assert outcomes(tmp_path) == dict.fromkeys(calls, "ok")


def test_a_locked_database_is_waited_for_and_nothing_is_lost(tmp_path: Path) -> None:
    book = Book(tmp_path)
    calls = {book.call()}
    book.writer.round()
    with _locked(tmp_path / FILE):
        calls |= {book.call() for _ in range(100)}
        book.writer.round()
        assert book.journal.backlog() == 100
        assert book.told == ["the ledger takes no rows; they stay in the journal"]
        assert book.journal.writable
    book.writer.round()
    assert outcomes(tmp_path) == dict.fromkeys(calls, "ok")
    assert book.told[1:] == ["the ledger takes rows again"]


def test_a_running_writer_gets_over_a_lock_and_says_so_once_each_way(tmp_path: Path) -> None:
    book = Book(tmp_path)
    book.writer.ledger.open()
    with _locked(tmp_path / FILE):
        book.writer.start()
        calls = {book.call() for _ in range(100)}
        poll(lambda: book.told, what="word of the trouble")
    poll(lambda: len(book.told) == 2, what="word that it is over", seconds=30)
    book.writer.stop(10)
    assert outcomes(tmp_path) == dict.fromkeys(calls, "ok")


def test_a_database_moved_away_is_waited_for_and_used_again_when_it_is_back(tmp_path: Path) -> None:
    place, elsewhere = tmp_path / "ledger", tmp_path / "elsewhere.db"
    book = Book(place)
    calls = {book.call()}
    book.writer.round()
    book.writer.ledger.close()
    (place / FILE).rename(elsewhere)
    calls.add(book.call())
    book.writer.round()
    assert not (place / FILE).exists()
    assert book.journal.backlog() == 1
    elsewhere.rename(place / FILE)
    book.writer.round()
    assert outcomes(place) == dict.fromkeys(calls, "ok")


def test_another_database_put_in_its_place_is_used(tmp_path: Path) -> None:
    book = Book(tmp_path)
    book.call()
    book.writer.round()
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).touch()
    call = book.call()
    book.writer.round()
    assert outcomes(tmp_path) == {call: "ok"}


def test_a_removed_database_is_an_error_that_names_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.open()
    ledger.close()
    (tmp_path / FILE).unlink()
    with pytest.raises(Gone, match=FILE):
        ledger.add([row()])


def test_who_only_reads_makes_no_database_and_changes_none(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no gateway has written one"):
        Ledger(tmp_path, create=False).totals([])
    assert list(tmp_path.iterdir()) == []
    Ledger(tmp_path).add([row()])
    with pytest.raises(OperationalError, match="readonly"):
        Ledger(tmp_path, create=False).add([row()])


def test_who_only_reads_is_told_of_a_database_that_is_not_of_its_version(tmp_path: Path) -> None:
    (tmp_path / FILE).touch()
    with pytest.raises(SettingsError, match="no gateway has written to it yet"):
        Ledger(tmp_path, create=False).totals([])
    Ledger(tmp_path).add([row()])
    newer = (*MIGRATIONS, _colour)
    with pytest.raises(SettingsError, match=f"reads version {1 + len(newer)}: the gateway makes it that"):
        Ledger(tmp_path, create=False, migrations=newer).calls(None, None, 1)
    Ledger(tmp_path, migrations=newer).open()
    with pytest.raises(SettingsError, match="made by a newer one"):
        Ledger(tmp_path, create=False).totals([])


def test_reading_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    Ledger(tmp_path).add([row()])
    with _locked(tmp_path / FILE):
        assert Ledger(tmp_path, create=False).totals([])[0]["calls"] == 1


def test_two_writers_at_once_lose_and_double_nothing(tmp_path: Path) -> None:
    books = [Book(tmp_path) for _ in range(2)]
    shared = [row(f"{number:032x}") for number in range(200)]
    threads = [
        threading.Thread(target=lambda book=book: [book.journal.ended(each) or book.writer.round() for each in shared])
        for book in books
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(outcomes(tmp_path)) == 200
    assert len(books[0].new) + len(books[1].new) == 200
