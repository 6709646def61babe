"""What the fault run left: the clients' calls, the ledger's rows, the simulator's calls; and where they do not agree.

A call is recognised everywhere by the trace id that its client made. Every check returns what it found, in words.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from service.simulator import prices
from service.simulator.truth import Line, Place
from tests.support.fault_run_calls import FOREIGN_PRICES, UNPRICED, Seen
from tests.support.fault_run_torment import TICK, Log, Series

CLOCKS = 0.1
"""Seconds by which two processes may tell the same moment differently, this machine being busy."""
NOTICED = 5.0
"""Seconds after which a gateway has noticed at the latest that a client has left."""
DONE = ("ok", "refused")
COSTS = ("input", "cache_read", "cache_write", "output", "tools")
BROKEN_BODY = ("fault=malformed", "fault=garbage")


class Row(msgspec.Struct):
    """A row of the ledger, as far as it is compared."""

    call_id: str
    request_id: str
    trace_id: str
    started: float
    ended: float | None
    kind: str
    outcome: str
    provider: str | None
    model: str | None
    route: str
    operation: str | None
    client: str | None
    status: int | None
    attempts: int
    upstream_request_id: str | None
    response_id: str | None
    input_tokens: int | None
    output_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    certainty: str | None
    cost_input: int | None
    cost_cache_read: int | None
    cost_cache_write: int | None
    cost_output: int | None
    cost_tools: int | None

    @property
    def called(self) -> bool:
        """Whether it is a provider's call, and not a fan-out's own row."""
        return self.kind != "fan_out"

    @property
    def cost(self) -> int | None:
        """In nano-dollars; None when none is known."""
        known = [part for name in COSTS if (part := getattr(self, f"cost_{name}")) is not None]
        return sum(known) if known else None


class _Counts(msgspec.Struct):
    calls: list[Line]


def rows_of(directory: Path) -> tuple[list[Row], int]:
    """Every row, and how many calls the sums by day count."""
    connection = sqlite3.connect(directory / "ledger.db")
    names = Row.__struct_fields__
    rows = [Row(*values) for values in connection.execute(f"SELECT {', '.join(names)} FROM calls")]
    (days,) = connection.execute("SELECT sum(calls) FROM days").fetchone()
    connection.close()
    return rows, days


def lines_of(counts: bytes) -> list[Line]:
    """The calls in the simulator's `/_simulator/counts`."""
    return msgspec.json.decode(counts, type=_Counts).calls


