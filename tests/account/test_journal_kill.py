"""SIGKILL at any moment: every call whose end was written is in the ledger once, every other that began is interrupted."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support.book import Book, outcomes
from tests.support.processes import clean_environ


class Worker:
    """A bookkeeping process; `began` and `ended` hold the calls it has spoken of."""

    def __init__(self, directory: Path) -> None:
        self.began: set[str] = set()
        self.ended: set[str] = set()
        self.speaks = threading.Event()
        arguments = [sys.executable, "-m", "tests.support.bookkeeper", str(directory)]
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=clean_environ({}))
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as said:
            for line in said:
                {"b": self.began, "e": self.ended}[line[0]].add(line[2:-1])
                self.speaks.set()

    def kill(self) -> None:
        """And hear its last words."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        self._reader.join(10)


def _killed(directory: Path, workers: int, seconds: float) -> list[Worker]:
    living = [Worker(directory) for _ in range(workers)]
    try:
        for worker in living:
            assert worker.speaks.wait(30)
        time.sleep(seconds)  # not a wait for something: the moment of death
    finally:
        for worker in living:
            worker.kill()
    return living


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_moments_workers_lose_and_double_no_call(tmp_path: Path, seed: int) -> None:
    """One generation after another takes over from the one before and is killed itself, all its workers at once."""
    moments = random.Random(seed)
    dead = [worker for _ in range(3) for worker in _killed(tmp_path, 2, moments.uniform(0.0, 0.5))]
    Book(tmp_path).writer.round()
    found = outcomes(tmp_path)
    began, ended = (set().union(*(getattr(worker, what) for worker in dead)) for what in ("began", "ended"))
    assert len(ended) > 500
    assert {call for call in ended if found.get(call) != "ok"} == set()
    assert began - found.keys() == set()
    # Each may have done one thing more than it could still say.
    unsaid = found.keys() - began
    assert len(unsaid) <= len(dead)
    assert len([call for call in began - ended if found[call] == "ok"]) <= len(dead)
    assert {found[call] for call in unsaid} <= {"interrupted"}
