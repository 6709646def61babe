"""The measurements. Each goes round its subjects several times, so that a noisy minute hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from tests.bench import machine
from tests.bench.load import Closed, Command, Streams
from tests.bench.scrape import ROUNDS, Scraped, measure
from tests.bench.subjects import DIRECT, EVERYTHING, GATEWAY, NOTHING, PASS, Stage, Subject, say

CONNECTIONS = 16
STREAMS, CHUNKS, GAP_MS, STAGGER = 200, 64, 20, 0.001
MANY_CHUNKS = 24
MANY_RATE = 4000
"""Chunks per second of all the many streams together: their gap grows with their number."""
MANY_STAGGER = 0.005
"""Seconds between the starts of the many streams: what is asked is how many can be open, not how fast they can begin."""
BATCH_PROMPTS, BATCH_DELAY_MS = 50, 100


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure. `deadline` (monotonic) ends further rounds; each measure has its first all the same."""

    quick: bool
    seconds: float
    rounds: int
    stream_rounds: int
    batch_rounds: int
    many: int
    deadline: float


@dataclass(slots=True)
class Under:
    """One round of closed load: the generator's figures and the CPU time of the process measured."""

    figures: Closed
    cpu_us: float | None

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.figures.requests / self.figures.seconds


@dataclass(slots=True)
class StreamRound:
    """One round of streams, with CPU microseconds per chunk."""

    figures: Streams
    cpu_us: float | None


@dataclass(slots=True)
class Many:
    """Many streams at once through a process that was started for them."""

    streams: int
    figures: Streams
    idle_kb: float
    peak_kb: float

    @property
    def kb_per_stream(self) -> float:
        """Growth per open stream."""
        return (self.peak_kb - self.idle_kb) / self.streams


@dataclass(slots=True)
class Batch:
    """Seconds for the same prompts, as one batch and one by one."""

    batch: float
    singles: float
    bad: int


@dataclass(slots=True)
class Results:
    """Everything measured; lists have one entry per round, keyed by subject."""

    throughput: dict[str, list[Under]] = field(default_factory=dict)
    sequential: dict[str, list[Under]] = field(default_factory=dict)
    streams: dict[str, list[StreamRound]] = field(default_factory=dict)
    many: dict[str, Many] = field(default_factory=dict)
    batch: list[Batch] = field(default_factory=list)
    ready_seconds: list[float] = field(default_factory=list)
    scrape: list[Scraped] = field(default_factory=list)
    spans_kept: float | None = None
    """SERVER spans that reached the OTLP sink, per request of a burst of full load."""


