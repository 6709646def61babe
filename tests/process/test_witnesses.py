"""The witnesses agree: client, simulator, spans, metrics and log lines tell the same story of the same calls.

Calls and faults are drawn with a seed. `WITNESSES=10000` in the environment makes the long run; the default is short.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from observability.catalog import STREAM_ENDS, Outcome
from tests.support.claude import parse_events
from tests.support.otlp import OtlpSink, SpanSeen
from tests.support.poll import poll
from tests.support.processes import Gateway, Simulator, pair

CALLS = int(os.environ.get("WITNESSES", "600"))
SEED = 20261122
AT_A_TIME = 16
CLOCKS = 0.05
"""Seconds by which two clocks in one process, or on one machine, may tell the same moment differently under load."""

# scenario -> (outcome when plain, outcome when streamed); None: not drawn in that form
KINDS: dict[str, tuple[str | None, str | None]] = {
    "": ("ok", "ok"),
    "stop=max_tokens": ("ok", "ok"),
    "stop=refusal": ("refused", "refused"),
    "thinking_tokens=0;chunks=9": ("ok", "ok"),
    "fault=rate_limit_requests;retry_after=0.05": ("upstream_429", "upstream_429"),
    "fault=rate_limit_input_tokens;retry_after=0.05": ("upstream_429", "upstream_429"),
    "fault=rate_limit_output_tokens;retry_after=0.05": ("upstream_429", "upstream_429"),
    "fault=acceleration;retry_after=0.05": ("upstream_429", "upstream_429"),
    "fault=spend": ("upstream_429", "upstream_429"),
    "fault=overloaded": ("upstream_overloaded", "upstream_overloaded"),
    "fault=api_error": ("upstream_error", "upstream_error"),
    "fault=timeout": ("upstream_timeout", "upstream_timeout"),
    "fault=authentication": ("upstream_error", "upstream_error"),
    "fault=not_found": ("client_invalid", "client_invalid"),
    "fault=reset": ("upstream_error", "upstream_error"),
    "fault=cut;chunks=8": ("cut_off", "cut_off"),
    "fault=cut_boundary;chunks=8": (None, "cut_off"),
    "fault=reset_mid;chunks=8": ("cut_off", "cut_off"),
    "fault=malformed;chunks=8": ("upstream_error", "upstream_error"),
    "fault=error_first;error=overloaded_error": (None, "upstream_overloaded"),
    "fault=error_after;error=overloaded_error;chunks=8": (None, "upstream_overloaded"),
    "fault=error_after;error=api_error;chunks=8": (None, "upstream_error"),
    "leave;gap_ms=150;chunks=30": (None, "client_abort"),
}

RETRIED = {"upstream_429", "upstream_overloaded", "upstream_timeout"}
"""Outcomes that another attempt was made for, if they came before the client had a byte (and were not for money)."""


@dataclass
class Seen:
    """What the client saw of one call."""

    trace_id: str
    expected: str
    stream: bool
    scenario: str = ""
    status: int | None = None
    stop_reason: str | None = None
    output_tokens: int | None = None
    error: str | None = None
    seconds: float = 0.0


@dataclass
class Witnesses:
    """All testimonies, joined by trace id (and the simulator's by its request id)."""

    clients: dict[str, Seen]
    lines: dict[str, dict[str, Any]]
    spans: dict[str, list[SpanSeen]]
    served: dict[str, dict[str, Any]]
    gateway: Gateway
    statuses: dict[str, int]


async def _call(client: httpx.AsyncClient, rng: random.Random) -> Seen:
    scenario, outcomes = rng.choice(list(KINDS.items()))
    stream = outcomes[0] is None or (outcomes[1] is not None and rng.random() < 0.5)
    seen = Seen(f"{rng.getrandbits(128):032x}", str(outcomes[stream]), stream, scenario)
    body = {
        "model": rng.choice(["claude-opus-5-5", "claude-haiku-5-5", "claude-sonnet-5-5"]),
        "max_tokens": rng.randint(20, 60),
        "messages": [{"role": "user", "content": "x" * rng.randint(1, 400)}],
        "stream": stream,
    }
    headers = {"traceparent": f"00-{seen.trace_id}-{'a' * 16}-01", "anthropic-version": "2023-06-01"}
    leaves = scenario.startswith("leave")
    if wanted := scenario.removeprefix("leave;"):
        headers["x-simulator-scenario"] = wanted
    clock = asyncio.get_running_loop().time
    began = clock()
    got = b""
    try:
        async with client.stream("POST", "/v1/messages", json=body, headers=headers) as answer:
            seen.status = answer.status_code
            async for chunk in answer.aiter_raw():
                got += chunk
                if leaves and b"content_block_delta" in got:
                    break
    except httpx.TransportError as error:
        seen.error = type(error).__name__
    seen.seconds = clock() - began
    _read(seen, got)
    return seen


def _read(seen: Seen, got: bytes) -> None:
    """What the answer's bytes told the client."""
    try:
        events = parse_events(got) if seen.stream and seen.status == 200 else [("", json.loads(got or b"null"))]
    except ValueError:
        return
    for _name, data in events:
        usage = (data or {}).get("usage") or {}
        if data and (data.get("type") in ("message", "message_delta")):
            seen.output_tokens = usage.get("output_tokens", seen.output_tokens)
            seen.stop_reason = data.get("stop_reason") or data.get("delta", {}).get("stop_reason")
        if data and data.get("type") == "error":
            seen.error = data["error"]["type"]


async def _all_calls(url: str) -> list[Seen]:
    rng = random.Random(SEED)
    gate = asyncio.Semaphore(AT_A_TIME)
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:

        async def one(own: random.Random) -> Seen:
            async with gate:
                return await _call(client, own)

        return await asyncio.gather(*(one(random.Random(rng.getrandbits(64))) for _ in range(CALLS)))


def _testimony(gateway: Gateway, simulator: Simulator, sink: OtlpSink) -> Witnesses:
    clients = {seen.trace_id: seen for seen in asyncio.run(_all_calls(gateway.url))}
    lines = {line["trace_id"]: line for line in gateway.wait_requests(CALLS)}
    poll(lambda: not simulator.get("/_simulator/counts?calls=0")["requests"]["in_flight"], what="the simulator to end")
    spans: dict[str, list[SpanSeen]] = {}
    made = sum(1 + 2 * line["attempts"] for line in lines.values())
    for span in sink.wait(lambda span: span.trace_id in clients, made, seconds=60):
        spans.setdefault(span.trace_id, []).append(span)
    counts = simulator.get("/_simulator/counts")
    served = {call["request_id"]: call for call in counts["calls"]}
    return Witnesses(clients, lines, spans, served, gateway, counts["requests"]["by_status"])


@pytest.fixture(scope="module")
def witnesses() -> Iterator[Witnesses]:
    with (
        OtlpSink() as sink,
        pair(
            "--unlimited",
            "--record-calls",
            str(2 * CALLS),
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.url,
            OTEL_BSP_SCHEDULE_DELAY="100",
            OTEL_BSP_MAX_QUEUE_SIZE="100000",
            CLAUDE_PROXY_TRACES_PER_SECOND="100000",
            CLAUDE_PROXY_MAX_RETRIES="1",
            CLAUDE_PROXY_RETRY_BUDGET="1",
        ) as (gateway, simulator),
    ):
        yield _testimony(gateway, simulator, sink)


def test_every_call_left_one_line_and_one_trace_and_nobody_else_did(witnesses: Witnesses) -> None:
    assert witnesses.clients.keys() == witnesses.lines.keys() == witnesses.spans.keys()
    assert len(witnesses.gateway.requests()) == CALLS
    for trace_id, spans in witnesses.spans.items():
        names = Counter(span.name.partition(" ")[0] for span in spans if span.kind != "SERVER")
        tries = witnesses.lines[trace_id]["attempts"]
        assert names == +Counter({"chat": 1, "POST": tries, "backoff": tries - 1}), trace_id


def test_what_may_get_better_was_tried_twice_and_nothing_else(witnesses: Witnesses) -> None:
    for trace_id, seen in witnesses.clients.items():
        line = witnesses.lines[trace_id]
        early = seen.status != 200 or "error_first" in seen.scenario
        again = early and "spend" not in seen.scenario and (seen.expected in RETRIED or "api_error" in seen.scenario)
        assert line["attempts"] == (2 if again else 1), (seen, line)
        assert ("backoff_s" in line) == again
        (server,) = [span for span in witnesses.spans[trace_id] if span.kind == "SERVER"]
        pauses = sum(span.seconds for span in witnesses.spans[trace_id] if span.name == "backoff")
        assert pauses >= line.get("backoff_s", 0.0) - 0.001
        assert line["overhead_s"] <= line["total_s"] - line.get("backoff_s", 0.0) - line["upstream_s"] + 0.001
        assert pauses < server.seconds


def test_the_line_tells_the_outcome_that_the_fault_makes_and_the_client_saw(witnesses: Witnesses) -> None:
    wrong = []
    for trace_id, seen in witnesses.clients.items():
        line = witnesses.lines[trace_id]
        complete = seen.error is None and seen.status == 200 and seen.stop_reason is not None
        story = (line["outcome"], line["outcome"] in ("ok", "refused"), line.get("status"), line.get("stop_reason"))
        status = None if seen.expected == "client_abort" and seen.status is None else seen.status
        malformed = seen.expected == "upstream_error" and seen.status == 200
        told = (seen.expected, complete and not malformed, status, seen.stop_reason if complete else story[3])
        if story != told:
            wrong.append((story, told, seen))
    assert not wrong, wrong[:5]


def test_tokens_are_the_same_to_client_simulator_line_and_span(witnesses: Witnesses) -> None:
    compared = 0
    for trace_id, seen in witnesses.clients.items():
        line = witnesses.lines[trace_id]
        (chat,) = [span for span in witnesses.spans[trace_id] if span.name.startswith("chat ")]
        for field in ("input_tokens", "output_tokens"):
            assert chat.attributes.get(f"gen_ai.usage.{field}") == line.get(field), (field, line)
        if line["outcome"] not in ("ok", "refused"):
            continue
        billed = witnesses.served[line["upstream_request_id"]]["billed"]
        cached = billed["cache_read_input_tokens"] + billed["cache_creation_input_tokens"]
        assert line["input_tokens"] == billed["input_tokens"] + cached
        assert line["output_tokens"] == billed["output_tokens"] == seen.output_tokens
        compared += 1
    assert compared > CALLS / 10


def test_the_simulator_served_what_the_attempts_say(witnesses: Witnesses) -> None:
    attempts = Counter(line.get("upstream_request_id") for line in witnesses.lines.values())
    known = {request_id for request_id in attempts if request_id is not None}
    assert known <= witnesses.served.keys()
    assert len(witnesses.served) == sum(line["attempts"] for line in witnesses.lines.values())  # resets included
    resets = sum(1 for call in witnesses.served.values() if call["status"] == 0)
    assert (
        attempts[None] == resets == sum(1 for line in witnesses.lines.values() if line.get("error_type") == "no_answer")
    )


def test_spans_and_line_tell_the_same_times_and_the_client_waited_as_long(witnesses: Witnesses) -> None:
    apart: list[float] = []
    for trace_id, seen in witnesses.clients.items():
        line, spans = witnesses.lines[trace_id], witnesses.spans[trace_id]
        (server,) = [span for span in spans if span.kind == "SERVER"]
        (chat,) = [span for span in spans if span.name.startswith("chat ")]
        # The record's clock starts a moment before the span and stops a moment before it: a busy machine may stop us in
        # either moment.
        assert server.seconds >= line["total_s"] - CLOCKS
        assert chat.seconds >= line["call_s"] - CLOCKS
        apart += [server.seconds - line["total_s"], chat.seconds - line["call_s"]]
        assert server.start - 0.001 <= chat.start
        assert chat.end <= server.end + 0.001
        if line["outcome"] != "client_abort":
            assert seen.seconds >= line["total_s"] - 0.005
        served = witnesses.served.get(line.get("upstream_request_id", ""))
        if served is not None:
            assert chat.start - 0.005 <= served["started"]
    apart.sort()
    assert apart[len(apart) // 2] < CLOCKS / 10
    assert apart[len(apart) * 97 // 100] < CLOCKS


def test_the_metrics_are_the_sum_of_the_lines(witnesses: Witnesses) -> None:
    lines = list(witnesses.lines.values())
    samples = witnesses.gateway.samples()

    def totals(name: str, *labels: str) -> Counter[tuple[str, ...]]:
        found: Counter[tuple[str, ...]] = Counter()
        for (sample, pairs), value in samples.items():
            if sample == name and value:
                found[tuple(dict(pairs).get(label, "") for label in labels)] += int(value)
        return found

    model = "gen_ai_request_model"
    assert totals("claude_proxy_requests_total", model, "outcome") == Counter((x["model"], x["outcome"]) for x in lines)
    assert totals("claude_proxy_request_duration_seconds_count", "outcome") == Counter((x["outcome"],) for x in lines)
    for kind in ("input", "output"):
        name, field = f"gen_ai_client_inference_usage_{kind}_tokens_total", f"{kind}_tokens"
        expected: Counter[tuple[str, ...]] = Counter()
        for line in lines:
            expected[line["model"],] += line.get(field, 0)
        assert totals(name, model) == +expected
    limits: Counter[tuple[str, ...]] = Counter()
    for line in lines:
        if "limit" in line:
            limits[line["limit"],] += line["attempts"]
    assert totals("claude_proxy_upstream_429_total", "limit") == limits
    ends = Counter((STREAM_ENDS.get(Outcome(x["outcome"]), "upstream_error"),) for x in lines if "chunks" in x)
    assert totals("claude_proxy_stream_outcomes_total", "outcome") == ends
    tries = sum(line["attempts"] for line in lines)
    assert sum(totals("claude_proxy_upstream_attempts_total").values()) == tries
    assert sum(totals("claude_proxy_retry_wait_seconds_count").values()) == tries - CALLS
    assert totals("claude_proxy_in_flight_requests") == Counter()
