"""A Claude that costs next to nothing: precomputed answers, told by a mark in the prompt what to do.

No mark: a whole message at once. `#delay=MS#`: the same after a while. `#stream=CHUNKSxMS#`: an SSE stream, each chunk with
the time at which it was written (CLOCK_MONOTONIC, so another process can tell how long it took to arrive). `#api#`: with
the headers that the real API sends. Also an OTLP receiver (`/v1/traces`); `GET /counts` tells what it has seen.
"""

from __future__ import annotations

import asyncio
import json
import re
import time

from tests.bench import helper
from tests.bench.framing import Framer

_MARK = re.compile(rb"#(delay|stream|api)(?:=(\d+)(?:x(\d+))?)?#")
_TEXT = "The quick brown fox jumps over the lazy dog. " * 6
_USAGE = {"input_tokens": 150, "output_tokens": 64, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
_MESSAGE = {
    "id": "msg_01BenchBenchBenchBenchBench",
    "type": "message",
    "role": "assistant",
    "model": "claude-opus-5-5",
    "content": [{"type": "text", "text": _TEXT}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": _USAGE,
}
_API_HEADERS = (
    "date: Sat, 01 Aug 2026 00:00:00 GMT",
    *(
        f"anthropic-ratelimit-{kind}-{field}"
        for kind in ("requests", "tokens", "input-tokens", "output-tokens")
        for field in ("limit: 4000000", "remaining: 3999000", "reset: 2026-08-01T00:00:01Z")
    ),
    "anthropic-organization-id: 00000000-0000-4000-8000-000000000000",
    "via: 1.1 google",
    "cf-cache-status: DYNAMIC",
    "x-robots-tag: none",
    "server: cloudflare",
    "cf-ray: 0000000000000000-XXX",
)


def _head(kind: str, framing: str, *more: str) -> bytes:
    lines = ("HTTP/1.1 200 OK", f"content-type: {kind}", framing, "request-id: req_01BenchBenchBench", *more)
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def _whole(*more: str) -> bytes:
    body = json.dumps(_MESSAGE).encode()
    return _head("application/json", f"content-length: {len(body)}", *more) + body


def _chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def _event(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | fields)}\n\n".encode()


_STAMP = "@" + "0" * 18
"""Stands for a time in nanoseconds; see `load.STAMP`, which finds it."""
_DELTA = _chunk(_event("content_block_delta", index=0, delta={"type": "text_delta", "text": f"A few words {_STAMP}"}))
_BEFORE, _, _AFTER = _DELTA.partition(_STAMP.encode())
_OPENING = (
    _head("text/event-stream; charset=utf-8", "transfer-encoding: chunked", "cache-control: no-cache")
    + _chunk(_event("message_start", message=_MESSAGE | {"content": [], "stop_reason": None}))
    + _chunk(_event("content_block_start", index=0, content_block={"type": "text", "text": ""}))
)
_CLOSING = (
    _chunk(_event("content_block_stop", index=0))
    + _chunk(_event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage=_USAGE))
    + _chunk(_event("message_stop"))
    + b"0\r\n\r\n"
)
_WHOLE, _WHOLE_API = _whole(), _whole(*_API_HEADERS)
_TAKEN = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n"


class Counts:
    """What this process has seen."""

    messages = exports = server_spans = 0


class Upstream(asyncio.Protocol):
    """One connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._framer = Framer()
        self._request = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._request += data
        if self._framer.feed(data):
            request, self._request = self._request, b""
            self._answer(request)

    def _answer(self, request: bytes) -> None:
        if request.startswith(b"POST /v1/traces"):
            Counts.exports += 1
            # Only SERVER spans carry this attribute, each once: a cheap way to see whether spans were dropped.
            Counts.server_spans += request.count(b"http.route")
            self._transport.write(_TAKEN)
            return
        if request.startswith(b"GET /counts"):
            body = json.dumps({"messages": Counts.messages, "server_spans": Counts.server_spans}).encode()
            self._transport.write(_head("application/json", f"content-length: {len(body)}") + body)
            return
        Counts.messages += 1
        mark = _MARK.search(request)
        if mark is None:
            self._transport.write(_WHOLE)
        elif mark[1] == b"api":
            self._transport.write(_WHOLE_API)
        elif mark[1] == b"delay":
            self._timer = self._loop.call_later(int(mark[2]) / 1e3, self._transport.write, _WHOLE)
        else:
            self._stream(int(mark[2]), int(mark[3]) / 1e3)

    def _stream(self, chunks: int, gap: float) -> None:
        start = self._loop.time()

        def write(index: int) -> None:
            chunk = b"%b@%018d%b" % (_BEFORE, time.monotonic_ns(), _AFTER)
            if index == 0:
                chunk = _OPENING + chunk
            if index == chunks - 1:
                self._transport.write(chunk + _CLOSING)
                return
            self._transport.write(chunk)
            # By the stream's own clock, so that one late chunk does not make the rest late.
            self._timer = self._loop.call_at(start + (index + 1) * gap, write, index + 1)

        write(0)


if __name__ == "__main__":
    helper.serve(Upstream)
