"""Ours against theirs: what the ledger and the provider's own report say of each day and model, and what may be behind a
difference. Arithmetic only, on values; nothing is read here.

Tokens are by kind, and the kinds do not overlap. Money is integer nano-dollars. A difference is ours less theirs.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from service.account.prices_gaps import plain, undated

KINDS = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output")
"""`input` is what no cache had a part in."""
NOT_BY_TOKEN = "(not by token)"
"""Stands for a model where something else was paid for: web searches, code execution."""
LATE_SECONDS = 3600.0
"""How far behind the reports may be. The documentation says five minutes for the usage report, and nothing for costs."""
_LEAST_COST = 1000
"""Nano-dollars under which two amounts are the same: both sides round."""

Tokens = dict[str, int]
Key = tuple[str, str]
"""A UTC day as 2026-11-30, and a model as `model_name` has it."""


@dataclass(slots=True)
class Ours:
    """What the ledger has of one day and model. A call counts to the day of its end."""

    calls: int = 0
    """Those that may have been billed."""
    tokens: Tokens = field(default_factory=dict)
    cost: int = 0
    estimated_cost: int = 0
    """The part of `cost` that stands for calls of which the provider did not say everything."""
    estimated: int = 0
    unpriced: int = 0
    """Calls, like the one before and the two after; a call can be in several."""
    interrupted: int = 0
    client_abort: int = 0
    unfinished: int = 0
    """Calls whose tokens we do not know, or not all of them."""
    batch: Tokens = field(default_factory=dict)
    """The part of `tokens` that came as results of message batches."""
    began_before: Tokens = field(default_factory=dict)
    """The part that belongs to calls that had begun on an earlier day."""
    ended_after: Tokens = field(default_factory=dict)
    """Not in `tokens`: of calls that began on this day and count to a later one."""
    removed: int = 0
    """Calls that are in the sums by day and no longer among the calls."""


@dataclass(slots=True)
class Theirs:
    """What the provider's reports have of one day and model. `cost` is None where there is no report to compare with."""

    tokens: Tokens = field(default_factory=dict)
    cost: int | None = None
    batch: Tokens = field(default_factory=dict)
    priority: Tokens = field(default_factory=dict)
    by_key: dict[str, Tokens] = field(default_factory=dict)
    """`tokens` by the id of the API key."""


@dataclass(frozen=True, slots=True)
class Line:
    """One day and model. `fresh`: the report may still be growing. `kinds` and `cost_differs` say what is beyond the
    tolerance."""

    day: str
    model: str
    ours: Ours
    theirs: Theirs
    fresh: bool
    tolerance: float
    """As a share of the larger side: 0.005 is half a percent."""

    def difference(self, kind: str) -> int:
        """Tokens of a kind that we have more than they do."""
        return self.ours.tokens.get(kind, 0) - self.theirs.tokens.get(kind, 0)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of tokens that differ."""
        return tuple(
            kind for kind in KINDS if not self.near(self.ours.tokens.get(kind, 0), self.theirs.tokens.get(kind, 0))
        )

    @property
    def cost_difference(self) -> int | None:
        """Nano-dollars that we have more than they do; None when theirs is not known."""
        return None if self.theirs.cost is None else self.ours.cost - self.theirs.cost

    @property
    def cost_differs(self) -> bool:
        """Whether the amounts are further apart than the tolerance."""
        return self.theirs.cost is not None and not self.near(self.ours.cost, self.theirs.cost, _LEAST_COST)

    @property
    def agrees(self) -> bool:
        """Whether nothing differs."""
        return not self.kinds and not self.cost_differs

    def near(self, one: int, other: int, least: int = 0) -> bool:
        """Whether two amounts are the same within the tolerance."""
        return abs(one - other) <= max(self.tolerance * max(one, other), least)


def model_name(name: str | None) -> str:
    """One name for a model, however it was spelled: a release date names no other model."""
    return undated(plain(name)) if name else ""


def compare(
    ours: Mapping[Key, Ours], theirs: Mapping[Key, Theirs], *, now: float, tolerance: float, costs: bool = True
) -> list[Line]:
    """A line for each day and model that either side has, in order. `now`: Unix time. `costs`: there is a report of them,
    so a day and model that is not in it cost nothing there."""
    lines = []
    for day, model in sorted(ours.keys() | theirs.keys()):
        said = theirs.get((day, model), Theirs())
        if costs and said.cost is None:
            said.cost = 0
        end = datetime.datetime.fromisoformat(day).replace(tzinfo=datetime.UTC).timestamp() + 86_400
        lines.append(Line(day, model, ours.get((day, model), Ours()), said, now < end + LATE_SECONDS, tolerance))
    return lines


def total(lines: Iterable[Line]) -> tuple[Tokens, Tokens, int, int | None]:
    """Tokens of ours and theirs, cost of ours and theirs, over all lines."""
    mine: Tokens = {}
    other: Tokens = {}
    cost, paid = 0, None
    for line in lines:
        add(mine, line.ours.tokens)
        add(other, line.theirs.tokens)
        cost += line.ours.cost
        if line.theirs.cost is not None:
            paid = (paid or 0) + line.theirs.cost
    return mine, other, cost, paid


def add(into: Tokens, more: Mapping[str, int]) -> None:
    """Add tokens by kind."""
    for kind, amount in more.items():
        into[kind] = into.get(kind, 0) + amount
