"""`claude-proxy reconcile` against a real simulator: differences made on purpose, each named with its cause."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import OperationalError

from service import cli
from service.account.ledger import FILE, Ledger
from service.account.prices import Prices
from service.account.rows import Row
from service.errors import SettingsError
from service.record import Usage, Variant
from tests.support.book import row
from tests.support.poll import poll
from tests.support.processes import Gateway, Simulator

MODEL = "claude-opus-5-5"
KEY = "sk-ant-provider-key"
HEADERS = {"anthropic-version": "2023-06-01"}


@pytest.fixture(scope="module")
def started() -> Iterator[Simulator]:
    """One for all tests here."""
    with Simulator("--fast") as running:
        yield running


@pytest.fixture
def simulator(started: Simulator) -> Simulator:
    """A simulator that has counted nothing yet."""
    httpx.post(f"{started.url}/_simulator/reset").raise_for_status()
    return started


def ask(url: str, tokens: int = 5000, key: str = KEY, scenario: str = "", **fields: Any) -> httpx.Response:
    """One call whose answer has so many tokens."""
    body = {"model": MODEL, "max_tokens": 20_000, "messages": [{"role": "user", "content": "Why? " * 4000}], **fields}
    headers = HEADERS | {"x-api-key": key, "x-simulator-scenario": scenario or f"output_tokens={tokens}"}
    return httpx.post(f"{url}/v1/messages", json=body, headers=headers, timeout=60)


def calls_of(directory: Path) -> list[dict[str, Any]]:
    """What the ledger has; nothing before a worker's thread has made it."""
    ledger = Ledger(directory, create=False)
    try:
        return ledger.calls(None, None, 9)
    except (SettingsError, OperationalError):
        return []
    finally:
        ledger.close()


def kept(answer: httpx.Response, **fields: Any) -> Row:
    """The ledger's row of an answer, by the gateway's own prices."""
    message, now = answer.json(), time.time()
    usage = Usage(message["usage"]["input_tokens"], message["usage"]["output_tokens"])
    cost = Prices().cost("anthropic", MODEL, usage, Variant(), now)
    return row(
        started=now, ended=now, input_tokens=usage.input_tokens, output_tokens=usage.output_tokens,
        cost_input=cost.input, cost_output=cost.output, upstream_request_id=answer.headers["request-id"],
        response_id=message["id"], **fields,
    )  # fmt: skip


