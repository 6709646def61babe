"""Memory shared by processes, its lock, and records found by key."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from service.store.region import HURRY, PATIENCE, Records, Region
from service.store.table import Table


@pytest.fixture
def region() -> Iterator[Region]:
    made = Region(1 << 20)
    yield made
    made.close()


def child(what: Callable[[], None]) -> int:
    """A forked process that does `what` and leaves."""
    pid = os.fork()
    if pid == 0:
        try:
            what()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def ended_well(pid: int) -> bool:
    return os.waitpid(pid, 0)[1] == 0


def test_a_child_sees_what_its_parent_writes_and_the_other_way(region: Region) -> None:
    records = Records(region, 64, 4, 3)
    records.write(2, (1.0, 2.0, 3.0))

    def swap() -> None:
        assert records.read(2) == (1.0, 2.0, 3.0)
        records.write(3, (7.0, 8.0, 9.0))

    assert ended_well(child(swap))
    assert records.read_many(1, 3) == [(0.0, 0.0, 0.0), (1.0, 2.0, 3.0), (7.0, 8.0, 9.0)]


def test_a_lock_that_was_not_had_is_not_waited_for_as_long_in_the_next_second(region: Region) -> None:
    assert region._patience() == PATIENCE
    reading, writing = os.pipe()

    def hold() -> None:
        os.close(writing)
        assert region.lock()
        os.read(reading, 1)

    held = child(hold)
    while region.lock(0.001):
        region.unlock()
    assert region._patience() == HURRY
    region._given_up -= 1
    assert region._patience() == PATIENCE
    os.close(writing)
    assert ended_well(held)
    os.close(reading)


def test_another_process_does_not_get_a_held_lock(region: Region) -> None:
    assert region.lock()

    def refused() -> None:
        # A fork copies the thread's lock as held: only the process's is asked about here.
        region._thread = threading.Lock()
        assert not region.lock(0.001)

    assert ended_well(child(refused))
    region.unlock()
    assert region.lock()
    region.unlock()


def test_another_thread_does_not_get_a_held_lock(region: Region) -> None:
    assert region.lock()
    got: list[bool] = []
    thread = threading.Thread(target=lambda: got.append(region.lock(0.001)))
    thread.start()
    thread.join()
    region.unlock()
    assert got == [False]


def test_the_lock_of_a_killed_process_is_free(region: Region) -> None:
    told, tell = os.pipe()

    def die_inside() -> None:
        assert region.lock()
        os.write(tell, b".")
        signal.pause()

    pid = child(die_inside)
    os.read(told, 1)
    assert not region.lock(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert region.lock()
    region.unlock()
    os.close(told)
    os.close(tell)


def test_processes_that_count_together_lose_nothing(region: Region) -> None:
    records = Records(region, 0, 1, 1)

    def count() -> None:
        for _ in range(2000):
            assert region.lock(60.0)
            records.write(0, (records.read(0)[0] + 1,))
            region.unlock()

    pids = [child(count) for _ in range(3)]
    assert [ended_well(pid) for pid in pids] == [True] * 3
    assert records.read(0) == (6000.0,)


def key(n: int) -> bytes:
    return n.to_bytes(16, "big")


def test_the_longest_unused_idle_key_makes_room(region: Region) -> None:
    table = Table(region, 0, 3)
    cleared: list[int] = []
    places = [table.find_or_make(key(n), float(n), lambda index: True, cleared.append) for n in (1, 2, 3)]
    table.find_or_make(key(1), 4.0, lambda index: True, cleared.append)
    busy = places[1]
    new = table.find_or_make(key(9), 5.0, lambda index: index != busy, cleared.append)
    assert new == places[2]
    assert table.find(key(3)) is None
    assert [table.find(key(n)) for n in (1, 2, 9)] == places
    assert cleared == [*places, new]


def test_without_an_idle_key_there_is_no_room(region: Region) -> None:
    table = Table(region, 0, 1)
    table.find_or_make(key(1), 0.0, lambda index: False, lambda index: None)
    assert table.find_or_make(key(2), 1.0, lambda index: False, lambda index: None) is None


def test_a_key_that_another_process_replaced_is_not_taken_for_the_old_one(region: Region) -> None:
    table, other = Table(region, 0, 1), Table(region, 0, 1)
    table.find_or_make(key(1), 0.0, lambda index: True, lambda index: None)
    other.find_or_make(key(2), 1.0, lambda index: True, lambda index: None)
    assert table.find(key(1)) is None
    assert table.find(key(2)) == 0
