"""A call within which others were made (a compaction, an advisor's): all of its tokens and money in every signal and the ledger."""

from __future__ import annotations

import json
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import claude
from tests.support.claude import BLOCK, LAST_CHUNK, SSE_HEAD, chunk, delta, event
from tests.support.poll import poll
from tests.support.scene import Scene, scene
from tests.support.upstream import Seen, answer


def _iteration(kind: str, tokens: int, output: int, **more: str) -> dict[str, Any]:
    nothing = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    return {"type": kind, "input_tokens": tokens, "output_tokens": output} | nothing | more


USAGE = {
    "input_tokens": 3_000, "output_tokens": 200, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
    "iterations": [
        _iteration("compaction", 50_000, 1_000),
        _iteration("advisor_message", 4_000, 500, model="claude-opus-4-8"),
        _iteration("message", 3_000, 200),
    ],
}  # fmt: skip
INPUT, OUTPUT = 57_000, 1_700
NANOS = 53_000 * 4_000 + 1_200 * 20_000 + 4_000 * 5_000 + 500 * 25_000
"""Opus 5.5 costs 4 and 20 dollars per million tokens, Opus 4.8, which advised, 5 and 25."""


def _plays(connection: socket.socket, seen: Seen) -> None:
    if not json.loads(seen.body)["stream"]:
        body = json.dumps(json.loads(claude.MESSAGE) | {"usage": USAGE}).encode()
        connection.sendall(answer("200 OK", body, "content-type: application/json"))
        return
    end = event("message_delta", delta={"stop_reason": "end_turn"}, usage=USAGE) + event("message_stop")
    connection.sendall(SSE_HEAD + chunk(claude.start(3_000, 0, 0) + BLOCK + delta("x") + end) + LAST_CHUNK)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Scene, Path]]:
    books = tmp_path_factory.mktemp("books")
    with scene(_plays, CLAUDE_PROXY_LEDGER=str(books)) as made:
        yield made, books


@pytest.mark.parametrize("stream", [False, True])
def test_everything_tells_all_tokens_and_all_money_of_a_call_and_of_those_within(
    stage: tuple[Scene, Path], stream: bool
) -> None:
    made, books = stage
    watch = made.watch()
    got = made.ask(stream=stream)
    assert got.status == 200
    line = watch.told("ok").line  # which compares metrics and spans with it
    assert (line["input_tokens"], line["output_tokens"]) == (INPUT, OUTPUT)
    assert (line["cost_usd"], line["cost_certainty"]) == (NANOS / 1e9, "exact")
    query = (
        "SELECT input_tokens, output_tokens, certainty, cost_input + cost_output + cost_cache_read + cost_cache_write + "
        "cost_tools FROM calls WHERE trace_id = ?"
    )

    def row() -> Any:
        with sqlite3.connect(f"file:{books / 'ledger.db'}?mode=ro", uri=True) as ledger:
            return ledger.execute(query, (line["trace_id"],)).fetchone()

    assert poll(row, what="the call in the ledger", seconds=20) == (INPUT, OUTPUT, "exact", NANOS)