def reconcile(capsys: pytest.CaptureFixture[str], book: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The command's status and its document."""
    capsys.readouterr()
    options = ["--env-file", os.devnull, "--path", str(book), "--format", "json", "--since", "2d"]
    status = cli.main(["reconcile", *options, *arguments])
    said = capsys.readouterr()
    assert said.out, said.err
    document: dict[str, Any] = json.loads(said.out)
    return status, document


def codes(document: dict[str, Any]) -> list[str]:
    """The likeliest cause of each row that differs."""
    return [row["causes"][0]["code"] for row in document["rows"] if row["causes"]]


def test_a_ledger_that_has_everything_agrees_to_the_last_token_and_nano_dollar(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Ledger(tmp_path).add([kept(ask(simulator.url, n)) for n in (100, 2000)])
    status, document = reconcile(capsys, tmp_path, "--simulator", simulator.url, "--tolerance", "0")
    assert (status, document["agrees"], document["calls"]) == (0, True, [])
    (line,) = document["rows"]
    assert (line["model"], line["calls"], line["output"]) == (MODEL, 2, {"ours": 2100, "theirs": 2100, "difference": 0})
    assert line["cost_usd"]["ours"] == line["cost_usd"]["theirs"] > 0


def test_a_call_past_the_gateway_is_named(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Ledger(tmp_path).add([kept(ask(simulator.url))])
    past = ask(simulator.url)
    status, document = reconcile(capsys, tmp_path, "--simulator", simulator.url)
    assert (status, codes(document)) == (1, ["bypassed"])
    assert [(each["code"], each["theirs"]["request_id"]) for each in document["calls"]] == [
        ("bypassed", past.headers["request-id"])
    ]


def test_a_model_that_never_went_through_the_gateway_is_said_to_be_so(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Ledger(tmp_path).add([kept(ask(simulator.url))])
    ask(simulator.url, model="claude-haiku-4-5")
    _, document = reconcile(capsys, tmp_path, "--simulator", simulator.url)
    (cause,) = [row["causes"][0] for row in document["rows"] if row["model"] == "claude-haiku-4-5"]
    assert cause["sentence"].startswith("the gateway made no such call")


def test_another_applications_key_is_named_and_can_be_left_out(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Ledger(tmp_path).add([kept(ask(simulator.url))])
    ask(simulator.url, 300, key="sk-ant-another")
    _, document = reconcile(capsys, tmp_path, "--simulator", simulator.url)
    assert codes(document) == ["other_key"]
    assert document["calls"][0]["code"] == "other_key"
    calls = simulator.get("/_simulator/counts")["calls"]
    (own,) = {call["key_hash"] for call in calls if call["billed"]["output_tokens"] == 5000}
    assert f"apikey_{own}" not in document["rows"][0]["causes"][0]["sentence"]
    admin = tmp_path / "key"
    admin.write_text("sk-ant-admin01-x\n")
    only = ("--api-key-id", f"apikey_{own}", "--admin-key-file", str(admin), "--base-url", simulator.url)
    status, document = reconcile(capsys, tmp_path, *only)
    assert (status, document["rows"][0]["cost_usd"]["theirs"]) == (0, None)


def test_a_row_deleted_from_the_ledger_is_told_from_a_call_that_never_came(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger(tmp_path)
    ledger.add([kept(ask(simulator.url)), gone := kept(ask(simulator.url))])
    ledger.close()
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("DELETE FROM calls WHERE call_id = ?", (gone.call_id,))
    connection.close()
    _, document = reconcile(capsys, tmp_path, "--simulator", simulator.url)
    assert codes(document) == ["rows_removed"]
    assert document["calls"][0]["theirs"]["request_id"] == gone.upstream_request_id


def test_a_wrong_price_file_shows_although_the_tokens_agree(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prices = tmp_path / "prices.json"
    prices.write_text(json.dumps({f"anthropic/{MODEL}": {"input": 4, "output": 30}}))
    book = tmp_path / "book"
    with Gateway(simulator.url, CLAUDE_PROXY_LEDGER=str(book), CLAUDE_PROXY_PRICES_FILE=str(prices)) as gateway:
        ask(gateway.url)
        poll(lambda: calls_of(book), what="the row")
    status, document = reconcile(capsys, book, "--simulator", simulator.url)
    assert (status, codes(document), document["calls"]) == (1, ["prices"], [])
    assert "(ours is 1.417 times theirs)" in document["rows"][0]["causes"][0]["sentence"]


def test_batches_whose_results_nobody_fetched_are_named(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Ledger(tmp_path).add([kept(ask(simulator.url))])
    params = {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "x" * 9000}]}
    client = httpx.Client(base_url=simulator.url, headers=HEADERS | {"x-api-key": KEY}, timeout=60)
    with client:
        batch = client.post("/v1/messages/batches", json={"requests": [{"custom_id": "a", "params": params}]}).json()
        poll(lambda: client.get(f"/v1/messages/batches/{batch['id']}").json()["ended_at"], what="the batch")
    _, document = reconcile(capsys, tmp_path, "--simulator", simulator.url)
    assert codes(document) == ["batch_not_fetched"]


def test_a_gateway_in_front_of_it_agrees_and_names_the_call_that_a_client_left(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Gateway(simulator.url, CLAUDE_PROXY_LEDGER=str(tmp_path)) as gateway:
        text = {"type": "text", "text": "Why? " * 4000, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
        ask(gateway.url)
        ask(gateway.url, stream=True)
        for _ in range(2):
            ask(gateway.url, messages=[{"role": "user", "content": [text]}])
        ask(gateway.url, model="claude-haiku-4-5")
        ask(gateway.url, model="claude-sonnet-5-5", inference_geo="us")
        ask(gateway.url, scenario="fault=overloaded")
        poll(lambda: len(calls_of(tmp_path)) == 7, what="the rows")
        status, document = reconcile(capsys, tmp_path, "--simulator", simulator.url, "--tolerance", "0")
        assert status == 0, document
        assert {row["model"]: row["calls"] for row in document["rows"]} == {
            MODEL: 4, "claude-haiku-4-5": 1, "claude-sonnet-5-5": 1,
        }  # fmt: skip
        (opus,) = [row for row in document["rows"] if row["model"] == MODEL]
        assert opus["cache_write_1h"]["ours"] == opus["cache_read"]["theirs"] == 5000
        body = {"model": MODEL, "max_tokens": 9000, "stream": True, "messages": [{"role": "user", "content": "a"}]}
        headers = HEADERS | {"x-simulator-scenario": "output_tokens=9000;gap_ms=50"}
        with gateway.client() as client, client.stream("POST", "/v1/messages", json=body, headers=headers) as answer:
            next(answer.iter_bytes())
        poll(lambda: len(calls_of(tmp_path)) == 8, what="the last row")
        poll(lambda: simulator.get("/_simulator/counts")["requests"]["in_flight"] == 0, what="the end there")
    status, document = reconcile(capsys, tmp_path, "--simulator", simulator.url, "--tolerance", "0")
    assert (status, codes(document)) == (1, ["unfinished"])
    assert [row["client_abort"] for row in document["rows"] if row["causes"]] == [1]
    assert [each["code"] for each in document["calls"]] == ["unfinished"]


def test_a_call_of_a_killed_worker_is_named_and_found_among_theirs(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Gateway(simulator.url, CLAUDE_PROXY_LEDGER=str(tmp_path)) as gateway:
        body = {
            "model": MODEL,
            "max_tokens": 9000,
            "stream": True,
            "messages": [{"role": "user", "content": "a" * 9000}],
        }
        headers = HEADERS | {"x-simulator-scenario": "output_tokens=9000;gap_ms=50"}
        with gateway.client() as client, client.stream("POST", "/v1/messages", json=body, headers=headers) as answer:
            chunks = answer.iter_bytes()
            next(chunks)
            os.kill(gateway.worker_pids()[0], signal.SIGKILL)
            with pytest.raises(httpx.TransportError):
                list(chunks)
        (lost,) = poll(lambda: calls_of(tmp_path), what="the successor's row")
        poll(lambda: simulator.get("/_simulator/counts")["requests"]["in_flight"] == 0, what="the end there")
    _, document = reconcile(capsys, tmp_path, "--simulator", simulator.url)
    assert codes(document) == ["unfinished"]
    assert "1 interrupted" in document["rows"][0]["causes"][0]["sentence"]
    assert [(each["code"], each["ours"]["call_id"]) for each in document["calls"]] == [("unfinished", lost["call_id"])]
    assert document["calls"][0]["theirs"]["tokens"]["input"] > 2000


def test_the_table_shows_what_differs_with_a_sentence_and_the_sums(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Ledger(tmp_path).add([kept(ask(simulator.url))])
    ask(simulator.url, 7000)
    assert cli.main(["reconcile", "--path", str(tmp_path), "--simulator", simulator.url]) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["day", "model", "what", "ours", "theirs", "difference"]
    assert [line.split()[-3:] for line in out.splitlines() if " output " in line] == [["5,000", "12,000", "-7,000"]] * 2
    assert "    bypassed: calls that did not go through the gateway" in out
    assert out.endswith("0 of 1 days and models agree within 0.5 % of the larger side.\n")


def test_csv_has_a_line_for_each_day_and_model_with_its_likely_cause(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Ledger(tmp_path).add([kept(ask(simulator.url))])
    ask(simulator.url, 7000)
    assert cli.main(["reconcile", "--path", str(tmp_path), "--simulator", simulator.url, "--format", "csv"]) == 1
    (line,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (line["model"], line["output_difference"], line["causes"]) == (MODEL, "-7000", "bypassed")
    assert line["likely"].startswith("calls that did not go")
