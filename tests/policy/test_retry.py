"""Whether and when another attempt is made: by cure, by order of the provider, by time left, by share of the traffic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.pacer.retries import RetryBudget
from service.pacer.shared import shared_state
from service.policy.budget import FLOOR, WINDOW
from service.policy.retry import BASE, LONGEST, PATIENCE, Failure, Pause, Retries, Stop
from service.tries import Plan, StandIn, Tries

HALF = 0.5


def after(failure: Failure, made: int = 0, left: float = 100.0, *, safe: bool = False, most: int = 2) -> Pause | Stop:
    return Retries(most).after(failure, made, left, safe=safe, random=lambda: HALF)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_statuses_that_another_attempt_may_cure_are_retried(status: int) -> None:
    assert after(Failure("http_error", status)) == Pause(BASE * HALF, "backoff")


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422])
def test_what_the_client_must_change_is_not(status: int) -> None:
    assert after(Failure("http_error", status)) is Stop.FINAL


def test_the_pause_doubles_with_full_jitter_up_to_a_bound() -> None:
    pauses = [Retries(99).after(Failure("http_error", 500), n, 1e9, safe=True, random=lambda: 0.999) for n in range(9)]
    assert [round(p.seconds, 4) for p in pauses if isinstance(p, Pause)] == [
        round(0.999 * seconds, 4) for seconds in (0.5, 1, 2, 4, 8, 8, 8, 8, 8)
    ]
    least = Retries().after(Failure("http_error", 500), 0, 1e9, safe=True, random=lambda: 0.0)
    assert least == Pause(0.0, "backoff")


def test_the_providers_own_time_is_kept_exactly_and_only_within_patience_and_deadline() -> None:
    assert after(Failure("rate_limited", 429, retry_after=7.25)) == Pause(7.25, "provider")
    assert after(Failure("rate_limited", 429, retry_after=7.25), left=7.0) is Stop.DEADLINE
    assert after(Failure("rate_limited", 429, retry_after=PATIENCE + 1), left=1e6) is Stop.DEADLINE


def test_the_providers_word_goes_before_the_status_both_ways() -> None:
    assert after(Failure("http_error", 500, should_retry=False)) is Stop.FINAL
    assert isinstance(after(Failure("http_error", 400, should_retry=True)), Pause)


def test_a_spend_limit_is_never_retried_whatever_else_is_said() -> None:
    assert after(Failure("rate_limited", 429, limit="spend", retry_after=1.0, should_retry=True)) is Stop.SPEND


def test_what_was_sent_and_not_answered_is_retried_only_if_safe_or_allowed() -> None:
    lost = Failure("no_answer", unanswered=True)
    assert after(lost) is Stop.FINAL
    assert isinstance(after(lost, safe=True), Pause)
    allowed = Retries(2, unanswered=True).after(lost, 0, 9.0, safe=False, random=lambda: HALF)
    assert isinstance(allowed, Pause)
    assert isinstance(after(Failure("not_sent")), Pause)


def test_no_more_retries_than_allowed_and_none_at_all_is_the_clients_affair() -> None:
    assert after(Failure("http_error", 529, overloaded=True), made=2) is Stop.USED_UP
    assert after(Failure("http_error", 529, overloaded=True), most=0) is Stop.FINAL


def test_clients_are_told_to_stop_only_where_we_have_tried_or_nobody_can() -> None:
    assert {stop for stop in Stop if stop.is_ours} == {Stop.SPEND, Stop.USED_UP, Stop.BUDGET}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def _budget(share: float, clock: Clock) -> RetryBudget:
    return RetryBudget(shared_state(1), 0, "anthropic", share, fail_open=lambda: None, clock=clock)


@given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=300), st.sampled_from([0.0, 0.1, 0.2, 1.0]))
def test_retries_never_exceed_the_share_of_the_requests_above_the_floor(
    steps: list[tuple[float, bool]], share: float
) -> None:
    clock = Clock()
    budget = _budget(share, clock)
    retries = 0
    for requests, (seconds, asks) in enumerate(steps, 1):
        clock.now += seconds
        budget.count_request()
        if asks:
            retries += budget.try_retry()
        spans = sum(s for s, _ in steps) / WINDOW + 1
        assert retries <= share * requests + FLOOR * spans


def test_within_one_window_the_share_holds_exactly_and_the_floor_is_always_there() -> None:
    budget = _budget(0.2, Clock())
    assert sum(budget.try_retry() for _ in range(50)) == FLOOR
    for _ in range(1000):
        budget.count_request()
    assert sum(budget.try_retry() for _ in range(1000)) == 200 - FLOOR


@pytest.mark.parametrize("calm", [0, 10, 600])
def test_in_a_storm_attempts_never_exceed_the_share_of_what_it_offered_however_calm_it_was_before(calm: int) -> None:
    clock = Clock()
    budget = _budget(0.2, clock)
    for _ in range(calm * 20):
        clock.now += 0.05
        budget.count_request()
    retries = 0
    for offered in range(1, 60 * 20 + 1):
        clock.now += 0.05
        budget.count_request()
        retries += sum(budget.try_retry() for _ in range(2))
        assert retries <= max(FLOOR + 1, 0.2 * offered + 1)


def test_a_clock_that_goes_back_gives_no_retries_away() -> None:
    clock = Clock()
    budget = _budget(0.0, clock)
    assert sum(budget.try_retry() for _ in range(20)) == FLOOR
    clock.now -= 1e6
    assert not budget.try_retry()


def _tries(most: int = 1, stand_ins: tuple[str, ...] = (), share: float = 1.0, **options: bool) -> Tries:
    plan = Plan(Retries(most), {"wanted": stand_ins})
    asked = {"safe": False, "repeatable": True} | options
    budget, vain = _budget(share, Clock()), _budget(share, Clock())
    return Tries(plan, budget, vain, model="wanted", deadline=60.0, may_ask=lambda name: True, **asked)


OVERLOADED = Failure("overloaded", 529, overloaded=True)


def test_stand_ins_are_tried_in_order_once_the_wanted_model_has_had_its_retries() -> None:
    tries = _tries(1, ("second", "third"))
    steps = [tries.after(OVERLOADED, 0.0) for _ in range(6)]
    kinds = [step.model if isinstance(step, StandIn) else step if isinstance(step, Stop) else "pause" for step in steps]
    assert kinds == ["pause", "second", "pause", "third", "pause", Stop.USED_UP]


def test_only_overload_and_rate_limits_call_for_a_stand_in() -> None:
    assert _tries(0, ("second",)).after(Failure("http_error", 500), 0.0) is Stop.FINAL
    assert _tries(0, ("second",)).after(Failure("rate_limited", 429), 0.0) == StandIn("second")


def test_nobody_stands_in_where_the_money_is_used_up() -> None:
    assert _tries(1, ("second",)).after(Failure("rate_limited", 429, limit="spend"), 0.0) is Stop.SPEND


def test_past_the_deadline_nobody_stands_in() -> None:
    assert _tries(1, ("second",)).after(OVERLOADED, 60.0) is Stop.DEADLINE


def test_a_body_that_can_be_sent_only_once_is_sent_only_once() -> None:
    assert _tries(2, ("second",), repeatable=False).after(OVERLOADED, 0.0) is Stop.FINAL


def test_when_retries_are_a_large_share_of_the_traffic_there_is_no_other() -> None:
    budget = _budget(0.0, Clock())
    assert all(budget.try_retry() for _ in range(int(FLOOR)))
    tries = Tries(
        Plan(Retries(2), {}), budget, budget, model=None, safe=True, repeatable=True, deadline=60.0, may_ask=bool
    )
    assert tries.after(OVERLOADED, 0.0) is Stop.BUDGET


def _storm(calls: int, *, stand_in_helps: bool) -> tuple[int, int]:
    """Calls that a stand-in answered, and attempts made, while the model wanted is overloaded."""
    clock = Clock()
    budget, vain = _budget(0.2, clock), _budget(0.2, clock)
    plan, helped, attempts = Plan(Retries(2), {"wanted": ("second",)}), 0, 0
    for _ in range(calls):
        clock.now += 0.05
        tries = Tries(
            plan, budget, vain, model="wanted", safe=False, repeatable=True, deadline=1e9, may_ask=lambda name: True
        )
        step: object = None
        while not isinstance(step, Stop):
            attempts += 1
            if stand_in_helps and isinstance(step, StandIn):
                helped += 1
                break
            step = tries.after(OVERLOADED, 0.0)
    return helped, attempts


def test_in_a_models_storm_every_call_is_handed_to_the_stand_in_that_was_named_for_it() -> None:
    helped, attempts = _storm(1200, stand_in_helps=True)
    assert helped == 1200
    assert attempts <= (2 + 0.2) * 1200


def test_in_a_storm_of_all_models_stand_ins_do_not_become_another() -> None:
    assert _storm(1200, stand_in_helps=False)[1] <= (1 + 0.2 + 0.2) * 1200


def test_the_numbers_are_the_sdks() -> None:
    assert (BASE, LONGEST) == (0.5, 8.0)
