"""Calls are let go at once, in order, or not: over all workers of a host."""

from __future__ import annotations

import asyncio

import pytest

from service.lifetime import Waits
from service.pacer.grant import Ask, Grant, PoolKey, Refused
from service.pacer.pacing import Pacer
from service.pacer.shared import forget_slot
from service.policy.pacing import Pool
from tests.pacer.virtual import KEY, Host, ask, empty, limits


def pool(host: Host) -> Pool:
    index = host.state.pool_keys.find(KEY.digest)
    assert index is not None
    return Pool(host.state.pools.read(index))


async def when(pacer: Pacer, host: Host, **more: object) -> float:
    """The second after now at which a call is let go; it is answered with headers that tell nothing new."""
    began = host.clock()
    grant = await pacer.acquire(KEY, ask(**more))  # type: ignore[arg-type]
    went = host.clock() - began
    grant.answered(None)
    grant.close()
    return went


def test_with_room_a_call_goes_at_once(host: Host) -> None:
    async def scene() -> Grant:
        return await host.worker().acquire(KEY, ask())

    grant = host.run(scene())
    assert (grant.waited, grant.dimension) == (0.0, None)
    assert host.clock() == 1000.0


def test_without_room_calls_go_in_order_as_the_limit_refills(host: Host) -> None:
    async def scene() -> list[float]:
        pacer = host.worker()
        await empty(pacer)
        return await asyncio.gather(*(when(pacer, host) for _ in range(5)))

    assert host.run(scene()) == pytest.approx([1.5, 2.5, 3.5, 4.5, 5.5], abs=0.06)


def test_a_wait_is_told_and_accounted(host: Host) -> None:
    async def scene() -> tuple[Grant, float]:
        pacer, waits = host.worker(), Waits(host.clock)
        await empty(pacer)
        return await pacer.acquire(KEY, ask(), waits), waits.seconds

    grant, seconds = host.run(scene())
    assert grant.waited == pytest.approx(1.5, abs=0.03)
    assert seconds == grant.waited
    assert grant.predicted == pytest.approx(1.5)
    assert grant.dimension == "requests"


def test_workers_share_one_line(host: Host) -> None:
    async def scene() -> list[float]:
        workers = [host.worker(slot) for slot in range(3)]
        await empty(workers[0])
        return await asyncio.gather(*(when(workers[n % 3], host) for n in range(9)))

    went = host.run(scene())
    assert went == pytest.approx([1.5 + n for n in range(9)], abs=0.06)


def test_a_high_rate_is_used_whichever_worker_is_next(host: Host) -> None:
    async def scene() -> list[float]:
        workers = [host.worker(slot, max_queue=1000) for slot in range(4)]
        await empty(workers[0], 60_000)
        waits = (when(workers[n % 4], host, client=f"client {n % 3}") for n in range(800))
        return await asyncio.gather(*waits)

    assert max(host.run(scene())) < 0.9  # 0.8 s at a thousand a second, and a look


def test_clients_share_whichever_came_first(host: Host) -> None:
    async def scene() -> tuple[list[float], float]:
        one, two = host.worker(0), host.worker(1)
        await empty(one)
        many = [asyncio.ensure_future(when(one, host, client="many")) for _ in range(20)]
        await asyncio.sleep(0.1)
        late = await when(two, host, client="late")
        return list(await asyncio.gather(*many)), late

    many, late = host.run(scene())
    assert late < 3
    assert max(many) > 20


def test_the_hopeless_are_refused_at_once_and_told_when_to_come_back(host: Host) -> None:
    async def scene() -> Refused:
        pacer = host.worker()
        await empty(pacer)
        waiting = [asyncio.ensure_future(when(pacer, host)) for _ in range(10)]
        await asyncio.sleep(0)
        with pytest.raises(Refused) as refused:
            await pacer.acquire(KEY, ask(max_wait=5.0))
        assert host.clock() == 1000.0
        await asyncio.gather(*waiting)
        return refused.value

    error = host.run(scene())
    assert (error.reason, error.dimension) == ("too_long", "requests")
    assert error.retry_after == pytest.approx(11.5)


def test_the_queue_is_bounded_over_all_workers(host: Host) -> None:
    async def scene() -> Refused:
        one, two = host.worker(0, max_queue=4), host.worker(1, max_queue=4)
        await empty(one)
        waiting = [asyncio.ensure_future(when(worker, host)) for worker in (one, two, one, two)]
        await asyncio.sleep(0)
        assert (one.depth("anthropic"), two.depth("anthropic"), one.depth("openai")) == (2, 2, 0)
        with pytest.raises(Refused) as refused:
            await two.acquire(KEY, ask())
        await asyncio.gather(*waiting)
        return refused.value

    error = host.run(scene())
    assert error.reason == "queue_full"
    assert error.retry_after == pytest.approx(5.5)


