"""Message batches through a real gateway: each result once, at half the price, whoever fetches it how often and who dies."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import socket
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from service.account.ledger import FILE
from service.account.prices import Prices
from service.record import Usage, Variant
from tests.support.claude import ASKED, MODEL, chunk
from tests.support.mix import CLIENT_KEYS, KEY
from tests.support.poll import poll
from tests.support.processes import Gateway, Simulator
from tests.support.scrape import REQUESTS, all_up, fetch, whole
from tests.support.upstream import Seen, Upstream, answer
from tests.support.wire import Wire

PATH = "/v1/messages/batches"
SAVED, COST = "claude_proxy_batch_saved_usd_total", "claude_proxy_cost_usd_total"
OLDEST, EXPIRY = "claude_proxy_batch_oldest_seconds", "claude_proxy_batch_next_expiry_timestamp_seconds"
VERSION = {"anthropic-version": "2023-06-01"}
USED = "gen_ai_client_inference_usage_{}_tokens_total"
ROW = "SELECT * FROM calls WHERE kind = 'batch_result'"


def rows(directory: Path, query: str = ROW) -> list[dict[str, Any]]:
    """Of the ledger's database; none before a worker's thread has made it."""
    if not (directory / FILE).exists():
        return []
    with closing(sqlite3.connect(f"file:{directory / FILE}?mode=rw", uri=True, timeout=30)) as connection:
        connection.row_factory = sqlite3.Row
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'batches'").fetchall():
            return []
        return [dict(found) for found in connection.execute(query)]


def cost(row: dict[str, Any]) -> int:
    """Nano-dollars."""
    return sum(row[f"cost_{part}"] for part in ("input", "cache_read", "cache_write", "output", "tools"))


def total(gateway: Gateway, name: str) -> float:
    """A family's sum over everything."""
    return sum(value for (sample, _), value in gateway.samples().items() if sample == name)


@contextmanager
def over_simulator(directory: Path, seconds: str = "0.1", **environ: str) -> Iterator[tuple[Gateway, httpx.Client]]:
    """Two workers with one ledger, and a client of them."""
    settings = {"CLAUDE_PROXY_WORKERS": "2", "CLAUDE_PROXY_LEDGER": str(directory)} | environ
    with (
        Simulator("--fast", "--batch-seconds", seconds) as simulator,
        Gateway(simulator.url, **settings) as gateway,
        gateway.client(headers=VERSION | {"x-api-key": KEY}) as client,
    ):
        all_up(gateway, 2)
        yield gateway, client


def made(client: httpx.Client, *params: dict[str, Any]) -> str:
    """A new batch's id."""
    requests = [{"custom_id": f"c{number}", "params": ASKED | each} for number, each in enumerate(params)]
    return str(client.post(PATH, json={"requests": requests}).raise_for_status().json()["id"])


def ended(client: httpx.Client, batch: str) -> None:
    """Waits until it has."""
    poll(lambda: client.get(f"{PATH}/{batch}").json()["processing_status"] == "ended", what="the batch to end")


def test_results_fetched_by_many_on_both_workers_are_in_ledger_and_metrics_once_at_half_the_price(
    tmp_path: Path,
) -> None:
    keys = f"{CLIENT_KEYS} bob:{hashlib.sha256(b'bobs-key').hexdigest()}"
    with over_simulator(tmp_path, CLAUDE_PROXY_CLIENT_KEYS=keys) as (gateway, client):
        batch = made(client, *({"max_tokens": 64 + n} for n in range(300)), {"model": "nobody"})
        ended(client, batch)

        def once(key: str) -> bytes:
            got = fetch(gateway, "GET", f"{PATH}/{batch}/results", b"", **VERSION, **{"x-api-key": key})
            return str(got.text).encode()  # type: ignore[attr-defined]

        with ThreadPoolExecutor(10) as pool:
            bodies = list(pool.map(once, [KEY, "bobs-key"] * 5))
        while len([worker for worker, count in whole(gateway).of(REQUESTS).items() if count > 3]) < 2:
            bodies.append(once(KEY))
        assert len(set(bodies)) == 1
        assert len(bodies[0].splitlines()) == 301
        poll(lambda: len(rows(tmp_path)) == 301, what="every result in the ledger")
        found = rows(tmp_path)
        assert Counter(row["outcome"] for row in found) == {"ok": 300, "client_invalid": 1}
        prices = Prices()
        for row in found:
            usage = Usage(row["input_tokens"] or 0, row["output_tokens"] or 0)
            alone = prices.cost("anthropic", MODEL, usage, Variant(), row["ended"]).total
            assert cost(row) * 2 == (alone if row["outcome"] == "ok" else 0)
            assert row["saved"] == (cost(row) if row["outcome"] == "ok" else None)
        spent = sum(map(cost, found)) / 1e9
        should = {name: round(spent, 9) for name in (COST, SAVED, "claude_proxy_client_cost_usd_total")}
        for what in ("input", "output"):
            should[USED.format(what)] = sum(row[f"{what}_tokens"] or 0 for row in found)

        def counted() -> bool:
            assert {name: round(total(gateway, name), 9) for name in should} == should
            return True

        poll(counted, what="everything to be counted")


