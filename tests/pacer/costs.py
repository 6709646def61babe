"""What one call costs pacing, in microseconds of CPU: `python -m tests.pacer.costs`."""

from __future__ import annotations

import asyncio
import sys
import time

from service.pacer.clients import Admitted, ClientLimits
from service.pacer.pacing import Pacer
from service.pacer.retries import RetryBudget
from service.pacer.shared import shared_state
from service.policy.limits import Limits
from service.policy.pacing import Limit
from tests.pacer.virtual import KEY, ask

_TIMES = 20_000


def _nothing() -> None:
    """Nobody else is there to hold the lock."""


async def _calls(pacer: Pacer) -> dict[str, float]:
    told = [Limit("requests", 1e9, 1e9), Limit("input_tokens", 1e11, 1e11), Limit("output_tokens", 1e11, 1e11)]
    wanted, spent, clock = ask(), dict.fromkeys(("acquire", "answered", "used", "close"), 0), time.thread_time_ns
    for _ in range(_TIMES):
        times = [clock()]
        grant = await pacer.acquire(KEY, wanted)
        times.append(clock())
        grant.answered(told)
        times.append(clock())
        grant.used(input_tokens=1000)
        times.append(clock())
        grant.used(output_tokens=50)
        grant.close()
        times.append(clock())
        for name, begin, end in zip(spent, times, times[1:], strict=False):
            spent[name] += end - begin
    return {name: total / _TIMES / 1000 for name, total in spent.items()}


def _clients(clients: ClientLimits) -> float:
    limits, begin = Limits(1e9, 1e9, 100, 10**15), time.thread_time_ns()
    for _ in range(_TIMES):
        verdict = clients.admit("bob", limits)
        assert isinstance(verdict, Admitted)
        verdict.spent(100, 1000)
        verdict.close()
    return (time.thread_time_ns() - begin) / _TIMES / 1000


def _main() -> None:
    state = shared_state()
    costs = asyncio.run(_calls(Pacer(state, 0, max_queue=1000, fail_open=_nothing)))
    costs["client: admit, spent and close"] = _clients(ClientLimits(state, 0, fail_open=_nothing))
    budget = RetryBudget(state, 0, "anthropic", 0.2, fail_open=_nothing)
    begin = time.thread_time_ns()
    for _ in range(_TIMES):
        budget.count_request()
    costs["retry budget: count"] = (time.thread_time_ns() - begin) / _TIMES / 1000
    sys.stdout.writelines(f"{name:32}{cost:6.1f} µs\n" for name, cost in costs.items())


if __name__ == "__main__":
    _main()
