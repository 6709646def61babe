"""The likely causes of a difference between the ledger and the provider's report: one rule each, from a line's figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from observability import catalog
from service.account.reconcile import KINDS, NOT_BY_TOKEN, Line

_LARGEST_CALL = 1_200_000
"""Tokens that no single call can exceed: the longest context window and the longest output."""
_USUAL = 10
"""A call with so many times our average is not what one expects behind a gap."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a line differs: a word for programs, a sentence for people. `whole`: it can account for all of the difference."""

    code: str
    sentence: str
    whole: bool = True


def causes(line: Line) -> tuple[Cause, ...]:
    """The likely causes, the likeliest first; none when the line agrees. What nothing explains gets the general ones."""
    if line.agrees:
        return ()
    found: list[Cause] = []
    signs = {kind: line.difference(kind) for kind in line.kinds}
    if any(amount < 0 for amount in signs.values()):
        found += _of(line, _MISSING, _elsewhere)
    if any(amount > 0 for amount in signs.values()):
        found += _of(line, _SURPLUS, _other_account)
    if line.cost_differs and (not signs or _against(line, signs)):
        found += _of(line, _COST, _prices)
    return tuple(sorted(found, key=lambda cause: not cause.whole))


Rule = Callable[[Line], Cause | None]


def _of(line: Line, rules: tuple[Rule, ...], last: Callable[[Line], Cause]) -> list[Cause]:
    found = [cause for rule in rules if (cause := rule(line)) is not None]
    return found if any(cause.whole for cause in found) else [*found, last(line)]


def _against(line: Line, signs: Mapping[str, int]) -> bool:
    """Whether the money differs the other way than the tokens."""
    by = line.cost_difference or 0
    return all(amount < 0 < by or by < 0 < amount for amount in signs.values())


def _missing(line: Line) -> dict[str, int]:
    """Tokens that they have and we do not, by kind."""
    return {kind: -line.difference(kind) for kind in line.kinds if line.difference(kind) < 0}


def _surplus(line: Line) -> dict[str, int]:
    return {kind: line.difference(kind) for kind in line.kinds if line.difference(kind) > 0}


def _within(amounts: Mapping[str, int], bound: Mapping[str, int], line: Line) -> bool:
    """Whether another amount is at least as large in every kind."""
    return all(
        amount <= bound.get(kind, 0) or line.near(amount, bound.get(kind, 0)) for kind, amount in amounts.items()
    )


def _other_key(line: Line) -> Cause | None:
    if len(line.theirs.by_key) < 2:
        return None
    for key, tokens in line.theirs.by_key.items():
        if all(line.near(max(0, -line.difference(kind)), tokens.get(kind, 0)) for kind in KINDS):
            return Cause(
                "other_key",
                f"the difference is what the API key {key} used: another application's, or the gateway's own key used "
                "past the gateway. --api-key-id compares with one key only.",
            )
    return None


def _removed(line: Line) -> Cause | None:
    if not line.ours.removed:
        return None
    return Cause(
        "rows_removed",
        f"{_calls(line.ours.removed)} of this day {_are(line.ours.removed)} in the ledger's sums and no longer among its "
        "calls: deleted, or older than CLAUDE_PROXY_LEDGER_KEEP_DAYS.",
    )


def _batch_missing(line: Line) -> Cause | None:
    behind = {kind: line.theirs.batch.get(kind, 0) - line.ours.batch.get(kind, 0) for kind in KINDS}
    if not any(amount > 0 for amount in behind.values()):
        return None
    return Cause(
        "batch_not_fetched",
        f"{sum(max(0, n) for n in behind.values()):,} tokens of message batches are not in the ledger: results that were "
        "never fetched through the gateway, or on another day. A batch's tokens are known when its results are fetched.",
        _within(_missing(line), behind, line),
    )


def _edge_missing(line: Line) -> Cause | None:
    if not _within(_missing(line), line.ours.ended_after, line):
        return None
    return Cause(
        "day_edge",
        "calls were under way at midnight: with us a call counts on the day it ended, with them on the day they booked it.",
    )


