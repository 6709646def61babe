"""Requests made side by side, and an upstream whose answers tell what is left of its limits."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import socket
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support import claude
from tests.support.claude import ASKED, LAST_CHUNK
from tests.support.poll import poll
from tests.support.processes import Gateway
from tests.support.scene import Got, Scene
from tests.support.upstream import Script, Seen, answer
from tests.support.wire import Wire

_numbers = itertools.count()


def new_model() -> str:
    """A model that nobody has asked yet: it has limits of its own."""
    return f"claude-made-up-{next(_numbers)}"


def client_keys(*names: str) -> str:
    """The setting that lets these clients in, each with `key_of` as its key."""
    return " ".join(f"{name}:{hashlib.sha256(key_of(name).encode()).hexdigest()}" for name in names)


def key_of(client: str) -> str:
    """A client's key."""
    return f"key-of-{client}"


def headroom(seconds: int = 60, **left: tuple[int, int]) -> list[str]:
    """Rate-limit headers: `requests`, `input_tokens`, `output_tokens` as (limit, remaining), all there in `seconds`."""
    reset = (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return [
        f"anthropic-ratelimit-{name.replace('_', '-')}-{what}: {value}"
        for name, (limit, remaining) in left.items()
        for what, value in (("limit", limit), ("remaining", remaining), ("reset", reset))
    ]


def says(*headers: str, status: str = "200 OK", body: bytes = claude.MESSAGE) -> Script:
    """Answers with these headers; a stream where one is asked for."""

    def play(connection: socket.socket, seen: Seen) -> None:
        if status == "200 OK" and seen.body and json.loads(seen.body).get("stream"):
            head = claude.SSE_HEAD[:-2] + "".join(f"{line}\r\n" for line in headers).encode() + b"\r\n"
            connection.sendall(head + claude.chunk(claude.STREAM) + LAST_CHUNK)
        else:
            connection.sendall(answer(status, body, "content-type: application/json", *headers))

    return play


def asked(text: str = "Say something", **fields: Any) -> dict[str, Any]:
    """A request body."""
    return ASKED | {"messages": [{"role": "user", "content": text}]} | fields


def text_of(seen: Seen) -> str:
    """What a request that reached the upstream asks."""
    text = json.loads(seen.body)["messages"][0]["content"]
    assert isinstance(text, str)
    return text


class Asking:
    """A request under way in a thread of its own."""

    def __init__(self, stage: Scene, body: dict[str, Any], headers: Mapping[str, str], target: str) -> None:
        self._got: Got | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(stage, body, dict(headers), target), daemon=True)
        self._thread.start()

    def _run(self, stage: Scene, body: dict[str, Any], headers: dict[str, str], target: str) -> None:
        try:
            self._got = stage.ask(stream=bool(body.get("stream")), target=target, body=body, headers=headers)
        except Exception as error:  # noqa: BLE001 told to whoever waits for the answer
            self._error = error

    def got(self) -> Got:
        """Its answer. Raises what went wrong instead."""
        self._thread.join(30)
        if self._error is not None:
            raise self._error
        assert self._got is not None, "no answer in 30 s"
        return self._got


def start(
    stage: Scene, body: dict[str, Any], client: str = "alice", target: str = "/v1/messages", **headers: str
) -> Asking:
    """Ask in the background."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Asking(stage, body, {"x-api-key": key_of(client)} | named, target)


def ask(stage: Scene, body: dict[str, Any], client: str = "alice", target: str = "/v1/messages", **headers: str) -> Got:
    """Ask, and wait for the answer."""
    return start(stage, body, client, target, **headers).got()


def wires_to_both(gateway: Gateway, each: int) -> list[Wire]:
    """Connections, so many to each of two workers: while one is stopped it accepts none."""
    wires = []
    for other in gateway.worker_pids():
        os.kill(other, signal.SIGSTOP)
        try:
            for _ in range(each):
                wires.append(Wire(gateway.port))
                wires[-1].request("GET", "/healthz")
                assert wires[-1].answer()[0].status == 200
        finally:
            os.kill(other, signal.SIGCONT)
    return wires


def wait_queue(stage: Scene, depth: int) -> None:
    """Until so many wait for capacity."""
    poll(
        lambda: stage.gateway.sample("claude_proxy_queue_depth", gen_ai_provider_name="anthropic") == depth,
        what=f"{depth} to wait",
    )


def line_of(stage: Scene, got: Got) -> dict[str, Any]:
    """The log line of an answer."""
    return stage.gateway.wait_log(
        lambda line: line["event"] == "request" and line["trace_id"] == got.headers["x-trace-id"], "the request's line"
    )
