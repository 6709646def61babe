"""The journal: every finished call reaches the database once, whoever dies and whatever the disk does."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.account import segments
from service.account.journal import Journal
from service.account.rows import Row
from tests.support.book import Book, outcomes, row, started


def _files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.journal"))


def test_a_call_that_ended_is_in_the_database_after_one_round(tmp_path: Path) -> None:
    book = Book(tmp_path)
    call = book.call()
    assert book.journal.backlog() == 1
    book.writer.round()
    assert outcomes(tmp_path) == {call: "ok"}
    assert book.journal.backlog() == 0


def test_a_row_comes_back_from_the_file_as_it_was_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path, lambda *_: None)
    wanted = row(model="claude-ünïcode", ttft_s=0.25, input_tokens=None, cached=True)
    journal.ended(wanted)
    batch = journal.next_batch()
    assert batch is not None
    assert batch.rows == [wanted]


def test_a_dead_workers_calls_are_taken_over_and_its_open_ones_are_interrupted(tmp_path: Path) -> None:
    dead = Book(tmp_path)
    finished = dead.call()
    under_way = started()
    dead.journal.began(under_way)
    dead.die()
    Book(tmp_path).writer.round()
    assert outcomes(tmp_path) == {finished: "ok", under_way.call_id: "interrupted"}


def test_a_living_workers_open_calls_are_left_alone(tmp_path: Path) -> None:
    living, other = Book(tmp_path), Book(tmp_path)
    under_way = started()
    living.journal.began(under_way)
    other.writer.round()
    living.journal.ended(row(under_way.call_id))
    living.writer.round()
    assert outcomes(tmp_path) == {under_way.call_id: "ok"}
    assert other.new == []


def test_what_was_moved_before_a_death_is_not_counted_again(tmp_path: Path) -> None:
    dead = Book(tmp_path)
    calls = {dead.call() for _ in range(5)}
    dead.writer.round()
    calls |= {dead.call() for _ in range(3)}
    dead.die()
    successor = Book(tmp_path)
    successor.writer.round()
    assert outcomes(tmp_path) == dict.fromkeys(calls, "ok")
    assert len(successor.new) == 3


def test_a_taken_over_journal_is_removed(tmp_path: Path) -> None:
    dead = Book(tmp_path)
    dead.call()
    dead.die()
    successor = Book(tmp_path)
    successor.writer.round()
    assert _files(tmp_path) == [segment.path for segment in successor.journal._segments]


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 60])
def test_a_torn_last_entry_costs_nothing_but_itself(tmp_path: Path, cut: int) -> None:
    dead = Book(tmp_path)
    calls = [dead.call() for _ in range(3)]
    dead.die()
    (file,) = _files(tmp_path)
    os.truncate(file, file.stat().st_size - cut)
    Book(tmp_path).writer.round()
    assert outcomes(tmp_path) == {calls[0]: "ok", calls[1]: "ok", calls[2]: "interrupted"}


def test_damage_in_the_middle_costs_only_the_entry_it_hit_and_is_told(tmp_path: Path) -> None:
    dead = Book(tmp_path)
    calls = [dead.call() for _ in range(5)]
    dead.die()
    (file,) = _files(tmp_path)
    data = bytearray(file.read_bytes())
    where = data.rindex(b"ok", 0, len(data) // 2)
    data[where] ^= 0xFF
    file.write_bytes(data)
    successor = Book(tmp_path)
    successor.writer.round()
    found = outcomes(tmp_path)
    assert found.keys() == set(calls)
    assert sorted(found.values()) == ["interrupted", "ok", "ok", "ok", "ok"]
    assert ["damaged" in text for text in successor.told] == [True]


def test_a_full_file_is_followed_by_another_and_removed_when_it_is_read(tmp_path: Path) -> None:
    book = Book(tmp_path, segment_bytes=4096)
    calls = set()
    for _ in range(10):
        calls |= {book.call() for _ in range(20)}
        book.writer.round()
    assert outcomes(tmp_path).keys() == calls
    assert len(_files(tmp_path)) == 1


def test_a_call_older_than_the_last_file_is_interrupted_too(tmp_path: Path) -> None:
    dead = Book(tmp_path, segment_bytes=4096)
    long_one = started()
    dead.journal.began(long_one)
    for _ in range(3):
        for _ in range(20):
            dead.call()
        dead.writer.round()
    assert dead.journal._number > 2
    dead.die()
    Book(tmp_path).writer.round()
    assert outcomes(tmp_path)[long_one.call_id] == "interrupted"


def test_a_call_that_began_in_one_file_and_ended_in_the_next_is_not_interrupted(tmp_path: Path) -> None:
    dead = Book(tmp_path, segment_bytes=4096)
    long_one = started()
    dead.journal.began(long_one)
    for _ in range(20):
        dead.call()
    dead.journal.tend()
    dead.journal.ended(row(long_one.call_id))
    assert len(_files(tmp_path)) == 2
    dead.die()
    Book(tmp_path).writer.round()
    assert set(outcomes(tmp_path).values()) == {"ok"}


def test_beyond_the_bound_rows_are_dropped_and_counted_and_room_is_used_again(tmp_path: Path) -> None:
    book = Book(tmp_path, bound=2000, segment_bytes=1000)
    while book.journal.backlog() < 20:
        book.call()
    book.journal.tend()
    book.call()
    assert book.dropped == {"backlog_full": 1}
    book.writer.round()
    book.writer.round()
    book.call()
    book.writer.round()
    assert len(outcomes(tmp_path)) == 21
    assert book.dropped == {"backlog_full": 1}


@contextmanager
def _disk_full(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: a write that does is cut short, the next fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_raises_into_nobody_and_costs_no_row_once_there_is_room(tmp_path: Path) -> None:
    book = Book(tmp_path)
    with _disk_full(1000):
        calls = {book.call() for _ in range(10)}
        book.writer.round()
        assert not book.journal.writable
        assert book.told == [
            "the journal takes no calls; they are kept in memory",
            "the ledger takes no rows; they stay in the journal",
        ]
    book.writer.round()
    assert book.journal.writable
    assert outcomes(tmp_path) == dict.fromkeys(calls, "ok")
    assert book.dropped == {}
    assert book.told[2:] == ["the journal takes calls again", "the ledger takes rows again"]


def test_a_disk_that_takes_nothing_is_told_and_is_no_success_even_if_the_database_has_nothing_to_take(
    tmp_path: Path,
) -> None:
    book = Book(tmp_path)
    book.writer.round()
    assert (book.succeeded, book.told) == (1, [])
    with _disk_full(0):
        call = book.call()
        book.writer.round()
        book.writer.round()
        assert (book.succeeded, book.told) == (1, ["the journal takes no calls; they are kept in memory"])
        assert isinstance(book.journal.trouble, OSError)
    book.writer.round()
    assert (book.succeeded, book.told[1:]) == (2, ["the journal takes calls again"])
    assert outcomes(tmp_path) == {call: "ok"}


def test_an_entry_cut_short_by_a_full_disk_leaves_a_readable_journal(tmp_path: Path) -> None:
    dead = Book(tmp_path)
    with _disk_full(1000):
        calls = [dead.call() for _ in range(10)]
    dead.journal.tend()
    dead.die()
    successor = Book(tmp_path)
    successor.writer.round()
    assert outcomes(tmp_path) == dict.fromkeys(calls, "ok")
    assert successor.told == []


def test_what_is_kept_in_memory_is_bounded_and_the_rest_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.account.journal.KEPT_BYTES", 5000)
    book = Book(tmp_path)
    with _disk_full(0):
        for _ in range(50):
            book.call()
    book.writer.round()
    assert book.dropped["write_failed"] > 0
    assert len(outcomes(tmp_path)) + book.dropped["write_failed"] == 50


def test_a_worker_starts_and_serves_without_a_place_to_write(tmp_path: Path) -> None:
    blocked = tmp_path / "ledger"
    blocked.write_text("a file where the directory should be")
    book = Book(blocked)
    call = book.call()
    assert not book.journal.writable
    book.writer.round()
    blocked.unlink()
    book.writer.round()
    assert book.journal.writable
    assert outcomes(blocked) == {call: "ok"}


def test_a_directory_that_is_removed_is_made_again_with_what_was_not_yet_moved(tmp_path: Path) -> None:
    place = tmp_path / "ledger"
    book = Book(place)
    under_way = started()
    book.journal.began(under_way)
    finished = book.call()
    shutil.rmtree(place)
    book.journal.tend()
    assert book.journal.writable
    book.die()
    Book(place).writer.round()
    assert outcomes(place) == {finished: "ok", under_way.call_id: "interrupted"}


def test_an_absurd_text_costs_neither_the_row_nor_much_room(tmp_path: Path) -> None:
    book = Book(tmp_path)
    calls = {book.call(model="m" * 1_000_000), book.call(model="lone \ud800 surrogate")}
    assert _files(tmp_path)[0].stat().st_size < 3000
    book.writer.round()
    assert outcomes(tmp_path).keys() == calls


def test_a_row_that_no_database_takes_does_not_hold_up_the_others(tmp_path: Path) -> None:
    book = Book(tmp_path)
    before, _, after = book.call(), book.call(input_tokens=2**63), book.call()
    book.writer.round()
    assert outcomes(tmp_path).keys() == {before, after}
    assert book.dropped == {"write_failed": 1}


def test_an_end_written_before_its_start_is_a_call_that_ended(tmp_path: Path) -> None:
    dead = Book(tmp_path)
    start = started()
    dead.journal.ended(row(start.call_id))
    dead.journal.began(start)
    dead.die()
    Book(tmp_path).writer.round()
    assert outcomes(tmp_path) == {start.call_id: "ok"}


def test_an_older_worker_reads_a_newer_ones_entries_and_the_other_way_round(tmp_path: Path) -> None:
    class Longer(Row, frozen=True, array_like=True, tag="e"):
        news: str = "since the next version"

    known = row()
    data = segments.framed(Longer(*(getattr(known, name) for name in Row.__struct_fields__)))
    assert segments.scan(data, final=True) == ([known], len(data), 0)


def test_leaving_in_order_leaves_no_file(tmp_path: Path) -> None:
    book = Book(tmp_path)
    book.writer.start()
    call = book.call()
    book.writer.stop(10)
    assert outcomes(tmp_path) == {call: "ok"}
    assert _files(tmp_path) == []


def test_the_files_are_for_their_owner_only(tmp_path: Path) -> None:
    book = Book(tmp_path / "ledger")
    book.call()
    book.writer.round()
    modes = {path.name.partition(".")[2]: path.stat().st_mode & 0o777 for path in (tmp_path / "ledger").iterdir()}
    assert set(modes.values()) == {0o600}
    assert (tmp_path / "ledger").stat().st_mode & 0o777 == 0o700
