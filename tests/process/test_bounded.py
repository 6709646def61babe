"""Whatever clients make up, there are no more series for it, and a worker's memory returns to where it was.

`FLOOD=100000` in the environment makes it a hundred thousand requests instead of five thousand.
"""

from __future__ import annotations

import json
import os
import threading

from observability import catalog
from tests.support.claude import ASKED, MESSAGE
from tests.support.mix import CLIENT_KEYS, KEY
from tests.support.poll import poll
from tests.support.processes import Gateway
from tests.support.scrape import Scrape, gateway_of, scrape
from tests.support.upstream import Upstream, json_answer
from tests.support.wire import Wire

FLOOD = int(os.environ.get("FLOOD", "5000"))
WARM, CONNECTIONS = 1500, 4
ROOM = 8 * 1024 * 1024
"""Bytes by which a worker's memory may differ: what awaits the garbage collector, and an allocator that warms up."""
STATUSES = (200, 404, 401, 405, 200)
"""What the five kinds of request get."""


def request(wire: Wire, number: int) -> int:
    """A request of which everything that a client can choose is unlike any other's; its status."""
    kind, made_up = number % len(STATUSES), f"{number:07}"
    method, target, body, key = "POST", "/v1/messages", ASKED, KEY
    if kind == 0:
        body = ASKED | {"model": f"claude-{made_up}", "metadata": {"user_id": made_up}}
    elif kind == 1:
        target = f"/path/{made_up}/{made_up}?{made_up}={made_up}"
    elif kind == 2:
        key = f"key-{made_up}"
    elif kind == 3:
        method = f"BREW{made_up}"
    else:
        method, target = "GET", f"/v1/models/claude-{made_up}?after={made_up}"
    headers = (
        f"x-api-key: {key}",
        f"user-agent: agent/{made_up}",
        f"x-claude-code-session-id: session-{made_up}",
        f"x-claude-code-agent-id: agent-{made_up}",
        f"traceparent: 00-{number + 1:032x}-{number + 1:016x}-01",
        f"x-request-id: {made_up}",
        f"x-made-up-{made_up}: {made_up}",
        f"anthropic-beta: beta-{made_up}",
        "content-type: application/json",
    )
    wire.request(method, target, json.dumps(body).encode() if method == "POST" else b"", *headers)
    return wire.answer()[0].status


def flood(gateway: Gateway, numbers: range) -> None:
    """These requests, over a few kept connections side by side; every one gets the status of its kind."""
    wrong: list[tuple[int, int]] = []

    def some(first: int) -> None:
        with Wire(gateway.port, timeout=30) as wire:
            wrong.extend(
                (number, status)
                for number in numbers[first::CONNECTIONS]
                if (status := request(wire, number)) != STATUSES[number % len(STATUSES)]
            )

    threads = [threading.Thread(target=some, args=(n,)) for n in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def series(found: Scrape) -> set[str]:
    """Every series of an answer."""
    return {line.rpartition(" ")[0] for line in found.text.splitlines() if not line.startswith("#")}


def total(found: Scrape, name: str) -> float:
    """A sample's figures added up."""
    return sum(found.of(name).values())


def test_a_flood_of_made_up_names_makes_no_series_is_counted_and_leaves_no_memory_behind() -> None:
    with gateway_of(1, Upstream(json_answer(MESSAGE)), CLAUDE_PROXY_CLIENT_KEYS=CLIENT_KEYS) as gateway:
        flood(gateway, range(WARM))
        scrape(gateway)
        before = scrape(gateway)
        flood(gateway, range(WARM, WARM + FLOOD))
        after = poll(lambda: found if memory_grew(before, found := scrape(gateway)) < ROOM else None, what="memory")
        assert series(after) == series(before)
        assert total(after, catalog.SERIES.name) == total(before, catalog.SERIES.name)
        kinds = FLOOD // len(STATUSES)
        sent = total(after, "claude_proxy_requests_total") - total(before, "claude_proxy_requests_total")
        assert sent == FLOOD
        folded = f'claude_proxy_label_overflow_total{{label="{catalog.MODEL}",worker="0"}} '
        (counted,) = (float(line.removeprefix(folded)) for line in after.text.splitlines() if line.startswith(folded))
        assert counted >= kinds + WARM // len(STATUSES)


def memory_grew(before: Scrape, after: Scrape) -> float:
    """Bytes of resident memory, all workers together."""
    return total(after, "process_resident_memory_bytes") - total(before, "process_resident_memory_bytes")
