"""Limits of our own clients and the retry budget, over the workers of a host."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from service.pacer.clients import Admitted, ClientLimits
from service.pacer.retries import RetryBudget
from service.pacer.shared import forget_slot
from service.policy.limits import Limits, Reached
from tests.pacer.virtual import Host

Worker = Callable[[int], ClientLimits]


@pytest.fixture
def worker(host: Host) -> Worker:
    def make(slot: int) -> ClientLimits:
        return ClientLimits(host.state, slot, fail_open=host.fail_open, clock=host.clock, wall=lambda: 86_400.0 * 100)

    return make


def admitted(verdict: Admitted | Reached) -> Admitted:
    assert isinstance(verdict, Admitted)
    return verdict


def test_requests_are_counted_over_all_workers(worker: Worker, host: Host) -> None:
    limits, workers = Limits(requests=6), [worker(0), worker(1)]
    verdicts = [workers[n % 2].admit("bob", limits) for n in range(7)]
    assert [isinstance(verdict, Admitted) for verdict in verdicts] == [True] * 6 + [False]
    assert verdicts[6] == ("requests", 10.0)
    assert isinstance(workers[0].admit("eve", limits), Admitted)
    host.loop.now += 10
    assert isinstance(workers[0].admit("bob", limits), Admitted)


def test_concurrency_is_freed_by_close_once(worker: Worker) -> None:
    limits, one, two = Limits(concurrency=2), worker(0), worker(1)
    first = admitted(one.admit("bob", limits))
    admitted(two.admit("bob", limits))
    assert one.admit("bob", limits) == ("concurrency", 1.0)
    first.close()
    first.close()
    admitted(two.admit("bob", limits))
    assert one.admit("bob", limits) == ("concurrency", 1.0)


def test_a_killed_workers_concurrency_is_freed(worker: Worker, host: Host) -> None:
    limits = Limits(concurrency=1)
    admitted(worker(1).admit("bob", limits))
    assert isinstance(worker(0).admit("bob", limits), Reached)
    assert forget_slot(host.state, 1)
    admitted(worker(0).admit("bob", limits))


def test_tokens_and_money_that_were_spent_count_for_the_next(worker: Worker) -> None:
    one, two = worker(0), worker(1)
    admitted(one.admit("bob", Limits())).spent(1000, 5_000_000_000)
    assert two.admit("bob", Limits(tokens=500)) == ("tokens", 60.12)
    assert two.admit("bob", Limits(budget=5_000_000_000)) == ("budget", 86_400.0)
    assert two.remaining("bob", Limits(budget=6_000_000_000))["budget"].remaining == 1_000_000_000


def test_what_is_left_comes_with_the_admission(worker: Worker) -> None:
    left = admitted(worker(0).admit("bob", Limits(requests=10, concurrency=3))).left
    assert (left["requests"].remaining, left["concurrency"].remaining) == (9, 2)


def test_without_the_lock_a_client_is_let_in_and_counted_afterwards(worker: Worker, host: Host) -> None:
    one = worker(0)
    host.state.region.lock()
    request = admitted(one.admit("bob", Limits(requests=5)))
    host.state.region.unlock()
    assert host.opened == 1
    assert one.remaining("bob", Limits(requests=5, concurrency=5)) == {
        "requests": (5, 4, 12),
        "concurrency": (5, 4, 0),
    }
    request.close()
    assert one.remaining("bob", Limits(concurrency=5))["concurrency"].remaining == 5


def test_retries_are_a_share_of_the_hosts_requests(host: Host) -> None:
    budgets = [
        RetryBudget(host.state, slot, "anthropic", 0.2, fail_open=host.fail_open, clock=host.clock) for slot in (0, 1)
    ]
    assert budgets[0].try_retry()  # a storm begins: from here on its own requests count
    for n in range(100):
        budgets[n % 2].count_request()
    assert [budgets[n % 2].try_retry() for n in range(20)] == [True] * 19 + [False]
    host.loop.now += 6000
    assert [budgets[0].try_retry() for _ in range(11)] == [True] * 10 + [False]
