"""Workers of one host pace as one: exactly, through reloads, and when one of them is killed."""

from __future__ import annotations

import os
import signal
import time

import httpx
import pytest

from tests.support.asking import ask, asked, headroom, new_model, says, start, wait_queue, wires_to_both
from tests.support.poll import poll
from tests.support.processes import pair
from tests.support.scene import Scene, scene
from tests.support.scrape import all_up
from tests.support.wire import Wire

PLENTY = says(*headroom(requests=(100_000, 99_999)))
PACED = {"CLAUDE_PROXY_PACING": "on", "CLAUDE_PROXY_QUEUE_TIMEOUT": "25"}
DEPTH = "claude_proxy_queue_depth"


def test_two_workers_together_use_the_limit_and_the_provider_never_has_to_say_no() -> None:
    per_minute, calls = 60, 68
    with pair("--rpm", str(per_minute), CLAUDE_PROXY_WORKERS="2", **PACED) as (gateway, simulator):
        all_up(gateway, 2)
        wires = wires_to_both(gateway, calls // 2)
        began = time.monotonic()
        for number, wire in enumerate(wires):
            wire.ask(asked(f"number {number}", stream=number % 2 == 0), "anthropic-version: 2023-06-01")
        assert [wire.answer()[0].status for wire in wires] == [200] * calls
        assert simulator.get("/_simulator/counts?calls=0")["requests"]["by_status"] == {"200": calls}
        assert time.monotonic() - began > (calls - per_minute) * 60 / per_minute - 1
        assert gateway.sample("claude_proxy_queue_wait_seconds_count", gen_ai_provider_name="anthropic") > 0
        text = gateway.metrics()
        served = [line for line in text.splitlines() if line.startswith("claude_proxy_requests_total")]
        assert all(any(f'worker="{n}"' in line for line in served) for n in (0, 1))
        for wire in wires:
            wire.close()


def used_up(stage: Scene, per_minute: int) -> str:
    """A model of which nothing is left."""
    model = new_model()
    stage.plays(says(*headroom(requests=(per_minute, 0))))
    assert ask(stage, asked(model=model)).status == 200
    stage.plays(PLENTY)
    return model


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_a_new_worker_knows_what_is_left(number: int) -> None:
    with scene(PLENTY, CLAUDE_PROXY_KEEPALIVE="1", **PACED) as stage:
        model = used_up(stage, 1)
        began = time.monotonic()
        before = ask(stage, asked(model=model))
        (old,) = stage.gateway.worker_pids()
        os.kill(stage.gateway.process.pid if number == signal.SIGHUP else old, number)
        poll(lambda: old not in stage.gateway.worker_pids() and stage.gateway.worker_pids(), what="another worker")
        after = ask(stage, asked(model=model))
        waits = [got.json()["error"]["details"]["retry_after_seconds"] for got in (before, after)]
        assert 0 < waits[0] - waits[1] < time.monotonic() - began + 0.01
        assert ask(stage, asked(model=new_model())).status == 200


def depths(stage: Scene) -> list[float]:
    """How many wait in each worker."""
    text = httpx.get(stage.gateway.url + "/metrics", timeout=30).text
    return [float(line.split()[1]) for line in text.splitlines() if line.startswith(DEPTH + "{")]


def test_a_killed_workers_waiters_keep_nobody_waiting_and_the_others_go_on() -> None:
    settings = PACED | {"CLAUDE_PROXY_WORKERS": "2", "CLAUDE_PROXY_QUEUE_TIMEOUT": "300"}
    with scene(PLENTY, **settings) as stage:
        model = used_up(stage, 4)
        wires: list[Wire] = []
        for other in stage.gateway.worker_pids():
            os.kill(other, signal.SIGSTOP)  # it accepts nothing: these four wait in the one that runs
            for _ in range(4):
                wires.append(Wire(stage.gateway.port, timeout=60))
                wires[-1].ask(asked(model=model))
            poll(lambda: 4 in depths(stage), what="four to wait in one worker")
            os.kill(other, signal.SIGCONT)
        poll(lambda: depths(stage) == [4, 4], what="four to wait in each worker")
        sent = len(stage.upstream.seen)
        victim = stage.gateway.worker_pids()[0]
        os.kill(victim, signal.SIGKILL)
        stage.plays(PLENTY)
        answered = 0
        for wire in wires:
            try:
                assert wire.answer()[0].status == 200
                answered += 1
            except ConnectionError:
                pass  # it waited in the worker that was killed
            wire.close()
        assert 0 < answered < len(wires)
        assert len(stage.upstream.seen) - sent == answered
        wait_queue(stage, 0)
        poll(lambda: len(stage.gateway.worker_pids()) == 2, what="another worker")
        assert [each.got().status for each in [start(stage, asked(model=model)) for _ in range(6)]] == [200] * 6
