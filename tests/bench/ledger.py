"""What the books cost: a call on the request's side, rows moved a second, and questions about a million calls.

`python -m tests.bench.ledger [--rows 1000000] [--path DIR]`; prints one line per figure.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from observability.catalog import Outcome
from service.account.books import Books
from service.account.journal import Journal
from service.account.ledger import FILE, Ledger
from service.account.ledger_writer import Hooks, LedgerWriter
from service.account.prices import Prices
from service.account.rows import Row, new_call_id, row_of
from service.record import Answered, Attempt, Certainty, Cost, Kind, Record, Timings, Trace, Usage
from tests.support.book import NOON, row, started

CALLS = 20_000
ROUNDS = 7
MODELS = tuple(f"claude-{name}" for name in ("opus-5-5", "sonnet-5-5", "haiku-5", "opus-5", "sonnet-4-6", "haiku-4-5"))
CLIENTS = tuple(f"team-{number}" for number in range(20))
OUTCOMES = ("ok",) * 18 + ("upstream_429", "client_abort")
ROUTES = ("/v1/messages", "/generate")

RECORD = Record(
    Kind.REQUEST, "cp_1", "/v1/messages", Outcome.OK, Timings(2.5, 2.4), Trace("a" * 32, "b" * 16, True), "anthropic",
    "chat", "claude-opus-5-5", True, 200, attempts=(Attempt("ok", 200),), client="team-a",
    answered=Answered(True, "msg_01", "claude-opus-5-5", "end_turn", Usage(1000, 200, 0, 0, 0), first_chunk=0.5),
)  # fmt: skip


def measure(*, quick: bool) -> list[str]:
    """The request path's part for the report: what pricing a call and writing it down cost. Goal: 30 us together."""
    with tempfile.TemporaryDirectory() as scratch:
        lines = request_side(Path(scratch) / "calls", rounds=2 if quick else ROUNDS)
    return ["## Books: cost per call on the request path", "```\n" + "\n".join(lines) + "\n```"]


def _per_call(what: str, act: Callable[[], object], rounds_wanted: int) -> str:
    """Microseconds of this thread's CPU (other processes' load does not count), the median and the worst round."""
    rounds = []
    for _ in range(rounds_wanted):
        begin = time.thread_time()
        for _ in range(CALLS):
            act()
        rounds.append((time.thread_time() - begin) / CALLS * 1e6)
    return f"{what:58} {statistics.median(rounds):8.1f} us   (worst round {max(rounds):.1f})"


def request_side(directory: Path, rounds: int = ROUNDS) -> list[str]:
    """A call's price, start and end, with the writer's thread at rest, and what making the row costs."""
    journal = Journal(directory, lambda *_: None, bound=1 << 40)
    books = Books(Prices(), journal)
    cost = Cost(Certainty.EXACT, input=5_000_000, output=5_000_000)

    def price() -> Cost | None:
        return books.cost(
            provider="anthropic",
            model=RECORD.model,
            answered=RECORD.answered,
            outcome=RECORD.outcome,
            inference=True,
            attempts=RECORD.attempts,
            cached=False,
            input_estimate=None,
            at=NOON,
        )

    def call() -> None:
        call_id = new_call_id()
        journal.began(started(call_id))
        journal.ended(row_of(RECORD, call_id, NOON, NOON + 2.5, cost))

    start, end = started(), row()
    measured: dict[str, Callable[[], object]] = {
        "price: what the call cost": price,
        "began: encode, crc, one write": lambda: journal.began(start),
        "ended: encode, crc, one write": lambda: journal.ended(end),
        "row_of: the row from a record": lambda: row_of(RECORD, "0" * 32, NOON, NOON, cost),
        "a whole call: id, Started, began, row_of, ended": call,
    }
    lines = [_per_call(what, act, rounds) for what, act in measured.items()]
    journal.close()
    return lines


def moving(directory: Path, rows: int) -> None:
    """Rows a second from a journal into SQLite, by one thread with nothing else to do."""
    journal = Journal(directory, lambda *_: None, bound=1 << 40)
    for _ in range(rows):
        journal.ended(made_up(0.4))
    writer = LedgerWriter(journal, Ledger(directory), Hooks())
    begin, cpu = time.perf_counter(), time.thread_time()
    writer.round()
    took, burnt = time.perf_counter() - begin, time.thread_time() - cpu
    print(f"{'journal to SQLite':58} {rows / took:8.0f} rows/s   ({burnt / rows * 1e6:.1f} us CPU a row)", flush=True)
    journal.close()


def made_up(days: float) -> Row:
    """One of many calls of the last days."""
    ended = NOON - random.random() * days * 86_400
    who = {"model": random.choice(MODELS), "client": random.choice(CLIENTS), "route": random.choice(ROUTES)}
    return row(started=ended - 2.0, ended=ended, outcome=random.choice(OUTCOMES), **who)


def questions(directory: Path, rows: int) -> None:
    """The command's own time, process start included, on a large database."""
    ledger = Ledger(directory)
    have = sum(int(total["calls"]) for total in ledger.totals([])) if (directory / FILE).exists() else 0
    begin = time.perf_counter()
    for _ in range(0, rows - have, 10_000):
        ledger.add([made_up(60) for _ in range(10_000)])
    if rows > have:
        took = time.perf_counter() - begin
        print(f"{'made a database of so many rows':58} {rows:8}        ({(rows - have) / took:.0f} rows/s)", flush=True)
    size = (directory / FILE).stat().st_size
    print(f"{'its size':58} {size / 1e6:8.0f} MB   ({size / rows:.0f} bytes a row)", flush=True)
    begin = time.perf_counter()
    ledger.spends("2026-11-20")
    print(f"{'spends of a day, in process':58} {(time.perf_counter() - begin) * 1e3:8.1f} ms", flush=True)
    ledger.close()
    for options in ("", "--by day,model,client,route,outcome", "--since 7d --by client", "--calls --limit 1000"):
        command = [sys.executable, "-m", "service.cli", "ledger", "--path", str(directory), *options.split()]
        taken = []
        for _ in range(3):
            begin = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
            taken.append(time.perf_counter() - begin)
        print(f"{'claude-proxy ledger ' + options:58} {statistics.median(taken):8.2f} s", flush=True)


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the large database (%(default)s)")
    parser.add_argument("--path", type=Path, help="keep the large database here, and use it if it is there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print("\n".join(request_side(Path(scratch) / "calls")), flush=True)
        moving(Path(scratch) / "moving", 50_000)
        questions(arguments.path or Path(scratch) / "large", arguments.rows)


if __name__ == "__main__":
    main()
