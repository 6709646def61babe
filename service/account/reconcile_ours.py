"""What the ledger has of Claude's calls, as the provider's reports tell them apart: by day, model and kind of token."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, not_, or_, select

from observability.catalog import Outcome
from service.account.ledger import Ledger
from service.account.ledger_schema import CALLS, DAYS
from service.account.prices import BATCH
from service.account.reconcile import KINDS, NOT_BY_TOKEN, Key, Ours, add, model_name
from service.account.reconcile_calls import OurCall
from service.account.rows import BATCH_RESULT
from service.record import Certainty, Kind

PROVIDER = "anthropic"
_DAY = 86_400.0
_LONGEST = 31 * _DAY
"""No call ends later than so many seconds after it began: a batch's results can be fetched for 29 days."""

_read = func.coalesce(CALLS.c.cache_read_tokens, 0)
_written = func.coalesce(CALLS.c.cache_write_tokens, 0)
_hour = func.coalesce(CALLS.c.cache_write_1h_tokens, 0)
_TOKENS: Mapping[str, ColumnElement[Any]] = {
    "input": func.coalesce(CALLS.c.input_tokens - _read - _written, 0),
    "cache_read": _read,
    "cache_write_5m": _written - _hour,
    "cache_write_1h": _hour,
    "output": func.coalesce(CALLS.c.output_tokens, 0),
}
_end = func.coalesce(CALLS.c.ended, CALLS.c.started)
_cost = sum(
    (func.coalesce(CALLS.c[f"cost_{part}"], 0) for part in ("cache_read", "cache_write", "output")),
    start=func.coalesce(CALLS.c.cost_input, 0),
)
_is_batch = or_(CALLS.c.kind == BATCH_RESULT, func.coalesce(CALLS.c.tier, "") == BATCH)
_nothing_billed = and_(
    CALLS.c.certainty == Certainty.EXACT.value, CALLS.c.input_tokens.is_(None), CALLS.c.output_tokens.is_(None)
)
"""Refused, or never sent."""


def days_between(since: str, until: str) -> list[str]:
    """The days from one to another, both included."""
    first, last = (datetime.date.fromisoformat(day) for day in (since, until))
    return [(first + datetime.timedelta(days=n)).isoformat() for n in range((last - first).days + 1)]


def sums(ledger: Ledger, since: str, until: str) -> dict[Key, Ours]:
    """The ledger's side by day and model, over the UTC days from `since` to `until`, both included. Raises what a
    `Ledger` raises."""
    days = days_between(since, until)
    edges = [_midnight(day) for day in days] + [_midnight(until) + _DAY]
    counted: dict[Key, int] = {}
    found: dict[Key, Ours] = {}
    for row in ledger.read(_query(edges)):
        end, began = row["ended_on"], row["began_on"]
        if end < len(days):
            asked = days[end], model_name(row["asked"])
            counted[asked] = counted.get(asked, 0) + row["calls"]
        if row["cached"] or row["unbilled"]:
            continue
        tokens = {kind: int(row[kind] or 0) for kind in KINDS}
        name = model_name(row["name"])
        if began != end and not row["batch"]:
            if 0 <= began < len(days):
                add(found.setdefault((days[began], name), Ours()).ended_after, tokens)
            if end < len(days):
                add(found.setdefault((days[end], name), Ours()).began_before, tokens)
        if end < len(days):
            _take(found.setdefault((days[end], name), Ours()), row, tokens)
            if row["tools"]:
                found.setdefault((days[end], NOT_BY_TOKEN), Ours()).cost += int(row["tools"])
    for key, calls in _by_day(ledger, since, until).items():
        if calls > counted.get(key, 0):
            found.setdefault(key, Ours()).removed = calls - counted.get(key, 0)
    return found


def calls(ledger: Ledger, since: str, until: str) -> list[OurCall]:
    """The calls that began on these days and may have been billed, one by one; without the results of batches."""
    began = CALLS.c.started
    wanted = (
        select(
            CALLS.c.call_id, CALLS.c.trace_id, CALLS.c.outcome, CALLS.c.upstream_request_id, CALLS.c.response_id,
            began, CALLS.c.ended, func.coalesce(CALLS.c.answered_model, CALLS.c.model).label("name"),
            *(amount.label(kind) for kind, amount in _TOKENS.items()),
        )
        .where(began >= _midnight(since), began < _midnight(until) + _DAY)
        .where(_ours(), not_(CALLS.c.cached), not_(_is_batch), not_(_nothing_billed))
        .order_by(began)
    )  # fmt: skip
    return [
        OurCall(
            call_id=row["call_id"],
            trace_id=row["trace_id"],
            outcome=row["outcome"],
            request_id=row["upstream_request_id"],
            response_id=row["response_id"],
            model=model_name(row["name"]),
            started=row["started"],
            ended=row["ended"],
            tokens={kind: row[kind] for kind in KINDS},
        )
        for row in ledger.read(wanted)
    ]


