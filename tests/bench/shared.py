"""What one call costs in the shared state: pacing, a client's limits, the retry budget; alone and with another process.

With contention both processes do the same on the same pool, client and provider, without a pause: the worst there is. Then
a call's time (of the clock) has waits for the lock and for a core in it, its CPU time has not.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from service.pacer.clients import Admitted, ClientLimits
from service.pacer.grant import Ask, PoolKey
from service.pacer.pacing import Pacer
from service.pacer.retries import RetryBudget
from service.pacer.shared import shared_state
from service.policy.limits import Limits
from service.policy.pacing import Limit
from service.store.shared import SharedState
from tests.bench.report import table
from tests.bench.stats import median, percentile
from tests.bench.subjects import say

TIMES, ROUNDS = 3_000, 5
PROCESSES = (1, 2)
_PATIENCE = 60.0
_TOLD = [Limit("requests", 1e9, 1e9), Limit("input_tokens", 1e11, 1e11), Limit("output_tokens", 1e11, 1e11)]
_LIMITS = Limits(1e9, 1e9, 100, 10**15)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one operation in one process, in microseconds. `opened`: decisions made without the state, the lock not had."""

    cpu: float
    p50: float
    p99: float
    opened: int


class _Worker:
    """One worker's way to the shared state, and the operations measured."""

    def __init__(self, state: SharedState, slot: int) -> None:
        self.opened = 0
        self._pacer = Pacer(state, slot, max_queue=500, fail_open=self._count)
        self._clients = ClientLimits(state, slot, fail_open=self._count)
        self._budget = RetryBudget(state, slot, "anthropic", 0.2, fail_open=self._count)
        self._key, self._ask = PoolKey("anthropic", "0" * 32, "opus-4"), Ask("bob", 10.0, 2_000, max_output=64)

    def _count(self) -> None:
        self.opened += 1

    async def pacing(self) -> None:
        """A call that goes at once, from leave to end."""
        grant = await self._pacer.acquire(self._key, self._ask)
        grant.answered(_TOLD)
        grant.used(input_tokens=500)
        grant.used(input_tokens=500, output_tokens=50)
        grant.close()

    async def client(self) -> None:
        """A client's request."""
        admitted = self._clients.admit("bob", _LIMITS)
        assert isinstance(admitted, Admitted)
        admitted.spent(100, 1000)
        admitted.close()

    async def budget(self) -> None:
        """A call counted."""
        self._budget.count_request()

    async def retry(self) -> None:
        """A call counted and a retry asked for."""
        self._budget.count_request()
        self._budget.try_retry()


OPERATIONS: dict[str, Callable[[_Worker], Callable[[], object]]] = {
    "pacing: acquire, answered, used twice, close": lambda worker: worker.pacing,
    "client limits: admit, spent, close": lambda worker: worker.client,
    "retry budget: count": lambda worker: worker.budget,
    "retry budget: count and try": lambda worker: worker.retry,
}


def measure(*, quick: bool) -> list[str]:
    """All operations; gives the report's parts."""
    rounds = 2 if quick else ROUNDS
    rows = []
    for name in OPERATIONS:
        for processes in PROCESSES:
            say(f"shared: {name}, {processes} processes")
            costs = [cost for _ in range(rounds) for cost in _together(name, processes)]
            rows.append(
                (
                    name,
                    str(processes),
                    f"{median([cost.cpu for cost in costs]):.1f}",
                    f"{median([cost.p50 for cost in costs]):.1f}",
                    f"{median([cost.p99 for cost in costs]):.1f}",
                    str(sum(cost.opened for cost in costs)),
                )
            )
    title = f"Shared state: microseconds of one call, {TIMES:,} at a time without a pause, median of {rounds} rounds"
    return [table(title, ("", "processes", "CPU µs", "p50 µs", "p99 µs", "without the lock"), rows)]


def _together(name: str, processes: int) -> list[Cost]:
    """Forked as workers are: the state's memory and lock go along."""
    fork = multiprocessing.get_context("fork")
    state, barrier = shared_state(), fork.Barrier(processes)
    pipes = [fork.Pipe(duplex=False) for _ in range(processes)]

    def work(slot: int, answer: Connection) -> None:
        worker = _Worker(state, slot)
        answer.send(asyncio.run(_times(worker, OPERATIONS[name](worker), lambda: barrier.wait(_PATIENCE))))

    children = [fork.Process(target=work, args=(slot, pipe[1])) for slot, pipe in enumerate(pipes)]
    for child in children:
        child.start()
    try:
        found: list[Cost] = []
        for pipe in pipes:
            if not pipe[0].poll(_PATIENCE):
                raise TimeoutError(f"no figures of {name} with {processes} processes")
            found.append(pipe[0].recv())
        return found
    finally:
        for child in children:
            child.join(5)
            if child.is_alive():
                child.kill()
                child.join(5)


async def _times(worker: _Worker, operation: Callable[[], object], ready: Callable[[], object]) -> Cost:
    taken: list[int] = []
    for _ in range(100):
        await operation()  # type: ignore[misc]  # they are all coroutine functions
    ready()
    cpu, clock = time.thread_time_ns(), time.perf_counter_ns
    for _ in range(TIMES):
        began = clock()
        await operation()  # type: ignore[misc]
        taken.append(clock() - began)
    cpu = time.thread_time_ns() - cpu
    values: Sequence[float] = [nanoseconds / 1000 for nanoseconds in taken]
    return Cost(cpu / TIMES / 1000, median(values), percentile(values, 99), worker.opened)