def test_who_waits_for_longer_than_it_may_is_refused(host: Host) -> None:
    async def scene() -> tuple[Refused, float]:
        pacer = host.worker()
        await empty(pacer)
        first = asyncio.ensure_future(pacer.acquire(KEY, ask(max_wait=3)))
        await asyncio.sleep(0)
        pacer._pools.save(0, _shut(pool(host), host.clock() + 30))  # foreseen by nobody
        with pytest.raises(Refused) as refused:
            await first
        return refused.value, host.clock() - 1000

    error, after = host.run(scene())
    assert error.reason == "timeout"
    assert after == pytest.approx(3, abs=0.03)
    assert error.retry_after > 25


def _shut(pool: Pool, until: float) -> Pool:
    pool.closed_until = pool.updated = until
    return pool


def test_a_client_that_leaves_frees_its_place(host: Host) -> None:
    async def scene() -> float:
        pacer = host.worker(max_queue=2)
        await empty(pacer)
        leaver = asyncio.ensure_future(when(pacer, host))
        stays = asyncio.ensure_future(when(pacer, host))
        await asyncio.sleep(0)
        leaver.cancel()
        await asyncio.wait([leaver])
        assert pacer.depth("anthropic") == 1
        await asyncio.sleep(0.1)
        await when(pacer, host)
        return await stays

    assert host.run(scene()) == pytest.approx(1.5, abs=0.03)


def test_who_leaves_as_it_is_let_go_gives_back_what_was_taken(host: Host) -> None:
    async def scene() -> None:
        one, two = host.worker(0), host.worker(1)
        await empty(one)
        first = asyncio.ensure_future(one.acquire(KEY, ask()))
        await asyncio.sleep(0)
        host.loop.now += 1.6  # all at once: nobody has looked, but the other worker is asked for a call
        two._pools.beat(0, host.clock())
        other = asyncio.ensure_future(when(two, host))
        first.cancel()
        await asyncio.wait([first])
        await other

    host.run(scene())
    assert pool(host).unanswered == [0, 0, 0]
    assert pool(host).open == 0


def test_who_leaves_just_after_it_was_let_go_gives_back_what_was_taken(host: Host) -> None:
    async def scene() -> None:
        pacer = host.worker()
        await empty(pacer)
        leaver = asyncio.ensure_future(pacer.acquire(KEY, ask()))
        await asyncio.sleep(0)
        host.loop.now += 1.6
        pacer._look(KEY.digest, pacer._lines[KEY.digest])
        assert pool(host).open == 1
        leaver.cancel()
        await asyncio.wait([leaver])

    host.run(scene())
    assert pool(host).open == 0
    assert pool(host).level[0] > 1


def test_a_429_shuts_the_gate_for_all_workers(host: Host) -> None:
    async def scene() -> list[float]:
        one, two = host.worker(0), host.worker(1)
        grant = await one.acquire(KEY, ask())
        grant.answered(limits())
        grant.close()
        grant = await one.acquire(KEY, ask())
        grant.rejected(10.0, "requests")
        grant.close()
        return [await when(two, host), await when(one, host)]

    assert host.run(scene()) == pytest.approx([11, 1], abs=0.06)


def test_what_a_call_used_is_settled_and_a_closed_one_leaves_nothing_behind(host: Host) -> None:
    async def scene() -> None:
        grant = await host.worker().acquire(KEY, ask(input_tokens=100, max_output=1000))
        grant.answered([*limits(), *_tokens(9000)])
        grant.used(input_tokens=600)
        grant.used(output_tokens=40)
        grant.close()
        grant.close()

    host.run(scene())
    found = pool(host)
    assert found.open == 0
    assert found.unanswered == [0, 0, 0]
    assert found.output == 40
    assert found.level[1] == pytest.approx(9000 - 500 - 500)


def _tokens(remaining: float) -> list:  # type: ignore[type-arg]
    from service.policy.pacing import Limit

    return [Limit("input_tokens", 10_000, remaining)]


def test_a_call_the_provider_never_got_is_given_back(host: Host) -> None:
    async def scene() -> None:
        pacer = host.worker()
        await empty(pacer)
        await asyncio.sleep(10)
        before = pool(host)
        before.advance(host.clock())
        grant = await pacer.acquire(KEY, ask())
        grant.close(sent=False)
        assert pool(host).level[0] == pytest.approx(before.level[0])

    host.run(scene())


