"""Real processes over one region: exact together, also when one is killed at its work."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from service.pacer.pacing import Pacer
from service.pacer.shared import forget_slot, shared_state
from service.policy.pacing import Pool
from tests.pacer.virtual import KEY, ask, limits
from tests.support.poll import poll


def _nothing() -> None:
    """Fail-open is not counted in a child: what it lets through is in the shared counts all the same."""


async def _hammer(pacer: Pacer, calls: int) -> int:
    went = 0
    for _ in range(calls):
        grant = await pacer.acquire(KEY, ask(max_wait=600))
        grant.answered(limits(1e6))
        grant.used(input_tokens=10, output_tokens=10)
        grant.close()
        went += 1
    poll(pacer._access.enter, what="the lock, to do what had to wait for it")  # as the next call's would
    pacer._access.leave()
    return went


def _child(slot: int, calls: int, state: object) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            pacer = Pacer(state, slot, max_queue=100, fail_open=_nothing)  # type: ignore[arg-type]
            asyncio.run(_hammer(pacer, calls))
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def test_two_processes_count_every_call_and_leave_nothing_open() -> None:
    state = shared_state(4)
    pids = [_child(slot, 1500, state) for slot in (0, 1)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0]
    pool = Pool(state.pools.read(0))
    assert (pool.open, pool.unanswered) == (0, [0, 0, 0])
    assert pool.answered == [3000, 30_000, 30_000]
    state.region.close()


def test_a_killed_process_leaves_the_other_working_and_its_part_is_cleared() -> None:
    state = shared_state(4)
    for n in range(8):
        victim = _child(1, 10**9, state)
        seen = Pool(state.pools.read(0)).answered[0]
        enough = seen + 50 + n  # killed at another moment each time

        def at_work(enough: float = enough) -> bool:
            return Pool(state.pools.read(0)).answered[0] > enough

        poll(at_work, what="the victim at work")
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        assert forget_slot(state, 1)
        pool = Pool(state.pools.read(0))
        assert (pool.open, pool.unanswered) == (0, [0, 0, 0])
        pacer = Pacer(state, 0, max_queue=100, fail_open=_nothing)
        assert asyncio.run(_hammer(pacer, 50)) == 50
    assert Pool(state.pools.read(0)).closed_until <= time.monotonic()
    state.region.close()
