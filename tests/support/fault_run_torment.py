"""What the fault run does to the gateway: SIGKILL of a worker, of all, of the master too; a locked database; a full disk.

`/metrics` is scraped before every kill and in between, so that it can be said what a killed worker had shown.
"""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.support.fault_run_clients import Clients
from tests.support.poll import poll
from tests.support.processes import Gateway, Simulator

WORKERS = 2
BACKLOG = "claude_proxy_ledger_backlog_rows"
DROPPED = "claude_proxy_telemetry_dropped_total"
STARTED = "process_start_time_seconds"
COUNTERS = re.compile(
    r"(claude_proxy_requests_total|claude_proxy_client_cost_usd_total|claude_proxy_cost_usd_total"
    r"|claude_proxy_unpriced_requests_total|gen_ai_client_inference_usage_\w+_tokens_total)$"
)
_SAMPLE = re.compile(r"(\w+)\{(.*)\} (\S+)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_TICKS = os.sysconf("SC_CLK_TCK")
TICK = 0.006
"""Seconds within which two texts of a start mean the same: they are told in hundredths."""
_FULL = 4096
"""Bytes up to which a process may write while its disk is full."""

Series = tuple[str, frozenset[tuple[str, str]]]


@dataclass
class Life:
    """One worker process as `/metrics` showed it: what its counters said last, and when that was asked."""

    started: float
    shown: float
    counters: dict[Series, float]


@dataclass
class Killed:
    """A worker that got SIGKILL: when, and when it had started (Unix seconds)."""

    at: float
    started: float


@dataclass
class Log:
    """What was done, and what was seen of it."""

    kills: list[Killed] = field(default_factory=list)
    masters: int = 0
    """SIGKILLs of a master, all its workers with it."""
    outages: list[tuple[float, float]] = field(default_factory=list)
    """When the database was locked."""
    full: list[tuple[float, float]] = field(default_factory=list)
    """When the disk was full."""
    backlogs: list[float] = field(default_factory=list)
    """The most rows that waited in each of either."""
    lives: dict[tuple[str, str], Life] = field(default_factory=dict)
    """By slot and start, as `/metrics` writes them."""
    dropped: float = 0.0
    scrapes: int = 0
    lines: list[str] = field(default_factory=list)
    """What all gateways wrote."""


class Torment(threading.Thread):
    """Goes through its plan as calls are made, then waits for the end. `gateway` is the one that lives."""

    def __init__(self, calls: int, seed: int, clients: Clients, simulator: Simulator, settings: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self.log = Log()
        self.trouble: BaseException | None = None
        self._rng = random.Random(seed)
        self._plan = _plan(calls, self._rng)
        self._clients, self._simulator, self._settings = clients, simulator, settings
        self._directory = Path(settings["CLAUDE_PROXY_LEDGER"])
        self._outage: threading.Thread | None = None
        self._scraping = threading.Lock()
        self.gateway = self._gateway()

    def _gateway(self) -> Gateway:
        """Every other one tries again what failed, and then the simulator fails now and then."""
        retries = self.log.masters % 2
        rules = [{"scenario": "fault=overloaded;retry_after=0", "probability": 0.1}] if retries else []
        httpx.post(self._simulator.url + "/_simulator/schedule", json=rules).raise_for_status()
        more = {"CLAUDE_PROXY_MAX_RETRIES": str(retries), "CLAUDE_PROXY_RETRY_BUDGET": "1"}
        gateway = Gateway(self._simulator.url, **self._settings, **more)
        gateway.__enter__()
        self._clients.url = gateway.url
        self._clients.up.set()
        return gateway

    def run(self) -> None:
        """All of the plan."""
        try:
            for calls, action in self._plan:
                while len(self._clients.seen) < calls:
                    if not self._clients.is_alive():
                        return
                    time.sleep(self._rng.uniform(0.02, 0.3))  # not a wait for something: any moment will do
                    if self._rng.random() < 0.05:
                        self.scrape()
                _ACTIONS[action](self)
            if self._outage is not None:
                self._outage.join()
        except BaseException as error:  # noqa: BLE001 told by who waits for it
            self.trouble = error

    def scrape(self) -> float:
        """Take what `/metrics` shows; returns the backlog of all workers, 0 when nothing came."""
        with self._scraping:
            asked = time.time()
            try:
                page = httpx.get(self.gateway.url + "/metrics", timeout=10).raise_for_status().text
            except httpx.HTTPError:
                return 0.0  # who answered was killed, or nobody is there
            self.log.scrapes += 1
            return self._take(asked, page)

    def _take(self, asked: float, page: str) -> float:
        starts: dict[str, str] = {}
        found: dict[str, dict[Series, float]] = {}
        backlog = 0.0
        for line in page.splitlines():
            sample = _SAMPLE.match(line)
            if sample is None:
                continue
            name, labels, value = sample.groups()
            if name == STARTED:
                starts[dict(_LABEL.findall(labels))["worker"]] = value
            elif name == BACKLOG:
                backlog += float(value)
            elif name == DROPPED and 'signal="ledger"' in labels:
                self.log.dropped = max(self.log.dropped, float(value))
            elif COUNTERS.match(name):
                pairs = dict(_LABEL.findall(labels))
                slot = pairs.pop("worker")
                found.setdefault(slot, {})[name, frozenset(pairs.items())] = float(value)
        for slot, start in starts.items():
            self.log.lives[slot, start] = Life(float(start), asked, found.get(slot, {}))
        return backlog

    def kill_one(self) -> None:
        """A worker, old or just being born."""
        if pids := self.gateway.worker_pids():
            self._kill([self._rng.choice(pids)])

    def kill_all(self) -> None:
        """Every worker at once."""
        self._kill(self.gateway.worker_pids())

    def _kill(self, pids: list[int]) -> None:
        self.scrape()
        time.sleep(self._rng.uniform(0, 0.3))  # not a wait for something: the moment of death
        self._end(pids)

    def _end(self, pids: list[int]) -> None:
        for pid in pids:
            try:
                started = _started(pid)
                os.kill(pid, signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                continue  # of an earlier kill, and reaped just now
            self.log.kills.append(Killed(time.time(), started))

    def kill_master(self) -> None:
        """The master and its workers; then somebody starts a new gateway on the same directory."""
        if self._outage is not None:
            self._outage.join()
        master = self.gateway.process.pid
        self.scrape()
        os.kill(master, signal.SIGSTOP)  # so that no worker is born between the two
        pids = self.gateway.worker_pids()
        os.kill(master, signal.SIGKILL)
        self._end(pids)
        self._clients.up.clear()
        self.log.masters += 1
        self.end_of_gateway()
        self.gateway = self._gateway()

    def end_of_gateway(self) -> None:
        """Keep what it wrote."""
        self.gateway.__exit__(None, None, None)
        self.log.lines += self.gateway.lines

    def lock_database(self) -> None:
        """Another process's transaction that takes its time, while everything else goes on."""
        if self._outage is not None:
            self._outage.join()
        self._outage = threading.Thread(target=self._hold, args=(self._rng.uniform(3, 6),))
        self._outage.start()

    def _hold(self, seconds: float) -> None:
        connection = sqlite3.connect(self._directory / "ledger.db", isolation_level=None, timeout=30)
        connection.execute("BEGIN EXCLUSIVE")
        began = time.time()
        self.log.backlogs.append(0.0)
        while time.time() < began + seconds:
            self.log.backlogs[-1] = max(self.log.backlogs[-1], self.scrape())
            time.sleep(0.3)  # not a wait for something: the outage's length
        self.log.outages.append((began, time.time()))
        connection.execute("ROLLBACK")
        connection.close()

    def fill_disk(self) -> None:
        """No worker can write to any file. Calls are then kept in memory, so none of them is killed until it could write."""
        if self._outage is not None:
            self._outage.join()
        poll(lambda: len(self._ready()) == WORKERS, what="all workers", seconds=60)
        pids = self.gateway.worker_pids()
        began, most = time.time(), 0.0
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (_FULL, resource.RLIM_INFINITY))
        while time.time() < began + 2:
            most = max(most, self.scrape())
            time.sleep(0.3)  # not a wait for something: the outage's length
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        self.log.full.append((began, time.time()))
        self.log.backlogs.append(most)
        self.wait_for_ledger()

    def _ready(self) -> list[int]:
        """Process ids of workers that are all in `/metrics`."""
        self.scrape()
        pids = self.gateway.worker_pids()
        shown = [life.started for life in self.log.lives.values()]
        return [pid for pid in pids if any(abs(_started(pid) - each) < TICK for each in shown)]

    def wait_for_ledger(self) -> None:
        """Until the database had at some moment everything that was ended before."""

        def moved() -> bool:
            page = httpx.get(self.gateway.url + "/metrics", timeout=10).text
            return all(
                float(line.split()[1]) > began
                for line in page.splitlines()
                if line.startswith('claude_proxy_telemetry_last_success_timestamp_seconds{signal="ledger"')
            )

        began = time.time()
        poll(moved, what="the ledger to take rows again", seconds=60)


_ACTIONS: dict[str, Callable[[Torment], None]] = {
    "one": Torment.kill_one,
    "all": Torment.kill_all,
    "master": Torment.kill_master,
    "lock": Torment.lock_database,
    "full": Torment.fill_disk,
}


def _plan(calls: int, rng: random.Random) -> list[tuple[int, str]]:
    """After how many calls to do what: spread evenly, in any order but for the masters, who each have their time."""
    masters = max(1, calls // 30_000)
    counts = {
        "one": max(6, calls // 1_800),
        "all": max(1, calls // 20_000),
        "lock": max(1, calls // 12_000),
        "full": max(1, calls // 20_000),
    }
    actions = [action for action, count in counts.items() for _ in range(count)]
    rng.shuffle(actions)
    for number in range(masters, 0, -1):
        actions.insert(len(actions) * number // (masters + 1), "master")
    step = calls / (len(actions) + 1)
    return [(int(step * (number + 1)), action) for number, action in enumerate(actions)]


def _started(pid: int) -> float:
    """Unix time at which a process started, as prometheus_client works it out. Raises OSError when it does not live."""
    boot = next(int(x.split()[1]) for x in Path("/proc/stat").read_text().splitlines() if x.startswith("btime"))
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] == "Z":
        raise ProcessLookupError(pid)
    return boot + int(fields[19]) / _TICKS
