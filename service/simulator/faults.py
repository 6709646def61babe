"""Scenarios: how one request shall be answered, asked for by header or by schedule."""

import random
from functools import lru_cache
from typing import Literal

import msgspec

from service.simulator.errors import ApiError, invalid

Status = Literal[
    "rate_limit_requests",
    "rate_limit_input_tokens",
    "rate_limit_output_tokens",
    "acceleration",
    "spend",
    "daily_quota",
    "overloaded",
    "api_error",
    "timeout",
    "unavailable",
    "invalid_request",
    "authentication",
    "billing",
    "permission",
    "not_found",
    "conflict",
    "too_large",
]
Broken = Literal[
    "hang",
    "reset",
    "stall",
    "cut",
    "cut_boundary",
    "reset_mid",
    "error_first",
    "error_after",
    "malformed",
    "garbage",
]
StopReason = Literal["end_turn", "max_tokens", "tool_use", "stop_sequence", "refusal", "pause_turn"]


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to answer one request; a field left out means "as usual". The syntax is in `command.EPILOG`."""

    fault: Literal["", Status, Broken] = ""
    after: int | None = None  # content events before a mid-stream fault; half of them unless told
    error: Literal["overloaded_error", "api_error"] = "overloaded_error"  # of error_first and error_after
    retry_after: float | None = None  # seconds, on a 429 or 5xx
    should_retry: bool | None = None  # x-should-retry header
    ttfb_ms: float | None = None  # wait before the headers
    first_ms: float = 0.0  # wait between message_start and the first content delta
    gap_ms: float | None = None  # wait between two content deltas
    stall_ms: float | None = None  # a stall ends after this long; never unless told
    chunks: int | None = None  # content deltas of the text
    output_tokens: int | None = None  # all output, thinking and tool input included
    thinking_tokens: int | None = None  # 0 leaves the thinking out
    stop: StopReason | None = None
    tool: str | None = None  # call this tool of the request ("auto": the first)
    seed: int | None = None
    ping_every: int = 0  # a ping before every nth content delta
    message_deltas: int = 1  # how many message_delta events; usage in each is cumulative
    split: int = 0  # write the stream in pieces of this many bytes
    crlf: bool = False  # end lines of the stream with CRLF
    comments: bool = False  # SSE comment lines between events
    unknown_events: bool = False  # event types and delta types that no client knows
    gzip: bool = False  # compress a non-streaming answer when Accept-Encoding allows
    cookie: bool = False  # set-cookie on the answer


PLAIN = Scenario()


@lru_cache(maxsize=1024)
def parse(text: str) -> Scenario:
    """The scenario that `key=value;flag;…` describes; raises a 400 that names what is not understood."""
    pairs = (part.partition("=") for part in text.split(";") if part.strip())
    fields = {key.strip(): value.strip() if sep else "true" for key, sep, value in pairs}
    try:
        return msgspec.convert(fields, Scenario, strict=False)
    except msgspec.ValidationError as error:
        raise ApiError(400, "invalid_request_error", f"x-simulator-scenario: {error}") from None


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a schedule: a scenario and when it applies; conditions left out always hold."""

    scenario: str
    path: str = "/v1/messages"  # path of the requests that count; "/openai/*": all that begin so
    nth: int | None = None  # the nth such request, from 1
    every: int | None = None  # each kth such request
    probability: float | None = None
    seed: int = 0  # of the probability
    between: tuple[float, float] | None = None  # seconds since the schedule was set


class Schedule:
    """Chooses the scenario of requests that bring none: the first rule that holds wins."""

    def __init__(self, rules: tuple[Rule, ...], now: float) -> None:
        for rule in rules:
            parse(rule.scenario)
        self._start = now
        self._rules = [(rule, random.Random(rule.seed)) for rule in rules]
        self._seen = [0] * len(rules)

    def choose(self, path: str, now: float) -> Scenario | None:
        """The scenario for the next request to `path`, if a rule has one; every matching rule counts it."""
        chosen: Scenario | None = None
        for index, (rule, rng) in enumerate(self._rules):
            if rule.path != path and not (rule.path.endswith("*") and path.startswith(rule.path[:-1])):
                continue
            self._seen[index] += 1
            if _holds(rule, self._seen[index], rng, now - self._start) and chosen is None:
                chosen = parse(rule.scenario)
        return chosen


def _holds(rule: Rule, count: int, rng: random.Random, elapsed: float) -> bool:
    lucky = rule.probability is None or rng.random() < rule.probability
    return (
        lucky
        and (rule.nth is None or rule.nth == count)
        and (rule.every is None or count % rule.every == 0)
        and (rule.between is None or rule.between[0] <= elapsed < rule.between[1])
    )


def decode_rules(data: bytes) -> tuple[Rule, ...]:
    """The rules in a JSON list; raises a 400 that names the field at fault."""
    try:
        return msgspec.json.decode(data, type=tuple[Rule, ...])
    except msgspec.MsgspecError as error:
        raise invalid(f"schedule: {error}") from None