def test_canceled_results_cost_nothing(tmp_path: Path) -> None:
    with over_simulator(tmp_path, "1") as (gateway, client):
        batch = made(client, {}, {})
        client.post(f"{PATH}/{batch}/cancel").raise_for_status()
        ended(client, batch)
        client.get(f"{PATH}/{batch}/results").raise_for_status()
        poll(lambda: len(rows(tmp_path)) == 2, what="both results in the ledger")
        assert {(row["outcome"], row["error_type"], cost(row)) for row in rows(tmp_path)} == {
            ("client_abort", "canceled", 0)
        }
        assert (total(gateway, COST), total(gateway, SAVED)) == (0, 0)


def test_nobody_waits_for_a_canceled_batch(tmp_path: Path) -> None:
    with over_simulator(tmp_path, "60") as (gateway, client):
        batch = made(client, {})
        poll(lambda: total(gateway, OLDEST), what="the age to be shown")
        client.post(f"{PATH}/{batch}/cancel").raise_for_status()
        poll(lambda: not total(gateway, OLDEST) and not total(gateway, EXPIRY), what="the gauges to go")


def test_the_age_and_expiry_of_a_batch_are_shown_until_its_results_are_fetched(tmp_path: Path) -> None:
    with over_simulator(tmp_path) as (gateway, client):
        assert gateway.sample(OLDEST, gen_ai_provider_name="anthropic") == 0.0
        first, second = made(client, {}), made(client, {})
        shown = poll(lambda: gateway.sample(EXPIRY, gen_ai_provider_name="anthropic"), what="the expiry to be shown")
        ended(client, first)
        expires = datetime.fromisoformat(client.get(f"{PATH}/{second}").json()["expires_at"])
        in_a_day, results_gone = expires.timestamp(), (expires + timedelta(days=28)).timestamp()
        assert abs(shown - in_a_day) <= 2 or abs(shown - results_gone) <= 2
        poll(lambda: gateway.sample(OLDEST, gen_ai_provider_name="anthropic") > 0, what="the age to be shown")
        assert gateway.sample(OLDEST, gen_ai_provider_name="anthropic") < 60
        ended(client, second)
        client.get(f"{PATH}/{first}/results").raise_for_status()
        poll(lambda: rows(tmp_path, "SELECT 1 FROM batches WHERE fetched_at IS NOT NULL"), what="the fetch to be known")
        assert gateway.sample(EXPIRY, gen_ai_provider_name="anthropic") > 0
        client.delete(f"{PATH}/{second}").raise_for_status()
        poll(lambda: not total(gateway, OLDEST) and not total(gateway, EXPIRY), what="the gauges to go")


def result(name: str, kind: str = "succeeded") -> bytes:
    """One line."""
    usage = {"input_tokens": 1000, "output_tokens": 100, "service_tier": "batch"}
    message = {"id": f"msg_{name}", "type": "message", "model": MODEL, "stop_reason": "end_turn", "usage": usage}
    said = {"type": kind, "message": message} if kind == "succeeded" else {"type": kind}
    return json.dumps({"custom_id": name, "result": said}).encode() + b"\n"


LINES = [result(f"c{number}") for number in range(40)] + [result("late", "expired")]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-jsonl\r\ntransfer-encoding: chunked\r\n"
END = b"0\r\n\r\n"


def test_killed_while_results_pass_a_worker_loses_and_doubles_none(tmp_path: Path) -> None:
    go_on = threading.Event()

    def half(connection: socket.socket, seen: Seen) -> None:
        connection.sendall(HEAD + b"\r\n" + chunk(b"".join(LINES[:20]) + LINES[20][:30]))
        go_on.wait(30)
        connection.sendall(chunk(LINES[20][30:] + b"".join(LINES[21:])) + END)

    with (
        Upstream(half) as upstream,
        Gateway(upstream.url, CLAUDE_PROXY_LEDGER=str(tmp_path), CLAUDE_PROXY_WORKERS="1") as gateway,
    ):
        (worker,) = gateway.worker_pids()
        with Wire(gateway.port) as wire:
            wire.request("GET", f"{PATH}/msgbatch_1/results")
            assert wire.head().status == 200
            assert wire.piece().startswith(LINES[0])
            os.kill(worker, signal.SIGKILL)
        poll(lambda: len(rows(tmp_path)) == 20, what="what the client has to be in the ledger")
        go_on.set()
        poll(lambda: worker not in gateway.worker_pids() and gateway.worker_pids(), what="another worker")
        for _ in range(2):
            got = poll(lambda: fetch(gateway, "GET", f"{PATH}/msgbatch_1/results"), what="the results")
            assert got.text == b"".join(LINES).decode()  # type: ignore[attr-defined]
        poll(lambda: len(rows(tmp_path)) == len(LINES), what="every result in the ledger")
        costs = {row["response_id"]: cost(row) for row in rows(tmp_path)}
        each = (1000 * 4_000 + 100 * 20_000) // 2  # nano-dollars: 4 and 20 dollars a million tokens, and half of it
        assert costs == {f"msg_c{number}": each for number in range(40)} | {None: 0}


