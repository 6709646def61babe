"""What blocks the event loop is measured all the time and, while it lasts, reported with the stack that does it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from observability import catalog, lag, logs
from observability.metrics import Metrics
from tests.support.poll import poll
from tests.support.processes import Gateway
from tests.support.scrape import scrape


class Watched:
    """A loop under watch, with its metrics and the lines that were logged."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        self.metrics = Metrics(CollectorRegistry(), routes=frozenset(), models=frozenset())
        self.monitor = lag.LagMonitor(self.metrics, logs.install(self.raw.append, "info"))

    def reports(self) -> list[dict[str, Any]]:
        """The stalls that were reported."""
        lines = [json.loads(line) for line in self.raw]
        assert all(line["event"] == "loop_blocked" for line in lines)
        return lines

    def histogram(self) -> tuple[int, float]:
        """How many looks were taken, and how many of them came later than the threshold of a report."""
        (family,) = self.metrics.collect()
        assert family.name == catalog.EVENT_LOOP_LAG.name
        at = {sample.labels.get("le", sample.name): sample.value for sample in family.samples}
        return int(at["+Inf"]), at["+Inf"] - at[str(lag.BLOCKED)]

    def run(self, *steps: Callable[[], object]) -> None:
        """Each step on the loop, with a few looks between them."""

        async def main() -> None:
            self.monitor.start()
            for step in steps:
                await asyncio.sleep(2 * lag.PERIOD)
                step()
            await asyncio.sleep(2 * lag.PERIOD)
            self.monitor.stop()

        asyncio.run(main())


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """A busy machine alone may keep the loop for the quarter of a second that is the real threshold."""
    monkeypatch.setattr(lag, "BLOCKED", 1.0)
    return Watched()


def sleeps_where_it_must_not() -> None:
    """A blocking call, as somebody might make by mistake."""
    time.sleep(lag.BLOCKED + 6 * lag.PERIOD)


def test_a_blocked_loop_is_reported_once_while_it_lasts_with_the_stack_that_blocks_it(watched: Watched) -> None:
    seen_inside: list[int] = []

    def blocks() -> None:
        sleeps_where_it_must_not()
        seen_inside.append(len(watched.raw))

    watched.run(blocks)
    assert seen_inside == [1]
    (line,) = watched.reports()
    assert line["level"] == "warning"
    assert lag.BLOCKED <= line["blocked_s"] < lag.BLOCKED + 6 * lag.PERIOD
    *_, caller, innermost = line["stack"]
    here, name = __file__, sleeps_where_it_must_not.__name__
    assert innermost == f"{name} ({here}:{sleeps_where_it_must_not.__code__.co_firstlineno + 2})"
    assert caller.startswith(f"blocks ({here}:")
    looks, late = watched.histogram()
    assert looks > 2
    assert late == 1


def test_two_stalls_are_two_reports(watched: Watched) -> None:
    watched.run(sleeps_where_it_must_not, sleeps_where_it_must_not)
    assert len(watched.reports()) == 2
    assert watched.histogram()[1] == 2


def test_a_report_names_places_and_never_values_or_source_text(watched: Watched) -> None:
    def blocks(secret: str) -> None:
        deadline = time.monotonic() + lag.BLOCKED + 6 * lag.PERIOD
        while time.monotonic() < deadline:
            len(secret)

    watched.run(lambda: blocks("sk-ant-canary"))
    (line,) = watched.reports()
    assert "canary" not in json.dumps(line)
    assert "deadline" not in json.dumps(line)


def test_a_loop_that_gets_its_turns_is_measured_and_nothing_is_reported(watched: Watched) -> None:
    watched.run(lambda: None, lambda: None)
    assert watched.reports() == []
    assert watched.histogram()[0] >= 3


class Blocking(Gateway):
    """A gateway whose `/metrics` does what nothing on the loop may do."""

    PROGRAM = """
import sys, time
from observability.exposition import Exposition
from service.cli import main
render = Exposition.text
async def blocks(self, accept):
    time.sleep(2)
    return await render(self, accept)
Exposition.text = blocks
sys.exit(main(sys.argv[1:]))
"""

    def arguments(self) -> list[str]:
        """The command line, with that in it."""
        return ["-c", self.PROGRAM, "serve", "--env-file", os.devnull]


def test_a_gateways_worker_reports_a_blocked_loop_and_its_histogram_grows() -> None:
    with Blocking("http://127.0.0.1:1") as gateway:
        scrape(gateway)
        line = gateway.wait_log(lambda line: line["event"] == "loop_blocked", "a report")
        assert line["blocked_s"] >= lag.BLOCKED
        assert line["stack"][-1].startswith("blocks (")
        late = poll(lambda: scrape(gateway).of("claude_proxy_event_loop_lag_seconds_sum").get("0"), what="a late look")
        assert late > lag.BLOCKED
