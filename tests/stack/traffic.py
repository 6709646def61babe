"""Traffic with every ending that a dashboard speaks of, made by the simulator's scenarios."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import httpx

from tests.support.claude import ASKED
from tests.support.mix import Mix, send_policy
from tests.support.processes import Gateway

MODELS = ("claude-opus-5-5", "claude-haiku-5-5")

SCENARIOS = (
    (False, "", "ok"),
    (True, "gap_ms=5;thinking_tokens=40", "ok"),
    (False, "stop=refusal", "refused"),
    (False, "fault=rate_limit_requests", "upstream_429"),
    (False, "fault=rate_limit_input_tokens", "upstream_429"),
    (True, "fault=rate_limit_output_tokens", "upstream_429"),
    (False, "fault=spend", "upstream_429"),
    (False, "fault=acceleration", "upstream_429"),
    (True, "fault=overloaded", "upstream_overloaded"),
    (True, "fault=error_after", "upstream_overloaded"),
    (False, "fault=api_error", "upstream_error"),
    (False, "fault=hang", "upstream_timeout"),
    (True, "fault=cut", "cut_off"),
    (True, "fault=stall", "stalled"),
    (False, "fault=invalid_request", "client_invalid"),
)
"""Whether it is a stream, how the simulator answers, and how the request ends."""


LIMITS: dict[str, dict[str, Any]] = {"alice": {"budget_usd_per_day": 5}, "carol": {"models": ["claude-opus-*"]}}
"""What the clients of `policy_round` may do: one not spend without end, the other not ask every model."""


def policy_round(gateway: Gateway) -> int:
    """Everything that policy does, at a gateway with `mix.POLICY`, `LIMITS`, a ledger and two seconds of patience in
    the queue; returns how many requests it was."""
    sent = send_policy(gateway)
    mix = Mix(gateway)

    def ask(model: str, scenario: str = "") -> None:
        mix.ask("POST", "/v1/messages", ASKED | {"model": model}, scenario)

    ask("claude-sonnet-5-5", "fault=rate_limit_requests;retry_after=1")  # paused, and tried again
    ask("claude-sonnet-5-5")  # waits for the gate
    ask("claude-haiku-5-5", "fault=rate_limit_requests;retry_after=60")
    ask("claude-haiku-5-5")  # will not wait so long: refused
    return sent + mix.sent


class Client:
    """An unmodified client with a client key."""

    def __init__(self, url: str, key: str) -> None:
        self._rounds = 0
        self._http = httpx.Client(
            base_url=url, headers={"x-api-key": key, "anthropic-version": "2023-06-01"}, timeout=30
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def _message(self, model: str, stream: bool, scenario: str) -> dict[str, Any]:
        # Written to the prompt cache once a round, and read from then on.
        system = {"type": "text", "text": f"Round {self._rounds}. " * 100, "cache_control": {"type": "ephemeral"}}
        body = {"model": model, "max_tokens": 256, "stream": stream, "system": [system]}
        return {
            "json": body | {"messages": [{"role": "user", "content": "Hello"}]},
            "headers": {"x-simulator-scenario": scenario} if scenario else {},
        }

    def round(self) -> Counter[str]:
        """Every scenario on two models, and what needs none; returns how many requests end how."""
        sent: Counter[str] = Counter()
        self._rounds += 1
        for model in MODELS:
            for stream, scenario, outcome in SCENARIOS:
                self._http.post("/v1/messages", **self._message(model, stream, scenario))
                sent[outcome] += 1
        self._http.post("/generate", json={"prompt": "Hello"})
        self._http.get("/v1/models")
        self._http.post("/v1/messages", content=b"not json", headers={"content-type": "application/json"})
        self._http.post("/v1/messages", json={}, headers={"x-api-key": "wrong"})
        with self._http.stream("POST", "/v1/messages", **self._message(MODELS[0], True, "gap_ms=300")) as answer:
            next(answer.iter_raw())  # and leave
        return sent + Counter({"ok": 2, "client_invalid": 1, "client_auth": 1, "client_abort": 1})

    @contextmanager
    def open_stream(self) -> Iterator[None]:
        """A stream that goes on for as long as the block does."""
        slow = self._message(MODELS[0], True, "gap_ms=200;chunks=10000;output_tokens=10000")
        with self._http.stream("POST", "/v1/messages", **slow) as answer:
            chunks = answer.iter_raw()  # kept: the response closes with its iterator
            next(chunks)
            yield
