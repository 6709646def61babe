"""What Claude's answers say of their usage: counts, restated in a stream, and the inferences that a call was made of.

Sources: the SDK's types (anthropic 2.12.0), the documentation's pages on compaction, the advisor tool, refusals and
fallback, and fallback credit. `usage.iterations` (beta) lists a call's inferences:

- `message`, `fallback_message`: turns of the call. The top-level counts are the sum of the turns; but where a fallback
  answered (`fallback_message`), of its turns only, and what a model used that had declined before is not in them.
- `compaction`, `advisor_message`: inferences beside the turns, not in the top-level counts, billed by themselves; an
  advisor's at its own model's price.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from service.record import Inner, Usage, Variant
from service.upstream.reading import Count


class _CacheCreation(msgspec.Struct):
    ephemeral_5m_input_tokens: Count | None = None
    ephemeral_1h_input_tokens: Count | None = None


class _ServerTools(msgspec.Struct):
    web_search_requests: Count | None = None
    web_fetch_requests: Count | None = None
    code_execution_requests: Count | None = None


class _OutputDetails(msgspec.Struct):
    thinking_tokens: Count | None = None


class _Counts(msgspec.Struct):
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation: _CacheCreation | None = None


class _Iteration(_Counts):
    type: str = ""
    model: str | None = None


class Said(_Counts):
    """A `usage` object. What is beta is taken as it comes and looked at later: it must not make an answer invalid."""

    output_tokens_details: _OutputDetails | None = None
    server_tool_use: _ServerTools | None = None
    service_tier: str | None = None
    speed: str | None = None
    inference_geo: str | None = None
    iterations: Any = None
    fallback_credit: Any = None

    @property
    def variant(self) -> Variant:
        """What moves the price."""
        return Variant(self.service_tier, self.speed, self.inference_geo)


_TURNS = frozenset(("message", "fallback_message"))
_BESIDE = frozenset(("compaction", "advisor_message"))


class Tally:
    """Adds up what an answer says of its usage, event by event. What is present replaces what was said before: a stream's
    counts are cumulative."""

    def __init__(self) -> None:
        self._said: dict[str, int] = {}
        self._iterations: list[_Iteration] | tuple[()] = ()
        self._unsure = False
        self._written: tuple[int, int] | None = None
        """Of the cache writes at a stream's start: how many in all, and how many for five minutes."""

    def start(self, usage: Said | None) -> None:
        """From `message_start`: its output tokens are a placeholder of 1 or 2, so that without a `message_delta` their
        number is unknown."""
        if usage is not None:
            self.see(usage)
            self._said.pop("output_tokens", None)
            if usage.cache_creation is not None:
                self._written = (
                    usage.cache_creation_input_tokens or 0,
                    usage.cache_creation.ephemeral_5m_input_tokens or 0,
                )

    def see(self, usage: Said | None) -> None:
        """From a whole message, or a `message_delta`."""
        if usage is None:
            return
        self._said |= _counts(usage)
        if usage.iterations is not None:
            try:
                self._iterations = msgspec.convert(usage.iterations, list[_Iteration])
            except msgspec.ValidationError:
                self._unsure = True
        if usage.fallback_credit is not None:
            # Redeemed, it moves tokens from the price of a cache write to that of a read, and nobody says how many.
            status = usage.fallback_credit.get("status") if isinstance(usage.fallback_credit, dict) else None
            self._unsure |= not (isinstance(status, dict) and status.get("type") == "not_applied")

    @property
    def served_by(self) -> str | None:
        """The fallback model that gave the answer; None where none did."""
        return next((turn.model for turn in reversed(self._iterations) if turn.type == "fallback_message"), None)

    def total(self, *, refused: bool = False, container: bool = False) -> Usage | None:
        """All of it, None if nothing was said. `refused`: with a refusal; `container`: code was executed in one, by the hour."""
        if not self._said:
            return None
        own = dict(self._said)
        turns, inner, understood = self._parts(own) if self._iterations else ([], [], True)
        executed = container or bool(own.get("code_execution_requests"))
        looped = executed or own.get("web_search_requests") or own.get("web_fetch_requests")
        guessed = self._guess_retention(own, turns)
        usage = _usage(
            own,
            summed=len(turns) > 1 if turns else bool(looped),
            unbilled=refused and own.get("output_tokens") == 0 and not inner,
            unsure=self._unsure or not understood or executed or guessed,
        )
        return _with_inner(usage, tuple(inner)) if inner else usage

    def _parts(self, own: dict[str, int]) -> tuple[list[_Iteration], list[Inner], bool]:
        """The call's own turns, whose sum `own` becomes, the inferences beside them, and whether all of it is understood."""
        turns = [turn for turn in self._iterations if turn.type in _TURNS]
        inner = [_inner(beside) for beside in self._iterations if beside.type in _BESIDE]
        understood = all(map(_understood, self._iterations))
        if any(turn.type == "fallback_message" for turn in turns):
            # The fallback's cache writes are repriced by a credit, and nobody says by how much: not understood.
            mine = [turn for turn in turns if turn.model in (None, self.served_by)]
            # What was declined before any output is not billed.
            inner += [_inner(turn) for turn in turns if turn not in mine and turn.output_tokens]
            for name in _NAMES:
                own.pop(name, None)
            own |= _added(mine)
            return mine, inner, False
        if turns:
            understood &= all(_added(turns).get(name, 0) == own.get(name, 0) for name in _NAMES[:4])
            understood &= len({turn.model for turn in turns if turn.model}) < 2
        return turns, inner, understood

    def _guess_retention(self, own: dict[str, int], turns: list[_Iteration]) -> bool:
        """Find how long cache writes are kept that came after a stream's start, which alone tells; whether it is a guess."""
        if turns and all(turn.cache_creation is not None for turn in turns):
            own["ephemeral_1h_input_tokens"] = _added(turns)["ephemeral_1h_input_tokens"]
            return False
        if self._written is None:
            return False
        before, five_minutes = self._written
        more = own.get("cache_creation_input_tokens", 0) - before
        if more <= 0 or five_minutes:
            return False  # what comes later is never kept for longer
        if before:
            own["ephemeral_1h_input_tokens"] = own.get("ephemeral_1h_input_tokens", 0) + more
        return True


