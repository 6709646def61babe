"""Who goes next, of those that wait."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.policy.fairness import CLIENTS, Waiter, predict, serve
from service.policy.pacing import Limit, Pool

SMALL = (1.0, 100.0, 10.0)
LARGE = (1.0, 30_000.0, 10.0)


def pool_of(requests: float = 60.0, tokens: float = 60_000.0) -> Pool:
    """A pool that is empty at time 0."""
    pool = Pool([0.0] * Pool.WIDTH)
    pool.take(SMALL, 0.0)
    told = [Limit("requests", requests, 0), Limit("input_tokens", tokens, 0)]
    pool.answer(SMALL, told, 0.0, [0.0] * 3, 0.0)
    pool.end(10.0, 10.0)
    return pool


def run(waiting: list[Waiter], pool: Pool, seconds: int, tags: list[float] | None = None) -> list[Waiter]:
    """Who went, in order, when all that time somebody looks every tenth of a second."""
    tags = [0.0] * CLIENTS if tags is None else tags
    left, went = list(waiting), []
    for tenth in range(1, seconds * 10 + 1):
        pool.advance(tenth / 10)
        for one in serve(pool, left, tags, tenth / 10).granted:
            left.remove(one)
            went.append(one)
    return went


@given(st.integers(1, 40), st.integers(1, 40))
def test_two_clients_with_a_backlog_get_equal_shares(first: int, second: int) -> None:
    waiting = [Waiter(n / 1000, n, 1, SMALL) for n in range(first)]
    waiting += [Waiter(0.5 + n / 1000, first + n, 2, SMALL) for n in range(second)]
    went = [one.client for one in run(waiting, pool_of(), 100)]
    assert len(went) == first + second
    both = went[: 2 * min(first, second)]
    for n in range(1, len(both) + 1):
        assert abs(both[:n].count(1) - both[:n].count(2)) <= 1


@given(st.permutations(range(12)))
def test_within_one_client_it_is_first_come_first_served(places: list[int]) -> None:
    waiting = [Waiter(float(n), place, 1, SMALL) for n, place in enumerate(places)]
    assert [one.arrival for one in run(waiting, pool_of(), 30)] == sorted(float(n) for n in range(12))


def test_a_large_request_is_not_starved_by_small_ones() -> None:
    waiting = [Waiter(0.0, 0, 1, LARGE)] + [Waiter(n / 1000, n, 2, SMALL) for n in range(1, 200)]
    went = run(waiting, pool_of(), 60)
    assert [one.client for one in went].index(1) <= 1


def test_small_requests_are_not_starved_by_large_ones() -> None:
    waiting = [Waiter(n / 1000, n, 1, LARGE) for n in range(20)] + [Waiter(1.0, n, 2, SMALL) for n in range(20, 40)]
    went = run(waiting, pool_of(), 70)
    assert sum(one.client == 2 for one in went) == 20
    assert sum(one.client == 1 for one in went) <= 3


def test_a_client_that_leaves_is_not_waited_for() -> None:
    waiting = [Waiter(0.0, 0, 1, LARGE), Waiter(0.1, 1, 2, SMALL)]
    pool, tags = pool_of(), [0.0] * CLIENTS
    pool.advance(3.0)
    assert serve(pool, waiting, tags, 3.0).granted == []
    assert serve(pool, waiting[1:], tags, 3.0).granted == waiting[1:]


def test_who_had_much_before_is_not_punished_once_nobody_waits() -> None:
    pool, tags = pool_of(), [0.0] * CLIENTS
    run([Waiter(n / 1000, n, 1, SMALL) for n in range(20)], pool, 30, tags)
    pool.level[0] = 0.0
    later = [Waiter(30 + n / 1000, n, 1 + n % 2, SMALL) for n in range(10)]
    pool.advance(31.0)
    pool.advance(40.0)
    assert [one.client for one in serve(pool, later, tags, 40.0).granted][:4] == [1, 2, 1, 2]


def test_the_wait_is_foreseen_from_who_goes_before_not_from_all_who_wait() -> None:
    pool = pool_of()
    waiting = [Waiter(n / 1000, n, 1, SMALL) for n in range(50)]
    mine, other = Waiter(1.0, 50, 2, SMALL), Waiter(1.0, 50, 1, SMALL)
    fair = predict(pool, [*waiting, mine], [0.0] * CLIENTS, 50, 0.0)
    own = predict(pool, [*waiting, other], [0.0] * CLIENTS, 50, 0.0)
    assert fair[0] < 5
    assert 48 < own[0] < 55
    assert own[1] == "requests"


def test_what_is_foreseen_comes_true_when_nobody_comes() -> None:
    pool = pool_of()
    waiting = [Waiter(n / 1000, n, n % 3, LARGE if n == 4 else SMALL) for n in range(12)]
    seconds, _ = predict(pool, waiting, [0.0] * CLIENTS, 7, 0.0)
    tags, left = [0.0] * CLIENTS, list(waiting)
    for tenth in range(1, 2000):
        pool.advance(tenth / 10)
        gone = {one.place for one in serve(pool, left, tags, tenth / 10).granted}
        left = [one for one in left if one.place not in gone]
        if 7 in gone:
            break
    assert abs(tenth / 10 - seconds) < 0.2
