"""What a client of ours may do, by its counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.policy.limits import DAY, Counts, Limits

NOON = 1000.5 * DAY


def counts(**used: float) -> Counts:
    found = Counts([0.0] * Counts.WIDTH)
    found.advance(Limits(), 0.0, NOON)
    for name, value in used.items():
        setattr(found, name, value)
    return found


@given(st.lists(st.floats(0, 3), min_size=1, max_size=300), st.integers(1, 60))
def test_never_more_requests_than_a_minutes_worth_and_the_refill(gaps: list[float], limit: int) -> None:
    limits, used, now, admitted = Limits(requests=limit), counts(), 0.0, 0
    for gap in gaps:
        now += gap
        used.advance(limits, now, NOON)
        if used.refusal(limits, 0, NOON) is None:
            used.requests += 1
            admitted += 1
    assert admitted <= limit + now * limit / 60 + 1e-3


def test_each_limit_says_when_to_come_back() -> None:
    assert counts(requests=60).refusal(Limits(requests=60), 0, NOON) == ("requests", 1.0)
    assert counts(tokens=699).refusal(Limits(tokens=600), 0, NOON) == ("tokens", 10.0)
    assert counts().refusal(Limits(concurrency=2), 2, NOON) == ("concurrency", 1.0)
    assert counts(spent=5).refusal(Limits(budget=5), 0, NOON) == ("budget", DAY / 2)


def test_the_limit_that_lasts_longest_is_named() -> None:
    reached = counts(requests=60, spent=5).refusal(Limits(requests=60, budget=5), 0, NOON)
    assert reached is not None
    assert reached.limit == "budget"


def test_no_limit_refuses_nothing_and_a_limit_of_none_everything() -> None:
    assert counts(requests=1e9, tokens=1e9, spent=1e15).refusal(Limits(), 1e9, NOON) is None
    assert counts().refusal(Limits(requests=0), 0, NOON) is not None


def test_the_budget_is_new_at_utc_midnight_and_not_when_the_wall_clock_jumps_back() -> None:
    limits, used = Limits(budget=5), counts(spent=5)
    used.advance(limits, 1.0, NOON - 3 * DAY)
    assert used.refusal(limits, 0, NOON) is not None
    used.advance(limits, 2.0, 1001 * DAY)
    assert used.refusal(limits, 0, 1001 * DAY) is None


def test_other_limits_apply_to_the_same_counts() -> None:
    used = counts(requests=30)
    assert used.refusal(Limits(requests=20), 0, NOON) is not None
    assert used.refusal(Limits(requests=40), 0, NOON) is None


def test_what_is_left_is_told_for_every_limit() -> None:
    left = counts(requests=15, tokens=100, spent=2).left(Limits(60, 50, 4, 10), 1, NOON)
    assert left["requests"] == (60, 45, 15)
    assert left["tokens"] == (50, 0, 120)
    assert left["concurrency"] == (4, 3, 0)
    assert left["budget"] == (10, 8, DAY / 2)
