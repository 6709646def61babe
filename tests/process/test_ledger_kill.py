"""SIGKILL under load, then the books: every answer a client has whole is in the ledger once, every call that was cut is there too."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from pathlib import Path

import httpx

from tests.support import claude
from tests.support.poll import poll
from tests.support.processes import Gateway, Simulator

HEADER = "x-request-id"
ENDLESS = "gap_ms=200;chunks=2000;output_tokens=10000"
VERSION = {"anthropic-version": "2023-06-01"}


class Clients:
    """Ask one after the other, half of them for streams; `whole` and `cut` hold the request ids of answers by their end.

    One more asks for a stream that goes on until it is cut; `endless` tells whether its answer has begun.
    """

    def __init__(self, url: str, count: int) -> None:
        self.whole: set[str] = set()
        self.cut: set[str] = set()
        self.endless = False
        self._url = url
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number % 2 == 0,)) for number in range(count)]
        self._threads.append(threading.Thread(target=self._ask, args=(True, True)))
        for thread in self._threads:
            thread.start()

    def _ask(self, stream: bool, endless: bool = False) -> None:
        asked = claude.ASKED | {"stream": stream} | ({"max_tokens": 10_000} if endless else {})
        headers = VERSION | ({"x-simulator-scenario": ENDLESS} if endless else {})
        while not self._enough.is_set():
            request_id = None
            try:
                with httpx.stream("POST", self._url, json=asked, headers=headers, timeout=60) as answer:
                    request_id = answer.headers[HEADER]
                    if endless:
                        self.endless = True
                    body = answer.read()
                if answer.status_code == 200 and (b"message_stop" in body or not stream):
                    self.whole.add(request_id)
            except httpx.TransportError:
                self._enough.wait(0.05)  # nobody there for a moment
            if endless:
                self.endless = False
            if request_id is not None and request_id not in self.whole:
                self.cut.add(request_id)

    def stop(self) -> None:
        """And wait for their last answers."""
        self._enough.set()
        for thread in self._threads:
            thread.join(30)


def _rows(directory: Path) -> list[tuple[str, str]]:
    """Request id and outcome of every row; none before there is a database."""
    try:
        connection = sqlite3.connect(f"file:{directory / 'ledger.db'}?mode=rw", uri=True, timeout=10)
    except sqlite3.OperationalError:
        return []
    try:
        return connection.execute("SELECT request_id, outcome FROM calls").fetchall()
    except sqlite3.OperationalError:
        return []  # its tables are being made
    finally:
        connection.close()


def _everybody(gateway: Gateway) -> None:
    """Master and workers, the master first: nobody is left to start new ones."""
    pids = [gateway.process.pid, *gateway.worker_pids()]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    gateway.process.wait(30)


def test_workers_and_master_killed_under_load_cost_the_ledger_no_call_and_double_none(tmp_path: Path) -> None:
    moments = random.Random(11)
    settings = {"CLAUDE_PROXY_LEDGER": str(tmp_path), "CLAUDE_PROXY_WORKERS": "2"}
    with Simulator("--ttfb-ms", "5", "--gap-ms", "40") as simulator:
        with Gateway(simulator.url, **settings) as gateway:
            clients = Clients(gateway.url + "/v1/messages", 8)
            try:
                for _ in range(3):
                    done = len(clients.whole)
                    poll(lambda done=done: len(clients.whole) > done + 10, what="answers", seconds=60)  # type: ignore[misc]
                    time.sleep(moments.uniform(0, 0.2))  # not a wait for something: the moment of death
                    os.kill(moments.choice(poll(gateway.worker_pids, what="a worker")), signal.SIGKILL)
                done = len(clients.whole)
                poll(lambda: len(clients.whole) > done + 10, what="answers", seconds=60)
                poll(lambda: clients.endless, what="a stream under way", seconds=60)
            finally:
                _everybody(gateway)
                clients.stop()
        with Gateway(simulator.url, **settings) as successor:
            spoken_of = clients.whole | clients.cut
            poll(lambda: spoken_of <= {request for request, _ in _rows(tmp_path)}, what="every call", seconds=60)
            assert successor.stop() == 0
        asked = [each for each in simulator.get("/_simulator/requests") if each["method"] == "POST"]
    rows = _rows(tmp_path)
    assert [request for request, count in Counter(request for request, _ in rows).items() if count > 1] == []
    assert len(asked) <= len(rows)  # whatever the provider heard of, and may bill, has a row
    found = dict(rows)
    assert {found[request] for request in clients.whole} == {"ok"}
    # Of the answers that were cut, one may just have been written down as whole; not the endless one.
    assert "interrupted" in {found[request] for request in clients.cut}
    assert {found[request] for request in clients.cut} <= {"interrupted", "ok", "client_abort"}
    assert list(tmp_path.glob("*.journal")) == []
