"""One call's tries: how many, until when, with which models, within which share of all traffic."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from service.policy.retry import Failure, Pause, Retries, Stop


class Budget(Protocol):
    """The share of recent traffic that may be retries, over all workers of the host."""

    def count_request(self) -> None:
        """A call is sent for the first time."""
        ...

    def try_retry(self) -> bool:
        """Whether one more retry fits; if so it is counted."""
        ...

    def has_room(self) -> bool:
        """Whether one more retry would fit."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What the owner allows: retries, and for each model its stand-ins in order."""

    retries: Retries
    stand_ins: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class StandIn:
    """Another try at once, with this model."""

    model: str


class Tries:
    """The tries of one call. `deadline` is by the same clock as `now` in `after`; `may_ask` says which stand-ins may be
    asked for this client.

    Retries have one budget, stand-ins that could not help either (`vain`) another: else the retries of a model's storm
    would leave none for the stand-ins that were named for it. One that helps is free.
    """

    def __init__(
        self,
        plan: Plan,
        budget: Budget,
        vain: Budget,
        *,
        model: str | None,
        safe: bool,
        repeatable: bool,
        deadline: float,
        may_ask: Callable[[str], bool],
    ) -> None:
        self._plan, self._budget, self._vain = plan, budget, vain
        self._stand_ins = [name for name in plan.stand_ins.get(model or "", ()) if may_ask(name)]
        self._safe, self._repeatable, self._deadline = safe, repeatable, deadline
        self._made = 0
        self._stood_in = False
        budget.count_request()
        if self._stand_ins:
            vain.count_request()

    def after(self, failure: Failure, now: float) -> Pause | StandIn | Stop:
        """What follows a failed attempt."""
        if not self._repeatable:
            return Stop.SPEND if failure.limit == "spend" else Stop.FINAL
        left = self._deadline - now
        verdict = self._plan.retries.after(failure, self._made, left, safe=self._safe, random=random.random)
        if isinstance(verdict, Pause):
            if self._budget.try_retry():
                self._made += 1
                return verdict
            verdict = Stop.BUDGET
        if self._stood_in:
            self._vain.try_retry()
        wanting = verdict is not Stop.SPEND and (failure.overloaded or failure.reason == "rate_limited")
        if self._stand_ins and wanting and left > 0 and self._vain.has_room():
            return self._handed_over()
        return verdict

    def without_room(self) -> StandIn | Stop:
        """What follows when the limits of the model asked last have no room: nothing was sent, so nothing is retried."""
        if not self._repeatable or not self._stand_ins:
            return Stop.FINAL
        return self._handed_over()

    def _handed_over(self) -> StandIn:
        self._made, self._stood_in = 0, True
        return StandIn(self._stand_ins.pop(0))
