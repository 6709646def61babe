"""Some of everything: one request of each kind that a gateway in front of the simulator can be asked, and its failures."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.support.claude import ASKED
from tests.support.poll import poll
from tests.support.processes import Gateway
from tests.support.scrape import fetch
from tests.support.wire import Wire

KEY = "cp-client-key-of-alice"
NARROW_KEY = "cp-client-key-of-carol"
CLIENT_KEYS = " ".join(
    f"{name}:{hashlib.sha256(key.encode()).hexdigest()}" for name, key in (("alice", KEY), ("carol", NARROW_KEY))
)
COMMON = {
    "x-api-key": KEY,
    "anthropic-version": "2023-06-01",
    "content-type": "application/json",
    "x-claude-code-session-id": "session-1",
    "x-claude-code-agent-id": "agent-1",
}
FAULTS = (
    "rate_limit_requests", "rate_limit_input_tokens", "rate_limit_output_tokens", "acceleration", "spend", "overloaded",
    "api_error", "timeout", "unavailable", "invalid_request", "authentication", "billing", "permission", "not_found",
    "conflict", "too_large", "reset", "garbage", "cut", "error_first",
)  # fmt: skip
STREAM_FAULTS = ("cut", "cut_boundary", "reset_mid", "malformed", "stall", "error_first", "error_after", "garbage")
_SLOW = "gap_ms=50;chunks=200"


class Mix:
    """Sends, and counts what was sent."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway, self.sent = gateway, 0

    def ask(self, method: str, path: str, body: Any = b"", scenario: str = "", **headers: str) -> bytes:
        """One request, read to its end or until it is cut; what came of it is not looked at."""
        self.sent += 1
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = COMMON | ({"x-simulator-scenario": scenario} if scenario else {}) | headers
        with Wire(self.gateway.port) as wire:
            lines = [f"{name}: {value}" for name, value in named.items() if value]
            wire.request(method, path, data, "connection: close", *lines)
            try:
                return wire.answer()[1]
            except ConnectionError:
                return b""

    def leave(self, scenario: str, *, stream: bool) -> None:
        """Ask, and be gone: before an answer, or in the middle of a stream."""
        self.sent += 1
        before = len(self.gateway.requests())
        with Wire(self.gateway.port) as wire:
            named = COMMON | {"x-simulator-scenario": scenario}
            wire.ask(ASKED | {"stream": stream}, *(f"{k}: {v}" for k, v in named.items() if k != "content-type"))
            if stream:
                wire.head()
                wire.piece()
                wire.piece()
        poll(lambda: len(self.gateway.requests()) > before, what="the line of a client that left")


def _send_to_others(mix: Mix) -> None:
    """Gemini and OpenAI, where the gateway has keys for them."""
    chat = {"model": "gpt-6.1-sol", "messages": ASKED["messages"]}
    asked = {"contents": [{"parts": [{"text": "Hello"}]}]}
    gemini = "/gemini/v1/models/gemini-3.8-flash:"
    mix.ask("POST", "/openai/v1/chat/completions", chat | {"stream": True, "stream_options": {"include_usage": True}})
    mix.ask("POST", "/openai/v1/chat/completions", chat, "fault=rate_limit_input_tokens")
    mix.ask("POST", "/openai/v1/responses", {"model": "gpt-6.1-sol", "input": "Hello", "stream": True}, "fault=cut")
    mix.ask("POST", gemini + "generateContent", asked)
    mix.ask("POST", gemini + "streamGenerateContent?alt=sse", asked, "fault=error_after;after=2;chunks=5")
    mix.ask("POST", gemini + "streamGenerateContent", asked)


def send_everything(gateway: Gateway) -> int:
    """All of it, over fresh connections, so that it falls to any worker; returns how many requests it was."""
    mix = Mix(gateway)
    stream = ASKED | {"stream": True}
    _send_to_others(mix)
    mix.ask("POST", "/v1/messages", ASKED)
    mix.ask("POST", "/anthropic/v1/messages", stream)
    mix.ask("POST", "/v1/messages", stream, "thinking_tokens=40;chunks=5")
    mix.ask("POST", "/v1/messages", ASKED, "stop=refusal")
    mix.ask("POST", "/v1/messages", ASKED | {"model": "claude-unheard-of"})
    for fault in FAULTS:
        mix.ask("POST", "/v1/messages", ASKED, f"fault={fault}")
    for fault in STREAM_FAULTS:
        mix.ask("POST", "/v1/messages", stream, f"fault={fault};chunks=4")
    mix.ask("POST", "/v1/messages", ASKED, "fault=hang", **{"x-stainless-timeout": "0.3"})
    mix.leave("fault=hang", stream=False)
    mix.leave(_SLOW, stream=True)
    _send_what_is_wrong(mix)
    _send_the_rest_of_the_api(mix)
    return mix.sent


def send_into_the_void(gateway: Gateway) -> None:
    """One more request, when nobody listens at the provider's address any more."""
    Mix(gateway).ask("POST", "/v1/messages", ASKED)