@dataclass(repr=False)
class Books:
    """All witnesses of one run."""

    seen: list[Seen]
    rows: list[Row]
    lines: list[Line]
    log: Log
    days: int

    @cached_property
    def rows_by_trace(self) -> dict[str, list[Row]]:
        """The ledger by trace id."""
        found = defaultdict(list)
        for row in self.rows:
            found[row.trace_id].append(row)
        return found

    @cached_property
    def lines_by_trace(self) -> dict[str, list[Line]]:
        """The simulator's calls by trace id."""
        found = defaultdict(list)
        for line in self.lines:
            found[line.trace_id].append(line)
        return found

    @cached_property
    def _killed_at(self) -> list[float]:
        return sorted(kill.at for kill in self.log.kills)

    def killed(self, since: float, until: float) -> bool:
        """Whether a worker was killed within this time."""
        return bisect_left(self._killed_at, since - CLOCKS) < bisect_right(self._killed_at, until + CLOCKS)

    def whole(self) -> Iterator[str]:
        """A client has the whole answer: its rows say the same."""
        for seen in self.seen:
            if seen.end == "whole":
                rows = self.rows_by_trace.get(seen.trace_id, [])
                yield from (f"{what}: {seen} {rows}" for what in _against(seen, rows))

    def broken(self) -> Iterator[str]:
        """A client has a part of an answer or none: a kill or the provider's fault was the reason, and the row knows it."""
        for seen in self.seen:
            if seen.end == "whole":
                continue
            rows = self.rows_by_trace.get(seen.trace_id, [])
            allowed = {seen.kind.outcome, "ok"} if seen.kind.plain else {seen.kind.outcome}
            if seen.end == "left":
                allowed |= {"client_abort", "interrupted", "upstream_overloaded" if seen.kind.plain else ""}
            elif self.killed(seen.began - 1, seen.ended):
                # Its end may have been written a moment before the kill, and its last byte not sent: then it is done.
                allowed |= {"interrupted", "upstream_overloaded" if seen.kind.plain else ""}
            elif seen.end == "lost" or seen.kind.outcome in DONE:
                yield f"the connection broke, and nobody was killed: {seen} {rows}"
            if {row.outcome for row in rows if row.called} - allowed:
                yield f"an outcome that is not allowed ({allowed}): {seen} {rows}"

    def doubled(self) -> Iterator[str]:
        """Nothing is there twice: no call, no request, no answer of a provider."""
        single = [row for row in self.rows if row.kind == "request"]
        for name, rows in (
            ("call_id", self.rows),
            ("request_id", single),
            ("trace_id", single),
            ("response_id", self.rows),
            ("upstream_request_id", self.rows),
        ):
            counted = Counter(getattr(row, name) for row in rows)
            del counted[None]
            yield from (f"{name} {value} stands in {count} rows" for value, count in counted.items() if count > 1)

    def served(self) -> Iterator[str]:
        """Everything that the provider got has its row, with the tokens that it billed where the answer is complete."""
        for trace_id, lines in self.lines_by_trace.items():
            rows = [row for row in self.rows_by_trace.get(trace_id, []) if row.called]
            what = f"{lines} {rows}"
            if not rows:
                yield f"not in the ledger: {what}"
                continue
            open_ended = [row for row in rows if row.outcome in ("interrupted", "client_abort")]
            tries = sum(row.attempts for row in rows)
            if len(lines) > tries + 2 * len(open_ended) or (not open_ended and len(lines) != tries):
                yield f"{len(lines)} calls to the provider, {tries} attempts: {what}"
            yield from (f"{wrong}: {what}" for wrong in _against_bill(lines, rows))

    def unexplained(self) -> Iterator[str]:
        """Every row belongs to a client's call, and an interrupted one to a kill while it was under way."""
        clients = {seen.trace_id: seen for seen in self.seen}
        for row in self.rows:
            seen = clients.get(row.trace_id)
            if seen is None:
                yield f"nobody asked for {row}"
            elif row.outcome == "interrupted" and (
                seen.end == "whole"
                or not self.killed(row.started, seen.ended + (NOTICED if seen.end == "left" else 0))
                or row.input_tokens is not None
                or row.cost is not None
            ):
                yield f"interrupted without a reason: {seen} {row}"

    def costs(self) -> Iterator[str]:
        """Money is the tokens' price, exact where the answer is complete, and never 0 where something was sold."""
        billed = {line.message_id: line for line in self.lines if line.message_id}
        for row in self.rows:
            if row.operation is None or row.kind == "fan_out":
                if row.certainty is not None:
                    yield f"nothing was sold: {row}"
                continue
            if row.certainty not in ("exact", "estimated", "unpriced") or (row.certainty == "unpriced") != (
                row.cost is None
            ):
                yield f"no certainty: {row}"
            if row.outcome in DONE and row.certainty != _certainty(row):
                yield f"complete and not {_certainty(row)}: {row}"
            if (
                row.cost == 0
                and (row.input_tokens or row.output_tokens or (row.status or 0) < 400)
                and not _said_no(row)
            ):
                yield f"sold for nothing: {row}"
            line = billed.get(row.response_id) if row.response_id else None
            if row.certainty == "exact" and row.cost and line is not None and (price := _price(line)) != _parts(row):
                yield f"costs {_parts(row)}, the price is {price}: {row} {line}"


