"""Calls of all kinds and outcomes while workers and masters are killed, the database is locked and the disk is full: the
ledger equals what clients saw and what the simulator served, call by call, and the metrics but for what the killed lost.

`FAULT_RUN=100000` in the environment is the full length (about ten minutes, 2 GB of memory); the default is short.
A worker that is killed between writing a call's end and sending its last byte leaves a row that says finished to a client
that was cut: that is allowed, and counted as such in the summary that is printed (`-s` shows it).
"""

from __future__ import annotations

import faulthandler
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from service.web.auth import hash_key
from tests.support.fault_run_books import DONE, Books, Row, Sums, lines_of, rows_of
from tests.support.fault_run_calls import CLIENT_KEY
from tests.support.fault_run_clients import Clients
from tests.support.fault_run_torment import Torment
from tests.support.poll import poll
from tests.support.processes import Simulator

CALLS = int(os.environ.get("FAULT_RUN", "2500"))
SEED = int(os.environ.get("FAULT_RUN_SEED", "20261122"))
LANES = 24
BACK_SECONDS = 20.0
"""Until somebody is answered again after a kill, on a machine that is busy: a new gateway starts within two, alone on it."""
ROUNDING = 1000
"""Nano-dollars by which a sum of floats of dollars may be off."""


def _settings(simulator: Simulator, directory: Path) -> dict[str, str]:
    return {
        "CLAUDE_PROXY_LEDGER": str(directory),
        "CLAUDE_PROXY_WORKERS": "2",
        "CLAUDE_PROXY_CLIENT_KEYS": f"tester:{hash_key(CLIENT_KEY)}",
        "CLAUDE_PROXY_LOG_LEVEL": "error",
        "CLAUDE_PROXY_IDLE_TIMEOUT": "3",
        "CLAUDE_PROXY_GEMINI_BASE_URL": simulator.url + "/gemini",
        "CLAUDE_PROXY_OPENAI_BASE_URL": simulator.url + "/openai",
        "GEMINI_API_KEY": "gemini-key",
        "OPENAI_API_KEY": "openai-key",
    }


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Books]:
    """The run, and everybody's testimony after it."""
    faulthandler.dump_traceback_later(240 + CALLS / 20, exit=True, file=2)  # longer than a test may take otherwise
    directory = tmp_path_factory.mktemp("ledger")
    room = str(4 * CALLS + 10_000)
    with Simulator("--fast", "--unlimited", "--record", "0", "--record-calls", room) as simulator:
        clients = Clients(SEED, LANES)
        torment = Torment(CALLS, SEED, clients, simulator, _settings(simulator, directory))
        try:
            clients.start()
            torment.start()
            torment.join()
            poll(lambda: len(clients.seen) >= CALLS or clients.trouble, what="the last calls", seconds=60 + CALLS / 20)
            clients.stop()
            if torment.trouble is not None:
                raise torment.trouble
            _settle(torment, simulator, directory)
            assert torment.gateway.stop() == 0
        finally:
            torment.end_of_gateway()
        counts = httpx.get(simulator.url + "/_simulator/counts", timeout=60).content
    rows, days = rows_of(directory)
    made = Books(clients.seen, rows, lines_of(counts), torment.log, days)
    print(_summary(made))  # noqa: T201 what was run, for whoever reads the log
    yield made
    assert list(directory.glob("*.journal")) == []


def _settle(torment: Torment, simulator: Simulator, directory: Path) -> None:
    """Until nothing is under way and the ledger has everything; then the last scrape."""
    gateway = torment.gateway

    def quiet() -> bool:
        served = simulator.get("/_simulator/counts?calls=0")["requests"]["in_flight"]
        return not served and not gateway.sample("claude_proxy_in_flight_requests")

    def alone() -> bool:
        living = {str(pid) for pid in gateway.worker_pids()}
        return {path.name.partition("-")[0] for path in directory.glob("*.journal")} <= living

    poll(quiet, what="the last calls to end", seconds=60)
    poll(alone, what="dead workers' journals to be taken over", seconds=60)
    torment.wait_for_ledger()
    assert torment.scrape() == 0
    assert torment.log.lives


def _summary(books: Books) -> str:
    log, ends = books.log, Counter(seen.end for seen in books.seen)
    rows = dict(Counter(row.outcome for row in books.rows).most_common())
    by_trace = books.rows_by_trace
    unheard = sum(
        seen.end in ("cut", "lost")
        and seen.kind.outcome in DONE
        and any(row.outcome in DONE for row in by_trace[seen.trace_id])
        for seen in books.seen
        if seen.trace_id in by_trace
    )
    locked = sum(b - a for a, b in log.outages)
    return (
        f"fault run: {len(books.seen)} calls {dict(ends)}, {len(books.lines)} at the provider, {len(log.kills)} workers and"
        f" {log.masters} masters killed, {len(log.outages)} database outages ({locked:.0f} s), {len(log.full)} full disks,"
        f" backlogs {[int(each) for each in log.backlogs]}, {log.scrapes} scrapes; {len(books.rows)} rows {rows};"
        f" finished and not heard: {unheard}; back after at most {max(_back(books), default=0):.1f} s"
    )


def _none(found: Iterable[str]) -> None:
    first = list(itertools.islice(found, 5))
    assert not first, "\n".join(first)


def _back(books: Books) -> list[float]:
    """Seconds from each kill until the first good answer to somebody who asked after it."""
    good = sorted((seen.began, seen.ended) for seen in books.seen if seen.end == "whole" and seen.status == 200)
    last = max(began for began, _ in good)
    firsts = [
        min((e for b, e in good if kill.at < b), default=0.0) - kill.at for kill in books.log.kills if kill.at < last
    ]
    return firsts


