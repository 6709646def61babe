"""Unmodified Anthropic SDKs, old and new: each can do through the gateway what it can do without, and is seen doing it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import pytest

from tests.clients.conftest import House
from tests.clients.sdk import CHECKS, NOT_IN, SDKS, Result, Sdk, trace_id
from tests.support.poll import poll

Results = Callable[[Sdk], dict[str, Result]]

HOPS_OWN = {"host", "x-api-key", "authorization", "connection", "accept-encoding", "traceparent"}
"""What may differ between a request that came through the gateway and one that did not."""


@pytest.mark.parametrize(
    ("sdk", "check"),
    [
        pytest.param(sdk, check, id=f"{sdk.name}-{check}")
        for sdk in SDKS
        for check in CHECKS
        if check not in NOT_IN.get(sdk.name, {})
    ],
)
def test_the_sdk(house: House, results: Results, sdk: Sdk, check: str) -> None:
    result = results(sdk).get(check)
    assert result is not None, "the script did not report this check: it failed at its start, see its first test"
    assert result.ok, result.error
    expected = CHECKS[check]
    lines = lines_of(house, trace_id(sdk, check), expected.seen[-1])
    seen = [(line["route"], line["status"], line["outcome"]) for line in lines]
    if expected.attempts is None:
        assert tuple(each for each, _ in groupby(seen)) == expected.seen
    else:
        assert seen[-1] == expected.seen[-1]
        assert sum(line["attempts"] for line in lines) == expected.attempts
        assert expected.attempts > 1 or len(lines) == 1, "the SDK tried again"
    known = expected.seen[-1][2] != "client_auth"
    assert {line.get("client") for line in lines} == {sdk.name if known else None}
    ids = {line.get("upstream_request_id") for line in lines} | {line["request_id"] for line in lines}
    assert set(result.detail["request_ids"]) <= ids
    if expected.usage:
        assert tokens_in(lines) == tokens_seen(result)


def lines_of(house: House, trace: str, last: tuple[str, int, str]) -> list[dict[str, Any]]:
    """The log lines of a trace, once there is the last one."""

    def found() -> list[dict[str, Any]] | None:
        lines = [line for line in house.gateway.requests() if line["trace_id"] == trace]
        return lines if lines and (lines[-1]["route"], lines[-1]["status"], lines[-1]["outcome"]) == last else None

    try:
        return poll(found, what=f"{last} in the gateway's log", seconds=5)
    except AssertionError:
        return [line for line in house.gateway.requests() if line["trace_id"] == trace]


def tokens_in(lines: list[dict[str, Any]]) -> tuple[int, int]:
    """Input and output tokens by the gateway's log."""
    return sum(line["input_tokens"] for line in lines), sum(line["output_tokens"] for line in lines)


def tokens_seen(result: Result) -> tuple[int, int]:
    """Input (cached ones included) and output tokens as the SDK saw them."""
    usages: list[dict[str, int]] = result.detail["usages"]
    kinds = ("input", "cache_read", "cache_write")
    return sum(usage.get(kind, 0) for usage in usages for kind in kinds), sum(usage["output"] for usage in usages)


@pytest.mark.parametrize("sdk", SDKS, ids=lambda sdk: sdk.name)
def test_what_the_sdk_sends_arrives_unchanged(house: House, results: Results, sdk: Sdk) -> None:
    ids = results(sdk)["reaches_the_provider_as_it_was_sent"].detail["same"]
    by_id = {each["request_id"]: each for each in house.simulator.get("/_simulator/requests")}
    direct, through = (by_id[each] for each in ids)
    assert through["body_sha256"] == direct["body_sha256"]
    assert (through["path"], through["query"]) == (direct["path"], direct["query"])
    assert dict(own_headers(through))["anthropic-beta"].count(",") == 1
    assert own_headers(through) == own_headers(direct)


def own_headers(recorded: dict[str, Any]) -> list[tuple[str, str]]:
    """The client's headers in order, less those that belong to one hop; case does not matter in names."""
    pairs = [(name.lower(), value) for name, value in recorded["headers"]]
    return [pair for pair in pairs if pair[0] not in HOPS_OWN and pair[0] != "content-length"]


@pytest.mark.parametrize("sdk", SDKS, ids=lambda sdk: sdk.name)
@pytest.mark.parametrize(
    ("check", "ending"),
    [
        ("may_leave_a_stream_early", "aborted"),
        ("raises_for_a_stream_that_is_cut_off", "cut"),
        ("raises_for_an_error_event_in_a_stream", "errored"),
    ],
)
def test_the_provider_sees_the_stream_end_as_the_gateway_says(
    house: House, results: Results, sdk: Sdk, check: str, ending: str
) -> None:
    results(sdk)
    (line,) = lines_of(house, trace_id(sdk, check), CHECKS[check].seen[-1])

    def call() -> dict[str, Any] | None:
        calls: list[dict[str, Any]] = house.simulator.get("/_simulator/counts?calls=1")["calls"]
        return next((each for each in calls if each["request_id"] == line["upstream_request_id"]), None)

    assert poll(call, what="the provider's own record")["ending"] == ending


@pytest.mark.parametrize("sdk", SDKS, ids=lambda sdk: sdk.name)
def test_a_client_that_leaves_stops_the_provider_within_a_second(house: House, results: Results, sdk: Sdk) -> None:
    results(sdk)
    check = "may_leave_a_stream_early"
    (line,) = lines_of(house, trace_id(sdk, check), CHECKS[check].seen[-1])
    assert line["total_s"] < 5, "the stream would have lasted ten seconds"


def test_the_metrics_hold_the_same_requests_and_tokens_as_the_log(house: House, results: Results) -> None:
    for sdk in SDKS:
        results(sdk)
    lines = house.gateway.requests()
    samples = house.gateway.samples()
    counted: dict[tuple[str, str], float] = {}
    tokens = {"input": 0.0, "output": 0.0}
    for (name, labels), value in samples.items():
        by_name = dict(labels)
        if name == "claude_proxy_requests_total":
            key = (by_name["http_route"], by_name["outcome"])
            counted[key] = counted.get(key, 0) + value
        for kind in tokens:
            if name == f"gen_ai_client_inference_usage_{kind}_tokens_total":
                tokens[kind] += value
    logged: dict[tuple[str, str], float] = {}
    for line in lines:
        key = (line["route"], line["outcome"])
        logged[key] = logged.get(key, 0) + 1
    assert counted == logged
    for kind, total in tokens.items():
        assert total == sum(line.get(f"{kind}_tokens", 0) for line in lines), kind
