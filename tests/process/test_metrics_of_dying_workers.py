"""One `/metrics` while workers are killed, replaced, reloaded and blocked: no scrape fails, waits long or counts twice."""

from __future__ import annotations

import itertools
import os
import signal
import time
from contextlib import ExitStack

from tests.process.test_workers import Held, open_streams
from tests.support.poll import poll
from tests.support.scene import scene
from tests.support.scrape import REQUESTS, Load, Watcher, all_up, ask, gateway_of, scrape, whole

PATIENCE = 1.0
SLACK = 4.0
"""Seconds that a scrape may take beyond the patience on a machine that is busy with other tests."""
KILLS = 3
STARTED = "process_start_time_seconds"


def increase(values: list[float]) -> float:
    """As Prometheus works it out: a value below the one before is a new count from zero."""
    return sum(after - before if after >= before else after for before, after in itertools.pairwise([0.0, *values]))


def test_a_worker_killed_under_load_starts_again_at_zero_in_its_slot_and_scrapes_go_on() -> None:
    with gateway_of(2) as gateway, Watcher(gateway) as watcher, Load(gateway) as one, Load(gateway) as two:

        def busy() -> bool:
            counts = watcher.seen[-1].of(REQUESTS)
            return len(counts) == 2 and min(counts.values()) > 40

        for _ in range(KILLS):
            poll(busy, what="some requests in each worker")
            victim = gateway.worker_pids()[0]
            os.kill(victim, signal.SIGKILL)
            poll(lambda: victim not in (now := gateway.worker_pids()) and len(now) == 2, what="another worker")  # noqa: B023
            all_up(gateway, 2)
            shown = len(watcher.seen)
            poll(lambda: len(watcher.seen) > shown + 1, what="a scrape since")  # noqa: B023
        poll(busy, what="some requests in each worker")
    assert len(watcher.failed) <= KILLS, "only what the victim itself was answering"
    assert max(watcher.seconds) < PATIENCE + SLACK
    lives: dict[tuple[str, float], list[float]] = {}
    for found in watcher.seen:
        for slot, count in found.of(REQUESTS).items():
            lives.setdefault((slot, found.of(STARTED)[slot]), []).append(count)
    assert len(lives) == 2 + KILLS
    assert all(counts == sorted(counts) for counts in lives.values())
    assert sum(counts[-1] for counts in lives.values()) <= one.sent + two.sent, "each began at zero"
    assert sum(increase(watcher.series(REQUESTS, slot)) for slot in ("0", "1")) <= one.sent + two.sent
    assert {slot for found in watcher.seen for slot in found.up} == {"0", "1"}


def test_at_a_reload_old_and_new_workers_stand_side_by_side_and_the_old_ones_disappear() -> None:
    script = Held()
    with scene(script, CLAUDE_PROXY_WORKERS="2", CLAUDE_PROXY_KEEPALIVE="1") as stage, open_streams(stage, 1):
        gateway = stage.gateway
        all_up(gateway, 2)
        (old,) = (slot for slot, count in whole(gateway).of("claude_proxy_in_flight_requests").items() if count)

        def has_served() -> bool:
            ask(gateway, 10)
            return old in scrape(gateway).of(REQUESTS)

        poll(has_served, what="a request in the worker with the stream")
        with Watcher(gateway) as watcher:
            gateway.process.send_signal(signal.SIGHUP)
            overlap = poll(
                lambda: found if (found := scrape(gateway)).up == {old: 1.0, "2": 1.0, "3": 1.0} else None,
                what="one old worker, with its stream, and two new ones",
            )
            assert overlap.of("claude_proxy_in_flight_requests")[old] == 1
            assert overlap.of(REQUESTS).keys() == {old}
            script.release.set()
            poll(lambda: scrape(gateway).up == {"2": 1.0, "3": 1.0}, what="the old worker to disappear")
            gateway.process.send_signal(signal.SIGHUP)
            poll(lambda: scrape(gateway).up == {"0": 1.0, "1": 1.0}, what="the lowest slots to be taken again")
        assert watcher.failed == []
        assert sum(whole(gateway).of(REQUESTS).values()) == 0
        for slot in ("0", "1"):
            values = watcher.series(REQUESTS, slot)
            assert values == sorted(values)


def test_a_third_generation_of_workers_is_seen_by_its_siblings_too() -> None:
    script = Held()
    options = {"CLAUDE_PROXY_WORKERS": "2", "CLAUDE_PROXY_KEEPALIVE": "1", "CLAUDE_PROXY_GRACEFUL_TIMEOUT": "4"}
    with scene(script, **options) as stage, ExitStack() as streams:
        gateway, held = stage.gateway, set[str]()
        for generation in range(2):
            newest = {"0", "1"} if not generation else {"2", "3"}
            poll(lambda: newest <= scrape(gateway).up.keys(), what=f"workers {newest}")  # noqa: B023
            while not newest <= held:
                streams.enter_context(open_streams(stage, 1))
                figures = whole(gateway).of("claude_proxy_in_flight_requests")
                held = {slot for slot, count in figures.items() if count}
            gateway.process.send_signal(signal.SIGHUP)
        everybody = {str(slot): 1.0 for slot in range(6)}
        poll(lambda: scrape(gateway).up == everybody, what="three generations")
        assert [whole(gateway).up for _ in range(6)] == [everybody] * 6
        script.release.set()


def test_a_blocked_worker_is_reported_down_within_a_bound_and_comes_back_with_its_figures() -> None:
    with gateway_of(2) as gateway:
        ask(gateway, 12)
        before = whole(gateway).of(REQUESTS)
        victim = max(gateway.worker_pids())
        os.kill(victim, signal.SIGSTOP)
        try:
            for _ in range(3):
                began = time.monotonic()
                found = scrape(gateway)
                assert time.monotonic() - began < PATIENCE + SLACK
                assert sorted(found.up.values()) == [0.0, 1.0]
                (down,) = (slot for slot, up in found.up.items() if not up)
                assert {
                    w for name, figures in found.by_worker.items() if name != "claude_proxy_worker_up" for w in figures
                } == {"0", "1"} - {down}
        finally:
            os.kill(victim, signal.SIGCONT)
        found = all_up(gateway, 2)
        assert found.of(REQUESTS) == before
        assert [x for x in gateway.log() if x["level"] in ("warning", "error") and x["event"] != "loop_blocked"] == []
