"""Streamed answers: order, usage, pace, and every way to go wrong."""

import contextlib
import socket
from itertools import groupby
from typing import Any

import httpx
import msgspec
import pytest

from service.simulator.config import SystemClock
from tests.simulator.conftest import Simulation, parse_events, until


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """The event types, repeats taken together."""
    return [kind for kind, _ in groupby(event["type"] for event in events)]


def deltas(events: list[dict[str, Any]], field: str) -> str:
    """All deltas of one field, put together."""
    return "".join(event["delta"].get(field, "") for event in events if event["type"] == "content_block_delta")


def test_events_come_in_the_order_of_the_api(sim: Simulation) -> None:
    start, *middle, delta, stop = sim.events("thinking_tokens=20;output_tokens=60;chunks=3")
    assert (start["type"], delta["type"], stop["type"]) == ("message_start", "message_delta", "message_stop")
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert kinds(middle) == [block[0], "ping", *block[1:], *block]
    assert start["message"]["content"] == []
    assert start["message"]["stop_reason"] is None
    assert [event["delta"]["type"] for event in middle if event["type"] == block[1]] == [
        *["thinking_delta"] * 3,
        "signature_delta",
        *["text_delta"] * 3,
    ]


def test_usage_at_the_end_is_the_whole_and_equals_what_is_billed(sim: Simulation) -> None:
    *_, last, _ = sim.events("output_tokens=60;message_deltas=3")
    assert last["usage"]["output_tokens"] == 60
    assert last["usage"]["input_tokens"] == 3
    assert sim.last_call()["billed"] == {
        "requests": 1,
        "input_tokens": 3,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 60,
        "cache_creation_1h_input_tokens": 0,
        "reasoning_output_tokens": 0,
    }


def test_thinking_is_billed_as_a_part_of_the_output(sim: Simulation) -> None:
    for stream in (True, False):
        sim.ask("output_tokens=60;thinking_tokens=20", stream=stream)
        billed = sim.last_call()["billed"]
        assert (billed["output_tokens"], billed["reasoning_output_tokens"]) == (60, 20)


def test_several_message_deltas_have_growing_usage(sim: Simulation) -> None:
    found = [event for event in sim.events("output_tokens=60;message_deltas=3") if event["type"] == "message_delta"]
    assert [event["usage"]["output_tokens"] for event in found] == [20, 40, 60]
    assert [event["delta"]["stop_reason"] for event in found] == [None, None, "end_turn"]


def test_streamed_and_whole_answers_say_the_same(sim: Simulation) -> None:
    whole = sim.ask("output_tokens=50", stream=False).json()
    again = sim.ask("output_tokens=50", stream=False).json()
    assert whole["content"] == again["content"]
    events = sim.events("output_tokens=50")
    assert len(deltas(events, "text")) == len(whole["content"][0]["text"]) == 200


def test_tool_input_arrives_in_pieces_that_make_json(sim: Simulation) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    events = sim.events("tool=auto;chunks=5", tools=[{"name": "weather", "input_schema": schema}])
    assert list(msgspec.json.decode(deltas(events, "partial_json"))) == ["city"]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_oddities_leave_the_answer_whole(sim: Simulation) -> None:
    plain = sim.ask("output_tokens=40", stream=True)
    odd = sim.ask("output_tokens=40;crlf;comments;unknown_events;split=7;ping_every=2", stream=True)
    assert b"\r\n\r\n" in odd.content
    assert b"\r\n: a comment" in odd.content
    events = parse_events(odd.text)
    assert {"simulator_news", "ping"} <= {event["type"] for event in events}
    assert deltas(events, "text") == deltas(parse_events(plain.text), "text")


def test_the_pace_is_what_the_scenario_says(sim: Simulation) -> None:
    sim.events("ttfb_ms=1000;first_ms=500;gap_ms=100;chunks=11;output_tokens=50")
    call = sim.last_call()
    assert call["first_byte"] - call["started"] == pytest.approx(1)
    assert call["ended"] - call["first_byte"] == pytest.approx(1.5)


def test_a_stall_can_end(sim: Simulation) -> None:
    assert sim.events("fault=stall;stall_ms=60000;gap_ms=0")[-1]["type"] == "message_stop"
    call = sim.last_call()
    assert call["ended"] - call["first_byte"] == pytest.approx(60)