def _certainty(row: Row) -> str:
    """Of a complete answer. Who asks OpenAI for a stream need not ask for its usage: then its size tells."""
    if row.model == UNPRICED:
        return "unpriced"
    return "estimated" if row.input_tokens is None and row.provider == "openai" else "exact"


def _said_no(row: Row) -> bool:
    """An error as all that a stream said is not billed; the status is the stream's 200, or none if the client had left."""
    return row.response_id is None and row.input_tokens is None and row.outcome not in DONE


def _against(seen: Seen, rows: list[Row]) -> Iterator[str]:
    own = [row for row in rows if row.kind != "call"]
    if len(own) != 1:
        yield f"{len(own)} rows for one answer"
        return
    (row,) = own
    fan_out = row.kind == "fan_out"
    if row.outcome not in _outcomes(seen):
        yield f"outcome {row.outcome} and not {_outcomes(seen)}"
    if row.status != seen.status or ((seen.request_id or "cp_")[:3] == "cp_" and row.request_id != seen.request_id):
        yield "another status or request id"
    calls = [each for each in rows if each.kind == "call"] if fan_out else [row]
    if fan_out and len(calls) != len(seen.said) + seen.failed:
        yield f"{len(calls)} rows of calls for {len(seen.said)} answers and {seen.failed} errors"
    done = {each.response_id: each for each in calls if each.outcome in DONE}
    if len(done) != len(seen.said) and (fan_out or row.outcome in DONE) and seen.kind.reads != "nothing":
        yield "the client has another number of answers"
    for said in seen.said:
        each = done.get(said.response_id)
        if each is not None and (each.input_tokens, each.output_tokens) != (said.input_tokens, said.output_tokens):
            yield "the client has other tokens"
        if each is None and row.outcome in DONE:
            yield "the client has an answer that no row has"


def _outcomes(seen: Seen) -> set[str]:
    """What the row of an answer that came to its end may be."""
    if seen.kind.plain and seen.status == 529:
        return {"upstream_overloaded"}
    return {"upstream_overloaded", "ok"} if seen.kind.plain and seen.failed else {seen.kind.outcome}


def _against_bill(lines: Iterable[Line], rows: Iterable[Row]) -> Iterator[str]:
    by_id = {name: row for row in rows for name in (row.response_id, row.upstream_request_id) if name}
    silent = sum(1 for row in rows if row.response_id is None and row.outcome not in DONE)
    for line in lines:
        if not line.billed.requests:
            continue
        row = by_id.get(line.message_id or "") or by_id.get(line.request_id)
        bill = line.billed
        tokens_in = bill.input_tokens + bill.cache_creation_input_tokens + bill.cache_read_input_tokens
        if row is None:
            silent -= 1
            if silent < 0:
                yield f"{line.request_id} is billed, and no row can be its own"
        elif row.outcome in DONE:
            without_usage = row.input_tokens is None and row.output_tokens is None and row.certainty == "estimated"
            told = (row.input_tokens, row.output_tokens, row.cache_read_tokens or 0, row.cache_write_tokens or 0)
            if not without_usage and (line.ending != "completed" or told != (
                tokens_in, bill.output_tokens, bill.cache_read_input_tokens, bill.cache_creation_input_tokens,
            )):  # fmt: skip
                yield f"{line.request_id} is billed otherwise"
        elif row.input_tokens not in (None, tokens_in) or (row.output_tokens or 0) > max(1, bill.output_tokens):
            yield f"{line.request_id} has tokens that the stream had not said"


def _parts(row: Row) -> tuple[int, int, int, int]:
    return (row.cost_input or 0, row.cost_cache_read or 0, row.cost_cache_write or 0, row.cost_output or 0)