def test_results_that_come_compressed_pass_as_they_came_and_are_accounted(tmp_path: Path) -> None:
    packed = gzip.compress(b"".join(LINES))

    def compressed(connection: socket.socket, seen: Seen) -> None:
        assert seen.header("accept-encoding") == "gzip"
        connection.sendall(answer("200 OK", packed, "content-type: application/x-jsonl", "content-encoding: gzip"))

    with Upstream(compressed) as upstream, Gateway(upstream.url, CLAUDE_PROXY_LEDGER=str(tmp_path)) as gateway:
        with Wire(gateway.port) as wire:
            wire.request("GET", f"{PATH}/msgbatch_1/results", b"", "accept-encoding: gzip, br")
            assert wire.answer()[1] == packed
        poll(lambda: len(rows(tmp_path)) == len(LINES), what="every result in the ledger")


def test_an_answer_cut_in_the_middle_is_accounted_as_far_as_it_came_and_is_not_fetched(tmp_path: Path) -> None:
    def cut(connection: socket.socket, seen: Seen) -> None:
        connection.sendall(HEAD + b"\r\n" + chunk(b"".join(LINES[:7]) + LINES[7][:30]))
        connection.close()

    with Upstream(cut) as upstream, Gateway(upstream.url, CLAUDE_PROXY_LEDGER=str(tmp_path)) as gateway:
        with Wire(gateway.port) as wire:
            wire.request("GET", f"{PATH}/msgbatch_1/results")
            wire.head()
            assert wire.piece()
        poll(lambda: len(rows(tmp_path)) == 7, what="seven results in the ledger")
        gateway.wait_requests(1)
        assert rows(tmp_path, "SELECT * FROM batches") == []


def test_lines_that_are_no_results_are_told_and_the_rest_is_accounted(tmp_path: Path) -> None:
    body = LINES[0] + b"{garbage\n" + LINES[1]
    script = Upstream(lambda connection, _: connection.sendall(answer("200 OK", body)))
    with script as upstream, Gateway(upstream.url, CLAUDE_PROXY_LEDGER=str(tmp_path)) as gateway:
        got = fetch(gateway, "GET", f"{PATH}/msgbatch_1/results")
        assert got.text == body.decode()  # type: ignore[attr-defined]
        poll(lambda: len(rows(tmp_path)) == 2, what="two results in the ledger")
        lost = gateway.sample("claude_proxy_telemetry_dropped_total", signal="ledger", reason="unreadable")
        assert lost == 1
        said = gateway.wait_log(lambda line: "cannot be read" in line.get("message", ""), "a word of it")
        assert "msgbatch_1" in said["message"]
        assert "garbage" not in json.dumps(gateway.log())


def test_only_asking_about_results_is_not_fetching_them(tmp_path: Path) -> None:
    def script(connection: socket.socket, seen: Seen) -> None:
        body = b"" if seen.line.startswith("HEAD") else b"".join(LINES)
        connection.sendall(answer("200 OK", body, "content-type: application/x-jsonl"))

    with Upstream(script) as upstream, Gateway(upstream.url, CLAUDE_PROXY_LEDGER=str(tmp_path)) as gateway:
        assert fetch(gateway, "HEAD", f"{PATH}/msgbatch_1/results").status == 200
        assert fetch(gateway, "GET", f"{PATH}/msgbatch_2/results").status == 200
        known = poll(lambda: rows(tmp_path, "SELECT batch_id FROM batches"), what="the fetch to be known")
        assert known == [{"batch_id": "msgbatch_2"}]


def test_results_that_are_not_there_yet_are_no_results(tmp_path: Path) -> None:
    with over_simulator(tmp_path, "60") as (gateway, client):
        batch = made(client, {})
        assert client.get(f"{PATH}/{batch}/results").status_code == 400
        assert client.head(f"{PATH}/{batch}/results").status_code >= 400
        poll(lambda: rows(tmp_path, "SELECT * FROM batches"), what="the batch to be known")
        (known,) = rows(tmp_path, "SELECT * FROM batches")
        assert (known["batch_id"], known["fetched_at"]) == (batch, None)
        assert abs(known["created_at"] - datetime.now(UTC).timestamp()) < 60
        assert rows(tmp_path) == []
        assert [line for line in gateway.log() if line["level"] == "error"] == []
