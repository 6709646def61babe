"""A client's spending of today is known again after a restart: from the ledger, not from memory."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
from pathlib import Path

from tests.support.claude import ASKED, MESSAGE
from tests.support.poll import poll
from tests.support.processes import Gateway, Simulator
from tests.support.upstream import Upstream, json_answer

KEY = {"x-api-key": "key-of-alice"}


def test_a_budget_that_was_spent_before_the_restart_is_spent_after_it(tmp_path: Path) -> None:
    limits = tmp_path / "limits.json"
    limits.write_text(json.dumps({"alice": {"budget_usd_per_day": 0.0003}}))
    settings = {
        "CLAUDE_PROXY_CLIENT_KEYS": f"alice:{hashlib.sha256(KEY['x-api-key'].encode()).hexdigest()}",
        "CLAUDE_PROXY_CLIENT_LIMITS_FILE": str(limits),
        "CLAUDE_PROXY_LEDGER": str(tmp_path / "ledger"),
    }
    with Upstream(json_answer(MESSAGE)) as upstream:
        with Gateway(upstream.url, **settings) as gateway, gateway.client(headers=KEY) as client:
            spent = 0
            while client.post("/v1/messages", json=ASKED).status_code == 200:
                spent += 1
            assert 1 <= spent <= 3
            poll(lambda: gateway.sample("claude_proxy_ledger_backlog_rows") == 0, what="the ledger to have it all")
            assert gateway.stop() == 0
        with Gateway(upstream.url, **settings) as gateway, gateway.client(headers=KEY) as client:
            refused = client.post("/v1/messages", json=ASKED)
            assert refused.status_code == 429
            assert refused.json()["error"]["details"]["limit"] == "budget"
            assert refused.headers["x-should-retry"] == "false" or int(refused.headers["retry-after"]) <= 60
            assert len(upstream.seen) == spent


def test_a_budget_that_was_spent_before_everything_was_killed_is_spent_after_it(tmp_path: Path) -> None:
    """The killed worker's last calls are in its journal alone, and the database may be away when the next one starts."""
    limits = tmp_path / "limits.json"
    limits.write_text(json.dumps({"alice": {"budget_usd_per_day": 0.0003}}))
    settings = {
        "CLAUDE_PROXY_CLIENT_KEYS": f"alice:{hashlib.sha256(KEY['x-api-key'].encode()).hexdigest()}",
        "CLAUDE_PROXY_CLIENT_LIMITS_FILE": str(limits),
        "CLAUDE_PROXY_LEDGER": str(tmp_path / "ledger"),
    }

    def ask(gateway: Gateway) -> int:
        with gateway.client(headers=KEY) as client:
            return client.post("/v1/messages", json=ASKED).status_code

    with Upstream(json_answer(MESSAGE)) as upstream:
        with Gateway(upstream.url, **settings) as gateway:
            poll((tmp_path / "ledger" / "ledger.db").exists, what="the database")
            poll(
                lambda: gateway.sample("claude_proxy_telemetry_last_success_timestamp_seconds", signal="ledger"),
                what="it",
            )
            locked = sqlite3.connect(tmp_path / "ledger" / "ledger.db", isolation_level=None)
            locked.execute("BEGIN IMMEDIATE")
            poll(lambda: ask(gateway) == 429, what="the budget to be used up")
            os.killpg(gateway.process.pid, signal.SIGKILL)
        sent = len(upstream.seen)
        with Gateway(upstream.url, **settings) as gateway:
            locked.close()
            poll(
                lambda: gateway.sample("claude_proxy_telemetry_last_success_timestamp_seconds", signal="ledger"),
                what="it",
            )
            assert ask(gateway) == 429
            os.killpg(gateway.process.pid, signal.SIGKILL)
        with Gateway(upstream.url, **settings) as gateway:
            assert ask(gateway) == 429
        assert len(upstream.seen) == sent


def test_what_a_batch_cost_counts_against_the_budget_of_who_fetched_its_results(tmp_path: Path) -> None:
    limits = tmp_path / "limits.json"
    limits.write_text(json.dumps({"alice": {"budget_usd_per_day": 0.000001}}))
    settings = {
        "CLAUDE_PROXY_CLIENT_KEYS": f"alice:{hashlib.sha256(KEY['x-api-key'].encode()).hexdigest()}",
        "CLAUDE_PROXY_CLIENT_LIMITS_FILE": str(limits),
        "CLAUDE_PROXY_LEDGER": str(tmp_path / "ledger"),
    }
    with (
        Simulator("--fast", "--batch-seconds", "0.05") as simulator,
        Gateway(simulator.url, **settings) as gateway,
        gateway.client(headers=KEY | {"anthropic-version": "2023-06-01"}) as client,
    ):
        asked = {"requests": [{"custom_id": "one", "params": ASKED}]}
        made = client.post("/v1/messages/batches", json=asked).json()["id"]
        poll(lambda: client.get(f"/v1/messages/batches/{made}/results").status_code == 200, what="the batch to end")
        poll(lambda: gateway.sample("claude_proxy_client_cost_usd_total", client="alice") > 0, what="its cost")
        refused = poll(
            lambda: got if (got := client.post("/v1/messages", json=ASKED)).status_code == 429 else None, what="a no"
        )
        assert refused.json()["error"]["details"]["limit"] == "budget"
