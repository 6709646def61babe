"""Time spent waiting: the union of the waits, however they overlap."""

from __future__ import annotations

import random
from contextlib import ExitStack

from service.lifetime import Lifetime, Waits


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_random_overlapping_waits_count_once() -> None:
    chance = random.Random(1)
    for _ in range(30):
        spans = [(a, a + chance.randrange(1, 30)) for a in chance.choices(range(100), k=chance.randrange(1, 12))]
        clock = Clock()
        waits, open_waits = Waits(clock), {}
        for moment in range(140):
            clock.now = float(moment)
            for index, (begin, end) in enumerate(spans):
                if begin == moment:
                    open_waits[index] = ExitStack()
                    open_waits[index].enter_context(waits.waiting())
                elif end == moment:
                    open_waits[index].close()
            covered = sum(1 for second in range(moment) if any(b <= second < e for b, e in spans))
            assert waits.seconds == covered, (spans, moment)


def test_a_wait_still_on_counts_up_to_now() -> None:
    clock = Clock()
    waits = Waits(clock)
    with waits.waiting():
        clock.now = 1.5
        assert waits.seconds == 1.5
        clock.now = 2.0
    clock.now = 9.0
    assert waits.seconds == 2.0


def test_a_wait_that_ends_with_an_error_counts_and_is_over() -> None:
    clock = Clock()
    waits = Waits(clock)
    try:
        with waits.waiting():
            clock.now = 1.0
            raise ValueError
    except ValueError:
        clock.now = 5.0
    assert waits.seconds == 1.0


def test_a_wait_measured_elsewhere_is_added() -> None:
    waits = Waits(Clock())
    waits.add(0.25)
    waits.add(0.5)
    assert waits.seconds == 0.75


def test_a_lifetime_begins_when_it_is_made_and_keeps_two_books() -> None:
    clock = Clock()
    clock.now = 7.0
    lifetime = Lifetime(clock)
    with lifetime.upstream.waiting():
        clock.now = 8.0
    assert (lifetime.started, lifetime.ending, lifetime.upstream.seconds, lifetime.client.seconds) == (
        7.0,
        None,
        1.0,
        0.0,
    )


def test_waiting_for_both_at_once_counts_once_in_what_was_waited() -> None:
    clock = Clock()
    lifetime = Lifetime(clock)
    with lifetime.client.waiting():
        clock.now = 1.0
        with lifetime.upstream.waiting():
            clock.now = 3.0
    lifetime.client.add(0.5)
    assert (lifetime.client.seconds, lifetime.upstream.seconds, lifetime.waited.seconds) == (3.5, 2.0, 3.5)
