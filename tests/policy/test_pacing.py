"""Pacing's arithmetic against a provider that keeps its own count."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.policy.pacing import CAREFUL_CALLS, KNOWN, UNLIMITED, Limit, Pool
from tests.policy.provider import Gateway, Provider, backlog, most_in_any_window

ONE = (1.0, 100.0, 100.0)


def fresh() -> Pool:
    return Pool([0.0] * Pool.WIDTH)


def known(limit: float = 60.0, remaining: float | None = None, now: float = 0.0) -> Pool:
    """A pool that has heard of its requests limit, with nothing under way."""
    pool = fresh()
    pool.take(ONE, now)
    pool.answer(ONE, [Limit("requests", limit, limit if remaining is None else remaining)], now, [0.0] * 3, now)
    pool.end(ONE[2], None)
    return pool


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([20.0, 60.0, 200.0]), st.floats(0.01, 3.0))
def test_requests_never_exceed_the_limit_in_any_window_and_are_never_rejected(
    seed: int, limit: float, delay: float
) -> None:
    provider = Provider((limit, 1e6, 1e6))
    Gateway(provider).run(backlog(int(limit * 1.5), seed=seed, delay=delay), 600)
    assert provider.rejected == 0
    assert len(provider.admitted) == int(limit * 1.5)
    assert most_in_any_window(provider.admitted, limit) <= 1e-3


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_input_tokens_are_never_rejected_when_they_are_estimated_right(seed: int) -> None:
    provider = Provider((1e5, 30_000.0, 1e6))
    Gateway(provider).run(backlog(60, seed=seed, amounts=(1.0, 1000.0, 10.0)), 600)
    assert provider.rejected == 0
    assert len(provider.admitted) == 60


@pytest.mark.parametrize(
    ("limits", "amounts"),
    [
        ((60.0, 1e6, 1e6), (1.0, 10.0, 10.0)),
        ((1e5, 60_000.0, 1e6), (1.0, 1000.0, 10.0)),
        ((1e5, 1e6, 60_000.0), (1.0, 10.0, 1000.0)),
    ],
)
def test_a_backlog_uses_nearly_all_of_the_limit(
    limits: tuple[float, float, float], amounts: tuple[float, float, float]
) -> None:
    provider = Provider(limits)
    Gateway(provider).run(backlog(180, amounts=amounts), 600)
    assert provider.rejected == 0
    assert len(provider.admitted) >= 0.97 * (60 + provider.admitted[-1])  # all three limits give one call a second


def test_wrong_estimates_of_output_cost_no_throughput_and_no_429() -> None:
    provider = Provider((1e5, 1e6, 60_000.0))
    Gateway(provider).run(backlog(180, amounts=(1.0, 10.0, 1000.0), noise=0.5, lasting=20.0), 600)
    assert provider.rejected == 0
    assert len(provider.admitted) >= 0.97 * (60 + provider.admitted[-1])


def test_a_pool_keeps_whole_what_it_is_given() -> None:
    values = tuple(float(n) for n in range(Pool.WIDTH))
    assert Pool(values).values() == values


def test_the_first_calls_are_let_through_carefully_and_then_more() -> None:
    pool = fresh()
    for _ in range(CAREFUL_CALLS):
        assert pool.fits(ONE, 0.0)
        pool.take(ONE, 0.0)
    assert not pool.fits(ONE, 0.5)
    assert pool.wait((0.0, 0.0, 0.0), ONE, 0.5)[0] == pytest.approx(0.5)
    assert pool.fits(ONE, 1.0)


def test_a_silent_provider_does_not_block_for_ever() -> None:
    pool = fresh()
    for _ in range(CAREFUL_CALLS):
        pool.take(ONE, 0.0)
    for _ in range(5000):
        assert pool.fits(ONE, 11.0)
        pool.take(ONE, 11.0)


def test_an_answer_without_limits_opens_the_pool() -> None:
    pool = fresh()
    for _ in range(CAREFUL_CALLS):
        pool.take(ONE, 0.0)
    pool.answer(ONE, [], 0.0, [0.0] * 3, 0.1)
    assert pool.state == UNLIMITED
    for _ in range(100):
        assert pool.fits(ONE, 0.1)
        pool.take(ONE, 0.1)


def test_an_error_without_limits_says_nothing() -> None:
    pool = fresh()
    for _ in range(CAREFUL_CALLS + 1):
        pool.take(ONE, 0.0)
    pool.answer(ONE, None, 0.0, [0.0] * 3, 0.1)
    assert not pool.fits(ONE, 0.1)


@pytest.mark.parametrize(
    ("limit", "remaining"),
    [(None, 5.0), (50.0, None), (0.0, 0.0), (-1.0, 5.0), (50.0, -1.0), (50.0, 5000.0), (math.nan, 5.0),
     (50.0, math.nan), (math.inf, 5.0), (1e30, 5.0)],
)  # fmt: skip
def test_numbers_that_cannot_be_are_ignored(limit: float | None, remaining: float | None) -> None:
    pool = known(60)
    before = pool.values()
    pool._learn([Limit("requests", limit, remaining), Limit("elephants", 3, 3)], 1.0, [1.0, 100.0, 100.0], 0.0)
    assert pool.values() == before


def test_an_older_calls_headers_change_nothing() -> None:
    pool = known(60, remaining=10, now=100.0)
    pool.take(ONE, 100.0)
    level = pool.level[0]
    pool.answer(ONE, [Limit("requests", 60, 60)], 50.0, [0.0] * 3, 100.0)
    assert pool.level[0] == level


def test_what_others_use_of_the_key_is_learnt_from_headers() -> None:
    pool = known(60)
    pool.take(ONE, 1.0)
    pool.answer(ONE, [Limit("requests", 60, 2)], 1.0, pool.answered, 1.0)
    assert pool.level[0] <= 2.5


def test_a_limit_that_shrinks_is_taken_over() -> None:
    pool = known(60)
    pool.take(ONE, 1.0)
    pool.answer(ONE, [Limit("requests", 10, 9)], 1.0, pool.answered, 1.0)
    assert pool.limit[0] == 10
    assert pool.level[0] <= 9.5


def test_refill_is_even_and_ends_at_the_limit() -> None:
    pool = known(60, remaining=0)
    pool.advance(0.0)
    start = pool.level[0]
    pool.advance(10.0)
    assert pool.level[0] == pytest.approx(start + 10)
    pool.advance(1000.0)
    assert pool.level[0] == 60


def test_nothing_is_refilled_behind_a_burst_that_may_still_be_on_its_way() -> None:
    pool = known(60, now=0.0)
    pool.advance(100.0)
    while pool.fits(ONE, 100.0):
        pool.take(ONE, 100.0)
    pool.advance(100.9)
    assert pool.level[0] < 0.5  # the provider's bucket is full until the burst is there: it takes no refill
    pool.unanswered[0] = 0.0  # all answered
    pool.advance(101.9)
    assert pool.level[0] == pytest.approx(1.0, abs=0.1)


@given(st.lists(st.floats(-5, 5), max_size=30))
def test_a_clock_that_jumps_back_never_gives_more_than_time_that_passed(steps: list[float]) -> None:
    pool = known(60, remaining=0)
    start, now, highest = pool.level[0], 0.0, 0.0
    for step in steps:
        now = max(-0.9, now + step) if step > 0 else max(now + step, highest - 0.9)
        highest = max(highest, now)
        pool.advance(now)
    assert pool.level[0] <= start + highest + 1e-6


def test_after_a_429_the_gate_is_shut_until_the_named_time_and_opens_gradually() -> None:
    pool = known(60)
    pool.take(ONE, 0.0)
    pool.answer(ONE, None, 0.0, [0.0] * 3, 0.0)
    pool.reject(ONE, 10.0, "requests", 0.0, 0.0)
    pool.advance(9.9)
    assert not pool.fits(ONE, 9.9)
    went = 0
    for tenth in range(100, 200):
        pool.advance(tenth / 10)
        while pool.fits(ONE, tenth / 10):
            pool.take(ONE, tenth / 10)
            went += 1
    assert went == pytest.approx(10, abs=1)
    assert pool.closed_until == 10.0


def test_a_429_of_a_pool_without_limits_starts_it_slowly() -> None:
    pool = fresh()
    pool.take(ONE, 0.0)
    pool.answer(ONE, [], 0.0, [0.0] * 3, 0.0)
    pool.reject(ONE, 5.0, None, 0.0, 0.0)
    pool.end(0.0, None)
    assert not pool.fits(ONE, 4.9)
    for _ in range(CAREFUL_CALLS):
        assert pool.fits(ONE, 5.0)
        pool.take(ONE, 5.0)
    assert not pool.fits(ONE, 5.0)


@pytest.mark.parametrize("retry_after", [None, -1.0, math.nan, math.inf, 1e9])
def test_an_absurd_pause_is_not_kept(retry_after: float | None) -> None:
    pool = known(60)
    pool.reject(ONE, retry_after, None, 0.0, 0.0)
    assert 0 < pool.closed_until <= 3600


def test_more_than_the_limit_is_had_when_the_bucket_is_full_and_is_paid_off() -> None:
    pool = known(60)
    pool.answer(ONE, [Limit("input_tokens", 10_000, 10_000)], 0.0, [1.0, 100.0, 100.0], 0.0)
    pool.advance(60.0)
    large = (1.0, 25_000.0, 10.0)
    assert pool.fits(large, 60.0)
    pool.take(large, 60.0)
    assert pool.level[1] == pytest.approx(-15_000)
    seconds, dimension = pool.wait((0.0, 0.0, 0.0), large, 60.0)
    assert seconds == pytest.approx(150.0)
    assert dimension == "input_tokens"


def test_output_is_not_reserved_but_owed() -> None:
    pool = known(60)
    pool.answer(ONE, [Limit("output_tokens", 6000, 1000)], 0.0, [1.0, 100.0, 100.0], 0.0)
    huge = (1.0, 10.0, 5000.0)
    assert pool.fits(huge, 0.0)
    pool.take(huge, 0.0)
    assert not pool.fits(ONE, 0.0)
    pool.end(5000.0, 100.0)
    assert pool.fits(ONE, 0.0)


def limited(dimension: str, limit: float, remaining: float) -> Pool:
    """A pool that has heard of one limit at time 0, with nothing under way."""
    pool = fresh()
    pool.take(ONE, 0.0)
    pool.answer(ONE, [Limit(dimension, limit, remaining)], 0.0, [0.0] * 3, 0.0)
    pool.end(ONE[2], None)
    return pool


def test_after_input_was_estimated_too_low_a_call_waits_for_what_it_may_really_need() -> None:
    pool = limited("input_tokens", 60_000, 60_000)
    pool.correct_input(1000, 1500, 4000, 0)
    pool.level[1] = 1200.0
    call = (1.0, 1000.0, 10.0)
    assert not pool.fits(call, 0.0)
    assert pool.wait((0.0, 0.0, 0.0), call, 0.0)[0] == pytest.approx(0.3)
    pool.advance(0.31)
    assert pool.fits(call, 0.31)
    pool.unanswered[1] = 1000.0
    assert not pool.fits(call, 0.31)  # what is on its way may be more than it was estimated at


def test_after_a_long_answer_some_output_is_kept_back_but_never_more_than_a_tenth_of_the_limit() -> None:
    pool = limited("output_tokens", 60_000, 60_000)
    pool.take(ONE, 0.0)
    pool.end(100.0, 900.0)
    pool.level[2] = 700.0
    assert not pool.fits(ONE, 0.0)
    assert pool.wait((0.0, 0.0, 0.0), ONE, 0.0)[0] == pytest.approx(0.1)
    pool.take(ONE, 0.0)
    pool.end(100.0, 50_000.0)
    pool.level[2] = 6001.0
    assert pool.fits(ONE, 0.0)


def test_what_the_headers_gave_back_of_a_high_estimate_is_not_given_back_twice() -> None:
    pool = limited("input_tokens", 60_000, 30_000)
    call = (1.0, 10_000.0, 10.0)
    before, sent = tuple(pool.answered), 1.0
    pool.advance(sent)
    pool.take(call, sent)
    raised = pool.answer(call, [Limit("input_tokens", 60_000, 26_000)], sent, before, sent)
    pool.correct_input(10_000, 5_000, 40_000, 0, raised)
    assert pool.level[1] <= 26_500


def test_a_low_estimate_is_forgotten_when_later_ones_are_right() -> None:
    pool = limited("input_tokens", 60_000, 60_000)
    pool.correct_input(1000, 2000, 4000, 0)
    for _ in range(500):
        pool.correct_input(1000, 1000, 4000, 0)
    pool.level[1] = 1010.0
    assert pool.fits((1.0, 1000.0, 10.0), 0.0)


def test_what_never_went_leaves_no_trace() -> None:
    pool = known(60)
    before = (pool.level[:], pool.unanswered[:], pool.open)
    pool.take(ONE, 0.0)
    pool.put_back(ONE)
    assert (pool.level, pool.unanswered, pool.open) == before


def test_input_is_estimated_from_what_was_billed_before() -> None:
    pool = known()
    assert pool.input_of(4000, 1) == 1000 + 1600
    for _ in range(50):
        pool.correct_input(1000.0, 100.0, 4000, 0)  # nearly all of it is read from the cache
    assert pool.input_of(4000, 0) < 250


def test_expected_output_follows_what_calls_produce_but_not_above_what_they_may() -> None:
    pool = known()
    for _ in range(50):
        pool.take(ONE, 0.0)
        pool.end(ONE[2], 2000.0)
    assert pool.expected(1, None)[2] == pytest.approx(2000, rel=0.05)
    assert pool.expected(1, 50)[2] == 50


def test_state_is_known_once_a_limit_is() -> None:
    assert known().state == KNOWN


def test_before_estimates_have_proved_themselves_more_must_be_there_than_they_say() -> None:
    pool = limited("input_tokens", 60_000, 1_200)
    assert not pool.fits((1.0, 1000.0, 10.0), 0.0)
    pool.level[1] = 1_250.0
    assert pool.fits((1.0, 1000.0, 10.0), 0.0)
