"""Reading message batches: results line by line however they are cut and packed, and what answers say of a batch."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from typing import Any

import pytest

from observability.catalog import Outcome
from service.record import Usage
from service.upstream.anthropic_batches import LONGEST_LINE, Result, ResultsReader, Shown, shown


def line(name: str, **result: Any) -> bytes:
    """One result."""
    return json.dumps({"custom_id": name, "result": result}).encode() + b"\n"


def message(**fields: Any) -> dict[str, Any]:
    """A message of a batch."""
    usage = {
        "input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 2,
        "service_tier": "batch", "inference_geo": "us",
    }  # fmt: skip
    defaults = {"id": "msg_1", "type": "message", "model": "claude-opus-5-5", "stop_reason": "end_turn", "usage": usage}
    return defaults | {"content": [{"type": "text", "text": "Zdravo, svět\n"}]} | fields


def errored(kind: str) -> dict[str, Any]:
    """An error as a result has it."""
    return {"type": "errored", "error": {"type": "error", "error": {"type": kind, "message": "no"}, "request_id": "r"}}


WHOLE = b"".join(
    (
        line("a", type="succeeded", message=message()),
        line("b", type="succeeded", message=message(stop_reason="refusal")),
        line("c", **errored("invalid_request_error")),
        line("d", type="canceled"),
        line("e", type="expired"),
    )
)
OUTCOMES = {
    "a": (Outcome.OK, None, True),
    "b": (Outcome.REFUSED, None, True),
    "c": (Outcome.CLIENT_INVALID, "invalid_request_error", False),
    "d": (Outcome.CLIENT_ABORT, "canceled", False),
    "e": (Outcome.UPSTREAM_TIMEOUT, "expired", False),
}


def read(*chunks: bytes, encoding: str = "") -> tuple[list[Result], int]:
    """All results, and how many lines were none."""
    reader = ResultsReader(encoding)
    found = [result for chunk in chunks for result in reader.feed(chunk)] + list(reader.end())
    return [result for result in found if result is not None], reader.unreadable


def outcomes(results: list[Result]) -> dict[str, tuple[Outcome, str | None, bool]]:
    """What each result came to."""
    return {r.custom_id: (r.outcome, r.error_type, r.sold) for r in results}


def test_every_result_is_read_with_what_it_came_to() -> None:
    results, unreadable = read(WHOLE)
    assert (outcomes(results), unreadable) == (OUTCOMES, 0)


def test_a_result_says_its_model_and_all_its_tokens() -> None:
    first = read(WHOLE)[0][0].answered
    assert first.usage == Usage(15, 5, 3, 2)
    assert (first.model, first.response_id, first.variant.tier, first.variant.geo) == (
        "claude-opus-5-5", "msg_1", "batch", "us",
    )  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
def test_it_does_not_matter_where_the_bytes_are_cut(packed: bool) -> None:
    data = gzip.compress(WHOLE) if packed else WHOLE
    encoding = "gzip" if packed else ""
    for cut in range(len(data) + 1):
        results, unreadable = read(data[:cut], data[cut:], encoding=encoding)
        assert (outcomes(results), unreadable) == (OUTCOMES, 0), cut
    results, unreadable = read(*(data[at : at + 1] for at in range(len(data))), encoding=encoding)
    assert (outcomes(results), unreadable) == (OUTCOMES, 0)


def test_a_line_is_read_as_soon_as_it_is_whole_and_not_before() -> None:
    reader = ResultsReader()
    one = line("a", type="canceled")
    assert list(reader.feed(one[:-1])) == [None]
    assert [result.custom_id for result in reader.feed(one[-1:] + one) if result is not None] == ["a", "a"]


def test_a_last_line_without_an_end_and_lines_with_carriage_returns_count() -> None:
    results, unreadable = read(WHOLE.replace(b"\n", b"\r\n").rstrip())
    assert (outcomes(results), unreadable) == (OUTCOMES, 0)


def test_empty_lines_are_nothing() -> None:
    assert read(b"\n\n  \n\r\n") == ([], 0)


@pytest.mark.parametrize(
    "bad",
    [
        b"{\n", b"null\n", b"[]\n", b'"text"\n', b"\xff\xfe\n", b"{}\n", b'{"custom_id": 7, "result": {"type": "expired"}}\n',
        b'{"custom_id": "x"}\n', b'{"custom_id": "x", "result": null}\n', b"[" * 100_000 + b"\n",
        b'{"result": {"type": "canceled"}}\n',
    ],
)  # fmt: skip
def test_a_line_that_is_no_result_is_counted_and_costs_no_other(bad: bytes) -> None:
    results, unreadable = read(WHOLE + bad + line("z", type="canceled"))
    assert list(outcomes(results)) == ["a", "b", "c", "d", "e", "z"]
    assert unreadable == 1


@pytest.mark.parametrize("usage", [{"input_tokens": -1}, {"input_tokens": "many"}, {"input_tokens": 1e300}, 7])
def test_a_result_whose_usage_makes_no_sense_is_there_without_one(usage: Any) -> None:
    (result,), unreadable = read(line("a", type="succeeded", message=message(usage=usage)))
    assert (result.custom_id, result.sold, result.answered.usage, unreadable) == ("a", True, None, 0)


def test_a_kind_of_result_that_nobody_knows_may_have_cost_something() -> None:
    (bare, full), _ = read(line("a", type="paused") + line("b", type="paused", message=message()))
    assert (bare.outcome, bare.error_type, bare.sold) == (Outcome.UPSTREAM_ERROR, "invalid_response", True)
    assert (full.outcome, full.answered.usage) == (Outcome.OK, Usage(15, 5, 3, 2))


@pytest.mark.parametrize("error", [None, {}, {"type": "error"}, {"error": {}}])
def test_an_error_that_says_nothing_of_itself_is_the_providers(error: Any) -> None:
    (result,), _ = read(line("a", type="errored", error=error))
    assert (result.outcome, result.error_type, result.sold) == (Outcome.UPSTREAM_ERROR, "api_error", False)


def test_a_line_that_is_too_long_is_skipped_and_never_held() -> None:
    part = b"x" * 65_536
    reader = ResultsReader()
    tracemalloc.start()
    try:
        for _ in range(4 * LONGEST_LINE // len(part)):
            assert list(reader.feed(part)) == [None]
        assert tracemalloc.get_traced_memory()[1] < 2 * LONGEST_LINE
    finally:
        tracemalloc.stop()
    after = list(filter(None, reader.feed(b"\n" + line("z", type="canceled"))))
    assert ([result.custom_id for result in after], reader.unreadable) == (["z"], 1)


def test_a_bomb_is_unpacked_piece_by_piece() -> None:
    packed = gzip.compress(b" " * 100_000_000)
    tracemalloc.start()
    try:
        assert read(packed, encoding="gzip") == ([], 1)
        assert tracemalloc.get_traced_memory()[1] < 2 * LONGEST_LINE
    finally:
        tracemalloc.stop()


def test_several_gzip_files_one_after_the_other_are_one() -> None:
    results, unreadable = read(b"".join(gzip.compress(part + b"\n") for part in WHOLE.splitlines()), encoding="gzip")
    assert (outcomes(results), unreadable) == (OUTCOMES, 0)


@pytest.mark.parametrize(("data", "encoding"), [(b"no gzip", "gzip"), (WHOLE, "br")])
def test_what_cannot_be_unpacked_is_told_once_and_hurts_nobody(data: bytes, encoding: str) -> None:
    assert read(data, data, encoding=encoding)[1] == 1


BATCH = {
    "id": "msgbatch_1", "type": "message_batch", "processing_status": "in_progress",
    "created_at": "2026-11-22T12:00:00Z", "expires_at": "2026-11-23T12:00:00+00:00", "ended_at": None,
    "cancel_initiated_at": None, "archived_at": None, "results_url": None,
}  # fmt: skip
NOON = 1_795_348_800.0


def test_a_batch_says_when_it_was_made_and_when_it_runs_out() -> None:
    assert shown(json.dumps(BATCH).encode()) == ([Shown("msgbatch_1", NOON, NOON + 86_400)], False)


def test_an_ended_and_a_canceled_batch_say_since_when() -> None:
    later = {"ended_at": "2026-11-22T12:00:01Z", "cancel_initiated_at": "2026-11-22T12:00:02Z"}
    (batch,), _ = shown(json.dumps(BATCH | later).encode())
    assert (batch.ended_at, batch.canceled_at) == (NOON + 1, NOON + 2)


def test_a_list_shows_many_and_says_that_it_is_one() -> None:
    page = {"data": [BATCH, BATCH | {"id": "msgbatch_2"}], "has_more": False}
    batches, listed = shown(json.dumps(page).encode())
    assert ([batch.batch_id for batch in batches], listed) == (["msgbatch_1", "msgbatch_2"], True)


def test_a_deleted_batch_says_so() -> None:
    assert shown(b'{"id": "msgbatch_1", "type": "message_batch_deleted"}') == (
        [Shown("msgbatch_1", deleted=True)],
        False,
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff",
        b'{"type": "error", "error": {}}',
        b'{"id": "x", "type": "model"}',
        b'{"data": 7}',
    ],
)
def test_what_is_no_batch_shows_none(body: bytes) -> None:
    assert shown(body)[0] == []


def test_a_time_without_a_zone_is_no_time() -> None:
    assert shown(json.dumps(BATCH | {"created_at": "2026-11-22T12:00:00"}).encode()) == ([], False)


def test_the_longest_line_leaves_room_for_the_longest_answer() -> None:
    text = "word " * 128_000
    (result,), unreadable = read(line("a", type="succeeded", message=message(content=[{"type": "text", "text": text}])))
    assert (result.answered.usage, unreadable) == (Usage(15, 5, 3, 2), 0)
    assert 4 * len(text) < LONGEST_LINE