def _ours() -> ColumnElement[bool]:
    """Calls of Claude that could cost something; a fan-out's own row cannot."""
    return and_(CALLS.c.provider == PROVIDER, CALLS.c.certainty.is_not(None), CALLS.c.kind != Kind.FAN_OUT.value)


def _query(edges: Sequence[float]) -> Any:
    """Sums by everything that tells calls apart; `ended_on` and `began_on` are numbers of days, -1 before the first. Of
    the day after the last, only calls that began before it matter."""
    keys: dict[str, Any] = {
        "ended_on": _day_number(_end, [*edges[1:], edges[-1] + _DAY], 0),
        "began_on": _day_number(CALLS.c.started, edges, -1),
        "asked": CALLS.c.model,
        "name": func.coalesce(CALLS.c.answered_model, CALLS.c.model),
        "certainty": CALLS.c.certainty,
        "outcome": CALLS.c.outcome,
        "batch": case((_is_batch, 1), else_=0),
        "cached": CALLS.c.cached,
        "unbilled": case((_nothing_billed, 1), else_=0),
    }
    totals = {**_TOKENS, "cost": _cost, "tools": func.coalesce(CALLS.c.cost_tools, 0)}
    # A call that ended on the day after the last one has to have begun earlier; without this every one would be read.
    after = or_(_end < edges[-1], and_(_end < edges[-1] + _DAY, CALLS.c.started < edges[-1]))
    return (
        select(
            *(column.label(name) for name, column in keys.items()),
            func.count().label("calls"),
            *(func.sum(column).label(name) for name, column in totals.items()),
        )
        .where(CALLS.c.started >= edges[0] - _LONGEST, CALLS.c.started < edges[-1], _end >= edges[0], after, _ours())
        .group_by(*(column for column in keys.values()))
    )


def _day_number(moment: ColumnElement[Any], edges: Sequence[float], first: int) -> ColumnElement[int]:
    """Between which edges a time lies: arithmetic on days that SQLite and PostgreSQL both do."""
    return case(*((moment < edge, first + number) for number, edge in enumerate(edges)), else_=first + len(edges))


def _take(ours: Ours, row: Mapping[str, Any], tokens: Mapping[str, int]) -> None:
    calls, outcome, certainty = row["calls"], row["outcome"], row["certainty"]
    ours.calls += calls
    ours.cost += int(row["cost"])
    add(ours.tokens, tokens)
    if row["batch"]:
        add(ours.batch, tokens)
    if certainty == Certainty.ESTIMATED.value:
        ours.estimated += calls
        ours.estimated_cost += int(row["cost"])
    if certainty == Certainty.UNPRICED.value:
        ours.unpriced += calls
    if outcome == Outcome.INTERRUPTED.value:
        ours.interrupted += calls
    if outcome == Outcome.CLIENT_ABORT.value:
        ours.client_abort += calls
    if outcome not in (Outcome.OK.value, Outcome.REFUSED.value):
        ours.unfinished += calls


def _by_day(ledger: Ledger, since: str, until: str) -> dict[Key, int]:
    """Calls in the sums by day, which outlive the calls."""
    query = (
        select(DAYS.c.day, DAYS.c.model, func.sum(DAYS.c.calls).label("calls"))
        .where(DAYS.c.day >= since, DAYS.c.day <= until, DAYS.c.provider == PROVIDER, DAYS.c.certainty != "")
        .group_by(DAYS.c.day, DAYS.c.model)
    )
    found: dict[Key, int] = {}
    for row in ledger.read(query):
        key = row["day"], model_name(row["model"])
        found[key] = found.get(key, 0) + int(row["calls"])
    return found


def _midnight(day: str) -> float:
    return datetime.datetime.fromisoformat(day).replace(tzinfo=datetime.UTC).timestamp()
