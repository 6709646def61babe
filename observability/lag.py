"""Is something blocking the event loop? Measures its lag all the time and reports the stack that blocks it."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback

from structlog.typing import FilteringBoundLogger

from observability import catalog
from observability.metrics import Metrics

PERIOD = 0.25
"""Seconds between two looks: four samples a second cost next to nothing and still find a stall of that length."""
BLOCKED = 0.25
"""Seconds of lag from which the stack is reported: a client would notice."""


class LagMonitor:
    """Start it on the loop to be watched. A stall is logged once, while it lasts, by a thread of its own."""

    def __init__(self, metrics: Metrics, log: FilteringBoundLogger) -> None:
        self._metrics, self._log = metrics, log
        self._stopped = threading.Event()
        self._task: asyncio.Task[None] | None = None
        self._expected = 0.0
        """When the loop should have come by again (monotonic)."""

    def start(self) -> None:
        """Watch the running loop, in whose thread this is called."""
        self._expected = time.monotonic() + PERIOD
        self._task = asyncio.get_running_loop().create_task(self._measure())
        watched = threading.get_ident()
        threading.Thread(target=self._watch, args=(watched,), name="lag-watch", daemon=True).start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        if self._task is not None:
            self._task.cancel()

    async def _measure(self) -> None:
        while True:
            self._expected = time.monotonic() + PERIOD
            await asyncio.sleep(PERIOD)
            self._metrics.observe(catalog.EVENT_LOOP_LAG, max(0.0, time.monotonic() - self._expected))

    def _watch(self, watched: int) -> None:
        reported = 0.0
        while not self._stopped.wait(PERIOD):
            expected = self._expected
            lag = time.monotonic() - expected
            if lag > BLOCKED and expected != reported:
                reported = expected
                self._log.warning(catalog.LogEvent.LOOP_BLOCKED.value, blocked_s=round(lag, 3), stack=_stack(watched))


def _stack(thread: int) -> list[str]:
    """Innermost last, as `function (file:line)`: places only, never values or source text."""
    frame = sys._current_frames().get(thread)
    return [f"{f.name} ({f.filename}:{f.lineno})" for f in traceback.extract_stack(frame)] if frame is not None else []
