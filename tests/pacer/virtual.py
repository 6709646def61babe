"""An event loop whose time passes only when nobody has anything to do: waiting costs nothing and is exact."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from service.pacer.grant import Ask, Grant, PoolKey
from service.pacer.pacing import Pacer
from service.pacer.shared import shared_state
from service.policy.pacing import Limit
from service.store.shared import SharedState

T = TypeVar("T")

KEY = PoolKey("anthropic", "hash-of-key", "opus")


class VirtualLoop(asyncio.SelectorEventLoop):
    """`now` jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self._look: Callable[[float | None], list[Any]] = self._selector.select  # type: ignore[attr-defined]
        self._selector.select = self._jump  # type: ignore[attr-defined]

    def time(self) -> float:
        """Made-up seconds."""
        return self.now

    def _jump(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everybody waits for nothing")
        self.now += max(0.0, timeout)
        return self._look(0)


class Host:
    """One host's shared state and its workers, all on one virtual loop."""

    def __init__(self, slots: int = 8) -> None:
        self.loop = VirtualLoop()
        self.state: SharedState = shared_state(slots)
        self.opened = 0

    def run(self, what: Coroutine[Any, Any, T]) -> T:
        """Until `what` is done."""
        return self.loop.run_until_complete(what)

    def clock(self) -> float:
        """The loop's time."""
        return self.loop.now

    def fail_open(self) -> None:
        """Counts."""
        self.opened += 1

    def worker(self, slot: int = 0, *, max_queue: int = 100) -> Pacer:
        """One worker's pacer."""
        return Pacer(self.state, slot, max_queue=max_queue, fail_open=self.fail_open, clock=self.clock)

    def close(self) -> None:
        """After the test."""
        self.loop.close()
        self.state.region.close()


def ask(client: str = "a", max_wait: float = 60.0, **more: int) -> Ask:
    """A small call."""
    return Ask(client, max_wait, **{"input_tokens": 10, "max_output": 10, **more})


def limits(requests: float = 60.0, remaining: float | None = None) -> list[Limit]:
    """Headers that tell of requests only."""
    return [Limit("requests", requests, requests if remaining is None else remaining)]


async def empty(pacer: Pacer, requests: float = 60.0) -> None:
    """Make the pool's requests limit known, with nothing left of it."""
    grant: Grant = await pacer.acquire(KEY, ask())
    grant.answered(limits(requests, 0))
    grant.close()