def _price(line: Line) -> tuple[int, int, int, int]:
    """Nano-dollars for input, cache reads, cache writes and output, by the provider's own list."""
    bill, model = line.billed, line.model or ""
    if model in FOREIGN_PRICES:
        entry, out = FOREIGN_PRICES[model]
        return bill.input_tokens * entry, 0, 0, bill.output_tokens * out
    place = Place(0, line.key_hash, model, "standard", line.inference_geo, line.speed, 0)
    cents = prices.cents(place, bill)
    writes = sum(amount for name, amount in cents.items() if name.startswith("cache_creation"))
    amounts = (cents["uncached_input_tokens"], cents["cache_read_input_tokens"], writes, cents["output_tokens"])
    found = tuple(int(amount * 10_000_000) for amount in amounts)
    return found[0], found[1], found[2], found[3]


@dataclass
class Sums:
    """The counters of `/metrics`, once as metrics and once as the ledger has them; money in nano-dollars."""

    books: Books

    def shown(self) -> Counter[Series]:
        """Of all workers that ever were, what each showed last."""
        found: Counter[Series] = Counter()
        for life in self.books.log.lives.values():
            for (name, labels), value in life.counters.items():
                found[name, labels] += round(value * 1e9) if name.endswith("usd_total") else round(value)
        return +found

    def of(self, rows: Iterable[Row]) -> Counter[Series]:
        """The same of rows."""
        found: Counter[Series] = Counter()
        for row in rows:
            if row.outcome != "interrupted":  # nobody was left to count it
                for name, labels, amount in _counted(row):
                    found[name, frozenset((k, v) for k, v in labels.items() if v)] += amount
        return +found

    def lost(self) -> list[Row]:
        """Rows that may have ended on a killed worker after it was last seen: all of the time between, whoever's."""
        log = self.books.log
        gaps = []
        for kill in log.kills:
            # Two that started in the same hundredth of a second cannot be told apart: the one seen less recently counts.
            shown = [life.shown for life in log.lives.values() if abs(life.started - kill.started) < TICK]
            gaps.append((min(shown, default=kill.started) - CLOCKS, kill.at + CLOCKS))
        return [row for row in self.books.rows if row.ended is not None and any(a <= row.ended <= b for a, b in gaps)]

    def strangers(self) -> list[float]:
        """Starts of workers that are not in the last scrape and were not killed by us."""
        lives = self.books.log.lives.values()
        last = max(life.shown for life in lives)
        killed = [kill.started for kill in self.books.log.kills]
        gone = [life.started for life in lives if life.shown < last]
        return [started for started in gone if not any(abs(started - each) < TICK for each in killed)]


def _counted(row: Row) -> Iterator[tuple[str, dict[str, str], int]]:
    """What the closing act counts for a record: name, labels, amount."""
    who = {"gen_ai_provider_name": row.provider or "", "gen_ai_request_model": row.model or ""}
    if row.kind != "call":
        yield "claude_proxy_requests_total", {"http_route": row.route, **who, "outcome": row.outcome}, 1
    if row.operation is None:
        return
    for kind, tokens in (
        ("input", row.input_tokens),
        ("output", row.output_tokens),
        ("cache_read_input", row.cache_read_tokens),
        ("cache_write_input", row.cache_write_tokens),
        ("reasoning_output", row.reasoning_tokens),
    ):
        labels = {"gen_ai_operation_name": row.operation, **who}
        yield f"gen_ai_client_inference_usage_{kind}_tokens_total", labels, tokens or 0
    if row.certainty == "unpriced":
        yield "claude_proxy_unpriced_requests_total", {"gen_ai_provider_name": row.provider or ""}, 1
        return
    for name in COSTS:
        labels = {**who, "token_type": name, "certainty": row.certainty or ""}
        yield "claude_proxy_cost_usd_total", labels, getattr(row, f"cost_{name}") or 0
    if row.client is not None:
        yield "claude_proxy_client_cost_usd_total", {"client": row.client}, row.cost or 0