def test_an_error_can_be_the_first_event_and_then_nothing_is_billed(sim: Simulation) -> None:
    response = sim.ask("fault=error_first", stream=True)
    assert response.status_code == 200
    assert parse_events(response.text) == [
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    ]
    call = sim.last_call()
    assert (call["ending"], call["billed"]["requests"]) == ("errored", 0)


@pytest.mark.parametrize("after", [0, 2, 5])
def test_an_error_can_come_after_any_number_of_deltas(sim: Simulation, after: int) -> None:
    events = sim.events(f"fault=error_after;error=api_error;after={after};chunks=5;output_tokens=50")
    assert sum(event["type"] == "content_block_delta" for event in events) == after
    assert (events[-1]["type"], events[-1]["error"]["type"]) == ("error", "api_error")
    assert sim.last_call()["billed"]["output_tokens"] == after * 10


def test_an_event_can_be_malformed_in_a_stream_that_goes_on(sim: Simulation) -> None:
    text = sim.ask("fault=malformed;after=1;chunks=3", stream=True).text
    bad = [line for line in text.splitlines() if line.startswith("data:") and not line.endswith("}")]
    assert len(bad) == 1
    assert "message_stop" in text


def test_a_stream_can_be_no_stream_at_all(sim: Simulation) -> None:
    response = sim.ask("fault=garbage", stream=True)
    assert response.status_code == 200
    assert b"data:" not in response.content


def received(sock: socket.socket) -> tuple[bytes, bool]:
    """All bytes until the connection ends, and whether it ended in a reset."""
    data = b""
    with sock:
        try:
            while piece := sock.recv(65536):
                data += piece
        except ConnectionResetError:
            return data, True
    return data, False


@pytest.mark.parametrize(("fault", "boundary"), [("cut", False), ("cut_boundary", True)])
def test_a_stream_can_be_cut_off(sim: Simulation, fault: str, boundary: bool) -> None:
    data, reset = received(sim.connect(f"fault={fault};after=2;chunks=4;output_tokens=40"))
    assert not reset
    assert data.endswith(b"\n\n\r\n") is boundary
    assert not data.endswith(b"0\r\n\r\n")
    call = sim.last_call()
    assert (call["ending"], call["billed"]["output_tokens"]) == ("cut", 20)


def test_a_connection_can_be_reset_in_the_middle(sim: Simulation) -> None:
    data, reset = received(sim.connect("fault=reset_mid;after=1"))
    assert reset
    assert data.startswith(b"HTTP/1.1 200") or not data
    assert sim.last_call()["ending"] == "cut"


@pytest.mark.parametrize("stream", [True, False])
def test_a_connection_can_be_reset_before_the_headers(sim: Simulation, stream: bool) -> None:
    assert received(sim.connect("fault=reset", stream=stream)) == (b"", True)
    call = sim.last_call()
    assert (call["status"], call["billed"]["requests"]) == (0, 0)


def test_a_request_can_hang_until_the_client_leaves(sim: Simulation) -> None:
    sock = sim.connect("fault=hang")
    sock.settimeout(0.2)
    with pytest.raises(TimeoutError):
        sock.recv(1)
    assert sim.counts()["requests"]["in_flight"] == 1
    sock.close()
    call = sim.last_call()
    assert (call["status"], call["ending"]) == (0, "aborted")


def test_a_client_that_leaves_pays_for_what_was_written(start: Any) -> None:
    sim = start(clock=SystemClock())
    sock = sim.connect("fault=stall;after=3;chunks=10;output_tokens=100;ttfb_ms=0;gap_ms=0")
    data = b""
    while data.count(b"text_delta") < 3:
        data += sock.recv(65536)
    sock.close()
    call = sim.last_call()
    assert (call["ending"], call["billed"]["output_tokens"]) == ("aborted", 30)
    assert sim.counts()["streams"] == {"completed": 0, "aborted": 1, "cut": 0, "errored": 0}


def test_a_thousand_streams_run_at_once(start: Any) -> None:
    sim = start(clock=SystemClock())
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(sim.connect("fault=stall;after=1;ttfb_ms=0;gap_ms=0")) for _ in range(1000)]
        until(lambda: sim.client.get("/_simulator/counts?calls=0").json()["requests"]["in_flight"] == 1000, 30)
        assert all(b"message_start" in sock.recv(65536, socket.MSG_PEEK) for sock in (held[0], held[-1]))
    until(lambda: sim.counts()["streams"]["aborted"] == 1000, 30)


def test_httpx_sees_a_cut_stream_as_an_error(sim: Simulation) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        sim.events("fault=cut_boundary")
