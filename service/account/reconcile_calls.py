"""Call by call: the ledger's against those of a provider that tells each one, which only the simulator does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.account.reconcile import KINDS, Tokens


@dataclass(frozen=True, slots=True)
class OurCall:
    """One call of the ledger. Times are Unix seconds; `ended` is None when our process died."""

    call_id: str
    trace_id: str
    outcome: str
    request_id: str | None
    """The provider's, like the next: what the two sides are matched by."""
    response_id: str | None
    model: str
    started: float
    ended: float | None
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class TheirCall:
    """One call that the provider billed."""

    request_id: str
    response_id: str | None
    model: str
    key: str
    started: float
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class CallDifference:
    """A call that one side has not, or not so: which, and why."""

    ours: OurCall | None
    theirs: TheirCall | None
    code: str
    sentence: str


_CLOCKS = 1.0
"""Seconds by which two clocks, or two readings of one, may differ."""


def differences(ours: Sequence[OurCall], theirs: Sequence[TheirCall]) -> list[CallDifference]:
    """What is on one side only, or with other tokens, in the order of time."""
    by_id = {name: call for call in ours for name in (call.request_id, call.response_id) if name}
    seen: set[str] = set()
    found: list[CallDifference] = []
    unmatched: list[TheirCall] = []
    for their in theirs:
        mine = by_id.get(their.request_id) or by_id.get(their.response_id or "")
        if mine is None:
            unmatched.append(their)
            continue
        seen.add(mine.call_id)
        if any(mine.tokens.get(kind, 0) != their.tokens.get(kind, 0) for kind in KINDS):
            found.append(_other_tokens(mine, their))
    # A call that we never heard the end of has no id of theirs.
    nameless = [call for call in ours if not call.request_id and not call.response_id]
    keys = {their.key for their in theirs} - {their.key for their in unmatched}
    for their in unmatched:
        guess = next((call for call in nameless if _may_be(call, their)), None)
        if guess is not None:
            nameless.remove(guess)
            seen.add(guess.call_id)
        found.append(_only_theirs(their, guess, keys))
    found += [_only_ours(call) for call in ours if call.call_id not in seen]
    return sorted(found, key=lambda each: (each.theirs or each.ours).started)  # type: ignore[union-attr]  # one is there


def _may_be(ours: OurCall, theirs: TheirCall) -> bool:
    end = float("inf") if ours.ended is None else ours.ended
    return ours.model == theirs.model and ours.started - _CLOCKS <= theirs.started <= end + _CLOCKS


def _other_tokens(ours: OurCall, theirs: TheirCall) -> CallDifference:
    if ours.outcome in ("ok", "refused"):
        return CallDifference(
            ours, theirs, "tokens", "both sides have this call, with other tokens: a mistake of ours."
        )
    sentence = f"it ended as {ours.outcome} with us, before the provider had said the final count."
    return CallDifference(ours, theirs, "unfinished", sentence)


def _only_theirs(theirs: TheirCall, guess: OurCall | None, keys: set[str]) -> CallDifference:
    if guess is not None:
        sentence = f"by its time and model our call {guess.call_id}, which ended as {guess.outcome} before any answer."
        return CallDifference(guess, theirs, "unfinished", sentence)
    if keys and theirs.key not in keys:
        return CallDifference(None, theirs, "other_key", "made with a key of which no call is in the ledger.")
    sentence = (
        "not in the ledger: it did not go through the gateway, its row is lost, or it was a try that was made again."
    )
    return CallDifference(None, theirs, "bypassed", sentence)


def _only_ours(ours: OurCall) -> CallDifference:
    if not any(ours.tokens.values()):
        sentence = f"ended as {ours.outcome}, and the provider billed nothing for it."
        return CallDifference(ours, None, "unfinished", sentence)
    return CallDifference(
        ours, None, "other_account", "not billed there: another provider account, or counted since then."
    )
