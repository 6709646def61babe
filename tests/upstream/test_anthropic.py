"""What Claude's answers say: usage exactly as told, unknown left unknown, every way a stream can end."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from observability.catalog import Outcome
from service.record import Answered, Pace, Usage
from service.upstream.anthropic import StreamReader, WholeReader, quotas
from tests.support import claude
from tests.support.claude import BLOCK, MODEL, delta, event, last, start

PING = event("ping")


def _read(*pieces: bytes, encoding: str = "", times: Iterable[float] = ()) -> tuple[StreamReader, list[str]]:
    clock: Iterator[float] = iter(times)
    told: list[str] = []
    reader = StreamReader(lambda: next(clock, 0.0), lambda: told.append("first chunk"), encoding)
    for piece in pieces:
        reader.feed(piece)
    return reader, told


def test_a_whole_stream_tells_ids_usage_reason_and_pace() -> None:
    reader, told = _read(claude.STREAM, times=(0.5, 0.75))
    assert reader.ended() == (Outcome.OK, None)
    assert reader.answered == Answered(
        streamed=True,
        response_id="msg_scripted",
        model=MODEL,
        finish_reason="end_turn",
        usage=Usage(input_tokens=40, output_tokens=7, cache_read_tokens=5, cache_write_tokens=10),
        content_bytes=5,
        first_chunk=0.5,
        pace=Pace((0, 0, 0, 0, 0, 1, *[0] * 12), 0.25, 0.25),
    )
    assert told == ["first chunk"]


def test_cut_at_any_byte_a_stream_tells_the_same() -> None:
    whole, _ = _read(claude.STREAM)
    for cut in range(len(claude.STREAM)):
        reader, _ = _read(claude.STREAM[:cut], claude.STREAM[cut:])
        assert (reader.answered, reader.ended()) == (whole.answered, whole.ended()), cut


def test_what_message_delta_restates_replaces_and_what_it_leaves_out_stays() -> None:
    restated = {"input_tokens": 40, "cache_creation_input_tokens": 12, "cache_read_input_tokens": 7, "output_tokens": 9}
    reader, _ = _read(start(25, 10, 5), event("message_delta", delta={}, usage=restated))
    assert reader.answered.usage == Usage(input_tokens=59, output_tokens=9, cache_read_tokens=7, cache_write_tokens=12)
    partly, _ = _read(
        start(25, 10, 5), event("message_delta", delta={}, usage={"output_tokens": 9, "input_tokens": None})
    )
    assert partly.answered.usage == Usage(input_tokens=40, output_tokens=9, cache_read_tokens=5, cache_write_tokens=10)


def test_of_several_message_deltas_the_last_counts_because_usage_is_cumulative() -> None:
    steps = [
        event("message_delta", delta={"stop_reason": r}, usage={"output_tokens": n})
        for r, n in ((None, 3), ("tool_use", 8))
    ]
    reader, _ = _read(start(), *steps, event("message_stop"))
    assert reader.answered.usage is not None
    assert (reader.answered.usage.output_tokens, reader.answered.finish_reason) == (8, "tool_use")


def test_thinking_tokens_are_told_beside_the_output_that_includes_them() -> None:
    usage = {"output_tokens": 90, "output_tokens_details": {"thinking_tokens": 60}}
    reader, _ = _read(start(), event("message_delta", delta={}, usage=usage))
    assert reader.answered.usage == Usage(40, 90, 5, 10, 60)


def test_without_a_message_delta_the_output_is_unknown_not_the_placeholder() -> None:
    reader, _ = _read(start(25, 10, 5), BLOCK, delta("Hel"))
    assert reader.answered.usage == Usage(input_tokens=40, cache_read_tokens=5, cache_write_tokens=10)


def test_a_stream_that_says_nothing_of_usage_has_none() -> None:
    reader, _ = _read(event("message_start", message={"id": "m"}), event("message_stop"))
    assert reader.answered == Answered(streamed=True, response_id="m")
    assert _read()[0].answered == Answered(streamed=True)


def test_the_first_chunk_is_the_first_content_delta_neither_ping_nor_message_start() -> None:
    reader, told = _read(start(), PING, BLOCK, PING)
    assert (reader.first_chunk, told) == (None, [])
    reader, told = _read(start(), PING, BLOCK, PING, delta("a"), delta("b"), times=(1.5, 2.0))
    assert (reader.first_chunk, told) == (1.5, ["first chunk"])


def test_gaps_between_content_chunks_fall_into_the_catalogues_buckets() -> None:
    reader, _ = _read(start(), *(delta("x") for _ in range(4)), times=(1.0, 1.01, 1.51, 1001.51))
    pace = reader.answered.pace
    assert pace is not None
    counted = {index: n for index, n in enumerate(pace.counts) if n}
    assert counted in ({0: 1, 6: 1, 17: 1}, {1: 1, 6: 1, 17: 1})  # 0.01 is an edge, and binary fractions are not exact
    assert (round(pace.total, 6), pace.longest) == (1000.51, 1000.0)


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [("overloaded_error", Outcome.UPSTREAM_OVERLOADED), ("api_error", Outcome.UPSTREAM_ERROR)],
)
def test_an_error_event_after_the_200_is_a_failure_of_its_type(kind: str, outcome: Outcome) -> None:
    error = event("error", error={"type": kind, "message": "Overloaded"})
    for before in ((), (start(), BLOCK, delta("Hel"))):
        reader, _ = _read(*before, error)
        assert reader.ended() == (outcome, kind)
        assert not reader.complete


def test_an_error_event_without_a_type_is_an_api_error() -> None:
    reader, _ = _read(event("error"))
    assert reader.ended() == (Outcome.UPSTREAM_ERROR, "api_error")


@pytest.mark.parametrize("until", range(6))
def test_a_stream_without_message_stop_and_without_error_was_cut_off(until: int) -> None:
    pieces = (start(), BLOCK, delta("Hel"), delta("lo"), event("content_block_stop", index=0))
    reader, _ = _read(*pieces[:until])
    assert reader.ended() == (Outcome.CUT_OFF, "cut_off")


def test_half_a_message_stop_is_no_message_stop() -> None:
    reader, _ = _read(claude.STREAM[:-1])
    assert reader.ended() == (Outcome.CUT_OFF, "cut_off")


@pytest.mark.parametrize(
    "bad",
    [
        b"event: content_block_delta\ndata: {\n\n",
        b'data: {"type": 7}\n\n',
        b"data: [1]\n\n",
        b"data: \xff\xfe\n\n",
        b'data: {"type":"message_delta","usage":{"output_tokens":"many"}}\n\n',
        b'data: {"type":"a","b":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n\n",
    ],
    ids=["unfinished", "wrong type", "no object", "no UTF-8", "wrong count", "too deep"],
)
def test_an_event_that_makes_no_sense_makes_a_complete_stream_an_invalid_response(bad: bytes) -> None:
    reader, _ = _read(start(), bad, last())
    assert reader.complete
    assert reader.ended() == (Outcome.UPSTREAM_ERROR, "invalid_response")
    assert reader.answered.usage == Usage(40, 7, 5, 10)


def test_a_refusal_is_an_outcome_of_its_own() -> None:
    refused = event("message_delta", delta={"stop_reason": "refusal"}, usage={"output_tokens": 1})
    reader, _ = _read(start(), refused, event("message_stop"))
    assert reader.ended() == (Outcome.REFUSED, None)
    assert reader.answered.finish_reason == "refusal"


def test_unknown_events_fields_and_comments_change_nothing() -> None:
    odd = (
        b": keep-alive\n\n",
        event("tomorrow", usage=1.5 and {"output_tokens": 999}),
        b"event: message\ndata: {}\n\n",
    )
    reader, _ = _read(odd[0], start(), odd[1], BLOCK, delta("a"), odd[2], last())
    assert reader.ended() == (Outcome.OK, None)
    assert reader.answered.usage == Usage(40, 7, 5, 10)


def test_a_gzip_stream_is_read_byte_by_byte_and_takes_no_plain_event() -> None:
    packed = gzip.compress(claude.STREAM)
    reader, _ = _read(*(packed[i : i + 1] for i in range(len(packed))), encoding="gzip")
    assert reader.ended() == (Outcome.OK, None)
    assert reader.answered.usage == Usage(40, 7, 5, 10)
    assert not reader.readable
    assert _read()[0].readable


def test_a_stream_that_is_not_the_gzip_it_says_was_cut_off_and_raises_nothing() -> None:
    reader, _ = _read(claude.STREAM, encoding="gzip")
    assert reader.ended() == (Outcome.CUT_OFF, "cut_off")


def _whole(status: int, body: bytes, *, inference: bool = True, encoding: str = "") -> WholeReader:
    reader = WholeReader(status, inference=inference, encoding=encoding)
    for start_at in range(0, len(body), 7):
        reader.feed(body[start_at : start_at + 7])
    return reader


MESSAGE_SAYS = Answered(response_id="msg_scripted", model=MODEL, finish_reason="end_turn", usage=Usage(40, 7, 5, 10))


def test_a_whole_message_tells_ids_usage_and_reason() -> None:
    reader = _whole(200, claude.MESSAGE)
    assert (reader.ended(), reader.answered) == ((Outcome.OK, None), MESSAGE_SAYS)


def test_a_gzip_message_tells_the_same() -> None:
    assert _whole(200, gzip.compress(claude.MESSAGE), encoding="gzip").answered == MESSAGE_SAYS


def _changed(**fields: Any) -> bytes:
    return json.dumps(json.loads(claude.MESSAGE) | fields).encode()


def test_a_whole_message_with_thinking_tells_its_tokens() -> None:
    usage = {"input_tokens": 3, "output_tokens": 90, "output_tokens_details": {"thinking_tokens": 60}}
    assert _whole(200, _changed(usage=usage)).answered.usage == Usage(3, 90, None, None, 60)


def test_a_whole_message_without_usage_has_none() -> None:
    assert _whole(200, _changed(usage=None)).answered.usage is None
    assert _whole(200, _changed(usage={})).answered.usage is None


def test_a_whole_refusal_is_an_outcome_of_its_own() -> None:
    assert _whole(200, _changed(stop_reason="refusal")).ended() == (Outcome.REFUSED, None)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"{}", b'{"type":"list"}', b'{"type":"message"', b"\xff", b"[1]", b"[" * 100_000]
)
def test_a_200_that_is_no_message_is_an_invalid_response(body: bytes) -> None:
    reader = _whole(200, body)
    assert (reader.ended(), reader.answered) == ((Outcome.UPSTREAM_ERROR, "invalid_response"), Answered())


def test_what_is_not_inference_may_answer_anything() -> None:
    for body in (b'{"input_tokens": 12}', b"", b"not json"):
        reader = _whole(200, body, inference=False)
        assert (reader.ended(), reader.answered) == ((Outcome.OK, None), Answered())


@pytest.mark.parametrize("inference", [True, False])
def test_an_error_answer_has_its_own_type_and_code(inference: bool) -> None:
    reader = _whole(429, claude.error("rate_limit_error", error_code="ramp_limit_exceeded"), inference=inference)
    assert reader.ended() == (Outcome.UPSTREAM_429, "rate_limit_error")
    assert (reader.error_code, reader.answered) == ("ramp_limit_exceeded", Answered())


@pytest.mark.parametrize("body", [b"", b"<html>502 Bad Gateway</html>", b'{"error":"oops"}', b'{"message":{}}'])
def test_an_error_answer_that_is_not_the_apis_goes_by_its_status(body: bytes) -> None:
    reader = _whole(502, body)
    assert reader.ended() == (Outcome.UPSTREAM_ERROR, "502")
    assert reader.error_code == ""


@pytest.mark.parametrize("absurd", ["1" + "0" * 400, "-1", "1e3", "9007199254740993"])
def test_absurd_token_counts_make_the_answer_invalid_and_nothing_raises(absurd: str) -> None:
    reader = WholeReader(200, inference=True)
    reader.feed(b'{"type":"message","id":"msg_1","usage":{"input_tokens":%s}}' % absurd.encode())
    assert reader.ended() == (Outcome.UPSTREAM_ERROR, "invalid_response")
    assert reader.answered.usage is None


@pytest.mark.parametrize("absurd", ["1" + "0" * 400, "-1", "many", ""])
def test_absurd_headroom_is_left_out(absurd: str) -> None:
    prefix = "anthropic-ratelimit-requests-"
    headers = {f"{prefix}limit": "10", f"{prefix}remaining": absurd, f"{prefix}reset": "2026-11-22T00:00:00Z"}
    assert quotas(headers, 1.0) == ()