def test_a_killed_workers_part_is_taken_back_but_not_what_the_provider_counted(host: Host) -> None:
    async def scene() -> None:
        one, dead = host.worker(0), host.worker(1)
        await empty(one)
        await asyncio.sleep(10)
        await dead.acquire(KEY, ask())
        mine = await one.acquire(KEY, ask())
        level = pool(host).level[0]
        assert forget_slot(host.state, 1)
        assert pool(host).unanswered[0] == 1
        assert pool(host).open == 1
        assert pool(host).level[0] == level
        mine.close()
        assert pool(host).open == 0

    host.run(scene())


def test_those_who_waited_in_a_killed_worker_block_nobody(host: Host) -> None:
    async def scene() -> float:
        one, dead = host.worker(0), host.worker(1)
        await empty(one)
        lost = [asyncio.ensure_future(dead.acquire(KEY, ask())) for _ in range(5)]
        await asyncio.sleep(0)
        for line in dead._lines.values():  # it looks no more
            assert line.timer is not None
            line.timer.cancel()
        went = await when(one, host)
        assert went == pytest.approx(1.5, abs=0.06)
        assert forget_slot(host.state, 1)
        assert host.state.lines.read(0)[0] == 0
        for one_lost in lost:
            one_lost.cancel()
        await asyncio.wait(lost)
        return went

    host.run(scene())


def test_what_was_let_go_in_a_killed_worker_comes_back(host: Host) -> None:
    async def scene() -> None:
        one, dead = host.worker(0), host.worker(1)
        await empty(one)
        lost = asyncio.ensure_future(dead.acquire(KEY, ask()))
        await asyncio.sleep(0)
        for line in dead._lines.values():
            assert line.timer is not None
            line.timer.cancel()
        host.loop.now += 1.6
        dead._pools.beat(1, host.clock())
        mine = asyncio.ensure_future(when(one, host))  # its worker lets the dead one's go
        await asyncio.sleep(0.01)
        assert pool(host).open == 1
        assert forget_slot(host.state, 1)
        assert pool(host).open == 0
        assert await mine < 0.1
        lost.cancel()
        await asyncio.wait([lost])

    host.run(scene())


def test_without_the_lock_calls_go_and_are_counted_afterwards(host: Host) -> None:
    async def scene() -> None:
        pacer = host.worker()
        await empty(pacer)
        host.state.region.lock()
        grant = await pacer.acquire(KEY, ask())
        host.state.region.unlock()
        assert host.opened == 1
        grant.answered(None)
        assert pool(host).open == 1
        grant.close()
        assert pool(host).open == 0
        assert pool(host).level[0] < -1

    host.run(scene())


def test_those_who_wait_are_let_go_when_the_lock_is_gone_for_good(host: Host) -> None:
    async def scene() -> float:
        pacer = host.worker()
        await empty(pacer, 1)
        waiting = asyncio.ensure_future(pacer.acquire(KEY, ask(max_wait=600)))
        await asyncio.sleep(0)
        host.state.region.lock()
        grant = await waiting
        host.state.region.unlock()
        grant.close()
        return grant.waited

    assert host.run(scene()) == pytest.approx(1.0, abs=0.1)
    assert host.state.lines.read(0)[0] == 0
    assert pool(host).open == 0


def test_strangers_credentials_are_forgotten_and_never_those_in_use(host: Host) -> None:
    async def scene() -> None:
        pacer = host.worker()
        mine = await pacer.acquire(KEY, ask())
        for n in range(600):
            (await pacer.acquire(PoolKey("anthropic", f"stranger {n}", "opus"), ask())).close()
        assert pool(host).open == 1
        mine.close()

    host.run(scene())
    assert host.opened == 0


def test_with_every_pool_in_use_more_go_unpaced(host: Host) -> None:
    async def scene() -> None:
        pacer = host.worker()
        for n in range(256):
            await pacer.acquire(PoolKey("anthropic", f"key {n}", "opus"), ask())
        grant = await pacer.acquire(KEY, ask())
        grant.answered(limits())
        grant.close()

    host.run(scene())
    assert host.opened == 1


def test_input_is_estimated_from_bytes_as_they_were_billed(host: Host) -> None:
    async def scene() -> None:
        pacer = host.worker()
        first = await pacer.acquire(KEY, Ask("a", 60, 4000, 1))
        assert first.estimate == 2600
        first.close(sent=False)
        for number in range(50):
            grant = await pacer.acquire(KEY, Ask("a", 60, 4000))
            grant.answered([])
            if number % 2:  # both ways are the same
                grant.used(input_tokens=2000)
                grant.close()
            else:
                grant.close(input_tokens=2000)
        assert grant.estimate > 1800

    host.run(scene())
