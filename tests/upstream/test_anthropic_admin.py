"""The client of Claude's Admin API: pages, waits, and what it says when there is no report."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from service.upstream.anthropic_admin import COST, USAGE, AdminClient, Period, ReportError
from tests.support.upstream import Script, Upstream, answer, json_answer, reset

KEY = "sk-ant-admin01-secret"
PERIOD = Period("2026-11-01", "2026-11-03")
ROW = {"uncached_input_tokens": 5, "output_tokens": 7, "model": "m", "of_tomorrow": True}


def page(day: str, following: str | None = None) -> bytes:
    """A page with one row on one day."""
    data = [{"starting_at": f"{day}T00:00:00Z", "ending_at": "", "results": [ROW]}]
    return json.dumps({"data": data, "has_more": following is not None, "next_page": following}).encode()


def in_turn(*answers: bytes) -> Script:
    """A script that gives one whole answer after another."""
    left = list(answers)
    return lambda connection, seen: connection.sendall(left.pop(0))


def ok(body: bytes) -> bytes:
    return answer("200 OK", body, "content-type: application/json")


def read(script: Script, use: Callable[[AdminClient], Any], **options: Any) -> tuple[Any, Upstream]:
    """What `use` gets from the API that the script plays."""
    with Upstream(script) as upstream, AdminClient(upstream.url, KEY, **options) as client:
        return use(client), upstream


def usage(client: AdminClient) -> list[tuple[str, int]]:
    return [(day, row.output_tokens) for day, row in client.usage(PERIOD)]


def test_pages_are_followed_to_the_last_with_the_same_question() -> None:
    told: list[str] = []
    script = in_turn(ok(page("2026-11-01", "p2")), ok(page("2026-11-02")))
    found, upstream = read(script, usage, tell=told.append)
    assert found == [("2026-11-01", 7), ("2026-11-02", 7)]
    first, second = (seen.line for seen in upstream.seen)
    assert first.startswith(f"GET {USAGE}?group_by%5B%5D=model&")
    assert "starting_at=2026-11-01T00%3A00%3A00Z&ending_at=2026-11-03T00%3A00%3A00Z" in first
    assert second == first.replace(" HTTP", "&page=p2 HTTP")
    assert told == [f"{USAGE}: page 2"]
    assert upstream.seen[0].header("x-api-key") == KEY


def test_pages_that_go_round_are_an_error() -> None:
    with pytest.raises(ReportError, match="round in a circle"):
        read(json_answer(page("2026-11-01", "p2")), usage)


def test_without_an_end_none_is_named() -> None:
    _, upstream = read(json_answer(page("2026-11-01")), lambda client: list(client.usage(Period("2026-11-01", None))))
    assert "ending_at" not in upstream.seen[0].line


def test_amounts_are_exact() -> None:
    cents = {"amount": "123.45678901234567890", "currency": "USD"}
    body = json.dumps({"data": [{"starting_at": "2026-11-01T00:00:00Z", "results": [cents]}]}).encode()
    found, upstream = read(json_answer(body), lambda client: list(client.cost(PERIOD)))
    assert found[0][1].amount == Decimal("123.45678901234567890")
    assert upstream.seen[0].line.startswith(f"GET {COST}?group_by%5B%5D=description&")


def test_too_many_requests_are_waited_for_once() -> None:
    waits: list[float] = []
    refused = answer("429 Too Many Requests", b"{}", "retry-after: 7")
    found, _ = read(in_turn(refused, ok(page("2026-11-01"))), usage, sleep=waits.append)
    assert (found, waits) == ([("2026-11-01", 7)], [7.0])
    with pytest.raises(ReportError, match=r"429.*again after waiting"):
        read(in_turn(refused, refused), usage, sleep=waits.append)


@pytest.mark.parametrize(("header", "word"), [("retry-after: 9000", "in 9,000 s"), ("x: y", "later")])
def test_who_is_told_to_come_back_much_later_is_told_so(header: str, word: str) -> None:
    with pytest.raises(ReportError, match=f"429.*come back {word}"):
        read(in_turn(answer("429 Too Many Requests", b"{}", header)), usage)


@pytest.mark.parametrize(
    ("status", "word"),
    [
        ("401 Unauthorized", r"an Admin API key is needed \(sk-ant-admin…\).*: invalid x-api-key"),
        ("403 Forbidden", "with the admin role.*: invalid x-api-key"),
        ("404 Not Found", "is the address that of the Claude API"),
        ("500 Internal Server Error", "HTTP 500: invalid x-api-key"),
        ("302 Found", "HTTP 302"),
    ],
)
def test_a_refusal_is_told_plainly_and_without_the_key(status: str, word: str) -> None:
    body = b'{"type": "error", "error": {"type": "x", "message": "invalid x-api-key"}}'
    with pytest.raises(ReportError, match=word) as raised:
        read(json_answer(body, status), usage)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("body", [b"<html>", b'{"data": [{"starting_at": 5}]}', b'{"data": 1}', b"\xff"])
def test_an_answer_of_another_shape_is_an_error_that_names_the_report(body: bytes) -> None:
    with pytest.raises(ReportError, match=f"{USAGE}: not the answer that is documented"):
        read(json_answer(body), usage)


def test_a_network_that_fails_is_an_error_without_the_addresss_password() -> None:
    def hang_up(connection: Any, seen: Any) -> None:
        reset(connection)

    with (
        Upstream(hang_up) as upstream,
        AdminClient(upstream.url.replace("//", "//me:pass@"), KEY) as client,
        pytest.raises(ReportError, match=r"http://127\.0\.0\.1:.*cannot be reached") as raised,
    ):
        usage(client)
    assert "pass" not in str(raised.value)