def _send_what_is_wrong(mix: Mix) -> None:
    mix.ask("POST", "/v1/messages", b"{")
    mix.ask("POST", "/v1/messages", {"max_tokens": 1})
    mix.ask("POST", "/v1/messages", ASKED, **{"x-api-key": "wrong"})
    mix.ask("POST", "/v1/messages", ASKED, **{"x-api-key": ""})
    mix.ask("GET", "/v1/messages")
    mix.ask("BREW", "/v1/messages")
    mix.ask("GET", "/no/such/path")
    mix.ask("POST", "/generate", {"prompt": ""})
    mix.ask("POST", "/generate", b"{}", **{"content-type": "text/plain"})


def _send_the_rest_of_the_api(mix: Mix) -> None:
    mix.ask("POST", "/generate", {"prompt": "Hello", "max_tokens": 8})
    mix.ask("POST", "/generate", {"prompt": "Hello", "model": "claude-unheard-of"})
    mix.ask("POST", "/batch_generate", {"prompts": ["a", "b", "c"], "max_tokens": 8})
    mix.ask("POST", "/v1/messages/count_tokens", {k: v for k, v in ASKED.items() if k != "max_tokens"})
    mix.ask("GET", "/v1/models")
    mix.ask("GET", "/v1/models/claude-opus-5-5")
    batch = {"requests": [{"custom_id": "one", "params": ASKED}]}
    made = json.loads(mix.ask("POST", "/v1/messages/batches", batch))["id"]
    mix.ask("GET", "/v1/messages/batches")
    mix.ask("GET", f"/v1/messages/batches/{made}")
    mix.ask("GET", f"/v1/messages/batches/{made}/results")
    mix.ask("POST", f"/v1/messages/batches/{made}/cancel")
    mix.ask("DELETE", f"/v1/messages/batches/{made}")
    part = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.txt"\r\ncontent-type: text/plain\r\n\r\nhi\r\n--x--\r\n'
    beta = {"anthropic-beta": "files-api-2025-04-14"}
    mix.ask("POST", "/v1/files", part, **beta, **{"content-type": "multipart/form-data; boundary=x"})
    mix.ask("GET", "/v1/files", **beta)
    mix.ask("GET", "/v1/files/file_none/content", **beta)
    assert fetch(mix.gateway, "GET", "/healthz").status == 200


POLICY = {
    "CLAUDE_PROXY_PACING": "on",
    "CLAUDE_PROXY_MAX_RETRIES": "1",
    "CLAUDE_PROXY_RETRY_BUDGET": "1",
    "CLAUDE_PROXY_CACHE_TTL": "60",
    "CLAUDE_PROXY_FALLBACKS": f"{ASKED['model']}=claude-sonnet-5-5",
}
"""Settings of a gateway for `send_policy`; a ledger and a file with `LIMITS` belong to it too."""
LIMITS = '{"alice": {"budget_usd_per_day": 5}, "carol": {"models": ["claude-opus-*"]}}'


def send_policy(gateway: Gateway) -> int:
    """What waits, is tried again, handed over, given again and refused by policy; returns how many requests it was."""
    mix = Mix(gateway)
    with ThreadPoolExecutor(8) as pool:  # more at once than the careful start lets go
        slow = [ASKED | {"max_tokens": 60 + n} for n in range(8)]
        list(pool.map(lambda body: mix.ask("POST", "/v1/messages", body, "ttfb_ms=600"), slow))
    mix.sent = len(slow)
    for _ in range(2):
        mix.ask("POST", "/v1/messages", ASKED)
    mix.ask("POST", "/v1/messages", ASKED, **{"cache-control": "no-cache"})
    long = {"system": "Be brief", "messages": [{"role": "user", "content": "Something long. " * 3000}]}
    mix.ask("POST", "/v1/messages", ASKED | long)
    mix.ask("POST", "/v1/messages", ASKED | {"max_tokens": 50}, "fault=overloaded")
    mix.ask("POST", "/v1/messages", ASKED | {"model": "claude-fable-5-2"}, **{"x-api-key": NARROW_KEY})
    unpriced = {"model": "gpt-6.2-sol", "messages": ASKED["messages"]}
    mix.ask("POST", "/openai/v1/chat/completions", unpriced)
    tasks = {"one": {"prompt": "Hello", "max_tokens": 8}, "two": {"prompt": "Hi", "max_tokens": 8}}
    mix.ask("POST", "/aggregate", {"tasks": tasks})
    batch = {"requests": [{"custom_id": "one", "params": ASKED}]}
    made = json.loads(mix.ask("POST", "/v1/messages/batches", batch))
    results = f"/v1/messages/batches/{made['id']}/results"
    poll(lambda: b"custom_id" in mix.ask("GET", results), what="the batch to end")
    mix.ask("POST", "/v1/messages/batches", batch)  # nobody fetches this one
    return mix.sent
