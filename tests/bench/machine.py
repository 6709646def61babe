"""This machine: its cores, and what /proc says of a process. Linux only."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

Cores = frozenset[int]


@dataclass(frozen=True, slots=True)
class Layout:
    """Who runs where: the measured service has one core to itself, load generator and upstream have the others."""

    service: Cores
    load: Cores

    @property
    def text(self) -> str:
        """For the report."""
        if not self.service:
            return "nothing pinned: there is only one core, so load and service slow each other down"
        load = ",".join(map(str, sorted(self.load)))
        return f"service pinned to core {min(self.service)}; load, upstream and OTLP sink to core {load}"


def layout() -> Layout:
    """By the cores that this process may use."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return Layout(frozenset(), frozenset())
    return Layout(frozenset(cores[-1:]), frozenset(cores[:-1]))


@contextmanager
def pinned(cores: Cores) -> Iterator[None]:
    """Children started inside run on `cores` from their first instruction (they inherit this thread's affinity)."""
    before = os.sched_getaffinity(0)
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_seconds(pid: int) -> float:
    """User and system time of all its threads so far, in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def rss_kb(pid: int) -> float:
    """Resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / 1024


def children(pid: int) -> list[int]:
    """Process ids of its children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Busy:
    """How busy the machine was with other things: CPU time of all cores that is neither idle nor in our processes."""

    def __init__(self) -> None:
        self._total, self._idle = _jiffies()
        self._ours = _our_seconds()

    def others_share(self) -> float:
        """Share of the machine's CPU time since construction that went to processes that we did not start."""
        total, idle = _jiffies()
        elapsed = (total - self._total) / _TICK
        busy = elapsed - (idle - self._idle) / _TICK
        return max(0.0, busy - (_our_seconds() - self._ours)) / max(elapsed, 1e-9)


def _jiffies() -> tuple[int, int]:
    fields = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(fields), fields[3] + fields[4]


def _our_seconds() -> float:
    """This process, the children it waited for, and the living below it."""
    times = os.times()
    total = times.user + times.system + times.children_user + times.children_system
    waiting = children(os.getpid())
    while waiting:
        pid = waiting.pop()
        try:
            total += cpu_seconds(pid)
            waiting += children(pid)
        except OSError:
            continue
    return total


def facts() -> list[str]:
    """What a reader must know to compare."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return [
        f"{os.cpu_count()} cores ({model}), Linux {platform.release()}",
        f"Python {platform.python_version()} ({platform.python_implementation()})",
        f"load average at the start: {load}",
    ]