def test_there_was_enough_of_everything(books: Books) -> None:
    log = books.log
    assert len(books.seen) >= CALLS
    assert len(log.kills) >= (50 if CALLS >= 100_000 else 6)
    assert log.masters
    assert log.outages
    assert log.full
    assert {"whole", "cut", "lost", "left"} <= {seen.end for seen in books.seen}
    outcomes = {seen.kind.outcome for seen in books.seen} | {"client_abort", "interrupted"}
    assert outcomes <= {row.outcome for row in books.rows}
    assert any(row.attempts > 1 and row.outcome == "ok" for row in books.rows)


def test_every_answer_that_a_client_has_whole_is_in_the_ledger_once_and_as_the_client_saw_it(books: Books) -> None:
    _none(books.whole())


def test_an_answer_broke_for_a_kill_or_a_fault_and_its_row_knows_it(books: Books) -> None:
    _none(books.broken())


def test_nothing_is_in_the_ledger_twice(books: Books) -> None:
    _none(books.doubled())


def test_everything_that_the_provider_served_is_in_the_ledger_with_the_tokens_it_billed(books: Books) -> None:
    _none(books.served())


def test_every_row_has_its_client_and_every_interrupted_one_its_kill(books: Books) -> None:
    _none(books.unexplained())


def test_money_is_the_tokens_price_and_never_silently_nothing(books: Books) -> None:
    _none(books.costs())


def test_the_sums_by_day_count_the_same_calls(books: Books) -> None:
    assert books.days == sum(row.called for row in books.rows)


def test_metrics_are_the_ledger_but_for_what_killed_workers_had_not_shown(books: Books) -> None:
    """Between a worker's last scrape and its death: its rows are among those that ended in that time."""
    sums = Sums(books)
    assert sums.strangers() == []
    shown, ledger, lost = sums.shown(), sums.of(books.rows), sums.of(sums.lost())
    wrong = []
    totals: dict[str, list[int]] = {}
    for series in shown.keys() | ledger.keys():
        missing = ledger[series] - shown[series]
        room = ROUNDING if series[0].endswith("usd_total") else 0
        if not -room <= missing <= lost[series] + room:
            wrong.append(f"{series}: ledger {ledger[series]}, metrics {shown[series]}, may be lost {lost[series]}")
        for at, amount in enumerate((ledger[series], shown[series], missing, lost[series])):
            totals.setdefault(series[0], [0, 0, 0, 0])[at] += amount
    for name, (all_of_it, there, missing, may_be) in sorted(totals.items()):
        print(f"{name}: ledger {all_of_it}, metrics {there}, lost with workers {missing} of {may_be} at most")  # noqa: T201
    _none(wrong)


def test_after_every_kill_somebody_is_answered_within_seconds(books: Books) -> None:
    assert max(_back(books)) < BACK_SECONDS


def test_the_backlog_grew_in_every_outage_and_nothing_was_dropped(books: Books) -> None:
    assert all(backlog > 0 for backlog in books.log.backlogs), books.log.backlogs
    assert books.log.dropped == 0


def test_nobody_wrote_of_an_error_of_ours(books: Books) -> None:
    assert [line for line in books.log.lines if "Traceback" in line or "closing failed" in line] == []


def _changed(books: Books, **fields: object) -> tuple[Row, Row]:
    """A finished row whose client has its whole answer, and the same with other fields."""
    whole = {seen.trace_id for seen in books.seen if seen.end == "whole" and seen.said}
    row = next(
        row for row in books.rows if row.kind == "request" and row.trace_id in whole and row.certainty == "exact"
    )
    return row, msgspec.structs.replace(row, **fields)


FORGERIES: dict[str, tuple[Callable[[Books], Iterable[str]], dict[str, object] | None]] = {
    "a row is lost": (Books.whole, None),
    "a row is lost that the provider knows of": (Books.served, None),
    "a finished call counts as interrupted": (Books.whole, {"outcome": "interrupted"}),
    "a finished call counts as the client's leaving": (Books.whole, {"outcome": "client_abort"}),
    "an interrupted call has no kill": (Books.unexplained, {"outcome": "interrupted"}),
    "a row has tokens too many": (Books.served, {"output_tokens": 10_000}),
    "a row has tokens that its client has not": (Books.whole, {"output_tokens": 10_000}),
    "a row is of nobody's call": (Books.unexplained, {"trace_id": "0" * 32}),
    "a row costs nothing": (Books.costs, {"cost_input": 0, "cost_output": 0}),
    "a row costs too much": (Books.costs, {"cost_output": 1}),
    "a row has no price any more": (Books.costs, {"certainty": "unpriced"}),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_the_comparison_notices_when(books: Books, name: str) -> None:
    check, fields = FORGERIES[name]
    row, forged = _changed(books, **(fields or {}))
    others = [each for each in books.rows if each is not row]
    rows = others if fields is None else [*others, forged]
    assert list(check(Books(books.seen, rows, books.lines, books.log, books.days)))


def test_the_comparison_notices_when_a_row_is_there_twice(books: Books) -> None:
    _, twice = _changed(books, call_id="0" * 32)
    assert list(Books(books.seen, [*books.rows, twice], books.lines, books.log, books.days).doubled())


def test_the_comparison_notices_when_the_ledger_has_less_than_the_metrics(books: Books) -> None:
    row, _ = _changed(books)
    fewer = [each for each in books.rows if (each.route, each.model) != (row.route, row.model)]
    sums = Sums(Books(books.seen, fewer, books.lines, books.log, books.days))
    assert sums.shown() - sums.of(fewer)
