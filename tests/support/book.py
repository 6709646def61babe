"""Journals and ledgers for tests: rows with something in them, a writer whose rounds the test makes, what the database holds."""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

from service.account.journal import Journal
from service.account.ledger import FILE, Ledger
from service.account.ledger_writer import Hooks, LedgerWriter
from service.account.rows import Row, Started, new_call_id

NOON = 1_795_348_800.0
"""2026-11-22 12:00 UTC."""


def started(call_id: str | None = None, **fields: Any) -> Started:
    """A chat that is about to begin."""
    defaults: dict[str, Any] = {
        "request_id": "cp_1",
        "trace_id": "a" * 32,
        "started": NOON,
        "kind": "request",
        "route": "/v1/messages",
        "provider": "anthropic",
        "model": "claude-opus-5-5",
        "operation": "chat",
        "client": "team-a",
    }
    return Started(call_id=call_id or new_call_id(), **defaults | fields)


def row(call_id: str | None = None, **fields: Any) -> Row:
    """A chat that went well."""
    defaults: dict[str, Any] = {
        "request_id": "cp_1",
        "trace_id": "a" * 32,
        "started": NOON,
        "ended": NOON + 2.5,
        "kind": "request",
        "route": "/v1/messages",
        "outcome": "ok",
        "provider": "anthropic",
        "model": "claude-opus-5-5",
        "answered_model": "claude-opus-5-5",
        "operation": "chat",
        "client": "team-a",
        "status": 200,
        "attempts": 1,
        "upstream_request_id": "req_011CV",
        "response_id": "msg_01",
        "input_tokens": 1000,
        "output_tokens": 200,
        "certainty": "exact",
        "cost_input": 5_000_000,
        "cost_cache_read": 0,
        "cost_cache_write": 0,
        "cost_output": 5_000_000,
        "cost_tools": 0,
        "total_s": 2.5,
    }
    return Row(call_id=call_id or new_call_id(), **defaults | fields)


class Book:
    """One worker's journal with its writer, in a directory; `dropped`, `told` and `succeeded` hold what its hooks
    were called with."""

    def __init__(self, directory: Path, **journal: Any) -> None:
        self.dropped: Counter[str] = Counter()
        self.told: list[str] = []
        self.new: list[Row] = []
        self.succeeded = 0
        self.journal = Journal(directory, self._drop, **journal)
        hooks = Hooks(
            on_drop=self._drop,
            on_success=self._succeed,
            on_new=self.new.extend,
            on_trouble=lambda text, _: self.told.append(text),
        )
        self.writer = LedgerWriter(self.journal, Ledger(directory), hooks, seconds=0.01)

    def _drop(self, reason: str, rows: int) -> None:
        self.dropped[reason] += rows

    def _succeed(self) -> None:
        self.succeeded += 1

    def call(self, **fields: Any) -> str:
        """A whole call; its id."""
        start = started()
        self.journal.began(start)
        self.journal.ended(row(start.call_id, **fields))
        return start.call_id

    def die(self) -> None:
        """As SIGKILL leaves it: nothing is moved, nothing removed, the locks are gone."""
        for segment in self.journal._segments:
            segment.close()
        self.journal._segments.clear()
        self.journal._current = None


def outcomes(directory: Path) -> dict[str, str]:
    """The outcome of every call in the database, by id; fails if the sums by day do not agree with the rows."""
    connection = sqlite3.connect(directory / FILE, timeout=10)
    try:
        rows = connection.execute("SELECT call_id, outcome FROM calls").fetchall()
        counted = "SELECT outcome, {} FROM {} GROUP BY outcome ORDER BY outcome"
        by_day = connection.execute(counted.format("sum(calls)", "days")).fetchall()
        by_call = connection.execute(counted.format("count(*)", "calls WHERE kind != 'fan_out'")).fetchall()
    finally:
        connection.close()
    assert by_day == by_call
    return dict(rows)
