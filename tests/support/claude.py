"""What Claude says on the wire, for scripted upstreams: events, whole messages, errors, and how an answer is framed."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from typing import Any

MODEL = "claude-opus-5-5"
ASKED: dict[str, Any] = {"model": MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": "Say something"}]}
"""A request body that the gateway and the simulator take."""

SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nrequest-id: req_scripted\r\ntransfer-encoding: chunked\r\n\r\n"
SSE_HEAD_UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nrequest-id: req_scripted\r\n\r\n"
"""Framed by the end of the connection: a clean FIN says that the body is complete."""
LAST_CHUNK = b"0\r\n\r\n"


def event(kind: str, **data: Any) -> bytes:
    """One event as the API writes it."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data}, separators=(',', ':'))}\n\n".encode()


def start(input_tokens: int = 25, cache_write: int = 10, cache_read: int = 5) -> bytes:
    """`message_start`, with the input side of the usage and a placeholder for the output."""
    usage = {
        "input_tokens": input_tokens,
        "cache_creation_input_tokens": cache_write,
        "cache_read_input_tokens": cache_read,
        "output_tokens": 1,
    }
    message = {"id": "msg_scripted", "type": "message", "role": "assistant", "model": MODEL, "content": []}
    return event("message_start", message=message | {"stop_reason": None, "usage": usage})


def delta(text: str) -> bytes:
    """One piece of text."""
    return event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


def last(output_tokens: int = 7) -> bytes:
    """The end of a message, from the block's stop on."""
    return (
        event("content_block_stop", index=0)
        + event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": output_tokens})
        + event("message_stop")
    )


BLOCK = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
STREAM = start() + BLOCK + delta("Hel") + delta("lo") + last()
"""A whole short stream: 40 input tokens (10 written to the cache, 5 read), 7 output tokens."""

MESSAGE = json.dumps(
    {
        "id": "msg_scripted",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 25,
            "cache_creation_input_tokens": 10,
            "cache_read_input_tokens": 5,
            "output_tokens": 7,
        },
    }
).encode()
"""The same, not streamed."""


def error(kind: str, message: str = "said the provider", **details: Any) -> bytes:
    """An error body."""
    inner = {"type": kind, "message": message} | ({"details": details} if details else {})
    return json.dumps({"type": "error", "error": inner, "request_id": "req_scripted"}).encode()


def chunk(data: bytes) -> bytes:
    """In chunked framing."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def send_events(connection: socket.socket, events: Iterable[bytes]) -> None:
    """A stream's head, then each item as a chunk of its own; the stream is left open."""
    connection.sendall(SSE_HEAD)
    for item in events:
        connection.sendall(chunk(item))


def parse_events(body: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Every event of an SSE body as (name, data); fails on one that is unfinished or not JSON."""
    assert not body or body.endswith((b"\n\n", b"\r\n\r\n")), f"ends inside an event: {body[-80:]!r}"
    found = []
    for block in body.replace(b"\r\n", b"\n").split(b"\n\n"):
        lines = [line for line in block.split(b"\n") if line and not line.startswith(b":")]
        if lines:
            fields = dict(line.split(b": ", 1) for line in lines)
            found.append((fields[b"event"].decode(), json.loads(fields[b"data"])))
    return found
