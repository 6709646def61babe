"""A client's spending of today is known again after a restart: from the ledger, not from memory."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tests.support.claude import ASKED, MESSAGE
from tests.support.poll import poll
from tests.support.processes import Gateway
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