_NAMES = (
    "input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens",
    "ephemeral_1h_input_tokens",
)  # fmt: skip


def _understood(iteration: _Iteration) -> bool:
    return (
        iteration.type in _TURNS
        or iteration.type == "compaction"
        or (iteration.type in _BESIDE and bool(iteration.model))
    )


def _counts(said: _Counts) -> dict[str, int]:
    """The counts that are there, by the API's names."""
    found = {
        "input_tokens": said.input_tokens,
        "output_tokens": said.output_tokens,
        "cache_creation_input_tokens": said.cache_creation_input_tokens,
        "cache_read_input_tokens": said.cache_read_input_tokens,
    }
    if said.cache_creation is not None:
        found["ephemeral_1h_input_tokens"] = said.cache_creation.ephemeral_1h_input_tokens or 0
    if isinstance(said, Said):
        if said.output_tokens_details is not None:
            found["thinking_tokens"] = said.output_tokens_details.thinking_tokens
        if (tools := said.server_tool_use) is not None:
            found["web_search_requests"] = tools.web_search_requests
            found["web_fetch_requests"] = tools.web_fetch_requests
            found["code_execution_requests"] = tools.code_execution_requests
    return {name: value for name, value in found.items() if value is not None}


def _added(iterations: Iterable[_Iteration]) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for iteration in iterations:
        sums.update(_counts(iteration))
    return dict(sums)


def _inner(iteration: _Iteration) -> Inner:
    return Inner(_usage(_counts(iteration)), iteration.model)


def _usage(said: Mapping[str, int], *, summed: bool = False, unbilled: bool = False, unsure: bool = False) -> Usage:
    """The GenAI conventions' usage: their input tokens include what Anthropic counts beside them as cache tokens."""
    read, written = said.get("cache_read_input_tokens"), said.get("cache_creation_input_tokens")
    fresh = said.get("input_tokens")
    return Usage(
        input_tokens=None if fresh is None else fresh + (read or 0) + (written or 0),
        output_tokens=said.get("output_tokens"),
        cache_read_tokens=read,
        cache_write_tokens=written,
        reasoning_tokens=said.get("thinking_tokens"),
        cache_write_1h_tokens=said.get("ephemeral_1h_input_tokens"),
        web_searches=said.get("web_search_requests"),
        summed=summed,
        unbilled=unbilled,
        unsure=unsure,
    )


def _with_inner(own: Usage, inner: tuple[Inner, ...]) -> Usage:
    """A call's own usage with that of the inferences within it on top."""

    def all_of(name: str, *, part: bool = True) -> int | None:
        known = [n for usage in (own, *(one.usage for one in inner)) if (n := getattr(usage, name)) is not None]
        return sum(known) if known and (part or getattr(own, name) is not None) else None

    return replace(
        own,
        input_tokens=all_of("input_tokens", part=False),
        output_tokens=all_of("output_tokens", part=False),
        cache_read_tokens=all_of("cache_read_tokens"),
        cache_write_tokens=all_of("cache_write_tokens"),
        cache_write_1h_tokens=all_of("cache_write_1h_tokens"),
        inner=inner,
    )