def _unfinished(line: Line) -> Cause | None:
    ours, missing = line.ours, sum(_missing(line).values())
    if not ours.unfinished:
        return None
    each, complete = missing / ours.unfinished, ours.calls - ours.unfinished
    usual = _USUAL * sum(ours.tokens.values()) / complete if complete else _LARGEST_CALL
    words = [
        f"{count} {word}"
        for count, word in ((ours.interrupted, "interrupted"), (ours.client_abort, "client_abort"))
        if count
    ]
    told = f" ({', '.join(words)})" if words else ""
    return Cause(
        "unfinished",
        f"{_calls(ours.unfinished)} without a final count on our side{told}: killed "
        f"workers, clients that left, streams cut off. The {missing:,} missing tokens are {each:,.0f} for each.",
        each <= min(usual, _LARGEST_CALL),
    )


def _elsewhere(line: Line) -> Cause:
    if line.model == NOT_BY_TOKEN:
        return Cause(
            "tools", "server tools, such as web search or code execution, that no answer through the gateway told of."
        )
    only = "" if line.ours.calls else "the gateway made no such call: "
    return Cause(
        "bypassed",
        f"{only}calls that did not go through the gateway (another workspace or key, or this key used directly), what an "
        "advisor or a model that declined did within calls of another model (we count it there), or rows that the ledger "
        f'lost: {catalog.TELEMETRY_DROPPED.name}_total{{signal="ledger"}} counts those.',
    )


def _late(line: Line) -> Cause | None:
    if not line.fresh:
        return None
    return Cause(
        "report_late", "the day is not over, or only just: their report is not complete yet. Compare again later."
    )


def _edge_surplus(line: Line) -> Cause | None:
    if not _within(_surplus(line), line.ours.began_before, line):
        return None
    return Cause(
        "day_edge",
        "calls had begun on the day before: with us a call counts on the day it ended, with them on the day they booked it.",
    )


def _batch_surplus(line: Line) -> Cause | None:
    ahead = {kind: line.ours.batch.get(kind, 0) - line.theirs.batch.get(kind, 0) for kind in KINDS}
    if not any(amount > 0 for amount in ahead.values()):
        return None
    return Cause(
        "batch_day",
        "results of message batches: with us they count on the day they were fetched, with them on the day they were made.",
        _within(_surplus(line), ahead, line),
    )


def _other_account(line: Line) -> Cause:
    none = "their report has nothing of it: " if not any(line.theirs.tokens.values()) else ""
    return Cause(
        "other_account",
        f"{none}calls that were made with a key of another organization (clients' own, CLAUDE_PROXY_CREDENTIALS=pass), at "
        "another address, or with a key that --api-key-id leaves out; or an advisor's part of calls of this model.",
    )


def _estimates(line: Line) -> Cause | None:
    by = line.cost_difference or 0
    if not 0 < by <= line.ours.estimated_cost:
        return None
    return Cause(
        "estimates",
        f"{_calls(line.ours.estimated)} of which the provider did not say everything {_are(line.ours.estimated)} in our "
        f"amount by an estimate of {_usd(line.ours.estimated_cost)}.",
    )


def _priority(line: Line) -> Cause | None:
    if (line.cost_difference or 0) <= 0 or not any(line.theirs.priority.values()):
        return None
    return Cause("priority", "priority tier: their cost report leaves it out, because it is paid otherwise.")


def _unpriced(line: Line) -> Cause | None:
    if (line.cost_difference or 0) >= 0 or not line.ours.unpriced:
        return None
    return Cause("unpriced", f"{_calls(line.ours.unpriced)} without a known price, in none of our amounts.")


def _prices(line: Line) -> Cause:
    if line.model == NOT_BY_TOKEN:
        return Cause(
            "tools", "server tools are paid by the piece: another price, or some that the answers did not tell of."
        )
    ours, theirs = line.ours.cost, line.theirs.cost or 0
    ratio = f" (ours is {ours / theirs:.3f} times theirs)" if theirs and ours else ""
    return Cause(
        "prices",
        f"the tokens do not account for it, so the prices differ{ratio}: an own CLAUDE_PROXY_PRICES_FILE, a discount, a price "
        "that changed, or a price list that is too old.",
    )


_MISSING: tuple[Rule, ...] = (_other_key, _removed, _batch_missing, _edge_missing, _unfinished)
_SURPLUS: tuple[Rule, ...] = (_late, _edge_surplus, _batch_surplus)
_COST: tuple[Rule, ...] = (_estimates, _priority, _unpriced)


def _calls(count: int) -> str:
    return f"{count:,} call{'' if count == 1 else 's'}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _usd(nano: int) -> str:
    return f"${nano / 1e9:.6f}"