class Bench:
    """One run: a stage, a plan, and the results so far."""

    def __init__(self, stage: Stage, plan: Plan) -> None:
        self._stage, self._plan = stage, plan
        self.results = Results()

    def _rounds(self, what: str, count: int) -> Iterator[int]:
        for index in range(count):
            if index and time.monotonic() > self._plan.deadline:
                self._stage.notes.append(f"{what}: {index} rounds of {count}, the time was up")
                return
            say(f"{what}: round {index + 1} of {count}")
            yield index

    def _subjects(self, names: Sequence[str], first: int) -> list[Subject]:
        """Those that are there, beginning with another one each round."""
        found = [self._stage.subjects[name] for name in names if name in self._stage.subjects]
        first %= len(found)
        return found[first:] + found[:first]

    def _under(self, subject: Subject, connections: int) -> Under:
        before = _cpu(subject)
        figures = self._stage.load.closed(subject.closed(connections, self._plan.seconds))
        return Under(figures, _per(before, _cpu(subject), figures.requests))

    def throughput(self) -> None:
        """Non-streaming requests, 16 connections."""
        for index in self._rounds("throughput", self._plan.rounds):
            for subject in self._subjects(list(self._stage.subjects), index):
                self.results.throughput.setdefault(subject.name, []).append(self._under(subject, CONNECTIONS))

    def export(self) -> None:
        """How much of the gateway's spans reaches the sink under load."""
        subject = self._stage.subjects[GATEWAY]
        say("export: are all spans exported under load?")
        time.sleep(6)  # the batch processor's delay: what earlier measures left is out by then
        before = self._stage.sink.counts()["server_spans"]
        under = self._stage.load.closed(subject.closed(CONNECTIONS, self._plan.seconds))
        time.sleep(6)
        self.results.spans_kept = (self._stage.sink.counts()["server_spans"] - before) / max(1, under.requests)

    def sequential(self) -> None:
        """One connection, one request at a time."""
        for index in self._rounds("sequential", self._plan.rounds):
            for subject in self._subjects((DIRECT, PASS, GATEWAY, NOTHING), index):
                self.results.sequential.setdefault(subject.name, []).append(self._under(subject, 1))

    def streams(self) -> None:
        """200 concurrent streams of 64 chunks, 20 ms apart."""
        for index in self._rounds("streams", self._plan.stream_rounds):
            for subject in self._subjects((DIRECT, PASS, GATEWAY, NOTHING), index):
                before = _cpu(subject)
                figures = self._stage.load.streams(subject.streams(STREAMS, CHUNKS, GAP_MS, STAGGER))
                cpu_us = _per(before, _cpu(subject), STREAMS * CHUNKS)
                self.results.streams.setdefault(subject.name, []).append(StreamRound(figures, cpu_us))

    def many(self) -> None:
        """Many streams at once, and the memory they take, in processes of their own: old ones have slack to reuse."""
        if not self._plan.quick:
            self._many(self._stage.start_passthrough)
        self._many(lambda stack: self._stage.start_gateway(EVERYTHING, stack))

    def _many(self, start: Callable[[ExitStack], Subject]) -> None:
        with ExitStack() as stack:
            subject = start(stack)
            say(f"many: {self._plan.many} streams through {subject.name}")
            assert subject.pid is not None
            pid = subject.pid
            # Caches, pools and lazily imported code are not the streams' memory.
            self._stage.load.closed(Command("closed", subject.port, seconds=10, count=100))
            self._stage.load.streams(subject.streams(4, 4, 10, STAGGER))
            time.sleep(0.5)
            idle = peak = machine.rss_kb(pid)

            def sample() -> None:
                nonlocal peak
                peak = max(peak, machine.rss_kb(pid))

            gap_ms = max(1, round(self._plan.many * 1000 / MANY_RATE))
            command = subject.streams(self._plan.many, MANY_CHUNKS, gap_ms, MANY_STAGGER)
            figures = self._stage.load.streams(command, sample)
            self.results.many[subject.name] = Many(self._plan.many, figures, idle, peak)

    def batch(self) -> None:
        """`/batch_generate` beside the same prompts one by one."""
        port, mark = self._stage.subjects[GATEWAY].port, f"#delay={BATCH_DELAY_MS}#"
        for _ in self._rounds("batch", self._plan.batch_rounds):
            batch = self._stage.load.closed(
                Command("closed", port, seconds=60, count=1, path="/batch_generate", mark=mark, prompts=BATCH_PROMPTS)
            )
            singles = self._stage.load.closed(
                Command("closed", port, seconds=60, count=BATCH_PROMPTS, path="/generate", mark=mark)
            )
            self.results.batch.append(Batch(batch.seconds, singles.seconds, batch.bad + singles.bad))

    def scrape(self) -> None:
        """`/metrics` of several workers with many series each."""
        say("scrape: the answer of several workers")
        self.results.scrape = measure(self._stage.layout.service, 6 if self._plan.quick else ROUNDS)

    def start(self) -> None:
        """Starts of the gateway, one after the other, each until `/readyz` says so."""
        while len(self._stage.ready_seconds) < 3:
            say("start: another start of the gateway")
            with ExitStack() as stack:
                self._stage.start_gateway(EVERYTHING, stack)
        self.results.ready_seconds = self._stage.ready_seconds


def _cpu(subject: Subject) -> float | None:
    return None if subject.pid is None else machine.cpu_seconds(subject.pid)


def _per(before: float | None, after: float | None, count: int) -> float | None:
    return None if before is None or after is None else (after - before) / max(1, count) * 1e6
